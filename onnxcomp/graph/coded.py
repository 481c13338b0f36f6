"""How does a graph hold a weight in few bits, and how is such a form recognised? Codes, and nodes that decode them.

A weight is stored as small integers and decoded by standard operators whose inputs are all constant:

    codes -> [BitShift -> Mod -> Reshape] -> Cast -> [Sub zero] -> [Mul scale] -> [Reshape -> Slice]
    codes -> [BitShift -> Mod -> Reshape] -> Cast to int32 -> Gather from a table of levels -> [Mul scale] -> ...

ONNX Runtime evaluates such a chain once, when it loads the model, and then runs the float kernels at their full speed;
DequantizeLinear in the same place is evaluated on every call (docs/decisions/0012-weight-forms.md has the times).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from onnxcomp.graph.ir import ONNX_DOMAIN, Array, Constant, Graph, Node, Tensor, Variable, elem_type

PACKING_OPSET = 11  # BitShift; 8-bit codes need nothing newer than opset 7
_INT4_OPSET, _INT2_OPSET = 21, 25
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Coded:
    """A weight as integers, ready to be written.

    An element is `scale * (code - zero)`, or `scale * levels[code]` where there are levels.

    Attributes:
        codes: uint8, all below 2 ** bits, in the shape that `scale` broadcasts against: the weight's own, or the
            weight with one axis cut into blocks.
        bits: bits an element takes in the file: 1, 2, 4 or 8.
        zero: the code, or the point between two, that stands for 0.
        scale: float32, broadcasts against the codes; None for 1.
        levels: float32, at most [2 ** bits].
        padded: the shape once blocks are joined, where that has more elements than the weight; else None.
        axis, columns: in `padded`, the axis whose end is padding and how many of its elements are none.
    """

    codes: Array
    bits: int
    zero: float = 0.0
    scale: Array | None = None
    levels: Array | None = None
    padded: tuple[int, ...] | None = None
    axis: int = 0
    columns: int = 0

    def decode(self, shape: tuple[int, ...]) -> Array:
        """The float32 values of a weight of this shape, by the arithmetic of the nodes that are written."""
        if self.levels is not None:
            values = np.asarray(self.levels, np.float32)[self.codes]
        else:
            values = self.codes.astype(np.float32) - np.float32(self.zero)
        if self.scale is not None:
            values = values * self.scale
        if self.padded is not None:
            values = values.reshape(self.padded).take(np.arange(self.columns), self.axis)
        return values.reshape(shape)


def unpacked(rows: Array, bits: int) -> Array:
    """uint8 [n, bytes] of 2, 4 or 8 bits a code, the first in the lowest bits -> [n, codes]."""
    parts = [(rows >> np.uint8(start)) & np.uint8(2**bits - 1) for start in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(len(rows), -1)


def pack(codes: Array, bits: int) -> Array:
    """Codes of 1, 2, 4 or 8 bits as bytes, the first in the lowest bits: uint8 [ceil(size * bits / 8)]."""
    flat = codes.reshape(-1)
    per_byte = 8 // bits
    if per_byte == 1:
        return flat.astype(np.uint8, copy=False)
    packed = np.zeros(-(-flat.size // per_byte), np.uint8)
    for place in range(per_byte):
        part = flat[place::per_byte].astype(np.uint8, copy=False)
        packed[: part.size] |= part << np.uint8(bits * place)
    return packed


def count_codes(packed: Array, bits: int, code: int) -> int:
    """How often a code stands in bytes made by `pack`, padding included."""
    places = np.arange(256)[:, None] >> np.arange(0, 8, bits)
    in_byte = (places % 2**bits == code).sum(axis=1)
    return int(np.bincount(packed.reshape(-1), minlength=256) @ in_byte)


class CodedWriter:
    """Writes coded weights into a graph; small constants that several of them need are stored once.

    Args:
        graph: the model. The nodes go to its main graph, so that bodies of If, Loop and Scan see their results too.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.root
        self._shared: dict[tuple[str, bytes, tuple[int, ...]], Constant] = {}

    def write(self, constant: Constant, coded: Coded) -> Variable:
        """Everything that read `constant` now reads the decoded codes, in a tensor of its name, shape and dtype."""
        value, zero = self._integers(constant, coded)
        if coded.levels is not None:
            table = self.graph.add_constant(f"{constant.name}_levels", np.asarray(coded.levels, np.float32))
            value = self._add(constant, "Cast", value, to=elem_type(np.dtype(np.int32)))
            value = self._add(constant, "Gather", table, value)
        else:
            value = self._add(constant, "Cast", value, to=elem_type(_FLOAT32))
            if zero:
                value = self._add(constant, "Sub", value, self._share("zero", np.float32(zero)))
        if coded.scale is not None:
            scale = self.graph.add_constant(f"{constant.name}_scale", np.asarray(coded.scale, np.float32))
            value = self._add(constant, "Mul", value, scale)
        shape = coded.codes.shape
        if coded.padded is not None:
            value = self._add(constant, "Reshape", value, self._share("shape", np.asarray(coded.padded, np.int64)))
            value = self._first(constant, value, coded.columns, coded.axis)
            shape = tuple(coded.columns if a == coded.axis else d for a, d in enumerate(coded.padded))
        if shape != constant.shape:
            value = self._add(constant, "Reshape", value, self._share("shape", np.asarray(constant.shape, np.int64)))
        if constant.dtype != _FLOAT32:
            value = self._add(constant, "Cast", value, to=elem_type(constant.dtype))
        assert isinstance(value, Variable) and value.producer is not None
        return take_over(self.graph, constant, value.producer)

    def _integers(self, constant: Constant, coded: Coded) -> tuple[Tensor, float]:
        """The codes as a tensor that Cast takes, and which of its values stands for 0."""
        name = f"{constant.name}_codes"
        middle = 2 ** (coded.bits - 1)
        signed = coded.levels is None and coded.zero == middle
        native = _native_type(coded.bits, signed, self.graph.opset)
        if native is not None:
            codes = coded.codes.astype(np.int16) - middle if signed else coded.codes
            return self.graph.add_constant(name, codes.astype(native)), 0.0 if signed else coded.zero
        packed = self.graph.add_constant(name, pack(coded.codes, coded.bits).reshape(-1, 1))
        shifts = self._share("shifts", np.arange(0, 8, coded.bits, dtype=np.uint8))
        value: Tensor = self._add(constant, "BitShift", packed, shifts, direction="RIGHT")
        value = self._add(constant, "Mod", value, self._share("base", np.uint8(2**coded.bits)))
        if coded.codes.size % (8 // coded.bits):
            value = self._add(constant, "Reshape", value, self._share("flat", np.asarray([-1], np.int64)))
            value = self._first(constant, value, coded.codes.size, 0)
        shape = self._share("shape", np.asarray(coded.codes.shape, np.int64))
        return self._add(constant, "Reshape", value, shape), coded.zero

    def _first(self, constant: Constant, value: Tensor, count: int, axis: int) -> Variable:
        bounds = (self._share("bound", np.asarray([b], np.int64)) for b in (0, count, axis))
        return self._add(constant, "Slice", value, *bounds)

    def _add(self, constant: Constant, op: str, *inputs: Tensor, **attrs: Any) -> Variable:
        node = self.graph.add_node(op, inputs, name=f"{constant.name}_{op.lower()}", attrs=attrs)
        result: Variable = node.outputs[0]
        return result

    def _share(self, base: str, value: Any) -> Constant:
        array = np.asarray(value)
        key = (array.dtype.name, array.tobytes(), array.shape)
        if key not in self._shared:
            self._shared[key] = self.graph.add_constant(base, array)
        return self._shared[key]


def take_over(graph: Graph, constant: Constant, node: Node) -> Variable:
    """Everything that read `constant` now reads the output of a node, which gets its name, shape and dtype.

    Bodies of sibling branches may hold different weights under one name; the node stands where all of them see it, so
    the name goes to the last of them and the others get one of their own.
    """
    shared = constant.scope is not None and any(
        c is not constant and c.name == constant.name for c in graph.root.constants()
    )
    name = graph.unique_name(constant.name) if shared else constant.name
    result = Variable(name, constant.dtype, constant.shape)
    node.outputs = [result]
    graph.replace_uses(constant, result)
    return result


def _native_type(bits: int, signed: bool, opset: int) -> np.dtype[Any] | None:
    """A stored type of that many bits which Cast takes at this opset; None where bytes must be packed by hand."""
    pair: tuple[Any, Any] | None = None
    if bits == 8:
        pair = np.int8, np.uint8
    elif bits == 4 and opset >= _INT4_OPSET:
        pair = ml_dtypes.int4, ml_dtypes.uint4
    elif bits == 2 and opset >= _INT2_OPSET:
        pair = ml_dtypes.int2, ml_dtypes.uint2
    return None if pair is None else np.dtype(pair[0 if signed else 1])


# -- recognising -------------------------------------------------------------------------------------------------------

_BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
_DATA_PORT = {"BitShift": 0, "Mod": 0, "Reshape": 0, "Slice": 0, "Cast": 0, "Sub": 0, "Mul": 0, "Gather": 1}


@dataclass(frozen=True)
class CodedWeight:
    """A weight that a chain of nodes decodes.

    Attributes:
        codes: the stored integers, packed or not.
        elements: how many weights they are.
        bits: bits an element takes.
        helpers: what else the chain reads: scales, levels, shapes.
        nodes: the chain, last node first.
    """

    codes: Constant
    elements: int
    bits: int
    helpers: tuple[Constant, ...]
    nodes: tuple[Node, ...]

    def nonzero(self) -> int:
        """How many of the weights are not zero."""
        values = self.codes.values
        zeros = self._zero_codes()
        if any(node.op == "BitShift" for node in self.nodes):
            found = sum(count_codes(values, self.bits, code) for code in zeros)
            total = values.size * 8 // self.bits
        else:
            plain = values.astype(np.int8 if values.dtype.name.startswith("int") else np.uint8)
            found, total = sum(int(np.count_nonzero(plain == code)) for code in zeros), plain.size
        return min(self.elements, total - found)

    def _zero_codes(self) -> list[int]:
        for node in self.nodes:
            if node.op == "Gather":
                return [int(code) for code in np.flatnonzero(np.asarray(node.inputs[0].values) == 0)]
        zero = next((float(node.inputs[1].values) for node in self.nodes if node.op == "Sub"), 0.0)
        return [int(zero)] if zero.is_integer() else []


def read_coded(tensor: Tensor | None) -> CodedWeight | None:
    """The coded weight whose chain ends in this tensor; None where there is none."""
    nodes: list[Node] = []
    helpers: list[Constant] = []
    while isinstance(tensor, Variable):
        node = tensor.producer
        if node is None or node.domain != ONNX_DOMAIN or node.op not in _DATA_PORT or len(node.outputs) != 1:
            return None
        port = _DATA_PORT[node.op]
        others = [node.constant(p) for p in range(len(node.inputs)) if p != port and node.inputs[p].name]
        if any(other is None for other in others):
            return None
        nodes.append(node)
        helpers.extend(other for other in others if other is not None)
        tensor = node.input(port)
    if tensor is None or tensor.dtype.name not in _BITS or not any(node.op == "Cast" for node in nodes):
        return None
    shifted = next((node for node in nodes if node.op == "BitShift"), None)
    bits = _BITS[tensor.dtype.name] if shifted is None else 8 // max(shifted.inputs[1].size, 1)
    return CodedWeight(tensor, _elements(nodes, tensor), bits, tuple(helpers), tuple(nodes))


def coded_weights(graph: Graph) -> Iterator[CodedWeight]:
    """Every coded weight of a graph and its bodies, once, in graph order."""
    longest: dict[Constant, CodedWeight] = {}
    for node in graph.walk():
        found = read_coded(node.outputs[0]) if node.op in _DATA_PORT else None
        if found is not None and len(found.nodes) > len(getattr(longest.get(found.codes), "nodes", ())):
            longest[found.codes] = found
    yield from longest.values()


def _elements(nodes: list[Node], codes: Constant) -> int:
    """The last Reshape, less what is sliced off behind it, tells the size; without one nothing was packed or padded."""
    cut: dict[int, int] = {}
    for node in nodes:
        if node.op == "Slice":
            cut[int(node.inputs[3].values[0])] = int(node.inputs[2].values[0])
        if node.op == "Reshape":
            shape = [int(d) for d in node.inputs[1].values]
            if min(shape, default=0) < 0:
                return cut.get(0, codes.size)
            return prod(cut.get(axis, size) for axis, size in enumerate(shape))
    return codes.size
