"""What is known of a tensor without running the graph: its dtype and its shape."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Constant, Dim, Tensor


@dataclass(frozen=True)
class TensorType:
    """What inference knows of a tensor: numpy dtype and shape, either may be unknown."""

    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None


class Shapes:
    """Inferred types by tensor name.

    Args:
        declared: for a tensor that inference knows nothing of, believe what the file says of its shape.
    """

    def __init__(self, types: MutableMapping[str, TensorType], *, declared: bool = True) -> None:
        self.types = types
        self.declared = declared

    def shape(self, tensor: Tensor | None) -> tuple[Dim, ...] | None:
        """Shape of a tensor; None when unknown or omitted."""
        if tensor is None:
            return None
        if isinstance(tensor, Constant):
            return tensor.shape
        known = self.types.get(tensor.name)
        if known is not None:
            return known.shape
        return tensor.shape if self.declared else None

    def static(self, tensor: Tensor | None) -> tuple[int, ...] | None:
        """Shape of a tensor when every dimension is a number; else None."""
        shape = self.shape(tensor)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return tuple(int(d) for d in shape if isinstance(d, int))

    def known(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor by name, when every dimension is a number; None for weights too."""
        kind = self.types.get(name)
        dims = () if kind is None or kind.shape is None else kind.shape
        numbers = tuple(d for d in dims if isinstance(d, int))
        return numbers if kind is not None and kind.shape is not None and len(numbers) == len(dims) else None

    def rank(self, tensor: Tensor | None) -> int | None:
        """Number of dimensions; None when unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def dtype(self, tensor: Tensor | None) -> np.dtype[Any] | None:
        """numpy dtype of a tensor; None when unknown."""
        if tensor is None:
            return None
        if isinstance(tensor, Constant):
            return tensor.dtype
        known = self.types.get(tensor.name)
        return known.dtype if known is not None and known.dtype is not None else tensor.dtype
