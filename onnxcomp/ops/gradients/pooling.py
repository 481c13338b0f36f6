"""Training forms of pooling.

The runtime's own AveragePool and MaxPool have a right gradient where the windows lie within explicit padding. Where it
works out the padding or rounds sizes up, and where windows are dilated, its gradients, and some of its values, are not
those of the ONNX Runtime that the model is for: the windows are written out there.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array, Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site
from onnxcomp.ops.gradients.linear import padding

LOWEST = float(np.finfo(np.float32).min)


def max_pool(site: Site) -> Replacement | None:
    """MaxPool has a gradient where its windows lie within explicit padding; elsewhere the padding is a node before."""
    if site.read(1):
        raise CannotRewriteError("the places of its maxima are read")
    kernel, strides, dilations = _window(site)
    if _written_out(site) and all(d == 1 for d in dilations) and not site.attr("storage_order", 0):
        return None
    pads = _reach(site, kernel, strides, dilations)
    spatial = len(kernel)
    x = site.x
    if any(pads):
        amounts = [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]]
        x = site.op("Pad", x, amounts, np.asarray(LOWEST, site.dtype))
    result: Tensor = site.op("MaxPool", x, kernel_shape=list(kernel), strides=strides, dilations=dilations)
    return [result, None]


def global_max_pool(site: Site) -> Replacement:
    """MaxPool over the whole image."""
    result: Tensor = site.op("MaxPool", site.x, kernel_shape=list(site.shape()[2:]))
    return result


def average_pool(site: Site) -> Replacement | None:
    """AveragePool of one or two axes has a gradient where its padding is explicit; elsewhere a Conv with ones."""
    kernel, strides, dilations = _window(site)
    if _written_out(site) and len(kernel) < 3 and all(d == 1 for d in dilations):
        return None
    share = 1 / _counts(site, kernel, strides, dilations)
    result: Tensor = site.op("Mul", _window_sum(site, site.x, kernel), share.astype(site.dtype))
    return site.reshape(result, site.shape(site.node.outputs[0]))


def lp_pool(site: Site) -> Replacement:
    """LpPool: the p-th root of the sum of |x|^p over each window, a Conv with ones."""
    kernel, _, _ = _window(site)
    power = site.attr("p", 2)
    total = _window_sum(site, _power(site, power), kernel)
    return site.reshape(_root(site, total, power), site.shape(site.node.outputs[0]))


def global_lp_pool(site: Site) -> Replacement:
    """The p-th root of the sum of |x|^p over the whole image."""
    power = site.attr("p", 2)
    axes = list(range(2, len(site.shape())))
    return _root(site, site.reduce("ReduceSum", _power(site, power), axes), power)


def _window(site: Site) -> tuple[tuple[int, ...], list[int], list[int]]:
    """Sizes, strides and dilations of the windows."""
    kernel = tuple(site.attr("kernel_shape", ()))
    ones = [1] * len(kernel)
    return kernel, list(site.attr("strides", ones)), list(site.attr("dilations", ones))


def _written_out(site: Site) -> bool:
    return site.attr("auto_pad", "NOTSET") == "NOTSET" and not site.attr("ceil_mode", 0)


def _reach(site: Site, kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> list[int]:
    """Padding [begin..., end...] that all windows lie within; with ceil_mode the last ones reach beyond the asked."""
    shape, out, spatial = site.shape(), site.shape(site.node.outputs[0]), len(kernel)
    pads = padding(site, kernel, None)
    for i in range(spatial):
        reach = (out[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        pads[spatial + i] = reach - shape[2 + i] - pads[i]  # less than asked where that does not fill a window
    return pads


def _window_sum(site: Site, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Sum of each window, [N * C, 1, out...]: a Conv with one channel, whatever the number of channels."""
    shape, spatial = site.shape(), len(kernel)
    _, strides, dilations = _window(site)
    pads = _reach(site, kernel, strides, dilations)
    flat = site.reshape(x, [shape[0] * shape[1], 1, *shape[2:]])
    if min(pads) < 0:
        flat, pads = site.op("Pad", flat, [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]]), [0] * 2 * spatial
    ones = np.ones((1, 1, *kernel), site.dtype)
    sums: Tensor = site.op(
        "Conv", flat, ones, pads=pads, strides=strides, dilations=dilations, kernel_shape=list(kernel)
    )
    return sums


def _counts(site: Site, kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> Array:
    """How many elements count in each window, [1, 1, out...]; what reaches beyond the asked padding never does."""
    size, out, spatial = site.shape()[2:], site.shape(site.node.outputs[0])[2:], len(kernel)
    asked = padding(site, kernel, None)
    whole = bool(site.attr("count_include_pad", 0))
    counts = np.ones(out)
    for i in range(spatial):
        at = np.arange(out[i])[:, None] * strides[i] + np.arange(kernel[i]) * dilations[i] - asked[i]
        low, high = (-max(asked[i], 0), size[i] + max(asked[spatial + i], 0)) if whole else (0, size[i])
        column = ((at >= low) & (at < high)).sum(1)
        counts = counts * column.reshape([-1 if a == i else 1 for a in range(spatial)])
    return np.maximum(counts, 1)[None, None]


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
