"""Which operators come last before each output? Read from the file, without its weights."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.io import read_proto

MOST = 6
# they move values and change none
MOVING = frozenset(
    {
        "Reshape",
        "Transpose",
        "Identity",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Cast",
        "DequantizeLinear",
        "QuantizeLinear",
    }
)


def tails_of(model: Path) -> dict[str, tuple[str, ...]]:
    """Types of the last operators before each output, the last first, those that only move values left out.

    Followed along each operator's first input that another one computes.
    """
    try:
        graph = read_proto(model).graph
    except OnnxcompError:
        return {}
    makers = {name: node for node in graph.node for name in node.output if name}
    return {output.name: _tail(output.name, makers) for output in graph.output}


def _tail(name: str, makers: dict[str, onnx.NodeProto]) -> tuple[str, ...]:
    found: list[str] = []
    for _ in range(4 * MOST):
        node = makers.get(name)
        if node is None or len(found) >= MOST:
            break
        if node.op_type not in MOVING:
            found.append(node.op_type)
        name = next((given for given in node.input if given in makers), "")
    return tuple(found)
