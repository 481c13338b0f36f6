"""Training forms of ONNX Runtime's own fused operators, taken apart again."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site
from onnxcomp.ops.gradients.normalization import by_root_mean_square

SKIP_EPSILON = 1e-12  # default of the Skip operators
_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")  # fused ones without parameters; LeakyRelu and Clip have them


def fast_gelu(site: Site) -> Replacement | None:
    """FastGelu has a gradient to its input; a bias is added before."""
    bias = site.node.input(1)
    return None if bias is None else site.like([site.op("Add", site.x, bias)])


def quick_gelu(site: Site) -> Replacement:
    """QuickGelu: x sigmoid(alpha x)."""
    gate = site.op("Sigmoid", site.op("Mul", site.x, float(site.attr("alpha", 1.702))))
    result: Tensor = site.op("Mul", site.x, gate)
    return result


def fused_matmul(site: Site) -> Replacement:
    """FusedMatMul: Transpose, MatMul, Mul."""
    if site.attr("transBatchA", 0) or site.attr("transBatchB", 0):
        raise CannotRewriteError("it moves its batch axis")
    product = site.op("MatMul", _turned(site, 0, "transA"), _turned(site, 1, "transB"))
    alpha = float(site.attr("alpha", 1.0))
    result: Tensor = product if alpha == 1.0 else site.op("Mul", product, alpha)
    return result


def _turned(site: Site, port: int, flag: str) -> Tensor:
    tensor = site.tensor(port)
    if not site.attr(flag, 0):
        return tensor
    rank = len(site.shape(tensor))
    if rank < 2:
        raise CannotRewriteError("it turns a vector")
    result: Tensor = site.op("Transpose", tensor, perm=[*range(rank - 2), rank - 1, rank - 2])
    return result


def fused_gemm(site: Site) -> Replacement:
    """FusedGemm: Gemm, then its activation."""
    attrs = {k: v for k, v in site.node.attrs.items() if k in ("alpha", "beta", "transA", "transB")}
    return _activated(site, site.op("Gemm", *site.given(), **attrs))


def fused_conv(site: Site) -> Replacement:
    """FusedConv: Conv, its summand, then its activation."""
    attrs = {k: v for k, v in site.node.attrs.items() if not k.startswith("activation")}
    if site.attr("auto_pad", "NOTSET") != "NOTSET":
        raise CannotRewriteError("its padding is not written out")
    result = site.op("Conv", site.x, site.tensor(1), site.node.input(2), **attrs)
    summand = site.node.input(3)
    return _activated(site, result if summand is None else site.op("Add", result, summand))


def _activated(site: Site, x: Tensor) -> Tensor:
    kind = site.attr("activation", "")
    given = [float(v) for v in site.attr("activation_params", [])]
    if not kind:
        return x
    if kind in _ACTIVATIONS:
        result: Tensor = site.op(kind, x)
    elif kind == "LeakyRelu":
        result = site.op(kind, x, alpha=given[0] if given else float(site.attr("activation_alpha", 0.01)))
    elif kind == "Clip" and len(given) == 2:
        result = site.op(kind, x, *given)
    else:
        raise CannotRewriteError(f"its activation {kind} has no composed form")
    return result


def skip_layer_norm(site: Site) -> Replacement:
    """SkipLayerNormalization: x + skip + bias, then LayerNormalization; the sum is its fourth output."""
    total = _skipped(site, 4)
    beta = site.node.input(3) or np.zeros(site.shape(site.tensor(2)), site.dtype)
    norm = site.op(
        "LayerNormalization",
        total,
        site.tensor(2),
        beta,
        outputs=3,
        axis=-1,
        epsilon=float(site.attr("epsilon", SKIP_EPSILON)),
    )
    return _outputs(site, norm[0], total)


def skip_rms_norm(site: Site) -> Replacement:
    """SkipSimplifiedLayerNormalization: x + skip + bias, then RMSNormalization."""
    total = _skipped(site, 3)
    plain = by_root_mean_square(site, total, [len(site.shape()) - 1], float(site.attr("epsilon", SKIP_EPSILON)))
    return _outputs(site, site.op("Mul", plain, site.tensor(2)), total)


def _skipped(site: Site, bias_port: int) -> Tensor:
    total: Tensor = site.op("Add", site.x, site.tensor(1))
    bias = site.node.input(bias_port)
    return total if bias is None else site.op("Add", total, bias)


def _outputs(site: Site, result: Tensor, total: Tensor) -> Replacement:
    if site.read(1) or site.read(2):
        raise CannotRewriteError("its mean or deviation is read")
    return [result, None, None, total]
