"""Which quantized products are cut into parts right behind, so that a builder would cut their weight, and as floats?

TensorRT moves a Split, Slice or Gather along the output channels of a product up to its weight, and folds the weight's
DequantizeLinear on the way: such a product (query, key and value of attention in one, a gated unit) has Q and DQ and
multiplies in float. One product for each part, joined again by a Concat, has the same values; all of them stay integer,
and the Concat meets the cuts and costs nothing. Found with the builder that `verify --target tensorrt` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onnxcomp.graph.cost import part_name
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.partial import slice_of
from onnxcomp.graph.types import Shapes

LEAST_WIDTH = 16  # narrower parts do not fill an integer kernel
MOST_PARTS = 8
POINTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Place:
    """Where a tensor has a product's output channels: `size` steps along `axis`, each of `block` of them."""

    axis: int
    size: int
    block: int


def separate(graph: Graph, products: Iterable[Node], shapes: Shapes) -> list[tuple[Node, int]]:
    """Give each part of a product that is cut a product of its own; the nodes replaced, and into how many."""
    found, gone = [], list[Node]()
    for node in products:
        weight = _weight(node)
        if weight is None:
            continue
        width = weight.values.shape[weight.axis]
        ends = [0, *sorted(_cuts(graph, node.outputs[0], Place(-1, width, 1), shapes) - {0, width}), width]
        narrow = min(end - start for start, end in pairwise(ends)) < LEAST_WIDTH
        if 2 < len(ends) <= MOST_PARTS + 1 and not narrow:
            _replace(graph, node, weight, ends)
            gone += (node, weight.dequantize)
            found.append((node, len(ends) - 1))
    graph.remove_nodes(gone)
    graph.sort()
    return found


@dataclass(frozen=True)
class _Weight:
    """A product's integer weight behind its DequantizeLinear; `axis`: of its output channels."""

    dequantize: Node
    axis: int

    @property
    def values(self) -> Array:
        return self._constant(0)

    def _constant(self, port: int) -> Array:
        constant = self.dequantize.constant(port)
        assert constant is not None
        return constant.values

    def operands(self, start: int, end: int) -> Iterator[Array]:
        """What the DequantizeLinear of a part reads: [K, N] -> [K, end - start], and scales and zero points [N]."""
        yield np.ascontiguousarray(self.values.take(range(start, end), self.axis))
        for port in range(1, len(self.dequantize.inputs)):
            own = self._constant(port)
            yield own[start:end] if own.size > 1 else own


def _weight(node: Node) -> _Weight | None:
    """The weight of a MatMul or Gemm of our own making; None where the form is another one."""
    maker = node.inputs[1].producer
    if node.op not in ("MatMul", "Gemm") or maker is None or maker.op != "DequantizeLinear":
        return None
    if any(not isinstance(tensor, Constant) for tensor in maker.inputs) or len(maker.outputs[0].consumers) > 1:
        return None
    axis = 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else 1
    values, scale = maker.inputs[0], maker.inputs[1]
    along = scale.size == 1 or (scale.shape == (values.shape[axis],) and maker.attrs.get("axis", 1) == axis)
    bias = node.input(2)
    fits = bias is None or (isinstance(bias, Constant) and bias.shape[-1:] == (values.shape[axis],))
    return _Weight(maker, axis) if len(values.shape) == 2 and along and fits else None


def _cuts(graph: Graph, tensor: Tensor, place: Place, shapes: Shapes) -> set[int]:
    """Output channels at which something behind a tensor begins or ends to read."""
    found: set[int] = set()
    shape = shapes.static(tensor)
    if shape is None or graph.is_output(tensor):
        return found
    axis = place.axis % len(shape)
    for node in tensor.consumers:
        if node.inputs[0] is not tensor and node.op not in POINTWISE:
            continue
        if node.op in ("Split", "Slice", "Gather"):
            found |= {step * place.block for step in _steps(graph, node, (axis, axis - len(shape)), place.size)}
        elif (moved := _behind(node, axis, place, shape, shapes)) is not None:
            found |= _cuts(graph, node.outputs[0], moved, shapes)
    return found


def _steps(graph: Graph, node: Node, names: tuple[int, int], size: int) -> Iterator[int]:
    """Where a node cuts an axis of some size; `names` are the axis counted from the front and from the back."""
    if node.op == "Slice":
        starts, ends, axes, steps = slice_of(node, graph.opset) or ([], [], None, [])
        for start, end, own, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
            if own in names and step == 1:
                yield from slice(start, end).indices(size)[:2]
        return
    if node.attrs.get("axis", 0) not in names:
        return
    constant = node.constant(1)
    if node.op == "Gather":
        if constant is not None and constant.size == 1:
            index = int(constant.values.reshape(-1)[0]) % size
            yield from (index, index + 1)
        return
    given = node.attrs.get("split") if constant is None else constant.values.reshape(-1)
    parts = len(node.outputs)
    lengths = [-(-size // parts)] * (parts - 1) if given is None else [int(length) for length in given[:-1]]
    yield from (int(end) for end in np.cumsum(lengths))


def _behind(node: Node, axis: int, place: Place, shape: tuple[int, ...], shapes: Shapes) -> Place | None:
    """Where the output of a node has the channels, if it only moves them or treats each alone."""
    after = shapes.static(node.outputs[0])
    if after is None:
        return None
    if node.op in POINTWISE and any(isinstance(tensor, Constant) for tensor in node.inputs):
        return Place(axis, place.size, place.block) if after == shape else None
    if node.op == "Transpose":
        order = list(node.attrs.get("perm", reversed(range(len(shape)))))
        return Place(order.index(axis), place.size, place.block)
    if node.op == "Reshape" and axis == len(shape) - 1 and place.block == 1:
        inner = 1
        for own in reversed(range(len(after))):
            inner *= after[own]
            if inner == place.size:
                return Place(own, after[own], inner // after[own])
    return None


def _replace(graph: Graph, node: Node, weight: _Weight, ends: list[int]) -> None:
    """Products of the parts, and a Concat that makes the node's output of theirs."""
    maker, made = weight.dequantize, []
    bias = node.constant(2)
    for index, (start, end) in enumerate(pairwise(ends)):
        name = part_name(node.name or node.outputs[0].name, index)
        constants = [graph.add_constant(f"{name}.w", values) for values in weight.operands(start, end)]
        dequantized = graph.add_node("DequantizeLinear", constants, name=f"{name}.dq", attrs=dict(maker.attrs))
        inputs: list[Tensor] = [node.inputs[0], dequantized.outputs[0]]
        if bias is not None:
            inputs.append(graph.add_constant(f"{name}.b", bias.values[..., start:end]))
        made.append(graph.add_node(node.op, inputs, name=name, attrs=dict(node.attrs)).outputs[0])
    output = node.outputs[0]
    node.outputs.clear()
    graph.add_node("Concat", made, name=f"{node.name}.parts", attrs={"axis": -1}, outputs=[output])
