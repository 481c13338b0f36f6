"""What does a plan really give? Writes it into a copy of the graph, runs it and compares with the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.clone import Copied, clone
from onnxcomp.graph.ir import Array, Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.passes.qdq import emit, forms
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.reference import Reference
from onnxcomp.targets.base import Target


class Trials:
    """Tries plans for one graph.

    Args:
        graph: the float graph, which stays as it is.
        reference: that graph's answers to a few samples, or those of one that computes the same.
    """

    def __init__(self, graph: Graph, target: Target, shapes: Shapes, reference: Reference) -> None:
        self.graph, self.target, self.shapes, self._reference = graph, target, shapes, reference

    @property
    def feeds(self) -> Sequence[Mapping[str, Array]]:
        """The samples."""
        return list(self._reference.feeds)

    def written(self, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]) -> Graph:
        """A copy of the graph with the plan written into it, weights as they are."""
        copied = clone(self.graph)
        write(copied.graph, self.target, *moved(copied, plan, grids, layers))
        return copied.graph

    def sqnr_db(self, graph: Graph) -> float:
        """Signal to noise ratio of the worst part of the outputs against the float graph, in dB."""
        return self._reference.sqnr_db(graph)


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
    copied: Copied, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]
) -> tuple[Plan, dict[Variable, Grid], dict[Node, Integers]]:
    """The same plan in terms of a copy's nodes and tensors."""
    there = {node: replace(layers[node], node=copied.nodes[node]) for node in plan.weighted}
    return (
        plan.moved(copied),
        {copied.variable(tensor): grids[tensor] for tensor in plan.tensors},
        {layer.node: layer for layer in there.values()},
    )
