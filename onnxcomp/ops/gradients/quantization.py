"""Training forms of quantized operators: rounding with a straight-through gradient, integer weights as numbers."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.coded import unpacked
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Pool, Replacement, Site, rewrite
from onnxcomp.graph.types import Shapes

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_RANGES = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (2, 4, 8, 16)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (2, 4, 8, 16)},
}


def straighten(graph: Graph, shapes: Shapes) -> list[str]:
    """Let every DequantizeLinear that follows a QuantizeLinear round in float; gives why some could not.

    Integers carry no gradient. In float, Round passes its gradient straight through and Clip stops it outside of the
    range, as in learned step size quantization (Esser et al. 2020).
    """
    pool = Pool(graph)
    refused = []
    for node in list(graph.nodes):
        if node.op == DEQUANTIZE and _quantizer(node.inputs[0]) is not None:
            try:
                rewrite(graph, node, fake_quantize, shapes, pool)
            except CannotRewriteError as error:
                refused.append(f"{node} stays as it is: {error}")
    return refused


def _quantizer(tensor: Tensor) -> Node | None:
    maker: Node | None = tensor.producer
    return maker if maker is not None and maker.op == QUANTIZE else None


def fake_quantize(site: Site) -> Replacement:
    """QuantizeLinear and DequantizeLinear as clip(round(x / scale), low - zero, high - zero) * scale."""
    first = _quantizer(site.x)
    if first is None:
        raise CannotRewriteError("what it decodes was not coded in the graph")
    same = [first.input(port) is site.node.input(port) or _equal(first, site.node, port) for port in (1, 2)]
    if not all(same) or site.attr("axis", 1) != first.attrs.get("axis", 1):
        raise CannotRewriteError("it decodes with another scale than it was coded with")
    if site.attr("block_size", 0):
        raise CannotRewriteError("it is quantized in blocks")
    scale, zero = site.tensor(1), site.value(2)
    kind = "uint8" if zero is None else zero.dtype.name
    if kind not in _RANGES:
        raise CannotRewriteError(f"{kind} is not an integer type")
    low, high = (np.float32(bound) for bound in _RANGES[kind])
    x = first.inputs[0]
    step = _spread(site, scale, len(site.shape(x)))
    rounded = site.op("Round", site.op("Div", x, step))
    if zero is None or not zero.any():
        inside = site.op("Clip", rounded, np.asarray(low, np.float32), np.asarray(high, np.float32))
    else:
        shift = _spread_values(zero.astype(np.float32), site, len(site.shape(x)))
        inside = site.op("Min", site.op("Max", rounded, low - shift), high - shift)
    result: Tensor = site.op("Mul", inside, step)
    return result


def _equal(first: Node, second: Node, port: int) -> bool:
    a, b = first.constant(port), second.constant(port)
    if a is None or b is None:
        return first.input(port) is None and second.input(port) is None
    return a.dtype == b.dtype and np.array_equal(a.values, b.values)


def _spread(site: Site, scale: Tensor, rank: int) -> Tensor | Array:
    """A scale, one or one a channel, so that it broadcasts against x."""
    if isinstance(scale, Constant):
        return _spread_values(scale.values, site, rank)
    if len(site.shape(scale)) != 1:
        return scale
    return site.reshape(scale, _column(site, rank))


def _spread_values(values: Array, site: Site, rank: int) -> Array:
    if values.size == 1:
        return values.reshape(())
    return values.reshape(_column(site, rank))


def _column(site: Site, rank: int) -> list[int]:
    axis = site.attr("axis", 1) % rank
    return [-1 if a == axis else 1 for a in range(rank)]


def matmul_of_few_bits(site: Site) -> Replacement:
    """MatMulNBits with its weight decoded ahead: the weight stays, and a gradient passes to what it is applied to."""
    packed, scales = site.value(1), site.value(2)
    if packed is None or scales is None or site.node.input(4) is not None:
        raise CannotRewriteError("its weight is not stored in order")
    n, k = site.attr("N", 0), site.attr("K", 0)
    bits, block = site.attr("bits", 4), site.attr("block_size", 32)
    codes = _unpacked(packed.reshape(n, -1), bits).reshape(n, -1, block).astype(np.float32)
    blocks = codes.shape[1]
    zero = site.value(3)
    if zero is None:
        shift = np.full((n, blocks), 2.0 ** (bits - 1), np.float32)
    elif zero.dtype == np.uint8:
        shift = _unpacked(zero.reshape(n, -1), bits)[:, :blocks].astype(np.float32)
    else:
        shift = zero.reshape(n, blocks).astype(np.float32)
    weight = ((codes - shift[..., None]) * scales.reshape(n, blocks, 1)).reshape(n, -1)[:, :k]
    product = site.op("MatMul", site.x, np.ascontiguousarray(weight.T.astype(site.dtype)))
    bias = site.node.input(5)
    result: Tensor = product if bias is None else site.op("Add", product, bias)
    return result


def _unpacked(rows: Array, bits: int) -> Array:
    if bits not in (2, 4, 8):
        raise CannotRewriteError(f"codes of {bits} bits cross the bounds of bytes")
    return unpacked(rows, bits)
