"""Which slices of an output are one quantity? Found from the values of one model alone, not from names or layouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEW = 8  # slices: each may be a quantity of its own
GAP_FEW, GAP = 1.0, 0.6  # decades between the slices of one quantity and the next, where no slice lies between
SPREAD_FEW = 1.5  # decades that the slices of one quantity span, where they are few
MOST_SLICES = 1 << 16
LEAST_VALUES = 8  # of a slice; fewer say nothing of its scale
RANDOM_SHARE = 0.4  # changes between quantities along an axis, of those that the same slices shuffled would show
SPATIAL = 16  # axes of at least this size that come in pairs of like size are places in a map
DEAD = 1e-6  # times the largest value: below this a slice holds rounding errors
QUIET = 0.1  # times its neighbours' level: what errors of a slice without a signal are held against
OFFSET = 400.0  # times the variance: a mean whose square is larger carries nothing, and hides errors
OFFSET_EACH = 1e4  # the same, where each slice has its own
CONSTANT = 1e-6  # times the mean: a smaller spread is rounding
FILL_GAP, FILL_SPREAD = 8.0, 0.25  # a filling is so many times larger than all else, and differs by such a share
FILL_POSITIVE = 1e4  # a filling above all else that is not negative: probabilities and maps have high plateaus, too
UNIT, UNIT_SLACK = 1.0, 1e-3  # probabilities and the like lie in 0..1, which is a scale of its own
UNIT_RARE, UNIT_QUIET, UNIT_STEADY = 0.1, 0.03, 0.05


@dataclass
class Part:
    """Slices of an output that are one quantity.

    Attributes:
        name: where they lie, in words: `axis 1: 0-3`.
        count: elements, over all samples.
        energy: sum of squares of the original.
        signal: what errors are held against: the energy; what varies, where the mean would hide it; a floor where there
            is next to nothing.
        noise, largest: sum of squares and largest absolute value of the errors.
        judged_by: which of these, in words.
    """

    name: str
    count: int
    energy: float
    signal: float
    noise: float
    largest: float
    judged_by: str = "energy"


@dataclass(frozen=True)
class Pieces:
    """What is summed along every axis of one array of originals and one of errors.

    Attributes:
        values, energy: the originals and their squares; 0 where an element does not count.
        noise, errors: squares and absolute values of the errors; 0 where an element does not count.
        low, high: the originals; infinite where an element does not count.
        counted: which elements belong here; None for all.
    """

    values: Floats
    energy: Floats
    noise: Floats
    errors: Floats
    low: Floats
    high: Floats
    counted: NDArray[np.bool_] | None = None

    @classmethod
    def whole(cls, values: Floats, errors: Floats) -> Pieces:
        """All elements; `errors` without their sign."""
        return cls(values, np.square(values), np.square(errors), errors, values, values)

    @classmethod
    def of(cls, values: Floats, difference: Floats, counted: NDArray[np.bool_]) -> Pieces:
        """Some elements."""
        low, high = np.where(counted, values, np.inf), np.where(counted, values, -np.inf)
        values, errors = np.where(counted, values, 0.0), np.abs(np.where(counted, difference, 0.0))
        return cls(values, np.square(values), np.square(errors), errors, low, high, counted)


def _along(reduce: np.ufunc, array: NDArray[Any], across: tuple[int, int, int]) -> NDArray[Any]:
    """One number for each slice of an array [before, slices, behind]; inner axes first, which is what is fast."""
    before, slices, behind = across
    found = array.reshape(before * slices, behind) if behind > 1 else array.reshape(before, slices)
    if behind > 1:
        found = reduce.reduce(found, axis=1).reshape(before, slices)
    reduced: NDArray[Any] = reduce.reduce(found, axis=0) if before > 1 else found[0]
    return reduced


class AxisSums:
    """Sums for each slice along one axis of an output, whose size has to stay."""

    def __init__(self, axis: int, size: int) -> None:
        self.axis, self.size = axis, size
        self.count, self.total = np.zeros(size, np.int64), np.zeros(size)
        self.energy, self.noise, self.largest = np.zeros(size), np.zeros(size), np.zeros(size)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)

    def add(self, pieces: Pieces) -> None:
        """Count one array of originals and one of errors."""
        shape = pieces.values.shape
        across = (math.prod(shape[: self.axis]), self.size, math.prod(shape[self.axis + 1 :]))
        if pieces.counted is None:
            self.count += pieces.values.size // self.size
        else:
            self.count += _along(np.add, pieces.counted.astype(np.int64), across)
        self.total += _along(np.add, pieces.values, across)
        self.energy += _along(np.add, pieces.energy, across)
        self.noise += _along(np.add, pieces.noise, across)
        self.largest = np.maximum(self.largest, _along(np.maximum, pieces.errors, across))
        self.low = np.minimum(self.low, _along(np.minimum, pieces.low, across))
        self.high = np.maximum(self.high, _along(np.maximum, pieces.high, across))

    @property
    def peak(self) -> Floats:
        """Largest absolute value of each slice."""
        return np.where(self.count > 0, np.maximum(np.abs(self.low), np.abs(self.high)), 0.0)

    @property
    def rms(self) -> Floats:
        """Root of the mean square of each slice."""
        return np.sqrt(self.energy / np.maximum(self.count, 1))


@dataclass
class Filling:
    """Elements that hold one far larger value: a mask's -1e9, wherever it stands in each sample."""

    value: float | None = None
    count: int = 0
    energy: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def take(self, values: Floats, difference: Floats, counted: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Count the elements that fill; which are left to be counted elsewhere, None for all."""
        if self.value is None:
            self.value = _filling(values if counted is None else values[counted])
        if self.value is None:
            return counted
        filled = np.abs(values - self.value) <= FILL_SPREAD * abs(self.value)
        if counted is not None:
            filled &= counted
        if not filled.any():
            return counted
        errors = difference[filled]
        self.count += errors.size
        self.energy += float(np.square(values[filled]).sum())
        self.noise += float(np.square(errors).sum())
        self.largest = max(self.largest, float(np.abs(errors).max()))
        return ~filled if counted is None else counted & ~filled

    def part(self) -> Part | None:
        """The elements as a part."""
        if self.value is None or not self.count:
            return None
        name = f"elements of about {self.value:.3g}"
        return Part(name, self.count, self.energy, self.energy, self.noise, self.largest)


def _filling(values: Floats) -> float | None:
    """The value that fills, where all elements are near it or far below it in size."""
    if values.size < 2:
        return None
    low, high = float(values.min()), float(values.max())
    value, peak = (high, high) if high >= -low else (low, -low)
    if peak == 0.0 or (value > 0 and low >= 0 and peak < FILL_POSITIVE):
        return None
    many = int(np.count_nonzero(np.abs(values) > peak / FILL_GAP))
    if many < 2 or many == values.size:
        return None
    edge = (1 - FILL_SPREAD) * peak
    near = np.count_nonzero(values >= edge if value > 0 else values <= -edge)
    return value if near == many else None


def axes_of(known: dict[int, AxisSums] | None, shape: tuple[int, ...], rows: int) -> dict[int, AxisSums]:
    """Sums for the axes that may separate quantities: none that counts samples, places in a map, or that changes."""
    if known is not None:
        return {axis: sums for axis, sums in known.items() if axis < len(shape) and shape[axis] == sums.size}
    first = 1 if shape and shape[0] == rows else 0
    axes = [axis for axis in range(first, len(shape)) if 1 < shape[axis] <= MOST_SLICES]
    if len(shape) - first >= 3:
        axes = [axis for axis in axes if not _spatial(axis, shape, first)]
    if not axes and len(shape) > first:
        axes = [len(shape) - 1]
    return {axis: AxisSums(axis, shape[axis]) for axis in axes}


def _spatial(axis: int, shape: tuple[int, ...], first: int) -> bool:
    """Whether an axis of a map is one of its two directions: large, beside another of like size."""
    size = shape[axis]
    beside = [shape[i] for i in (axis - 1, axis + 1) if first <= i < len(shape)]
    return size >= SPATIAL and any(size <= 2 * other and other <= 2 * size for other in beside)


def parts_of(axes: list[AxisSums], filling: Filling) -> list[Part]:
    """The parts of one output; none where it is one quantity, and all of it counts."""
    filled = filling.part()
    found: list[Part] = []
    whole: list[Part] = []
    for sums in sorted(axes, key=lambda sums: sums.size):  # quantities are few beside places
        labels = clusters(sums)
        groups = [np.flatnonzero(labels == label) for label in range(int(labels.max(initial=-1)) + 1)]
        if len(groups) > 1:
            found += _judged(sums, groups)
        elif groups:
            whole.append(_judged(sums, groups)[0])
    if found or not whole:
        return [*found, *([filled] if filled else [])]
    rest = whole[0]
    rest.name = "all other elements" if filled else "all elements"
    if filled:
        return [rest, filled]
    return [] if rest.judged_by == "energy" else [rest]


@dataclass(frozen=True)
class Slices:
    """Slices of an output along one axis that are one quantity.

    Attributes:
        axis: which; `places`: indices of the slices there, of `size`.
        signal: what errors are held against, as in `Part`.
    """

    axis: int
    places: NDArray[np.intp]
    size: int
    signal: float


def slices_of(axes: list[AxisSums]) -> list[Slices]:
    """As `parts_of`, by where they lie, for originals that were added without errors; none where there are no axes."""
    found: list[Slices] = []
    whole: list[Slices] = []
    for sums in sorted(axes, key=lambda sums: sums.size):
        labels = clusters(sums)
        groups = [np.flatnonzero(labels == label) for label in range(int(labels.max(initial=-1)) + 1)]
        told = [Slices(sums.axis, g, sums.size, _reference(sums, g, groups)[0]) for g in groups if sums.count[g].sum()]
        if len(told) > 1:
            found += told
        elif told:
            whole.append(told[0])
    return found or whole[:1]


def _judged(sums: AxisSums, groups: list[NDArray[np.intp]]) -> list[Part]:
    """Each group of slices with what its errors are held against."""
    found = []
    for group in groups:
        count, energy = int(sums.count[group].sum()), float(sums.energy[group].sum())
        if not count:
            continue
        signal, words = _reference(sums, group, groups)
        name = f"axis {sums.axis}: {_ranges(group)}"
        noise, largest = float(sums.noise[group].sum()), float(sums.largest[group].max())
        found.append(Part(name, count, energy, signal, noise, largest, words))
    return found


def _reference(sums: AxisSums, group: NDArray[np.intp], groups: list[NDArray[np.intp]]) -> tuple[float, str]:
    """What the errors of a group are held against, summed over its elements, and in words."""
    count, energy = int(sums.count[group].sum()), float(sums.energy[group].sum())
    peak, all_peaks = float(sums.peak[group].max()), sums.peak
    if peak <= DEAD * float(all_peaks.max()):
        level = float(sums.energy.sum()) / max(int(sums.count.sum()), 1)
        return max(energy, QUIET**2 * level * count), "absolute error: next to nothing is there"
    unit = _in_unit(sums, group)
    if unit:
        beside = [float(all_peaks[g].max()) for g in groups if g is not group and _in_unit(sums, g)]
        if beside and peak < UNIT_RARE * max(beside):
            floor = (UNIT_QUIET * max(beside)) ** 2 * count
            return max(energy, floor), "absolute error: next to nothing is there"
    varying = _varying(sums, group)
    if varying is None:
        return energy, "energy"
    if unit:
        return min(energy, max(varying, UNIT_STEADY**2 * count)), "what varies about the mean, with a floor"
    return varying, "what varies about the mean"


def _in_unit(sums: AxisSums, group: NDArray[np.intp]) -> bool:
    return float(sums.low[group].min()) >= -UNIT_SLACK and float(sums.high[group].max()) <= UNIT + UNIT_SLACK


def _varying(sums: AxisSums, group: NDArray[np.intp]) -> float | None:
    """Squares about the mean, where the mean is so large that it would hide errors; None where it is not.

    The mean is that of the whole group: slices whose means differ widely (the logits of classes) say something by them.
    Only of a few slices, and where each hides errors by far, is it that of each.
    """
    if len(group) < sums.size / FEW and sums.size > 4 * FEW:
        return None  # outlier channels, whose errors count beside all others
    count, total, energy = sums.count[group], sums.total[group], sums.energy[group]
    common = max(float(energy.sum() - total.sum() ** 2 / max(count.sum(), 1)), 0.0)
    if CONSTANT**2 * energy.sum() < common < energy.sum() / OFFSET:
        return common
    if len(group) <= FEW and count.min() >= 2 * LEAST_VALUES:
        each = np.maximum(energy - total**2 / count, 0.0)
        if ((each > CONSTANT**2 * energy) & (each < energy / OFFSET_EACH)).all():
            return float(each.sum())
    return None


def clusters(sums: AxisSums) -> NDArray[np.intp]:
    """A number for each slice that says which quantity it belongs to; -1 for slices without elements.

    Slices are sorted by their root mean square; where a gap lies between one and the next, another quantity begins.
    Quantities of one output stand side by side, in whole runs of slices: single slices that stick out of a run (an
    outlier channel of an embedding, a class that is common in the data) are no quantity of their own, and scales that
    are strewn over the axis tell none apart.
    """
    held = sums.count > 0
    if sums.size < 2 or not held.any() or sums.count[held].min() < LEAST_VALUES:
        return np.where(held, 0, -1)
    dead = held & (sums.peak <= DEAD * sums.peak.max())
    alive = np.flatnonzero(held & ~dead)
    labels = np.full(sums.size, -1)
    if not len(alive):
        return np.where(held, 0, -1)
    levels = np.log10(np.maximum(sums.rms[alive], np.finfo(np.float64).tiny))
    labels[alive] = _levels(levels)
    labels[dead] = labels.max() + 1
    places = np.flatnonzero(held)
    kept = labels[places]
    if sums.size > FEW and not _periodic(kept):
        kept = _without_single(kept)
        if not _in_runs(kept):
            kept = np.where(dead[places], 1, 0) if _in_runs(np.where(dead[places], 1, 0)) else np.zeros_like(kept)
    labels[places] = np.unique(kept, return_inverse=True)[1]
    return labels


def _levels(levels: Floats) -> NDArray[np.intp]:
    """Cluster numbers of levels in decades."""
    few = len(levels) <= FEW
    gap = GAP_FEW if few else GAP
    order = np.argsort(-levels, kind="stable")
    labels = np.zeros(len(levels), np.intp)
    number, top = 0, float(levels[order[0]])
    for before, here in pairwise(order):
        if levels[before] - levels[here] >= gap or (few and top - levels[here] >= SPREAD_FEW):
            number, top = number + 1, float(levels[here])
        labels[here] = number
    return labels


def _periodic(labels: NDArray[np.intp]) -> bool:
    """Whether the same quantities follow one another again and again, as for each anchor of a detector."""
    n = len(labels)
    periods = (p for p in range(2, n // 2 + 1) if n % p == 0)
    return any(bool((labels[p:] == labels[:-p]).all()) and len(set(labels[:p].tolist())) > 1 for p in periods)


def _without_single(labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Single slices between two of the same other quantity go to that one."""
    found = labels.copy()
    inside = (labels[:-2] == labels[2:]) & (labels[1:-1] != labels[:-2])
    found[1:-1][inside] = labels[:-2][inside]
    return found


def _in_runs(labels: NDArray[np.intp]) -> bool:
    """Whether quantities stand in runs: they change far less often than in a random order, or only once each."""
    changes = int((labels[1:] != labels[:-1]).sum())
    sizes: NDArray[Any] = np.unique(labels, return_counts=True)[1].astype(np.float64)
    shuffled = (len(labels) ** 2 - np.square(sizes).sum()) / max(len(labels), 1)
    return changes < len(sizes) or changes <= RANDOM_SHARE * shuffled


def _ranges(group: NDArray[np.intp], most: int = 4) -> str:
    """`0-3, 7`, the first few runs of rising numbers."""
    cuts = np.flatnonzero(np.diff(group) > 1) + 1
    runs = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in np.split(group, cuts)]
    more = f" and {len(runs) - most} more" if len(runs) > most else ""
    return ", ".join(runs[:most]) + more
