"""Training forms of normalizations and softmax."""

from __future__ import annotations

import numpy as np

from onnxcomp.distill.rewrites.common import keep, kept
from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import Replacement, Rewrite, Site


def frozen_batch_norm(site: Site) -> Replacement:
    """BatchNormalization by its stored statistics as x a + b, scale and bias still learnable.

    a = scale / sqrt(var + epsilon) and b = bias - mean a, both [C, 1, ...].
    """
    scale, bias, mean, variance = (site.tensor(port) for port in range(1, 5))
    inverse = site.op("Div", 1.0, site.op("Sqrt", site.op("Add", variance, float(site.attr("epsilon", 1e-5)))))
    factor = site.op("Mul", scale, inverse)
    shift = site.op("Sub", bias, site.op("Mul", mean, factor))
    column = [-1, *[1] * (len(site.shape()) - 2)]
    result: Tensor = site.op("Add", site.op("Mul", site.x, site.reshape(factor, column)), site.reshape(shift, column))
    return result


def layer_norm(site: Site) -> Replacement | None:
    """LayerNormalization needs a bias and its two other outputs named; nobody has to read them."""
    named = [bool(t.name) for t in site.node.outputs]
    if len(named) == 3 and all(named) and site.node.input(2) is not None:
        return None
    scale = site.tensor(1)
    bias = site.node.input(2) or np.zeros(site.shape(scale), site.dtype)
    return site.like([site.x, scale, bias], outputs=3)[: len(named)]


RULES: dict[str, Rewrite] = {
    **kept("Softmax", "LogSoftmax"),
    "BatchNormalization": keep,
    "LayerNormalization": layer_norm,
}
