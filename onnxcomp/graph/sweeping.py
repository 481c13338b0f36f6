"""How do rules go over all nodes of a model, those of bodies included, and again until nothing changes?"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from onnxcomp.graph.ir import Graph, Node


@dataclass(frozen=True)
class Here:
    """Where a rule stands.

    Attributes:
        scope: the graph or body that holds the node; new nodes may be put into its list.
        nodes: what of it is still there, as it was when the sweep reached it.
    """

    scope: Graph
    nodes: set[Node]


Rule = Callable[[Node, Here], Collection[Node]]
"""Rewrites around a node; what it gives back it has replaced: these nodes are taken out, wherever they stand."""


def sweep(graph: Graph, rule: Rule, *, backwards: bool = False) -> int:
    """Offer every node to a rule, scope by scope, the outermost first; how many nodes that took out.

    Args:
        backwards: from the last node of each scope to the first, for rules that look at readers.
    """
    gone = set[Node]()
    for scope in list(graph.scopes()):
        here = Here(scope, set(scope.nodes) - gone)
        for node in scope.nodes[::-1] if backwards else list(scope.nodes):
            if node in here.nodes:
                taken = rule(node, here)
                here.nodes.difference_update(taken)
                gone.update(taken)
    if gone:
        graph.remove_nodes(gone)
    return len(gone)


def unlink(*nodes: Node) -> None:
    """Let nodes that are replaced read and make nothing any more."""
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def until_stable(*steps: Callable[[], int]) -> int:
    """Take steps in turn until a round of all of them changes nothing; the sum of what they say."""
    total = 0
    while found := sum(step() for step in steps):
        total += found
    return total
