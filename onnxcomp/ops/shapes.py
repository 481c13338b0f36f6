"""Types of outputs that ONNX's own inference does not know: rules of the records, see `OpFacts.shape`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxcomp.graph.evaluate import standard_types
from onnxcomp.graph.ir import Dim, Node
from onnxcomp.graph.types import Shapes, TensorType

LATEST = onnx.defs.onnx_opset_version()


def like(node: Node, shapes: Shapes, port: int = 0) -> TensorType | None:
    """As an input."""
    tensor = node.input(port)
    shape = shapes.shape(tensor)
    return None if tensor is None or shape is None else TensorType(shapes.dtype(tensor), shape)


def as_first(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """The only output is as the first input."""
    return [like(node, shapes)]


def rows_by(
    node: Node, shapes: Shapes, width: int | None, dtype: np.dtype[np.generic] | None = None
) -> list[TensorType | None]:
    """The first input with its last axis replaced."""
    found = like(node, shapes)
    if found is None or not found.shape or width is None:
        return [None]
    return [TensorType(found.dtype if dtype is None else dtype, (*found.shape[:-1], width))]


def broadcast(first: Sequence[Dim], second: Sequence[Dim]) -> tuple[Dim, ...]:
    """Two shapes together; where one is a symbol and the other not 1, the number."""
    rank = max(len(first), len(second))
    result: list[Dim] = []
    for a, b in zip(
        (1,) * (rank - len(first)) + tuple(first), (1,) * (rank - len(second)) + tuple(second), strict=True
    ):
        result.append(b if a == 1 else a if b == 1 or isinstance(a, int) else b)
    return tuple(result)


def inferred_as(node: Node, op: str, ports: int, shapes: Shapes) -> TensorType | None:
    """The first output as that of an operator of the standard which takes the first inputs."""
    found = standard_types(node, shapes, {}, LATEST, op=op, ports=ports)
    return found.get(node.outputs[0].name)
