"""How often do two models name the same class, sample by sample or place by place, or decide the same?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from onnxcomp.results import Agreement
from onnxcomp.runtime.session import Array
from onnxcomp.verify.tasks.base import KINDS, LEAST, Measure

FEW_YES = 10
MOST_FLIPS = 24  # that are named
MASK_AXES = 4  # samples, one class or several, height, width
MOST_CLASSES = 256  # of a map; more are words of a language, of which each is rare
RARE = 1e-3  # of all places: a class that stands at fewer is left to chance
LOST = 0.5  # IoU of a class's places before and after, below which it is named


class Areas:
    """Which places each class has in both models: a rare class may vanish while nearly all places stay equal.

    IoU of a class = places that both name so / places that either does; classes that the original names count.
    """

    def __init__(self) -> None:
        self.counts: Array = np.zeros((3, 0), np.int64)  # [both, before, after] by class

    def add(self, first: Array, second: Array) -> None:
        """Count places of two maps of whole numbers from 0 on, of one shape."""
        first, second = first.reshape(-1), second.reshape(-1)
        size = max(self.counts.shape[1], int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1)
        found = [np.bincount(part, minlength=size) for part in (first[first == second], first, second)]
        self.counts = np.pad(self.counts, ((0, 0), (0, size - self.counts.shape[1]))) + np.stack(found)

    def told(self, kind: str) -> tuple[dict[str, float], list[str]]:
        """The mean IoU of the classes, and in words which one is as good as gone."""
        both, before, after = self.counts
        present = np.flatnonzero(before)
        if not 1 < len(present) <= MOST_CLASSES:
            return {}, []
        ious = both[present] / (before + after - both)[present]
        common = before[present] >= max(LEAST, RARE * before.sum())
        lines = []
        if common.any() and (least := float(ious[common].min())) < LOST:
            name = int(present[common][int(ious[common].argmin())])
            lines.append(f"class {name}, {before[name] / before.sum():.1%} of the {kind}, keeps an IoU of {least:.2f}")
        return {"mean_iou": float(ious.mean())}, lines


class Clumps:
    """Do decisions of one sample change together? Shares differ between samples by more than chance where they do."""

    def __init__(self) -> None:
        self.samples = 0
        self.sums: Array = np.zeros((2, 2))  # of products of [equal, places] over samples

    def add(self, equal: Array, rows: int) -> None:
        """Count decisions [N, ...], or [T, N] with `rows` samples, True where both models decide alike."""
        axis = 0 if equal.shape[0] == rows or equal.ndim < 2 or equal.shape[1] != rows else 1
        if equal.shape[axis] != rows:
            self.samples = -1
        if self.samples < 0:
            return
        flat = np.moveaxis(equal, axis, 0).reshape(rows, -1)
        pairs = np.stack([flat.sum(axis=1), np.full(rows, flat.shape[1])]).astype(np.float64)
        self.samples += rows
        self.sums = self.sums + pairs @ pairs.T

    def evidence(self, equal: int, places: int) -> int | None:
        """As many independent decisions have this variance: share (1 - share) / variance, by the ratio estimator."""
        if self.samples < LEAST or not 0 < equal < places:
            return None
        share = equal / places
        weights = np.array([1.0, -share])
        residual = float(weights @ self.sums @ weights) * self.samples / (self.samples - 1)
        return int(min(places, share * (1 - share) * places**2 / max(residual, 1e-9)))


class Classes(Measure):
    """The highest score along one axis, the same in both; one class a sample, or one a place.

    Args:
        kind: `classes`, `tokens` or `pixels`.
        axis: of the classes.
    """

    def __init__(self, kind: str, output: str, axis: int = -1) -> None:
        self.kind, self.outputs, self.axis = kind, (output,), axis
        self.samples = self.places = self.equal = 0
        self.counts: Array = np.zeros(1, np.int64)
        self.flips: list[tuple[int, int, int]] = []
        self.areas = Areas()
        self.clumps = Clumps()

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        start = self.samples
        self.samples += rows
        if a.shape != b.shape or a.ndim < 2:
            self.places += a.size
            return
        known = ~(np.isnan(a).any(axis=self.axis) | np.isnan(b).any(axis=self.axis))
        first, second = a.argmax(axis=self.axis), b.argmax(axis=self.axis)
        self.places += first.size
        self.equal += int(((first == second) & known).sum())
        counts = np.bincount(first.reshape(-1), minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        if first.size > rows:
            self.areas.add(first, second)
            self.clumps.add((first == second) & known, rows)
        if self.kind == "classes" and first.size == rows:
            first, second = first.reshape(-1), second.reshape(-1)
            other = np.flatnonzero(first != second)[: MOST_FLIPS - len(self.flips)]
            self.flips += [(start + int(i), int(first[i]), int(second[i])) for i in other]

    def result(self) -> Agreement:
        """Share of samples or places."""
        doubts = _few(self.samples)
        if self.samples >= LEAST and int((self.counts > 0).sum()) == 1:
            doubts.append(f"the original names class {int(self.counts.argmax())} {_everywhere(self.kind)}")
        value = self.equal / self.places if self.places else None
        details, lost = self.areas.told(_PLACES.get(self.kind, "places"))
        return Agreement(
            self.kind,
            self.outputs,
            KINDS[self.kind],
            value,
            self.samples,
            details,
            (*lost, *doubts),
            tuple(self.flips),
            self.places,
            self.clumps.evidence(self.equal, self.places),
        )


class Together(Measure):
    """The highest score of each of several outputs, which name one thing together: a sample counts if all are the same.

    Each output is told by itself as well, by a measure of its own.
    """

    kind = "classes"

    def __init__(self, outputs: tuple[str, ...]) -> None:
        self.outputs = outputs
        self.samples = self.equal = 0

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch."""
        self.samples += rows
        same = np.ones(rows, bool)
        for name in self.outputs:
            a, b = before[name], after[name]
            if a.shape != b.shape or a.ndim != 2 or len(a) != rows:
                return
            known = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
            same &= (a.argmax(axis=1) == b.argmax(axis=1)) & known
        self.equal += int(same.sum())

    def result(self) -> Agreement:
        """Share of samples."""
        words = f"{KINDS[self.kind]} in all {len(self.outputs)} outputs"
        value, doubts = self.equal / self.samples if self.samples else None, tuple(_few(self.samples))
        return Agreement(self.kind, self.outputs, words, value, self.samples, doubts=doubts, decisions=self.samples)


class Decisions(Measure):
    """Yes or no at a threshold: 0.5 for probabilities, 0 for other numbers.

    Where there is more than one number a sample, no is usual: then those that either model says yes to count, as
    F1 = 2 both / (yes of one + yes of the other). Of masks, which have a height and a width, the area that both say yes
    to counts as a share of what either does: IoU = both / (yes of one + yes of the other - both).
    """

    kind = "decisions"

    def __init__(self, output: str, threshold: float, *, kind: str = "decisions") -> None:
        self.kind, self.outputs, self.threshold = kind, (output,), threshold
        self.samples = self.places = self.equal = self.both = self.yes = self.other = 0
        self.mask = False

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch."""
        a, b = (side[self.outputs[0]] for side in (before, after))
        self.samples += rows
        self.places += a.size
        self.mask = a.ndim == MASK_AXES
        if a.shape != b.shape:
            return
        first, second = a > self.threshold, b > self.threshold
        self.equal += int(((first == second) & ~np.isnan(a.astype(np.float64) + b.astype(np.float64))).sum())
        self.both += int((first & second).sum())
        self.yes += int(first.sum())
        self.other += int(second.sum())

    def result(self) -> Agreement:
        """F1 or IoU of yes, or the share of equal decisions."""
        doubts = _few(self.samples)
        several = self.places > self.samples
        rare = several and self.yes >= FEW_YES
        if self.samples >= LEAST and self.yes in (0, self.places):
            doubts.append(f"the original says {'no' if self.yes == 0 else 'yes'} to every sample")
        value: float | None = None
        words = f"{KINDS['decisions']} at {self.threshold:g}"
        if self.places:
            value = self.equal / self.places
        if rare and self.mask:
            value, words = self.both / (self.yes + self.other - self.both), f"{words}, IoU"
        elif rare:
            value, words = 2 * self.both / (self.yes + self.other), f"{words}, F1"
        of = self.yes if rare else self.places
        return Agreement(self.kind, self.outputs, words, value, self.samples, doubts=tuple(doubts), decisions=of)


class Equal(Measure):
    """Outputs that are no floating-point numbers: classes behind ArgMax, masks behind a threshold, texts.

    Where the number of rows depends on the values and differs, rows are matched with equal ones, wherever they stand:
    F1 = 2 matched / (rows of one + rows of the other).
    """

    kind = "classes"

    def __init__(self, output: str) -> None:
        self.outputs = (output,)
        self.samples = self.places = self.equal = 0
        self.rows = self.others = self.matched = 0
        self.first: object = None
        self.varied = self.apart = False
        self.areas: Areas | None = Areas()

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        self.samples += rows
        self.places += a.size
        if a.size:
            self.first = a.reshape(-1)[0] if self.first is None else self.first
            self.varied = self.varied or bool((a != self.first).any())
        if a.shape == b.shape:
            self.equal += int(np.asarray(a == b, bool).sum())
            self._map(a, b, rows)
        else:
            self.apart = True
        if a.ndim and b.ndim and a.shape[0] != rows:
            self.rows, self.others = self.rows + len(a), self.others + len(b)
            self.matched += sum((_counted(a) & _counted(b)).values())

    def _map(self, a: Array, b: Array, rows: int) -> None:
        """Areas of a map of classes; numbers that can be none end the counting."""
        whole = a.dtype.kind in "iu" and b.dtype.kind in "iu" and a.ndim >= MASK_AXES - 1 and a.size > rows
        if not whole or min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= MOST_CLASSES:
            self.areas = None
        if self.areas is not None:
            self.areas.add(a, b)

    def result(self) -> Agreement:
        """Share of equal elements, or F1 of equal rows."""
        doubts = _few(self.samples)
        details, lost = self.areas.told("places") if self.areas is not None and not self.apart else ({}, [])
        if self.samples >= LEAST and self.places and not self.varied:
            doubts.append("the original gives one value everywhere")
        value, words, of = (
            self.equal / self.places if self.places and not self.apart else None,
            "equal values",
            self.places,
        )
        if self.apart and self.rows + self.others:
            value, words, of = 2 * self.matched / (self.rows + self.others), "equal rows, F1", self.rows
        return Agreement("classes", self.outputs, words, value, self.samples, details, (*lost, *doubts), decisions=of)


def _counted(array: Array) -> Counter[bytes]:
    return Counter(repr(row.tolist()).encode() if array.dtype == object else row.tobytes() for row in array)


def _few(samples: int) -> list[str]:
    return [f"{samples} sample{'s' * (samples != 1)} tell little"] if 0 < samples < LEAST else []


_PLACES = {"pixels": "pixels", "tokens": "places"}


def _everywhere(kind: str) -> str:
    return {"classes": "of every sample", "tokens": "at every place"}.get(kind, "at every pixel")
