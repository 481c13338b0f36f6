"""Which widths, and which branches, for a given time? The least expected error under measured kernel times.

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

LEVELS = 8  # widths of a group whose time is measured; between them it is interpolated
PARTS = 1000  # of the whole time: the grid on which savings are added up
MOST_OPTIONS = 64  # of the groups inside one branch together
TRIES = 5  # candidates measured as a whole
MARGIN = 0.005  # of the time, for the spread of the measurement
NEAR = 0.015  # a candidate so close below the target is good enough


@dataclass(frozen=True)
class Plan:
    """What leaves.

    Attributes:
        removed: units by choice.
        dropped: names of branches.
        share: of the time, as measured.
        cost: sum of expected errors, each to the power of `EXPONENT`.
    """

    removed: tuple[int, ...]
    dropped: tuple[str, ...]
    share: float
    cost: float


@dataclass(frozen=True)
class _Option:
    """One state of a site: what leaves, what it costs and which share of the whole time it saves."""

    cost: float
    saving: float
    removed: tuple[tuple[int, int], ...] = ()
    dropped: str = ""


def plan(
    graph: Graph,
    coupling: Coupling,
    choices: Sequence[Choice],
    branches: Sequence[Branch],
    errors: Mapping[str, float],
    context: PassContext,
    latency: float,
) -> Plan:
    """The cheapest combination of widths and branches whose measured time is at most a share `latency`.

    Where none is found, the fastest that was measured.

    Args:
        coupling: of the graph, not cut yet.
        branches: those that may leave; none inside another.
        errors: what each costs, by name.
    """
    clock = Clock(graph, context)
    sites = _sites(graph, coupling, choices, branches, errors, context, clock)
    found: dict[tuple[tuple[int, ...], tuple[str, ...]], Plan] = {}
    wanted, scale = 1.0 - latency + MARGIN, 1.0
    for _ in range(TRIES):
        chosen = cheapest(sites, wanted / scale)
        removed, dropped = [0] * len(choices), []
        for option in chosen:
            dropped += [option.dropped] if option.dropped else []
            for index, count in option.removed:
                removed[index] = count
        key = tuple(removed), tuple(sorted(dropped))
        if key in found:
            break
        share = clock.share(_candidate(graph, choices, removed, dropped, context))
        found[key] = Plan(*key, share, sum(option.cost for option in chosen))
        modelled = sum(option.saving for option in chosen)
        if share <= latency - MARGIN and share >= latency - MARGIN - NEAR:
            break
        scale = max((1.0 - share) / modelled, 0.1) if modelled > 0 else scale
    met = [one for one in found.values() if one.share <= latency - MARGIN]
    return min(met, key=lambda one: one.cost) if met else min(found.values(), key=lambda one: one.share)


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


def _sites(
    graph: Graph,
    coupling: Coupling,
    choices: Sequence[Choice],
    branches: Sequence[Branch],
    errors: Mapping[str, float],
    context: PassContext,
    clock: Clock,
) -> list[list[_Option]]:
    """The states of every branch with the groups inside it, and of every other group."""
    times = clock.nodes(graph)
    whole = sum(times.values())
    holders = _holders(coupling, choices)
    savings = _savings(graph, choices, holders, times, whole, context, clock)
    left = set(range(len(choices)))
    sites = []
    for branch in branches:
        inside = [i for i in sorted(left) if holders[i] and set(holders[i]) <= set(branch.nodes)]
        left -= set(inside)
        options = [_Option(0.0, 0.0)]
        for index in inside:
            options = _thinned([_joined(a, b) for a in options for b in _states(choices, index, savings[index])])
        gone = sum(times.get(node.name, 0.0) for node in (branch.add, *branch.nodes)) / whole
        options.append(_Option(errors[branch.name] ** EXPONENT, gone, dropped=branch.name))
        sites.append(_thinned(options))
    return sites + [_thinned(_states(choices, index, savings[index])) for index in sorted(left)]


def _states(choices: Sequence[Choice], index: int, saving: Array) -> list[_Option]:
    choice = choices[index]
    errors = choice.curve.errors**EXPONENT if choice.curve.measured else choice.curve.errors
    return [
        _Option(float(errors[count]), float(saved), ((index, count),) if count else ())
        for count, saved in zip(choice.counts, saving, strict=True)
        if np.isfinite(errors[count])
    ]


def _joined(first: _Option, second: _Option) -> _Option:
    return _Option(first.cost + second.cost, first.saving + second.saving, first.removed + second.removed)


def _thinned(options: Sequence[_Option]) -> list[_Option]:
    """Those that no other beats in both, at most `MOST_OPTIONS`, evenly picked."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda one: (one.cost, -one.saving)):
        if not kept or option.saving > kept[-1].saving:
            kept.append(option)
    if len(kept) > MOST_OPTIONS:
        picked = np.unique(np.linspace(0, len(kept) - 1, MOST_OPTIONS).round().astype(int))
        kept = [kept[i] for i in picked]
    return kept


def _holders(coupling: Coupling, choices: Sequence[Choice]) -> list[list[Node]]:
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
