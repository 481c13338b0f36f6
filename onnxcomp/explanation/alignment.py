"""Which channels of a tensor does a pruned model still have? Told by values on the same samples, without a record.

Whoever takes channels out slices what is stored, and leaves the others in their order: two ordered lists of channels
are aligned as two sequences are (Needleman and Wunsch, J. Mol. Biol. 48, 1970), so that values differ least in squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array

MOST = 4096  # channels that are aligned; the table of costs has their number squared
ALIKE = 0.5  # of the cosines of aligned channels the median, below which two tensors have nothing to do with each other


@dataclass(frozen=True)
class Left:
    """What is left of one axis.

    Attributes:
        indices: int64, ascending: of the first graph's tensor.
        of: how many there were.
    """

    axis: int
    indices: Array
    of: int

    def take(self, values: Array) -> Array:
        """Of the first graph's values what the second has."""
        return values.take(self.indices, self.axis)


def aligned(before: Array, after: Array) -> Left | None:
    """Where `after` has fewer channels along one axis, which of `before` they are; None where that cannot be said.

    Args:
        before, after: [samples, *shape], of which one axis is shorter in `after`; axis 0 of a shape is the batch.

    Returns:
        The axis counts from that of the batch.
    """
    if before.ndim != after.ndim or min(before.size, after.size) == 0:
        return None
    shorter = [axis for axis, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b]
    if len(shorter) != 1 or shorter[0] < 2:
        return None
    axis = shorter[0]
    rows = [_rows(values, axis) for values in (before, after)]
    if not len(rows[1]) < len(rows[0]) <= MOST:
        return None
    products, lengths = rows[0] @ rows[1].T, [np.square(side).sum(axis=1) for side in rows]
    indices = _in_order(np.where(lengths[1] > 0, 2 * products - lengths[0][:, None], 0))  # a dead one tells nothing
    size = np.sqrt(lengths[0][indices] * lengths[1])
    found = products[indices, np.arange(len(indices))][size > 0] / size[size > 0]
    return Left(axis - 1, indices, len(rows[0])) if len(found) and np.median(found) >= ALIKE else None


def _rows(values: Array, axis: int) -> Array:
    """[channels, all others]."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)


def _in_order(gain: Array) -> Array:
    """For each column a row, ascending, so that the sum of what they gain is largest."""
    rows, columns = gain.shape
    best = np.full((rows + 1, columns + 1), -np.inf)
    best[:, 0] = 0
    for column in range(1, columns + 1):
        taken = best[:-1, column - 1] + gain[:, column - 1]
        best[1:, column] = np.maximum.accumulate(taken)
    found = np.empty(columns, np.int64)
    row = rows
    for column in range(columns, 0, -1):
        taken = best[:row, column - 1] + gain[:row, column - 1]
        found[column - 1] = row = int(taken.argmax())
    return found
