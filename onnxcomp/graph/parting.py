"""What stands in front of nodes that cannot be run, as a model of its own, and how does it come back to them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable, reads
from onnxcomp.graph.opset import upgrade

Foreign = Callable[[str, str], bool]  # (domain, operator) -> whether the runtime does not know it


@dataclass(frozen=True)
class Parting:
    """A model in two parts.

    Attributes:
        whole: the model; nobody changes it.
        front: what needs none of the foreign nodes. Its outputs are those of the model that it computes, and `ends`.
        foreign: the foreign nodes, in graph order.
        behind: how many other nodes stand behind them.
        ends: names of the tensors that pass from the front to the rest.
        is_foreign: what told them apart.
    """

    whole: Graph
    front: Graph
    foreign: tuple[Node, ...]
    behind: int
    ends: tuple[str, ...]
    is_foreign: Foreign

    def rejoined(self, front: Graph) -> Graph:
        """The whole model with another front, which keeps the names of this one's inputs and outputs.

        Raises:
            ModelError: the front has a newer opset, and a node of the rest has no equal there.
        """
        whole, result = self.whole.clone(), front.clone()
        upgrade(whole, result.opset)
        tail = _behind(whole, self.is_foreign)
        own = _own(tail)
        _make_way(result, {tensor.name for tensor in own}, {inner.name for node in tail for inner in _walk(node)})
        known = result.tensors()
        for node in tail:
            _read_from(node, own, known)
        outputs = [tensor if tensor in own else known[tensor.name] for tensor in whole.outputs]
        order = [constant for constant in whole.order if constant in own]
        whole.outputs = []
        whole.remove_nodes(node for node in whole.nodes if node not in set(tail))
        _take_over(result, tail)
        result.order.extend(order)
        result.outputs = outputs
        _import_all(result, whole)
        result.source = whole.source
        result.sort()
        return result


def part(graph: Graph, foreign: Foreign) -> Parting | None:
    """Cut a model in front of its foreign nodes; None where it has none.

    A node whose body or local function holds a foreign one is foreign itself.
    """
    tail = _behind(graph, foreign)
    if not tail:
        return None
    inside = _calls_foreign(graph, foreign)
    strange = tuple(node for node in tail if _is_foreign(node, graph, foreign, inside))
    own, gone = _own(tail), set(tail)
    ends = [t for node in tail for t in reads(node) if t.name and t.producer is not None and t not in own]
    names = tuple(dict.fromkeys(t.name for t in ends))
    front = graph.clone()
    tensors = front.tensors()
    wanted = [t.name for t in graph.outputs if t not in own]
    front.outputs = [tensors[name] for name in dict.fromkeys((*wanted, *names))]
    front.remove_nodes(new for old, new in zip(graph.nodes, list(front.nodes), strict=True) if old in gone)
    if inside:
        kept = [f for f in graph.functions if (f.domain, f.name) not in inside]
        del front.model.functions[:]
        front.model.functions.extend(kept)
    _declare(front, names)
    return Parting(graph, front, strange, len(tail) - len(strange), names, foreign)


def _declare(front: Graph, names: Iterable[str]) -> None:
    """Give outputs that were inner tensors their types and shapes."""
    shapes, tensors = shape_tools.infer(front), front.tensors()
    for name in names:
        tensor = tensors[name]
        if isinstance(tensor, Variable):
            tensor.dtype = tensor.dtype or shapes.dtype(tensor)
            tensor.shape = shapes.shape(tensor) if tensor.shape is None else tensor.shape


def _behind(graph: Graph, foreign: Foreign) -> list[Node]:
    """Foreign nodes, and all that need one, in graph order."""
    inside, made, found = _calls_foreign(graph, foreign), set[Tensor](), []
    for node in graph.nodes:
        if _is_foreign(node, graph, foreign, inside) or any(tensor in made for tensor in reads(node)):
            found.append(node)
            made.update(tensor for tensor in node.outputs if tensor.name)
    return found


def _is_foreign(node: Node, graph: Graph, foreign: Foreign, inside: set[tuple[str, str]]) -> bool:
    local = {(f.domain, f.name) for f in graph.functions}
    called = ((inner.domain or "", inner.op) for inner in _walk(node))
    return any(key in inside or (key not in local and foreign(*key)) for key in called)


def _calls_foreign(graph: Graph, foreign: Foreign) -> set[tuple[str, str]]:
    """Local functions that hold a foreign node, at any depth."""
    local = {(f.domain, f.name): {(n.domain, n.op_type) for n in f.node} for f in graph.functions}
    found = {key for key, called in local.items() if any(foreign(*one) and one not in local for one in called)}
    while more := {key for key, called in local.items() if key not in found and called & found}:
        found |= more
    return found


def _own(tail: Iterable[Node]) -> set[Tensor]:
    """What the nodes make, and the weights that they read, bodies included."""
    found: set[Tensor] = set()
    for node in tail:
        for inner in _walk(node):
            found.update(tensor for tensor in inner.outputs if tensor.name)
            found.update(tensor for tensor in inner.inputs if isinstance(tensor, Constant))
            for body in inner.bodies:
                found.update((*body.inputs, *body.unused, *(t for t in body.outputs if isinstance(t, Constant))))
    return found


def _make_way(graph: Graph, tensors: set[str], nodes: set[str]) -> None:
    """Rename what bears a name that is needed; inputs and outputs cannot, for the whole model was valid."""
    fixed = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    graph._names = set(graph.tensors()) | {node.name for node in graph.walk()} | tensors | nodes
    for name, tensor in graph.tensors().items():
        if name in tensors - fixed:
            tensor.name = graph.unique_name(f"{name}_front")
    for node in graph.walk():
        if node.name in nodes:
            node.name = graph.unique_name(f"{node.name}_front")


def _read_from(node: Node, own: set[Tensor], known: dict[str, Tensor]) -> None:
    """Let a node and its bodies read what is not theirs from another graph, by name."""
    for inner in _walk(node):
        for port, tensor in enumerate(inner.inputs):
            if tensor.name and tensor not in own:
                inner.inputs[port] = known[tensor.name]
        for body in inner.bodies:
            body.outputs = [t if t in own or not t.name else known[t.name] for t in body.outputs]


def _take_over(graph: Graph, nodes: Iterable[Node]) -> None:
    for node in nodes:
        graph.nodes.append(node)
        for body in node.bodies:
            body.parent = graph
            graph._bodies.extend(body.scopes())


def _import_all(graph: Graph, whole: Graph) -> None:
    """Operator sets and local functions of the whole model that the front did not need."""
    for entry in whole.model.opset_import:
        graph.import_domain(entry.domain, entry.version)
    called = {(node.domain or "", node.op) for node in graph.walk()}
    there = {(f.domain, f.name) for f in graph.functions}
    missing = {(f.domain, f.name): f for f in whole.functions if (f.domain, f.name) not in there}
    while wanted := [key for key in missing if key in called]:
        for key in wanted:
            function = missing.pop(key)
            graph.model.functions.append(function)
            called |= {(n.domain, n.op_type) for n in function.node}


def _walk(node: Node) -> list[Node]:
    """A node and all nodes in its bodies."""
    return [node, *(inner for body in node.bodies for inner in body.walk())]
