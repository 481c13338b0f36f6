"""Values and shapes that follow from what is known before the model runs: one forward pass, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from onnxcomp.graph.codec import dims_of, encode_node
from onnxcomp.graph.ir import Array, Constant, Graph, Node, elem_type, is_onnx
from onnxcomp.graph.port_types import ports
from onnxcomp.graph.types import Shapes, TensorType

if TYPE_CHECKING:
    from onnxcomp.ops.facts import Operators
    from onnxcomp.ops.record import OutputTypes

SMALL_ELEMENTS = 4096  # shape arithmetic stays far below; larger values are data
_NEVER_FIXED = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def propagate(graph: Graph, shapes: Shapes, operators: Operators | None = None) -> dict[str, Array]:
    """Complete `shapes` by evaluating shape arithmetic along the main graph, in place.

    Args:
        operators: know the outputs of operators that ONNX does not describe; the installed ones by default.

    Returns:
        The small values that are fixed once the input shapes are, by tensor name.
    """
    from onnxcomp.ops.facts import installed  # records are written with this module

    operators = installed() if operators is None else operators
    values: dict[str, Array] = {}
    opset = graph.opset
    for node in graph.nodes:
        rule = operators.facts(node).shape
        if rule is not None and not graph.is_function(node):
            _infer_by_record(node, rule, shapes)
            continue
        if node.bodies or not is_onnx(node.domain):
            continue
        found = _value_of(node, shapes, values, opset)
        if found is not None:
            for tensor, value in zip(node.outputs, found, strict=False):
                values[tensor.name] = value
                shapes.types[tensor.name] = TensorType(value.dtype, value.shape)
        elif any(t.name and shapes.static(t) is None for t in node.outputs):
            _infer_node(node, shapes, values, opset)
    return values


def beyond_onnx(graph: Graph) -> bool:
    """Whether the main graph holds operators whose outputs only their records know."""
    from onnxcomp.ops.facts import installed

    operators = installed()
    return any(operators.facts(node).shape is not None for node in graph.nodes)


def evaluate(node: Node, inputs: list[Array | None], opset: int) -> list[Array]:
    """Run one node of the default domain on given inputs, by onnx's reference implementation.

    Raises:
        TypeError: the operator gives a sequence or an optional value, which the reference implementation hands out as a
            list or as what is in it.
        Exception: whatever the reference implementation raises for an operator or value it does not take.
    """
    from onnx.reference import ReferenceEvaluator

    if not all(port.takes_tensors for port in ports(node, opset) or [] if port.output):
        raise TypeError(f"{node.op} gives no tensor")

    proto = encode_node(node)
    names = {name: value for name, value in zip(proto.input, inputs, strict=True) if name and value is not None}
    graph = helper.make_graph(
        [proto],
        "one",
        [helper.make_tensor_value_info(n, elem_type(v.dtype), v.shape) for n, v in names.items()],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model).run(None, names)
    return [np.asarray(result) for result in results]


def _value_of(node: Node, shapes: Shapes, values: dict[str, Array], opset: int) -> list[Array] | None:
    if node.op == "Shape":
        shape = shapes.static(node.inputs[0])
        if shape is None:
            return None
        start, end = node.attrs.get("start", 0), node.attrs.get("end")
        return [np.asarray(shape[start:end], np.int64)]
    if node.op == "Size":
        shape = shapes.static(node.inputs[0])
        return None if shape is None else [np.asarray(np.prod(shape, dtype=np.int64))]
    if node.op in _NEVER_FIXED:
        return None
    inputs: list[Array | None] = []
    for tensor in node.inputs:
        value = _known(tensor, values) if tensor.name else None
        if tensor.name and value is None:
            return None
        inputs.append(value)
    outputs = [shapes.static(t) for t in node.outputs if t.name]
    if any(shape is not None and np.prod(shape, dtype=np.int64) > SMALL_ELEMENTS for shape in outputs):
        return None
    if node.op in ("ConstantOfShape", "Expand", "Range", "Tile") and _would_be_large(node, inputs):
        return None
    try:
        return evaluate(node, inputs, opset)
    except Exception:  # the reference implementation has gaps; inference goes on without this value
        return None


def _would_be_large(node: Node, inputs: list[Array | None]) -> bool:
    sizes = inputs[0] if node.op == "ConstantOfShape" else inputs[-1]
    if sizes is None:
        return True
    if node.op == "Range":
        start, limit, step = (float(np.asarray(v)) for v in inputs if v is not None)
        return step == 0 or (limit - start) / step > SMALL_ELEMENTS
    return bool(np.prod(np.abs(np.asarray(sizes, np.float64))) > SMALL_ELEMENTS)


def _known(tensor: Any, values: dict[str, Array]) -> Array | None:
    if isinstance(tensor, Constant):
        return tensor.values if tensor.size <= SMALL_ELEMENTS else None
    return values.get(tensor.name)


def _infer_by_record(node: Node, rule: OutputTypes, shapes: Shapes) -> None:
    """Complete what is known of a node's outputs by its operator's record; what inference found of them stays."""
    for tensor, found in zip(node.outputs, rule(node, shapes), strict=False):
        if found is None or not tensor.name:
            continue
        known = shapes.types.get(tensor.name, TensorType(None, None))
        open_ended = known.shape is None or not all(isinstance(d, int) for d in known.shape)
        shape = found.shape if open_ended and found.shape is not None else known.shape
        shapes.types[tensor.name] = TensorType(known.dtype or found.dtype, shape)


def _infer_node(node: Node, shapes: Shapes, values: dict[str, Array], opset: int) -> None:
    """onnx's own inference for one node, told the values that are known."""
    for name, kind in standard_types(node, shapes, values, opset).items():
        shapes.types[name] = kind


def empty_along(dims: Sequence[int], axis: int) -> bool:
    """Whether a size is zero: a runtime skips what is empty in a Concat, whatever its other sizes are."""
    return -len(dims) <= axis < len(dims) and dims[axis] == 0


def standard_types(
    node: Node,
    shapes: Shapes,
    values: dict[str, Array],
    opset: int,
    *,
    op: str | None = None,
    ports: int | None = None,
) -> dict[str, TensorType]:
    """Types of a node's outputs by name, as far as onnx's own inference finds them.

    Args:
        values: small tensors that are fixed, by name.
        op: an operator of the standard that has the same outputs, in place of the node's own; attributes that it does
            not know are left out.
        ports: how many inputs that takes.
    """
    try:
        schema = onnx.defs.get_schema(op or node.op, opset, "")
    except onnx.defs.SchemaError:
        return {}
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor in node.inputs[:ports]:
        if not tensor.name:
            continue
        dtype, shape = shapes.dtype(tensor), shapes.shape(tensor)
        if dtype is None:
            return {}
        types[tensor.name] = helper.make_tensor_type_proto(elem_type(dtype), shape)
        value = _known(tensor, values)
        if value is not None:
            data[tensor.name] = numpy_helper.from_array(np.asarray(value), tensor.name)
    proto = encode_node(node)
    if op is not None:
        proto.op_type, proto.domain = op, ""
        del proto.input[ports:]
        kept = [attribute for attribute in proto.attribute if attribute.name in schema.attributes]
        del proto.attribute[:]
        proto.attribute.extend(kept)
    elif node.op == "Concat":
        axis = int(node.attrs.get("axis", 1))
        left = [t.name for t in node.inputs if not empty_along(shapes.static(t) or (), axis)]
        proto.input[:] = left or proto.input
    try:
        result = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError):
        return {}
    found: dict[str, TensorType] = {}
    for tensor in node.outputs:
        kind = result.get(tensor.name)
        if kind is not None and kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"):
            element = kind.tensor_type.elem_type
            dtype = helper.tensor_dtype_to_np_dtype(element) if element else None
            found[tensor.name] = TensorType(dtype, dims_of(kind.tensor_type))
    return found
