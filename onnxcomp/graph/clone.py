"""How is a graph, or a part of it, copied? Structure anew, weight values shared, and a map from old to new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable, reads


@dataclass(frozen=True)
class Copied:
    """A copy, and what stands in it for the nodes and tensors of the original, those of bodies included.

    Of a tensor that is fed to a part and made in it as well, `tensors` has what is fed.
    """

    graph: Graph
    nodes: dict[Node, Node]
    tensors: dict[Tensor, Tensor]

    def variable(self, tensor: Variable) -> Variable:
        """What stands for a tensor that is no initializer."""
        found = self.tensors[tensor]
        assert isinstance(found, Variable)
        return found


def clone(graph: Graph) -> Copied:
    """A structural copy of a model: nodes, tensors and protos that change are new, weight values are shared."""
    cloner = _Cloner()
    return Copied(cloner.clone(graph, None), cloner.nodes, cloner.tensors)


def extract(graph: Graph, inputs: Sequence[Variable], outputs: Sequence[Tensor]) -> Copied:
    """A copy of the part of a main graph that computes some tensors from others.

    Args:
        inputs: what is fed: nodes that read one of them read an input of that name, and what stands before it is left
            out. All become inputs, read or not; without the graph's own among them, nothing may depend on those. They
            have the types that the graph states: who feeds an inner tensor writes what is missing.
        outputs: what the part gives, in this order. One that is fed as well is given as its node makes it, under
            another name where that is not the input itself.
    """
    cloner = _Cloner()
    return Copied(cloner.part(graph, inputs, outputs), cloner.nodes, cloner.tensors)


def needed(outputs: Sequence[Tensor], fed: Sequence[Tensor] = ()) -> set[Node]:
    """The nodes that some tensors need, back to those that are fed."""
    known, found = set(fed), set[Node]()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop().producer
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(tensor for tensor in reads(node) if tensor not in known)
    return found


def drop_unneeded(graph: Graph) -> None:
    """Remove the nodes that no output needs: ONNX Runtime would run them all the same."""
    keep = needed(graph.outputs)
    graph.remove_nodes([node for node in graph.nodes if node not in keep])


class _Cloner:
    """Copies graphs; one instance a copy, so that bodies find the outer tensors they capture."""

    def __init__(self) -> None:
        self.tensors: dict[Tensor, Tensor] = {}
        self.nodes: dict[Node, Node] = {}
        self.graphs: dict[Graph, Graph] = {}

    def clone(self, graph: Graph, parent: Graph | None) -> Graph:
        copy = self._empty(graph, parent)
        copy._names = None if graph._names is None else set(graph._names)
        copy.inputs = [self.variable(t) for t in graph.inputs]
        self._fill(copy, graph.nodes)
        copy.outputs = [self.tensor(t) for t in graph.outputs]
        copy.unused = [self.constant(c) for c in graph.unused]
        copy.kept_inputs = {self.constant(c): value for c, value in graph.kept_inputs.items()}
        copy.order = [self.constant(c) for c in graph.order if c in self.tensors]  # what no one reads any more goes
        return copy

    def part(self, graph: Graph, inputs: Sequence[Variable], outputs: Sequence[Tensor]) -> Graph:
        copy = self._empty(graph, None)
        copy.inputs = [self.variable(t) for t in dict.fromkeys(inputs)]
        wanted, fed = needed(outputs, inputs), set(inputs)
        self._fill(copy, [node for node in graph.nodes if node in wanted])
        made: dict[Tensor, Variable] = {}
        for node in wanted:
            for port, tensor in enumerate(node.outputs):
                if tensor in fed:
                    made[tensor] = Variable(copy.unique_name(f"{tensor.name}_made"), tensor.dtype, tensor.shape)
                    self.nodes[node].outputs[port] = made[tensor]
        copy.outputs = [made.get(tensor) or self.tensor(tensor) for tensor in outputs]
        copy.kept_inputs = {self.constant(c): v for c, v in graph.kept_inputs.items() if c in self.tensors}
        copy.order = [self.constant(c) for c in graph.order if c in self.tensors]
        return copy

    def _empty(self, graph: Graph, parent: Graph | None) -> Graph:
        copy = Graph(parent=parent, notes=list(graph.notes), external=graph.external, source=graph.source)
        copy.answers = graph.root.answers
        self.graphs[graph] = copy
        copy.model.CopyFrom(graph.model)
        copy.envelope.CopyFrom(graph.envelope)
        return copy

    def _fill(self, copy: Graph, nodes: Sequence[Node]) -> None:
        for node in nodes:  # all outputs first: a body may capture what a later node in an unsorted list makes
            for out in node.outputs:
                self.tensor(out)
        copy.nodes = [self.node(n, copy) for n in nodes]

    def tensor(self, tensor: Tensor) -> Tensor:
        return self.constant(tensor) if isinstance(tensor, Constant) else self.variable(tensor)

    def variable(self, tensor: Variable) -> Variable:
        found = self.tensors.get(tensor) if tensor.name else None
        if found is None:
            found = Variable(tensor.name, tensor.dtype, tensor.shape, tensor.envelope, tensor.left)
            self.tensors[tensor] = found
        assert isinstance(found, Variable)
        return found

    def constant(self, tensor: Constant) -> Constant:
        found = self.tensors.get(tensor)
        if found is None:
            scope = None if tensor.scope is None else self.graphs.get(tensor.scope)
            found = Constant(tensor.name, tensor.payload, scope, tensor.envelope)
            found.sparse = tensor.sparse
            self.tensors[tensor] = found
        assert isinstance(found, Constant)
        return found

    def node(self, node: Node, owner: Graph) -> Node:
        attrs: dict[str, Any] = {}
        origin = dict(node.origin)
        for key, value in node.attrs.items():
            if isinstance(value, Graph):
                attrs[key] = self.clone(value, owner)
            elif isinstance(value, list) and value and isinstance(value[0], Graph):
                attrs[key] = [self.clone(v, owner) for v in value]
            else:
                attrs[key] = value  # immutable by agreement: passes assign, they do not mutate
        copy = Node(
            node.op,
            node.name,
            attrs,
            [self.tensor(t) for t in node.inputs],
            [self.tensor(t) for t in node.outputs],
            node.domain,
            node.envelope,
        )
        copy.origin = origin
        copy.unnamed = node.unnamed
        self.nodes[node] = copy
        return copy
