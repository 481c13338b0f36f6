"""Training forms of normalizations and softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site

LEAST_NORM = 1e-30  # where all is zero, a norm is; 0 / 0 must not be
MVN_EPSILON = 1e-9  # added to the deviation in MeanVarianceNormalization's definition
PER_CHANNEL = 21  # from this opset on GroupNormalization has a scale a channel, before one a group


def frozen_batch_norm(site: Site) -> Replacement:
    """BatchNormalization by its stored statistics as x a + b, scale and bias still learnable.

    a = scale / sqrt(var + epsilon) and b = bias - mean a, both [C, 1, ...].
    """
    scale, bias, mean, variance = (site.tensor(port) for port in range(1, 5))
    inverse = site.op("Div", 1.0, site.op("Sqrt", site.op("Add", variance, float(site.attr("epsilon", 1e-5)))))
    factor = site.op("Mul", scale, inverse)
    shift = site.op("Sub", bias, site.op("Mul", mean, factor))
    return affine(site, site.x, factor, shift, column(site))


def column(site: Site) -> list[int]:
    """The shape that lets a vector over channels broadcast against the first input."""
    return [-1, *[1] * (len(site.shape()) - 2)]


def affine(site: Site, x: Tensor, scale: Tensor | None, shift: Tensor | None, shape: Sequence[int]) -> Tensor:
    """x * scale + shift, both vectors reshaped to broadcast."""
    result = x
    if scale is not None:
        result = site.op("Mul", result, site.reshape(scale, shape))
    if shift is not None:
        result = site.op("Add", result, site.reshape(shift, shape))
    return result


def standardized(site: Site, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over axes."""
    centred = site.op("Sub", x, site.reduce("ReduceMean", x, axes))
    variance = site.reduce("ReduceMean", site.op("Mul", centred, centred), axes)
    result: Tensor = site.op("Div", centred, site.op("Sqrt", site.op("Add", variance, epsilon)))
    return result


def batch_norm(site: Site) -> Replacement | None:
    """BatchNormalization learns its statistics; whether it should is for the caller to say."""
    if any(site.node.constant(port) is None for port in (3, 4)):
        raise CannotRewriteError("its statistics are computed")
    return None


def instance_norm(site: Site) -> Replacement:
    """InstanceNormalization by its mean and variance over the image."""
    axes = list(range(2, len(site.shape())))
    plain = standardized(site, site.x, axes, float(site.attr("epsilon", 1e-5)))
    return affine(site, plain, site.tensor(1), site.tensor(2), column(site))


def group_norm(site: Site) -> Replacement:
    """GroupNormalization by mean and variance over each group of channels."""
    shape, groups = site.shape(), site.attr("num_groups", 1)
    split = site.reshape(site.x, [shape[0], groups, -1])
    plain = standardized(site, split, [2], float(site.attr("epsilon", 1e-5)))
    if site.opset < PER_CHANNEL:
        scaled = affine(site, plain, site.tensor(1), site.tensor(2), [groups, 1])
        return site.reshape(scaled, shape)
    return affine(site, site.reshape(plain, shape), site.tensor(1), site.tensor(2), column(site))


def layer_norm(site: Site) -> Replacement | None:
    """LayerNormalization needs a bias and its two other outputs named; nobody has to read them.

    Scale and bias that are broadcast stand behind it: its kernel trains vectors as wide as what is normalized.
    """
    named = [bool(t.name) for t in site.node.outputs]
    wide = site.shape()[site.attr("axis", -1) :]
    given = [t for t in (site.tensor(1), site.node.input(2)) if t is not None]
    if any(site.shape(t) != wide for t in given):
        plain: list[Tensor] = list(
            site.like([site.x, np.ones(wide, site.dtype), np.zeros(wide, site.dtype)], outputs=3)
        )
        for kind, vector in zip(("Mul", "Add"), given, strict=False):
            plain[0] = site.op(kind, plain[0], vector)
        return plain[: len(named)]
    if len(named) == 3 and all(named) and site.node.input(2) is not None:
        return None
    scale = site.tensor(1)
    bias = site.node.input(2) or np.zeros(site.shape(scale), site.dtype)
    return site.like([site.x, scale, bias], outputs=3)[: len(named)]


def rms_norm(site: Site) -> Replacement:
    """RMSNormalization: x / sqrt(mean(x^2) + epsilon) * scale."""
    rank = len(site.shape())
    axis = site.attr("axis", -1) % rank
    plain = by_root_mean_square(site, site.x, range(axis, rank), float(site.attr("epsilon", 1e-5)))
    result: Tensor = site.op("Mul", plain, site.tensor(1))
    return result


def by_root_mean_square(site: Site, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) over axes."""
    mean = site.reduce("ReduceMean", site.op("Mul", x, x), list(axes))
    root = site.op("Sqrt", site.op("Add", mean, epsilon))
    result: Tensor = site.op("Div", x, root)
    return result


def local_response(site: Site) -> Replacement:
    """LRN: x / (bias + alpha / size * sum of x^2 over near channels)^beta.

    The mean over `size` channels is an AveragePool over [N, 1, C, H * W], padded zeros counting.
    """
    shape, size = site.shape(), site.attr("size", 1)
    squares = site.reshape(site.op("Mul", site.x, site.x), [shape[0], 1, shape[1], -1])
    before = (size - 1) // 2
    pads = [before, 0, size - 1 - before, 0]
    mean = site.op("AveragePool", squares, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
    total = site.op("Add", site.op("Mul", mean, float(site.attr("alpha", 1e-4))), float(site.attr("bias", 1.0)))
    result: Tensor = site.op("Mul", site.x, site.reshape(site.op("Pow", total, -float(site.attr("beta", 0.75))), shape))
    return result


def lp_norm(site: Site) -> Replacement:
    """LpNormalization: x / |x|_p along an axis."""
    axis = site.attr("axis", -1) % len(site.shape())
    if site.attr("p", 2) == 1:
        norm = site.reduce("ReduceSum", site.op("Abs", site.x), [axis])
    else:
        norm = site.op("Sqrt", site.reduce("ReduceSum", site.op("Mul", site.x, site.x), [axis]))
    result: Tensor = site.op("Div", site.x, site.op("Max", norm, LEAST_NORM))
    return result


def mean_variance(site: Site) -> Replacement:
    """MeanVarianceNormalization: (x - mean) / (deviation + 1e-9)."""
    axes = [int(a) % len(site.shape()) for a in site.attr("axes", [0, 2, 3])]
    centred = site.op("Sub", site.x, site.reduce("ReduceMean", site.x, axes))
    deviation = site.op("Sqrt", site.reduce("ReduceMean", site.op("Mul", centred, centred), axes))
    result: Tensor = site.op("Div", centred, site.op("Add", deviation, MVN_EPSILON))
    return result
