"""Which operators come last before each output?"""

from __future__ import annotations

from onnxcomp.graph.ir import Graph, Node

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


def tails_of(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Types of the last operators before each output, the last first, those that only move values left out.

    Followed along each operator's first input that another one computes.
    """
    makers = {out.name: node for node in graph.nodes for out in node.outputs if out.name}
    return {output.name: _tail(output.name, makers) for output in graph.outputs}


def _tail(name: str, makers: dict[str, Node]) -> tuple[str, ...]:
    found: list[str] = []
    for _ in range(4 * MOST):
        node = makers.get(name)
        if node is None or len(found) >= MOST:
            break
        if node.op not in MOVING:
            found.append(node.op)
        name = next((given.name for given in node.inputs if given.name in makers), "")
    return tuple(found)
