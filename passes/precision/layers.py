"""Which weights take one form together, what do their layers read and write, and what lies between?"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.single import unfit
from onnxcomp.ops.facts import Operators
from onnxcomp.passes.weights.sources import readers, stored_weights

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Layer:
    """Nodes that share weights, and so a form.

    Attributes:
        name: of the first node.
        nodes, weights: by name, in graph order.
        reads, writes: names of the activations that go in, and that come out.
        elements: of the weights.
    """

    name: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    elements: int

    @property
    def bytes(self) -> int:
        """Of the weights in single precision."""
        return 4 * self.elements


def layers_of(graph: Graph, operators: Operators) -> tuple[list[Layer], dict[str, str]]:
    """The layers of the main graph, in its order, and the nodes with weights that have no choice, with the reason."""
    top, shapes = {node: place for place, node in enumerate(graph.nodes)}, infer(graph)
    groups: dict[Constant, list[Constant]] = {}
    owner: dict[Node, Constant] = {}
    refused: dict[str, str] = {}
    for constant, unstored in stored_weights(graph, operators).items():
        users, why = readers(constant), unstored
        if not why and constant.dtype != FLOAT:
            why = unfit(constant.name, constant.dtype)
        if not why and any(node not in top for node in users):
            why = "it stands in a body of If, Loop or Scan, whose activations cannot be measured from outside"
        if why:
            refused |= {node.name: why for node in users}
            continue
        lead = next((owner[node] for node in users if node in owner), constant)
        groups.setdefault(lead, []).append(constant)
        for node in users:
            if node in owner and owner[node] is not lead:
                _join(groups, owner, lead, owner[node])
            owner[node] = lead
    found = []
    for lead, constants in groups.items():
        nodes = sorted((node for node, own in owner.items() if own is lead), key=top.__getitem__)
        reads = dict.fromkeys(t.name for node in nodes for t in node.inputs if _live(t))
        made = (t for node in nodes for t in node.outputs if t.name)
        writes = dict.fromkeys(t.name for t in made if shapes.dtype(t) in (None, FLOAT))
        if not reads or any(name in refused for name in (node.name for node in nodes)):
            refused |= {node.name: "it reads no activation of the main graph" for node in nodes if not reads}
            continue
        names = tuple(node.name for node in nodes)
        elements = sum(constant.size for constant in constants)
        found.append(Layer(names[0], names, tuple(c.name for c in constants), tuple(reads), tuple(writes), elements))
    places = {node.name: place for node, place in top.items()}
    return sorted(found, key=lambda layer: places[layer.name]), refused


def _join(groups: dict[Constant, list[Constant]], owner: dict[Node, Constant], lead: Constant, other: Constant) -> None:
    groups[lead] += groups.pop(other)
    for node, own in owner.items():
        if own is other:
            owner[node] = lead


def _live(tensor: Tensor) -> bool:
    """Whether a tensor is known only when the model runs."""
    waiting, seen = [tensor], set[Tensor]()
    while waiting:
        here = waiting.pop()
        if isinstance(here, Constant) or not here.name or here in seen:
            continue
        seen.add(here)
        maker: Node | None = here.producer
        if maker is None or maker.bodies:
            return True
        waiting += maker.inputs
    return False


@dataclass(frozen=True)
class Region:
    """What computes a layer in some graph, from what it reads to what it writes."""

    nodes: tuple[Node, ...]
    constants: tuple[Constant, ...]

    @property
    def bytes(self) -> int:
        """Of the constants."""
        return sum(constant.nbytes for constant in self.constants)


def regions(graph: Graph, layers: Iterable[Layer]) -> dict[str, Region]:
    """The part of a graph that stands for each layer, where its activations still bear their names."""
    tensors = graph.tensors()
    found = {}
    for layer in layers:
        if all(isinstance(tensors.get(name), Variable) for name in (*layer.reads, *layer.writes)):
            found[layer.name] = _between({tensors[name] for name in layer.reads}, [tensors[n] for n in layer.writes])
    return found


def _between(reads: Collection[Tensor], writes: Iterable[Tensor]) -> Region:
    nodes: dict[Node, None] = {}
    constants: dict[Constant, None] = {}
    waiting = list(writes)
    while waiting:
        tensor = waiting.pop()
        if isinstance(tensor, Constant):
            constants[tensor] = None
            continue
        maker: Node | None = tensor.producer if tensor.name else None
        if maker is None or maker in nodes:
            continue
        nodes[maker] = None
        waiting += [t for t in maker.inputs if t not in reads]
    return Region(tuple(nodes), tuple(constants))
