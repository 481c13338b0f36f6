"""Training forms of operators that work element by element."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxcomp.graph.ir import Tensor, elem_type
from onnxcomp.graph.rewriting import CannotRewriteError, Replacement, Site
from onnxcomp.ops.gradients.common import chain, negative_part

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # defaults of the operator
SOFTPLUS_LINEAR = 20.0  # beyond it softplus(x) = x in float32


def clip(site: Site) -> Replacement | None:
    """Clip to learned or computed bounds as Max and Min; fixed bounds have a gradient."""
    bounds = [site.node.input(port) for port in (1, 2)]
    if all(b is None or (site.node.constant(p) is not None and not site.learned(p)) for p, b in enumerate(bounds, 1)):
        return None
    result = site.x
    for kind, bound in zip(("Max", "Min"), bounds, strict=True):
        result = result if bound is None else site.op(kind, result, bound)
    return result


def elu(site: Site) -> Replacement:
    """relu(x) + alpha (exp(min(x, 0)) - 1)."""
    return _exponential(site, site.attr("alpha", 1.0), 1.0, 1.0)


def selu(site: Site) -> Replacement:
    """gamma (relu(x) + alpha (exp(min(x, 0)) - 1))."""
    return _exponential(site, site.attr("alpha", SELU_ALPHA), site.attr("gamma", SELU_GAMMA), 1.0)


def celu(site: Site) -> Replacement:
    """relu(x) + alpha (exp(min(x, 0) / alpha) - 1)."""
    alpha = site.attr("alpha", 1.0)
    return _exponential(site, alpha, 1.0, 1.0 / alpha)


def _exponential(site: Site, alpha: float, gamma: float, inner: float) -> Replacement:
    below = negative_part(site, site.x)
    below = below if inner == 1.0 else site.op("Mul", below, inner)
    curve = site.op("Mul", site.op("Sub", site.op("Exp", below), 1.0), alpha * gamma)
    above = site.op("Relu", site.x)
    result: Tensor = site.op("Add", above if gamma == 1.0 else site.op("Mul", above, gamma), curve)
    return result


def softplus(site: Site) -> Replacement:
    """log(1 + exp(x))."""
    return _softplus(site, site.x)


def _softplus(site: Site, x: Tensor) -> Tensor:
    """c - log(sigmoid(c - x)) with c = relu(x - 20): never overflows, and its gradient is right at zero too."""
    excess = site.op("Relu", site.op("Sub", x, SOFTPLUS_LINEAR))
    result: Tensor = site.op("Sub", excess, site.op("Log", site.op("Sigmoid", site.op("Sub", excess, x))))
    return result


def mish(site: Site) -> Replacement:
    """x tanh(softplus(x))."""
    result: Tensor = site.op("Mul", site.x, site.op("Tanh", _softplus(site, site.x)))
    return result


def softsign(site: Site) -> Replacement:
    """x / (1 + |x|)."""
    result: Tensor = site.op("Div", site.x, site.op("Add", site.op("Abs", site.x), 1.0))
    return result


def swish(site: Site) -> Replacement:
    """x sigmoid(alpha x)."""
    alpha = site.attr("alpha", 1.0)
    result: Tensor = site.op(
        "Mul", site.x, site.op("Sigmoid", site.x if alpha == 1.0 else site.op("Mul", site.x, alpha))
    )
    return result


def prelu(site: Site) -> Replacement:
    """relu(x) + slope min(x, 0)."""
    below = site.op("Mul", site.tensor(1), negative_part(site, site.x))
    result: Tensor = site.op("Add", site.op("Relu", site.x), below)
    return result


def thresholded_relu(site: Site) -> Replacement:
    """x where x > alpha, else 0: times a mask, through which no gradient flows."""
    mask = site.op("Cast", site.op("Greater", site.x, site.attr("alpha", 1.0)), to=elem_type(site.dtype))
    result: Tensor = site.op("Mul", site.x, mask)
    return result


def shrink(site: Site) -> Replacement:
    """Shrink: x + bias below -lambd, x - bias above lambd, else 0; masks carry no gradient."""
    edge, bias = float(site.attr("lambd", 0.5)), float(site.attr("bias", 0.0))
    to = elem_type(site.dtype)
    low = site.op("Cast", site.op("Less", site.x, -edge), to=to)
    high = site.op("Cast", site.op("Greater", site.x, edge), to=to)
    result: Tensor = site.op(
        "Add", site.op("Mul", low, site.op("Add", site.x, bias)), site.op("Mul", high, site.op("Sub", site.x, bias))
    )
    return result


def hard_sigmoid(site: Site) -> Replacement:
    """clip(alpha x + beta, 0, 1)."""
    return _hard_sigmoid(site, site.attr("alpha", 0.2), site.attr("beta", 0.5))


def hard_swish(site: Site) -> Replacement:
    """x clip(x / 6 + 1 / 2, 0, 1)."""
    result: Tensor = site.op("Mul", site.x, _hard_sigmoid(site, 1 / 6, 0.5))
    return result


def _hard_sigmoid(site: Site, alpha: float, beta: float) -> Tensor:
    line = site.op("Add", site.op("Mul", site.x, alpha), beta)
    result: Tensor = site.op("Clip", line, 0.0, 1.0)
    return result


def total(site: Site) -> Replacement:
    """Sum as a chain of Add."""
    return chain(site, "Add", site.given())


def mean(site: Site) -> Replacement:
    """Mean as a chain of Add, divided by the number of operands."""
    operands = site.given()
    result: Tensor = site.op("Mul", chain(site, "Add", operands), 1.0 / len(operands))
    return result


def power(site: Site) -> Replacement | None:
    """Pow has a gradient for a fixed exponent of its own type; a fixed positive base becomes exp(x log(base))."""
    exponent = site.node.constant(1)
    if exponent is not None and not site.learned(1):
        if exponent.dtype == site.dtype:
            return None
        same: Tensor = site.op("Pow", site.x, exponent.values.astype(site.dtype))
        return same
    base = site.node.constant(0)
    if base is None or site.learned(0) or not (base.values > 0).all():
        raise CannotRewriteError("an exponent that is learned or computed has no gradient")
    result: Tensor = site.op("Exp", site.op("Mul", site.tensor(1), np.log(base.values).astype(base.dtype)))
    return result


def where(site: Site) -> Replacement | None:
    """Where of operands that broadcast: their gradients are not summed, so they are expanded before."""
    out = site.shape(site.node.outputs[0])
    operands = [site.tensor(0), site.tensor(1), site.tensor(2)]
    if all(site.shape(t) == out for t in operands):
        return None
    whole = [t if site.shape(t) == out else site.op("Expand", t, out) for t in operands]
    return site.like(whole)


def constant_steps(site: Site) -> Replacement:
    """Floor, Ceil, Sign and Hardmax, whose derivative is zero: a detour over integers, which carry no gradient."""
    steps = site.op("Cast", site.again()[0], to=TensorProto.INT64)
    result: Tensor = site.op("Cast", steps, to=elem_type(site.dtype))
    return result


def cast_like(site: Site) -> Replacement:
    """CastLike as Cast."""
    dtype = site.shapes.dtype(site.tensor(1))
    if dtype is None:
        raise CannotRewriteError("the type to cast to is not known")
    result: Tensor = site.op("Cast", site.x, to=elem_type(dtype))
    return result


def dropout(site: Site) -> Replacement:
    """Nothing is dropped: a student learns from what its teacher says of the same input."""
    if site.read(1):
        raise CannotRewriteError("its mask is read")
    return [site.x, None]


def sinh(site: Site) -> Replacement:
    """(exp(x) - exp(-x)) / 2."""
    result: Tensor = site.op("Mul", site.op("Sub", *_exponentials(site)), 0.5)
    return result


def cosh(site: Site) -> Replacement:
    """(exp(x) + exp(-x)) / 2."""
    result: Tensor = site.op("Mul", site.op("Add", *_exponentials(site)), 0.5)
    return result


def _exponentials(site: Site) -> tuple[Tensor, Tensor]:
    return site.op("Exp", site.x), site.op("Exp", site.op("Neg", site.x))


def tan(site: Site) -> Replacement:
    """sin(x) / cos(x)."""
    result: Tensor = site.op("Div", site.op("Sin", site.x), site.op("Cos", site.x))
    return result


def asinh(site: Site) -> Replacement:
    """s log(s x + sqrt(x^2 + 1)) with s the sign of x, which carries no gradient: exact on both sides."""
    x = site.x
    sign = site.op("Where", site.op("Less", x, 0.0), -1.0, 1.0)
    root = site.op("Sqrt", site.op("Add", site.op("Mul", x, x), 1.0))
    result: Tensor = site.op("Mul", sign, site.op("Log", site.op("Add", site.op("Mul", sign, x), root)))
    return result


def acosh(site: Site) -> Replacement:
    """log(x + sqrt(x^2 - 1))."""
    x = site.x
    root = site.op("Sqrt", site.op("Sub", site.op("Mul", x, x), 1.0))
    result: Tensor = site.op("Log", site.op("Add", x, root))
    return result


def atanh(site: Site) -> Replacement:
    """log((1 + x) / (1 - x)) / 2."""
    x = site.x
    ratio = site.op("Div", site.op("Add", x, 1.0), site.op("Sub", 1.0, x))
    result: Tensor = site.op("Mul", site.op("Log", ratio), 0.5)
    return result
