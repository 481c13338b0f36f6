"""How many units leave each group for a target, counted without a cut; and how far a target makes sense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxcomp.graph.branches import Branch
from onnxcomp.graph.coupling.analysis import Coupling
from onnxcomp.graph.coupling.costing import Costing, Saved
from onnxcomp.ops.facts import Operators
from onnxcomp.passes.structure.allocate import Choice, allocate, channels_each, even
from onnxcomp.passes.structure.latency import holders_of, inside
from onnxcomp.passes.structure.trials import Candidate

MOST_ERROR = (
    0.5  # of what the readers of a group give, or of a branch's sum: beyond half of it nothing is left to refit
)
LEAST_STAYS = 1 / 8  # of the units of a group whose error is not known
MOST_LOSS = 0.1  # of the outputs' variance: 10 dB, below which no model is taken unasked
ATTEMPTS = 5  # candidates that are carried out in search of one that loses no more
WORTH = 0.01  # of the cost: less is not worth a pruned model


@dataclass(frozen=True)
class Goal:
    """A share that is kept at most: of multiply-accumulates, parameters, units, or measured time."""

    kind: Literal["macs", "params", "units", "time"]
    kept: float

    @property
    def words(self) -> str:
        """As the option is written."""
        if self.kind == "units":
            return f"ratio={round(1 - self.kept, 6):g}"
        return f"{'latency' if self.kind == 'time' else self.kind}={self.kept:g}"

    @property
    def unit(self) -> str:
        """What is counted."""
        return {"macs": "MACs", "params": "parameters", "units": "units", "time": "time"}[self.kind]

    def share(self, choices: Sequence[Choice], costing: Costing) -> float:
        """The share that is left."""
        if self.kind == "macs":
            return costing.macs / max(costing.macs_at_first, 1)
        if self.kind == "params":
            return costing.params / max(costing.params_at_first, 1)
        each = np.zeros(len(costing.removed))
        for choice in choices:
            each[choice.group.units] = channels_each(choice.group)
        return 1 - float(each[costing.removed].sum()) / max(float(each.sum()), 1.0)

    def reached(self, choices: Sequence[Choice], costing: Costing) -> Callable[[], bool]:
        """Asks whether enough has left."""
        if self.kind == "macs":
            most = self.kept * costing.macs_at_first
            return lambda: costing.macs <= most
        if self.kind == "params":
            most = self.kept * costing.params_at_first
            return lambda: costing.params <= most
        total = sum(choice.group.size * channels_each(choice.group) for choice in choices)
        each = np.zeros(len(costing.removed))
        for choice in choices:
            each[choice.group.units] = channels_each(choice.group)
        wanted = (1 - self.kept) * total - 0.5
        return lambda: float(each[costing.removed].sum()) >= wanted


def within_sense(choice: Choice) -> Choice:
    """The counts after which a group still tells its readers something; a given width stays as it is."""
    if len(choice.counts) == 1:
        return choice
    if choice.curve.measured:
        kept = tuple(count for count in choice.counts if choice.curve.errors[count] <= MOST_ERROR * choice.curve.whole)
    else:
        kept = tuple(count for count in choice.counts if choice.group.size - count >= LEAST_STAYS * choice.group.size)
    return replace(choice, counts=kept or (0,) if 0 in choice.counts else choice.counts)


class Widths:
    """Finds the widths that meet a target; nothing is cut.

    Args:
        choices: what may leave each group; of one with a single count exactly that leaves.
        branches: those that may leave besides.
        scope: share the loss over all groups, or the same share of each.
    """

    def __init__(
        self,
        coupling: Coupling,
        choices: Sequence[Choice],
        branches: Sequence[Branch],
        operators: Operators,
        scope: Literal["global", "layer"],
    ) -> None:
        self.coupling, self.choices, self.branches = coupling, choices, branches
        self.operators, self.scope = operators, scope
        self._holders = holders_of(coupling, choices)

    def of(self, choices: Sequence[Choice]) -> Widths:
        """The same groups with other counts."""
        return Widths(self.coupling, choices, self.branches, self.operators, self.scope)

    def costing(self, candidate: Candidate) -> Costing:
        """What is left of the costs."""
        costing = Costing(self.coupling, self.operators)
        for branch in self.branches:
            if branch.name in candidate.dropped:
                costing.drop([branch.add, *branch.nodes])
        for choice, count in zip(self.choices, candidate.removed, strict=True):
            if count:
                costing.remove(choice.group.units[choice.curve.order[:count]])
        return costing

    def saved_by(self, branch: Branch, goal: Goal) -> float:
        """What the removal of a branch alone saves."""
        costing = self.costing(Candidate((0,) * len(self.choices), (branch.name,)))
        if goal.kind == "params":
            return costing.params_at_first - costing.params
        return costing.macs_at_first - costing.macs

    def given(self) -> Candidate:
        """What leaves where widths are given and nothing else."""
        return Candidate(tuple(choice.counts[0] if len(choice.counts) == 1 else 0 for choice in self.choices))

    def least(self, goal: Goal) -> float:
        """The share that is left when all leaves that may."""
        return goal.share(self.choices, self.costing(Candidate(tuple(choice.counts[-1] for choice in self.choices))))

    def meeting(self, goal: Goal, dropped: tuple[str, ...] = ()) -> Candidate | None:
        """Units that leave so that a target is met beside given branches; None where it cannot be."""
        gone = [branch for branch in self.branches if branch.name in dropped]
        costing = self.costing(Candidate((0,) * len(self.choices), dropped))
        at = [0] * len(self.choices)
        lost = {index for branch in gone for index in inside(branch, self._holders)}
        for index, choice in enumerate(self.choices):
            if len(choice.counts) == 1 and index not in lost:
                at[index] = choice.counts[0]
                costing.remove(choice.group.units[choice.curve.order[: at[index]]])
        done = goal.reached(self.choices, costing)
        rest = [i for i, choice in enumerate(self.choices) if len(choice.counts) > 1 and i not in lost]
        open_choices = [self.choices[i] for i in rest]
        saved: Saved = "units"
        if any(choice.curve.measured for choice in open_choices) and goal.kind != "time":
            saved = goal.kind
        chosen = (
            even(open_choices, costing, done) if self.scope == "layer" else allocate(open_choices, costing, saved, done)
        )
        for index, count in zip(rest, chosen, strict=True):
            at[index] = count
        return Candidate(tuple(at), dropped) if done() else None


def nearest(
    goal: Goal, least: float, meeting: Callable[[Goal], Candidate | None], loss: Callable[[Candidate], float]
) -> tuple[Goal, Candidate] | None:
    """The goal nearest to one out of reach whose result leaves the outputs right, by bisection over the share kept.

    Args:
        least: the least share that makes sense.
        meeting: the candidate for a goal.
        loss: of a candidate carried out, as a share of the outputs' variance.
    """
    best: tuple[Goal, Candidate] | None = None
    low, high, share = least, 1.0, least
    for _ in range(ATTEMPTS):
        if high - low < WORTH and best is not None:
            break
        tried = replace(goal, kept=share)
        candidate = meeting(tried)
        if candidate is not None and loss(candidate) <= MOST_LOSS:
            best, high = (tried, candidate), share
        else:
            low = share
        share = (low + high) / 2
    return best if best is not None and best[0].kept <= 1 - WORTH else None
