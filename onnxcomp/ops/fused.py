"""Operators that ONNX Runtime's optimizer writes in the place of several: attention with its projections."""

from __future__ import annotations

from onnxcomp.graph.ir import Node
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.record import OpFacts, Weight, elements, volume

MICROSOFT = "com.microsoft"


def attention_weights(node: Node) -> tuple[Weight, ...]:
    """Attention: the projections to queries, keys and values side by side, [width, 3 * hidden]."""
    weight = node.constant(1)
    return (Weight(1, out_axis=1, in_axes=(0,), bias=2),) if weight is not None and len(weight.shape) == 2 else ()


def attention_macs(node: Node, shapes: Shapes) -> int:
    """The projections, and both products of tokens with tokens."""
    data, weight = shapes.static(node.inputs[0]), shapes.static(node.inputs[1])
    if data is None or weight is None or len(data) != 3 or len(weight) != 2:
        return 0
    batch, tokens, _ = data
    return batch * tokens * (volume(weight) + 2 * tokens * (weight[1] // 3))


RECORDS = (
    OpFacts("Attention", MICROSOFT, weights=attention_weights, macs=attention_macs),
    OpFacts(
        "QAttention",
        MICROSOFT,
        macs=attention_macs,
        quantization_ports=(3, 4, 6, 7),
        packed={1: elements},
    ),
)
