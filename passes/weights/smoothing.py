"""Does it pay to move an activation's range into the weights, or to take out a few channels? Measured on samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import prod
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
APART = 16  # channels that are multiplied in float beside the others
FAR = 1.5  # times the largest of the channels left that the first of those reaches at least
LEAST_CHANNELS = 256  # a product of so few channels beside it would cost as much as it does
LEAST_WORK = 4_000_000  # multiply-accumulates a sample: what comes beside smaller products takes a good part of theirs
WORTH_APART_DB = 1.0  # a Mul, a Gather, a small product and a sum more
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

    @property
    def parts(self) -> bool:
        """Whether some of the channels may be multiplied apart: what adds that up takes time for every output."""
        if self.turned or any(use.node.op == "Attention" for use in self.uses):
            return False
        layouts = [Layout.of(use.constant.shape, use.weight, 0) for use in self.uses]
        return sum(layout.rows for layout in layouts) <= layouts[0].columns

    def rows(self, values: Array) -> Array:
        """The activation as [rows, K]."""
        return values.T if self.turned else values.reshape(-1, values.shape[-1])


@dataclass(frozen=True)
class Verdict:
    """What was measured for one group.

    Attributes:
        smoothing: float32 [K], what the activation is divided by and the weights are multiplied with; None where that
            does not pay.
        apart: channels that are multiplied in float beside the others, whose range they would set; int64 [few] or None.
        sqnr_db: by node name, the product's own error in the form that was chosen.
    """

    smoothing: Array | None
    sqnr_db: dict[str, float]
    apart: Array | None = None


@dataclass
class _Trial:
    """Sums for one group: extremes on the first samples, errors with and without smoothing on the rest."""

    group: Group
    smooth: float
    divides: bool
    largest: Array | None = None
    places: int = 1  # rows a sample, of the longest
    factors: Array | None = None
    signal: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    parted: list[float] = field(default_factory=list)
    apart: Array | None = None
    _weights: list[tuple[Array, Array, Array, Array]] = field(default_factory=list)

    def learn(self, values: Array) -> None:
        found = np.abs(self.group.rows(values)).max(axis=0, initial=0.0)
        self.largest = found if self.largest is None else np.maximum(self.largest, found)
        self.places = max(self.places, prod(values.shape[1:-1]))

    def judge(self, values: Array) -> None:
        if self.factors is None:
            self._prepare()
        assert self.factors is not None
        rows = self.group.rows(values)
        step = max(1, len(rows) // ROWS_A_BATCH)
        picked = rows[::step]
        plain, smoothed = _dynamic(rows)(picked), _dynamic(rows / self.factors)(picked / self.factors)
        for i, (weight, integers, smooth_integers, _) in enumerate(self._weights):
            wanted = picked @ weight
            self.signal[i] += energy(wanted)
            self.plain[i] += energy(plain @ integers - wanted)
            self.smoothed[i] += energy(smoothed @ smooth_integers - wanted)
        if self.apart is not None:
            left, few = np.array(rows), np.array(picked)
            left[:, self.apart] = few[:, self.apart] = 0
            others = _dynamic(left)(few)
            for i, (weight, *_, integers) in enumerate(self._weights):
                self.parted[i] += energy(others @ integers - few @ weight)

    def verdict(self) -> Verdict:
        before, after = sum(self.plain), sum(self.smoothed)
        pays = (
            bool(self.smooth)
            and np.isfinite(after)
            and 10 * np.log10(max(before, 1e-30) / max(after, 1e-30)) > WORTH_DB
        )
        noise = self.smoothed if pays else self.plain
        apart = self.apart
        if apart is None or 10 * np.log10(max(sum(noise), 1e-30) / max(sum(self.parted), 1e-30)) < WORTH_APART_DB:
            apart = None
        else:
            pays, noise = False, self.parted
        sqnr = {use.node.name: sqnr_db(s, n) for use, s, n in zip(self.group.uses, self.signal, noise, strict=True)}
        return Verdict(self.factors if pays else None, sqnr, apart)

    def _prepare(self) -> None:
        """The factors, and every weight as float, rounded, and rounded after smoothing: [K, N]."""
        weights = []
        for use in self.group.uses:
            layout = Layout.of(use.constant.shape, use.weight, 0)
            weights.append(layout.read(use.constant.values, slice(None)))  # [N, K]
        assert self.largest is not None
        heaviest = np.max([np.abs(weight).max(axis=0, initial=0.0) for weight in weights], axis=0)
        self.factors = smoothing_factors(self.largest, heaviest, self.smooth)
        work = self.places * sum(weight.size for weight in weights)
        if self.divides and self.group.parts and work >= LEAST_WORK:
            self.apart = far_channels(self.largest)
        for weight in weights:
            rest = weight if self.apart is None else without(weight, self.apart)
            self._weights.append((weight.T, _rounded(weight).T, _rounded(weight * self.factors).T, _rounded(rest).T))
        self.signal, self.plain, self.smoothed, self.parted = ([0.0] * len(weights) for _ in range(4))


def far_channels(largest: Array) -> Array | None:
    """The few channels that reach far beyond all others and so set the range; None where there are none.

    Args:
        largest: of the magnitudes in each channel, [K].
    """
    if len(largest) < LEAST_CHANNELS:
        return None
    order = np.argsort(-largest, kind="stable")
    first, left = largest[order[[0, APART]]]
    return np.sort(order[:APART]).astype(np.int64) if first > FAR * left > 0 else None


def without(weight: Array, channels: Array) -> Array:
    """A weight [N, K] that leaves out some of its input channels."""
    left = np.array(weight)
    left[:, channels] = 0
    return left


def smoothing_factors(activation: Array, weight: Array, smooth: float) -> Array:
    """s = max|x|^smooth / max|W|^(1 - smooth) for each input channel; 1 where either is 0. float32 [K]."""
    usable = (activation > 0) & (weight > 0) & np.isfinite(activation)
    x, w = np.where(usable, activation, 1).astype(np.float64), np.where(usable, weight, 1).astype(np.float64)
    factors = np.where(usable, x**smooth / w ** (1 - smooth), np.nan)
    middle = np.exp(np.nanmean(np.log(factors))) if usable.any() else 1.0
    return np.clip(np.nan_to_num(factors / middle, nan=1.0), 1e-3, 1e3).astype(np.float32)


def measure(
    graph: Graph, groups: list[Group], context: PassContext, smooth: float, *, apart: bool = False
) -> dict[str, Verdict]:
    """A verdict by group key, for groups of the main graph whose activations are finite.

    Args:
        smooth: how much of the range of activations may move into weights.
        apart: whether channels may be multiplied apart.

    The first half of the samples gives the ranges, the second half the errors.
    """
    assert context.calibration is not None
    samples = FirstSamples(context.calibration, MOST_SAMPLES)
    trials = {group.key: _Trial(group, smooth, apart) for group in groups}
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
