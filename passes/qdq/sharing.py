"""Which tensors must stand on one grid, and which grid is it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxcomp.graph.ir import Node, Variable
from onnxcomp.passes.qdq.forms import curve_of
from onnxcomp.passes.qdq.ranges import Grid, Rule, unusable
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.runtime.activations import Activation
from onnxcomp.targets.base import Target


def sources(plan: Plan) -> list[Variable]:
    """The tensors of a plan whose values are new: the others hold values of these."""
    copies = {t for node in (*plan.moving, *plan.rewritten) for t in node.outputs}
    return [t for t in plan.tensors if t not in copies]


def grids(
    plan: Plan, target: Target, rule: Rule, seen: Mapping[str, Activation], chosen: dict[Variable, Grid]
) -> tuple[dict[Variable, Grid], dict[Variable, str]]:
    """A grid for every tensor of a plan, and the tensors that no grid fits, with the reason.

    Args:
        seen: statistics of `sources(plan)` by name.
        chosen: what was found before, by tensor; completed here.
    """
    found: dict[Variable, Grid] = {}
    refused: dict[Variable, str] = {}
    new = set(sources(plan))
    for group in groups(plan, target):
        own = [t for t in group if t in new]
        for tensor in own:
            if tensor not in chosen:
                curve = None if tensor in plan.exposed else curve_of(tensor)
                chosen[tensor] = rule.choose(seen[tensor.name], curve)
        grid = chosen[own[0]]
        if len(own) > 1:
            grid = rule.grid(min(chosen[t].low for t in own), max(chosen[t].high for t in own))
        found.update(dict.fromkeys(group, grid))
        refused |= {t: why for t in own if (why := unusable(seen[t.name], grid))}
    return found, refused


def groups(plan: Plan, target: Target) -> list[list[Variable]]:
    """Tensors that must share a scale and zero point, in the plan's order."""
    places = _Union(plan.tensors)
    for node in (*plan.moving, *plan.rewritten):
        places.join(node.inputs[0], [t for t in node.outputs if t in places])
    for node in plan.joined:
        if node.op in target.unified:
            places.join(node.inputs[0], [*node.inputs, *node.outputs])
    if target.unified and not target.outputs:
        for tensor in plan.tensors:
            maker: Node | None = tensor.producer
            if maker is not None and maker.op in target.unified:
                places.join(tensor, [t for t in maker.inputs if t in places])
    return places.groups()


class _Union:
    """Disjoint sets of tensors."""

    def __init__(self, tensors: Iterable[Variable]) -> None:
        self.parent = {t: t for t in tensors}

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.parent

    def root(self, tensor: Variable) -> Variable:
        while self.parent[tensor] is not tensor:
            self.parent[tensor] = self.parent[self.parent[tensor]]
            tensor = self.parent[tensor]
        return tensor

    def join(self, first: Variable, others: Iterable[Variable]) -> None:
        for other in others:
            if first in self and other in self:
                self.parent[self.root(other)] = self.root(first)

    def groups(self) -> list[list[Variable]]:
        found: dict[Variable, list[Variable]] = {}
        for tensor in self.parent:
            found.setdefault(self.root(tensor), []).append(tensor)
        return list(found.values())
