"""Recurrent operators: LSTM, GRU, RNN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxcomp.graph.coupling.flow import Kept, Step
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops.broadcasting import close_all
from onnxcomp.ops.gradients import recurrent as recurrent_forms
from onnxcomp.ops.record import OpFacts, Weight, elements, volume


def recurrent_weights(node: Node) -> tuple[Weight, ...]:
    """W [directions, gates*hidden, input] and R [directions, gates*hidden, hidden]."""
    return (
        Weight(1, role="recurrent", out_axis=1, in_axes=(2,), bias=3),
        Weight(2, role="recurrent", out_axis=1, in_axes=(2,)),
    )


def recurrent_macs(node: Node, shapes: Shapes) -> int:
    """Both matrices once a step and sample; X is [steps, batch, input], or [batch, steps, input] with layout 1."""
    data = shapes.static(node.inputs[0])
    if data is None:
        return 0
    return volume(data[:2]) * (volume(shapes.static(node.inputs[1])) + volume(shapes.static(node.inputs[2])))


def recurrent(step: Step) -> None:
    """LSTM, GRU, RNN: X [S, B, I]; W [D, gates * H, I]; R [D, gates * H, H]; hidden units leave in both directions."""
    data, weight, again = step.axes(0), step.axes(1), step.axes(2)
    step.tie(data[2], weight[2])
    hidden = again[2]
    if hidden is None:
        step.close(weight[1])
        step.close(again[1])
    else:
        size = len(hidden)
        for port in (1, 2, 3, 7):  # W, R, B, P: blocks of H along their second axis
            if step.has(port):
                labels = step.axes(port)[1]  # none where the weight is computed: nothing of it leaves
                step.tie(hidden, None if labels is None else step.together(labels.reshape(-1, size).T))
        for port in (5, 6):
            if step.has(port):
                step.tie(hidden, step.axes(port)[2])

        def recount(kept: Kept) -> None:
            step.node.attrs["hidden_size"] = kept.count(hidden)

        step.edit(recount, hidden)
    close_all(step, data[:2])
    for port in (1, 2, 3, 5, 6, 7):
        if step.has(port):
            close_all(step, [step.axes(port)[0], *(step.axes(port)[1:2] if port in (5, 6) else [])])
    for index in range(3):
        step.emit([None, None, None, hidden] if index == 0 else [None, None, hidden], index)


def lstm_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """DynamicQuantizeLSTM: Y [steps, directions, batch, hidden], then the last states."""
    data = shapes.shape(node.input(0))
    if data is None or len(data) != 3:
        return [None]
    both = node.attrs.get("direction", "forward")
    ways = 2 if both in ("bidirectional", b"bidirectional") else 1
    kind, hidden = np.dtype(np.float32), int(node.attrs["hidden_size"])
    last = TensorType(kind, (ways, data[1], hidden))
    return [TensorType(kind, (data[0], ways, data[1], hidden)), last, last]


_cell = partial(OpFacts, weights=recurrent_weights, macs=recurrent_macs, coupling=recurrent)

RECORDS = (
    _cell("LSTM", gradient=recurrent_forms.recurrent("LSTMTraining", 4, 2)),
    _cell("GRU", gradient=recurrent_forms.recurrent("GRUTraining", 3, 1)),
    _cell("RNN", gradient=recurrent_forms.unrolled),
    OpFacts(
        "DynamicQuantizeLSTM",
        MICROSOFT_DOMAIN,
        macs=recurrent_macs,
        shape=lstm_types,
        quantization_ports=(8, 9, 10, 11),
        packed={1: elements, 2: elements},
    ),
)
