"""Does it pay to move the range of an activation into the weights behind it? Measured on samples kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Variable
from onnxcomp.graph.rounding import Levels, round_nearest, symmetric_scales
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.passes.weights.layout import Layout
from onnxcomp.runtime.closeness import energy, sqnr_db
from onnxcomp.runtime.taps import stream

MOST_SAMPLES = 128
ROWS_A_BATCH = 64  # of an activation, evenly drawn, on which errors are measured; three times as many decide alike
WORTH_DB = 0.25
LEVELS = Levels.signed(8)


@dataclass(frozen=True)
class Group:
    """Products that read one activation.

    Attributes:
        key: tells groups apart.
        activation: what they read; [..., K], or [K, M] where `turned`.
    """

    key: str
    activation: Variable
    uses: list[WeightUse]
    turned: bool = False

    def rows(self, values: Array) -> Array:
        """The activation as [rows, K]."""
        return values.T if self.turned else values.reshape(-1, values.shape[-1])


@dataclass(frozen=True)
class Verdict:
    """What was measured for one group.

    Attributes:
        smoothing: float32 [K], what the activation is divided by and the weights are multiplied with; None where that
            does not pay.
        sqnr_db: by node name, the product's own error in the form that was chosen.
    """

    smoothing: Array | None
    sqnr_db: dict[str, float]


@dataclass
class _Trial:
    """Sums for one group: extremes on the first samples, errors with and without smoothing on the rest."""

    group: Group
    smooth: float
    largest: Array | None = None
    factors: Array | None = None
    signal: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    _weights: list[tuple[Array, Array, Array]] = field(default_factory=list)

    def learn(self, values: Array) -> None:
        found = np.abs(self.group.rows(values)).max(axis=0, initial=0.0)
        self.largest = found if self.largest is None else np.maximum(self.largest, found)

    def judge(self, values: Array) -> None:
        if self.factors is None:
            self._prepare()
        assert self.factors is not None
        rows = self.group.rows(values)
        step = max(1, len(rows) // ROWS_A_BATCH)
        picked = rows[::step]
        plain, smoothed = _dynamic(rows)(picked), _dynamic(rows / self.factors)(picked / self.factors)
        for i, (weight, integers, smooth_integers) in enumerate(self._weights):
            wanted = picked @ weight
            self.signal[i] += energy(wanted)
            self.plain[i] += energy(plain @ integers - wanted)
            self.smoothed[i] += energy(smoothed @ smooth_integers - wanted)

    def verdict(self) -> Verdict:
        before, after = sum(self.plain), sum(self.smoothed)
        pays = (
            bool(self.smooth)
            and np.isfinite(after)
            and 10 * np.log10(max(before, 1e-30) / max(after, 1e-30)) > WORTH_DB
        )
        noise = self.smoothed if pays else self.plain
        sqnr = {use.node.name: sqnr_db(s, n) for use, s, n in zip(self.group.uses, self.signal, noise, strict=True)}
        return Verdict(self.factors if pays else None, sqnr)

    def _prepare(self) -> None:
        """The factors, and every weight as float, rounded, and rounded after smoothing: [K, N]."""
        weights = []
        for use in self.group.uses:
            layout = Layout.of(use.constant.shape, use.weight, 0)
            weights.append(layout.read(use.constant.values, slice(None)))  # [N, K]
        assert self.largest is not None
        heaviest = np.max([np.abs(weight).max(axis=0, initial=0.0) for weight in weights], axis=0)
        self.factors = smoothing_factors(self.largest, heaviest, self.smooth)
        for weight in weights:
            self._weights.append((weight.T, _rounded(weight).T, _rounded(weight * self.factors).T))
        self.signal, self.plain, self.smoothed = ([0.0] * len(weights) for _ in range(3))


def smoothing_factors(activation: Array, weight: Array, smooth: float) -> Array:
    """s = max|x|^smooth / max|W|^(1 - smooth) for each input channel; 1 where either is 0. float32 [K]."""
    usable = (activation > 0) & (weight > 0) & np.isfinite(activation)
    x, w = np.where(usable, activation, 1).astype(np.float64), np.where(usable, weight, 1).astype(np.float64)
    factors = np.where(usable, x**smooth / w ** (1 - smooth), np.nan)
    middle = np.exp(np.nanmean(np.log(factors))) if usable.any() else 1.0
    return np.clip(np.nan_to_num(factors / middle, nan=1.0), 1e-3, 1e3).astype(np.float32)


def measure(graph: Graph, groups: list[Group], context: PassContext, smooth: float) -> dict[str, Verdict]:
    """A verdict by group key, for groups of the main graph whose activations are finite.

    The first half of the samples gives the ranges, the second half the errors.
    """
    assert context.calibration is not None
    samples = FirstSamples(context.calibration, MOST_SAMPLES)
    trials = {group.key: _Trial(group, smooth) for group in groups}
    by_name: dict[str, list[_Trial]] = {}
    for trial in trials.values():
        by_name.setdefault(trial.group.activation.name, []).append(trial)
    if not trials:
        return {}
    turns = dict.fromkeys(by_name, 0)
    batches = max(1, -(-len(samples) // samples.size))
    for found in stream(
        graph,
        list(by_name),
        samples,
        batch=samples.size,
        threads=context.threads,
        progress=context.progress,
        text="looking at activations",
    ):
        for name, values in found.items():
            learning = turns[name] < (batches + 1) // 2
            turns[name] += 1
            if not values.size or not np.isfinite(values).all():
                continue
            for trial in by_name[name]:
                if learning or batches == 1:
                    trial.learn(values)
                if (not learning or batches == 1) and trial.largest is not None:
                    trial.judge(values)
    return {key: trial.verdict() for key, trial in trials.items() if trial.signal and sum(trial.signal) > 0}


class FirstSamples:
    """The first samples of a source."""

    size = 8

    def __init__(self, samples: SampleSource, most: int) -> None:
        self.samples = samples
        self.count = min(len(samples), most)

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Feeds by input name."""
        size = size or self.size
        return islice(self.samples.batches(size), -(-self.count // size))


def _dynamic(values: Array) -> Any:
    """What DynamicQuantizeLinear makes of a tensor, and back to float: a function that rounds rows of it."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    zero = np.float32(np.clip(np.rint(-low / scale), 0, 255))
    return lambda rows: (np.clip(np.rint(rows / scale) + zero, 0, 255) - zero) * scale


def _rounded(weight: Array) -> Array:
    scales = symmetric_scales(weight, LEVELS)
    return round_nearest(weight, scales, LEVELS) * scales[:, None]
