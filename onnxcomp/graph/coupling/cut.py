"""Take units out of a graph: slice every weight, correct attributes and sizes, and leave a model that runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coupling.analysis import Coupling, variables
from onnxcomp.graph.coupling.flow import Labels
from onnxcomp.graph.coupling.sharing import join_vectors
from onnxcomp.graph.ir import Array, Constant, Graph


@dataclass
class _Staying:
    """The view that edits have: `onnxcomp.graph.coupling.flow.Kept`."""

    graph: Graph
    unit_of: Array
    staying: Array

    def mask(self, labels: Labels) -> Array:
        found: Array = self.staying[self.unit_of[labels]]
        return found

    def count(self, labels: Labels) -> int:
        return int(np.count_nonzero(self.mask(labels)))


def cut(coupling: Coupling, units: Iterable[int] | Array) -> None:
    """Remove units from the coupling's graph, in place. The coupling holds no longer afterwards.

    Args:
        units: ids as in `Group.units`.

    Raises:
        ValueError: a unit must stay, or an axis would lose all its indices.
    """
    removed = np.zeros(coupling.unit_count, bool)
    removed[np.asarray(list(units), np.int64)] = True
    if (removed & ~coupling.open_units).any():
        raise ValueError("a unit was asked to leave that must stay")
    kept = _Staying(coupling.graph, coupling.unit_of, ~removed)
    emptied = emptied_axis(coupling, removed)
    if emptied:
        raise ValueError(f"{emptied} would lose all its indices")
    for tensor, axes in coupling.labels.items():
        if isinstance(tensor, Constant):
            _slice(tensor, [None if labels is None else kept.mask(labels) for labels in axes])
    for variable, axes in variables(coupling):
        if variable.shape is not None and len(variable.shape) == len(axes):
            variable.shape = tuple(
                size if labels is None or not isinstance(size, int) else kept.count(labels)
                for size, labels in zip(variable.shape, axes, strict=True)
            )
        for axis, labelled in enumerate(axes):
            if labelled is not None and not (mask := kept.mask(labelled)).all():
                there = variable.left.get(axis, np.arange(len(mask)))
                variable.left[axis] = there[mask]
    for _, labels, change in coupling.edits:
        if not all(kept.mask(part).all() for part in labels):
            change(kept)
    join_vectors(coupling.copies)
    coupling.graph.remove_nodes([node for node, _ in coupling.lifted])
    coupling.graph.sort()


def emptied_axis(coupling: Coupling, removed: Array) -> str:
    """The name of a tensor that would have an axis without indices; empty where there is none."""
    for tensor, axes in coupling.labels.items():
        for labels in axes:
            if labels is not None and removed[coupling.unit_of[labels]].all():
                name: str = tensor.name
                return name
    return ""


def _slice(constant: Constant, masks: list[Array | None]) -> None:
    places = [(axis, mask) for axis, mask in enumerate(masks) if mask is not None and not mask.all()]
    if not places:
        return
    values = constant.values
    for axis, mask in places:
        values = np.take(values, np.flatnonzero(mask), axis=axis)
    constant.values = np.ascontiguousarray(values)
