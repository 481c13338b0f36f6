"""Which layers read the units of a group, and in which columns of their weights?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coupling.analysis import Group, Slot
from onnxcomp.graph.ir import Array, Graph, Node
from onnxcomp.layers.layer import Layer
from onnxcomp.layers.use import WeightUse
from onnxcomp.ops.facts import Operators, Weight
from onnxcomp.passes.pruning.layers import refittable
from onnxcomp.runtime.gram import Gram, moment_bytes

SCARCE = 10.0
MOST_MOMENT_BYTES = 1 << 29  # 8,000 inputs; a wider layer is judged by its weights alone


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the units of a group.

    Attributes:
        use: its weight.
        columns: int64 [units, n]: the columns of `Weight.to_matrix` that each unit feeds; equal in all conv groups.
        layer: how it is measured and re-solved; None where it cannot be, for the reason `why`.
    """

    use: WeightUse
    columns: Array
    layer: Layer | None
    why: str = ""


def readers(graph: Graph, group: Group, operators: Operators) -> Iterator[Reader]:
    """The layers whose weights have the group's units along an axis that is summed over."""
    for slot, node, weight in uses_of(group, operators):
        rank = len(slot.constant.shape)
        if weight.role == "embedding" or slot.axis not in [a % rank for a in weight.in_axes]:
            continue
        use = WeightUse(node, weight, slot.constant)
        found = refittable(graph, use)
        if isinstance(found, Layer) and moment_bytes(use) > MOST_MOMENT_BYTES:
            found = "its inputs are too many to be measured together"
        columns = _columns(slot, weight)
        if isinstance(found, Layer):
            yield Reader(use, columns, found)
        else:
            yield Reader(use, columns, None, found)


def makers(group: Group, operators: Operators) -> Iterator[tuple[Slot, Node, Weight]]:
    """Weights that have the group's units along their output axis."""
    for slot, node, weight in uses_of(group, operators):
        if weight.role != "embedding" and weight.out_axis % len(slot.constant.shape) == slot.axis:
            yield slot, node, weight


def uses_of(group: Group, operators: Operators) -> Iterator[tuple[Slot, Node, Weight]]:
    """Every weight use of the group's slots; a weight that stands behind DequantizeLinear is not among them."""
    for slot in group.slots:
        for node in dict.fromkeys(slot.constant.consumers):
            for weight, constant in operators.weights(node):
                if constant is slot.constant:
                    yield slot, node, weight


def ridge(moments: Gram, damping: float) -> float:
    """The ridge for a layer, as a share of the mean diagonal: larger where rows are few for the inputs they fit.

    The last layers of LeNet-5 have as many inputs as 512 samples give rows.
    """
    inputs = moments.h.shape[-1] - 1
    share: float = inputs / max(moments.count, 1)
    return damping * (1.0 + SCARCE * share)


def _columns(slot: Slot, weight: Weight) -> Array:
    """[units, n]: for each unit the columns of the weight matrix that hold its indices."""
    shape = slot.constant.shape
    index = np.arange(shape[slot.axis]).reshape([-1 if a == slot.axis else 1 for a in range(len(shape))])
    row = weight.to_matrix(np.broadcast_to(index, shape))[0]  # which index each column belongs to
    unit_of = np.full(shape[slot.axis], -1)
    unit_of[slot.indices] = np.arange(len(slot.indices))[:, None]
    owner = unit_of[row]
    places = np.flatnonzero(owner >= 0)
    return places[np.argsort(owner[places], kind="stable")].reshape(len(slot.indices), -1)
