"""What became of each layer's part of a graph? Nodes and arrows before and after, for people to look at.

A layer's part is the node that multiplies and what follows it up to the next such node; what leads to one from inputs
or constants alone goes with it. So a part can be set beside its counterpart whatever was fused into it, put around it,
or taken away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.drawn import ChangedPart, DrawnGraph, DrawnNode, State
from onnxcomp.graph.cost import PART
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.literals import literal
from onnxcomp.ops.facts import Operators, no_macs

MOST_NODES = 24  # drawn of one side of a part
MOST_WORDS = 3  # constants that are named with a node
REST = ""  # the part of a graph that no layer leads to and that leads to none


def changed_parts(before: Graph, after: Graph, operators: Operators) -> list[ChangedPart]:
    """The parts whose nodes, constants' types and shapes, or arrows differ, in the order of the graph before.

    Values of weights do not count: a part that was only trained is not among them. Bodies of If and Loop are not
    looked into; the node that holds them counts as one.
    """
    homes = homes_of(before, operators), homes_of(after, operators)
    sides = [_sides(graph, home) for graph, home in zip((before, after), homes, strict=True)]
    found = []
    for layer in dict.fromkeys((*sides[0], *sides[1])):
        old, new = (side.get(layer) or _Side((), graph, {}) for side, graph in zip(sides, (before, after), strict=True))
        if old.shape != new.shape:
            states = _states(old, new)
            found.append(ChangedPart(layer, old.drawn(states[0], "gone"), new.drawn(states[1], "new")))
    return found


def homes_of(graph: Graph, operators: Operators) -> dict[Node, str]:
    """For each node of the main graph the name of the layer to whose part it belongs; Constant nodes have none."""
    nodes = [node for node in graph.nodes if node.op != "Constant"]
    heads = [node for node in nodes if operators.facts(node).macs is not no_macs]
    rank = {node: index for index, node in enumerate(heads)}
    for node in nodes:  # behind the latest layer that it reads from
        known = [rank[tensor.producer] for tensor in node.inputs if tensor.producer in rank]
        if node not in rank and known:
            rank[node] = max(known)
    for node in reversed(nodes):  # else in front of the first that it leads to
        ahead = [rank[reader] for tensor in node.outputs for reader in tensor.consumers if reader in rank]
        if node not in rank and ahead:
            rank[node] = min(ahead)
    names = [_layer(head.name) for head in heads]
    return {node: names[rank[node]] if node in rank else REST for node in nodes}


Kind = tuple[str, str, str, str]
# equal for counterparts: of one kind and name, of one name, of one kind, of one operator
_LIKENESS: tuple[Callable[[Node, Kind], Any], ...] = (
    lambda node, kind: (kind, node.name),
    lambda node, kind: (kind[:2], node.name),
    lambda node, kind: kind,
    lambda node, kind: kind[:2],
)


class _Side:
    """One side of a part: its nodes, and arrows between them, from outside and to outside.

    `shape`: equal where nothing changed but values and what follows.
    """

    def __init__(self, nodes: Sequence[Node], graph: Graph, homes: Mapping[Node, str]) -> None:
        self.nodes = nodes
        self.kinds = [_kind(node) for node in nodes]
        self._place = {node: index for index, node in enumerate(nodes)}
        self._homes, self._graph = homes, graph
        self.stubs: dict[str, int] = {}
        self.edges = list(dict.fromkeys(self._entering()))
        self.shape = (*self.kinds, *self.edges, *self.stubs)
        self.edges += dict.fromkeys(self._leaving())

    def drawn(self, states: Mapping[int, State], otherwise: State) -> DrawnGraph:
        """What is shown of it; nodes without a counterpart are `otherwise`."""
        count = len(self.nodes)
        shown = min(count, MOST_NODES)
        stubs = {index: name for name, index in self.stubs.items()}
        nodes = [
            DrawnNode(self.nodes[i].name, self.nodes[i].op, self.kinds[i][-1], states.get(i, otherwise))
            for i in range(shown)
        ]
        place = {index: index for index in range(shown)}
        edges = []
        for ends in self.edges:
            if any(shown <= end < count for end in ends):
                continue
            for end in ends:
                if end not in place:
                    place[end] = len(nodes)
                    nodes.append(DrawnNode(stubs[end], "", "", "outside"))
            edges.append((place[ends[0]], place[ends[1]]))
        return DrawnGraph(tuple(nodes), tuple(edges), count - shown)

    def _entering(self) -> Iterator[tuple[int, int]]:
        for node in self.nodes:
            for tensor in node.inputs:
                maker = tensor.producer
                if maker in self._place:
                    yield self._place[maker], self._place[node]
                elif maker is not None and maker.op != "Constant":
                    yield self._stub(f"from {self._homes.get(maker, maker.name) or maker.name}"), self._place[node]
                elif maker is None and isinstance(tensor, Variable) and tensor.name:
                    yield self._stub(f"from {tensor.name}"), self._place[node]

    def _leaving(self) -> Iterator[tuple[int, int]]:
        for node in self.nodes:
            for tensor in node.outputs:
                if self._graph.is_output(tensor):
                    yield self._place[node], self._stub(f"to {tensor.name}")
                for reader in tensor.consumers:
                    if reader not in self._place:
                        yield self._place[node], self._stub(f"to {self._homes.get(reader, '') or reader.name}")

    def _stub(self, name: str) -> int:
        return self.stubs.setdefault(name, len(self.nodes) + len(self.stubs))


def _sides(graph: Graph, homes: Mapping[Node, str]) -> dict[str, _Side]:
    groups: dict[str, list[Node]] = defaultdict(list)
    for node, layer in homes.items():
        groups[layer].append(node)
    return {layer: _Side(nodes, graph, homes) for layer, nodes in groups.items()}


def _states(old: _Side, new: _Side) -> tuple[dict[int, State], dict[int, State]]:
    """What became of the nodes that have a counterpart, by index; the surest counterparts are taken first."""
    found: dict[int, int] = {}
    for alike in _LIKENESS:
        waiting: dict[Any, list[int]] = defaultdict(list)
        taken = set(found.values())
        for j, (node, kind) in enumerate(zip(new.nodes, new.kinds, strict=True)):
            if j not in taken:
                waiting[alike(node, kind)].append(j)
        for i, (node, kind) in enumerate(zip(old.nodes, old.kinds, strict=True)):
            same = waiting[alike(node, kind)]
            if i not in found and same:
                found[i] = same.pop(0)
    states: dict[int, State] = {i: "kept" if old.kinds[i] == new.kinds[j] else "changed" for i, j in found.items()}
    return states, {j: states[i] for i, j in found.items()}


def _layer(name: str) -> str:
    """A layer's name without the mark of one of its parts by output channels."""
    whole, mark, index = name.rpartition(PART)
    return whole if mark and index.isdigit() else name


def _kind(node: Node) -> Kind:
    """Operator, domain, attributes, and constants in words: equal for nodes that do the same with other values."""
    attributes = ",".join(f"{key}={_value(value)}" for key, value in sorted(node.attrs.items()))
    held = [constant for tensor in node.inputs if (constant := _constant(tensor)) is not None]
    words = [f"{held.dtype.name} {list(held.shape)}" for held in held if held.size > 1 or held.shape]
    more = f" and {len(words) - MOST_WORDS} more" if len(words) > MOST_WORDS else ""
    return node.op, node.domain or "", attributes, ", ".join(words[:MOST_WORDS]) + more


def _constant(tensor: Tensor) -> Constant | None:
    return literal(tensor) if tensor.name else None


def _value(value: Any) -> str:
    if isinstance(value, Graph):
        return "graph"
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else str(value)
