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
from onnxcomp.ops.gradients import activations as activations_forms
from onnxcomp.ops.gradients import microsoft as microsoft_forms
from onnxcomp.ops.gradients.common import keep
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
    _odd("Abs", gradient=keep, noop=_idempotent),
    _function("Acos"),
    _function("Acosh", gradient=activations_forms.acosh),
    _odd("Asin"),
    _odd("Asinh", gradient=activations_forms.asinh),
    _odd("Atan"),
    _odd("Atanh", gradient=activations_forms.atanh),
    _function("BitwiseNot", noop=_involution),
    _odd("Cast", gradient=keep, noop=_cast_back),
    _odd("CastLike", gradient=activations_forms.cast_like, noop=_cast_back),
    _odd("Ceil", gradient=activations_forms.constant_steps, noop=_idempotent),
    _odd("Celu", gradient=activations_forms.celu),
    _function("Clip", gradient=activations_forms.clip, zeros=clip_zeros),
    _function("Cos", gradient=keep),
    _function("Cosh", gradient=activations_forms.cosh),
    OpFacts(
        "Dropout",
        gradient=activations_forms.dropout,
        random=True,
        coupling=unary,
        zeros=zeros.kept,
        noop=first("drops nothing outside of training", _drops_nothing),
    ),
    _odd("Elu", gradient=activations_forms.elu),
    _odd("Erf", gradient=keep),
    _function("Exp", gradient=keep),
    _odd("Floor", gradient=activations_forms.constant_steps, noop=_idempotent),
    _odd("Gelu", gradient=keep),
    _function("HardSigmoid", gradient=activations_forms.hard_sigmoid),
    _odd("HardSwish", gradient=activations_forms.hard_swish),
    OpFacts("Identity", gradient=keep, moves_data=True, coupling=unary, zeros=zeros.kept, noop=first("is an Identity")),
    _function("IsInf"),
    _function("IsNaN"),
    _odd("LeakyRelu", gradient=keep),
    _function("Log", gradient=keep),
    _odd("Mish", gradient=activations_forms.mish),
    _odd("Neg", gradient=keep, noop=_involution),
    _function("Not", noop=_involution),
    _function("Reciprocal", gradient=keep),
    _odd("Relu", gradient=keep, noop=_idempotent),
    _odd("Round", gradient=keep, noop=_idempotent),
    _odd("Selu", gradient=activations_forms.selu),
    _function("Shrink", gradient=activations_forms.shrink, zeros=shrink_zeros),
    _function("Sigmoid", gradient=keep),
    _odd("Sign", gradient=activations_forms.constant_steps, noop=_idempotent),
    _odd("Sin", gradient=keep),
    _odd("Sinh", gradient=activations_forms.sinh),
    _function("Softplus", gradient=activations_forms.softplus),
    _odd("Softsign", gradient=activations_forms.softsign),
    _odd("Sqrt", gradient=keep),
    _odd("Swish", gradient=activations_forms.swish),
    _odd("Tan", gradient=activations_forms.tan),
    _odd("Tanh", gradient=keep),
    _odd("ThresholdedRelu", gradient=activations_forms.thresholded_relu),
    _odd("QuickGelu", MICROSOFT_DOMAIN, gradient=microsoft_forms.quick_gelu, half=((0,), (0,)), shape=as_first),
    _odd("Gelu", MICROSOFT_DOMAIN, gradient=keep, half=((0,), (0,)), shape=as_first),
    _function(
        "FastGelu",
        MICROSOFT_DOMAIN,
        gradient=microsoft_forms.fast_gelu,
        half=((0, 1), (0,)),
        vector_ports=(1,),
        coupling=elementwise,
        zeros=zeros.every,
        shape=as_first,
    ),
    _function(
        "BiasGelu",
        MICROSOFT_DOMAIN,
        gradient=keep,
        half=((0, 1), (0,)),
        vector_ports=(1,),
        coupling=elementwise,
        zeros=zeros.every,
        shape=as_first,
    ),
)
