"""How do the indices of one tensor's axis depend on those of others? The state that rules write and what they see.

Every index of a weight's axis is an atom. Labels, an array of atoms one an index, flow with the activations: a rule
says which labels an output's axis carries, which atoms stand or fall together (ties), and which must stay (closures).
An axis without labels is fixed: nothing of it ever leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes

Labels: TypeAlias = Array  # int64 [size of the axis]: atoms
Axes: TypeAlias = list[Labels | None]


class Kept(Protocol):
    """What stays, as an edit sees it."""

    graph: Graph

    def mask(self, labels: Labels) -> Array:
        """bool, one an index: whether it stays."""

    def count(self, labels: Labels) -> int:
        """How many indices stay."""


Edit: TypeAlias = Callable[[Kept], None]


@dataclass
class Flow:
    """Labels of all tensors, and what rules found out.

    Attributes:
        shapes: every dimension a number, for one sample; may depend on the sample.
        static: what holds whatever the inputs' free dimensions are.
        values: small values that hold whatever the free dimensions are, by tensor name.
        choices: for a node that splits an axis, which of the parts carries the labels (0 is the outermost).
        splits: for each such node the labels that were split and how many choices there are.
        ties: pairs of label arrays, equal index by index.
        closed: labels that must stay, and why.
        inexact: labels whose removal changes results even where they are zero, and why.
        edits: what else must change in a node when indices leave.
        without_rule: nodes whose operator has no rule.
    """

    graph: Graph
    shapes: Shapes
    static: Shapes
    values: dict[str, Array]
    choices: dict[Node, int] = field(default_factory=dict)
    splits: dict[Node, tuple[Labels, int]] = field(default_factory=dict)
    labels: dict[Tensor, Axes | None] = field(default_factory=dict)
    ties: list[tuple[Labels, Labels]] = field(default_factory=list)
    closed: list[tuple[Labels, str]] = field(default_factory=list)
    inexact: list[tuple[Labels, str]] = field(default_factory=list)
    edits: list[tuple[Node, tuple[Labels, ...], Edit]] = field(default_factory=list)
    without_rule: list[Node] = field(default_factory=list)
    atoms: int = 0

    def fresh(self, size: int) -> Labels:
        """New atoms."""
        self.atoms += size
        return np.arange(self.atoms - size, self.atoms)

    def of(self, tensor: Tensor) -> Axes | None:
        """Labels of a tensor, axis by axis; None where its rank is unknown. A weight has atoms of its own."""
        if tensor not in self.labels:
            if isinstance(tensor, Constant):
                self.labels[tensor] = [self.fresh(size) if size > 1 else None for size in tensor.shape]
            else:
                rank = self.shapes.rank(tensor)
                self.labels[tensor] = None if rank is None else [None] * rank
        return self.labels[tensor]

    def close(self, labels: Labels | None, why: str) -> None:
        """These must stay."""
        if labels is not None and labels.size:
            self.closed.append((labels, why))

    def close_all(self, tensor: Tensor, why: str) -> None:
        """Nothing of a tensor may leave."""
        for labels in self.of(tensor) or ():
            self.close(labels, why)


class Step:
    """One node, as its rule sees it.

    A rule calls `emit` for its outputs (those it says nothing of are fixed) and `tie`, `close`, `inexact` and `edit` as
    needed. Of inputs whose `axes` it never asks for, nothing leaves.
    """

    def __init__(self, flow: Flow, node: Node, opset: int) -> None:
        self.flow, self.node, self.opset = flow, node, opset
        self.asked: set[int] = set()

    # -- looking -----------------------------------------------------------------------------------------------

    def has(self, port: int) -> bool:
        """Whether an input is given."""
        return self.node.input(port) is not None

    def axes(self, port: int) -> Axes:
        """Labels of an input; raises `UnknownShapeError` where its rank is not known."""
        self.asked.add(port)
        tensor = self.node.input(port)
        found = self.flow.of(tensor) if tensor is not None else []
        if found is None:
            raise UnknownShapeError(f"the rank of {tensor.name if tensor is not None else 'an input'} is unknown")
        return list(found)

    def sizes(self, port: int) -> tuple[int | None, ...]:
        """Dimensions of an input as numbers, None where unknown."""
        tensor = self.node.input(port)
        return self._sizes(tensor, self.axes(port))

    def out_sizes(self, index: int = 0) -> tuple[int | None, ...] | None:
        """Dimensions of an output as numbers; None where the rank is unknown."""
        tensor = self.node.output(index)
        shape = self.flow.shapes.shape(tensor)
        return None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)

    def moves_freely(self, port: int, axis: int) -> bool:
        """Whether the size of an input's axis depends on the inputs of the model."""
        shape = self.flow.static.shape(self.node.input(port))
        return shape is None or not isinstance(shape[axis], int)

    def value(self, port: int) -> Array | None:
        """The value of an input that is a small constant or follows from constants; None where it does not."""
        tensor = self.node.input(port)
        if isinstance(tensor, Constant):
            return tensor.values
        return None if tensor is None else self.flow.values.get(tensor.name)

    def attr(self, name: str, default: Any) -> Any:
        """An attribute; bytes come as text."""
        found = self.node.attrs.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def ints(self, name: str, port: int) -> list[int] | None:
        """Integers from an attribute (older opsets) or an input; None where neither is given or known."""
        if name in self.node.attrs:
            found = self.node.attrs[name]
            return [int(v) for v in (found if isinstance(found, Sequence | np.ndarray) else [found])]
        value = self.value(port)
        return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]

    # -- saying ------------------------------------------------------------------------------------------------

    def emit(self, axes: Sequence[Labels | None], index: int = 0) -> None:
        """The labels of an output."""
        tensor = self.node.output(index)
        if tensor is None:
            return
        sizes = self.out_sizes(index)
        kept: Axes = []
        for axis, labels in enumerate(axes):
            if labels is not None and sizes is not None and len(sizes) == len(axes):
                size = sizes[axis]
                if size is not None and size != len(labels):
                    self.close(labels, f"the size of {tensor.name} is not as its inputs suggest")
                    kept.append(None)
                    continue
            kept.append(labels if labels is not None and len(labels) > 1 else None)
        self.flow.labels[tensor] = kept

    def tie(self, first: Labels | None, second: Labels | None) -> Labels | None:
        """Index i of one leaves with index i of the other; beside a fixed axis, all stays. Gives the common labels."""
        if first is None or second is None or len(first) != len(second):
            for labels in (first, second):
                self.close(labels, f"it meets a fixed dimension in {self.node}")
            return None
        if first is not second:
            self.flow.ties.append((first, second))
        return first

    def together(self, rows: Array) -> Labels:
        """[n, m] atoms: those of a row leave together. Gives one label a row."""
        if rows.shape[1] > 1:
            first = np.repeat(rows[:, 0], rows.shape[1] - 1)
            self.flow.ties.append((first, rows[:, 1:].reshape(-1)))
        return np.ascontiguousarray(rows[:, 0])

    def join(self, parts: Iterable[Labels | None]) -> Labels | None:
        """Tie all; None (and all closed) where one of them is fixed."""
        found = list(parts)
        result = found[0] if found else None
        for labels in found[1:]:
            result = self.tie(result, labels)
        return result

    def close(self, labels: Labels | None, why: str = "") -> None:
        """These must stay."""
        self.flow.close(labels, why or f"{self.node} needs all of it")

    def finish(self) -> None:
        """After the rule: close the inputs it did not ask for, such as vectors of sizes."""
        for port in range(len(self.node.inputs)):
            if port not in self.asked:
                self.close_axes(port)

    def close_axes(self, port: int, why: str = "") -> None:
        """Nothing of an input may leave."""
        tensor = self.node.input(port)
        if tensor is not None:
            self.flow.close_all(tensor, why or f"{self.node} needs all of it")

    def inexact(self, labels: Labels | None, why: str) -> None:
        """Their removal changes results even where all of them are zero."""
        if labels is not None:
            self.flow.inexact.append((labels, why))

    def edit(self, change: Edit, *labels: Labels | None) -> None:
        """Change the node when any of the labels leaves."""
        given = tuple(part for part in labels if part is not None)
        if given:
            self.flow.edits.append((self.node, given, change))

    def _sizes(self, tensor: Tensor | None, axes: Axes) -> tuple[int | None, ...]:
        shape = self.flow.shapes.shape(tensor)
        if shape is None or len(shape) != len(axes):
            shape = (None,) * len(axes)
        return tuple(
            len(labels) if labels is not None else (d if isinstance(d, int) else None)
            for labels, d in zip(axes, shape, strict=True)
        )


Rule: TypeAlias = Callable[[Step], None]


class UnknownShapeError(Exception):
    """A rule cannot say anything: a rank or size is unknown. The node then closes what enters it."""


def positive(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def set_ints(kept: Kept, node: Node, name: str, port: int, values: Sequence[int]) -> None:
    """Write integers where the node has them: in an attribute, or as a new constant at the port.

    All ports of a Slice take one type, so that a new one follows those that are there.
    """
    if name in node.attrs:
        node.attrs[name] = [int(v) for v in values]
        return
    there = [t.dtype for t in (node.input(port), *node.inputs[1:]) if t is not None and t.name]
    narrow = node.op == "Slice" and np.dtype(np.int32) in there
    ends = np.iinfo(np.int32 if narrow else np.int64)
    array = np.clip(np.asarray(values, np.int64), ends.min, ends.max).astype(ends.dtype)
    node.set_input(port, kept.graph.add_constant(f"{node.name}_{name}", array))
