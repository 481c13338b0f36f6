"""What is known of the tensors that may become integers, and which plans follow from it?"""

from __future__ import annotations

from collections.abc import Iterable

from onnxcomp.graph.ir import Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators, Weight
from onnxcomp.passes.qdq import proof, regions, sharing
from onnxcomp.passes.qdq.choice import Planned
from onnxcomp.passes.qdq.ranges import Grid, Rule
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.runtime.activations import Activation
from onnxcomp.targets.base import Target


class Study:
    """What is known of the tensors of one graph, and the plans that follow from it.

    Attributes:
        wide: whether kernels join that the target's table leaves out by default.
        seen: statistics by tensor name.
        chosen: the grid of each tensor by itself.
        given: tensors of which the grid comes from elsewhere.
        banned: tensors without a usable range.
        barred: nodes that ONNX Runtime does not run as a plan says, with the reason.
        fenced: names of tensors that no Q may read directly.
    """

    def __init__(
        self,
        graph: Graph,
        target: Target,
        operators: Operators,
        shapes: Shapes,
        accepted: dict[Node, Weight],
        rule: Rule,
    ) -> None:
        self.graph, self.target, self.operators = graph, target, operators
        self.shapes, self.accepted, self.rule = shapes, accepted, rule
        self.wide = False
        self.seen: dict[str, Activation] = {}
        self.chosen: dict[Variable, Grid] = {}
        self.given: set[Variable] = set()
        self.banned: dict[Variable, str] = {}
        self.barred: dict[Node, str] = {}
        self.fenced: set[str] = set()

    def learn(self, found: proof.Faults) -> bool:
        """Leave nodes in float from now on, and keep them apart from integers; False where nothing of it is new."""
        new = any(node not in self.barred for node in found.barred) or not found.fenced <= self.fenced
        self.barred |= found.barred
        self.fenced |= found.fenced
        self.accepted = {node: weight for node, weight in self.accepted.items() if node not in found.barred}
        return new

    def plan(self, chosen: Iterable[Node] | None = None, *, tabled: bool = False) -> Plan:
        """The plan with some of the nodes; with all that can be when None.

        Args:
            tabled: the target's table says which nodes without weights join those that were chosen.
        """
        nodes = None if chosen is None else set(chosen)
        weighted = {n: w for n, w in self.accepted.items() if nodes is None or n in nodes}
        others = None if nodes is None or tabled else nodes - set(weighted)
        return regions.plan(
            self.graph,
            self.target,
            self.operators,
            self.shapes,
            weighted,
            chosen=others,
            wide=self.wide and not tabled,
            float_tensors=self.banned,
            barred=self.barred,
            fenced=self.fenced,
        )

    def planned(self, chosen: Iterable[Node] | None = None, *, tabled: bool = False) -> Planned:
        """The plan with some of the nodes, and the grid of each of its tensors."""
        plan = self.plan(chosen, tabled=tabled)
        return plan, sharing.grids(plan, self.target, self.rule, self.seen, self.chosen)[0]

    def by(self, rule: Rule, plan: Plan) -> tuple[dict[Variable, Grid], dict[Variable, Grid]]:
        """The grids of a plan's tensors by another rule, and that of each by itself; nothing where one is unusable."""
        chosen = {tensor: grid for tensor, grid in self.chosen.items() if tensor in self.given}
        found, refused = sharing.grids(plan, self.target, rule, self.seen, chosen)
        return ({}, {}) if refused else (found, chosen)

    def settle(self) -> dict[Variable, str]:
        """Ban tensors until every one that is left has a usable range; returns the reasons."""
        while bad := sharing.grids(self.plan(), self.target, self.rule, self.seen, self.chosen)[1]:
            self.banned |= bad
        return self.banned
