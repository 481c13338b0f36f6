"""Which groups of simple nodes compute an activation function that has a kernel of its own?"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import erf, sqrt
from typing import ClassVar

import numpy as np

from onnxcomp.graph.evaluate import evaluate
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Array, Constant, Graph, Node, Tensor, Variable, is_onnx
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import Here, sweep, unlink
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.ops.facts import Operators
from onnxcomp.targets.table import find

MOST_NODES = 16  # of one group: no known spelling has more
TOLERANCE = 2e-6  # relative to the larger of 1 and |x|; the three functions differ by 5e-4 and more
GRID = np.concatenate([np.linspace(-12, 12, 961), [-1000, -50, 50, 1000]]).astype(np.float32)


@dataclass(frozen=True)
class Known:
    """A function of one value, and the operator of ONNX Runtime that computes it.

    Attributes:
        spelled: nodes of the spellings that ONNX Runtime makes this operator of by itself; 0: of none.
    """

    op: str
    values: Array
    spelled: int = 0


def _of(function: Callable[[float], float]) -> Array:
    return np.array([function(float(x)) for x in GRID])


FUNCTIONS = (
    Known("FastGelu", _of(lambda x: x / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))))),
    Known("Gelu", _of(lambda x: x / 2 * (1 + erf(x / sqrt(2)))), spelled=5),
)


@dataclass(frozen=True)
class FuseActivations(Pass):
    """No group of nodes computes GELU value by value: one kernel does.

    Found by what it computes and not by how it is spelled: a group of element-by-element nodes with one input and
    scalar constants is run on a grid of values and held against GELU and its form with tanh (D. Hendrycks and K.
    Gimpel, arXiv:1606.08415). ONNX Runtime's CPU provider fuses some spellings of the first by itself, which stay as
    they are, and none of the second, whose nodes it runs one by one: for 260,000 values in 0.43 to 0.56 ms, and in 0.17
    as FastGelu. The operators are those of com.microsoft, so that targets other than ONNX Runtime keep the nodes.
    """

    name: ClassVar[str] = "fuse-activations"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Fuse every such group."""
        outcome = Outcome()
        wanted = self.selects(graph)
        if not find(context.target).contrib or not any(node.op in ("Tanh", "Erf") for node in graph.walk()):
            return outcome
        graph.sort()
        shapes = infer(graph)
        finder = _Finder(graph, context.operators, shapes)

        def fuse(node: Node, here: Here) -> Collection[Node]:
            group = finder.group(node, here) if wanted(node) else None
            if group is None or not all(wanted(member) for member in group.nodes):
                return ()
            made = here.scope.add_node(
                group.function.op,
                [group.source],
                name=f"{node.name}_gelu",
                outputs=[node.outputs[0]],
                domain=MICROSOFT_DOMAIN,
            )
            unlink(node)
            graph.import_domain(MICROSOFT_DOMAIN)
            outcome.change(made, f"{len(group.nodes)} nodes became {group.function.op}")
            return [node, *_unread(group.nodes, finder.outputs)]

        sweep(graph, fuse, backwards=True)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} activation functions are one node each"
        return outcome


def _unread(nodes: list[Node], outputs: set[Tensor]) -> list[Node]:
    """Those of a group, the last first, whose results nothing reads any more; unlinked."""
    gone = []
    for node in reversed(nodes):
        if node.outputs and not node.outputs[0].consumers and node.outputs[0] not in outputs:
            unlink(node)
            gone.append(node)
    return gone


@dataclass(frozen=True)
class Group:
    """Nodes, in order, the last of which gives a known function of `source`."""

    source: Tensor
    nodes: list[Node]
    function: Known


class _Finder:
    """Finds groups that end at a node."""

    def __init__(self, graph: Graph, operators: Operators, shapes: Shapes) -> None:
        self.graph, self.operators, self.shapes = graph, operators, shapes
        self.outputs: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs}
        self.place = {node: i for i, node in enumerate(graph.walk())}

    def group(self, node: Node, here: Here) -> Group | None:
        """The group that ends at a node; None where it computes nothing that is known."""
        if not self._simple(node, here) or node.op not in ("Mul", "Div"):
            return None
        nodes, sources = [node], self._read([node])
        while len(nodes) < MOST_NODES:
            makers = [t.producer for t in sources if t.producer is not None and self._simple(t.producer, here)]
            if not makers:
                return None
            nodes.append(max(makers, key=self.place.__getitem__))  # so that what reads a tensor comes before its maker
            sources = self._read(nodes)
            if len(sources) == 1 and len(nodes) > 2 and self._ends(nodes):
                ordered = sorted(nodes, key=self.place.__getitem__)
                function = self._known(ordered, sources[0])
                if function is not None:
                    return Group(sources[0], ordered, function)
        return None

    def _read(self, nodes: list[Node]) -> list[Tensor]:
        """What nodes read and do not make, each once; constants do not count."""
        made = {t for node in nodes for t in node.outputs}
        return list(
            dict.fromkeys(
                t for node in nodes for t in node.inputs if isinstance(t, Variable) and t.name and t not in made
            )
        )

    def _ends(self, nodes: list[Node]) -> bool:
        """Whether nothing but the last result of a group is read by others."""
        inside = set(nodes)
        return all(inside.issuperset(t.consumers) and t not in self.outputs for node in nodes[1:] for t in node.outputs)

    def _simple(self, node: Node, here: Here) -> bool:
        """Whether a node works element by element on tensors of one shape and on scalars."""
        facts = self.operators.facts(node)
        if node not in here.nodes or not is_onnx(node.domain) or not facts.elementwise or facts.random:
            return False
        rank = self.shapes.rank(node.outputs[0]) if len(node.outputs) == 1 else None
        return rank is not None and all(
            t.size == 1 and len(t.shape) <= rank and t not in self.graph.kept_inputs and t.dtype.kind == "f"
            if isinstance(t, Constant)
            else self.shapes.rank(t) == rank
            for t in node.inputs
            if t.name
        )

    def _known(self, nodes: list[Node], source: Tensor) -> Known | None:
        """The function that a group computes, if it is one of those known."""
        dtype = self.shapes.dtype(source)
        if dtype != np.float32 or self.shapes.shape(source) != self.shapes.shape(nodes[-1].outputs[0]):
            return None
        values: dict[Tensor, Array] = {source: GRID}
        for node in nodes:
            inputs = [t.values.reshape(-1) if isinstance(t, Constant) else values.get(t) for t in node.inputs]
            try:
                with np.errstate(all="ignore"):
                    values[node.outputs[0]] = evaluate(node, inputs, self.graph.opset)[0]
            except Exception:  # the reference implementation has gaps; the nodes then stay as they are
                return None
        found = values[nodes[-1].outputs[0]].astype(np.float64)
        if found.shape != GRID.shape:
            return None
        for function in FUNCTIONS:
            near = np.abs(found - function.values) <= TOLERANCE * np.maximum(1, np.abs(GRID))
            if near.all() and len(nodes) != function.spelled:
                return function
        return None
