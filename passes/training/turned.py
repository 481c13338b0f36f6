"""How does training see a model whose samples do not lie along axis 0, or that takes fewer than its interface says?

Training cuts its data into rows: a sample is a row of every array. So a model with time before batch is trained between
Transposes that put the batch first, and its samples are turned alike; afterwards the Transposes go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcomp.data.axes import Axes
from onnxcomp.graph.ir import Dim, Graph, Variable
from onnxcomp.manager.base import PassContext, SampleSource

Array = np.ndarray[Any, Any]


class Turned:
    """Samples with the axis of the batch moved to the front."""

    def __init__(self, samples: SampleSource, axes: Axes) -> None:
        self._samples, self._axes = samples, axes
        self.labels, self.source = samples.labels, samples.source

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, size: int | None = None) -> Iterator[dict[str, Array]]:
        """Feeds by input name, [samples, ...] each."""
        for feed in self._samples.batches(size):
            yield {name: np.moveaxis(a, self._axes.input(name) or 0, 0) for name, a in feed.items()}


@contextmanager
def batch_first(graph: Graph, context: PassContext) -> Iterator[PassContext]:
    """Let a graph have its batch first, and as large as it takes it, while the context is entered.

    Yields:
        A context whose samples, teacher and shapes fit the turned graph.
    """
    samples = context.training if context.training is not None else context.calibration
    axes: Axes = getattr(samples, "axes", Axes())
    fixed: int | None = getattr(samples, "batch", None)
    turned = {name: axis for name, axis in axes.inputs.items() if axis}
    if not any((*turned.values(), *axes.outputs.values())) and not _frees(graph, axes, fixed):
        yield context
        return
    original = context.original.clone() if context.original is not None else None
    undo = [_turn(graph, axes, fixed)]
    if original is not None:
        _turn(original, axes, fixed)
    wrapped = {
        name: Turned(given, axes)
        for name in ("calibration", "training", "held_out")
        if (given := getattr(context, name)) is not None
    }
    shapes = {name: _moved(shape, axes.input(name) or 0) for name, shape in context.sample_shapes.items()}
    try:
        yield replace(context, original=original, sample_shapes=shapes, **wrapped)  # type: ignore[arg-type]
    finally:
        for step in undo:
            step.back(graph)


class _Undo:
    """What was done to a graph, and how to take it back."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Variable, Variable]] = []  # as it was, as it is
        self.outputs: list[tuple[Variable, Variable]] = []
        self.shapes: list[tuple[Variable, tuple[Dim, ...] | None]] = []

    def back(self, graph: Graph) -> None:
        """Take the Transposes out again."""
        for old, new in self.inputs:
            node = old.producer
            name = new.name
            graph.inputs[graph.inputs.index(new)] = old
            if node is not None:
                node.outputs.clear()
                graph.remove_nodes([node])
            new.name, old.name = graph.unique_name(f"{name}.turned"), name
        for old, new in self.outputs:
            node, name = new.producer, new.name
            graph.outputs[graph.outputs.index(new)] = old
            if node is not None:
                graph.remove_nodes([node])
            new.name, old.name = graph.unique_name(f"{name}.turned"), name
        for tensor, shape in self.shapes:
            tensor.shape = shape
        graph.sort()


def _frees(graph: Graph, axes: Axes, fixed: int | None) -> bool:
    """Whether the interface leaves a batch free that the model fixes inside."""
    return fixed is not None and any(_free(tensor, axes.input(tensor.name)) for tensor in graph.inputs)


def _free(tensor: Variable, axis: int | None) -> bool:
    return axis is not None and bool(tensor.shape) and not isinstance((tensor.shape or (1,))[axis], int)


def _turn(graph: Graph, axes: Axes, fixed: int | None) -> _Undo:
    undo = _Undo()
    for index, tensor in enumerate(list(graph.inputs)):
        axis = axes.input(tensor.name)
        if fixed is not None and _free(tensor, axis) and tensor.shape is not None:
            undo.shapes.append((tensor, tensor.shape))
            tensor.shape = tuple(fixed if at == axis else size for at, size in enumerate(tensor.shape))
        if not axis or tensor.shape is None:
            continue
        name = tensor.name
        new = Variable(name, tensor.dtype, _moved(tensor.shape, axis))
        tensor.name = graph.unique_name(f"{name}.inside")
        graph.add_node("Transpose", [new], attrs={"perm": _perm(len(tensor.shape), 0, axis)}, outputs=[tensor])
        graph.inputs[index] = new
        undo.inputs.append((tensor, new))
    for index, tensor in enumerate(list(graph.outputs)):
        axis, rank = axes.output(tensor.name), len(tensor.shape or ())
        if not axis or axis >= rank or not isinstance(tensor, Variable):
            continue
        name = tensor.name
        new = Variable(name, tensor.dtype, _moved(tensor.shape or (), axis))
        tensor.name = graph.unique_name(f"{name}.inside")
        graph.add_node("Transpose", [tensor], attrs={"perm": _perm(rank, axis, 0)}, outputs=[new])
        graph.outputs[index] = new
        undo.outputs.append((tensor, new))
    graph.sort()
    return undo


def _perm(rank: int, source: int, target: int) -> list[int]:
    """The permutation that moves an axis, as `numpy.moveaxis` does."""
    order = [axis for axis in range(rank) if axis != source]
    order.insert(target, source)
    return order


def _moved(shape: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return (shape[axis], *shape[:axis], *shape[axis + 1 :]) if axis and axis < len(shape) else tuple(shape)
