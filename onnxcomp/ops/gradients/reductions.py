"""Training forms of reductions and running sums."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import AXES_AS_INPUT, CannotRewriteError, Replacement, Rewrite, Site
from onnxcomp.ops.gradients.common import chain, positive
from onnxcomp.ops.gradients.linear import along

MOST_FACTORS = 64  # ReduceProd becomes that many nodes at most


def axes_of(site: Site) -> tuple[list[int], bool]:
    """The axes that a Reduce operator reduces, counted from the front, and whether it keeps them as 1."""
    rank = len(site.shape())
    if site.opset >= AXES_AS_INPUT or site.node.op == "ReduceSum":
        given = site.value(1)
        axes = None if given is None or not given.size else [int(a) for a in given.reshape(-1)]
    else:
        axes = site.attr("axes", None)
    if axes is None:
        axes = [] if site.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(positive(axes, rank)), bool(site.attr("keepdims", 1))


def extreme(largest: int) -> Rewrite:
    """ReduceMax and ReduceMin as TopK(1) over the reduced axes, moved to the end and flattened."""

    def rule(site: Site) -> Replacement:
        """TopK(1) over the reduced axes, moved to the end and flattened."""
        axes, keepdims = axes_of(site)
        shape = site.shape()
        others = [a for a in range(len(shape)) if a not in axes]
        x = site.x
        if axes != list(range(len(shape)))[len(others) :]:
            x = site.op("Transpose", x, perm=[*others, *axes])
        rows, width = prod(shape[a] for a in others), prod(shape[a] for a in axes)
        flat = site.reshape(x, [rows, width])
        best = site.op("TopK", flat, [1], outputs=2, axis=-1, largest=largest)[0]
        return site.reshape(best, _reduced(shape, axes, keepdims))

    return rule


def absolute_sum(site: Site) -> Replacement:
    """ReduceL1: sum of |x|."""
    return _then(site, "Abs")


def square_sum(site: Site) -> Replacement:
    """ReduceSumSquare: sum of x * x."""
    axes, keepdims = axes_of(site)
    return _sum(site, site.op("Mul", site.x, site.x), axes, keepdims)


def log_sum(site: Site) -> Replacement:
    """ReduceLogSum: log of the sum."""
    axes, keepdims = axes_of(site)
    result: Tensor = site.op("Log", _sum(site, site.x, axes, keepdims))
    return result


def _then(site: Site, kind: str) -> Tensor:
    axes, keepdims = axes_of(site)
    return _sum(site, site.op(kind, site.x), axes, keepdims)


def _sum(site: Site, x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return site.reduce("ReduceSum", x, axes, keepdims=keepdims) if axes else x


def product(site: Site) -> Replacement:
    """ReduceProd as products of slices; sound at zeros, where a quotient would not be."""
    axes, keepdims = axes_of(site)
    shape = site.shape()
    factors = prod(shape[a] for a in axes)
    if not 1 <= factors <= MOST_FACTORS:
        raise CannotRewriteError(f"a product of {factors} factors is too long to be written out")
    parts = [site.x]
    for axis in axes:
        parts = [site.slice(part, axis, i, i + 1) for part in parts for i in range(shape[axis])]
    return site.reshape(chain(site, "Mul", parts), _reduced(shape, axes, keepdims))


def _reduced(shape: tuple[int, ...], axes: list[int], keepdims: bool) -> list[int]:
    return [1 if a in axes else d for a, d in enumerate(shape) if keepdims or a not in axes]


def running_sum(site: Site) -> Replacement:
    """CumSum along an axis as a product with a triangular matrix of ones."""
    given = site.value(1)
    if given is None:
        raise CannotRewriteError("its axis is missing")
    shape = site.shape()
    axis = int(given.reshape(-1)[0]) % len(shape)
    ones = np.ones((shape[axis], shape[axis]), site.dtype)
    offset = 1 if site.attr("exclusive", 0) else 0
    matrix = np.tril(ones, -offset) if site.attr("reverse", 0) else np.triu(ones, offset)  # y = x @ matrix
    return along(site, site.x, len(shape), axis, matrix)


def no_keep(site: Site) -> Replacement | None:
    """ReduceL2 and ReduceLogSumExp have a gradient only where they keep the axes that they reduce."""
    axes, keepdims = axes_of(site)
    if not axes:
        alone: Tensor = site.x if site.node.op == "ReduceLogSumExp" else site.op("Abs", site.x)
        return alone
    if keepdims:
        return None
    return site.reshape(site.reduce(site.node.op, site.x, axes), _reduced(site.shape(), axes, keepdims))


def plain(site: Site) -> Replacement | None:
    """ReduceSum and ReduceMean, which may reduce nothing."""
    return None if axes_of(site)[0] else site.x
