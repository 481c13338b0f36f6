"""What do the layers that lost inputs become? Weights and biases solved again, on what now enters them.

Layers go in graph order. Each is measured on the activations of the graph as cut and refitted so far, against what the
original gives there (behind a residual Add: against the original's sum), so that a layer also repairs what the layers
before it lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.pruning.layers import Layer, stages, target_of
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.passes.structure.readers import ridge
from onnxcomp.runtime.gram import GROUP_BYTES, Gram, Target, gram

BATCH = 32


@dataclass(frozen=True)
class Cut:
    """A layer that lost inputs.

    Attributes:
        layer: of the graph as cut.
        outputs: bool [outputs of the original]: which it still has.
    """

    layer: Layer
    outputs: Array


@dataclass
class Refit:
    """Errors by node name: share of the target's energy before and after the refit. `skipped`: reason by name."""

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def refit(graph: Graph, reference: Graph, cuts: Sequence[Cut], context: PassContext, damping: float) -> Refit:
    """Solve the layers again, in place.

    Args:
        reference: the graph before the cut; its tensors bear the same names.
        damping: ridge as a share of the mean diagonal of E[x x^T]; it pulls towards the weights as they were.

    Raises:
        ModelError: ONNX Runtime cannot run a graph.
    """
    found = Refit()
    by_layer = {one.layer: one for one in cuts}
    pending = {one.layer.node for one in cuts}
    shapes = shape_tools.infer(graph)
    ordered = list(stages(graph, [one.layer for one in cuts], memory=GROUP_BYTES))
    assert context.calibration is not None
    for stage in context.progress.track(ordered, len(ordered), "compensating"):
        targets = {}
        for layer in stage:
            plain = Target(layer.output.name)
            whole = bool(by_layer[layer].outputs.all())
            targets[layer.node.name] = target_of(graph, layer, pending, shapes) if whole else plain
        moments = gram(
            graph,
            [layer.use for layer in stage],
            context.calibration,
            targets=targets,
            reference=reference,
            batch=BATCH,
            threads=context.threads,
            seed=context.seed,
        )
        for layer in stage:
            _solve(graph, by_layer[layer], moments.pop(layer.node.name), damping, found)
            pending.discard(layer.node)
    return found


def _solve(graph: Graph, one: Cut, moments: Gram, damping: float, found: Refit) -> None:
    layer, name = one.layer, one.layer.node.name
    moments = _those_left(moments, one.outputs, layer.group)
    if not moments.finite:
        found.skipped[name] = "its inputs overflow or hold NaN on the calibration data"
        return
    old = layer.weights()
    problem = Problem.of(moments, old, layer.bias_values(), ridge(moments, damping))
    mask = np.ones(old.shape, bool)
    w = problem.best(mask, problem.refit(mask, old))
    found.before[name] = problem.relative_error(old)
    found.after[name] = problem.relative_error(w)
    layer.write(graph, w, problem.bias(w))


def _those_left(moments: Gram, outputs: Array, group: int) -> Gram:
    """Targets of outputs that the layer still has."""
    if outputs.all() or moments.cross is None or moments.power is None:
        return moments
    left = outputs.reshape(group, -1)[0]  # convolution groups lose the same places
    return replace(moments, cross=moments.cross[..., left], power=moments.power[..., left])
