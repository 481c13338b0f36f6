"""What is tried next? One class a strategy; those of Optuna only say which sampler answers.

A strategy is a pure function of the trials told so far and a seeded generator, so that a search that goes on after a
kill tries what it would have tried.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onnxcomp import recipes
from onnxcomp.errors import UsageError
from onnxcomp.manager.base import Need
from onnxcomp.manager.options import Range
from onnxcomp.search.rows import Judge, Row
from onnxcomp.search.space import PLACE, Dimension, Move, Point, Space, Value

if TYPE_CHECKING:
    import optuna

PARENTS, SPREAD, SEVERAL = 4, 0.15, 0.35
SHARES = (0.85, 0.7, 0.5)  # of work, time or parameters that pruning first tries to keep


@dataclass(frozen=True)
class Told:
    """What a strategy knows."""

    space: Space
    judge: Judge
    rows: Sequence[Row]  # those under way among them

    @property
    def specs(self) -> set[str]:
        """What was tried."""
        return {row.spec for row in self.rows}

    @property
    def ranked(self) -> list[Row]:
        """Trials with figures, the best first."""
        return sorted((row for row in self.rows if row.measured is not None), key=self.judge.order)

    @property
    def lost(self) -> set[str]:
        """Specs that lose more than the budget allows."""
        return {row.spec for row in self.rows if row.measured is not None and self.judge.loses(row.measured)}


class Strategy(Protocol):
    """Says what to try next."""

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """Points in the order in which they are worth trying; the first one that was not tried is taken.

        Where there is none the ledger's sampler answers.
        """
        ...

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """What answers where nothing is proposed."""
        ...


# -- steps through a space ---------------------------------------------------------------------------------------------


def usual(dimension: Dimension) -> Value:
    """What a point says of a dimension that nobody has thought of: its default, or the middle of its range."""
    values = dimension.values
    if not isinstance(values, Range):
        first: Value = values[0]
        return dimension.default if dimension.default in values else first
    if isinstance(dimension.default, int | float) and values.low <= dimension.default <= values.high:
        return dimension.default
    middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    return round(middle) if dimension.whole else float(middle)


def changed(space: Space, point: Point) -> Callable[[Point], Point]:
    """A function that lays other values over a point; what they bring into it is as usual."""

    def over(values: Point) -> Point:
        both = point | values
        return space.fill(lambda d: _kept(d, both))

    return over


def _kept(dimension: Dimension, values: Point) -> Value:
    if dimension.name in values:
        return values[dimension.name]
    return usual(dimension)


def step(dimension: Dimension, value: Value, generator: random.Random) -> Value:
    """Another value near this one; of choices any other."""
    values = dimension.values
    if not isinstance(values, Range):
        others = [choice for choice in values if choice != value or isinstance(choice, bool) != isinstance(value, bool)]
        return generator.choice(others) if others else value
    assert isinstance(value, int | float)
    if dimension.whole:
        moved = value + generator.choice((-1, 1))
    elif values.log:
        moved = value * (values.high / values.low) ** generator.gauss(0.0, SPREAD)
    else:
        moved = value + generator.gauss(0.0, SPREAD) * (values.high - values.low)
    return min(max(moved, values.low), values.high)


def mutated(space: Space, point: Point, generator: random.Random) -> Point:
    """A point that differs in one thing, at times in more."""
    values = dict(point)
    while True:
        active = [d for d in space.dimensions if d.name in values and not _fixed(d)]
        chosen = generator.choice(active)
        values[chosen.name] = step(chosen, values[chosen.name], generator)
        values = changed(space, values)({})
        if generator.random() > SEVERAL:
            return values


def crossed(space: Space, one: Point, other: Point, generator: random.Random) -> Point:
    """A point that has each pass as one of two points has it."""
    take = {move.name: generator.random() < 0.5 for move in space.moves}

    def ask(dimension: Dimension) -> Value:
        first = take[dimension.name.split(".")[0].split(":")[0]]
        return _kept(dimension, one if first else other)

    return space.fill(ask)


def drawn(space: Space, generator: random.Random) -> Point:
    """Any point."""

    def ask(dimension: Dimension) -> Value:
        values = dimension.values
        if not isinstance(values, Range):
            chosen: Value = generator.choice(values)
            return chosen
        if dimension.whole:
            return generator.randint(int(values.low), int(values.high))
        if values.log:
            return float(values.low * (values.high / values.low) ** generator.random())
        return generator.uniform(values.low, values.high)

    return space.fill(ask)


def _fixed(dimension: Dimension) -> bool:
    return not isinstance(dimension.values, Range) and len(dimension.values) < 2


# -- where a search begins ---------------------------------------------------------------------------------------------


def first_points(space: Space, judge: Judge, target: str) -> list[Point]:
    """Recipes, those that suit the objective first; then the same with pruning before, in steps."""
    names = ["weights4", "int8", "dynamic", "weights8", "stored"] if judge.objective == "size" else []
    names = names or ["int8", "dynamic", "weights8", "stored"]
    names += [name for name in recipes.RECIPES if name not in names]
    points: list[Point] = []
    for name in names:
        try:
            points.append(space.point(recipes.find(name, target).spec))
        except UsageError:
            continue  # it needs what is not there, or suits another target
    return [point for index, point in enumerate(points) if point not in points[:index]]


def grown(space: Space, point: Point, judge: Judge, lost: Container[str] = ()) -> Iterator[Point]:
    """The point with one more pass each: pruning in steps, by what the objective counts; what trains last.

    A pass that writes weights is tried in each number of bits, where bytes count.

    Args:
        lost: specs that lose more than the budget allows; no step goes further than one of them.
    """
    moves = sorted(space.moves, key=lambda move: Need.TRAINING in move.cls.needs)
    for move in moves:
        over = changed(space, point)
        for values in steps(space, move, point, judge):
            further = over({move.name: True, **values})
            yield further
            if lost and space.spec(further) in lost:
                break
        bits = space.by_name.get(f"{move.name}.bits")
        if (
            not point[move.name]
            and bits is not None
            and not isinstance(bits.values, Range)
            and judge.objective == "size"
        ):
            yield from (over({move.name: True, bits.name: value}) for value in bits.values if value != usual(bits))


def steps(space: Space, move: Move, point: Point, judge: Judge) -> Iterator[Point]:
    """What a pass may be told beyond what a point says of it, the gentlest first.

    Of a pass that takes one of several targets: shares of what the objective counts, or else how many.
    """
    group = next((d for d in space.dimensions if d.name.startswith(f"{move.name}:")), None)
    wanted = {"macs": "macs", "latency": "latency", "size": "params"}[judge.objective]
    there = bool(point[move.name])
    if group is None or isinstance(group.values, Range):
        if not there:
            yield {}
        return
    targets = [space.by_name[f"{move.name}.{name}"] for name in group.values]
    share = next((d for d in targets if d.name.endswith(f".{wanted}")), None)
    count = next((d for d in targets if d.whole), None)
    if share is not None and isinstance(share.values, Range):
        for kept in () if there else SHARES:
            if share.values.low <= kept <= share.values.high:
                yield {group.name: wanted, share.name: kept}
    elif count is not None and isinstance(count.values, Range):
        here = point.get(count.name, count.values.high) if there else 0
        for value in range(int(count.values.low), int(count.values.high) + 1):
            if isinstance(here, int | float) and value > here:
                yield {group.name: count.name.rpartition(".")[2], count.name: value}
    elif not there:
        yield {}


# -- strategies --------------------------------------------------------------------------------------------------------


class _Sampled:
    """Recipes are entered first; then a sampler of Optuna says what to try."""

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """Nothing."""
        del told, generator
        return iter(())

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Any point."""
        import optuna

        return optuna.samplers.RandomSampler(seed=seed)


class Random(_Sampled):
    """Bergstra and Bengio, 2012."""


class Tpe(_Sampled):
    """Bergstra et al., 2011; with several objectives Ozaki et al., 2020, as Optuna has it."""

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Of Optuna."""
        import optuna

        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=8)


class Evolutionary(_Sampled):
    """Deb et al., 2002, as Optuna has it."""

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Of Optuna."""
        import optuna

        return optuna.samplers.NSGAIISampler(seed=seed, population_size=12)


class Climb(_Sampled):
    """Grow, then vary.

    What is best so far gets one pass more, in every way in which that can be; what brought something is grown again.
    Pruning goes no further than to where it loses too much.
    Where nothing more grows, one of the few best is changed in one thing or two, or crossed with another: a (mu + 1)
    evolution strategy (Rechenberg 1973) whose parents are the best by the objective within the budget.
    """

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """Grown points while there are new ones, then varied ones."""
        ranked = told.ranked
        if not ranked:
            return
        yield from grown(told.space, ranked[0].point, told.judge, told.lost)
        for _ in range(50):
            parents = ranked[:PARENTS]
            parent = generator.choice(parents).point
            if len(parents) > 1 and generator.random() < 0.25:
                parent = crossed(told.space, parent, generator.choice(parents).point, generator)
            yield mutated(told.space, parent, generator)


class Sensitivity(_Sampled):
    """Each pass alone first; then those that cost least for what they gain are joined, greedily."""

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """Single passes, then the best point with the next best single pass laid over."""
        space, judge = told.space, told.judge
        bare = space.fill(lambda d: False if d.name in {m.name for m in space.moves} else usual(d))
        yield bare
        single = list(grown(space, bare, judge))
        yield from single
        alone = {space.spec(point): point for point in single}
        known = [row for row in told.rows if row.spec in alone and row.measured is not None and row.measured.bytes]
        known.sort(key=lambda row: _price(row, judge))
        best = judge.best(told.rows)
        for row in known:
            if best is not None:
                yield space.fill(lambda d, row=row: _kept(d, _joined(best.point, row.point, space)))  # type: ignore[misc]
        if best is not None:
            yield from (mutated(space, best.point, generator) for _ in range(50))


class Bisect(_Sampled):
    """One setting after another, halved between what holds and what does not: a threshold by cross-validation."""

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """For every range of the best point, the middle between the best value that holds and the next that fails."""
        best = told.judge.best(told.rows)
        if best is None:
            return
        over = changed(told.space, best.point)
        yield from grown(told.space, best.point, told.judge)
        for dimension in told.space.dimensions:
            if dimension.name not in best.point or not isinstance(dimension.values, Range):
                continue
            here = best.point[dimension.name]
            assert isinstance(here, int | float)
            failed = [row.point[dimension.name] for row in told.rows if not row.sound and dimension.name in row.point]
            below = max((v for v in failed if isinstance(v, int | float) and v < here), default=dimension.values.low)
            above = min((v for v in failed if isinstance(v, int | float) and v > here), default=dimension.values.high)
            for end in (below, above):
                yield over({dimension.name: (here + end) / 2})


class Rounds(_Sampled):
    """Prune a little, train, and again while it holds; then integers (Han et al. 2015, in rounds)."""

    STEPS = 12

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """The next share while the last one held; each with every way to store what is left."""
        space = told.space
        prune = next((m for m in space.moves if m.name == "prune-channels"), None)
        train = next((m for m in space.moves if Need.TRAINING in m.cls.needs), None)
        ends = first_points(space, told.judge, "cpu")
        for number in range(1, self.STEPS):
            share = 0.9**number
            for end in ends:
                values: Point = {}
                if prune is not None:
                    values |= {prune.name: True, f"{prune.name}:target": "macs", f"{prune.name}.macs": max(share, 0.3)}
                if train is not None:
                    values |= {train.name: True}
                yield changed(space, end)(values)


class Predicted(_Sampled):
    """Candidates ranked by a model of what passes and settings cost here: latency-table search, hardware-aware.

    The logarithm of the score and the loss are fitted, each by ridge regression on a point's values, as a table of
    latencies adds up layers; of many varied points the one that is predicted best within the budget is tried.
    """

    CANDIDATES, RIDGE = 200, 1e-2

    def propose(self, told: Told, generator: random.Random) -> Iterator[Point]:
        """The best predicted first."""
        import numpy as np

        known = [row for row in told.ranked if row.told]
        if len(known) < 4:
            return
        space, judge = told.space, told.judge
        x = np.stack([self._features(space, row.point) for row in known])
        y = np.array(
            [[np.log(max(judge.score(r.measured), 1e-6)), judge.loss(r.measured)] for r in known if r.measured]
        )
        weights = np.linalg.solve(x.T @ x + self.RIDGE * np.eye(x.shape[1]), x.T @ y)
        limit = judge.budget.max_drop if judge.budget.max_drop is not None else 0.02
        points = [mutated(space, generator.choice(known[:8]).point, generator) for _ in range(self.CANDIDATES)]
        told_of = np.stack([self._features(space, point) for point in points]) @ weights
        order = np.lexsort((told_of[:, 0], np.maximum(told_of[:, 1] - limit, 0.0)))
        yield from (points[int(index)] for index in order)

    @staticmethod
    def _features(space: Space, point: Point) -> Any:
        """1, then each dimension's values as shares of their range, or one entry a choice; 0 where not spoken of."""
        import numpy as np

        found = [1.0]
        for dimension in space.dimensions:
            values, value = dimension.values, point.get(dimension.name)
            if dimension.name.endswith(f".{PLACE}"):
                continue
            if isinstance(values, Range):
                there = isinstance(value, int | float)
                found += [float(there), (value - values.low) / (values.high - values.low) if there else 0.0]  # type: ignore[operator]
            else:
                found += [float(dimension.name in point and value == choice) for choice in values[1:]]
        return np.array(found)


STRATEGIES: dict[str, type[_Sampled]] = {
    "climb": Climb,
    "tpe": Tpe,
    "random": Random,
    "evolutionary": Evolutionary,
    "sensitivity": Sensitivity,
    "bisect": Bisect,
    "rounds": Rounds,
    "predicted": Predicted,
}


def strategy(name: str) -> Strategy:
    """A strategy by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise UsageError(
            f"there is no sampler {name!r}", where="--sampler", do=f"choose one of {', '.join(STRATEGIES)}"
        )
    return STRATEGIES[name]()


def _price(row: Row, judge: Judge) -> float:
    """Loss for what is gained; what gains nothing costs without end."""
    assert row.measured is not None
    gain = 1.0 - judge.score(row.measured)
    return judge.loss(row.measured) / gain if gain > 0 else float("inf")


def _joined(one: Point, other: Point, space: Space) -> Point:
    """All passes of both; where both run one, as the second has it."""
    on = {move.name for move in space.moves if other.get(move.name)}
    return one | {key: value for key, value in other.items() if key.split(".")[0].split(":")[0] in on}
