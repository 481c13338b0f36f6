"""How is a weight matrix rounded to integers? Scales, clipping, pair-safe and error-compensating rounding in numpy.

Every function takes a weight as [out, in] (`Weight.to_matrix`), one scale for each row unless said otherwise; a weight
in blocks is the same matrix reshaped to [out * blocks, block].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
CLIP_STEPS = 40  # candidates of a clip search, from full range down to SMALLEST_CLIP of it
SMALLEST_CLIP = 0.4
PAIR_LIMIT = 128  # 255 * 128 fits 16 bits, 255 * 129 does not
SWEEPS = 3  # of a descent; the first finds most of what there is
BLOCK = 32  # columns between two updates of the rest: error feedback as matrix products


@dataclass(frozen=True)
class Levels:
    """The integers that may be used: `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def signed(cls, bits: int, *, narrow: bool = True) -> Levels:
        """-127..127 for 8 bits; -128..127 where not narrow. 1 bit has no such form."""
        high = 2 ** (bits - 1) - 1
        return cls(-high if narrow else -high - 1, high)

    @classmethod
    def unsigned(cls, bits: int) -> Levels:
        """0..255 for 8 bits."""
        return cls(0, 2**bits - 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest numpy integer that holds the levels."""
        return np.dtype(np.uint8 if self.low >= 0 else np.int8)


def affine(low: Array, high: Array, levels: Levels) -> tuple[Array, Array]:
    """Scale and zero point so that [low, high] is covered and zero is met exactly.

    Args:
        low, high: float arrays of one shape; widened to hold zero.

    Returns:
        float32 scale above zero, and the zero point as an integer of `levels.dtype`, both of that shape.
    """
    bottom = np.minimum(np.asarray(low, np.float64), 0.0)
    top = np.maximum(np.asarray(high, np.float64), 0.0)
    steps = levels.high - levels.low
    scale = np.where(top > bottom, (top - bottom) / steps, 1.0).astype(np.float32)
    scale = np.maximum(scale, np.float32(SMALLEST_SCALE))
    zero = np.clip(np.rint(levels.low - bottom / scale), levels.low, levels.high).astype(levels.dtype)
    return scale, zero


def symmetric_scales(matrix: Array, levels: Levels) -> Array:
    """max |w| of each row over the highest level: nothing is clipped. float32 [out]; rows of zeros get scale 1."""
    return _safe(np.abs(matrix).max(axis=1, initial=0.0) / levels.high)


def clipped_scales(matrix: Array, levels: Levels, weight: Array | None = None) -> Array:
    """The scale of each row that makes the squared rounding error least, by search over clipping points.

    Args:
        weight: importance of each column, [in] (E[x^2] of what it is multiplied with); all equal when None.

    Returns:
        float32 [out].
    """
    full = symmetric_scales(matrix, levels)
    best, least = full.copy(), np.full(len(full), np.inf)
    for ratio in np.linspace(1.0, SMALLEST_CLIP, CLIP_STEPS):
        scales = full * np.float32(ratio)
        error = _error(matrix, round_nearest(matrix, scales, levels), scales, weight)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best


def clipped_shared_scale(matrix: Array, levels: Levels, pairs: Pairs | None = None) -> Array:
    """As `clipped_scales` or `clipped_pair_scales`, with one scale for all rows: float32 [out], all equal."""
    full = (symmetric_scales(matrix, levels) if pairs is None else pair_scales(matrix, levels, pairs)).max(initial=0.0)
    best, least = full, np.inf
    for ratio in np.linspace(1.0, SMALLEST_CLIP, CLIP_STEPS):
        scales = np.full(len(matrix), full * np.float32(ratio), np.float32)
        if pairs is None:
            integers = round_nearest(matrix, scales, levels)
        else:
            integers = round_pairs(matrix, scales, levels, pairs)
        error = float(_error(matrix, integers, scales, None).sum())
        if error < least:
            best, least = scales[0], error
    return np.full(len(matrix), best, np.float32)


def round_nearest(matrix: Array, scales: Array, levels: Levels) -> Array:
    """Integers [out, in] in the levels' dtype, each the nearest level."""
    return np.clip(np.rint(matrix / scales[:, None]), levels.low, levels.high).astype(levels.dtype)


# -- weights that cannot saturate 16-bit sums of two products ----------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Which neighbouring columns a kernel adds up in 16 bits: (0,1), (2,3), … or, `every`, also (1,2), (3,4), …

    x86 without VNNI multiplies unsigned activations with signed weights by vpmaddubsw: two neighbouring products are
    added in 16 bits and saturate when the two weights have one sign and their integers sum beyond 128.
    """

    every: bool = False

    def excess(self, integers: Array) -> Array:
        """For each column how far it and its left neighbour are beyond the limit; [out, in] of int32."""
        values = integers.astype(np.int32)
        found = np.zeros_like(values)
        total = values[:, :-1] + values[:, 1:]
        found[:, 1:] = np.sign(total) * np.maximum(np.abs(total) - PAIR_LIMIT, 0)
        if not self.every:
            found[:, ::2] = 0
        return found

    def bounds(self, column: int, left: Array | None, levels: Levels) -> tuple[Array | int, Array | int]:
        """Lowest and highest integer of a column whose left neighbour's integers [out] are fixed."""
        if left is None or (column % 2 == 0 and not self.every):
            return levels.low, levels.high
        high = np.minimum(levels.high, PAIR_LIMIT - np.maximum(left, 0))
        low = np.maximum(levels.low, -PAIR_LIMIT - np.minimum(left, 0))
        return low, high

    def between(self, column: int, integers: Array, levels: Levels) -> tuple[Array, Array]:
        """Lowest and highest integers [out] of a column whose neighbours are those of integers [in, out]."""
        beside = [column - 1] if column and (self.every or column % 2) else []
        beside += [column + 1] if column + 1 < len(integers) and (self.every or column % 2 == 0) else []
        low, high = (np.full(integers.shape[1], end) for end in (levels.low, levels.high))
        for other in beside:
            high = np.minimum(high, PAIR_LIMIT - np.maximum(integers[other], 0))
            low = np.maximum(low, -PAIR_LIMIT - np.minimum(integers[other], 0))
        return low, high


def pair_scales(matrix: Array, levels: Levels, pairs: Pairs) -> Array:
    """Scales that keep every pair of neighbours within the limit without clipping: float32 [out]."""
    same = np.sign(matrix[:, :-1]) == np.sign(matrix[:, 1:])
    total = np.where(same, np.abs(matrix[:, :-1] + matrix[:, 1:]), 0.0)
    if not pairs.every:
        total = total[:, ::2]
    largest = total.max(axis=1, initial=0.0) / (PAIR_LIMIT - 0.5)
    return np.maximum(symmetric_scales(matrix, levels), _safe(largest, empty=0.0))


def clipped_pair_scales(matrix: Array, levels: Levels, pairs: Pairs, weight: Array | None = None) -> Array:
    """As `clipped_scales`, with the pairs that would saturate moved apart: least error between both extremes."""
    full = pair_scales(matrix, levels, pairs)
    floor = SMALLEST_CLIP * symmetric_scales(matrix, levels)
    best, least = full.copy(), np.full(len(full), np.inf)
    for step in np.linspace(0.0, 1.0, CLIP_STEPS):
        scales = (full + (floor - full) * step).astype(np.float32)
        error = _error(matrix, round_pairs(matrix, scales, levels, pairs), scales, weight)
        better = error < least
        best[better], least[better] = scales[better], error[better]
    return best


def round_pairs(matrix: Array, scales: Array, levels: Levels, pairs: Pairs) -> Array:
    """Nearest levels, then each pair beyond the limit gives way by half its excess: int8 [out, in]."""
    integers = round_nearest(matrix, scales, levels).astype(np.int16)
    for parity in (1, 2) if pairs.every else (1,):
        right = integers[:, parity::2]
        left = integers[:, parity - 1 :: 2][:, : right.shape[1]]
        rows, places = np.nonzero(np.abs(left + right) > PAIR_LIMIT)  # few: the rest is not touched
        first, second = left[rows, places], right[rows, places]
        total = first + second
        excess = np.sign(total) * (np.abs(total) - PAIR_LIMIT)
        odd = excess % 2
        # the exact values decide which of two gives the odd unit
        columns = parity + 2 * places
        rest = (matrix[rows, columns] - matrix[rows, columns - 1]) / scales[rows] - (second - first)
        to_right = np.where(rest < 0, odd, 0)
        right[rows, places] = second - excess // 2 - to_right
        left[rows, places] = first - excess // 2 - (odd - to_right)
    return integers.astype(levels.dtype)


# -- error compensation ------------------------------------------------------------------------------------------------


def round_compensated(
    matrix: Array,
    scales: Array,
    gram: Array,
    levels: Levels,
    *,
    pairs: Pairs | None = None,
    damping: float = 0.01,
    ordered: bool = False,
) -> Array:
    """Round columns one by one, each column's error made good by those not yet rounded (GPTQ, arXiv 2210.17323).

    Minimises (W - Q) G (W - Q)^T greedily, G being the Gram matrix of the inputs.

    Args:
        matrix: float [out, in].
        scales: float32 [out], or [out, in] where blocks of columns have their own.
        gram: float64 [in, in], E[x x^T].
        pairs: keep these neighbours within the limit.
        damping: share of the mean diagonal added to the diagonal.
        ordered: take the columns with the largest inputs first, while many others can still make good their errors;
            not together with `pairs`.

    Returns:
        Integers [out, in] in the levels' dtype; plain rounding where the Gram matrix is not usable.
    """
    spread = scales if scales.ndim == 2 else np.broadcast_to(scales[:, None], matrix.shape)
    if ordered and pairs is None:
        order = np.argsort(-np.diagonal(gram), kind="stable")
        found = round_compensated(
            matrix[:, order], spread[:, order], gram[np.ix_(order, order)], levels, damping=damping
        )
        return found[:, np.argsort(order)]
    factor = inverse_factor(gram, damping)
    if factor is None:
        plain = np.clip(np.rint(matrix / spread), levels.low, levels.high).astype(levels.dtype)
        return plain if pairs is None else round_pairs(matrix, scales, levels, pairs)
    return _compensate(matrix, spread, factor, levels, pairs)


def _compensate(matrix: Array, spread: Array, factor: Array, levels: Levels, pairs: Pairs | None) -> Array:
    """The loop over columns, on the transposed matrix, where a column lies in one stretch of memory."""
    work = np.array(matrix.T, np.float64, order="C")  # [in, out]
    scale = np.ascontiguousarray(spread.T, np.float64)
    result = np.zeros(work.shape, np.int32)
    columns = len(work)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = np.empty((end - start, work.shape[1]))
        for column in range(start, end):
            low: Array | int = levels.low
            high: Array | int = levels.high
            if pairs is not None:
                low, high = pairs.bounds(column, result[column - 1] if column else None, levels)
            chosen = np.clip(np.rint(work[column] / scale[column]), low, high)
            result[column] = chosen
            error = (work[column] - chosen * scale[column]) / factor[column, column]
            work[column + 1 : end] -= factor[column, column + 1 : end, None] * error
            errors[column - start] = error
        work[end:] -= factor[start:end, end:].T @ errors
    return np.ascontiguousarray(result.T).astype(levels.dtype)


def round_descended(
    matrix: Array,
    scales: Array,
    integers: Array,
    gram: Array,
    levels: Levels,
    *,
    pairs: Pairs | None = None,
    damping: float = 0.01,
) -> Array:
    """Integers moved one by one as long as (W - Q) G (W - Q)^T gets smaller: coordinate descent.

    What error compensation leaves is no optimum, since a column never hears of those rounded after it (K. Behdin et
    al., "QuantEase", arXiv 2309.01885).

    Args:
        matrix, scales, gram, levels, pairs, damping: as `round_compensated`.
        integers: [out, in], to start from.
    """
    mean = float(np.diagonal(gram).mean()) if len(gram) else 0.0
    if not np.isfinite(gram).all() or mean <= 0.0:
        return integers
    damped = gram + damping * mean * np.eye(len(gram))
    spread = scales if scales.ndim == 2 else np.broadcast_to(scales[:, None], matrix.shape)
    step = np.ascontiguousarray(spread.T, np.float64)  # [in, out]
    found = integers.T.astype(np.int32)  # [in, out]
    slope = damped @ (matrix.T - found * step)  # half the derivative by each weight
    for _ in range(SWEEPS):
        moved = False
        for column in range(len(found)):
            low, high = (levels.low, levels.high) if pairs is None else pairs.between(column, found, levels)
            chosen = np.clip(
                found[column] + np.rint(slope[column] / (damped[column, column] * step[column])), low, high
            )
            change = chosen.astype(np.int32) - found[column]
            rows = np.flatnonzero(change)
            if len(rows):
                moved = True
                found[column] += change
                slope[:, rows] -= damped[:, column, None] * (change[rows] * step[column, rows])
        if not moved:
            break
    return np.ascontiguousarray(found.T).astype(levels.dtype)


def rescaled(matrix: Array, scales: Array, integers: Array, gram: Array, block: int, *, damping: float = 0.01) -> Array:
    """The scales of blocks solved anew, one after the other, for integers that stay: least (W - Q) G (W - Q)^T.

    Args:
        matrix, gram, damping: as `round_compensated`.
        scales: float32 [out, blocks], to start from.
        integers: [out, in].
        block: columns that share a scale; the last block may have fewer.

    Returns:
        float32 [out, blocks]; a scale that would vanish or change its sign stays.
    """
    mean = float(np.diagonal(gram).mean()) if len(gram) else 0.0
    if not np.isfinite(gram).all() or mean <= 0.0:
        return scales
    damped = gram + damping * mean * np.eye(len(gram))
    whole = integers.T.astype(np.float64)  # [in, out]
    step = scales.T.astype(np.float64)  # [blocks, out]
    slope = damped @ (matrix.T - whole * np.repeat(step, block, axis=0)[: len(whole)])
    for place in range(len(step)):
        part = slice(place * block, min((place + 1) * block, len(whole)))
        mine = whole[part]
        curve = (mine * (damped[part, part] @ mine)).sum(axis=0)
        change = np.where(curve > 0, (mine * slope[part]).sum(axis=0) / np.where(curve > 0, curve, 1.0), 0.0)
        change = np.where((step[place] + change) * step[place] > SMALLEST_SCALE, change, 0.0)
        step[place] += change
        slope -= damped[:, part] @ (mine * change)
    return np.ascontiguousarray(step.T, np.float32)


def inverse_factor(gram: Array, damping: float) -> Array | None:
    """Upper Cholesky factor of the damped Gram matrix's inverse; None where that has no meaning."""
    diagonal = np.diagonal(gram)
    mean = float(diagonal.mean()) if diagonal.size else 0.0
    if not np.isfinite(gram).all() or mean <= 0.0:
        return None
    damped = gram + damping * mean * np.eye(len(gram))
    try:
        # inverse = U^T U with U upper: Cholesky of the reversed matrix gives it without inverting twice
        lower = np.linalg.cholesky(damped[::-1, ::-1])
        upper = _inverted(lower)[::-1, ::-1]
    except np.linalg.LinAlgError:
        return None
    return np.ascontiguousarray(upper)


def _inverted(lower: Array) -> Array:
    """The inverse of a lower triangular matrix, by halves: a quarter of what a general inverse costs."""
    half = len(lower) // 2
    if half < 64:
        general: Array = np.linalg.inv(lower)
        return general
    top, bottom = _inverted(lower[:half, :half]), _inverted(lower[half:, half:])
    result = np.zeros_like(lower)
    result[:half, :half], result[half:, half:] = top, bottom
    result[half:, :half] = -bottom @ (lower[half:, :half] @ top)
    return result


def _error(matrix: Array, integers: Array, scales: Array, weight: Array | None) -> Array:
    difference = np.square(matrix - integers * scales[:, None])
    total: Array = difference.sum(axis=1) if weight is None else difference @ weight
    return total


def _safe(scales: Array, empty: float = 1.0) -> Array:
    found = np.asarray(scales, np.float32)
    return np.where(found > 0, np.maximum(found, np.float32(SMALLEST_SCALE)), np.float32(empty)).astype(np.float32)
