"""Training forms of products with weights: convolutions, matrix products, Einsum."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site


def conv(site: Site) -> Replacement | None:
    """Conv with auto_pad has its padding written out; one- and three-dimensional groups become two-dimensional.

    The gradient of padding that the runtime works out is wrong, and its kernels of such groups are not made for several
    threads at a time: they give other values on each run, or end the process.
    """
    weight = site.shape(site.tensor(1))
    plain = site.attr("auto_pad", "NOTSET") == "NOTSET"
    if plain and (site.attr("group", 1) == 1 or len(weight) == 4):
        return None
    ones = [1] * (len(weight) - 2)
    result = convolved(
        site,
        (site.x, site.shape()),
        (site.tensor(1), weight),
        site.node.input(2),
        group=site.attr("group", 1),
        strides=list(site.attr("strides", ones)),
        dilations=list(site.attr("dilations", ones)),
        pads=padding(site, weight[2:]),
    )
    return site.reshape(result, site.shape(site.node.outputs[0])) if len(weight) == 3 else result


def convolved(
    site: Site,
    x: tuple[Tensor, tuple[int, ...]],
    weight: tuple[Tensor, tuple[int, ...]],
    bias: Tensor | None,
    *,
    group: int = 1,
    strides: list[int],
    dilations: list[int],
    pads: list[int],
) -> Tensor:
    """A convolution by kernels that are right and take several threads at a time; x and W with their shapes.

    Of one-dimensional groups it is [N, M, 1, out].
    """
    (data, shape), (kernel, sizes) = x, weight
    spatial = len(sizes) - 2
    attrs: dict[str, Any] = {
        "group": group,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "kernel_shape": list(sizes[2:]),
    }
    if group == 1 or spatial == 2:
        plain: Tensor = site.op("Conv", data, kernel, bias, **attrs)
        return plain
    if spatial == 1:
        flat, row = site.reshape(data, [*shape[:2], 1, shape[2]]), site.reshape(kernel, [*sizes[:2], 1, sizes[2]])
        wide: dict[str, Any] = {
            "strides": [1, *strides],
            "dilations": [1, *dilations],
            "pads": [0, pads[0], 0, pads[1]],
        }
        found: Tensor = site.op("Conv", flat, row, bias, group=group, kernel_shape=[1, sizes[2]], **wide)
        return found
    return _by_depth(site, x, weight, bias, group, strides, dilations, pads)


def _by_depth(
    site: Site,
    x: tuple[Tensor, tuple[int, ...]],
    weight: tuple[Tensor, tuple[int, ...]],
    bias: Tensor | None,
    group: int,
    strides: list[int],
    dilations: list[int],
    pads: list[int],
) -> Tensor:
    """A three-dimensional convolution as a sum over the depth of its kernel: every plane of it is two-dimensional.

    Planes [N, C, D, H, W] -> [N, D, C, H, W] -> those that one plane of the kernel meets -> [N * out, C, H, W].
    """
    (data, (n, c, depth, *plane)), (kernel, (m, own, taps, *rest)) = x, weight
    if pads[0] or pads[3]:
        data = site.op("Pad", data, [0, 0, pads[0], 0, 0, 0, 0, pads[3], 0, 0])
        depth += pads[0] + pads[3]
    out = (depth - (taps - 1) * dilations[0] - 1) // strides[0] + 1
    planes = site.op("Transpose", data, perm=[0, 2, 1, 3, 4])
    sums: Tensor | None = None
    for tap in range(taps):
        start = tap * dilations[0]
        met = site.slice(planes, 1, start, start + (out - 1) * strides[0] + 1, strides[0])
        part: Tensor = site.op(
            "Conv",
            site.reshape(met, [n * out, c, *plane]),
            site.reshape(site.slice(kernel, 2, tap, tap + 1), [m, own, *rest]),
            bias if tap == 0 else None,
            group=group,
            strides=strides[1:],
            dilations=dilations[1:],
            pads=[*pads[1:3], *pads[4:6]],
            kernel_shape=list(rest),
        )
        sums = part if sums is None else site.op("Add", sums, part)
    size = [
        (plane[i] + pads[1 + i] + pads[4 + i] - (rest[i] - 1) * dilations[1 + i] - 1) // strides[1 + i] + 1
        for i in range(2)
    ]
    result: Tensor = site.op("Transpose", site.reshape(sums, [n, out, m, *size]), perm=[0, 2, 1, 3, 4])
    return result


def padding(site: Site, kernel: tuple[int, ...], least: int | None = 0) -> list[int]:
    """The padding [begin..., end...] that a sliding window has, auto_pad worked out as ONNX Runtime does.

    It does not count dilations there; a Conv that has both it refuses.

    Args:
        least: what an axis is padded by in all at least; None where steps longer than windows cut off the edges.
    """
    spatial = len(kernel)
    mode = site.attr("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(site.attr("pads", [0] * 2 * spatial))
    if mode == "VALID":
        return [0] * 2 * spatial
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise CannotRewriteError(f"auto_pad {mode} is not known")
    before, after = [], []
    for size, k, stride in zip(site.shape()[2:], kernel, site.attr("strides", [1] * spatial), strict=True):
        out = -(-size // stride)
        amount = (out - 1) * stride + k - size
        amount = amount if least is None else max(least, amount)
        before.append(int((amount if mode == "SAME_UPPER" else amount + 1) / 2))  # towards zero
        after.append(amount - before[-1])
    return [*before, *after]


def conv_transpose(site: Site) -> Replacement:
    """ConvTranspose as the Conv that it is: zeros between the inputs, padding, the kernel turned over in the graph.

    W [C, M/group, k...] -> [M, C/group, k...] with reversed k. With p the padding of the operator, the Conv pads by
    dilation (k - 1) - p at the start and as much as the output needs at the end; negative amounts crop.
    """
    data, weight = site.shape(), site.shape(site.tensor(1))
    out = site.shape(site.node.outputs[0])
    spatial = len(data) - 2
    group = site.attr("group", 1)
    strides, dilations = site.attr("strides", [1] * spatial), site.attr("dilations", [1] * spatial)
    starts = _transposed_starts(site, data, weight[2:], out, strides, dilations)
    x = _stuffed(site, site.x, data, strides)
    before, after = [], []
    for i in range(spatial):
        reach = dilations[i] * (weight[2 + i] - 1)
        stuffed = (data[2 + i] - 1) * strides[i] + 1
        before.append(reach - starts[i])
        after.append(out[2 + i] + reach - stuffed - before[-1])
    if any(before) or any(after):
        x = site.op("Pad", x, [0, 0, *before, 0, 0, *after])
    ones = [1] * spatial
    widened = tuple(o + d * (k - 1) for o, d, k in zip(out[2:], dilations, weight[2:], strict=True))
    result = convolved(
        site,
        (x, (*data[:2], *widened)),
        (_turned(site, weight, group), (group * weight[1], data[1] // group, *weight[2:])),
        site.node.input(2),
        group=group,
        strides=ones,
        dilations=dilations,
        pads=[0] * 2 * spatial,
    )
    return site.reshape(result, out) if spatial == 1 else result


def _transposed_starts(
    site: Site, data: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...], strides: list[int], dil: list[int]
) -> list[int]:
    """Padding at the start of each spatial axis of a ConvTranspose, auto_pad and output_shape worked out."""
    spatial = len(kernel)
    mode = site.attr("auto_pad", "NOTSET")
    if mode == "NOTSET" and "output_shape" not in site.node.attrs:
        return list(site.attr("pads", [0] * 2 * spatial)[:spatial])
    if mode == "VALID" and "output_shape" not in site.node.attrs:
        return [0] * spatial
    extra = site.attr("output_padding", [0] * spatial)
    starts = []
    for i in range(spatial):
        full = strides[i] * (data[2 + i] - 1) + extra[i] + (kernel[i] - 1) * dil[i] + 1
        amount = max(0, full - out[2 + i])
        starts.append(amount // 2 if mode == "SAME_UPPER" else amount - amount // 2)
    return starts


def _stuffed(site: Site, x: Tensor, data: tuple[int, ...], strides: list[int]) -> Tensor:
    """x [N, C, d...] with stride - 1 zeros between neighbours: [N, C, (d - 1) stride + 1...]."""
    sizes = list(data)
    for axis, stride in enumerate(strides, 2):
        if stride == 1 or sizes[axis] == 1:
            continue
        rows, columns = prod(sizes[: axis + 1]), prod(sizes[axis + 1 :])
        wide = site.op("Pad", site.reshape(x, [rows, 1, columns]), [0, 0, 0, 0, stride - 1, 0])
        sizes[axis] *= stride
        x = site.slice(site.reshape(wide, sizes), axis, 0, sizes[axis] - stride + 1)
        sizes[axis] -= stride - 1
    return x


def _turned(site: Site, weight: tuple[int, ...], group: int) -> Tensor:
    """W [C, M/group, k...] -> [M, C/group, k...], reversed along k..., by operators that have a gradient."""
    c, m, kernel = weight[0], weight[1], weight[2:]
    taps = prod(kernel)
    flat = site.reshape(site.tensor(1), [group, c // group, m, taps])
    moved = site.op("Transpose", flat, perm=[0, 2, 1, 3])
    turned = site.op("Gather", moved, list(range(taps))[::-1], axis=3) if taps > 1 else moved
    return site.reshape(turned, [group * m, c // group, *kernel])


def gemm(site: Site) -> Replacement | None:
    """Gemm whose third input counts nothing has no gradient: the input goes; a number becomes a vector."""
    if site.node.input(2) is None:
        return None
    if site.attr("beta", 1.0) == 0.0:
        return site.like([site.tensor(0), site.tensor(1)], beta=None)
    if site.shape(site.tensor(2)):
        return None
    return site.like([site.tensor(0), site.tensor(1), site.reshape(site.tensor(2), [1])])


def matmul(site: Site) -> Replacement | None:
    """MatMul with a vector has no gradient: it gets a second axis, which goes again."""
    if 1 not in (site.shapes.rank(site.tensor(0)), site.shapes.rank(site.tensor(1))):
        return None
    a, b = site.shape(site.tensor(0)), site.shape(site.tensor(1))
    left = site.tensor(0) if len(a) > 1 else site.reshape(site.tensor(0), [1, *a])
    right = site.tensor(1) if len(b) > 1 else site.reshape(site.tensor(1), [*b, 1])
    return site.reshape(site.op("MatMul", left, right), site.shape(site.node.outputs[0]))


def einsum(site: Site) -> Replacement:
    """Einsum of one or two operands as Transpose, ReduceSum, Reshape and one MatMul; no repeated letters, no dots."""
    equation = str(site.attr("equation", "")).replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms)
        out = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    repeated = any(len(set(t)) != len(t) for t in (*terms, out))
    if "." in equation or repeated or len(terms) > 2 or not set(out) <= set("".join(terms)):
        raise CannotRewriteError(f"the equation {equation} has dots, a diagonal, or more than two operands")
    sizes = {c: d for i, t in enumerate(terms) for c, d in zip(t, site.shape(site.tensor(i)), strict=True)}
    operands = []
    for i, term in enumerate(terms):
        lonely = [c for c in term if c not in out and all(c not in t for j, t in enumerate(terms) if j != i)]
        operands.append(_summed(site, site.tensor(i), term, lonely))
    if len(operands) == 1:
        return _ordered(site, *operands[0], out)
    return _contracted(site, operands, out, sizes)


def _summed(site: Site, x: Tensor, term: str, letters: list[str]) -> tuple[Tensor, str]:
    """An operand summed over letters that stand nowhere else, and the letters left."""
    if not letters:
        return x, term
    summed = site.reduce("ReduceSum", x, [term.index(c) for c in letters], keepdims=False)
    return summed, "".join(c for c in term if c not in letters)


def _ordered(site: Site, x: Tensor, term: str, wanted: str) -> Tensor:
    if term == wanted:
        return x
    result: Tensor = site.op("Transpose", x, perm=[term.index(c) for c in wanted])
    return result


def _contracted(site: Site, operands: list[tuple[Tensor, str]], out: str, sizes: dict[str, int]) -> Tensor:
    """[batch, rows, inner] @ [batch, inner, columns] -> [batch, rows, columns] -> the wanted order."""
    (a, in_a), (b, in_b) = operands
    batch = "".join(c for c in in_a if c in in_b and c in out)
    inner = "".join(c for c in in_a if c in in_b and c not in out)
    rows = "".join(c for c in in_a if c not in in_b)
    columns = "".join(c for c in in_b if c not in in_a)

    def folded(x: Tensor, term: str, *groups: str) -> Tensor:
        shape = [prod(sizes[c] for c in group) for group in groups]
        return site.reshape(_ordered(site, x, term, "".join(groups)), shape)

    product = site.op("MatMul", folded(a, in_a, batch, rows, inner), folded(b, in_b, batch, inner, columns))
    spread = site.reshape(product, [sizes[c] for c in batch + rows + columns])
    return _ordered(site, spread, batch + rows + columns, out)


def along(site: Site, x: Tensor, rank: int, axis: int, matrix: np.ndarray) -> Tensor:
    """x with one axis multiplied by a constant matrix [size before, size after]."""
    if rank == 1:
        row = site.op("MatMul", site.reshape(x, [1, matrix.shape[0]]), matrix)
        return site.reshape(row, [matrix.shape[1]])
    if axis == rank - 1:
        result: Tensor = site.op("MatMul", x, matrix)
        return result
    if axis == rank - 2:
        left: Tensor = site.op("MatMul", np.ascontiguousarray(matrix.T), x)
        return left
    perm = [a for a in range(rank) if a != axis] + [axis]
    moved = site.op("MatMul", site.op("Transpose", x, perm=perm), matrix)
    back: Tensor = site.op("Transpose", moved, perm=[int(p) for p in np.argsort(perm)])
    return back
