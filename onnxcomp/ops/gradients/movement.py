"""Training forms of operators that move, cut and join."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site
from onnxcomp.ops.gradients.common import positive


def transpose(site: Site) -> Replacement | None:
    """Transpose needs its order of axes spelled out."""
    if "perm" in site.node.attrs:
        return None
    return site.again(perm=list(range(len(site.shape())))[::-1])


def split(site: Site) -> Replacement | None:
    """Split with an output that nobody reads has a wrong gradient: Slices for the others."""
    read = [site.read(port) for port in range(len(site.node.outputs))]
    if all(read):
        return None
    axis = site.attr("axis", 0) % len(site.shape())
    ends = np.cumsum([site.shape(t)[axis] if t.name else 0 for t in site.node.outputs])
    if ends[-1] != site.shape()[axis]:  # an omitted output tells no size
        raise CannotRewriteError("an output is omitted, so that sizes are not known")
    starts = [0, *ends[:-1]]
    return [
        site.slice(site.x, axis, int(start), int(end)) if wanted else None
        for wanted, start, end in zip(read, starts, ends, strict=True)
    ]


def slice_(site: Site) -> Replacement | None:
    """Slice with a negative step becomes Gather."""
    steps = site.value(4)
    if steps is None or (steps > 0).all():
        return None
    shape = site.shape()
    starts, ends, axes = site.value(1), site.value(2), site.value(3)
    if starts is None or ends is None:
        raise CannotRewriteError("its bounds are missing")
    result = site.x
    for i, (start, end, step) in enumerate(zip(starts.tolist(), ends.tolist(), steps.tolist(), strict=True)):
        axis = (i if axes is None else int(axes.reshape(-1)[i])) % len(shape)
        result = pick(site, result, axis, _range(start, end, step, shape[axis]), shape[axis])
    return result


def _range(start: int, end: int, step: int, size: int) -> np.ndarray:
    """The indices that a Slice takes: bounds count from the end where negative, and are then clamped."""
    lowest, highest = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size if start < 0 else start, 0), highest)
    last = min(max(end + size if end < 0 else end, lowest), highest)
    return np.arange(first, last, step)


def pick(site: Site, x: Tensor, axis: int, indices: np.ndarray, size: int) -> Tensor:
    """Elements of one axis by constant indices."""
    if np.array_equal(indices, np.arange(size)):
        return x
    result: Tensor = site.op("Gather", x, np.asarray(indices, np.int64), axis=axis)
    return result


def pad(site: Site) -> Replacement | None:
    """Pad with a constant needs amounts for every axis; the other modes become Gather."""
    rank = len(site.shape())
    amounts, axes = site.value(1), site.value(3)
    if amounts is None:
        raise CannotRewriteError("its amounts are missing")
    mode = site.attr("mode", "constant")
    if mode == "constant" and axes is None:
        return None
    chosen = list(range(rank)) if axes is None else positive(axes.reshape(-1).tolist(), rank)
    whole = np.zeros((2, rank), np.int64)
    whole[:, chosen] = amounts.reshape(2, -1)
    if mode == "constant":
        return site.like([site.x, whole.reshape(-1), site.node.input(2)])
    result = site.x
    for axis, (before, after) in enumerate(whole.T.tolist()):
        size = site.shape()[axis]
        kept_ones = np.arange(size)[max(0, -before) : size - max(0, -after)]
        indices = np.pad(kept_ones, (max(0, before), max(0, after)), mode=mode)
        result = pick(site, result, axis, indices, size)
    return result


def scatter(site: Site) -> Replacement | None:
    """Scatter that adds has a wrong gradient to its data: what is added is collected on zeros, and then added."""
    reduction = site.attr("reduction", "none")
    if reduction == "none":
        return None
    if reduction != "add":
        raise CannotRewriteError(f"reduction {reduction} has no gradient")
    zeros = np.zeros(site.shape(), site.dtype)
    result: Tensor = site.op("Add", site.x, site.like([zeros, site.tensor(1), site.tensor(2)])[0])
    return result


def depth_to_space(site: Site) -> Replacement:
    """DepthToSpace as Reshape, Transpose, Reshape; both orders of channels."""
    n, c, h, w = site.shape()
    b = site.attr("blocksize", 1)
    if site.attr("mode", "DCR") == "DCR":
        parts, perm = [n, b, b, c // (b * b), h, w], [0, 3, 4, 1, 5, 2]
    else:
        parts, perm = [n, c // (b * b), b, b, h, w], [0, 1, 4, 2, 5, 3]
    moved = site.op("Transpose", site.reshape(site.x, parts), perm=perm)
    return site.reshape(moved, [n, c // (b * b), h * b, w * b])


def space_to_depth(site: Site) -> Replacement:
    """SpaceToDepth as Reshape, Transpose, Reshape."""
    n, c, h, w = site.shape()
    b = site.attr("blocksize", 1)
    moved = site.op("Transpose", site.reshape(site.x, [n, c, h // b, b, w // b, b]), perm=[0, 3, 5, 1, 2, 4])
    return site.reshape(moved, [n, c * b * b, h // b, w // b])
