"""Arithmetic, comparisons and logic of several values, element by element with broadcasting."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxcomp.graph.ir import Node
from onnxcomp.graph.noops import Known, Rule, Same, fence, one_input
from onnxcomp.ops import zeros
from onnxcomp.ops.broadcasting import elementwise
from onnxcomp.ops.gradients import activations as activations_forms
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.record import OpFacts, ZeroView


def neutral(value: float, ports: tuple[int, ...]) -> Rule:
    """Arithmetic with a constant that changes nothing, not even the sign of a zero."""

    def rule(node: Node, known: Known) -> Same | None:
        if len(node.inputs) != 2 or known.opset < 7:
            return None
        for port in ports:
            constant = known.values(node, port)
            other = node.inputs[1 - port]
            if constant is None or constant.size != 1 or constant.dtype.kind not in "biuf":
                continue
            rank = known.shapes.rank(other)
            if constant.ndim and (rank is None or constant.ndim > rank):
                continue
            wanted = np.asarray(value).astype(constant.dtype)
            if constant.reshape(()).tobytes() == wanted.tobytes():
                return Same(other, f"{node.op} with {constant.item()}")
        return None

    return rule


def _both_sides(view: ZeroView) -> set[int]:
    """Where: zero on either side."""
    return view.zero(1) & view.zero(2)


_meets = partial(OpFacts, elementwise=True, coupling=elementwise)

RECORDS = (
    _meets("Add", gradient=keep, zeros=zeros.every, noop=neutral(-0.0, (0, 1))),
    _meets("Sub", gradient=keep, zeros=zeros.every, noop=neutral(0.0, (1,))),
    _meets("Mul", gradient=keep, zeros=zeros.one, noop=neutral(1.0, (0, 1))),
    _meets("Div", gradient=keep, noop=neutral(1.0, (1,))),
    _meets("Pow", gradient=activations_forms.power),
    _meets("Mod"),
    _meets("Max", gradient=keep, zeros=zeros.every, noop=one_input),
    _meets("Min", gradient=keep, zeros=zeros.every, noop=one_input),
    _meets("Mean", gradient=activations_forms.mean, zeros=zeros.every),
    _meets("Sum", gradient=activations_forms.total, zeros=zeros.every, noop=fence),
    _meets("PRelu", gradient=activations_forms.prelu, vector_ports=(1,), zeros=zeros.kept),
    _meets("Where", gradient=activations_forms.where, zeros=_both_sides),
    _meets("And", zeros=zeros.one, noop=neutral(1.0, (0, 1))),
    _meets("Or", noop=neutral(0.0, (0, 1))),
    *(_meets(op) for op in ("Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(_meets(op) for op in ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")),
)
