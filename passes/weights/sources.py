"""Which stored tensors hold weights, whoever reads them? For forms that are decoded when the model is loaded.

Decoding gives back the tensor whatever reads it: a fused operator, an Einsum, a Slice in both branches of an If. So all
that must be known of a reader is that it takes numbers and no scales or sizes; which axis the scales run along is
then chosen by the error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod

import numpy as np

from onnxcomp.graph.coded import coded_weights
from onnxcomp.graph.cost import parameter_elements
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Variable
from onnxcomp.graph.rounding import Levels, round_nearest, symmetric_scales
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import Outcome
from onnxcomp.ops.facts import Operators, Weight

LEAST_ELEMENTS = 256  # the nodes that decode a weight take about as much
ELEMENTS_A_SCALE = 16  # fewer would make the scales too large a part of what is stored
LOOKED_AT = 2**20  # elements by which an axis is chosen
LEVELS = Levels.signed(8)
FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})


def stored_weights(graph: Graph, operators: Operators) -> dict[Constant, str]:
    """Every floating point matrix or larger tensor of the model, with the reason why it must stay as it is, or ""."""
    coded = {constant for found in coded_weights(graph) for constant in (found.codes, *found.helpers)}
    return {
        constant: _unfit(graph, constant, operators)
        for constant in graph.constants()
        if constant.dtype.name in FLOATS
        and constant not in coded
        and constant.consumers  # else it is an output and nothing more
        and len(constant.shape) > 1
        and constant.size >= LEAST_ELEMENTS
        and _is_weight(constant, operators)
    }


def other_weights(
    graph: Graph, operators: Operators, known: Collection[Constant], wanted: Callable[[Node], bool], outcome: Outcome
) -> list[WeightUse]:
    """Weights that no operator's facts name: of operators that nobody knows, or behind nodes that reorder or convert.

    Tensors that are only added or multiplied element by element are no weights of a product; they are skipped.
    """
    found = []
    for constant, unfit in stored_weights(graph, operators).items():
        if constant in known:
            continue
        node = reader(constant)
        if not (wanted(node) or any(wanted(consumer) for consumer in constant.consumers)):
            why = "not selected by include and exclude"
        elif operators.facts(node).elementwise:
            why = f"{constant.name} is joined element by element: store-weights takes it, as far as the outputs allow"
        else:
            why = unfit
        if why:
            outcome.skip(node, why)
        else:
            found.append(WeightUse(node, described(constant, operators), constant))
    return found


def _is_weight(constant: Constant, operators: Operators) -> bool:
    """Whether no reader takes the tensor for scales, zero points or sizes."""
    return all(
        parameter_elements(node, port, constant, operators)
        for node in constant.consumers
        for port, tensor in enumerate(node.inputs)
        if tensor is constant
    )


def _unfit(graph: Graph, constant: Constant, operators: Operators) -> str:
    if graph.is_output(constant):
        return f"{constant.name} is an output of the model itself"
    if constant in graph.root.kept_inputs:
        return f"{constant.name} is listed as an input, so a caller may replace it"
    if constant.stored is not None and not hasattr(constant.stored.proto, "data_type"):
        return f"{constant.name} is stored as a sparse tensor"
    for node in constant.consumers:
        facts = operators.facts(node)
        if any(node.input(port) is constant for port in facts.statistics_ports):
            return f"{constant.name} holds statistics of {node}"
    return ""


def readers(constant: Constant) -> list[Node]:
    """The nodes that a weight is for: its readers, looked at through nodes that only move or convert constants."""
    found: dict[Node, None] = {}
    waiting, seen = list(constant.consumers), set[Node]()
    while waiting:
        node = waiting.pop(0)
        following = [reader for output in node.outputs for reader in output.consumers]
        if node in seen:
            continue
        seen.add(node)
        if _computed(node) or not following:
            found[node] = None
        else:
            waiting += following
    return list(found)


def reader(constant: Constant) -> Node:
    """The first of its readers."""
    return readers(constant)[0]


def _computed(node: Node) -> bool:
    """Whether a node reads anything that is known at run time only."""
    waiting, seen = [t for t in node.inputs if t.name], set[Variable]()
    while waiting:
        tensor = waiting.pop()
        if isinstance(tensor, Constant) or tensor in seen:
            continue
        seen.add(tensor)
        if tensor.producer is None or tensor.producer.bodies:
            return True
        waiting.extend(t for t in tensor.producer.inputs if t.name)
    return bool(node.bodies)


def described(constant: Constant, operators: Operators) -> Weight:
    """What the axes of a weight mean: as the operator that reads it says, else as the error is least."""
    for node in constant.consumers:
        for weight, held in operators.weights(node):
            if held is constant:
                return weight
    return along(constant, best_axis(constant))


def along(constant: Constant, axis: int) -> Weight:
    """A weight of which nothing is known but the axis that its scales run along."""
    rest = tuple(a for a in range(len(constant.shape)) if a != axis)
    return Weight(0, out_axis=axis, in_axes=rest)


def best_axis(constant: Constant) -> int:
    """The axis along which one scale for each index leaves the smallest error, judged on a part of a large tensor."""
    shape = constant.shape
    values = _part(constant.values.astype(np.float32, copy=False))
    fits = [axis for axis, size in enumerate(shape) if 1 < size <= constant.size // ELEMENTS_A_SCALE]
    if not fits or not np.isfinite(values).all():
        return int(np.argmin(shape))
    return min(fits, key=lambda axis: (_error(values, axis), shape[axis]))


def _part(values: Array) -> Array:
    """Evenly drawn indices of the longest axis, so that about LOOKED_AT elements are left."""
    axis = int(np.argmax(values.shape))
    step = max(1, prod(values.shape) // LOOKED_AT)
    return values[tuple(slice(None, None, step) if a == axis else slice(None) for a in range(values.ndim))]


def _error(values: Array, axis: int) -> float:
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    scales = symmetric_scales(rows, LEVELS)
    return float(np.square(rows - round_nearest(rows, scales, LEVELS) * scales[:, None], dtype=np.float64).sum())
