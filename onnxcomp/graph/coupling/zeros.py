"""Which units can leave without a trace, because they are zero or nothing but zeros reads them?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.coupling.analysis import Coupling
from onnxcomp.graph.ir import Array, Constant, Node, Tensor
from onnxcomp.ops.facts import Operators, Weight
from onnxcomp.ops.zeros import kept

_READ_SIZES = frozenset(["Shape", "Size"])


def free_units(coupling: Coupling, operators: Operators) -> Array:
    """Units of exact groups whose removal changes no output (but for the order of sums): sorted int64 ids.

    A unit is free when every sum it enters gets nothing from it: its activation is zero there, or the weights that
    multiply it are. Units that would leave an axis empty stay.
    """
    walk = _Walk(coupling, operators)
    for node in coupling.graph.nodes:
        walk.visit(node)
    exact = np.zeros(coupling.unit_count, bool)
    for group in coupling.groups:
        if group.exact and any("float" in slot.constant.dtype.name for slot in group.slots):
            exact[group.units] = True
    free = exact & ~walk.needed
    for axes in coupling.labels.values():
        for labels in axes:
            units = None if labels is None else np.unique(coupling.unit_of[labels])
            if units is not None and free[units].all():
                free[units[0]] = False
    return np.flatnonzero(free)


class _Walk:
    """Zero units of each tensor, and units that some sum needs."""

    def __init__(self, coupling: Coupling, operators: Operators) -> None:
        self.coupling, self.operators = coupling, operators
        self.needed = np.zeros(coupling.unit_count, bool)
        self._zero: dict[Tensor, set[int]] = {}
        self._units: dict[Tensor, set[int]] = {}

    def visit(self, node: Node) -> None:
        """Zero units of the node's outputs; units that it sums up."""
        if node.op in _READ_SIZES:
            return
        weights = {w.port: w for w, _ in self.operators.weights(node) if w.role == "kernel"}
        for port, tensor in enumerate(node.inputs):
            if tensor.name and port not in weights:
                summed = self._summed(node, port, tensor, weights)
                if summed:
                    self._need(node, tensor, summed, weights)
        self._fed_back(node)
        zero = self._result(node, weights)
        for tensor in node.outputs:
            self._zero[tensor] = zero & self.units(tensor)

    def _fed_back(self, node: Node) -> None:
        """Hidden units that a recurrent weight reads are needed by the next step, whoever reads the outputs."""
        made = set().union(*(self.units(t) for t in node.outputs if t.name))
        for weight, constant in self.operators.weights(node):
            if weight.role == "recurrent":
                axes = self.coupling.axes(constant)
                labels = [found for found in (axes[a] for a in weight.in_axes) if found is not None]
                read = {int(unit) for units in labels for unit in np.unique(units)}
                for unit in (read & made) - self._zero_along(constant, weight.in_axes):
                    self.needed[unit] = True

    def units(self, tensor: Tensor) -> set[int]:
        """Units that a tensor carries."""
        if tensor not in self._units:
            found: set[int] = set()
            for axis in self.coupling.axes(tensor):
                if axis is not None:
                    found.update(np.unique(axis).tolist())
            self._units[tensor] = found
        return self._units[tensor]

    def zero(self, tensor: Tensor) -> set[int]:
        """Units that are zero throughout a tensor."""
        if tensor not in self._zero:
            self._zero[tensor] = (
                self._zero_along(tensor, range(len(tensor.shape))) if isinstance(tensor, Constant) else set()
            )
        return self._zero[tensor]

    def _zero_along(self, constant: Constant, axes: Collection[int]) -> set[int]:
        """Units that are zero in all slices along some axes; a square weight may have the same units along both."""
        values = constant.values
        found: set[int] = set()
        used: set[int] = set()
        for axis, units in enumerate(self.coupling.axes(constant)):
            if units is not None and axis in [a % values.ndim for a in axes]:
                others = tuple(a for a in range(values.ndim) if a != axis)
                filled = np.asarray(values.astype(np.float64) != 0).any(axis=others)
                found.update(np.unique(units).tolist())
                used.update(np.unique(units[filled]).tolist())
        return found - used

    def _summed(self, node: Node, port: int, tensor: Tensor, weights: Mapping[int, Weight]) -> set[int]:
        """Units of an input that the node adds up; in a residual stream its output may carry them as well."""
        if self.operators.facts(node).sums == "norm":
            return self.units(tensor)
        found = self.units(tensor) - set().union(*(self.units(t) for t in node.outputs))
        for at, weight in weights.items():
            constant = node.constant(at)
            axes = self.coupling.axes(constant) if constant is not None else []
            for axis in weight.in_axes:
                units = axes[axis] if axes else None
                found |= set(np.unique(units).tolist()) & self.units(tensor) if units is not None else set()
        axes = self.coupling.axes(tensor)
        if self.operators.facts(node).sums == "products" and not weights and len(axes) > 1:
            units = axes[-1 if port == 0 else -2]
            found |= set(np.unique(units).tolist()) if units is not None else set()
        return found

    def _need(self, node: Node, tensor: Tensor, ended: set[int], weights: Mapping[int, Weight]) -> None:
        """Units end here: they are needed unless what they bring is zero."""
        brings_none: set[int] = set()
        sums = self.operators.facts(node).sums
        if weights or sums:
            brings_none |= self.zero(tensor)
        for port, weight in weights.items():
            constant = node.constant(port)
            if constant is not None:
                brings_none |= self._zero_along(constant, weight.in_axes)
        if sums == "products" and not weights:
            brings_none |= set().union(*(self.zero(other) for other in node.inputs))
        for unit in ended - brings_none:
            self.needed[unit] = True

    def _result(self, node: Node, weights: Mapping[int, Weight]) -> set[int]:
        inputs = [t for t in node.inputs if t.name]
        if weights:
            port, weight = next(iter(weights.items()))
            constant = node.constant(port)
            zero = set() if constant is None else self._zero_along(constant, [weight.out_axis])
            if weight.group > 1 and constant is not None and constant.shape[1] == 1:  # depthwise: zero in, zero out
                zero |= self.zero(node.inputs[0])
            for tensor in inputs[2:]:
                zero &= self.zero(tensor)
            return zero if self._activation_keeps(node) else set()
        rule = self.operators.facts(node).zeros
        return set() if rule is None else rule(_View(node, self))

    def _activation_keeps(self, node: Node) -> bool:
        """Whether the activation fused into a product, if there is one, gives zero for zero."""
        name = node.attrs.get("activation", "")
        name = name.decode() if isinstance(name, bytes) else name
        return not name or self.operators.of("", name).zeros is kept


@dataclass(frozen=True)
class _View:
    """One node, as its rule sees it."""

    node: Node
    walk: _Walk

    @property
    def ports(self) -> list[int]:
        return [port for port, tensor in enumerate(self.node.inputs) if tensor.name]

    def zero(self, port: int) -> set[int]:
        tensor = self.node.input(port)
        return set() if tensor is None else self.walk.zero(tensor)

    def units(self, port: int) -> set[int]:
        tensor = self.node.input(port)
        return set() if tensor is None else self.walk.units(tensor)
