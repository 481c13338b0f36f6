"""Where does the batch lie in a model's inputs and outputs, and how do rows come from there and go back?

Training works on rows: samples along axis 0 of every array. A recurrent model may take [time, batch, …] and give its
states as [layers, batch, …]; its training copy turns both around inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Variable


class Places(Protocol):
    """What a source of samples knows of the model's interface."""

    def input(self, name: str) -> int | None:
        """The axis along which samples lie in an input; None where the whole array belongs to every sample."""

    def output(self, name: str) -> int | None:
        """The axis along which samples lie in an output."""


class _First:
    """Samples along axis 0 everywhere."""

    def input(self, name: str) -> int | None:
        del name
        return 0

    def output(self, name: str) -> int | None:
        del name
        return 0


FIRST = _First()


@dataclass(frozen=True)
class Layout:
    """Turns arrays from the model's layout to rows and back.

    Attributes:
        places: where samples lie in the model.
        batch: samples a run where the model takes that many only; None for any number.
    """

    places: Places = FIRST
    batch: int | None = None

    @classmethod
    def of(cls, samples: Any) -> Layout:
        """What a source of samples knows; sources of tests and of third parties need not say it."""
        return cls(getattr(samples, "axes", None) or FIRST, getattr(samples, "batch", None))

    def rows(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Feeds with their samples along axis 0; inputs that belong to every sample as they are."""
        return {name: to_front(array, self.places.input(name)) for name, array in feeds.items()}

    def feeds(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        """Rows as the model takes them."""
        return {name: from_front(array, self.places.input(name)) for name, array in rows.items()}

    def outputs(self, given: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Outputs, or tensors inside, with one row a sample where they have an axis of that size."""
        return {name: to_front(array, self.axis_of(name, array.shape, rows)) for name, array in given.items()}

    def axis_of(self, name: str, shape: tuple[int, ...], rows: int) -> int | None:
        """The axis of a tensor that counts so many samples; None where it has none."""
        known = self.places.output(name) or 0
        order = sorted(range(len(shape)), key=lambda axis: (axis != known, axis))
        return next((axis for axis in order if shape[axis] == rows), None)


def to_front(array: Array, axis: int | None) -> Array:
    """An array with one axis moved to the front."""
    return array if not axis else np.ascontiguousarray(np.moveaxis(array, axis, 0))


def from_front(array: Array, axis: int | None) -> Array:
    """An array with its first axis moved back."""
    return array if not axis else np.ascontiguousarray(np.moveaxis(array, 0, axis))


def take_rows(graph: Graph, layout: Layout) -> None:
    """Let a graph take its inputs with samples along axis 0, under their own names; it turns them around itself."""
    for at, tensor in enumerate(graph.inputs):
        axis = layout.places.input(tensor.name)
        if not axis or tensor.shape is None or axis >= len(tensor.shape):
            continue
        rank = len(tensor.shape)
        given = Variable(tensor.name, tensor.dtype, tuple(np.array(tensor.shape, object)[_front(axis, rank)]))
        tensor.name, tensor.envelope = graph.unique_name(f"{given.name}.laid"), None
        graph.inputs[at] = given
        perm = [int(p) for p in np.argsort(_front(axis, rank))]
        graph.add_node("Transpose", [given], name=f"{given.name}.lay", attrs={"perm": perm}, outputs=[tensor])
    graph.sort()


def rows_first(graph: Graph, name: str, axis: int) -> str:
    """A tensor of a graph with its samples along axis 0; the name of what is added, its own where nothing is."""
    if not axis:
        return name
    tensor = graph.tensors()[name]
    rank = len(tensor.shape or ())
    node = graph.add_node("Transpose", [tensor], name="distill.rows", attrs={"perm": _front(axis, rank)})
    node.outputs[0].dtype = tensor.dtype
    node.outputs[0].shape = tuple((tensor.shape or ())[a] for a in _front(axis, rank))
    return str(node.outputs[0].name)


def _front(axis: int, rank: int) -> list[int]:
    return [axis, *(a for a in range(rank) if a != axis)]
