"""What must weights keep? Masks, bounds and exact zeros of groups, restored after every step in the live vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .optimizer import Flat, Vector

Views = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Bound:
    """What one parameter keeps; see `onnxcomp.distill.task.Constraint`."""

    mask: NDArray[Any] | None = None
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Group:
    """Slices of parameters that live or die together: (parameter, axis, indices) each."""

    slices: tuple[tuple[str, int, NDArray[np.int64]], ...]
    size: int


class Keeper:
    """Takes the proximal steps of the sparsity penalties, then restores the constraints.

    Args:
        flat: the live parameters.
        bounds, l1: by parameter name.
        group_strength: of the group lasso.
        scales: of the learning rate, by name; proximal steps follow it.
    """

    def __init__(
        self,
        flat: Flat,
        bounds: Mapping[str, Bound],
        l1: Mapping[str, float],
        groups: Sequence[Group],
        group_strength: float,
        scales: Mapping[str, float],
    ) -> None:
        self._flat = flat
        self._views = flat.views
        self._limits = {name: b for name, b in bounds.items() if b.low is not None or b.high is not None}
        self._mask = _flat_mask(flat, {name: b.mask for name, b in bounds.items() if b.mask is not None})
        self._l1 = l1
        self._groups = groups
        self._strength = group_strength
        self._scales = scales

    def mask_gradients(self, grads: Vector) -> None:
        """Weights that stay zero take no part in the gradient's norm, nor in the optimizer's state."""
        if self._mask is not None:
            grads *= self._mask

    def apply(self, rate: float) -> None:
        """After a step with this learning rate; 0 restores the constraints alone."""
        if rate > 0:
            for name, strength in self._l1.items():
                soften(self._views[name], rate * self._scales.get(name, 1.0) * strength)
            for group in self._groups:
                self._shrink(group, rate * self._strength * math.sqrt(group.size))
        for name, bound in self._limits.items():
            np.clip(self._views[name], bound.low, bound.high, out=self._views[name])
        if self._mask is not None:
            self._flat.vector *= self._mask
            self._flat.vector += np.float32(0)  # -0.0, which a negative weight times zero gives, becomes 0.0

    def _shrink(self, group: Group, threshold: float) -> None:
        """The proximal operator of the group's norm (Yuan and Lin 2006): scaled down, or exactly zero below."""
        parts = [(self._views[name], axis, indices) for name, axis, indices in group.slices]
        taken = [np.take(view, indices, axis) for view, axis, indices in parts]
        norm = math.sqrt(sum(float(np.vdot(part, part)) for part in taken))
        share = np.float32(max(0.0, 1 - threshold / norm)) if norm > 0 else np.float32(0)
        for (view, axis, indices), part in zip(parts, taken, strict=True):
            view[(slice(None),) * axis + (indices,)] = part * share


def _flat_mask(flat: Flat, masks: Mapping[str, NDArray[Any]]) -> Vector | None:
    """One factor an element, 0 or 1, or None where nothing is masked."""
    if not masks:
        return None
    whole = np.ones(len(flat.vector), np.float32)
    for name, mask in masks.items():
        whole[flat.places[name]] = np.broadcast_to(mask, flat.views[name].shape).reshape(-1)
    return whole


def soften(view: NDArray[np.float32], threshold: float) -> None:
    """Soft threshold in place: towards zero by `threshold`, and zero where that would pass it."""
    sizes = np.abs(view)
    sizes -= np.float32(threshold)
    np.maximum(sizes, np.float32(0), out=sizes)
    np.copysign(sizes, view, out=view)
    view += np.float32(0)


def groups_of(described: Sequence[Any], views: Views) -> list[Group]:
    """From the job's JSON: [[parameter, axis, indices], ...] for each group."""
    groups = []
    for one in described:
        slices = tuple((name, axis, np.asarray(indices, np.int64)) for name, axis, indices in one)
        size = sum(len(indices) * views[name].size // views[name].shape[axis] for name, axis, indices in slices)
        groups.append(Group(slices, size))
    return groups
