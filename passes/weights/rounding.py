"""How are rows of a weight rounded for the integer kernels of matrix products and recurrent cells?"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.graph.rounding import (
    Levels,
    Pairs,
    pair_scales,
    round_compensated,
    round_descended,
    round_nearest,
    round_pairs,
    symmetric_scales,
)

LEVELS = Levels.signed(8)
MOST_SOLVED = 2304  # columns: the Cholesky factor of a larger matrix takes many seconds
DAMPING = 0.01  # of the mean diagonal


def int8_rows(rows: Array, *, portable: bool) -> tuple[Array, Array]:
    """int8 [out, in] and float32 scales [out] of a weight as float32 [out, in].

    Args:
        portable: no two neighbours along a row can saturate the 16-bit sums of x86 without VNNI. Each row takes what
            costs it less: a larger scale, or single elements that give way.
    """
    scales = symmetric_scales(rows, LEVELS)
    if not portable:
        return round_nearest(rows, scales, LEVELS), scales
    pairs = Pairs()
    chosen, wide = round_pairs(rows, scales, LEVELS, pairs), pair_scales(rows, LEVELS, pairs)
    other = round_pairs(rows, wide, LEVELS, pairs)
    better = _noise(rows, other, wide) < _noise(rows, chosen, scales)
    chosen[better], scales[better] = other[better], wide[better]
    return chosen, scales


def solved_rows(rows: Array, moments: Array, *, portable: bool) -> tuple[Array, Array]:
    """As `int8_rows`, with the integers that err least on the inputs seen: errors of columns make good for one another.

    Args:
        moments: float64 [in, in], E[x x^T] of the inputs, means not taken out: no bias has to take up what they move.
    """
    nearest, scales = int8_rows(rows, portable=portable)
    if len(moments) > MOST_SOLVED or not np.isfinite(moments).all() or not moments.any():
        return nearest, scales
    pairs = Pairs() if portable else None
    found = round_compensated(rows, scales, moments, LEVELS, pairs=pairs, damping=DAMPING)
    found = round_descended(rows, scales, found, moments, LEVELS, pairs=pairs, damping=DAMPING)
    worse = _seen(rows, found, scales, moments) >= _seen(rows, nearest, scales, moments)
    found[worse] = nearest[worse]
    return found, scales


def _seen(rows: Array, codes: Array, scales: Array, moments: Array) -> Array:
    """Squared error of each row's products with the inputs seen."""
    error = rows - codes * scales[:, None]
    noise: Array = ((error @ moments) * error).sum(axis=1)
    return noise


def _noise(rows: Array, codes: Array, scales: Array) -> Array:
    """Squared error of each row."""
    noise: Array = np.square(rows - codes * scales[:, None]).sum(axis=1)
    return noise
