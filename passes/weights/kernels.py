"""Which integer kernels read a weight as it is stored, and how are nodes rewritten to use them?

MatMulNBits and GatherBlockQuantized of ONNX Runtime work on blocks of 2, 4 or 8 bits; a table of 8-bit rows needs
standard operators only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coded import pack
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Array, Constant, Graph, Node, Tensor, Variable, elem_type
from onnxcomp.graph.single import unfit
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.use import WeightUse
from onnxcomp.passes.weights.scales import scale_bytes, write_scales

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class BlockCodes:
    """Codes in blocks along rows, as both kernels read them.

    Attributes:
        codes: uint8 [rows, blocks, block * bits / 8], packed; 2 ** (bits - 1) stands for 0.
        scales: float32 [rows, blocks].
        columns: elements of a row; the rest of the last block is padding.
        small_scales: the scales are stored in 8 bits.
    """

    codes: Array
    scales: Array
    bits: int
    block: int
    columns: int
    small_scales: bool = False

    @classmethod
    def packed(cls, codes: Array, scales: Array, bits: int, columns: int, *, small_scales: bool = False) -> BlockCodes:
        """Pack unpacked codes [rows, blocks, block]."""
        rows, blocks, block = codes.shape
        return cls(pack(codes, bits).reshape(rows, blocks, -1), scales, bits, block, columns, small_scales)

    @property
    def nbytes(self) -> int:
        """What codes and scales take in the file."""
        return self.codes.nbytes + scale_bytes(*self.scales.shape, small=self.small_scales)

    def scale(self, graph: Graph, name: str, times: float = 1.0) -> Tensor:
        """The scales as a tensor of a graph, each times a number."""
        return write_scales(graph, name, self.scales, small=self.small_scales, times=times)

    @classmethod
    def joined(cls, parts: list[BlockCodes]) -> BlockCodes:
        """Rows of several parts, one after another."""
        first = parts[0]
        if len(parts) == 1:
            return first
        codes = np.concatenate([part.codes for part in parts])
        scales = np.concatenate([part.scales for part in parts])
        return cls(codes, scales, first.bits, first.block, first.columns, first.small_scales)


def valid_block(block: int, bits: int) -> bool:
    """Whether the kernels take blocks of this size."""
    return bits in (2, 4, 8) and SMALLEST_BLOCK <= block <= LARGEST_BLOCK and block & (block - 1) == 0


# -- matrix products ---------------------------------------------------------------------------------------------------


def block_matmul_refusal(use: WeightUse, shapes: Shapes) -> str:
    """Why MatMulNBits cannot take a node's place; empty when it can."""
    node, weight, constant = use.node, use.weight, use.constant
    if constant.dtype != FLOAT32:
        return unfit("its weight", constant.dtype)
    if weight.windows or not (weight.reads and weight.bare) or weight.port != 1 or len(constant.shape) != 2:
        return f"MatMulNBits stands for a product with a constant matrix on the right, and this is {node.op}"
    if weight.reads != "rows":
        return "transA"
    if weight.bias is not None and node.input(weight.bias) is not None:
        bias, outputs = node.constant(weight.bias), weight.channels(constant.shape)[1]
        if bias is None:
            return "its bias is computed"
        if bias.shape not in ((outputs,), (1, outputs)):
            return "its bias is not one value an output"
    rank = weight.rank or shapes.rank(node.inputs[0])
    return "" if rank is not None and rank >= 2 else "its input has one dimension or an unknown number of them"


class BlockMatMul:
    """Writes MatMulNBits nodes that share one copy of a weight.

    Args:
        accuracy_level: 4 multiplies 8-bit integers, 1 floats, 0 leaves it to the kernel.
    """

    def __init__(self, graph: Graph, constant: Constant, weight: BlockCodes, accuracy_level: int) -> None:
        self.graph, self.weight, self.accuracy_level = graph, weight, accuracy_level
        self.name = constant.name
        self.codes = graph.add_constant(f"{constant.name}_q{weight.bits}", weight.codes)
        self.scales = {1.0: weight.scale(graph, constant.name)}

    def replace(self, use: WeightUse, shapes: Shapes) -> None:
        """Turn a product into MatMulNBits in place: its name, input and output stay."""
        node, weight, beta = use.node, self.weight, use.weight.beta
        inputs = [node.inputs[0], self.codes, self._scales(use.weight.alpha)]
        bias = None if use.weight.bias is None else node.constant(use.weight.bias)
        if bias is not None and beta != 0:
            if beta != 1 or len(bias.shape) != 1:
                scaled = (bias.values.reshape(-1) * np.float32(beta)).astype(bias.dtype)
                bias = self.graph.add_constant(f"{bias.name}_row", scaled)
            inputs += [Variable(""), Variable(""), bias]
        state_type(node.outputs[0], shapes, self.graph)
        node.op, node.domain, node.origin = "MatMulNBits", MICROSOFT_DOMAIN, {}
        node.attrs = {
            "K": weight.columns,
            "N": len(weight.codes),
            "bits": weight.bits,
            "block_size": weight.block,
            "accuracy_level": self.accuracy_level,
        }
        node.inputs = inputs
        self.graph.import_domain(MICROSOFT_DOMAIN)

    def _scales(self, alpha: float) -> Tensor:
        if alpha not in self.scales:
            self.scales[alpha] = self.weight.scale(self.graph, self.name, alpha)
        return self.scales[alpha]


# -- look-ups ----------------------------------------------------------------------------------------------------------


class BlockGather:
    """Writes GatherBlockQuantized nodes that share one table."""

    def __init__(self, graph: Graph, constant: Constant, table: BlockCodes) -> None:
        rows, per_byte = len(table.codes), 8 // table.bits
        self.graph, self.table = graph, table
        codes = table.codes.reshape(rows, -1)[:, : -(-table.columns // per_byte)]
        self.codes = graph.add_constant(f"{constant.name}_q{table.bits}", np.ascontiguousarray(codes))
        self.scales = table.scale(graph, constant.name)

    @staticmethod
    def refusal(constant: Constant, bits: int) -> str:
        """Why a table cannot be looked up in blocks; empty when it can."""
        if constant.dtype != FLOAT32:
            return f"the table is {constant.dtype}"
        return "a row does not fill whole bytes" if constant.shape[1] * bits % 8 else ""

    def replace(self, node: Node, shapes: Shapes) -> None:
        """Turn a Gather into GatherBlockQuantized in place."""
        state_type(node.outputs[0], shapes, self.graph)
        node.op, node.domain, node.origin = "GatherBlockQuantized", MICROSOFT_DOMAIN, {}
        node.attrs = {"gather_axis": 0, "quantize_axis": 1, "block_size": self.table.block, "bits": self.table.bits}
        node.inputs = [self.codes, node.inputs[1], self.scales]
        self.graph.import_domain(MICROSOFT_DOMAIN)


class RowGather:
    """Writes look-ups in a table of 8-bit rows: Gather the row and its scale, Cast, Mul.

    Args:
        codes: uint8 [rows, columns]; 128 stands for 0.
        scales: float32 [rows, 1].
    """

    def __init__(self, graph: Graph, constant: Constant, codes: Array, scales: Array) -> None:
        self.graph, self.dtype = graph, constant.dtype
        self.codes = graph.add_constant(f"{constant.name}_q8", (codes ^ np.uint8(128)).view(np.int8))
        self.scales = graph.add_constant(f"{constant.name}_scale", scales)

    def replace(self, node: Node, owner: Graph, shapes: Shapes) -> None:
        """Put the nodes in the place of a Gather, which goes on to look up integers."""
        out = node.outputs[0]
        state_type(out, shapes, self.graph)
        indices = node.inputs[1]
        node.inputs = [self.codes, indices]
        found = Variable(self.graph.unique_name(f"{out.name}_q8"), np.dtype(np.int8), out.shape)
        node.outputs = [found]
        scale = owner.add_node("Gather", [self.scales, indices], name=f"{node.name}_scale", attrs={"axis": 0})
        value = owner.add_node("Cast", [found], name=f"{node.name}_cast", attrs={"to": elem_type(FLOAT32)})
        product = owner.add_node("Mul", [value.outputs[0], scale.outputs[0]], name=f"{node.name}_mul")
        if self.dtype == FLOAT32:
            product.outputs = [out]
        else:
            attrs = {"to": elem_type(self.dtype)}
            owner.add_node("Cast", product.outputs, name=f"{node.name}_type", attrs=attrs, outputs=[out])


def state_type(tensor: Variable, shapes: Shapes, graph: Graph) -> None:
    """Write what is known of a tensor to it: inference stops at operators that onnx does not know.

    An output of the model stays as the model declares it.
    """
    known = shapes.types.get(tensor.name)
    if known is not None and tensor.shape is None and not graph.root.is_output(tensor):
        tensor.dtype, tensor.shape = known.dtype, known.shape
