"""Functions of one value, element by element."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx.helper import get_all_tensor_dtypes, tensor_dtype_to_np_dtype

from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.noops import Known, Same, first
from onnxcomp.ops import zeros
from onnxcomp.ops.broadcasting import elementwise, unary
from onnxcomp.ops.record import OpFacts, ZeroView
from onnxcomp.ops.shapes import as_first


def _drops_nothing(node: Node, known: Known) -> bool:
    if any(t.name and t.consumers for t in node.outputs[1:]):
        return False
    if known.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if known.opset < 12 or node.input(2) is None:
        return True
    training = known.values(node, 2)
    return training is not None and not training.any()


def _cast_back(node: Node, known: Known) -> Same | None:
    before = known.shapes.dtype(node.inputs[0])
    to = node.attrs.get("to")
    if node.op == "CastLike":
        after = known.shapes.dtype(node.input(1))
    elif isinstance(to, int) and to in get_all_tensor_dtypes():
        after = tensor_dtype_to_np_dtype(to)
    else:  # opset 1 to 5 name the type; a number may be none that ONNX has
        return None
    if before is None or after is None:
        return None
    if before == after:
        return Same(node.inputs[0], f"is {after} already")
    maker = node.inputs[0].producer
    if maker is None or maker.op not in ("Cast", "CastLike"):
        return None
    origin = known.shapes.dtype(maker.inputs[0])
    if origin == after and _holds_all(before, after):
        return Same(maker.inputs[0], f"back to {after} from a type that holds all of its values")
    return None


def _holds_all(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    """Whether every value of one type has an exact counterpart in the other."""
    if "V" in (wide.kind, narrow.kind) or (narrow.kind in "iu" and narrow.itemsize == 8 and wide.kind == "f"):
        return False  # numpy calls int64 to float64 safe, and it is not
    return narrow.kind in "biuf" and wide.kind in "biuf" and np.can_cast(narrow, wide, "safe")


def _idempotent(node: Node, known: Known) -> Same | None:
    maker = node.inputs[0].producer
    if maker is not None and (maker.op, maker.domain) == (node.op, node.domain) and maker.attrs == node.attrs:
        return Same(node.inputs[0], f"{node.op} of {node.op}")
    return None


def _involution(node: Node, known: Known) -> Same | None:
    maker = node.inputs[0].producer
    if maker is not None and (maker.op, maker.domain) == (node.op, node.domain):
        return Same(maker.inputs[0], f"undoes {maker}")
    return None


def clip_zeros(view: ZeroView) -> set[int]:
    """Zero stays where it lies between the bounds, and these are known."""
    node = view.node
    least, most = (node.constant(port) for port in (1, 2))
    if any(node.input(port) is not None and node.constant(port) is None for port in (1, 2)):
        return set()
    low = node.attrs.get("min", 0.0) if least is None else float(np.asarray(least.values).reshape(-1)[0])
    high = node.attrs.get("max", 0.0) if most is None else float(np.asarray(most.values).reshape(-1)[0])
    return view.zero(0) if low <= 0 <= high else set()


def shrink_zeros(view: ZeroView) -> set[int]:
    """Zero stays where the dead zone holds it."""
    return view.zero(0) if float(view.node.attrs.get("lambd", 0.5)) >= 0 else set()


_function = partial(OpFacts, elementwise=True, coupling=unary)
_odd = partial(_function, zeros=zeros.kept)  # f(0) = 0

RECORDS = (
    _odd("Abs", noop=_idempotent),
    _function("Acos"),
    _function("Acosh"),
    _odd("Asin"),
    _odd("Asinh"),
    _odd("Atan"),
    _odd("Atanh"),
    _function("BitwiseNot", noop=_involution),
    _odd("Cast", noop=_cast_back),
    _odd("CastLike", noop=_cast_back),
    _odd("Ceil", noop=_idempotent),
    _odd("Celu"),
    _function("Clip", zeros=clip_zeros),
    _function("Cos"),
    _function("Cosh"),
    OpFacts(
        "Dropout",
        random=True,
        coupling=unary,
        zeros=zeros.kept,
        noop=first("drops nothing outside of training", _drops_nothing),
    ),
    _odd("Elu"),
    _odd("Erf"),
    _function("Exp"),
    _odd("Floor", noop=_idempotent),
    _odd("Gelu"),
    _function("HardSigmoid"),
    _odd("HardSwish"),
    OpFacts("Identity", moves_data=True, coupling=unary, zeros=zeros.kept, noop=first("is an Identity")),
    _function("IsInf"),
    _function("IsNaN"),
    _odd("LeakyRelu"),
    _function("Log"),
    _odd("Mish"),
    _odd("Neg", noop=_involution),
    _function("Not", noop=_involution),
    _function("Reciprocal"),
    _odd("Relu", noop=_idempotent),
    _odd("Round", noop=_idempotent),
    _odd("Selu"),
    _function("Shrink", zeros=shrink_zeros),
    _function("Sigmoid"),
    _odd("Sign", noop=_idempotent),
    _odd("Sin"),
    _odd("Sinh"),
    _function("Softplus"),
    _odd("Softsign"),
    _odd("Sqrt"),
    _odd("Swish"),
    _odd("Tan"),
    _odd("Tanh"),
    _odd("ThresholdedRelu"),
    _odd("QuickGelu", MICROSOFT_DOMAIN, half=((0,), (0,)), shape=as_first),
    _odd("Gelu", MICROSOFT_DOMAIN, half=((0,), (0,)), shape=as_first),
    _function(
        "FastGelu",
        MICROSOFT_DOMAIN,
        half=((0, 1), (0,)),
        vector_ports=(1,),
        coupling=elementwise,
        zeros=zeros.every,
        shape=as_first,
    ),
    _function(
        "BiasGelu",
        MICROSOFT_DOMAIN,
        half=((0, 1), (0,)),
        vector_ports=(1,),
        coupling=elementwise,
        zeros=zeros.every,
        shape=as_first,
    ),
)
