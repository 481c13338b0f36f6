"""What do operators share whose inputs meet with broadcasting? The coupling rule of each place by itself."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.graph.coupling.flow import Axes, Step


def broadcast(step: Step, ports: Sequence[int]) -> Axes:
    """The labels of the broadcast inputs, aligned at their last axes; inputs of size 1 have no say."""
    inputs = [(step.axes(port), step.sizes(port)) for port in ports]
    rank = max((len(axes) for axes, _ in inputs), default=0)
    result: Axes = []
    for axis in range(-rank, 0):
        parts = [(axes[axis], sizes[axis]) for axes, sizes in inputs if len(axes) >= -axis]
        result.append(step.join([labels for labels, size in parts if size != 1]))
    return result


def elementwise(step: Step) -> None:
    """Each output element depends on the input elements at its place, after broadcasting."""
    step.emit(broadcast(step, [port for port in range(len(step.node.inputs)) if step.has(port)]))


def unary(step: Step) -> None:
    """The first input, element by element; other inputs are scalars. Further outputs look like the first."""
    axes = step.axes(0)
    for index in range(len(step.node.outputs)):
        step.emit(axes, index)


def close_all(step: Step, parts: Axes) -> None:
    """None of these may leave."""
    for labels in parts:
        step.close(labels)
