"""How does the body of an If become part of the graph around it, when the condition is known?"""

from __future__ import annotations

from collections import Counter

from onnxcomp.graph.ir import Constant, Graph, Node


def inline_branch(graph: Graph, owner: Graph, node: Node, branch: Graph) -> None:
    """Put the nodes of a branch in the place of its If node; the other branch goes.

    Names of the branch that other parts of the model bear too are made unique. The If's outputs keep their names: an
    Identity from each result of the branch makes them.

    Args:
        graph: the main graph.
        owner: the graph or body whose list holds the If.
    """
    _make_unique(graph, branch)
    nodes, results = branch.nodes, list(branch.outputs)
    scope = None if owner is graph else owner
    for constant in {*branch.order, *branch.unused, *_constants_of(branch)}:
        if constant.scope is branch:
            constant.scope = scope
    owner.order.extend(branch.order)
    owner.unused.extend(branch.unused)
    for inner in nodes:
        for body in inner.bodies:
            body.parent = owner
    outputs = list(node.outputs)
    at = owner.nodes.index(node)
    branch.nodes = []
    branch.outputs = []
    graph.remove_nodes([node])
    owner.nodes[at:at] = nodes
    for result, output in zip(results, outputs, strict=True):
        if output.name:
            owner.nodes.insert(
                at + len(nodes), Node("Identity", graph.unique_name(f"{node.name}_branch"), {}, [result], [output])
            )


def _make_unique(graph: Graph, branch: Graph) -> None:
    """Rename what the branch defines under a name that stands elsewhere in the model too, e.g. in the other branch."""
    tensors: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for scope in graph.scopes():
        defined = {*scope.inputs, *scope.order, *(t for node in scope.nodes for t in node.outputs)}
        tensors.update(t.name for t in defined)
        nodes.update(node.name for node in scope.nodes)
    own = {*branch.order, *(t for node in branch.nodes for t in node.outputs if t.name)}
    for tensor in sorted(own, key=lambda t: t.name):
        if tensors[tensor.name] > 1:
            tensor.name = graph.unique_name(tensor.name)
    for node in branch.nodes:
        if nodes[node.name] > 1:
            renamed = graph.unique_name(node.name)
            node.unnamed = renamed if node.unnamed else ""
            node.name = renamed


def _constants_of(branch: Graph) -> set[Constant]:
    found = {*branch.outputs, *(t for node in branch.walk() for t in node.inputs)}
    return {t for t in found if isinstance(t, Constant)}
