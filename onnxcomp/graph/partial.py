"""Which values of shape arithmetic are certain, although some sizes are only known at run time?

`Shape` of [N, 3, 8, 8] is [?, 3, 8, 8]; what picks, joins or multiplies known elements of it is known too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, is_onnx
from onnxcomp.graph.types import Shapes

MOST_ELEMENTS = 64  # shapes are short; longer vectors are data


class Partial:
    """Integers of which some may be unknown.

    Attributes:
        values: any shape; what stands at an unknown place means nothing.
        known: bool, of the same shape.
    """

    def __init__(self, values: Array, known: Array) -> None:
        self.values = values
        self.known = known

    @classmethod
    def of(cls, value: Array) -> Partial:
        """A value known in full."""
        return cls(np.asarray(value), np.ones(np.shape(value), np.bool_))

    @property
    def whole(self) -> bool:
        """Whether every element is known."""
        return bool(self.known.all())

    def move(self, move: Callable[[Array], Array]) -> Partial:
        """The same rearrangement of values and of what is known."""
        return Partial(move(self.values), move(self.known))


def certain_values(graph: Graph, shapes: Shapes) -> dict[Variable, Array]:
    """Values that follow from shapes alone, of tensors of the graph and its bodies; in graph order.

    Args:
        shapes: what is certain, see `infer(graph, declared=False)`.
    """
    known: dict[Tensor, Partial] = {}
    open_ended = set(graph.root.kept_inputs)  # initializers that a caller may replace
    for node in graph.walk():
        if not is_onnx(node.domain) or len(node.outputs) != 1:
            continue
        if open_ended and not open_ended.isdisjoint(node.inputs):
            continue
        rule = _RULES.get(node.op)
        found = rule(node, known, shapes, graph.opset) if rule is not None else None
        if found is not None and found.values.size <= MOST_ELEMENTS:
            known[node.outputs[0]] = found
    return {t: partial.values for t, partial in known.items() if partial.whole and isinstance(t, Variable)}


_Rule = Callable[[Node, dict[Tensor, Partial], Shapes, int], Partial | None]


def _shape(node: Node, known: dict[Tensor, Partial], shapes: Shapes, opset: int) -> Partial | None:
    shape = shapes.shape(node.inputs[0])
    if shape is None:
        return None
    dims = list(shape)[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    fixed = [isinstance(d, int) for d in dims]
    return Partial(np.array([d if isinstance(d, int) else 0 for d in dims], np.int64), np.array(fixed, np.bool_))


def _size(node: Node, known: dict[Tensor, Partial], shapes: Shapes, opset: int) -> Partial | None:
    shape = shapes.static(node.inputs[0])
    return None if shape is None else Partial.of(np.asarray(np.prod(shape, dtype=np.int64)))


def _moved(move: Callable[[Array, Node, int], Array | None]) -> _Rule:
    """A rule for an operator that only rearranges its first input."""

    def rule(node: Node, known: dict[Tensor, Partial], shapes: Shapes, opset: int) -> Partial | None:
        source = _partial(node.inputs[0], known)
        if source is None:
            return None
        values, mask = move(source.values, node, opset), move(source.known, node, opset)
        return None if values is None or mask is None else Partial(values, mask)

    return rule


def _gather(array: Array, node: Node, opset: int) -> Array | None:
    indices = node.constant(1)
    axis = int(node.attrs.get("axis", 0))
    if indices is None or not array.ndim or not _inside(indices.values, array.shape[axis]):
        return None
    return np.asarray(np.take(array, indices.values, axis))


def _inside(indices: Array, size: int) -> bool:
    return bool(np.all((indices >= -size) & (indices < size)))


def _slice(array: Array, node: Node, opset: int) -> Array | None:
    parts = slice_of(node, opset)
    if parts is None or array.ndim != 1:
        return None
    starts, ends, axes, steps = parts
    if len(starts) != 1 or (axes or [0])[0] not in (0, -1):
        return None
    if steps[0] < 0:
        return None
    return np.asarray(array[starts[0] : ends[0] : steps[0]])


def slice_of(node: Node, opset: int) -> tuple[list[int], list[int], list[int] | None, list[int]] | None:
    """Starts, ends, axes (None: the first ones) and steps of a Slice where they are constant; else None."""
    if opset < 10:
        starts, ends = list(node.attrs.get("starts", [])), list(node.attrs.get("ends", []))
        return starts, ends, node.attrs.get("axes"), [1] * len(starts)
    given: list[list[int] | None] = []
    for port in range(1, 5):
        constant = node.constant(port)
        if constant is None and node.input(port) is not None:
            return None
        given.append(None if constant is None else [int(v) for v in constant.values.reshape(-1)])
    if given[0] is None or given[1] is None:
        return None
    return given[0], given[1], given[2], given[3] or [1] * len(given[0])


def axes_of(node: Node, opset: int) -> tuple[bool, list[int] | None]:
    """Axes of a Squeeze or Unsqueeze: whether they are known, and which (None where none are given)."""
    if opset < 13:
        axes = node.attrs.get("axes")
        return True, None if axes is None else [int(a) for a in axes]
    if node.input(1) is None:
        return True, None
    constant = node.constant(1)
    return (False, None) if constant is None else (True, [int(a) for a in constant.values.reshape(-1)])


def _squeeze(array: Array, node: Node, opset: int) -> Array | None:
    known, axes = axes_of(node, opset)
    if not known or any(not -array.ndim <= a < array.ndim or array.shape[a] != 1 for a in axes or ()):
        return None
    return array.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(array: Array, node: Node, opset: int) -> Array | None:
    known, axes = axes_of(node, opset)
    if not known or axes is None or any(not -array.ndim - len(axes) <= a < array.ndim + len(axes) for a in axes):
        return None
    return np.expand_dims(array, tuple(axes))


def _cast(node: Node, known: dict[Tensor, Partial], shapes: Shapes, opset: int) -> Partial | None:
    source = _partial(node.inputs[0], known)
    kinds = {6: np.int32, 7: np.int64}
    kind = kinds.get(node.attrs.get("to", 0))
    if source is None or kind is None or source.values.dtype not in (np.int32, np.int64):
        return None
    return Partial(source.values.astype(kind), source.known)


def _concat(node: Node, known: dict[Tensor, Partial], shapes: Shapes, opset: int) -> Partial | None:
    parts = [_partial(t, known) for t in node.inputs]
    if any(p is None or p.values.ndim != 1 for p in parts):
        return None
    given = [p for p in parts if p is not None]
    if len({p.values.dtype for p in given}) != 1:
        return None
    return Partial(np.concatenate([p.values for p in given]), np.concatenate([p.known for p in given]))


def _arithmetic(function: Callable[[Array, Array], Array]) -> _Rule:
    def rule(node: Node, known: dict[Tensor, Partial], shapes: Shapes, opset: int) -> Partial | None:
        parts = [_partial(t, known) for t in node.inputs]
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            return None
        a, b = parts[0], parts[1]
        if a.values.dtype != b.values.dtype or (opset < 7 and a.values.shape != b.values.shape):
            return None
        try:
            return Partial(np.asarray(function(a.values, b.values)), np.asarray(a.known & b.known))
        except ValueError:  # shapes that do not broadcast: the model is wrong there, and says so when it runs
            return None

    return rule


def _partial(tensor: Tensor, known: dict[Tensor, Partial]) -> Partial | None:
    if isinstance(tensor, Constant):
        integer = tensor.size <= MOST_ELEMENTS and tensor.dtype in (np.int32, np.int64)
        return Partial.of(tensor.values) if integer else None
    return known.get(tensor)


_RULES: dict[str, _Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _moved(_gather),
    "Slice": _moved(_slice),
    "Squeeze": _moved(_squeeze),
    "Unsqueeze": _moved(_unsqueeze),
    "Identity": _moved(lambda array, node, opset: array),
    "Concat": _concat,
    "Cast": _cast,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
}
