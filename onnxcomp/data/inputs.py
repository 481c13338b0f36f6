"""What does the model take? Names, types and shapes of its inputs, read without the weights kept outside the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcomp.errors import ModelError, UsageError
from onnxcomp.graph.io import read_proto

Dim = int | str | None


@dataclass(frozen=True)
class InputSpec:
    """One graph input. `shape`: an int is fixed, a str or None is free; None for the whole shape is an unknown rank."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None

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
    def settled(self) -> bool:
        """Whether the model fixes every size."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def dims(self) -> str:
        """The shape in words: `[batch, 3, 32, 32]`."""
        return "of unknown rank" if self.shape is None else "[" + ", ".join(str(d or "?") for d in self.shape) + "]"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype if self.dtype != np.dtype(object) else 'string'} {self.dims}"


def inputs_of(model: str | Path) -> tuple[tuple[InputSpec, ...], dict[str, str]]:
    """Inputs that have to be fed (initializers that are listed as inputs left out) and the model's metadata.

    Raises:
        ModelError: the file is missing or no ONNX model, or an input is not a tensor.
    """
    path = Path(model)
    proto = read_proto(path)
    held = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    specs = tuple(_spec(value, path) for value in proto.graph.input if value.name not in held)
    return specs, {entry.key: entry.value for entry in proto.metadata_props}


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


def _spec(value: onnx.ValueInfoProto, path: Path) -> InputSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError(
            f"the input {value.name} is not a tensor but a {value.type.WhichOneof('value') or 'value of no type'}",
            where=str(path),
            do="export the model with tensor inputs",
        )
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the input {value.name} has no known element type", where=str(path)) from error
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    # a size of 0 or less stands for "any" in files of several exporters
    dims = tuple(d.dim_value if d.dim_value > 0 else (d.dim_param or None) for d in tensor.shape.dim)
    return InputSpec(value.name, dtype, dims)
