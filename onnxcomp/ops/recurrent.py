"""Recurrent operators: LSTM, GRU, RNN."""

from __future__ import annotations

from onnxcomp.graph.ir import Node
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.record import OpFacts, Weight, volume


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
    return data[0] * data[1] * (volume(shapes.static(node.inputs[1])) + volume(shapes.static(node.inputs[2])))


RECORDS = (
    *(OpFacts(op, weights=recurrent_weights, macs=recurrent_macs) for op in ("LSTM", "GRU", "RNN")),
    OpFacts(
        "DynamicQuantizeLSTM",
        "com.microsoft",
        macs=recurrent_macs,
        quantization_ports=(8, 9, 10, 11),
        packed={1: lambda node: int(node.inputs[1].size), 2: lambda node: int(node.inputs[2].size)},
    ),
)
