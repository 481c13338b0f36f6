"""What does the model take? Names, types and shapes of its inputs, read without the weights kept outside the file."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.data.axes import axes_of
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph, Variable

Dim = int | str | None


@dataclass(frozen=True)
class InputSpec:
    """One graph input. `shape`: an int is fixed, a str or None is free; None for the whole shape is an unknown rank.

    `axis`: along which samples lie; None where the whole array belongs to one sample. `rows`: of the smallest table
    that its values look up; 0 where they look up none.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    axis: int | None = 0
    rows: int = 0

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None when the model does not say."""
        return None if self.shape is None else len(self.shape)

    def fixed(self, axis: int) -> int | None:
        """Size of one dimension if the model fixes it."""
        if self.shape is None or not -len(self.shape) <= axis < len(self.shape):
            return None
        size = self.shape[axis]
        return size if isinstance(size, int) else None

    @property
    def batch(self) -> int | None:
        """How many samples the model fixes; None where that is free, or no axis counts samples."""
        return None if self.axis is None or not self.rank else self.fixed(self.axis)

    @property
    def settled(self) -> bool:
        """Whether the model fixes every size."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def dims(self) -> str:
        """The shape in words: `[batch, 3, 32, 32]`."""
        return (
            "of unknown rank"
            if self.shape is None
            else "[" + ", ".join("?" if d is None else str(d) for d in self.shape) + "]"
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype if self.dtype != np.dtype(object) else 'string'} {self.dims}"


@dataclass(frozen=True)
class OutputSpec:
    """One graph output; `axis` as for an input. `dtype`: None for a sequence or map."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None
    axis: int | None = 0

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape or ())}"


@dataclass(frozen=True)
class Interface:
    """What a model takes and gives, and its metadata."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    metadata: dict[str, str]


def interface_of(model: str | Path | Graph) -> Interface:
    """The interface of a model file or a graph.

    Raises:
        ModelError: the file is missing or no ONNX model, or an input is not a tensor.
    """
    graph = model if isinstance(model, Graph) else load(model)
    where = str(graph.source or "the model")
    axes = axes_of(graph)
    outputs = tuple(OutputSpec(t.name, t.dtype, _dims(t), axes.output(t.name)) for t in graph.outputs)
    return Interface(tuple(_spec(t, axes.input(t.name), where) for t in graph.inputs), outputs, graph.metadata)


def inputs_of(model: str | Path) -> tuple[tuple[InputSpec, ...], dict[str, str]]:
    """Inputs that have to be fed (initializers that are listed as inputs left out) and the model's metadata.

    Raises:
        ModelError: as `interface_of`.
    """
    found = interface_of(model)
    return found.inputs, found.metadata


def with_shapes(inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]] | None) -> tuple[InputSpec, ...]:
    """Put sizes given by the user in the place of free dimensions.

    Raises:
        UsageError: a name that the model does not have, another rank, or a size that the model fixes differently.
    """
    shapes = dict(shapes or {})
    names = [spec.name for spec in inputs]
    for name in shapes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.0)
            raise UsageError(
                f"the model has no input {name!r}",
                where=f"--shape {name}=...",
                do=f"its inputs are {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else ""),
            )
    return tuple(_with_shape(spec, shapes[spec.name]) if spec.name in shapes else spec for spec in inputs)


def _with_shape(spec: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    fits = spec.shape is None or (
        len(shape) == len(spec.shape)
        and all(not isinstance(own, int) or own == given for own, given in zip(spec.shape, shape, strict=True))
    )
    if not fits:
        raise UsageError(
            f"the shape {'x'.join(map(str, shape))} does not fit the input {spec}",
            where=f"--shape {spec.name}={'x'.join(map(str, shape))}",
            do="keep the model's rank and the sizes that it fixes",
        )
    return replace(spec, shape=shape)


def _spec(tensor: Variable, axis: int | None, where: str) -> InputSpec:
    if tensor.dtype is None:
        raise ModelError(
            f"the input {tensor.name} is no tensor of a known element type",
            where=where,
            do="export the model with tensor inputs",
        )
    # ONNX Runtime takes the 0 of an input at its word
    zeros = [place for place in range(len(tensor.shape or ())) if place != axis]
    return InputSpec(tensor.name, tensor.dtype, _dims(tensor, zeros), axis, _rows(tensor))


def _rows(tensor: Variable) -> int:
    """Rows of the smallest table that Gather looks up by the values of an input, as they are or converted."""
    found = []
    for node in tensor.consumers:
        table = node.constant(0) if node.op == "Gather" and node.inputs[1] is tensor else None
        if node.op == "Cast":
            found.append(_rows(node.outputs[0]))
        elif table is not None and table.shape:
            found.append(table.shape[int(node.attrs.get("axis", 0))])
    return min((rows for rows in found if rows), default=0)


def _dims(tensor: Variable, zeros: Collection[int] = ()) -> tuple[Dim, ...] | None:
    """The sizes; 0 or less stands for "any" in files of several exporters, but not a 0 along the axes `zeros`."""
    if tensor.shape is None:
        return None
    least = [0 if axis in zeros else 1 for axis in range(len(tensor.shape))]
    return tuple(
        (d if d >= low else None) if isinstance(d, int) else d or None
        for d, low in zip(tensor.shape, least, strict=True)
    )
