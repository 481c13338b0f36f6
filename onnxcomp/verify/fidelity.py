"""How close are the outputs of two models? Sums over all samples, one batch in memory at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxcomp.results import Fidelity, OutputFidelity
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Array
from onnxcomp.verify.pair import Answer, Runner, Samples, is_float

Source = Literal["data", "synthetic"]

# JSON holds no infinity: this stands for an error without bound (a new NaN or infinity, another shape)
WORST_DB = -999.0


@dataclass
class Tally:
    """Running sums of one output.

    SQNR = 10 log10(sum a^2 / sum (a - b)^2) over all elements of all samples, in float64; not a mean of the SQNRs of
    batches. NaN equals NaN and an infinity equals itself at the same place; a NaN or infinity that only one model
    gives is an error without bound, and so is another shape: SQNR `WORST_DB`, max_abs_error infinite.
    """

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    elements: int = 0
    equal: int = 0
    infinite: int = 0
    rows: int = 0
    agreeing: int = 0
    unbounded: bool = False
    same_type: bool = True
    floating: bool = True
    ranked: bool = True

    def add(self, before: Array, after: Array, rows: int) -> None:
        """Count one batch of `rows` samples; both arrays hold the same output."""
        self.floating = is_float(before.dtype)
        self.same_type = self.same_type and before.dtype == after.dtype
        self.ranked = self.ranked and self.floating and before.ndim == 2 and before.shape[0] == rows
        self.ranked = self.ranked and before.shape[1] >= 2
        self.rows += rows
        self.elements += before.size
        if before.shape != after.shape:
            self.unbounded, self.largest = True, math.inf
            return
        if before.dtype == object:
            same = np.asarray(before == after, bool)
            self.equal += int(same.sum())
            self.largest = max(self.largest, float(not same.all()))
            return
        with np.errstate(over="ignore", invalid="ignore"):
            self._add_numbers(before.astype(np.float64), after.astype(np.float64))

    def _add_numbers(self, a: Array, b: Array) -> None:
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        self.infinite += a.size - int(np.isfinite(a).sum())
        self.equal += int(same.sum())
        if self.ranked:
            self.agreeing += _agreeing(a, b, same)
        difference = np.where(finite, a - b, 0.0)
        self.signal += _energy(np.where(np.isfinite(a), a, 0.0))
        self.noise += _energy(difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        if not (same | finite).all():
            self.unbounded, self.largest = True, math.inf

    def result(self) -> OutputFidelity:
        """What the sums say."""
        identical = self.same_type and not self.unbounded and self.equal == self.elements
        return OutputFidelity(
            identical=identical,
            sqnr_db=None if identical or not self.floating else self._sqnr_db(),
            max_abs_error=self.largest,
            top1_agreement=self.agreeing / self.rows if self.ranked and self.rows else None,
            equal_share=None if self.floating else self.equal / self.elements if self.elements else 1.0,
            finite_share=1.0 - self.infinite / self.elements if self.elements else 1.0,
        )

    def _sqnr_db(self) -> float:
        if self.unbounded or self.signal == 0.0 or not math.isfinite(self.noise):
            return WORST_DB if self.unbounded or self.noise else -WORST_DB
        if self.noise == 0.0:
            return -WORST_DB
        return float(np.clip(10 * math.log10(self.signal / self.noise), WORST_DB, -WORST_DB))


class Closeness:
    """A tally for each output of a pair of models."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.samples = 0

    def add(self, answer: Answer) -> None:
        """Count one batch."""
        before, after = answer.outputs
        self.samples += answer.rows
        for name, array in before.items():
            self.tallies.setdefault(name, Tally()).add(array, after[name], answer.rows)

    def result(self, source: Source) -> Fidelity:
        """Closeness of all outputs."""
        return Fidelity(self.samples, source, {name: tally.result() for name, tally in self.tallies.items()})


def fidelity(
    before: Path,
    after: Path,
    samples: Samples,
    *,
    source: Source = "data",
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = SILENT,
) -> Fidelity:
    """Closeness of every output of `after` to that of `before`, over all samples.

    Args:
        before, after: model files with the same inputs and outputs.
        samples: what both are run on.
        source: whether the samples are data or were made up.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core.
        progress: shows the batches.

    Raises:
        ModelError: a model does not load or run, or their inputs or outputs differ.
        DataError: there are no samples, or they do not fit.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    closeness = Closeness()
    for answer in Runner(before, after, provider=provider, threads=threads).answers(samples, progress=progress):
        closeness.add(answer)
    return closeness.result(source)


def _energy(values: Array) -> float:
    flat: np.ndarray[Any, np.dtype[np.float64]] = values.reshape(-1)
    return float(flat @ flat)


def _agreeing(a: Array, b: Array, same: Array) -> int:
    """Rows whose largest element is at the same place; a row with NaN agrees only when both rows are equal."""
    clear = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
    return int(((a.argmax(axis=1) == b.argmax(axis=1)) & clear | same.all(axis=1)).sum())
