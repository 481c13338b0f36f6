"""Which widths, beside which branches, for a given time? The least expected error under measured kernel times.

Time is no function of multiply-accumulates: kernels pay whole blocks of channels. So each width's time is measured: the
model is cut to one level of widths after the other, and every node's kernel is timed at each. What a choice saves is
what the nodes save that hold its channels; where several choices meet in a node they share it. The sum is a model only:
what comes out is measured as a whole, and the model is scaled until that meets the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.branches import Branch
from onnxcomp.graph.coupling.analysis import Coupling, analyse
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.ir import Array, Graph, Node
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.structure.allocate import EXPONENT, Choice
from onnxcomp.passes.structure.blocks import without
from onnxcomp.passes.structure.timing import Clock
from onnxcomp.passes.structure.trials import Candidate

LEVELS = 8  # widths of a group whose time is measured; between them it is interpolated
PARTS = 1000  # of the whole time: the grid on which savings are added up
TRIES = 5  # candidates measured as a whole
MARGIN = 0.005  # of the time, for the spread of the measurement
SLACK = 0.01  # of the time, for rounding to parts
HARDLY_MORE = 1.03  # times the target: within what measuring it twice differs by
NEAR = 0.015  # a candidate so close below the target is good enough


@dataclass(frozen=True)
class _Option:
    """So many units of a group leave: what that costs, and which share of the whole time it saves."""

    count: int
    cost: float
    saving: float


class Planner:
    """Widths for a time, by measured kernel times.

    Args:
        coupling: of the graph, not cut yet.
        branches: those that may leave; none inside another.
    """

    def __init__(
        self,
        graph: Graph,
        coupling: Coupling,
        choices: Sequence[Choice],
        branches: Sequence[Branch],
        context: PassContext,
        latency: float,
    ) -> None:
        self.graph, self.choices, self.context, self.latency = graph, choices, context, latency
        self.clock = Clock(graph, context)
        times = self.clock.nodes(graph)
        total = sum(times.values())
        holders = holders_of(coupling, choices)
        saved = _savings(graph, choices, holders, times, total, context, self.clock)
        self.sites = [_thinned(_states(choices, index, values)) for index, values in enumerate(saved)]
        self.inside = {
            b.name: [i for i, held in enumerate(holders) if held and set(held) <= {*b.nodes}] for b in branches
        }
        self.gone = {b.name: sum(times.get(n.name, 0.0) for n in (b.add, *b.nodes)) / total for b in branches}
        self.scale = 1.0

    def least(self) -> float:
        """The share of the time that is left when all leaves that may, by the model of times."""
        return max(1.0 - self.scale * sum(max(option.saving for option in site) for site in self.sites), 0.0)

    def measured(self, latency: float) -> Candidate | None:
        """Widths that were measured to take hardly more than a share of the time; None where none did."""
        candidate, share = self.settle((), latency)
        return candidate if share <= latency * HARDLY_MORE else None

    def widths(self, dropped: tuple[str, ...]) -> Candidate | None:
        """The cheapest widths beside given branches by the model of times; None where it says that is not enough."""
        wanted = (1.0 - self.latency + MARGIN) / self.scale
        candidate, saving = self._cheapest(dropped, wanted)
        return candidate if saving >= wanted - SLACK else None

    def settle(self, dropped: tuple[str, ...], latency: float | None = None) -> tuple[Candidate, float]:
        """The same, measured as a whole and corrected until it meets the target; with its share of the time.

        Where nothing meets it, the fastest that was measured.

        Args:
            latency: another target.
        """
        most = self.latency if latency is None else latency
        found: dict[Candidate, tuple[float, float]] = {}
        for _ in range(TRIES):
            candidate, saving = self._cheapest(dropped, (1.0 - most + MARGIN) / self.scale)
            if candidate in found:
                break
            share = self.clock.share(_candidate(self.graph, self.choices, candidate.removed, dropped, self.context))
            found[candidate] = share, saving
            if most - MARGIN - NEAR <= share <= most - MARGIN:
                break
            self.scale = max((1.0 - share) / saving, 0.1) if saving > 0 else self.scale
        met = {c: (share, saving) for c, (share, saving) in found.items() if share <= most - MARGIN}
        best = min(met, key=lambda c: met[c][1]) if met else min(found, key=lambda c: found[c][0])
        return best, found[best][0]

    def _cheapest(self, dropped: tuple[str, ...], wanted: float) -> tuple[Candidate, float]:
        """The best widths, and what they and the branches save."""
        gone = {index for name in dropped for index in self.inside[name]}
        left = [index for index in range(len(self.sites)) if index not in gone]
        base = sum(self.gone[name] for name in dropped)
        chosen = cheapest([self.sites[index] for index in left], max(wanted - base, 0.0))
        removed = [0] * len(self.choices)
        for index, option in zip(left, chosen, strict=True):
            removed[index] = option.count
        return Candidate(tuple(removed), dropped), base + sum(option.saving for option in chosen)


def cheapest(sites: Sequence[Sequence[_Option]], wanted: float) -> list[_Option]:
    """One option a site, so that savings sum up to `wanted` (or all there is) at the least cost."""
    most = sum(max(option.saving for option in site) for site in sites)
    goal = int(np.floor(min(wanted, most) * PARTS))
    best = np.full(goal + 1, np.inf)  # by parts saved, at least so many
    best[0] = 0.0
    taken = []
    for site in sites:
        table = np.full((len(site), goal + 1), np.inf)
        for row, option in zip(table, site, strict=True):
            parts = int(np.floor(option.saving * PARTS + 1e-9))
            places = np.clip(np.arange(goal + 1) - parts, 0, goal)
            row[:] = best[places] + option.cost
        taken.append(np.argmin(table, axis=0))
        best = table.min(axis=0)
    at = goal
    while at > 0 and not np.isfinite(best[at]):
        at -= 1  # rounding down: a part or two less than there is
    chosen = []
    for site, rows in zip(reversed(sites), reversed(taken), strict=True):
        option = site[int(rows[at])]
        chosen.append(option)
        at = int(np.clip(at - int(np.floor(option.saving * PARTS + 1e-9)), 0, goal))
    return chosen[::-1]


def inside(branch: Branch, holders: Sequence[Sequence[Node]]) -> list[int]:
    """Choices whose channels stand in a branch only."""
    nodes = set(branch.nodes)
    return [index for index, held in enumerate(holders) if held and nodes.issuperset(held)]


def _states(choices: Sequence[Choice], index: int, saving: Array) -> list[_Option]:
    choice = choices[index]
    errors = choice.curve.errors**EXPONENT if choice.curve.measured else choice.curve.errors
    return [
        _Option(count, float(errors[count]), float(saved))
        for count, saved in zip(choice.counts, saving, strict=True)
        if np.isfinite(errors[count])
    ]


def _thinned(options: Sequence[_Option]) -> list[_Option]:
    """Those that no other beats in both."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda one: (one.cost, -one.saving)):
        if not kept or option.saving > kept[-1].saving:
            kept.append(option)
    return kept


def holders_of(coupling: Coupling, choices: Sequence[Choice]) -> list[list[Node]]:
    """The nodes that hold each choice's channels, in graph order."""
    group_of = np.full(coupling.unit_count, -1)
    for index, choice in enumerate(choices):
        group_of[choice.group.units] = index
    found: list[list[Node]] = [[] for _ in choices]
    for node in coupling.graph.nodes:
        held: set[int] = set()
        for tensor in (*node.inputs, *node.outputs):
            for units in coupling.axes(tensor) if tensor.name else ():
                if units is not None:
                    held.update(np.unique(group_of[units]).tolist())
        for index in held - {-1}:
            found[index].append(node)
    return found


def _savings(
    graph: Graph,
    choices: Sequence[Choice],
    holders: Sequence[Sequence[Node]],
    times: Mapping[str, float],
    whole: float,
    context: PassContext,
    clock: Clock,
) -> list[Array]:
    """For every choice the share of the whole time that each of its counts saves, [len(counts)]."""
    levels = [
        np.unique(np.linspace(0, len(choice.counts) - 1, min(len(choice.counts), LEVELS)).round().astype(int))
        for choice in choices
    ]
    meeting: dict[Node, int] = {}
    for nodes in holders:
        for node in nodes:
            meeting[node] = meeting.get(node, 0) + 1
    saved = [np.zeros(len(level)) for level in levels]
    for step in range(1, max((len(level) for level in levels), default=0)):
        counts = [
            choice.counts[level[min(step, len(level) - 1)]] for choice, level in zip(choices, levels, strict=True)
        ]
        here = clock.nodes(_candidate(graph, choices, counts, (), context))
        for index, nodes in enumerate(holders):
            if step < len(levels[index]):
                saved[index][step] = sum(
                    (times.get(node.name, 0.0) - here.get(node.name, 0.0)) / meeting[node] for node in nodes
                )
    found = []
    for choice, level, values in zip(choices, levels, saved, strict=True):
        rising = np.maximum.accumulate(np.maximum(values, 0.0)) / whole
        places = np.asarray(choice.counts)
        found.append(np.interp(places, places[level], rising))
    return found


def _candidate(
    graph: Graph, choices: Sequence[Choice], counts: Sequence[int], dropped: Sequence[str], context: PassContext
) -> Graph:
    """A copy cut so far, not made good: its values do not matter for its time."""
    copy = without(graph, dropped, context)
    coupling = analyse(copy, context.operators, context.sample_shapes)
    groups = {group.name: group for group in coupling.groups}
    gone = [
        groups[choice.group.name].units[choice.curve.order[:count]]
        for choice, count in zip(choices, counts, strict=True)
        if count and choice.group.name in groups
    ]
    cut(coupling, np.concatenate(gone) if gone else ())
    return copy
