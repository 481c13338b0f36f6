"""What must a trained weight keep of what earlier passes gave it? Zeros, n:m patterns, bounds: read off its values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxcomp.distill.task import Constraint
from onnxcomp.graph.ir import Array, Constant

TIES = 3  # so many elements at the very largest or smallest value stand there because they were clipped


@dataclass(frozen=True)
class Kept:
    """Constraints by name of the initializer, and how many zeros and bounds they stand for."""

    constraints: dict[str, Constraint]
    zeros: int
    bounded: int

    @property
    def words(self) -> str:
        """For people; empty where nothing is kept."""
        parts = [f"{self.zeros:,} zeros stay zero"] if self.zeros else []
        parts += [f"{self.bounded} weights stay within the bounds they were clipped to"] if self.bounded else []
        return ", ".join(parts)


def kept(constants: Iterable[Constant], *, zeros: bool, bounds: bool) -> Kept:
    """Constraints of trainable initializers with two or more axes: biases may leave zero.

    Args:
        zeros: what is exactly zero stays so; that is what pruned weights and n:m patterns are.
        bounds: what was clipped stays within its bounds: several elements share the extreme value then, which float
            weights otherwise do not.
    """
    found: dict[str, Constraint] = {}
    count = bounded = 0
    for constant in constants:
        values = np.asarray(constant.values)
        if values.ndim < 2 or values.dtype.kind != "f":
            continue
        mask = values != 0 if zeros and not values.all() else None
        low, high = _ends(values) if bounds else (None, None)
        if mask is not None:
            count += values.size - int(np.count_nonzero(mask))
        bounded += low is not None or high is not None
        if mask is not None or low is not None or high is not None:
            found[constant.name] = Constraint(mask, low, high)
    return Kept(found, count, bounded)


def _ends(values: Array) -> tuple[Array | None, Array | None]:
    bottom, top = values.min(), values.max()
    low = np.asarray(bottom, np.float32) if bottom < 0 and np.count_nonzero(values == bottom) >= TIES else None
    high = np.asarray(top, np.float32) if top > 0 and np.count_nonzero(values == top) >= TIES else None
    return low, high
