"""Values and shapes that follow from what is known before the model runs: one forward pass, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from onnxcomp.graph.codec import dims_of, encode_node
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Array, Constant, Graph, Node, elem_type
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops.tables import RECORDS

SMALL_ELEMENTS = 4096  # shape arithmetic stays far below; larger values are data
_RULES = {(record.domain, record.op): record.shape for record in RECORDS if record.shape is not None}
_NEVER_FIXED = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def propagate(graph: Graph, shapes: Shapes) -> dict[str, Array]:
    """Complete `shapes` by evaluating shape arithmetic along the main graph, in place.

    Returns:
        The small values that are fixed once the input shapes are, by tensor name.
    """
    values: dict[str, Array] = {}
    opset = graph.opset
    for node in graph.nodes:
        if node.domain == MICROSOFT_DOMAIN:
            _infer_microsoft(node, shapes)
        if (types := _RULES.get((node.domain, node.op))) is not None:
            _keep(node, types(node, shapes), shapes)
        if node.bodies or node.domain not in (None, "", "ai.onnx"):
            continue
        found = _value_of(node, shapes, values, opset)
        if found is not None:
            for tensor, value in zip(node.outputs, found, strict=False):
                values[tensor.name] = value
                shapes.types[tensor.name] = TensorType(value.dtype, value.shape)
        elif any(t.name and shapes.static(t) is None for t in node.outputs):
            _infer_node(node, shapes, values, opset)
    return values


def told(graph: Graph) -> bool:
    """Whether the graph holds operators whose types follow from their records alone."""
    return any((node.domain, node.op) in _RULES for node in graph.nodes)


def _keep(node: Node, types: Sequence[TensorType | None], shapes: Shapes) -> None:
    """Complete what is known of a node's outputs; what inference found of them stays."""
    for tensor, found in zip(node.outputs, types, strict=False):
        if found is None:
            continue
        known = shapes.types.get(tensor.name, TensorType(None, None))
        open_ended = known.shape is None or not all(isinstance(d, int) for d in known.shape)
        shape = found.shape if open_ended and found.shape is not None else known.shape
        shapes.types[tensor.name] = TensorType(known.dtype or found.dtype, shape)


def evaluate(node: Node, inputs: list[Array | None], opset: int) -> list[Array]:
    """Run one node of the default domain on given inputs, by onnx's reference implementation.

    Raises:
        Exception: whatever the reference implementation raises for an operator or value it does not take.
    """
    from onnx.reference import ReferenceEvaluator

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


def _infer_microsoft(node: Node, shapes: Shapes) -> None:
    """Shapes of the operators that passes write, which onnx knows nothing of."""
    shape = shapes.static(node.inputs[0])
    if node.op == "DynamicQuantizeLSTM":
        _infer_lstm(node, shape, shapes)
        return
    if node.op == "MatMulNBits":
        shape = None if shape is None else (*shape[:-1], int(node.attrs["N"]))
    elif node.op == "GatherBlockQuantized":
        indices, table = shapes.static(node.inputs[1]), node.constant(0)
        if indices is None or table is None or int(node.attrs.get("gather_axis", 0)) != 0:
            return
        per_byte = 8 // int(node.attrs.get("bits", 4)) if table.dtype == np.uint8 else 1
        shape = (*indices, table.shape[1] * per_byte)
    elif node.op != "QuickGelu":
        return
    if shape is not None:
        shapes.types[node.outputs[0].name] = TensorType(np.dtype(np.float32), shape)


def _infer_lstm(node: Node, data: tuple[int, ...] | None, shapes: Shapes) -> None:
    """Y [steps, directions, batch, hidden] and the last states [directions, batch, hidden]."""
    weight = shapes.static(node.inputs[1])
    if data is None or weight is None:
        return
    last = (weight[0], data[1], weight[2] // 4)
    for tensor, shape in zip(node.outputs, ((data[0], *last), last, last), strict=False):
        if tensor.name:
            shapes.types[tensor.name] = TensorType(np.dtype(np.float32), shape)


def _infer_node(node: Node, shapes: Shapes, values: dict[str, Array], opset: int) -> None:
    """onnx's own inference for one node, told the values that are known."""
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError:
        return
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor in node.inputs:
        if not tensor.name:
            continue
        dtype, shape = shapes.dtype(tensor), shapes.shape(tensor)
        if dtype is None:
            return
        types[tensor.name] = helper.make_tensor_type_proto(elem_type(dtype), shape)
        value = _known(tensor, values)
        if value is not None:
            data[tensor.name] = numpy_helper.from_array(np.asarray(value), tensor.name)
    try:
        result = shape_inference.infer_node_outputs(
            schema, encode_node(node), types, data, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError):
        return
    for tensor in node.outputs:
        kind = result.get(tensor.name)
        if kind is not None and kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"):
            shape = dims_of(kind.tensor_type)
            dtype = helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type) if kind.tensor_type.elem_type else None
            shapes.types[tensor.name] = TensorType(dtype, shape)
