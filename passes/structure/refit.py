"""What do the layers that lost inputs become? Weights and biases solved again, on what now enters them.

Layers go in graph order. Each is measured on the activations of the graph as cut and refitted so far, against what the
original gives there (behind a residual Add: against the original's sum), so that a layer also repairs what the layers
before it lost. Where a Relu or Clip follows, errors in its flat stretches do not count: see `structure.flat`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.layer import Layer
from onnxcomp.manager.base import Outcome, PassContext, SampleSource
from onnxcomp.passes.pruning.layers import MOST_STAGES, stages, target_of
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.passes.structure.flat import flat_stretch, past_the_flat
from onnxcomp.passes.structure.readers import ridge
from onnxcomp.runtime.gram import MAX_ROWS, Gram, Target, gram, gram_of, needed
from onnxcomp.runtime.stages import Stages, peak_bytes

BATCH = 32
SPOOLED_BYTES = 1 << 32  # activations of all samples that lie in temporary files, of both graphs


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

    def report(self, outcome: Outcome) -> None:
        """Say what became of each layer."""
        for name, after in self.after.items():
            outcome.change(name, f"solved again: error {self.before[name]:.2%} -> {after:.2%} of its output")
        for name, why in self.skipped.items():
            outcome.skip(name, f"not solved again: {why}")


@dataclass(frozen=True)
class Effort:
    """How thorough a refit is.

    Attributes:
        samples: calibration samples it looks at.
        rows: most rows of a layer.
    """

    samples: SampleSource
    rows: int = MAX_ROWS


def refit(
    graph: Graph,
    reference: Graph,
    cuts: Sequence[Cut],
    context: PassContext,
    damping: float,
    aims: Mapping[str, str],
    effort: Effort,
) -> Refit:
    """Solve the layers again, in place.

    Args:
        reference: the graph before the cut; its tensors bear the same names.
        damping: ridge as a share of the mean diagonal of E[x x^T]; it pulls towards the weights as they were.
        aims: tensors of the graph that stand in for others, and the names of those in the reference.

    Raises:
        ModelError: ONNX Runtime cannot run a graph.
    """
    found = Refit()
    by_layer = {one.layer: one for one in cuts}
    pending = {one.layer.node for one in cuts}
    shapes = shape_tools.infer(graph)
    measured = _measurer(graph, reference, [one.layer for one in cuts], context, aims, effort)
    most = len(cuts) if isinstance(measured, _Staged) else MOST_STAGES
    ordered = list(stages(graph, [one.layer for one in cuts], most=most, memory=context.memory.moments))
    for stage in context.progress.track(ordered, len(ordered), "compensating"):
        plain = {one.node.name: _target(graph, by_layer[one], pending, shapes) for one in stage}
        targets = {n: replace(t, reference=aims.get(t.reference, t.reference)) for n, t in plain.items()}
        moments = measured(stage, targets)
        for layer in stage:
            name = layer.node.name
            _solve(graph, by_layer[layer], plain[name].reference, moments.pop(name), damping, found)
            pending.discard(layer.node)
    return found


def side_by_side(graph: Graph, context: PassContext, samples: int) -> bool:
    """Whether a graph and its cut can be run node by node on all samples, what they give held in memory and on disk."""
    shapes = shape_tools.infer(graph, shape_tools.one_sample(graph, context.sample_shapes))
    return 2 * peak_bytes(graph, shapes) * samples <= SPOOLED_BYTES


def _measurer(
    graph: Graph,
    reference: Graph,
    layers: Sequence[Layer],
    context: PassContext,
    aims: Mapping[str, str],
    effort: Effort,
) -> Callable[[Sequence[Layer], Mapping[str, Target]], dict[str, Gram]]:
    """How moments are taken: each node of both graphs run once where all samples' activations fit memory and disk,
    else both run up to the layers anew."""
    if side_by_side(reference, context, len(effort.samples)):
        return _Staged(graph, reference, layers, context, aims, effort)

    def streamed(stage: Sequence[Layer], targets: Mapping[str, Target]) -> dict[str, Gram]:
        return gram(
            graph,
            [layer.use for layer in stage],
            effort.samples,
            targets=targets,
            reference=reference,
            batch=BATCH,
            threads=context.threads,
            max_rows=effort.rows,
            seed=context.seed,
            budget_bytes=context.memory.activations,
            hold_bytes=context.memory.rows // len(stage),
        )

    return streamed


class _Staged:
    """Moments from two graphs that run side by side, each node once."""

    def __init__(
        self,
        graph: Graph,
        reference: Graph,
        layers: Sequence[Layer],
        context: PassContext,
        aims: Mapping[str, str],
        effort: Effort,
    ) -> None:
        self.graph, self.seed, self.rows, self.held = graph, context.seed, effort.rows, context.memory.rows
        batches = list(effort.samples.batches(BATCH))
        self.names = reference.tensors()
        self.here = Stages(graph, batches, context.threads, memory=context.memory.staged // 2)
        self.there = Stages(
            reference, batches, context.threads, keep=self._wanted(layers, aims), memory=context.memory.staged // 2
        )

    def __call__(self, stage: Sequence[Layer], targets: Mapping[str, Target]) -> dict[str, Gram]:
        uses, own = [layer.use for layer in stage], self.graph.tensors()
        here, there = needed(self.graph, uses, targets)
        values = [
            [dict(zip(names, arrays, strict=True)) for arrays in stages.get([tensors[name] for name in names])]
            for stages, tensors, names in ((self.here, own, here), (self.there, self.names, there))
        ]
        self.there.keep -= {self.names[name] for name in there}
        return gram_of(
            self.graph,
            uses,
            list(zip(*values, strict=True)),
            targets=targets,
            max_rows=self.rows,
            seed=self.seed,
            hold_bytes=self.held // len(stage),
        )

    def _wanted(self, layers: Sequence[Layer], aims: Mapping[str, str]) -> Iterator[Tensor]:
        """Tensors of the reference that a layer may aim at."""
        for layer in layers:
            output = layer.output
            sums = [node.outputs[0] for node in output.outputs if node.op == "Add"]
            for tensor in (output, *sums):
                name = aims.get(tensor.name, tensor.name)
                if name in self.names:
                    yield self.names[name]


def _target(graph: Graph, cut: Cut, pending: Collection[Node], shapes: Shapes) -> Target:
    if not cut.outputs.all():
        return Target(cut.layer.output.name, left=tuple(cut.outputs.tolist()))
    return target_of(graph, cut.layer, pending, shapes)


def _solve(graph: Graph, one: Cut, at: str, moments: Gram, damping: float, found: Refit) -> None:
    layer, name = one.layer, one.layer.node.name
    if not moments.finite:
        found.skipped[name] = "its inputs overflow or hold NaN on the calibration data"
        return
    old = layer.weights()
    problem = Problem.of(moments, old, layer.bias_values(), ridge(moments, damping))
    mask = np.ones(old.shape, bool)
    w = problem.best(mask, problem.refit(mask, old))
    bias = problem.bias(w)
    found.before[name], found.after[name] = problem.relative_error(old), problem.relative_error(w)
    if moments.rows is not None and (stretch := flat_stretch(graph, graph.tensors()[at])) is not None:
        w, bias = past_the_flat(moments.rows, problem, w, bias, stretch)
    layer.write(graph, w, bias)
