"""How are the values of a tensor distributed? A histogram of fixed size that grows its bins as larger values come."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.graph.ir import Array

BINS = 2048
FLOAT_BITS = 24  # a float32 bin index is exact up to 2**24
_NARROWEST, _WIDEST = -100, 126  # exponents whose power of two float32 holds, and the inverse too


class Histogram:
    """Counts and sums of values in bins of width 2**exponent whose edges lie on multiples of the width.

    When a value falls outside, neighbouring bins merge by powers of two, so edges stay edges and nothing is ever
    spread over bins by guess: the result does not depend on the order in which values come, but for their sums'
    rounding. Memory is two arrays of at most `bins` numbers.

    Attributes:
        counts: int64 [n], n <= bins.
        sums: float64 [n], the sum of the values in each bin.
        first: index of the first bin; bin i covers [(first + i) * width, (first + i + 1) * width).
        zeros: how many values were exactly 0; they count in the bin that begins there.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.exponent = _NARROWEST
        self.first = 0
        self.counts: Array = np.zeros(0, np.int64)
        self.sums: Array = np.zeros(0, np.float64)
        self.zeros = 0

    @property
    def width(self) -> float:
        """Width of every bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many values were added."""
        return int(self.counts.sum())

    def add(self, values: Array) -> None:
        """Count finite float32 values of any shape."""
        flat = np.asarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        self._cover(float(flat.min()), float(flat.max()))
        index = np.floor(flat * np.float32(math.ldexp(1.0, -self.exponent))).astype(np.int32)
        index -= np.int32(self.first)
        self.zeros += flat.size - int(np.count_nonzero(flat))
        size = len(self.counts)
        self.counts += np.bincount(index, minlength=size)
        self.sums += np.bincount(index, flat, minlength=size)

    def occupied(self) -> tuple[Array, Array]:
        """Mean value and count of every bin that holds any, in rising order, exact zeros apart: float64 and int64 [m].

        What an activation function has cut off is a peak at 0, and no part of how the values beside it are spread.
        """
        counts = self.counts.copy()
        place = -self.first
        if self.zeros:
            counts[place] -= self.zeros
        held = np.flatnonzero(counts)
        means, counts = self.sums[held] / counts[held], counts[held]
        if self.zeros:
            at = int(np.searchsorted(held, place))
            means, counts = np.insert(means, at, 0.0), np.insert(counts, at, self.zeros)
        return means, counts

    def _cover(self, low: float, high: float) -> None:
        """Widen bins and add bins until both values have theirs."""
        if self.counts.size:
            low, high = min(low, self.first * self.width), max(high, (self.first + len(self.counts) - 1) * self.width)
        least = self._exponent_for(low, high)
        if not self.counts.size:
            self.exponent = least
        elif least > self.exponent:
            self._merge(least - self.exponent)
        first, last = math.floor(low / self.width), math.floor(high / self.width)
        before = self.first - first if self.counts.size else 0
        after = last - first + 1 - before - len(self.counts)
        if before or after:
            self.counts = np.pad(self.counts, (before, after))
            self.sums = np.pad(self.sums, (before, after))
        self.first = first

    def _exponent_for(self, low: float, high: float) -> int:
        largest = max(abs(low), abs(high))
        if largest == 0.0:
            return self.exponent if self.counts.size else _NARROWEST
        exponent = math.frexp(largest)[1] - FLOAT_BITS
        if high > low:
            exponent = max(exponent, math.frexp((high - low) / self.bins)[1] - 1)
        exponent = max(exponent, self.exponent if self.counts.size else _NARROWEST, _NARROWEST)
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= self.bins:
            exponent += 1
        return min(exponent, _WIDEST)

    def _merge(self, steps: int) -> None:
        factor = 1 << steps if steps < 62 else 0
        if not factor or factor > 4 * self.bins:  # everything falls into the two bins around zero, or nearly
            places: Array = np.array([math.floor((self.first + i) / 2.0**steps) for i in range(len(self.counts))])
        else:
            places = (self.first + np.arange(len(self.counts))) >> steps
        self.exponent += steps
        self.first = int(places[0])
        places = places - self.first
        self.sums = np.bincount(places, self.sums)
        self.counts = np.bincount(places, self.counts).astype(np.int64)
