"""What a graph costs: bytes, parameters, multiply-accumulates, as a whole and layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coded import CodedWeight, coded_weights, count_codes, read_coded
from onnxcomp.graph.functions import without_functions
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.literals import literal
from onnxcomp.ops.facts import Operators
from onnxcomp.results import ModelStats

PART = ".part"


@dataclass(frozen=True)
class LayerCost:
    """One node that holds weights or multiplies: parameters and bytes of its weights, MACs of one sample."""

    node: str
    op: str
    parameters: int
    bytes: int
    macs: int
    precision: str


@dataclass(frozen=True)
class Parameters:
    """Weight elements and how many of them are not zero."""

    total: int
    nonzero: int


def part_name(node: str, index: int) -> str:
    """Name of one of the nodes that a weighted node was separated into, by output channels."""
    return f"{node}{PART}{index}"


def joined(found: Iterable[LayerCost]) -> Iterator[LayerCost]:
    """Layers with the parts of one taken together again, under its name."""
    wholes: dict[str, LayerCost] = {}
    for layer in found:
        name, mark, index = layer.node.rpartition(PART)
        own = name if mark and index.isdigit() else layer.node
        old = wholes.get(own)
        sums = {} if old is None else {k: getattr(old, k) + getattr(layer, k) for k in ("parameters", "bytes", "macs")}
        wholes[own] = replace(layer, node=own, **sums)
    yield from wholes.values()


def stats(
    graph: Graph, operators: Operators, *, file_bytes: int, sample: Mapping[str, tuple[int, ...]] | None = None
) -> ModelStats:
    """Size and cost of a model; what local functions multiply counts at every call of them.

    Args:
        file_bytes: bytes of the .onnx file and its external data.
        sample: shapes of one sample's inputs; symbolic dimensions count as 1 where none is given.
    """
    count = parameters(graph, operators)
    plain = without_functions(graph)
    inferred = shape_tools.infer(plain, shape_tools.one_sample(plain, sample))
    return ModelStats(
        bytes=file_bytes,
        parameters=count.total,
        nonzero_parameters=count.nonzero,
        macs=sum(operators.facts(node).macs(node, inferred) for node in plain.walk()),
        nodes=sum(1 for _ in graph.walk()),
        opset=graph.opset,
    )


def parameters(graph: Graph, operators: Operators) -> Parameters:
    """Count weight elements, biases too; not scales, zero points, shapes and indices. A shared weight counts once."""
    scales = {node.inputs[1] for node in graph.walk() if _makes_scales(node, operators)}
    coded = [c for c in coded_weights(graph) if c.nodes[0].outputs[0] not in scales]
    seen: set[Tensor] = {constant for c in coded for constant in (c.codes, *c.helpers)}
    total, nonzero = sum(c.elements for c in coded), sum(c.nonzero() for c in coded)
    for node in graph.walk():
        for port, tensor in enumerate(node.inputs):
            held = literal(tensor) if tensor not in seen else None
            elements = parameter_elements(node, port, held, operators) if held is not None else 0
            if held is not None and elements:
                seen.add(tensor)
                total += elements
                nonzero += min(elements, _nonzero(node, port, held))
    return Parameters(total, nonzero)


def parameter_elements(node: Node, port: int, constant: Constant, operators: Operators) -> int:
    """How many weight elements an initializer holds for a port; 0 where it is no weight there."""
    facts = operators.facts(node)
    if port in facts.packed:
        return facts.packed[port](node, constant)
    if port in facts.quantization_ports or port in facts.shape_ports or _scales_at_run_time(node):
        return 0
    if _makes_scales(node, operators):
        return 0
    if constant.dtype.kind == "f" or constant.dtype.name in ("bfloat16",) or "float" in constant.dtype.name:
        return constant.size
    return 0


def _scales_at_run_time(node: Node) -> bool:
    """Whether a Mul joins a constant scale with that of an activation, or evens out what is quantized right after."""
    if node.op != "Mul":
        return False
    makers = [tensor.producer for tensor in node.inputs if tensor.producer is not None]
    joins = any(m.op == "DynamicQuantizeLinear" and m.outputs[1] in node.inputs for m in makers)
    readers = node.outputs[0].consumers
    return joins or (bool(readers) and all(reader.op == "DynamicQuantizeLinear" for reader in readers))


def _makes_scales(node: Node, operators: Operators) -> bool:
    """Whether a Mul does nothing but decode the scales of a quantized weight, its second factor being integers."""
    if node.op != "Mul" or node.constant(0) is None or not node.outputs[0].consumers:
        return False
    return all(
        port in operators.facts(reader).quantization_ports
        for reader in node.outputs[0].consumers
        for port, tensor in enumerate(reader.inputs)
        if tensor is node.outputs[0]
    )


def layers(graph: Graph, operators: Operators, sample: Mapping[str, tuple[int, ...]] | None = None) -> list[LayerCost]:
    """Nodes that hold weights or multiply, in graph order; weights behind a DequantizeLinear count for its reader.

    Those inside local functions are told for each call. What multiplies while the model is loaded is none.
    """
    graph = without_functions(graph)
    inferred = shape_tools.infer(graph, shape_tools.one_sample(graph, sample))
    decoding = {node for c in coded_weights(graph) for node in c.nodes}
    found, loaded = [], set[Tensor]()
    for node in graph.walk():
        at_load = bool(node.inputs) and all(isinstance(t, Constant) or t in loaded or not t.name for t in node.inputs)
        loaded.update(node.outputs if at_load and not node.bodies else ())
        if (
            node in decoding
            or _makes_scales(node, operators)
            or node.op in ("DequantizeLinear", "QuantizeLinear", "Constant", "Identity")
        ):
            continue
        facts = operators.facts(node)
        held = [held_weight(node, port, operators) for port in range(len(node.inputs))]
        macs = facts.macs(node, inferred)
        if macs and at_load:
            continue  # it makes a weight, once
        count = sum(h[0] for h in held)
        if macs or (count and (facts.weights is not None and count > 1)):
            found.append(
                LayerCost(node.name, node.op, count, sum(h[1] for h in held), macs, precision_of(node, operators))
            )
    return found


def integer_share(graph: Graph, operators: Operators, sample: Mapping[str, tuple[int, ...]] | None = None) -> float:
    """Share of the MACs of layers whose weights are stored as integers; 0 where nothing multiplies."""
    found = layers(graph, operators, sample)
    total = sum(layer.macs for layer in found)
    return sum(layer.macs for layer in found if layer.precision.startswith("int")) / total if total else 0.0


def held_weight(node: Node, port: int, operators: Operators) -> tuple[int, int]:
    """Parameters and bytes that a port takes from an initializer, looked at through DequantizeLinear and the like."""
    coded = _coded_at(node, port)
    if coded is not None:
        return coded.elements, coded.codes.nbytes
    source, at, constant = trace_weight(node, port)
    if constant is None:
        return 0, 0
    elements = parameter_elements(source, at, constant, operators)
    return elements, constant.nbytes if elements else 0


def _coded_at(node: Node, port: int) -> CodedWeight | None:
    """The coded weight that a port takes, as it is, turned at load or through a DequantizeLinear."""
    node, port = _turned(node, port)
    tensor = node.input(port)
    maker = tensor.producer if tensor is not None else None
    return read_coded(maker.input(0) if maker is not None and maker.op == "DequantizeLinear" else tensor)


def trace_weight(node: Node, port: int) -> tuple[Node, int, Constant | None]:
    """Follow a port back through DequantizeLinear, Cast, Transpose, Reshape, Identity and scaling to an initializer."""
    node, port = _turned(node, port)
    for _ in range(8):
        constant = literal(node.input(port))
        if constant is not None:
            return node, port, constant
        tensor = node.input(port)
        producer = tensor.producer if tensor is not None else None
        if producer is None or producer.op not in _WEIGHT_FORMS:
            break
        node, port = producer, 0
        if producer.op == "Mul" and producer.constant(0) is None and producer.constant(1) is not None:
            port = 0  # Cast -> Mul(scale): the integers come in on the computed side
    return node, port, None


def _turned(node: Node, port: int) -> tuple[Node, int]:
    """Where a weight comes in that is multiplied with a constant matrix at load; the port itself elsewhere."""
    at, multiplied = (node, port), False
    while (tensor := at[0].input(at[1])) is not None and (maker := tensor.producer) is not None:
        product = maker.op == "MatMul" and maker.constant(1) is not None
        if not product and maker.op not in ("Reshape", "Transpose"):
            break
        at, multiplied = (maker, 0), multiplied or product
    stored = multiplied and (literal(tensor) is not None or read_coded(tensor) is not None)
    return at if stored else (node, port)


def precision_of(node: Node, operators: Operators) -> str:
    """Type in which a node's weight is stored: float32, int8, …; the activations' type where it has none."""
    for weight_port in range(len(node.inputs)):
        coded = _coded_at(node, weight_port)
        if coded is not None:
            return f"int{coded.bits}"
        source, at, constant = trace_weight(node, weight_port)
        if constant is None or not parameter_elements(source, at, constant, operators):
            continue
        if source.op == "MatMulNBits":
            return f"int{int(source.attrs.get('bits', 4))}"
        return constant.dtype.name
    return "float32"


_WEIGHT_FORMS = {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "Mul", "Unsqueeze", "Squeeze"}


def _nonzero(node: Node, port: int, constant: Constant) -> int:
    values: Array = constant.values
    if node.op in ("MatMulNBits", "GatherBlockQuantized") and values.dtype == np.uint8:
        bits = int(node.attrs.get("bits", 4))
        return values.size * 8 // bits - count_codes(values, bits, 2 ** (bits - 1))
    zero = None
    if node.op == "DequantizeLinear" and port == 0:
        point = node.constant(2)
        if point is not None and np.asarray(point.values).astype(np.int32).any():
            zero = np.asarray(point.values).astype(np.int32)
            axis = int(node.attrs.get("axis", 1))
            if zero.ndim == 1 and zero.size > 1:
                zero = zero.reshape([-1 if a == axis % values.ndim else 1 for a in range(values.ndim)])
            if zero.ndim == values.ndim or zero.size == 1:
                return int(np.count_nonzero(values.astype(np.int32) != zero))
    if values.dtype.name in ("int4", "uint4", "int2", "uint2"):
        values = values.astype(np.int8)
    return int(np.count_nonzero(values))
