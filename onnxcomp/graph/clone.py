"""How is a graph copied? Structure anew, weight values shared."""

from __future__ import annotations

from typing import Any

from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable


def clone(graph: Graph) -> Graph:
    """A structural copy of a model: nodes, tensors and protos that change are new, weight values are shared."""
    return _Cloner().clone(graph, None)


class _Cloner:
    """Copies graphs; one instance a copy, so that bodies find the outer tensors they capture."""

    def __init__(self) -> None:
        self.tensors: dict[Tensor, Tensor] = {}
        self.graphs: dict[Graph, Graph] = {}

    def clone(self, graph: Graph, parent: Graph | None) -> Graph:
        copy = Graph(parent=parent, notes=list(graph.notes), external=graph.external, source=graph.source)
        self.graphs[graph] = copy
        copy.model.CopyFrom(graph.model)
        copy.envelope.CopyFrom(graph.envelope)
        copy._names = None if graph._names is None else set(graph._names)
        copy.inputs = [self.variable(t) for t in graph.inputs]
        for node in graph.nodes:  # all outputs first: a body may capture what a later node in an unsorted list makes
            for out in node.outputs:
                self.tensor(out)
        copy.nodes = [self.node(n, copy) for n in graph.nodes]
        copy.outputs = [self.tensor(t) for t in graph.outputs]
        copy.unused = [self.constant(c) for c in graph.unused]
        copy.kept_inputs = {self.constant(c): value for c, value in graph.kept_inputs.items()}
        copy.order = [self.constant(c) for c in graph.order if c in self.tensors]  # what no one reads any more goes
        return copy

    def tensor(self, tensor: Tensor) -> Tensor:
        return self.constant(tensor) if isinstance(tensor, Constant) else self.variable(tensor)

    def variable(self, tensor: Variable) -> Variable:
        found = self.tensors.get(tensor) if tensor.name else None
        if found is None:
            found = Variable(tensor.name, tensor.dtype, tensor.shape, tensor.envelope)
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
        return copy
