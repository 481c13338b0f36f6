"""Training forms of products with weights."""

from __future__ import annotations

from onnxcomp.distill.rewrites.common import kept
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Rewrite, Site


def conv(site: Site) -> Replacement | None:
    """Conv with auto_pad has a wrong gradient: the padding is written out."""
    if site.attr("auto_pad", "NOTSET") == "NOTSET":
        return None
    return site.again(auto_pad=None, pads=padding(site, site.shape(site.tensor(1))[2:]))


def padding(site: Site, kernel: tuple[int, ...]) -> list[int]:
    """The padding [begin..., end...] that a sliding window has, auto_pad worked out."""
    spatial = len(kernel)
    mode = site.attr("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(site.attr("pads", [0] * 2 * spatial))
    if mode == "VALID":
        return [0] * 2 * spatial
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise CannotRewriteError(f"auto_pad {mode} is not known")
    strides, dilations = site.attr("strides", [1] * spatial), site.attr("dilations", [1] * spatial)
    before, after = [], []
    for size, k, stride, dilation in zip(site.shape()[2:], kernel, strides, dilations, strict=True):
        out = -(-size // stride)
        amount = max(0, (out - 1) * stride + (k - 1) * dilation + 1 - size)
        less, more = amount // 2, amount - amount // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    return [*before, *after]


def matmul(site: Site) -> Replacement | None:
    """MatMul with a vector has no gradient: it gets a second axis, which goes again."""
    a, b = site.shape(site.tensor(0)), site.shape(site.tensor(1))
    if len(a) > 1 and len(b) > 1:
        return None
    left = site.tensor(0) if len(a) > 1 else site.reshape(site.tensor(0), [1, *a])
    right = site.tensor(1) if len(b) > 1 else site.reshape(site.tensor(1), [*b, 1])
    return site.reshape(site.op("MatMul", left, right), site.shape(site.node.outputs[0]))


RULES: dict[str, Rewrite] = {
    **kept("Gemm"),
    "Conv": conv,
    "MatMul": matmul,
}
