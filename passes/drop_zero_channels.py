"""drop-zero-channels: channels, heads and neurons that give or meet nothing but zeros leave the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.graph.coupling.analysis import analyse, release
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.coupling.zeros import free_units
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.passes.structure.readers import makers


@dataclass(frozen=True)
class DropZeroChannels(Pass):
    """Units whose weights prune-weights, clip-weights or training left all zero are cut out; nothing is lost.

    A unit leaves when every sum it enters gets nothing from it. Outputs stay the same but for the order of sums.
    """

    name: ClassVar[str] = "drop-zero-channels"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Find free units and cut them."""
        outcome = Outcome()
        wanted = self.selects(graph)
        coupling = analyse(graph, context.operators, context.sample_shapes)
        free = free_units(coupling, context.operators)
        taken = []
        for group in coupling.groups:
            units = group.units[np.isin(group.units, free)]
            if not len(units):
                continue
            if all(wanted(node) for _, node, _ in makers(group, context.operators)):
                taken.append(units)
                outcome.change(group.name, f"{group.size} -> {group.size - len(units)} {group.kind}")
            else:
                outcome.skip(group.name, "not selected by include and exclude")
        if not taken:
            release(coupling)
            outcome.summary = "no unit is zero throughout"
            return outcome
        cut(coupling, np.concatenate(taken))
        outcome.summary = f"{sum(len(units) for units in taken)} units of {len(taken)} groups were zero and left"
        return outcome
