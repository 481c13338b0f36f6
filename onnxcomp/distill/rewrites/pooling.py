"""Training forms of pooling."""

from __future__ import annotations

from onnxcomp.distill.rewrites.common import keep, kept
from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Rewrite, Site


def max_pool(site: Site) -> Replacement | None:
    """MaxPool has a gradient, unless its indices are read."""
    if site.read(1):
        raise CannotRewriteError("the places of its maxima are read")
    return None


def global_max_pool(site: Site) -> Replacement:
    """MaxPool over the whole image."""
    result: Tensor = site.op("MaxPool", site.x, kernel_shape=list(site.shape()[2:]))
    return result


RULES: dict[str, Rewrite] = {
    **kept("GlobalAveragePool"),
    "AveragePool": keep,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
