"""Which few values stand for all elements of a weight? One-dimensional k-means (Deep Compression, arXiv 1510.00149)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxcomp.graph.ir import Array

ROUNDS = 100
BINS = 1 << 16  # elements are gathered in a histogram this fine, so memory does not grow with the weight
ZERO_SHARE = 1.0 / 64  # a weight with so many exact zeros was pruned: they stay zeros


def learn_levels(pieces: Iterable[Array], bounds: tuple[float, float], clusters: int, zeros: int, size: int) -> Array:
    """Levels of least squared error, found by Lloyd's iteration from a linear start between the extremes.

    Args:
        pieces: the elements, in any shape, a part at a time.
        bounds: smallest and largest element.
        zeros, size: how many elements are exactly 0, and how many there are.

    Returns:
        float32, ascending, at most [clusters].
    """
    low, high = bounds
    if not high > low:
        return np.asarray([low], np.float32)
    pruned = zeros > ZERO_SHARE * size and clusters > 1
    counts, sums = _histogram(pieces, low, high, skip_zeros=pruned)
    filled = counts > 0
    counts, means = counts[filled], sums[filled] / counts[filled]
    levels = _lloyd(means, counts, low, high, clusters - pruned)
    if pruned:
        levels = np.append(levels, 0.0)
    return np.unique(levels.astype(np.float32))


def nearest_level(values: Array, levels: Array) -> Array:
    """Index of the nearest level of each element, uint8; exact zeros get the level 0 where there is one."""
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def _lloyd(values: Array, counts: Array, low: float, high: float, clusters: int) -> Array:
    """Values ascending with their counts to `clusters` centres."""
    centres = np.linspace(low, high, clusters)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * values)])
    for _ in range(ROUNDS):
        edges = _edges(values, centres)
        weight = np.diff(mass[edges])
        moved = np.where(weight > 0, np.diff(moment[edges]) / np.maximum(weight, 1), centres)
        moved.sort()
        if np.array_equal(moved, centres):
            break
        centres = moved
    found: Array = centres[np.diff(mass[_edges(values, centres)]) > 0]
    return found


def _edges(values: Array, centres: Array) -> Array:
    """Where in ascending values the share of each centre begins and ends."""
    return np.concatenate([[0], np.searchsorted(values, (centres[1:] + centres[:-1]) / 2), [len(values)]])


def _histogram(pieces: Iterable[Array], low: float, high: float, *, skip_zeros: bool) -> tuple[Array, Array]:
    """How many elements fall into each of BINS equal bins, and their sum."""
    counts, sums = np.zeros(BINS), np.zeros(BINS)
    for piece in pieces:
        flat = piece.reshape(-1).astype(np.float64)
        if skip_zeros:
            flat = flat[flat != 0]
        places = np.minimum((flat - low) * (BINS / (high - low)), BINS - 1).astype(np.int64)
        counts += np.bincount(places, minlength=BINS)
        sums += np.bincount(places, flat, minlength=BINS)
    return counts, sums
