"""How are rows of a weight rounded for the integer kernels of matrix products and recurrent cells?"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.graph.rounding import Levels, Pairs, pair_scales, round_nearest, round_pairs, symmetric_scales

LEVELS = Levels.signed(8)


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


def _noise(rows: Array, codes: Array, scales: Array) -> Array:
    """Squared error of each row."""
    noise: Array = np.square(rows - codes * scales[:, None]).sum(axis=1)
    return noise
