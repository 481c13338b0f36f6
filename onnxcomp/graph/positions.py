"""Which nodes compute with positions: counts, grids of coordinates, phases? They grow with length or picture size.

Such numbers are right at one size and lose their digits at a larger one, so nothing that is calibrated tells. They are
found by structure: what a Range, a running sum or an index became when it was cast to float, constants whose values are
an even grid, and what a sine or cosine is taken of.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxcomp.graph.ir import Constant, Graph, Node, Tensor
from onnxcomp.graph.literals import literal
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators

COUNTING = frozenset({"Range", "CumSum", "NonZero", "ArgMax", "ArgMin", "TopK"})
PERIODIC = frozenset({"Sin", "Cos"})
BOUNDED = PERIODIC | {
    "Sigmoid",
    "HardSigmoid",
    "Tanh",
    "Softmax",
    "LogSoftmax",
    "Erf",
    "Sign",
}  # forget how large it was
LEAST_STEPS, LEAST_SPREAD = 16, 16.0  # of a grid: fewer or closer ones keep their digits in any precision
MOST_VALUES = 1 << 22  # of a constant that is looked at


def positional(graph: Graph, shapes: Shapes, operators: Operators) -> dict[Node, str]:
    """Nodes of the main graph that work on positions, with the reason in words."""
    found: dict[Node, str] = {}
    reading = "it computes with positions, which grow with length or size"
    waiting = [node for node in graph.nodes if _is_source(node, shapes, operators)]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found[node] = reading
        if node.op not in BOUNDED and not _multiplies(node, operators):
            waiting += [r for t in node.outputs for r in t.consumers if _carries(r, operators) or r.op in BOUNDED]
    phases = "a sine or cosine is taken of what it computes, and half precision keeps no phase of many turns"
    waiting = [node for node in graph.nodes if node.op in PERIODIC]
    while waiting:
        node = waiting.pop()
        if node.op not in PERIODIC and node in found:
            continue
        found[node] = phases
        if node.op in PERIODIC or _carries(node, operators) or _outer(node, shapes):
            waiting += [m for m in _makers(node) if _carries(m, operators) or _multiplies(m, operators)]
    return found


def is_grid(values: np.ndarray) -> bool:
    """Whether a constant holds an even grid: many different values, wide apart, all on multiples of one step."""
    if not LEAST_STEPS <= values.size <= MOST_VALUES or values.dtype.kind not in "fiu":
        return False
    distinct = np.unique(values.astype(np.float64))
    if len(distinct) < LEAST_STEPS or not np.isfinite(distinct).all() or distinct[-1] - distinct[0] < LEAST_SPREAD:
        return False
    steps = (distinct - distinct[0]) / np.diff(distinct).min()
    return bool(np.abs(steps - np.round(steps)).max() < 1e-3 and steps[-1] < 4 * MOST_VALUES)


def _is_source(node: Node, shapes: Shapes, operators: Operators) -> bool:
    if node.op in ("Range", "CumSum"):
        return _is_float(node.outputs[0], shapes)
    if node.op == "Cast" and _is_float(node.outputs[0], shapes) and not _is_float(node.inputs[0], shapes):
        return _counts(node.inputs[0], shapes)
    if not operators.facts(node).elementwise or len(node.inputs) < 2:
        return False
    held = [c for t in node.inputs if t.name and (c := literal(t)) is not None and c.dtype.kind == "f"]
    return any(c.size >= LEAST_STEPS and is_grid(c.values) for c in held)


def _counts(tensor: Tensor, shapes: Shapes) -> bool:
    """Whether integers come from counting, directly or through arithmetic on integers."""
    seen: set[Tensor] = set()
    waiting = [tensor]
    while waiting:
        item = waiting.pop()
        if item in seen or not item.name:
            continue
        seen.add(item)
        constant = literal(item)
        if constant is not None:
            if constant.size >= LEAST_STEPS and is_grid(constant.values):
                return True
            continue
        maker = item.producer
        if maker is None or _is_float(item, shapes):
            continue
        if maker.op in COUNTING:
            return True
        if shapes.dtype(item) != np.dtype(bool):
            waiting.extend(maker.inputs)
    return False


def _is_float(tensor: Tensor, shapes: Shapes) -> bool:
    dtype = shapes.dtype(tensor)
    return dtype is not None and dtype.kind == "f"


def _carries(node: Node, operators: Operators) -> bool:
    """Whether a node hands positions on: it moves them, or works on each alone."""
    facts = operators.facts(node)
    return node.op not in BOUNDED and (facts.moves_data or facts.elementwise) and not node.bodies


def _multiplies(node: Node, operators: Operators) -> bool:
    return node.op in ("MatMul", "Gemm", "Conv", "Einsum") or bool(operators.facts(node).weights(node))


def _outer(node: Node, shapes: Shapes) -> bool:
    """Whether a product sums nothing up: positions times frequencies, written as a matrix product."""
    shape = shapes.shape(node.inputs[0]) if node.op == "MatMul" else None
    return bool(shape) and shape is not None and shape[-1] == 1


def _makers(node: Node) -> Iterable[Node]:
    return [t.producer for t in node.inputs if not isinstance(t, Constant) and t.producer is not None]
