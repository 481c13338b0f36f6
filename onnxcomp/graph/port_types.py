"""Which inputs and outputs of a node share one type, and which types may that be? From the operator's ONNX schema.

A port whose schema names a fixed type (the scales of Resize are float32, whatever the picture is) has that type alone;
the others share type variables, which the node binds. So what a node looks like in another precision follows from the
standard, and needs no list of operators.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from onnxcomp.graph.codec import encode_node
from onnxcomp.graph.ir import ONNX_DOMAIN, Node, Tensor, elem_type, is_onnx
from onnxcomp.graph.types import Shapes

if TYPE_CHECKING:
    from onnxcomp.ops.facts import Operators

FLOAT, HALF = "tensor(float)", "tensor(float16)"


@dataclass(frozen=True)
class Port:
    """An input or output of a node.

    Attributes:
        output: whether it is an output.
        index: its place.
        variable: name of its type variable; empty where the schema fixes the type.
        allowed: the types it may have.
    """

    output: bool
    index: int
    variable: str
    allowed: frozenset[str]

    def tensor(self, node: Node) -> Tensor | None:
        """What stands there; None where it is omitted."""
        return node.output(self.index) if self.output else node.input(self.index)

    @property
    def takes_tensors(self) -> bool:
        """Whether a tensor may stand there, and no sequence or optional value must."""
        return any(kind.startswith("tensor(") for kind in self.allowed)

    @property
    def takes_others(self) -> bool:
        """Whether a sequence or an optional value may stand there."""
        return not all(kind.startswith("tensor(") for kind in self.allowed)


def ports(node: Node, opset: int, operators: Operators | None = None) -> list[Port] | None:
    """Every port of a node that is in use; None for an operator that neither the ONNX standard nor a record describes.

    Args:
        operators: know which ports share a type where ONNX knows nothing.
    """
    shared = operators.facts(node).half if operators is not None else None
    if shared is not None:
        return list(_shared(node, *shared))
    if not is_onnx(node.domain):
        return None
    schema = _schema(node.op, opset)
    if schema is None:
        return None
    sides = ((schema.inputs, len(node.inputs), False), (schema.outputs, len(node.outputs), True))
    return [port for formals, count, output in sides for port in _side(schema, formals, count, output)]


def takes_half(node: Node, opset: int, shapes: Shapes) -> bool:
    """Whether a node that the standard builds of others may be fed half precision, as strict inference sees it.

    The parts of MeanVarianceNormalization, say, mix a float32 exponent with what they are fed.
    """
    if not built_of_others(node, opset):
        return True
    proto = encode_node(node)
    proto.input[:] = [f"x{i}" if name else "" for i, name in enumerate(proto.input)]
    half = {port.index for port in ports(node, opset) or [] if not port.output and HALF in port.allowed}
    inputs = []
    for i, tensor in enumerate(node.inputs):
        rank = shapes.rank(tensor)
        kind = onnx.TensorProto.FLOAT16 if i in half else elem_type(shapes.dtype(tensor)) or onnx.TensorProto.FLOAT
        if tensor.name:
            inputs.append(onnx.helper.make_tensor_value_info(f"x{i}", kind, None if rank is None else [None] * rank))
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "half", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def built_of_others(node: Node, opset: int) -> bool:
    """Whether the standard defines a node by a graph of other operators."""
    schema: Any = _schema(node.op, opset) if is_onnx(node.domain) else None
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _shared(node: Node, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Iterator[Port]:
    """Ports of one type variable, and the others, which keep what they have."""
    for output, used, tensors in ((False, inputs, node.inputs), (True, outputs, node.outputs)):
        for index, tensor in enumerate(tensors):
            if tensor.name:
                kinds = {FLOAT, HALF} if index in used else {FLOAT}
                yield Port(output, index, "T" if index in used else "", frozenset(kinds))


def made_from_attributes(found: list[Port]) -> set[str]:
    """Type variables of outputs that no input binds: an attribute says which type they have, or nothing does."""
    bound = {port.variable for port in found if not port.output}
    return {port.variable for port in found if port.output and port.variable and port.variable not in bound}


def _side(
    schema: onnx.defs.OpSchema, formals: Sequence[onnx.defs.OpSchema.FormalParameter], count: int, output: bool
) -> Iterator[Port]:
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    for index in range(count):
        if not formals:
            return
        formal = formals[min(index, len(formals) - 1)]
        several = formal.option == variadic and not formal.is_homogeneous  # each of them has a type of its own
        known = {constraint.type_param_str for constraint in schema.type_constraints}
        name = formal.type_str if formal.type_str in known else ""
        yield Port(output, index, f"{name}{index}" if name and several else name, frozenset(formal.types))


@functools.cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset, ONNX_DOMAIN)
    except onnx.defs.SchemaError:
        return None
