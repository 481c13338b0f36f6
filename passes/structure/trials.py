"""What does a cut really cost? It is carried out on a copy, made good on few samples, and judged on others.

Errors of single layers do not add up: layers behind a loss repair a part of it, and the fewer are left the less. So of
a few candidates the one is taken whose outputs are nearest to the original's on calibration samples that its refit did
not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.branches import branches, innermost
from onnxcomp.graph.coupling.analysis import Coupling, analyse
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.passes.structure.allocate import Choice
from onnxcomp.passes.structure.blocks import drop_all
from onnxcomp.passes.structure.readers import readers
from onnxcomp.passes.structure.refit import BATCH, Effort, Refit
from onnxcomp.passes.structure.solving import solve_again, to_solve, whole
from onnxcomp.runtime.taps import samples_in

SOLVED, JUDGED = 128, 128  # samples
ROWS = 8192  # of a layer
BREADTH, DEPTH = 2, 4  # branches tried for each place, and places
WORK = 1e11  # multiply-accumulates that running one candidate may take
LEAST_SAMPLES = 32
HARDLY, NOTHING = 1.02, 1e-5  # times the loss of the best, and a loss that nobody sees


@dataclass(frozen=True)
class Candidate:
    """What could leave: units by choice, in the order of its curve, and branches by name."""

    removed: tuple[int, ...]
    dropped: tuple[str, ...] = ()


class Portion:
    """Whole batches of a source that begin within a stretch of its samples."""

    def __init__(self, source: SampleSource, start: int, count: int) -> None:
        self.whole, self.start, self.count = source, start, count
        self.labels: Array | None = None
        self.source = source.source

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Feeds of a size that refits and trials take."""
        return self.batches(BATCH)

    def batches(self, size: int | None = None) -> Iterator[dict[str, Array]]:
        """Feeds by input name."""
        seen = 0
        for feeds in self.whole.batches(size):
            if seen >= self.start + self.count:
                return
            if seen >= self.start:
                yield feeds
            seen += samples_in(self.whole, feeds, size)


def carry_out(
    graph: Graph,
    choices: Sequence[Choice],
    candidate: Candidate,
    context: PassContext,
    damping: float | None,
    effort: Effort | None = None,
) -> Refit | None:
    """Cut, drop, and with a damping solve again, in place."""
    coupling = analyse(graph, context.operators, context.sample_shapes)
    groups = {group.name: group for group in coupling.groups}
    removed = np.zeros(coupling.unit_count, bool)
    for choice, count in zip(choices, candidate.removed, strict=True):
        if count:
            removed[groups[choice.group.name].units[choice.curve.order[:count]]] = True
    found = innermost(branches(graph, context.operators, context.sample_shapes)) if candidate.dropped else []
    reference = graph.clone() if damping is not None else None
    touched = [group for group in coupling.groups if removed[group.units].any()]
    lost = {r.use.node for g in touched for r in readers(graph, g, context.operators) if r.layer is not None}
    outputs = _outputs(coupling, removed, context)
    cut(coupling, np.flatnonzero(removed))
    behind, aims = drop_all(graph, [branch for branch in found if branch.name in candidate.dropped])
    if damping is None or reference is None:
        return None
    uses = {use: outputs.get(use.constant, whole(use)) for use in to_solve(graph, lost | behind, context)}
    return solve_again(graph, reference, uses, context, damping, aims, effort)


def _outputs(coupling: Coupling, removed: Array, context: PassContext) -> dict[Constant, Array]:
    """By weight, which outputs of the original stay."""
    found = {}
    for node in coupling.graph.nodes:
        for weight, constant in context.operators.weights(node):
            units = coupling.axes(constant)[weight.out_axis % len(constant.shape)]
            if units is not None:
                found[constant] = ~removed[units]
    return found


class Trials:
    """Carries out candidates on copies of a graph and judges them.

    Args:
        graph: stays as it is.
        damping: of the refit; None where nothing is solved again.
        macs: of one sample; a larger model is tried on fewer samples.
    """

    def __init__(
        self, graph: Graph, choices: Sequence[Choice], context: PassContext, damping: float | None, macs: int
    ) -> None:
        assert context.calibration is not None
        self.graph, self.choices, self.context, self.damping = graph, choices, context, damping
        count = len(context.calibration)
        most = max(int(WORK / max(macs, 1)), LEAST_SAMPLES)
        judged = min(JUDGED, most, count // 4)
        solved = min(SOLVED, most, count - judged)
        self.effort = Effort(Portion(context.calibration, 0, solved), ROWS)
        self.reference = context.reference(graph, Portion(context.calibration, count - judged, judged))
        self.known: dict[Candidate, float] = {}

    def loss(self, candidate: Candidate) -> float:
        """Squared error of the worst part of the outputs, as a share of its signal."""
        if candidate not in self.known:
            copy = self.graph.clone()
            carry_out(copy, self.choices, candidate, self.context, self.damping, self.effort)
            self.known[candidate] = self.reference.noise_share(copy)
        return self.known[candidate]


def search(
    order: Sequence[str], widths: Callable[[tuple[str, ...]], Candidate | None], loss: Callable[[Candidate], float]
) -> Candidate | None:
    """Which branches leave besides channels: one more after the other, as long as that is better.

    Args:
        order: branches that may leave, the most promising first.
        widths: the channels that leave beside given branches so that the target is met; None where it cannot be.
        loss: of a candidate.

    Returns:
        The best candidate; None where none meets the target.
    """
    best, least = widths(()), np.inf
    if best is not None:
        least = loss(best)
    dropped: tuple[str, ...] = ()
    for _ in range(DEPTH):
        here: list[tuple[float, tuple[str, ...], Candidate | None]] = []
        for name in [name for name in order if name not in dropped][:BREADTH]:
            more = (*dropped, name)
            candidate = widths(more)
            here.append((loss(candidate) if candidate is not None else np.inf, more, candidate))
        if not here:
            break
        found, dropped, candidate = min(here, key=lambda one: one[0])
        if candidate is None and best is None:
            continue  # more must leave before the target can be met
        if candidate is None or found >= least:
            break
        best, least = candidate, found
    return best


def hardly_worse(candidates: Sequence[Candidate], loss: Callable[[Candidate], float]) -> Candidate:
    """The last of some candidates that loses hardly more than the best of them."""
    most = max(HARDLY * min(loss(candidate) for candidate in candidates), NOTHING)
    return next(candidate for candidate in reversed(candidates) if loss(candidate) <= most)
