"""Shapes and types of every tensor, and whether a graph is well formed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import shape_inference

from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode, encode_light
from onnxcomp.graph.ir import Constant, Dim, Graph, Tensor, Variable


@dataclass(frozen=True)
class TensorType:
    """What inference knows of a tensor: numpy dtype and shape, either may be unknown."""

    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...] | None


class Shapes:
    """Inferred types by tensor name."""

    def __init__(self, types: Mapping[str, TensorType]) -> None:
        self.types = types

    def shape(self, tensor: Tensor | None) -> tuple[Dim, ...] | None:
        """Shape of a tensor; None when unknown or omitted."""
        if tensor is None:
            return None
        if isinstance(tensor, Constant):
            return tensor.shape
        known = self.types.get(tensor.name)
        return known.shape if known is not None else tensor.shape

    def static(self, tensor: Tensor | None) -> tuple[int, ...] | None:
        """Shape of a tensor when every dimension is a number; else None."""
        shape = self.shape(tensor)
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        return tuple(int(d) for d in shape if isinstance(d, int))

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


def infer(graph: Graph, bind: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Infer shapes and types of all tensors, bodies included.

    Args:
        bind: concrete shapes of graph inputs by name; None leaves symbolic dimensions symbolic.
    """
    model = encode_light(graph)
    if bind:
        _bind(model.graph, bind)
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model  # what the file itself says is still known
    types: dict[str, TensorType] = {}
    for scope in decode_types(inferred):
        types.update(scope)
    return Shapes(types)


def decode_types(model: onnx.ModelProto) -> list[dict[str, TensorType]]:
    """Types of the variables of each scope of a ModelProto, the main graph first."""
    graph = decode(model)
    found = []
    for scope in graph.scopes():
        variables = [*scope.inputs, *(t for node in scope.nodes for t in node.outputs), *scope.outputs]
        found.append({t.name: TensorType(t.dtype, t.shape) for t in variables if isinstance(t, Variable) and t.name})
    return found


def annotate(graph: Graph) -> Shapes:
    """Infer, and write shapes and types to the tensors themselves; the interface stays as it is."""
    shapes = infer(graph)
    for scope in graph.scopes():
        fixed = {*scope.inputs, *scope.outputs}
        for node in scope.nodes:
            for tensor in node.outputs:
                known = shapes.types.get(tensor.name)
                if known is not None and tensor not in fixed:
                    tensor.dtype, tensor.shape = known.dtype, known.shape
    return shapes


def one_sample(graph: Graph, given: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, tuple[int, ...]]:
    """Concrete input shapes for cost figures: symbolic and unknown dimensions become 1 where none is given."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in graph.inputs:
        if given and tensor.name in given:
            shapes[tensor.name] = tuple(given[tensor.name])
        elif tensor.shape is not None:
            shapes[tensor.name] = tuple(d if isinstance(d, int) and d > 0 else 1 for d in tensor.shape)
    return shapes


def check_structure(graph: Graph, *, strict: bool = True) -> None:
    """onnx.checker and shape inference on a copy without large weights.

    Args:
        strict: fail where shape inference contradicts the graph; some valid models with custom operators need False.

    Raises:
        ModelError: names what is wrong.
    """
    model = encode_light(graph)
    try:
        onnx.checker.check_model(model)
        shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict, data_prop=False)
    except (onnx.checker.ValidationError, shape_inference.InferenceError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ModelError(
            f"the graph is not valid ONNX: {line[:300]}", where="onnx.checker", do="export the model again"
        ) from error


def _bind(graph: onnx.GraphProto, bind: Mapping[str, tuple[int, ...]]) -> None:
    for value in graph.input:
        if value.name in bind and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in bind[value.name]:
                shape.dim.add(dim_value=size)
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
