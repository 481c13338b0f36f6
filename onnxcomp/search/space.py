"""What can be tried on a model? Derived from what passes say of their options; a point of it is a spec string.

A point says of each pass whether it runs, and of those that run the value of every option that a search may set and
their place: passes of one stage run in the order of their places, at equal places in that of the registry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onnxcomp import recipes
from onnxcomp.errors import UsageError
from onnxcomp.manager import registry
from onnxcomp.manager.base import Guarantee, Need, Pass, Stage
from onnxcomp.manager.options import Range, Searched, Tried, searched
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.spec import Finder, make_pass, parse_passes
from onnxcomp.targets import table as targets

Value = bool | int | float | str | None
Point = dict[str, Value]

PLACE, DIGITS = "place", 3  # numbers are told to three significant digits, so that a spec stays readable


@dataclass(frozen=True)
class Dimension:
    """One thing that a point says.

    Attributes:
        name: `PASS` for whether it runs, `PASS.OPTION`, `PASS.place`, `PASS:WORD` for which of several options is set.
        values: choices, or a range.
        default: what a spec says that does not speak of it; None for a range without one.
        whole: whether the numbers of a range are whole.
        when: a point speaks of it only where it has one of these values for each of these dimensions.
    """

    name: str
    values: Tried
    default: Value = None
    whole: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def active(self, point: Mapping[str, Value]) -> bool:
        """Whether a point speaks of it."""
        return all(name in point and _among(point[name], wanted) for name, wanted in self.when.items())

    def fit(self, value: Value) -> Value:
        """The nearest value that can be told; a choice as it is.

        Raises:
            UsageError: it is no choice, or outside of the range.
        """
        if not isinstance(self.values, Range):
            if not _among(value, self.values):
                raise self._outside(value)
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._outside(value)
        near = round(value) if self.whole else float(f"{value:.{DIGITS}g}")
        low, high = self.values.low, self.values.high
        if not low <= near <= high:
            if low <= value <= high:
                return type(near)(min(max(near, low), high))
            raise self._outside(value)
        return near

    def _outside(self, value: Value) -> UsageError:
        tried = self.values if isinstance(self.values, Range) else ", ".join(map(str, self.values))
        return UsageError(f"{self.name}={value} is not tried by a search: {tried}", where=f"dimension {self.name}")


@dataclass(frozen=True)
class Move:
    """A pass that a search may run, with what it may set of it. `index`: its place in the registry."""

    cls: type[Pass]
    options: tuple[Searched, ...]
    index: int

    @property
    def name(self) -> str:
        """Of the pass."""
        return self.cls.name

    def dimensions(self, places: int) -> Iterator[Dimension]:
        """What a point says of it; `places` are those of its stage."""
        defaults: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(self.cls)}
        here = {self.name: (True,)}
        yield Dimension(self.name, (False, True), False)
        if places > 1:
            yield Dimension(f"{self.name}.{PLACE}", Range(0, places - 1), 0, True, here)
        told: set[str] = set()
        for item in self.options:
            when = here | {f"{self.name}.{other}": wanted for other, wanted in item.when.items()}
            if item.one_of:
                which = f"{self.name}:{item.one_of}"
                if which not in told:
                    told.add(which)
                    yield Dimension(which, self._alternatives(item.one_of), None, False, here)
                when |= {which: (item.name,)}
            yield Dimension(f"{self.name}.{item.name}", item.values, defaults[item.name], item.whole, when)

    def _alternatives(self, word: str) -> tuple[str, ...]:
        return tuple(item.name for item in self.options if item.one_of == word)


@dataclass(frozen=True)
class Space:
    """All specs that a search may try.

    Attributes:
        prefix: the passes that every spec begins with: those that lose nothing.
        moves: the passes that it may run.
        middle: passes that lose nothing and stand between those that change floats and those that write integers.
        late: passes that lose nothing and stand behind those that write integers.
        left: passes that are not tried, and why, in words.
        find: gives the class of a pass by its name.
    """

    prefix: tuple[Pass, ...]
    moves: tuple[Move, ...]
    left: Mapping[str, str] = field(default_factory=dict)
    find: Finder | None = None
    middle: tuple[Pass, ...] = ()
    late: tuple[Pass, ...] = ()

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Everything a point may speak of, each after what it depends on."""
        stages = [_usual(move.cls) for move in self.moves]
        return tuple(
            d for move, stage in zip(self.moves, stages, strict=True) for d in move.dimensions(stages.count(stage))
        )

    @cached_property
    def by_name(self) -> dict[str, Dimension]:
        """The dimensions."""
        return {dimension.name: dimension for dimension in self.dimensions}

    @cached_property
    def sha256(self) -> str:
        """Of the dimensions: two spaces of one hash hold the same points."""
        told = [(d.name, str(d.values), d.whole, sorted(d.when.items())) for d in self.dimensions]
        text = json.dumps([self._spelled(self.prefix), told], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def fill(self, ask: Callable[[Dimension], Value]) -> Point:
        """A point; `ask` gives the value of each dimension that it speaks of, in order."""
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.active(point):
                point[dimension.name] = dimension.fit(ask(dimension))
        return point

    def passes(self, point: Mapping[str, Value]) -> tuple[Pass, ...]:
        """The passes of a point, in the order in which they run.

        Raises:
            UsageError: it speaks of what the space does not know, or lacks what it has to say.
        """
        if unknown := sorted(set(point) - set(self.by_name)):
            raise UsageError(f"the space has no dimension {unknown[0]!r}", where=f"point {dict(point)}")
        found = []
        for move in self.moves:
            if not point.get(move.name):
                continue
            options = {o.name: point[key] for o in move.options if (key := f"{move.name}.{o.name}") in point}
            item = make_pass(move.name, options, self.find)
            found.append(((item.belongs(), int(point.get(f"{move.name}.{PLACE}") or 0), move.index), item))
        own = [item for _, item in sorted(found, key=lambda pair: pair[0])]
        floats = [item for item in own if item.belongs() < Stage.INTEGER]
        stored = [item for item in own if item.belongs() > Stage.INTEGER]
        integers = own[len(floats) : len(own) - len(stored)]
        return (*self.prefix, *floats, *self.middle, *integers, *self.late, *stored)

    def spec(self, point: Mapping[str, Value]) -> str:
        """The spec string of a point."""
        return self._spelled(self.passes(point))

    def point(self, spec: str) -> Point:
        """The point of a spec string; exact and close passes are those of the space, wherever they stand.

        Raises:
            UsageError: the spec is malformed, or none of this space: the pass or value that is not tried is named.
        """
        passes = parse_passes(spec, self.find)
        known = {move.name: move for move in self.moves}
        start = next((i for i, item in enumerate(passes) if item.name in known), len(passes))
        for item in passes[:start]:
            if item.promises() is Guarantee.LOSSY:
                raise _not_here(item, self.left.get(item.name, "it is none of this space"))
        own = {*self.middle, *self.late}
        rest = [item for item in passes[start:] if item not in own]
        told = {item.name: item for item in rest}
        for item in rest:
            if item.name not in known:
                raise _not_here(item, self.left.get(item.name, "it is none of this space, or stands elsewhere"))
        if len(told) < len(rest):
            raise UsageError("a pass runs twice, and a search tries each once", where=f"spec {spec}")
        places = _places([(item.belongs(), known[item.name].index, item.name) for item in rest], spec)
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.active(point):
                point[dimension.name] = dimension.fit(_told(dimension, told, places))
        for again in self.passes(point)[len(self.prefix) :]:
            if again not in own and again != told[again.name]:
                raise _not_here(told[again.name], f"nearest is {again}")
        return point

    @staticmethod
    def _spelled(passes: tuple[Pass, ...]) -> str:
        return str(Pipeline(passes))


def space_of(
    *,
    target: str = "cpu",
    data: bool = True,
    labels: bool = False,
    training: str = "",
    without: tuple[str, ...] = (),
    find: Finder = registry.find,
    names: Callable[[], list[str]] = registry.names,
) -> Space:
    """What can be tried for a target, with what is there.

    Args:
        data, labels: whether passes that need them can run.
        training: why passes that train cannot run; empty where they can.
        without: passes that the user does not want tried.
        find, names: the registry's.

    Raises:
        UsageError: what a pass says of its options does not fit together, or `without` names no pass.
    """
    moves, left = [], {}
    known = names()
    for name in without:
        if name not in known:
            raise UsageError(f"there is no pass {name!r}", where="--without", do="see onnxcomp passes for the list")
    classes = {name: find(name) for name in known}  # looking at what is installed takes a while

    def quick(name: str) -> type[Pass]:
        return classes[name] if name in classes else find(name)

    for index, (name, cls) in enumerate(classes.items()):
        options = searched(cls)
        why = _why_not(cls, options, target, data, labels, training)
        if name in without:
            why = "asked for with --without"
        if why:
            left[name] = why
        elif cls.guarantee is Guarantee.LOSSY:
            moves.append(Move(cls, options, index))
    plain = recipes.PLAIN if targets.find(target).decodes_at_load else recipes.CLEAN
    timed = targets.find(target).timed_here
    tiles, rest = (tuple(parse_passes(spec, quick)) if timed else () for spec in (recipes.TILES, recipes.REST))
    return Space(parse_passes(plain, quick), tuple(moves), left, quick, tiles, rest)


def _why_not(
    cls: type[Pass], options: tuple[Searched, ...], target: str, data: bool, labels: bool, training: str
) -> str:
    """Why a pass is not tried; empty where it is, or is one that always runs."""
    if cls.guarantee is not Guarantee.LOSSY:
        return ""
    if cls.unsearched or not options:
        return cls.unsearched or "it does not say what a search may try"
    if not cls.suits(targets.find(target)):
        return f"it is of no use for {target}"
    if Need.TRAINING in cls.needs and training:
        return training
    if Need.DATA in cls.needs and not data:
        return "it needs --data"
    return "it needs labels" if Need.LABELS in cls.needs and not labels else ""


def _usual(cls: type[Pass]) -> Stage:
    return cls.stage if cls.stage is not None else Stage.FLOAT


def _places(order: list[tuple[Stage, int, str]], spec: str) -> dict[str, int]:
    """The lowest places that give passes this order.

    Raises:
        UsageError: a stage stands before one that comes first.
    """
    places: dict[str, int] = {}
    stage, index, place = Stage.CLEAN, -1, 0
    for here, number, name in order:
        if here < stage:
            raise UsageError(f"{name} comes too late: a search tries it earlier", where=f"spec {spec}")
        if here > stage:
            place = 0
        elif number < index:
            place += 1
        stage, index, places[name] = here, number, place
    return places


def _told(dimension: Dimension, told: Mapping[str, Pass], places: Mapping[str, int]) -> Value:
    """What a spec's passes say of a dimension."""
    if ":" in dimension.name:
        name = dimension.name.partition(":")[0]
        return next((o for o in dimension.values if getattr(told[name], o) is not None), None)  # type: ignore[union-attr]
    name, _, option = dimension.name.partition(".")
    if not option:
        return name in told
    if option == PLACE:
        return places[name]
    value: Value = getattr(told[name], option)
    return value


def _among(value: Any, choices: tuple[Any, ...]) -> bool:
    """Whether a value is one of some; 1, 1.0 and true are three."""
    return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices)


def _not_here(item: Pass, why: str) -> UsageError:
    return UsageError(f"a search does not try {item}: {why}", where=f"pass {item.name}")
