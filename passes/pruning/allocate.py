"""How many weights does each tensor keep? The split of a budget that costs least, from measured error curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onnxcomp.graph.ir import Array

_FINE = 512  # points on a curve between its measured ones


@dataclass(frozen=True)
class Curve:
    """What pruning does to one tensor.

    Attributes:
        size: how many weights it has.
        shares: falling shares of survivors at which the error was measured, below 1.
        errors: the error there, as a share of the output's energy: 0 with all weights, 1 with none.
    """

    size: int
    shares: Sequence[float]
    errors: Sequence[float]

    def fine(self) -> tuple[Array, Array]:
        """(counts of survivors, error at each), rising counts; errors never rise with them."""
        smallest = min(self.shares[-1] / 2, 0.49 / max(self.size, 1))  # rounds to no weight at all
        shares = np.array([smallest, *reversed(self.shares), 1.0])
        errors = np.maximum.accumulate(np.array([0.0, *self.errors, 1.0]))[::-1]
        places = np.geomspace(smallest, 1.0, _FINE)
        between = np.interp(np.log(places), np.log(shares), errors)
        return np.round(places * self.size), between


def allocate(curves: Sequence[Curve], keep: int) -> list[int]:
    """Survivors of each tensor, `keep` in all, so that the sum of relative errors is smallest.

    Relative errors, since a layer's error matters by what share of its signal it is. Weights are handed out where one
    more gains most: along the lower convex hulls of the curves, steepest piece first, the last piece in part.
    """
    pieces = [
        (gain, i, int(length)) for i, curve in enumerate(curves) for gain, length in _hull(*curve.fine()) if length > 0
    ]
    pieces.sort(key=lambda piece: (-piece[0], piece[1]))
    counts = [0] * len(curves)
    left = min(max(keep, 0), sum(curve.size for curve in curves))
    for _, i, length in pieces:
        given = min(length, left)
        counts[i] += given
        left -= given
    return counts


def _hull(kept: Array, error: Array) -> list[tuple[float, float]]:
    """(error saved by one weight, weights) along the lower convex hull of a falling curve from none to all."""
    points: list[tuple[float, float]] = []
    for x, y in zip(kept.tolist(), error.tolist(), strict=True):
        if points and x == points[-1][0]:
            points[-1] = (x, min(y, points[-1][1]))
            continue
        while len(points) > 1 and _saves(points[-2], points[-1]) <= _saves(points[-1], (x, y)):
            points.pop()
        points.append((x, y))
    return [(_saves(a, b), b[0] - a[0]) for a, b in pairwise(points)]


def _saves(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0])


def magnitude_curve(values: Array, shares: Sequence[float]) -> Curve:
    """The curve of a tensor of which only the weights are known: energy lost when the smallest go."""
    energy = np.sort(np.square(values, dtype=np.float64), axis=None)
    lost = np.concatenate([[0.0], np.cumsum(energy)])
    gone = [values.size - round(share * values.size) for share in shares]
    return Curve(values.size, shares, [float(lost[g] / lost[-1]) if lost[-1] > 0 else 0.0 for g in gone])
