"""Which form does each layer take, when a form costs time, bytes and error, and neighbours in unlike forms cost more?

A multiple-choice knapsack with costs between neighbours. Limits get prices (H. Everett, "Generalized Lagrange
Multiplier Method", Operations Research 1963): for given prices every layer has one best form among integers and one
among the others, and which of the two it takes is a minimum cut, so that the assignment is exact. Prices rise until the
limits hold; single and paired exchanges then use up what a gap between two prices leaves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.passes.assigning.cut import Choices

Goal = Literal["time", "bytes", "noise"]

STEPS, RISE = 48, 1.6  # prices that are tried, each so much higher than the one before
HALVINGS = 8  # steps between the last price that was too low and the first that was not
FIRST_PRICE = 1e-4
SHARPNESS = 2.0  # how much more the part that suffers most counts than the others, as a power
PAIRED = 24  # items up to which pairs of them are exchanged
SLACK = 1e-9
FAINT = 1e-3  # of the noise of the fastest assignment: what a front does not tell apart from none
FAR = 1e12


@dataclass(frozen=True)
class Option:
    """A form that a layer may take, and what it costs there.

    Attributes:
        time_us: microseconds of its kernel.
        bytes: in the file.
        noise: noise over signal that it brings into each part of the outputs, float64 [parts].
        integer: whether it reads (and may give) integers of a static scale, which its neighbours may share.
    """

    form: str
    time_us: float
    bytes: float
    noise: Array
    integer: bool = False

    @property
    def worst(self) -> float:
        """Noise over signal in the part that suffers most."""
        return float(self.noise.max(initial=0.0))


@dataclass
class Problem:
    """What is to be assigned.

    Attributes:
        options: for every layer the forms it may take; the first is what it has now.
        own: microseconds of a layer, or of anything else that may be integer or not (a node without weights, a tensor's
            QuantizeLinear), where it is integer, beside its option's time.
        links: (one, other, microseconds): what it costs if the first is integer and the second is not.
        time_us, bytes: of all that has no choice.
        worth: microseconds that a byte less is worth where time is to be small.
    """

    options: dict[Hashable, tuple[Option, ...]]
    own: dict[Hashable, float] = field(default_factory=dict)
    links: list[tuple[Hashable, Hashable, float]] = field(default_factory=list)
    time_us: float = 0.0
    bytes: float = 0.0
    worth: float = 0.0

    @property
    def parts(self) -> int:
        """How many parts of the outputs are told apart."""
        return max((len(option.noise) for options in self.options.values() for option in options), default=0)


@dataclass(frozen=True)
class Limits:
    """What an assignment must keep: microseconds, bytes, noise over signal in the worst part of the outputs."""

    time: float = math.inf
    bytes: float = math.inf
    noise: float = math.inf


@dataclass(frozen=True)
class Assignment:
    """A form for each layer.

    Attributes:
        choice: place of each layer's form among its options.
        integers: all that is integer, layers or not.
        layers_us: of the layers alone and of what has no choice; conversions and other nodes come on top.
        noise: of each part, float64 [parts].
        worth: as in the problem.
    """

    choice: Mapping[Hashable, int]
    integers: frozenset[Hashable]
    layers_us: float
    time_us: float
    bytes: float
    noise: Array
    worth: float = 0.0

    @property
    def worst(self) -> float:
        """Noise over signal in the part that suffers most."""
        return float(self.noise.max(initial=0.0))

    def figure(self, goal: Goal) -> float:
        """What a limit is held against."""
        return {"time": self.time_us, "bytes": self.bytes, "noise": self.worst}[goal]

    def cost(self, goal: Goal) -> float:
        """What a goal makes small."""
        return self.figure(goal) + (self.worth * self.bytes if goal == "time" else 0.0)

    def excess(self, limits: Limits) -> float:
        """By which share the limits are missed, summed up; 0 where they hold."""
        over = 0.0
        for goal in _GOALS:
            limit = getattr(limits, goal)
            if not math.isinf(limit):
                over += max(0.0, self.figure(goal) / max(limit, 1e-30) - 1.0 - SLACK)
        return over


_GOALS: tuple[Goal, ...] = ("time", "bytes", "noise")


class Allocator:
    """Solves one problem for any goal and limits."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._islands = _Islands(problem)
        start = self._totals(dict.fromkeys(problem.options, 0))
        self._unit = {"time": max(start.time_us, 1e-9), "bytes": max(start.bytes, 1e-9)}

    def best(self, goal: Goal, limits: Limits) -> Assignment | None:
        """The assignment that makes the goal least within the limits; None where none was found."""
        found = self.nearest(goal, limits)
        return found if found.excess(limits) == 0 else None

    def nearest(self, goal: Goal, limits: Limits) -> Assignment:
        """As `best`; where nothing keeps the limits, what misses them least."""
        weights = np.ones(self.problem.parts)
        kept: Assignment | None = None
        for _ in range(3):
            for found in self._searched(goal, limits, weights):
                if kept is None or _key(found, goal, limits) < _key(kept, goal, limits):
                    kept = found
            assert kept is not None
            if not len(weights) or math.isinf(limits.noise):
                break
            again = np.maximum(kept.noise / max(kept.worst, 1e-30), 1e-3) ** SHARPNESS
            if np.allclose(again, weights, atol=0.05):
                break
            weights = again
        assert kept is not None
        return self._polished(kept, goal, limits)

    def priced(self, found: Assignment) -> Assignment:
        """The same forms of layers by this problem's figures."""
        return self._totals(found.choice)

    def front(self, goal: Goal, limits: Limits, points: int) -> list[Assignment]:
        """Assignments from the least goal to the least noise, none of which is worse than another in all figures."""
        fastest = self.nearest(goal, replace(limits, noise=math.inf))
        truest = self.nearest("noise", replace(limits, **{goal: math.inf}))
        high = max(fastest.worst, 1e-12)
        low = max(truest.worst, high * FAINT)
        found = [fastest, truest]
        for level in np.geomspace(high, low, max(points, 2) + 1)[1:]:
            at = self.best(goal, replace(limits, noise=float(level) * (1 + SLACK)))
            if at is not None:
                found.append(at)
        return pareto(found)

    # -- prices --------------------------------------------------------------------------------------------------------

    def _searched(self, goal: Goal, limits: Limits, weights: Array) -> Iterator[Assignment]:
        """Assignments under rising prices, and between the last that failed and the first that held."""
        prices = dict.fromkeys(_GOALS, 0.0)
        prices[goal] = 1.0
        low, high = dict(prices), dict(prices)
        for _ in range(STEPS):
            found = self._cheapest(prices, limits, weights)
            yield found
            high = dict(prices)
            missed = [g for g in _GOALS if found.figure(g) > getattr(limits, g) * (1 + SLACK)]
            if not missed:
                break
            low = dict(prices)
            for name in missed:
                prices[name] = max(prices[name] * RISE, FIRST_PRICE)
        for _ in range(HALVINGS):
            middle = {g: math.sqrt(max(low[g], FIRST_PRICE / 10 if high[g] else 0.0) * high[g]) for g in _GOALS}
            middle[goal] = max(middle[goal], 1.0)
            found = self._cheapest(middle, limits, weights)
            yield found
            if found.excess(limits) > 0:
                low = middle
            else:
                high = middle

    def _cheapest(self, prices: Mapping[Goal, float], limits: Limits, weights: Array) -> Assignment:
        """The exact optimum for prices of time, bytes and noise, each in units of what there is or may be of it."""
        unit = limits.noise if 0 < limits.noise < math.inf else 1.0
        time, size = prices["time"] / self._unit["time"], prices["bytes"] / self._unit["bytes"]
        size += time * self.problem.worth
        error = prices["noise"] / unit
        # what costs nothing at these prices still breaks ties: the faster, then the smaller, then the truer
        time, size, error = time + 1e-9 / self._unit["time"], size + 1e-10 / self._unit["bytes"], error + 1e-12 / unit
        choices = Choices()
        picked: dict[Hashable, tuple[int, int]] = {}
        for item, options in self.problem.options.items():
            costs = [time * o.time_us + size * o.bytes + error * float(weights @ o.noise) for o in options]
            plain = _least([i for i, o in enumerate(options) if not o.integer], costs)
            whole = _least([i for i, o in enumerate(options) if o.integer], costs)
            picked[item] = plain, whole
            if plain < 0:
                choices.one(item, -FAR)
            elif whole < 0:
                choices.one(item, FAR)
            else:
                choices.one(item, costs[whole] - costs[plain] + time * self.problem.own.get(item, 0.0))
        for item, cost in self.problem.own.items():
            if item not in self.problem.options:
                choices.one(item, time * cost)
        for one, other, cost in self.problem.links:
            choices.unequal(one, other, time * cost)
        chosen = choices.solve()
        return self._totals({item: whole if item in chosen else plain for item, (plain, whole) in picked.items()})

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def _polished(self, found: Assignment, goal: Goal, limits: Limits) -> Assignment:
        """Exchanges of one layer's form, and of two for small problems, as long as one of them helps."""
        items = list(self.problem.options)
        while True:
            better = self._improved(found, goal, limits, ((item,) for item in items))
            if better is None and len(items) <= PAIRED:
                better = self._improved(found, goal, limits, combinations(items, 2))
            if better is None:
                return found
            exact = self._totals(better.choice)  # sums of differences drift
            if not _key(exact, goal, limits) < _key(found, goal, limits):
                return found
            found = exact

    def _improved(
        self, found: Assignment, goal: Goal, limits: Limits, groups: Iterable[tuple[Hashable, ...]]
    ) -> Assignment | None:
        best, least = None, _key(found, goal, limits)
        for group in groups:
            for forms in _products([len(self.problem.options[item]) for item in group]):
                if any(form == found.choice[item] for item, form in zip(group, forms, strict=True)):
                    continue
                moved = self._moved(found, dict(zip(group, forms, strict=True)))
                key = _key(moved, goal, limits)
                if key < (least[0] - SLACK, math.inf) or (key[0] <= least[0] and key[1] < least[1] * (1 - 1e-6)):
                    best, least = moved, key
        return best

    def _moved(self, found: Assignment, forms: Mapping[Hashable, int]) -> Assignment:
        """An assignment with other forms for a few layers, counted from what changes."""
        problem = self.problem
        whole = set(found.integers).intersection(problem.options)
        time, size, noise = found.layers_us, found.bytes, found.noise
        for item, place in forms.items():
            old, new = problem.options[item][found.choice[item]], problem.options[item][place]
            own = problem.own.get(item, 0.0)
            time += new.time_us - old.time_us + own * (new.integer - old.integer)
            size, noise = size + new.bytes - old.bytes, noise + (new.noise - old.noise)
            (whole.add if new.integer else whole.discard)(item)
        return self._whole({**found.choice, **forms}, whole, time, size, noise.clip(min=0.0))

    def _totals(self, choice: Mapping[Hashable, int]) -> Assignment:
        """What an assignment costs, with all that is no layer chosen at its best."""
        problem = self.problem
        time, size = problem.time_us, problem.bytes
        noise = np.zeros(problem.parts)
        whole: set[Hashable] = set()
        for item, place in choice.items():
            option = problem.options[item][place]
            time, size = time + option.time_us, size + option.bytes
            noise = noise + option.noise
            if option.integer:
                whole.add(item)
                time += problem.own.get(item, 0.0)
        return self._whole(dict(choice), whole, time, size, noise)

    def _whole(
        self, choice: dict[Hashable, int], whole: set[Hashable], time: float, size: float, noise: Array
    ) -> Assignment:
        beside, others = self._islands.least(whole)
        return Assignment(choice, frozenset(whole | others), time, time + beside, size, noise, self.problem.worth)


class _Islands:
    """What is no layer, in parts that meet only at layers, so that each part's best choice depends on few of them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        free = {item for item in problem.own if item not in problem.options}
        free |= {end for one, other, _ in problem.links for end in (one, other) if end not in problem.options}
        root = {item: item for item in free}

        def top(item: Hashable) -> Hashable:
            while root[item] is not item:
                root[item] = item = root[root[item]]
            return item

        for one, other, _ in problem.links:
            if one in free and other in free:
                root[top(one)] = top(other)
        self.members: dict[Hashable, list[Hashable]] = {}
        for item in free:
            self.members.setdefault(top(item), []).append(item)
        self.links: dict[Hashable, list[tuple[Hashable, Hashable, float]]] = {key: [] for key in self.members}
        self.direct: list[tuple[Hashable, Hashable, float]] = []
        for link in problem.links:
            inner = next((end for end in link[:2] if end in free), None)
            (self.direct if inner is None else self.links[top(inner)]).append(link)
        self.shore = {
            key: sorted({e for link in links for e in link[:2] if e not in free}, key=repr)
            for key, links in self.links.items()
        }
        self._known: dict[tuple[Hashable, tuple[bool, ...]], tuple[float, set[Hashable]]] = {}
        self._last: tuple[frozenset[Hashable], tuple[float, set[Hashable]]] = frozenset(), self._least(set())

    def least(self, whole: set[Hashable]) -> tuple[float, set[Hashable]]:
        """Microseconds of everything beside the layers, of which these are integer, and what of it is integer."""
        if self._last[0] != whole:  # most exchanges are between forms of one kind
            self._last = frozenset(whole), self._least(whole)
        return self._last[1]

    def _least(self, whole: set[Hashable]) -> tuple[float, set[Hashable]]:
        time = sum(cost for one, other, cost in self.direct if one in whole and other not in whole)
        chosen: set[Hashable] = set()
        for key in self.members:
            state = tuple(item in whole for item in self.shore[key])
            if (key, state) not in self._known:
                self._known[key, state] = self._solve(key, whole)
            cost, others = self._known[key, state]
            time += cost
            chosen |= others
        return time, chosen

    def _solve(self, key: Hashable, whole: set[Hashable]) -> tuple[float, set[Hashable]]:
        choices = Choices()
        shore = set(self.shore[key])
        for item in self.members[key]:
            choices.one(item, self.problem.own.get(item, 0.0))
        for item in shore:
            choices.one(item, -FAR if item in whole else FAR)
        for one, other, cost in self.links[key]:
            choices.unequal(one, other, cost)
        chosen = choices.solve() - shore
        one_of = chosen | (shore & whole)
        time = sum(self.problem.own.get(item, 0.0) for item in chosen)
        time += sum(cost for one, other, cost in self.links[key] if one in one_of and other not in one_of)
        return time, chosen


def pareto(found: Iterable[Assignment]) -> list[Assignment]:
    """Those that no other one matches or beats in time, bytes and noise alike; the fastest first."""
    kept: list[Assignment] = []
    for item in sorted(found, key=lambda a: (a.time_us, a.bytes, a.worst)):
        beaten = any(
            k.time_us <= item.time_us * (1 + SLACK) and k.bytes <= item.bytes and k.worst <= item.worst * (1 + SLACK)
            for k in kept
        )
        if not beaten:
            kept.append(item)
    return kept


def _least(places: Sequence[int], costs: Sequence[float]) -> int:
    return min(places, key=lambda i: (costs[i], i), default=-1)


def _key(found: Assignment, goal: Goal, limits: Limits) -> tuple[float, float]:
    return found.excess(limits), found.cost(goal)


def _products(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    yield from (tuple(int(i) for i in place) for place in np.ndindex(*counts))
