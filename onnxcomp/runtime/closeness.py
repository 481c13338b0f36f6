"""How close is one output to that of another model, part by part? Running sums; one batch in memory at a time.

An output may hold quantities of unlike scale: boxes in pixels beside scores, a mask's -1e9 beside logits, kelvin. One
energy over all of it would be that of the largest quantity, and hide what happens to the others. So the first model's
own values tell which slices belong together (`onnxcomp.runtime.parts`), and each part is judged by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxcomp.results import OutputFidelity, PartFidelity
from onnxcomp.runtime.parts import AxisSums, Filling, Part, Pieces, axes_of, parts_of
from onnxcomp.runtime.session import Array

# JSON holds no infinity: this stands for an error without bound (a new NaN or infinity, another shape)
WORST_DB = -999.0
EXACT_DB = -WORST_DB
CHUNK = 1 << 18  # elements that are looked at together: in double precision they fit a processor's cache
SILENT = 1e-6  # where an output is zero throughout, errors are held against this


@dataclass
class Tally:
    """Running sums of one output.

    SQNR = 10 log10(sum a^2 / sum (a - b)^2) over all elements of all samples, in float64; not a mean of the SQNRs of
    batches. NaN equals NaN and an infinity equals itself at the same place; a NaN or infinity that only one model
    gives is an error without bound, and so is another shape: SQNR `WORST_DB`, max_abs_error infinite.

    `varying`: the number of rows depends on the values (behind NonMaxSuppression, say): then another shape is no
    error, and no element has a counterpart.
    """

    varying: bool = False
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    elements: int = 0
    equal: int = 0
    infinite: int = 0
    rows: int = 0
    agreeing: int = 0
    unbounded: bool = False
    reshaped: bool = False
    same_type: bool = True
    floating: bool = True
    ranked: bool = True
    filling: Filling = field(default_factory=Filling)
    axes: dict[int, AxisSums] | None = None

    def add(self, before: Array, after: Array, rows: int) -> None:
        """Count one batch of `rows` samples; both arrays hold the same output."""
        self.floating = is_float(before.dtype)
        self.same_type = self.same_type and before.dtype == after.dtype
        self.ranked = self.ranked and self.floating and before.ndim == 2 and before.shape[0] == rows
        self.ranked = self.ranked and before.shape[1] >= 2
        self.rows += rows
        self.elements += before.size
        if before.shape != after.shape:
            self.reshaped, self.largest = True, math.inf
            self.unbounded = self.unbounded or not (self.varying and before.shape[1:] == after.shape[1:])
            return
        if before.dtype == object:
            same = np.asarray(before == after, bool)
            self.equal += int(same.sum())
            self.largest = max(self.largest, float(not same.all()))
            return
        self.axes = axes_of(self.axes, before.shape, rows) if self.floating else None
        for a, b in _chunks(before, after, rows):
            with np.errstate(over="ignore", invalid="ignore"):
                self._add_numbers(a.astype(np.float64), b.astype(np.float64))

    def _add_numbers(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        difference = a - b
        signal, noise = energy(a), energy(difference)
        if math.isfinite(signal) and math.isfinite(noise):  # so is every element
            self.equal += a.size - int(np.count_nonzero(difference))
            same = difference == 0 if self.ranked else None
            self._add_finite(a, difference, signal, noise, None)
        else:
            same = self._add_odd(a, b)
        if same is not None and self.ranked:
            self.agreeing += _agreeing(a, b, same)

    def _add_odd(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Count values of which some are NaN, infinite, or too large to be squared; which are the same."""
        same: NDArray[np.bool_] = (a == b) | (np.isnan(a) & np.isnan(b))
        known = np.isfinite(a)
        finite = known & np.isfinite(b)
        self.infinite += a.size - int(known.sum())
        self.equal += int(same.sum())
        values, difference = np.where(known, a, 0.0), np.where(finite, a - b, 0.0)
        self._add_finite(values, difference, energy(values), energy(difference), None if bool(finite.all()) else finite)
        if not (same | finite).all():
            self.unbounded, self.largest = True, math.inf
        return same

    def _add_finite(
        self,
        values: NDArray[np.float64],
        difference: NDArray[np.float64],
        signal: float,
        noise: float,
        counted: NDArray[np.bool_] | None,
    ) -> None:
        """Add up signal and noise, over all elements and along the axes; `counted` as in `AxisSums.add`."""
        self.signal += signal
        self.noise += noise
        size = np.abs(difference)
        self.largest = max(self.largest, float(size.max(initial=0.0)))
        if self.axes is not None and values.size:
            counted = self.filling.take(values, difference, counted)
            pieces = Pieces.of(values, difference, counted) if counted is not None else Pieces.whole(values, size)
            for sums in self.axes.values():
                sums.add(pieces)

    def result(self) -> OutputFidelity:
        """What the sums say."""
        identical = self.same_type and not self.unbounded and not self.reshaped and self.equal == self.elements
        parts = [] if identical or not self.floating or self.reshaped else self._parts()
        judged = self.floating and not identical and not (self.reshaped and not self.unbounded)
        worst = min(parts, key=lambda part: part.sqnr_db, default=None)
        total = self._sqnr_db() if judged else None
        return OutputFidelity(
            identical=identical,
            sqnr_db=total if worst is None or not judged else worst.sqnr_db,
            max_abs_error=self.largest,
            top1_agreement=self.agreeing / self.rows if self.ranked and self.rows and not self.reshaped else None,
            equal_share=None if self.floating else self.equal / self.elements if self.elements else 1.0,
            finite_share=1.0 - self.infinite / self.elements if self.elements else 1.0,
            total_sqnr_db=total,
            parts=tuple(parts),
            worst_part=None if worst is None else worst.name,
            comparable=not self.reshaped or self.unbounded,
        )

    def _parts(self) -> list[PartFidelity]:
        """The parts and how close each is; none where the output is one quantity."""
        if self.unbounded or not math.isfinite(self.noise) or self.axes is None:
            return []
        return [
            PartFidelity(
                name=part.name,
                elements=part.count,
                rms=math.sqrt(part.energy / part.count),
                sqnr_db=sqnr_db(part.signal, part.noise),
                max_abs_error=part.largest,
                judged_by=part.judged_by,
            )
            for part in self._found()
        ]

    def _found(self) -> list[Part]:
        return parts_of(list((self.axes or {}).values()), self.filling)

    def _sqnr_db(self) -> float:
        if self.unbounded or not math.isfinite(self.noise):
            return WORST_DB
        return sqnr_db(self.signal or SILENT**2 * self.elements, self.noise)


def energy(values: Array) -> float:
    """Sum of squares in float64, by one thread.

    BLAS shares long dot products between its threads: where another process holds a core, one of 300,000 elements
    then takes 6 ms instead of 0.2, and the last digits depend on how many threads there are.
    """
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), `EXACT_DB` without noise, `WORST_DB` at least; NaN counts as noise without bound."""
    if noise == 0.0:
        return EXACT_DB
    if not (math.isfinite(noise) and signal > 0.0):
        return WORST_DB
    return float(np.clip(10 * (math.log10(signal) - math.log10(noise)), WORST_DB, EXACT_DB))


def worst_sqnr_db(
    expected: Iterable[Mapping[str, Array]], found: Iterable[Mapping[str, Array]], rows: Iterable[int] | None = None
) -> float:
    """The worst part of the worst output in dB, over batches of outputs by name; `EXACT_DB` where nothing differs.

    Outputs that are not floating-point numbers (classes behind ArgMax, masks behind a threshold) count by their share
    of unequal elements. That grows as the amplitude of the error before the decision does: one in a hundred stands for
    40 dB, one in ten for 20. Outputs whose number of rows depends on the values are passed over.

    Args:
        expected, found: one mapping a batch, those of the original and of another model.
        rows: samples in each batch; the first axis of each output if not given.
    """
    tallies: dict[str, Tally] = {}
    counts = iter(rows) if rows is not None else None
    for wanted, got in zip(expected, found, strict=True):
        count = None if counts is None else next(counts)
        for name, exact in wanted.items():
            many = (exact.shape[0] if exact.ndim else 1) if count is None else count
            tallies.setdefault(name, Tally(varying=True)).add(exact, got[name], many)
    return min((in_decibels(tally.result()) for tally in tallies.values()), default=EXACT_DB)


def noise_share(
    expected: Iterable[Mapping[str, Array]], found: Iterable[Mapping[str, Array]], rows: Iterable[int] | None = None
) -> float:
    """Noise over signal of the worst part of the worst output: `worst_sqnr_db` as a share, 0 where nothing differs."""
    worst = worst_sqnr_db(expected, found, rows)
    return 0.0 if worst >= EXACT_DB else float(10 ** (-worst / 10))


def rows_of(feed: Mapping[str, Array]) -> int:
    """Samples in a feed, where nothing says which axis counts them: the first axis of the first input that has one."""
    return next((int(array.shape[0]) for array in feed.values() if array.ndim), 1)


def in_decibels(output: OutputFidelity) -> float:
    """One output's closeness as a number that passes can compare, `EXACT_DB` where it is equal or cannot be told."""
    if output.sqnr_db is not None:
        return output.sqnr_db
    if output.identical or output.equal_share is None or not output.comparable:
        return EXACT_DB
    return sqnr_db(1.0, (1.0 - output.equal_share) ** 2)


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether the dtype is a floating-point one, those of ml_dtypes included."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _chunks(before: Array, after: Array, rows: int) -> Iterator[tuple[Array, Array]]:
    """Both arrays in pieces of whole samples."""
    if not before.ndim or before.shape[0] != rows or before.size <= CHUNK:
        yield before, after
        return
    step = max(1, CHUNK * rows // before.size)
    for start in range(0, rows, step):
        yield before[start : start + step], after[start : start + step]


def _agreeing(a: NDArray[np.float64], b: NDArray[np.float64], same: NDArray[np.bool_]) -> int:
    """Rows whose largest element is at the same place; a row with NaN agrees only when both rows are equal."""
    clear = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
    return int(((a.argmax(axis=1) == b.argmax(axis=1)) & clear | same.all(axis=1)).sum())
