"""Which residual branches can leave a graph, and what is left when one does?

At an Add of two computed tensors of one shape either operand can stand for the sum; the nodes that only the other
needed form the branch. Nothing is matched by its spelling: a branch is what becomes dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Graph, Node, Tensor, Variable, reads
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators


@dataclass(frozen=True)
class Branch:
    """A part of the graph whose sum with a stream can be replaced by the stream.

    Attributes:
        add: where it joins the stream; its output is `total`.
        dropped: the operand that leaves.
        nodes: what leaves with `dropped`, in graph order, the Add not among them.
    """

    add: Node
    dropped: Variable
    nodes: tuple[Node, ...]

    @property
    def name(self) -> str:
        """As the report names it."""
        found: str = self.add.name
        return found

    @property
    def total(self) -> Variable:
        """The sum."""
        found: Variable = self.add.outputs[0]
        return found

    @property
    def kept(self) -> Variable:
        """The operand that takes the place of the sum; another one once a branch before this one left."""
        found: Variable = next(tensor for tensor in self.add.inputs if tensor is not self.dropped)
        return found


def branches(graph: Graph, operators: Operators, sample: Mapping[str, tuple[int, ...]] | None = None) -> list[Branch]:
    """All branches with weights that leave the same source as the stream they join, in graph order.

    Of branches inside one another all are given; of the two operands of one Add both may be.

    Args:
        sample: input shapes of one sample, where the model leaves dimensions free.
    """
    shapes = shape_tools.infer(graph, _several(graph, sample))
    order = {node: index for index, node in enumerate(graph.nodes)}
    found = []
    for add in graph.nodes:
        pair = _operands(add, shapes)
        if pair is None:
            continue
        for dropped, kept in (pair, pair[::-1]):
            nodes = _dead(graph, add, dropped, kept)
            if any(operators.weights(node) for node in nodes) and _joined(nodes, kept, order):
                found.append(Branch(add, dropped, tuple(sorted(nodes, key=order.__getitem__))))
    return found


def _several(graph: Graph, sample: Mapping[str, tuple[int, ...]] | None) -> dict[str, tuple[int, ...]]:
    """Two samples in place of one, so that a summand that is spread over the batch does not look like a whole one."""
    bound = shape_tools.one_sample(graph, sample)
    free = {t.name: [not isinstance(d, int) for d in t.shape or ()] for t in graph.inputs}
    return {
        name: tuple(2 if size == 1 and free[name][axis] else size for axis, size in enumerate(shape))
        for name, shape in bound.items()
        if len(free[name]) == len(shape)
    }


def _operands(add: Node, shapes: Shapes) -> tuple[Variable, Variable] | None:
    """Two computed summands of equal shape."""
    if add.op not in ("Add", "Sum") or add.domain or len(add.inputs) != 2:
        return None
    first, second = add.inputs
    if not (isinstance(first, Variable) and isinstance(second, Variable)) or first is second:
        return None
    shape = shapes.static(first)
    return (first, second) if shape is not None and shape == shapes.static(second) else None


def _dead(graph: Graph, add: Node, dropped: Variable, kept: Variable) -> set[Node]:
    """Nodes that nothing needs once the sum is replaced by `kept`."""
    dead: set[Node] = set()
    needed_by: dict[Tensor, int] = {}  # readers of a tensor that are not dead
    waiting: list[Tensor] = [dropped]
    alive = {kept, *graph.outputs}
    while waiting:
        tensor = waiting.pop()
        needed_by[tensor] = needed_by.get(tensor, len(tensor.outputs)) - 1
        maker = tensor.producer
        if maker is None or maker in dead or not all(_unread(out, needed_by, alive) for out in maker.outputs):
            continue
        dead.add(maker)
        waiting.extend(reads(maker))
    return dead


def _unread(tensor: Variable, needed_by: Mapping[Tensor, int], alive: set[Variable]) -> bool:
    return tensor not in alive and needed_by.get(tensor, len(tensor.outputs)) <= 0


def _joined(nodes: set[Node], kept: Variable, order: Mapping[Node, int]) -> bool:
    """Whether the stream depends on something that the branch reads, or is that."""
    made = {out for node in nodes for out in node.outputs}
    sources = {t for node in nodes for t in reads(node) if isinstance(t, Variable) and t not in made}
    earliest = min((order.get(t.producer, -1) if t.producer else -1 for t in sources), default=len(order))
    seen: set[Tensor] = set()
    waiting: list[Tensor] = [kept]
    while waiting:
        tensor = waiting.pop()
        if tensor in sources:
            return True
        maker = tensor.producer
        if tensor not in seen and maker is not None and order.get(maker, -1) >= earliest:
            seen.add(tensor)
            waiting.extend(reads(maker))
    return False


def innermost(found: list[Branch]) -> list[Branch]:
    """Those that hold no other branch; of two at one Add the one with more nodes."""
    adds = {branch.add for branch in found}
    flat = [branch for branch in found if not any(node in adds for node in branch.nodes)]
    best: dict[Node, Branch] = {}
    for branch in flat:
        known = best.get(branch.add)
        if known is None or len(branch.nodes) > len(known.nodes):
            best[branch.add] = branch
    return list(best.values())


def stand_in(graph: Graph, branch: Branch) -> Variable | None:
    """The tensor that takes the place of the sum and serves nothing else; a layer that makes it can make up for more.

    Where the sum goes through a Relu and the stream came out of one, it is what stands in front of that.
    """
    gone = {branch.add, *branch.nodes}
    kept, maker = branch.kept, branch.kept.producer
    if graph.is_output(kept) or not all(reader in gone for reader in kept.outputs):
        return None
    if maker is None or not _twice_relu(graph, branch):
        return kept
    source: Variable = maker.inputs[0]
    return source if len(source.outputs) == 1 and not graph.is_output(source) else None


def drop(graph: Graph, branch: Branch) -> None:
    """Take a branch out, in place. A Relu that would then be the second in a row goes too."""
    total, kept = branch.total, branch.kept
    gone = {branch.add, *branch.nodes}
    if _twice_relu(graph, branch):
        for node in list(total.outputs):
            if not graph.is_output(node.outputs[0]):
                graph.replace_uses(node.outputs[0], kept)
                gone.add(node)
    if graph.is_output(total):
        branch.add.outputs.clear()
        graph.add_node("Identity", [kept], name=f"{branch.add.name}_kept", outputs=[total])
    graph.replace_uses(total, kept)
    graph.remove_nodes(gone)


def _twice_relu(graph: Graph, branch: Branch) -> bool:
    """Whether the stream comes out of a Relu and the sum goes through one only."""
    readers = branch.total.outputs
    return _relu(branch.kept.producer) and not graph.is_output(branch.total) and all(_relu(node) for node in readers)


def _relu(node: Node | None) -> bool:
    return node is not None and node.op == "Relu" and not node.domain
