"""When and how does a fused Attention project to queries, keys and values in 8-bit integers (QAttention)?"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.passes.weights.kernels import state_type

MASK, PAST = 3, 4  # ports of Attention; those behind have no counterpart
KEPT = frozenset(
    {"num_heads", "unidirectional", "mask_filter_value", "scale", "do_rotary", "past_present_share_buffer"}
)


def attention_refusal(node: Node) -> str:
    """Why an Attention cannot take its integer form; empty when it can."""
    odd = sorted(set(node.attrs) - KEPT)
    if odd:
        return f"QAttention knows no {odd[0]}"
    if any(node.input(port) is not None for port in range(PAST + 1, len(node.inputs))):
        return "QAttention adds no bias to the scores"
    return "it has no bias, which QAttention wants" if node.input(2) is None else ""


def write_attention(
    graph: Graph,
    node: Node,
    activation: tuple[Variable, Variable, Variable],
    weight: Constant,
    scales: Array,
    shapes: Shapes,
) -> None:
    """Turn Attention into QAttention, in place.

    Args:
        activation: quantized at run time, with its scale and zero point.
        weight: int8 [width, 3 * hidden].
        scales: float32 [3 * hidden].
    """
    for output in node.outputs:
        if output.name:
            state_type(output, shapes, graph)
    quantized, scale, zero = activation
    absent = Variable("")
    factors = graph.add_constant(f"{weight.name}_scale", scales)
    middle = graph.add_constant(f"{weight.name}_zero", np.zeros(scales.shape, weight.dtype))
    inputs: list[Tensor] = [quantized, weight, node.inputs[2], scale, factors]
    inputs += [node.input(MASK) or absent, zero, middle, node.input(PAST) or absent]
    node.op, node.inputs = "QAttention", inputs
