"""What does the model cost once certain units have left? Multiply-accumulates and parameters, without cutting it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.graph.cost import parameter_elements
from onnxcomp.graph.coupling.analysis import Coupling, Group
from onnxcomp.graph.ir import Array, Constant, Node
from onnxcomp.ops.facts import Operators

Saved: TypeAlias = Literal["units", "macs", "params"]
_Item: TypeAlias = Node | Constant


class Costing:
    """Costs of a graph under removal of units; counts anew only what a removal touches.

    Attributes:
        removed: bool [units of the coupling], what has left so far.
        macs: multiply-accumulates of one sample; `macs_at_first` before any removal.
        params: weight elements; likewise.
    """

    def __init__(self, coupling: Coupling, operators: Operators) -> None:
        self.coupling, self.operators = coupling, operators
        self.removed = np.zeros(coupling.unit_count, bool)
        self._gone: set[_Item] = set()
        self._axes = {
            tensor: [None if labels is None else coupling.unit_of[labels] for labels in axes]
            for tensor, axes in coupling.labels.items()
            if any(labels is not None for labels in axes)
        }
        nodes = [n for n in coupling.graph.nodes if operators.facts(n).macs(n, coupling.shapes)]
        tensors = self._parameter_tensors()
        items: list[_Item] = [*nodes, *tensors]
        self._of: dict[_Item, int] = {item: self._count(item) for item in items}
        self.macs = sum(self._of[node] for node in nodes)
        self.params = sum(self._of[tensor] for tensor in tensors)
        self.macs_at_first, self.params_at_first = self.macs, self.params
        self._by_unit = self._index()

    def remove(self, units: Array | Sequence[int]) -> None:
        """Units of one group leave."""
        self.removed[np.asarray(units, np.int64)] = True
        for item in self._touched(units):
            self._change(item)

    def _change(self, item: _Item) -> None:
        change = self._count(item) - self._of[item]
        self._of[item] += change
        if isinstance(item, Node):
            self.macs += change
        else:
            self.params += change

    def drop(self, nodes: Iterable[Node]) -> None:
        """Nodes leave as a whole, with the weights that only they read."""
        gone = set(nodes)
        for item in list(self._of):
            if item in gone if isinstance(item, Node) else gone.issuperset(item.consumers):
                self._gone.add(item)
                self._change(item)

    def saving(self, units: Array | Sequence[int], what: Saved) -> int:
        """What the removal of more units of one group would save."""
        if what == "units":
            return len(units)
        kind = Node if what == "macs" else Constant
        items = [item for item in self._touched(units) if isinstance(item, kind)]
        places = np.asarray(units, np.int64)
        self.removed[places] = True
        after = sum(self._count(item) for item in items)
        self.removed[places] = False
        return sum(self._of[item] for item in items) - after

    def touched_macs(self, groups: Sequence[Group]) -> int:
        """Multiply-accumulates of all nodes that some group touches."""
        items = {item for group in groups for item in self._touched(group.units)}
        return sum(self._of[item] for item in items if isinstance(item, Node))

    def _touched(self, units: Array | Sequence[int]) -> list[_Item]:
        return self._by_unit.get(int(units[0]), []) if len(units) else []

    def _count(self, item: _Item) -> int:
        if item in self._gone:
            return 0
        if isinstance(item, Node):
            return self.operators.facts(item).macs(item, self.coupling.predicted(self.removed))
        size = 1
        axes = self._axes.get(item) or [None] * len(item.shape)
        for length, units in zip(item.shape, axes, strict=True):
            size *= length if units is None else int(np.count_nonzero(~self.removed[units]))
        return size

    def _parameter_tensors(self) -> list[Constant]:
        found: dict[Constant, None] = {}
        for node in self.coupling.graph.walk():
            for port, tensor in enumerate(node.inputs):
                if isinstance(tensor, Constant) and parameter_elements(node, port, tensor, self.operators):
                    found.setdefault(tensor)
        return list(found)

    def _index(self) -> dict[int, list[_Item]]:
        """Nodes and weights by every unit in them."""
        found: dict[int, list[_Item]] = {}
        for item in self._of:
            tensors = (*item.inputs, *item.outputs) if isinstance(item, Node) else (item,)
            units = [axis for tensor in tensors for axis in self._axes.get(tensor, ()) if axis is not None]
            for unit in np.unique(np.concatenate(units)).tolist() if units else ():
                found.setdefault(unit, []).append(item)
        return found
