"""Training forms of attention that stands in one node: products, a mask, Softmax."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site

MASKED = -np.inf


def attention(site: Site) -> Replacement:
    """Attention as MatMul, Add, Softmax, MatMul; heads of keys and values are repeated for the queries they serve."""
    if any(site.node.input(port) is not None for port in range(4, len(site.node.inputs))):
        raise CannotRewriteError("it takes keys and values of earlier calls")
    if any(site.read(port) for port in range(1, len(site.node.outputs))):
        raise CannotRewriteError("more than its result is read")
    folded = len(site.shape()) == 3
    q = _heads(site, 0, site.attr("q_num_heads", 0))
    k, v = (_heads(site, port, site.attr("kv_num_heads", 0)) for port in (1, 2))
    (query, (batch, heads, rows, size)), (key, key_shape), (value, value_shape) = q, k, v
    key, value = _repeated(site, key, key_shape, heads), _repeated(site, value, value_shape, heads)
    scale = float(site.attr("scale", 0.0)) or 1.0 / float(np.sqrt(size))
    scores = site.op("MatMul", site.op("Mul", query, scale), site.op("Transpose", key, perm=[0, 1, 3, 2]))
    softcap = float(site.attr("softcap", 0.0))
    if softcap:
        scores = site.op("Mul", site.op("Tanh", site.op("Mul", scores, 1.0 / softcap)), softcap)
    scores = _masked(site, scores, rows, key_shape[2])
    result = site.op("MatMul", site.op("Softmax", scores, axis=-1), value)
    if folded:
        result = site.reshape(site.op("Transpose", result, perm=[0, 2, 1, 3]), [batch, rows, heads * value_shape[3]])
    return [result]


def _heads(site: Site, port: int, count: int) -> tuple[Tensor, tuple[int, ...]]:
    """An operand as [batch, heads, rows, size], with that shape."""
    tensor, shape = site.tensor(port), site.shape(site.tensor(port))
    if len(shape) == 4:
        return tensor, shape
    batch, rows, width = shape
    split = site.reshape(tensor, [batch, rows, count, width // count])
    return site.op("Transpose", split, perm=[0, 2, 1, 3]), (batch, count, rows, width // count)


def _repeated(site: Site, x: Tensor, shape: tuple[int, ...], heads: int) -> Tensor:
    batch, own, rows, size = shape
    if own == heads:
        return x
    each = site.op("Expand", site.reshape(x, [batch, own, 1, rows, size]), [batch, own, heads // own, rows, size])
    return site.reshape(each, [batch, heads, rows, size])


def _masked(site: Site, scores: Tensor, rows: int, columns: int) -> Tensor:
    """Scores plus the masks: minus infinity where a key must not be seen."""
    if site.attr("is_causal", 0):
        late = np.triu(np.full((rows, columns), MASKED, site.dtype), 1)
        scores = site.op("Add", scores, late)
    mask = site.node.input(3)
    if mask is None:
        return scores
    dtype = site.shapes.dtype(mask)
    if dtype == np.bool_:
        mask = site.op("Where", mask, np.zeros((), site.dtype), np.asarray(MASKED, site.dtype))
    result: Tensor = site.op("Add", scores, mask)
    return result


def rotary(site: Site) -> Replacement:
    """RotaryEmbedding: each pair of elements turned by the angle of its position."""
    return _rotated(site, site.tensor(1), site.tensor(2), site.node.input(3))


def rotary_of_runtime(site: Site) -> Replacement:
    """RotaryEmbedding of ONNX Runtime, which takes positions before cosines and sines."""
    if site.attr("is_packed_batching", 0) or site.attr("scale", 1.0) != 1.0:
        raise CannotRewriteError("it packs its batch or scales")
    if site.shape(site.tensor(1)) != site.shape()[:2] and len(site.shape()) == 3:
        raise CannotRewriteError("its positions are one offset for all")
    return _rotated(site, site.tensor(2), site.tensor(3), site.tensor(1))


def _rotated(site: Site, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> Replacement:
    folded = len(site.shape()) == 3
    x, (batch, heads, rows, size) = _heads(site, 0, site.attr("num_heads", 0) or 1)
    if folded and not site.attr("num_heads", 0):
        raise CannotRewriteError("it does not say how many heads it has")
    turned = site.attr("rotary_embedding_dim", 0) or size
    if positions is not None:
        cosines, sines = (site.op("Gather", t, positions, axis=0) for t in (cosines, sines))
    angles = [site.op("Unsqueeze", t, [1]) for t in (cosines, sines)]  # [batch, 1, rows, turned / 2]
    half = turned // 2
    if site.attr("interleaved", 0):
        first, second = site.slice(x, 3, 0, turned, 2), site.slice(x, 3, 1, turned, 2)
    else:
        first, second = site.slice(x, 3, 0, half), site.slice(x, 3, half, turned)
    cos, sin = angles
    left = site.op("Sub", site.op("Mul", first, cos), site.op("Mul", second, sin))
    right = site.op("Add", site.op("Mul", second, cos), site.op("Mul", first, sin))
    if site.attr("interleaved", 0):
        pair = site.op("Concat", site.op("Unsqueeze", left, [4]), site.op("Unsqueeze", right, [4]), axis=4)
        parts = [site.reshape(pair, [batch, heads, rows, turned])]
    else:
        parts = [left, right]
    if turned < size:
        parts.append(site.slice(x, 3, turned, size))
    result = site.op("Concat", *parts, axis=3) if len(parts) > 1 else parts[0]
    if folded:
        result = site.reshape(site.op("Transpose", result, perm=[0, 2, 1, 3]), [batch, rows, heads * size])
    return [result]
