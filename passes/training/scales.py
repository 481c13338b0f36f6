"""Which scale suits few integers best? Least squared error by alternating between integers and scale."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.graph.rounding import SMALLEST_SCALE, Levels

STARTS = 12  # clipping points between the largest weight and a tenth of it
ROUNDS = 4


def least_squares_scales(matrix: Array, levels: Levels) -> Array:
    """The scale of each row of [out, in] under which its nearest integers lose least: float32 [out].

    From several clipping points integers and scale are found in turn (Lloyd's way): the best scale for given integers
    q is w.q / q.q. Rows of zeros get the mean scale of the others, so that what grows there has a grid.
    """
    rows = np.asarray(matrix, np.float32)
    full = np.abs(rows).max(axis=1, initial=0.0) / max(levels.high, -levels.low)
    full = np.maximum(full, SMALLEST_SCALE)
    best, least = full.copy(), np.full(len(rows), np.inf, np.float32)
    for ratio in np.geomspace(1.0, 0.1, STARTS) * (max(levels.high, -levels.low) / max(levels.high, 1)):
        scales = full * np.float32(ratio)
        for _ in range(ROUNDS):
            integers = np.clip(np.rint(rows / scales[:, None]), levels.low, levels.high)
            error = np.square(rows - integers * scales[:, None]).sum(axis=1)
            better = error < least
            best[better], least[better] = scales[better], error[better]
            power = np.square(integers).sum(axis=1)
            found = (rows * integers).sum(axis=1) / np.maximum(power, 1.0)
            scales = np.where((power > 0) & (found > SMALLEST_SCALE), found, scales).astype(np.float32)
    empty = ~rows.any(axis=1)
    if empty.any():
        best[empty] = best[~empty].mean() if not empty.all() else 1.0
    found_scales: Array = best.astype(np.float32)
    return found_scales
