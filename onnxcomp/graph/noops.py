"""Which nodes hand on a tensor unchanged, bit for bit, whatever the inputs are?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.graph.ir import Array, Constant, Dim, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes

if TYPE_CHECKING:
    from onnxcomp.ops.facts import Operators

TO_THE_END = 2**31 - 1  # exporters write INT32_MAX or INT64_MAX for "all the rest"


@dataclass(frozen=True)
class Known:
    """What a rule may rely on.

    Attributes:
        shapes: what is certain, see `infer(graph, declared=False)`.
        opset: of the default domain.
        replaceable: initializers that a caller may feed another value for.
        quantized: Q and DQ stand in the graph, which a runtime fuses with what is beside them.
    """

    shapes: Shapes
    opset: int
    replaceable: frozenset[Constant] = field(default_factory=frozenset)
    quantized: bool = False

    @classmethod
    def of(cls, graph: Graph, shapes: Shapes) -> Known:
        """For a main graph."""
        quantized = any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in graph.nodes)
        return cls(shapes, graph.opset, frozenset(graph.kept_inputs), quantized)

    def values(self, node: Node, port: int) -> Array | None:
        """The fixed value at a port; None where it is omitted, computed or replaceable."""
        constant = node.constant(port)
        return None if constant is None or constant in self.replaceable else constant.values

    def fixed(self, node: Node) -> bool:
        """Whether no input of the node is replaceable."""
        return self.replaceable.isdisjoint(node.inputs)


@dataclass(frozen=True)
class Same:
    """A tensor that equals a node's first output, and why."""

    tensor: Tensor
    why: str


def unchanged(node: Node, known: Known, operators: Operators) -> Same | None:
    """The tensor that a node's first output always equals; None where that is not certain."""
    rule = operators.facts(node).noop
    if rule is None or not node.outputs or not known.fixed(node):
        return None
    return rule(node, known)


def draws(node: Node, operators: Operators, opset: int) -> bool:
    """Whether two runs of a node may differ. A Dropout draws in training only, where the opset tells it apart."""
    if not operators.facts(node).random:
        return False
    if node.op != "Dropout" or opset < 7:
        return not (node.op == "Dropout" and node.attrs.get("is_test", 0))
    training = node.constant(2)
    return opset >= 12 and node.input(2) is not None and (training is None or bool(training.values.any()))


def same_shape(before: Iterable[Dim] | None, after: Iterable[Dim] | None) -> bool:
    """Whether a node that keeps all elements in order certainly keeps the shape: one unknown dimension follows.

    A dimension that is only known afterwards does not count as kept: the node then asserts a size.
    """
    if before is None or after is None:
        return False
    pairs = list(zip(a := list(before), b := list(after), strict=False))
    if len(a) != len(b) or any(isinstance(y, int) and x != y for x, y in pairs):
        return False
    unknown = sum(not isinstance(y, int) for y in b)
    return unknown == 0 or (unknown == 1 and 0 not in b)


def permutation(node: Node, shapes: Shapes) -> list[int] | None:
    """The order of axes that a Transpose makes; None where the rank is needed and unknown."""
    perm = node.attrs.get("perm")
    if perm is not None:
        return [int(p) for p in perm]
    rank = shapes.rank(node.inputs[0])
    return None if rank is None else list(range(rank))[::-1]


Rule = Callable[[Node, Known], Same | None]


def first(why: str, holds: Callable[[Node, Known], bool] = lambda node, known: True) -> Rule:
    """A rule under which the output is the first input."""
    return lambda node, known: Same(node.inputs[0], why) if node.inputs and holds(node, known) else None


one_input = first("has one input", lambda node, known: len(node.inputs) == 1)
fence = first("has one input", lambda node, known: len(node.inputs) == 1 and not known.quantized)
