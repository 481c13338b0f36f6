"""How many weights does each tensor keep? The split of a budget that costs least, from measured error curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        smallest = min(self.shares[-1] / 2, 0.5 / self.size)
        shares = np.array([smallest, *reversed(self.shares), 1.0])
        errors = np.maximum.accumulate(np.array([0.0, *self.errors, 1.0]))[::-1]
        places = np.geomspace(smallest, 1.0, _FINE)
        between = np.interp(np.log(places), np.log(shares), errors)
        return np.round(places * self.size), between


def allocate(curves: Sequence[Curve], keep: int) -> list[int]:
    """Survivors of each tensor, `keep` in all, so that the sum of relative errors is smallest.

    Every tensor gets the count at which one more weight gains the same everywhere (a Lagrange multiplier found by
    bisection). Relative errors, since a layer's error matters by what share of its signal it is.
    """
    total = sum(c.size for c in curves)
    keep = min(max(keep, 0), total)
    fine = [curve.fine() for curve in curves]

    def counts(price: float) -> list[int]:
        return [int(kept[np.argmin(error + price * kept)]) for kept, error in fine]

    cheap, dear = np.log(1e-18), np.log(2.0)  # at 2 a single weight costs more than any error
    for _ in range(64):
        price = (cheap + dear) / 2
        if sum(counts(float(np.exp(price)))) > keep:
            cheap = price
        else:
            dear = price
    return _fill(counts(float(np.exp(dear))), [c.size for c in curves], keep)


def magnitude_curve(values: Array, shares: Sequence[float]) -> Curve:
    """The curve of a tensor of which only the weights are known: energy lost when the smallest go."""
    energy = np.sort(np.square(values, dtype=np.float64), axis=None)
    lost = np.concatenate([[0.0], np.cumsum(energy)])
    gone = [values.size - round(share * values.size) for share in shares]
    return Curve(values.size, shares, [float(lost[g] / lost[-1]) if lost[-1] > 0 else 0.0 for g in gone])


def _fill(counts: list[int], sizes: list[int], keep: int) -> list[int]:
    """Hand out what is left, in proportion to the counts, largest tensors first."""
    left = keep - sum(counts)
    part = left / max(sum(counts), 1)
    grown = [min(size, count + int(part * count)) for count, size in zip(counts, sizes, strict=True)]
    left = keep - sum(grown)
    for i in sorted(range(len(sizes)), key=lambda i: (-grown[i], i)):
        extra = min(left, sizes[i] - grown[i])
        grown[i] += extra
        left -= extra
    return grown
