"""How are weights trained that a model stores as integers? On their own grid: what is written back are integers again.

A weight w = scale * (code - zero), stored by a DequantizeLinear or by nodes that Cast, shift, subtract and multiply
constants (onnxcomp.graph.coded). In the copy that trains it is a float initializer that is rounded to the grid wherever
it is read, with a gradient that passes straight through (Bengio et al. 2013); the grid itself stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coded import pack, unpacked
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes, TensorType

PACKED = ("BitShift", "Mod", "Reshape", "Slice")  # from packed bytes to codes
Values = Callable[[list[str]], Mapping[str, Array]]


@dataclass(frozen=True)
class Grid:
    """The grid of one stored weight.

    Attributes:
        scale: float32, broadcasts against the codes.
        zero: the code that stands for 0, of the same shape or one number; between two codes for binary weights.
        low, high: smallest and largest code.
        bits: bits a code takes in packed bytes; 0 where each code is an element.
        shape: of what the file stores.
        columns: codes of a row in packed bytes that are stored row by row, filled up to whole blocks; 0 elsewhere.
    """

    scale: Array
    zero: Array
    low: int
    high: int
    bits: int
    shape: tuple[int, ...]
    columns: int = 0

    @property
    def bounds(self) -> tuple[Array, Array]:
        """The smallest and the largest weight, broadcasting against it."""
        ends = [(np.float32(code) - self.zero) * self.scale for code in (self.low, self.high)]
        return np.minimum(*ends).astype(np.float32), np.maximum(*ends).astype(np.float32)

    def stored(self, weight: Array) -> Array:
        """What the file stores for a weight."""
        exact = np.asarray(weight, np.float64) / self.scale + self.zero
        codes = np.clip(np.rint(exact), self.low, self.high)
        if not self.bits:
            return codes.reshape(self.shape)
        if self.columns:
            codes = np.pad(codes, ((0, 0), (0, self.columns - codes.shape[1])), mode="edge")
        return pack(codes.astype(np.uint8), self.bits).reshape(self.shape)


def unfold(graph: Graph, computed: Values) -> dict[str, Grid]:
    """Let every weight that is stored as integers be a float initializer of the integers' name; grids by that name.

    Args:
        computed: values of tensors that depend on no input.
    """
    found: dict[str, Grid] = {}
    for node in list(graph.nodes):
        if node.op == "MatMulNBits" and (blocks := _blocks(node, computed)) is not None and blocks[0].name not in found:
            found[blocks[0].name] = blocks[1]
            _as_product(graph, node, *blocks)
            continue
        seen = _dequantized(node) if node.op == "DequantizeLinear" else _chain(graph, node, computed)
        if seen is None:
            continue
        codes, grid, last = seen
        output = last.outputs[0]
        if graph.is_output(output) or codes.name in found or len(codes.consumers) > 1 or not (grid.scale != 0).all():
            continue
        values = np.ascontiguousarray(computed([output.name])[output.name], np.float32)
        readers = list(dict.fromkeys(output.consumers))
        weight = Constant(codes.name, values)
        graph.replace_uses(output, weight, only=readers)
        found[codes.name] = grid
    return found


def round_where_read(graph: Graph, grids: Mapping[str, Grid], learned: Collection[Constant], shapes: Shapes) -> None:
    """Round the weights that are learned to their grids, in front of all that reads them."""
    for weight in learned:
        grid = grids.get(weight.name)
        if grid is None:
            continue
        readers = list(dict.fromkeys(weight.consumers))

        def op(kind: str, *inputs: Tensor, weight: Constant = weight) -> Tensor:
            output = graph.add_node(kind, inputs, name=f"{weight.name}.{kind.lower()}").outputs[0]
            shapes.types[output.name] = TensorType(np.dtype(np.float32), weight.shape)
            result: Tensor = output
            return result

        scale = graph.add_constant(f"{weight.name}.scale", grid.scale)
        between = grid.zero != np.rint(grid.zero)
        steps = op("Div", weight, scale)
        if between.any():
            zero = graph.add_constant(f"{weight.name}.zero", grid.zero)
            steps = op("Sub", op("Round", op("Add", steps, zero)), zero)
        else:
            steps = op("Round", steps)
        graph.replace_uses(weight, op("Mul", steps, scale), only=readers)
    graph.sort()


def _blocks(node: Node, computed: Values) -> tuple[Constant, Grid] | None:
    """The packed weight of MatMulNBits, and its grid [N, K]; None where it is not stored in order."""
    packed, zero = node.constant(1), node.constant(3)
    n, k, bits = (int(node.attrs.get(key, default)) for key, default in (("N", 0), ("K", 0), ("bits", 4)))
    block = int(node.attrs.get("block_size", 32))
    odd = node.input(4) is not None or (zero is None and node.input(3) is not None) or bits not in (2, 4, 8)
    if packed is None or len(packed.consumers) > 1 or odd:
        return None
    held = node.constant(2)
    scales = computed([node.inputs[2].name])[node.inputs[2].name] if held is None else held.values
    if scales.dtype != np.float32:
        return None

    def whole(values: Array) -> Array:
        """[N, blocks] -> [N, K]."""
        return np.ascontiguousarray(np.repeat(values.reshape(n, -1), block, 1)[:, :k])

    count = -(-k // block)
    if zero is None:
        middle = np.full((n, count), 2.0 ** (bits - 1), np.float32)
    elif zero.dtype == np.uint8:
        middle = unpacked(np.asarray(zero.values).reshape(n, -1), bits)[:, :count].astype(np.float32)
    else:
        middle = np.asarray(zero.values, np.float32)
    low, high = 0, 2**bits - 1
    grid = Grid(whole(np.asarray(scales)), whole(middle), low, high, bits, packed.shape, count * block)
    return packed, grid


def _as_product(graph: Graph, node: Node, packed: Constant, grid: Grid) -> None:
    """MatMulNBits as the product with its decoded weight [N, K] that it is."""
    n, k = grid.scale.shape
    codes = unpacked(np.asarray(packed.values).reshape(n, -1), grid.bits)[:, :k].astype(np.float32)
    weight = Constant(packed.name, (codes - grid.zero) * grid.scale)
    turned = graph.add_node("Transpose", [weight], name=f"{node.name}.turn", attrs={"perm": [1, 0]}).outputs[0]
    output, bias = node.outputs[0], node.input(5)
    x = node.inputs[0]
    graph.remove_nodes([node])
    if bias is None:
        graph.add_node("MatMul", [x, turned], name=f"{node.name}.product", outputs=[output])
    else:
        product = graph.add_node("MatMul", [x, turned], name=f"{node.name}.product").outputs[0]
        graph.add_node("Add", [product, bias], name=f"{node.name}.bias", outputs=[output])
    graph.sort()


def _dequantized(node: Node) -> tuple[Constant, Grid, Node] | None:
    codes, scale, zero = node.constant(0), node.constant(1), node.constant(2)
    if codes is None or scale is None or (zero is None and node.input(2) is not None):
        return None
    limits = _limits(codes.dtype)
    if limits is None or scale.dtype != np.float32:
        return None
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    spread = _spread(np.asarray(scale.values), codes.shape, axis, block)
    shift = np.zeros((), np.float32) if zero is None else np.asarray(zero.values).astype(np.float32)
    if spread is None or (offset := _spread(shift, codes.shape, axis, block)) is None:
        return None
    return codes, Grid(spread, offset, *limits, 0, codes.shape), node


def _spread(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array | None:
    """Values a tensor, a slice or a block so that they broadcast against the codes."""
    if values.size == 1:
        return values.reshape(())
    axis %= len(shape)
    if values.ndim == 1 and not block:
        return values.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    if values.ndim != len(shape) or not block:
        return None
    return np.ascontiguousarray(np.repeat(values, block, axis).take(np.arange(shape[axis]), axis))


def _chain(graph: Graph, cast: Node, computed: Values) -> tuple[Constant, Grid, Node] | None:
    """codes -> Cast to float -> [Sub zero] -> [Mul scale]; the codes stored, or unpacked from bytes by nodes before."""
    source = cast.input(0)
    if cast.op != "Cast" or cast.domain or int(cast.attrs.get("to", 0)) != 1 or source is None:
        return None
    stored, bits = (source, 0) if isinstance(source, Constant) else _packed(source)
    if stored is None or (limits := _limits(stored.dtype)) is None:
        return None
    low, high = (0, 2**bits - 1) if bits else limits
    last, zero, scale = cast, np.zeros((), np.float32), np.ones((), np.float32)
    for kind in ("Sub", "Mul"):
        readers = last.outputs[0].consumers
        if len(readers) != 1 or readers[0].op != kind or readers[0].inputs[0] is not last.outputs[0]:
            continue
        operand = readers[0].constant(1)
        if operand is None or operand.dtype != np.float32:
            continue
        last = readers[0]
        zero, scale = (operand.values, scale) if kind == "Sub" else (zero, operand.values)
    if last is cast:
        return None
    shape = source.shape if isinstance(source, Constant) else np.shape(computed([source.name])[source.name])
    if np.broadcast_shapes(shape, zero.shape, scale.shape) != tuple(shape):
        return None
    return stored, Grid(np.asarray(scale), np.asarray(zero), low, high, bits, stored.shape), last


def _packed(codes: Tensor) -> tuple[Constant | None, int]:
    """The bytes that codes are unpacked from, and their bits; None where something else makes them."""
    bits, tensor = 0, codes
    while (node := tensor.producer) is not None:
        if node.domain or node.op not in PACKED:
            return None, 0
        if node.op == "Mod" and (base := node.constant(1)) is not None and base.size == 1:
            bits = int(np.log2(int(base.values.reshape(-1)[0])))
        tensor = node.inputs[0]
    return (tensor, bits) if isinstance(tensor, Constant) and bits in (1, 2, 4) else (None, 0)


def _limits(dtype: np.dtype[np.generic]) -> tuple[int, int] | None:
    signed, bits = not dtype.name.startswith("u"), dtype.name.lstrip("uint")
    if not dtype.name.lstrip("u").startswith("int") or not bits.isdigit() or int(bits) == 64:
        return None
    return (-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1) if signed else (0, 2 ** int(bits) - 1)
