"""How many units does each group keep? The least error for a given saving, from one error curve a group."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coupling.analysis import Group
from onnxcomp.graph.coupling.costing import Costing, Saved
from onnxcomp.passes.structure.elimination import Curve

MOST_COUNTS = 96  # steps on the way from all units to the fewest
# A sum of relative errors underrates what is spread over many layers, which later layers cannot make good any more.
# ResNet-20 at half its MACs, top-1 by exponent: 1.0 0.799, 0.7 0.810, 0.5 0.8125; at two thirds 0.7 0.840, 0.5 0.834.
EXPONENT = 0.7


@dataclass(frozen=True)
class Choice:
    """What may leave a group.

    Attributes:
        curve: the order in which units leave and the error after each.
        counts: rising numbers of removed units that are allowed, 0 first.
    """

    group: Group
    curve: Curve
    counts: tuple[int, ...]


def channels_each(group: Group) -> int:
    """Channels that one unit stands for; heads and the like count as one."""
    return 1 if group.kind == "heads" else int(group.slots[0].indices.shape[1])


def allowed_counts(group: Group, least: int, multiple: int) -> tuple[int, ...]:
    """How many units may leave so that at least `least` channels stay, in multiples of `multiple`.

    Below one multiple every width that divides it by a power of two is allowed.
    """
    each = channels_each(group)
    found = [0]
    for removed in range(1, group.size):
        width = (group.size - removed) * each
        aligned = width % multiple == 0 or (width < multiple and multiple % width == 0)
        if width >= least and aligned:
            found.append(removed)
    if len(found) > MOST_COUNTS:
        picked = np.unique(np.linspace(0, len(found) - 1, MOST_COUNTS).round().astype(int))
        found = [found[i] for i in picked]
    return tuple(found)


def allocate(choices: Sequence[Choice], costing: Costing, what: Saved, done: Callable[[], bool]) -> list[int]:
    """Greedy along the lower convex hull of error against saving, until `done` says enough.

    Savings depend on what left neighbouring groups, so they are counted anew when a group comes up.

    Args:
        done: looks at the costing, which has everything removed that was chosen so far.

    Returns:
        How many units leave each choice's group; the costing is left in that state.
    """
    at = [0] * len(choices)
    heap: list[tuple[float, int]] = []

    def push(index: int, floor: float = 0.0) -> None:
        slope = _slope(choices[index], at[index], costing, what)
        if slope is not None:
            heapq.heappush(heap, (max(slope, floor), index))

    for index in range(len(choices)):
        push(index)
    while heap and not done():
        slope, index = heapq.heappop(heap)
        now = _slope(choices[index], at[index], costing, what)
        if now is None:
            continue
        if heap and now > heap[0][0] and now > slope * (1 + 1e-9):
            heapq.heappush(heap, (now, index))
            continue
        choice = choices[index]
        start = at[index]
        at[index] = choice.counts[choice.counts.index(start) + 1]
        costing.remove(choice.group.units[choice.curve.order[start : at[index]]])
        push(index, slope)
    return at


def even(choices: Sequence[Choice], costing: Costing, done: Callable[[], bool]) -> list[int]:
    """The same share of every group, raised step by step until `done` says enough."""
    at = [0] * len(choices)
    for share in np.linspace(0.0, 1.0, 201)[1:]:
        if done():
            break
        for index, choice in enumerate(choices):
            wanted = [c for c in choice.counts if c <= share * choice.group.size + 1e-9]
            if wanted[-1] > at[index]:
                costing.remove(choice.group.units[choice.curve.order[at[index] : wanted[-1]]])
                at[index] = wanted[-1]
    return at


def _slope(choice: Choice, now: int, costing: Costing, what: Saved) -> float | None:
    """The least error for each thing saved, over all larger counts; None where nothing may leave."""
    counts = np.asarray([c for c in choice.counts if c > now and np.isfinite(choice.curve.errors[c])], np.int64)
    if not len(counts):
        return None
    far = int(counts[-1])
    units = choice.group.units[choice.curve.order[now:far]]
    each = costing.saving(units, what) / len(units)  # savings are linear in the number of units of one group
    if each <= 0:
        return None
    errors = choice.curve.errors**EXPONENT if choice.curve.measured else choice.curve.errors
    slopes = (errors[counts] - errors[now]) / (each * (counts - now))
    return float(slopes.min())
