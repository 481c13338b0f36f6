"""What does a plan really give? Writes it into a copy of the graph, runs it and compares with the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Array, Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.passes.qdq import emit, forms
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.closeness import rows_of, worst_sqnr_db
from onnxcomp.runtime.session import open_session
from onnxcomp.targets.base import Target


class Trials:
    """Tries plans for one graph.

    Args:
        graph: the float graph, which stays as it is.
        feeds: a few samples.
        native: weights are for processors with VNNI, and saturate on others: Q and DQ are run as they stand, in float.
    """

    def __init__(
        self,
        graph: Graph,
        target: Target,
        shapes: Shapes,
        feeds: Sequence[Mapping[str, Array]],
        threads: int,
        *,
        native: bool = False,
    ) -> None:
        self.graph, self.target, self.shapes = graph, target, shapes
        self.feeds, self.threads = feeds, threads
        self.native = native
        self._expected: list[dict[str, Array]] | None = None

    def written(self, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]) -> Graph:
        """A copy of the graph with the plan written into it, weights as they are."""
        copy = self.graph.clone()
        write(copy, self.target, *moved(copy, plan, grids, layers))
        return copy

    def sqnr_db(self, graph: Graph) -> float:
        """Signal to noise ratio of the worst part of the outputs against the float graph, in dB."""
        if self._expected is None:
            self._expected = self._outputs(self.graph)
        return worst_sqnr_db(self._expected, self._outputs(graph), map(rows_of, self.feeds))

    def _outputs(self, graph: Graph) -> list[dict[str, Array]]:
        with runnable(graph) as model:
            session = open_session(model, threads=self.threads, optimize=not self.native)
        return [session.run(feed) for feed in self.feeds]


def write(
    graph: Graph,
    target: Target,
    plan: Plan,
    grids: dict[Variable, Grid],
    layers: dict[Node, Integers],
) -> emit.Written:
    """Write a plan into the graph whose nodes it names, in the target's own forms, and sort it."""
    gates = target.contrib and any(forms.silu_of(tensor) is not None for tensor in plan.made)
    declared = shape_tools.infer(graph) if gates else None
    written = emit.Writer(graph, target, plan, grids, layers).write()
    if declared is not None:
        forms.fuse_silu(graph, plan.made, declared)
    graph.sort()
    return written


def moved(
    copy: Graph, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]
) -> tuple[Plan, dict[Variable, Grid], dict[Node, Integers]]:
    """The same plan in terms of the copy's nodes and tensors, found by their names."""
    nodes = {node.name: node for node in copy.nodes}
    tensors = {t.name: t for t in (*copy.inputs, *(t for n in copy.nodes for t in n.outputs)) if t.name}

    def at(tensor: Variable) -> Variable:
        found: Variable = tensors[tensor.name]
        return found

    there = Plan(
        weighted={nodes[n.name]: weight for n, weight in plan.weighted.items()},
        joined={nodes[n.name]: ports for n, ports in plan.joined.items()},
        moving=[nodes[n.name] for n in plan.moving],
        rewritten=[nodes[n.name] for n in plan.rewritten],
        folded={nodes[n.name]: nodes[fold.name] for n, fold in plan.folded.items()},
        made={at(t): nodes[n.name] for t, n in plan.made.items()},
        read={at(t): None for t in plan.read},
        fenced=set(plan.fenced),
    )
    return (
        there,
        {at(t): grids[t] for t in plan.tensors},
        {nodes[n.name]: replace(layers[n], node=nodes[n.name]) for n in plan.weighted},
    )
