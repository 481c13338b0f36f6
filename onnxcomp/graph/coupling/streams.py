"""Which groups are residual streams, and which nodes come after others?"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxcomp.graph.coupling.analysis import Coupling
from onnxcomp.graph.ir import Graph, Node, Variable

_SUMS = ("Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def added_up(coupling: Coupling) -> set[str]:
    """Names of groups in whose units several computed tensors of equal width are added."""
    group_of = np.full(coupling.unit_count, -1)
    for index, group in enumerate(coupling.groups):
        group_of[group.units] = index
    found: set[int] = set()
    for node in coupling.graph.nodes:
        if node.op not in _SUMS:
            continue
        carried = []
        for tensor in node.inputs:
            axes = coupling.axes(tensor) if isinstance(tensor, Variable) and tensor.name else []
            carried.append({int(i) for units in axes if units is not None for i in np.unique(group_of[units])} - {-1})
        for index, groups in enumerate(carried):
            found |= {g for g in groups if any(g in other for other in carried[index + 1 :])}
    return {coupling.groups[index].name for index in found}


def behind(graph: Graph, first: Collection[Node]) -> set[Node]:
    """Nodes of the main graph that depend on the outputs of given nodes."""
    reached = set(first)
    for node in graph.nodes:
        if any(p in reached for tensor in node.inputs for p in tensor.inputs):
            reached.add(node)
    return reached
