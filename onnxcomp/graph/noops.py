"""Which nodes hand on a tensor unchanged, bit for bit, whatever the inputs are?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx.helper import get_all_tensor_dtypes, tensor_dtype_to_np_dtype

from onnxcomp.graph.ir import Array, Constant, Dim, Graph, Node, Tensor
from onnxcomp.graph.partial import axes_of, slice_of
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators

TO_THE_END = 2**31 - 1  # exporters write INT32_MAX or INT64_MAX for "all the rest"


@dataclass(frozen=True)
class Known:
    """What a rule may rely on.

    Attributes:
        shapes: what is certain, see `infer(graph, declared=False)`.
        opset: of the default domain.
        replaceable: initializers that a caller may feed another value for.
    """

    shapes: Shapes
    opset: int
    replaceable: frozenset[Constant] = field(default_factory=frozenset)

    @classmethod
    def of(cls, graph: Graph, shapes: Shapes) -> Known:
        """For a main graph."""
        return cls(shapes, graph.opset, frozenset(graph.kept_inputs))

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


def unchanged(node: Node, known: Known) -> Same | None:
    """The tensor that a node's first output always equals; None where that is not certain."""
    rule = _RULES.get(node.op)
    if rule is None or node.domain not in ("", "ai.onnx") or not node.outputs or not known.fixed(node):
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


def _first(why: str, holds: Callable[[Node, Known], bool] = lambda node, known: True) -> Rule:
    """A rule under which the output is the first input."""
    return lambda node, known: Same(node.inputs[0], why) if node.inputs and holds(node, known) else None


def _dropout(node: Node, known: Known) -> bool:
    if any(t.name and t.consumers for t in node.outputs[1:]):
        return False
    if known.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if known.opset < 12 or node.input(2) is None:
        return True
    training = known.values(node, 2)
    return training is not None and not training.any()


def _cast(node: Node, known: Known) -> Same | None:
    before = known.shapes.dtype(node.inputs[0])
    to = node.attrs.get("to")
    if node.op == "CastLike":
        after = known.shapes.dtype(node.input(1))
    elif isinstance(to, int) and to in get_all_tensor_dtypes():
        after = tensor_dtype_to_np_dtype(to)
    else:  # opset 1 to 5 name the type; a number may be none that ONNX has
        return None
    if before is None or after is None:
        return None
    if before == after:
        return Same(node.inputs[0], f"is {after} already")
    maker = node.inputs[0].producer
    if maker is None or maker.op not in ("Cast", "CastLike"):
        return None
    origin = known.shapes.dtype(maker.inputs[0])
    if origin == after and _holds_all(before, after):
        return Same(maker.inputs[0], f"back to {after} from a type that holds all of its values")
    return None


def _holds_all(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    """Whether every value of one type has an exact counterpart in the other."""
    if "V" in (wide.kind, narrow.kind) or (narrow.kind in "iu" and narrow.itemsize == 8 and wide.kind == "f"):
        return False  # numpy calls int64 to float64 safe, and it is not
    return narrow.kind in "biuf" and wide.kind in "biuf" and np.can_cast(narrow, wide, "safe")


def _transpose(node: Node, known: Known) -> bool:
    perm = permutation(node, known.shapes)
    return perm is not None and perm == list(range(len(perm)))


def _reshape(node: Node, known: Known) -> bool:
    shape = known.shapes.shape(node.inputs[0])
    if same_shape(shape, known.shapes.shape(node.outputs[0])):
        return True
    target = known.values(node, 1) if known.opset >= 5 else np.asarray(node.attrs.get("shape", []))
    if shape is None or target is None or node.attrs.get("allowzero", 0) or len(target) != len(shape):
        return False
    wanted: list[Dim] = [d if t == 0 else None if t < 0 else int(t) for t, d in zip(target, shape, strict=True)]
    free = [i for i, t in enumerate(target) if t != 0 and (not isinstance(shape[i], int) or wanted[i] != shape[i])]
    return len(free) <= 1 and all(t < 0 for t in target[free]) and 0 not in shape


def _reshaped(node: Node, known: Known) -> Same | None:
    if same_shape(known.shapes.shape(node.inputs[0]), known.shapes.shape(node.outputs[0])):
        return Same(node.inputs[0], "keeps the shape")
    opposite = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(node.op)
    maker = node.inputs[0].producer
    if maker is None or maker.op != opposite or not known.fixed(maker):
        return None
    mine, theirs = axes_of(node, known.opset), axes_of(maker, known.opset)
    if mine == theirs and mine[0] and mine[1] is not None:
        return Same(maker.inputs[0], f"undoes {maker}")
    return None


def _expand(node: Node, known: Known) -> bool:
    shape, target = known.shapes.shape(node.inputs[0]), known.values(node, 1)
    if shape is None or target is None or len(target) > len(shape):
        return False
    return all(t in (1, d) for t, d in zip(target[::-1], shape[::-1], strict=False))


def _tile(node: Node, known: Known) -> bool:
    repeats = known.values(node, 1)
    return known.opset >= 6 and repeats is not None and bool((repeats == 1).all())


def _slice(node: Node, known: Known) -> bool:
    parts = slice_of(node, known.opset)
    if parts is None:
        return False
    starts, ends, axes, steps = parts
    shape = known.shapes.shape(node.inputs[0])
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        whole = end >= size if isinstance(size, int) else end >= TO_THE_END
        if start != 0 or step != 1 or not whole:
            return False
    return True


def _pad(node: Node, known: Known) -> bool:
    if known.opset < 11:
        pads = node.attrs.get("pads", node.attrs.get("paddings"))
        return pads is not None and not any(pads)
    amounts = known.values(node, 1)
    return amounts is not None and not amounts.any()


def _neutral(value: float, ports: tuple[int, ...]) -> Rule:
    """Arithmetic with a constant that changes nothing, not even the sign of a zero."""

    def rule(node: Node, known: Known) -> Same | None:
        if len(node.inputs) != 2 or known.opset < 7:
            return None
        for port in ports:
            constant = known.values(node, port)
            other = node.inputs[1 - port]
            if constant is None or constant.size != 1 or constant.dtype.kind not in "biuf":
                continue
            rank = known.shapes.rank(other)
            if constant.ndim and (rank is None or constant.ndim > rank):
                continue
            wanted = np.asarray(value).astype(constant.dtype)
            if constant.reshape(()).tobytes() == wanted.tobytes():
                return Same(other, f"{node.op} with {constant.item()}")
        return None

    return rule


def _idempotent(node: Node, known: Known) -> Same | None:
    maker = node.inputs[0].producer
    if maker is not None and (maker.op, maker.domain) == (node.op, node.domain) and maker.attrs == node.attrs:
        return Same(node.inputs[0], f"{node.op} of {node.op}")
    return None


def _involution(node: Node, known: Known) -> Same | None:
    maker = node.inputs[0].producer
    if maker is not None and (maker.op, maker.domain) == (node.op, node.domain):
        return Same(maker.inputs[0], f"undoes {maker}")
    return None


_ONE_INPUT = _first("has one input", lambda node, known: len(node.inputs) == 1)
_RULES: dict[str, Rule] = {
    "Identity": _first("is an Identity"),
    "Dropout": _first("drops nothing outside of training", _dropout),
    "Cast": _cast,
    "CastLike": _cast,
    "Transpose": _first("keeps every axis in place", _transpose),
    "Reshape": _first("keeps the shape", _reshape),
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Expand": _first("expands nothing", _expand),
    "Tile": _first("repeats once", _tile),
    "Slice": _first("takes everything", _slice),
    "Pad": _first("pads nothing", _pad),
    "Concat": _ONE_INPUT,
    "Sum": _ONE_INPUT,
    "Max": _ONE_INPUT,
    "Min": _ONE_INPUT,
    "Split": _first("has one output", lambda node, known: len(node.outputs) == 1),
    "Add": _neutral(-0.0, (0, 1)),
    "Sub": _neutral(0.0, (1,)),
    "Mul": _neutral(1.0, (0, 1)),
    "Div": _neutral(1.0, (1,)),
    "And": _neutral(1.0, (0, 1)),
    "Or": _neutral(0.0, (0, 1)),
    **dict.fromkeys(("Abs", "Ceil", "Floor", "Relu", "Round", "Sign"), _idempotent),
    **dict.fromkeys(("Neg", "Not", "BitwiseNot"), _involution),
}
