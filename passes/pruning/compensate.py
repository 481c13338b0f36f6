"""Pruning with refit: each layer's survivors, and its bias, make up for what went, on calibration data.

Layers go in graph order. Each is measured on the activations of the model as pruned so far, against what the original
gives there (behind a residual Add: against the original's sum), so that a layer also repairs what the layers before
it lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Array, Graph
from onnxcomp.layers.layer import Layer
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.passes.pruning.allocate import Curve
from onnxcomp.passes.pruning.layers import stages, target_of
from onnxcomp.passes.pruning.select import (
    Importance,
    Pattern,
    costs,
    densities,
    pattern_rounds,
    random_scores,
    rounds,
)
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.runtime.gram import Gram, batch_shapes, gram, grams

CURVE_STEP = 0.6  # from one point of an error curve to the next
FAR_BELOW = 1 / 32  # of the share that survives everywhere: no layer is worth so little
CURVE_FLOPS = 1e10  # of one refit: curves are compared with each other, and each point starts from the one before
BATCH = 32

Plan = int | Pattern | Array
"""How a layer is pruned: survivors in all, n of every m, or the mask itself, laid out as the weight."""

NOT_FINITE = "its inputs overflow or hold NaN on the calibration data"


@dataclass
class Compensation:
    """One run over a graph.

    Attributes:
        graph: changed in place.
        importance: how weights of a layer are ranked.
        damping: ridge of the refit, as a share of the mean diagonal of E[x x^T].
        errors: relative error of each pruned layer by node name.
        unmeasured: layers whose statistics turned out to be unusable, by node name, with the reason.
    """

    graph: Graph
    context: PassContext
    importance: Importance
    damping: float
    errors: dict[str, float] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)

    def curves(self, layers: Sequence[Layer], share: float) -> dict[str, Curve]:
        """Error curves by node name, on the original's activations; layers that cannot be measured are left out.

        Args:
            share: of all weights that are to survive; far below it no layer will end, so that none is measured there.
        """
        found = {}
        for layer, moments in self._moments(layers):
            problem = self._problem(layer, moments)
            size = int(np.count_nonzero(problem.old))
            shares = curve_shares(size, share)
            keeps = [round(share * size) for share in shares]
            noise = self._noise(layer, problem)
            steps = rounds(problem, keeps, self.importance, noise, flops=CURVE_FLOPS, final=False)
            errors = [problem.relative_error(w) for _, w in steps]
            found[layer.node.name] = Curve(size, shares, [min(e, 1.0) for e in errors])
        return found

    def scores(self, layers: Sequence[Layer]) -> dict[str, tuple[Array, Array]]:
        """What removing a weight costs without any refit, as a share of the layer's output energy, by node name.

        Two factors [group, out, 1] and [group, 1, in] float32: the score of a weight is their product times w^2.
        """
        found = {}
        for layer, moments in self._moments(layers):
            problem = self._problem(layer, moments)
            energy = float((problem.power * problem.row_weights).sum()) or 1.0
            rows = (problem.row_weights[..., None] / energy).astype(np.float32)
            found[layer.node.name] = rows, costs(problem, self.importance).astype(np.float32)
        return found

    def apply(self, plans: Mapping[Layer, Plan]) -> None:
        """Prune and refit, in graph order; layers that cannot be measured are left as they are."""
        reference = self.graph.clone()
        pending = {layer.node for layer in plans}
        shapes = batch_shapes(self.graph, self._samples, BATCH)
        ordered = list(stages(self.graph, list(plans), memory=self.context.memory.moments))
        for stage in self.context.progress.track(ordered, len(ordered), "pruning and refitting"):
            targets = {one.node.name: target_of(self.graph, one, pending, shapes) for one in stage}
            moments = gram(
                self.graph,
                [one.use for one in stage],
                self._samples,
                targets=targets,
                reference=reference,
                shapes=shapes,
                batch=BATCH,
                threads=self.context.threads,
                budget_bytes=self.context.memory.activations,
                seed=self.context.seed,
            )
            for layer in stage:
                self._prune(layer, moments.pop(layer.node.name), plans[layer])
                pending.discard(layer.node)

    @property
    def _samples(self) -> SampleSource:
        assert self.context.calibration is not None
        return self.context.calibration

    def _prune(self, layer: Layer, moments: Gram, plan: Plan) -> None:
        if not moments.finite:
            self.unmeasured[layer.node.name] = NOT_FINITE
            return
        problem = self._problem(layer, moments)
        mask, w = self._solved(layer, problem, plan)
        w = problem.best(mask, w)
        self.errors[layer.node.name] = problem.relative_error(w)
        layer.write(self.graph, w, problem.bias(w))

    def _solved(self, layer: Layer, problem: Problem, plan: Plan) -> tuple[Array, Array]:
        noise = self._noise(layer, problem)
        if isinstance(plan, Pattern):
            return pattern_rounds(problem, plan, self.importance, noise)
        if isinstance(plan, int):
            size = max(int(np.count_nonzero(problem.old)), 1)
            keeps = [*(round(d * size) for d in densities(plan / size)[:-1]), plan]
            *_, last = rounds(problem, keeps, self.importance, noise)
            return last
        mask = layer.unfolded(plan) & (problem.old != 0)
        return mask, problem.refit(mask, problem.old)

    def _problem(self, layer: Layer, moments: Gram) -> Problem:
        return Problem.of(moments, layer.weights(), layer.bias_values(), self.damping)

    def _noise(self, layer: Layer, problem: Problem) -> Array | None:
        if self.importance != "random":
            return None
        return random_scores(layer.use.constant.name, problem.old.shape, self.context.seed)

    def _moments(self, layers: Sequence[Layer]) -> Iterator[tuple[Layer, Gram]]:
        """Moments of the graph as it is, a group of layers in memory at a time; unusable ones are recorded."""
        by_name = {layer.node.name: layer for layer in layers}
        for group in grams(
            self.graph,
            [layer.use for layer in layers],
            self._samples,
            group_bytes=self.context.memory.moments,
            batch=BATCH,
            threads=self.context.threads,
            seed=self.context.seed,
            progress=self.context.progress,
        ):
            for name, moments in group.items():
                if moments.finite:
                    yield by_name[name], moments
                else:
                    self.unmeasured[name] = NOT_FINITE


def curve_shares(size: int, share: float) -> list[float]:
    """Shares of survivors at which the error of a tensor of `size` weights is measured.

    Down to about one weight, to one in a thousand, or to a small part of the `share` that survives of all tensors.
    """
    lowest = max(1e-3, share * FAR_BELOW)
    shares = [CURVE_STEP]
    while shares[-1] * CURVE_STEP * size >= 1 and shares[-1] > lowest:
        shares.append(shares[-1] * CURVE_STEP)
    return shares
