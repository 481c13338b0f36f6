"""Training forms of pooling."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxcomp.distill.rewrites.common import kept
from onnxcomp.distill.rewrites.linear import padding
from onnxcomp.graph.ir import Array, Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Rewrite, Site


def max_pool(site: Site) -> Replacement | None:
    """MaxPool has a gradient, unless its indices are read or stored column by column."""
    if site.read(1):
        raise CannotRewriteError("the places of its maxima are read")
    if not site.attr("storage_order", 0):
        return None
    return [site.op("MaxPool", site.x, **{k: v for k, v in site.node.attrs.items() if k != "storage_order"}), None]


def global_max_pool(site: Site) -> Replacement:
    """MaxPool over the whole image."""
    result: Tensor = site.op("MaxPool", site.x, kernel_shape=list(site.shape()[2:]))
    return result


def average_pool(site: Site) -> Replacement | None:
    """AveragePool has a wrong gradient where it is dilated, or 3-D with windows that overlap: a Conv with ones."""
    kernel = tuple(site.attr("kernel_shape", ()))
    strides = site.attr("strides", [1] * len(kernel))
    overlap = len(kernel) > 2 and any(k > s for k, s in zip(kernel, strides, strict=True))
    if not overlap and all(d == 1 for d in site.attr("dilations", [1])):
        return None
    return _window_mean(site, kernel)


def _window_mean(site: Site, kernel: tuple[int, ...]) -> Tensor:
    """Sum of each window by a Conv a channel, times one over the number of elements that count in it."""
    shape, out = site.shape(), site.shape(site.node.outputs[0])
    channels, spatial = shape[1], len(kernel)
    strides, dilations = site.attr("strides", [1] * spatial), site.attr("dilations", [1] * spatial)
    pads = padding(site, kernel)
    for i in range(spatial):  # with ceil_mode the last window reaches beyond the padding
        reach = (out[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        pads[spatial + i] = max(pads[spatial + i], reach - shape[2 + i] - pads[i])
    share = 1 / _counts(site, kernel, shape[2:], out[2:], pads)
    flat = site.reshape(site.x, [shape[0] * channels, 1, *shape[2:]])
    ones = np.ones((1, 1, *kernel), site.dtype)
    sums = site.op("Conv", flat, ones, pads=pads, strides=strides, dilations=dilations, kernel_shape=list(kernel))
    scaled = site.op("Mul", sums, share.astype(site.dtype))
    return site.reshape(scaled, out)


def _counts(site: Site, kernel: tuple[int, ...], size: tuple[int, ...], out: tuple[int, ...], pads: list[int]) -> Array:
    """How many elements count in each window, [1, 1, out...]."""
    spatial = len(kernel)
    strides, dilations = site.attr("strides", [1] * spatial), site.attr("dilations", [1] * spatial)
    asked = padding(site, kernel)
    whole = bool(site.attr("count_include_pad", 0))
    counts = np.ones(out)
    for i in range(spatial):
        at = np.arange(out[i])[:, None] * strides[i] + np.arange(kernel[i]) * dilations[i] - pads[i]
        low, high = (-asked[i], size[i] + asked[spatial + i]) if whole else (0, size[i])
        column = ((at >= low) & (at < high)).sum(1)
        counts = counts * column.reshape([-1 if a == i else 1 for a in range(spatial)])
    return np.maximum(counts, 1)[None, None]


def lp_pool(site: Site) -> Replacement:
    """LpPool: the p-th root of the sum of |x|^p, as an AveragePool over windows that all count as full."""
    kernel = list(site.attr("kernel_shape", ()))
    if any(d != 1 for d in site.attr("dilations", [1])) or (len(kernel) > 2):
        raise CannotRewriteError("it is dilated or has more than two spatial axes")
    kept_attrs = {k: v for k, v in site.node.attrs.items() if k in ("auto_pad", "pads", "strides", "ceil_mode")}
    power = site.attr("p", 2)
    mean = site.op("AveragePool", _power(site, power), kernel_shape=kernel, count_include_pad=1, **kept_attrs)
    return _root(site, site.op("Mul", mean, float(prod(kernel))), power)


def global_lp_pool(site: Site) -> Replacement:
    """The p-th root of the sum of |x|^p over the whole image."""
    power = site.attr("p", 2)
    axes = list(range(2, len(site.shape())))
    return _root(site, site.reduce("ReduceSum", _power(site, power), axes), power)


def _power(site: Site, power: int) -> Tensor:
    if power == 2:
        squared: Tensor = site.op("Mul", site.x, site.x)
        return squared
    size = site.op("Abs", site.x)
    result: Tensor = size if power == 1 else site.op("Pow", size, float(power))
    return result


def _root(site: Site, x: Tensor, power: int) -> Tensor:
    if power == 1:
        return x
    result: Tensor = site.op("Sqrt", x) if power == 2 else site.op("Pow", x, 1.0 / power)
    return result


RULES: dict[str, Rewrite] = {
    **kept("GlobalAveragePool"),
    "AveragePool": average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
