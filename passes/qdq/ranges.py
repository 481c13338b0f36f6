"""Which range of a tensor do 8-bit integers cover? Min-max, percentile, entropy (KL) or least error of some power."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.graph.rounding import Levels, affine
from onnxcomp.runtime.activations import Activation

Method: TypeAlias = Literal["minmax", "percentile", "entropy", "mse", "l3"]
Curve: TypeAlias = Callable[[Array], Array]

# mse: which values are cut off hardly counts where they are few; l3: it counts, as layers behind that read them tell
POWERS: Mapping[Method, int] = {"mse": 2, "l3": 3}
STEPS = 24  # candidates of one end of the range in one scan
SMALLEST = 0.1  # share of the full range at which a scan ends
ROUNDS = 2
LOST_SHARE = 0.9  # a range is not usable when so many of the values that are not zero would round to zero


@dataclass(frozen=True)
class Grid:
    """The numbers that the integers of a tensor stand for: (q - zero) * scale.

    Attributes:
        scale: float32 above zero.
        zero: zero point.
        levels: the integers.
    """

    scale: float
    zero: int
    levels: Levels

    @property
    def low(self) -> float:
        """Lowest number on the grid."""
        return (self.levels.low - self.zero) * self.scale

    @property
    def high(self) -> float:
        """Highest number on the grid."""
        return (self.levels.high - self.zero) * self.scale

    def rounded(self, values: Array) -> Array:
        """Every value moved to the grid."""
        q = np.clip(np.rint(values / self.scale) + self.zero, self.levels.low, self.levels.high)
        moved: Array = (q - self.zero) * self.scale
        return moved


@dataclass(frozen=True)
class Rule:
    """How ranges are chosen.

    Attributes:
        method: as the pass's option `activations`.
        levels: integers of the target.
        symmetric: whether the zero point must be 0.
        percentile: share of values inside the range, in percent, for that method.
    """

    method: Method
    levels: Levels
    symmetric: bool
    percentile: float = 99.999

    def grid(self, low: float, high: float) -> Grid:
        """The grid that covers [low, high] and meets zero."""
        found = self.grids(np.array([low]), np.array([high]))
        return Grid(float(found.scale[0, 0]), int(found.zero[0, 0]), self.levels)

    def grids(self, low: Array, high: Array) -> Grids:
        """The grids that cover [low, high] and meet zero, for float64 arrays [grids]."""
        if self.symmetric:
            largest = np.maximum(np.abs(low), np.abs(high)) / self.levels.high
            scale = np.maximum(np.where(largest > 0, largest, 1.0), np.finfo(np.float32).tiny).astype(np.float32)
            zero: Array = np.zeros(len(scale))
        else:
            scale, zero = affine(low, high, self.levels)
        return Grids(scale.astype(np.float64)[:, None], zero.astype(np.float64)[:, None], self.levels)

    def choose(self, seen: Activation, curve: Curve | None = None) -> Grid:
        """The grid for a tensor with these values.

        Args:
            curve: the function that the tensor enters and nothing else reads; errors are then judged behind it.
        """
        low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
        if self.method == "minmax" or low == high:
            return self.grid(low, high)
        centers, counts = seen.histogram.occupied()
        if self.method == "percentile":
            return self.grid(*percentile_range(centers, counts, self.percentile))
        power = POWERS.get(self.method)
        if power is None:
            search = _Search(self, centers, counts, divergence)
        else:
            search = _Search(self, centers, counts, lambda c, n, grids: rounding_error(c, n, grids, curve, power))
        return search.best(low, high)


def unusable(seen: Activation, grid: Grid) -> str:
    """Why a grid would destroy a tensor, in words; empty when it does not."""
    if seen.count == seen.nonfinite:
        return "no finite value was seen"
    if seen.nonfinite:
        return f"{seen.nonfinite} of its values are NaN or infinite"
    if not math.isfinite(grid.scale * (grid.levels.high - grid.levels.low)):
        return f"its range {seen.minimum:.3g} to {seen.maximum:.3g} is too wide for float32"
    centers, counts = seen.histogram.occupied()
    magnitude = np.abs(centers)
    alive = magnitude > 0
    lost = counts[alive & (magnitude < grid.scale / 2)].sum()
    if lost > LOST_SHARE * max(counts[alive].sum(), 1):
        share = 100 * lost / counts[alive].sum()
        return (
            f"outliers set its range ({seen.minimum:.3g} to {seen.maximum:.3g}): {share:.0f} % of its values would "
            "become zero"
        )
    return ""


@dataclass(frozen=True)
class Grids:
    """Several grids at once.

    Attributes:
        scale, zero: float64 [grids, 1].
    """

    scale: Array
    zero: Array
    levels: Levels

    def rounded(self, values: Array) -> Array:
        """Every value moved to every grid: [grids, values]."""
        q = np.rint(values / self.scale)
        q += self.zero
        np.clip(q, self.levels.low, self.levels.high, out=q)
        q -= self.zero
        q *= self.scale
        return q


def rounding_error(centers: Array, counts: Array, grids: Grids, curve: Curve | None, power: int) -> Array:
    """Sum of the powers of rounding errors on each grid, behind `curve` where there is one: float64 [grids].

    Powers above two, for which values cut off count more: Y. Nahshan et al., "Loss Aware Post-training Quantization",
    2019.
    """
    moved = grids.rounded(centers)
    if curve is not None:
        centers, moved = curve(centers), curve(moved)
    moved -= centers
    errors: Array = (np.square(moved, out=moved) if power == 2 else np.abs(moved, out=moved) ** power) @ counts
    return errors


def divergence(centers: Array, counts: Array, grids: Grids) -> Array:
    """Kullback-Leibler divergence of the clipped distribution from the quantized one, for each grid: float64 [grids].

    As calibrators of inference runtimes do (S. Migacz, "8-bit inference with TensorRT", 2017): the values beyond the
    range are added to its ends, and the mass of each level is spread evenly over the bins it stands for. Whole zero
    is left out: it is exact on every grid, and its peak would hide the rest.
    """
    alive = np.abs(centers) > 0
    centers, counts = centers[alive], counts[alive].astype(np.float64)
    found = np.full(len(grids.scale), np.inf)
    for index, (scale, zero) in enumerate(zip(grids.scale[:, 0], grids.zero[:, 0], strict=True)):
        low, high = (grids.levels.low - zero) * scale, (grids.levels.high - zero) * scale
        inside = (centers >= low) & (centers <= high)
        if inside.any():
            p = counts[inside].copy()
            p[0] += counts[centers < low].sum()
            p[-1] += counts[centers > high].sum()
            level = np.rint(centers[inside] / scale).astype(np.int64)
            _, place, width = np.unique(level, return_inverse=True, return_counts=True)
            q = (np.bincount(place, counts[inside]) / width)[place]
            p, q = p / p.sum(), q / q.sum()
            found[index] = float((p * np.log(p / q)).sum())
    return found


def percentile_range(centers: Array, counts: Array, percentile: float) -> tuple[float, float]:
    """The range that leaves out (100 - percentile) % of the values, half of it at either end."""
    share = np.cumsum(counts) / counts.sum()
    tail = (100.0 - percentile) / 200.0
    low = centers[np.searchsorted(share, tail)]
    high = centers[min(int(np.searchsorted(share, 1.0 - tail)), len(centers) - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


@dataclass
class _Search:
    """Moves one end of the range at a time to where the judge sees the least error, then looks closer."""

    rule: Rule
    centers: Array
    counts: Array
    judge: Callable[[Array, Array, Grids], Array]

    def best(self, low: float, high: float) -> Grid:
        ends = [low, high]
        movable = [1] if self.rule.symmetric else [end for end in (1, 0) if ends[end] != 0.0]
        if self.rule.symmetric:
            ends = [0.0, max(-low, high)]
        span = list(ends)
        ratios = np.geomspace(1.0, SMALLEST, STEPS)
        if len(movable) > 1:  # a function that flattens both ends lets them go together only
            errors = self.judge(self.centers, self.counts, self.rule.grids(low * ratios, high * ratios))
            ends = [end * float(ratios[int(np.argmin(errors))]) for end in ends]
        for end in movable * (ROUNDS if len(movable) > 1 else 1):
            ends[end] = self._scan(ends, end, span[end] * ratios)
        step = float(ratios[1])
        for end in movable:
            near = np.geomspace(step, 1.0 / step, 9) * ends[end]
            near[len(near) // 2] = ends[end]
            ends[end] = self._scan(ends, end, near[np.abs(near) <= abs(span[end])])
        return self.rule.grid(*ends)

    def _scan(self, ends: list[float], end: int, candidates: Array) -> float:
        low = np.full(len(candidates), ends[0])
        high = np.full(len(candidates), ends[1])
        (low, high)[end][:] = candidates
        errors = self.judge(self.centers, self.counts, self.rule.grids(low, high))
        return float(candidates[int(np.argmin(errors))])
