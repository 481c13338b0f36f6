"""What does the removal of each residual branch cost, once the layer in front of it makes up for what it can?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcomp.graph.branches import Branch, branches, drop, innermost, stand_in
from onnxcomp.graph.ir import Graph, Node, Variable
from onnxcomp.layers.layer import Layer, kernels, residual_of
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.pruning.layers import refittable
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.passes.structure.readers import MOST_MOMENT_BYTES, ridge
from onnxcomp.runtime.gram import Gram, Target, batch_shapes, gram, moment_bytes
from onnxcomp.runtime.taps import stream

BATCH = 32


def branch_errors(graph: Graph, found: Sequence[Branch], context: PassContext, damping: float) -> dict[str, float]:
    """The error of each sum without its branch, as a share of the sum's energy, by name of the branch.

    That is the branch's own energy, or less where one layer makes the stream and can be solved again to come nearer to
    the sum; that layer sees what entered it before.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    assert context.calibration is not None
    energy = _energies(graph, {t.name for branch in found for t in (branch.dropped, branch.total)}, context)
    errors = {
        branch.name: min(energy[branch.dropped.name] / max(energy[branch.total.name], 1e-30), 1.0) for branch in found
    }
    makers = _makers(graph, context)
    works: dict[str, tuple[Branch, Layer, str]] = {}
    for branch in found:
        place = stand_in(graph, branch)
        if place is not None and place in makers:
            layer, minus = makers[place]
            works[layer.node.name] = branch, layer, minus
    moments = gram(
        graph,
        [layer.use for _, layer, _ in works.values()],
        context.calibration,
        targets={name: Target(branch.total.name, minus) for name, (branch, _, minus) in works.items()},
        batch=BATCH,
        threads=context.threads,
        budget_bytes=context.memory.activations,
        seed=context.seed,
        progress=context.progress,
    )
    for name, (branch, layer, _) in works.items():
        if moments[name].finite:
            error = _refitted(layer, moments[name], energy[branch.total.name], damping)
            errors[branch.name] = min(errors[branch.name], error)
    return errors


def drop_all(graph: Graph, found: Sequence[Branch]) -> tuple[set[Node], dict[str, str]]:
    """Take branches out, in place.

    Returns:
        The nodes whose inputs or aims are not what they were, and the aims: tensors of the graph by name, with the name
        of the tensor of the original that each stands in for.
    """
    touched: set[Node] = set()
    aims: dict[str, str] = {}
    for branch in found:
        place, kept, total = stand_in(graph, branch), branch.kept, branch.total.name
        drop(graph, branch)
        touched.update(kept.outputs)
        if place is not None:
            aims[place.name] = total
            touched.update(node for node in graph.nodes if _leads_to(node, place))
    graph.sort()
    return touched & set(graph.nodes), aims


def _leads_to(node: Node, place: Variable) -> bool:
    """Whether a node makes the tensor, alone or as a summand."""
    output = node.output()
    if output is place:
        return True
    return output is not None and any(reader.op == "Add" and reader.outputs[0] is place for reader in output.outputs)


def without(graph: Graph, names: Sequence[str], context: PassContext) -> Graph:
    """A copy without some branches, by name, not made good."""
    copy = graph.clone()
    if names:
        found = innermost(branches(copy, context.operators, context.sample_shapes))
        drop_all(copy, [branch for branch in found if branch.name in names])
    return copy


def _refitted(layer: Layer, moments: Gram, energy: float, damping: float) -> float:
    old = layer.weights()
    problem = Problem.of(moments, old, layer.bias_values(), ridge(moments, damping))
    error = problem.error(problem.refit(np.ones(old.shape, bool), old))
    return float(error.sum()) / max(energy * error.size, 1e-30)


def _makers(graph: Graph, context: PassContext) -> Mapping[Variable, tuple[Layer, str]]:
    """The layer that makes a tensor, by itself or as one of two summands, and the name of the other summand."""
    assert context.calibration is not None
    shapes = batch_shapes(graph, context.calibration, BATCH)
    found: dict[Variable, tuple[Layer, str]] = {}
    for use in kernels(graph, context.operators):
        layer = refittable(graph, use) if use.weight.group == 1 else "in groups"
        if not isinstance(layer, Layer) or moment_bytes(use) > MOST_MOMENT_BYTES:
            continue
        found[layer.output] = layer, ""
        behind = residual_of(graph, layer.output, shapes)
        if behind is not None:
            found[behind.total] = layer, behind.other.name
    return found


def _energies(graph: Graph, names: set[str], context: PassContext) -> dict[str, float]:
    """Mean square of tensors."""
    assert context.calibration is not None
    sums = dict.fromkeys(sorted(names), 0.0)
    counts = dict.fromkeys(sorted(names), 0)
    for values in stream(graph, list(sums), context.calibration, batch=BATCH, threads=context.threads):
        for name, array in values.items():
            sums[name] += float(np.square(array, dtype=np.float64).sum())
            counts[name] += array.size
    return {name: total / max(counts[name], 1) for name, total in sums.items()}
