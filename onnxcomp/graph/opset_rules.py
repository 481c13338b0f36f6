"""What does each change of an operator's form ask for? One rule for each (operator, version), in one table.

A rule gets the node in the form of the version before and leaves it in the form of the new one, computing the same as
ONNX Runtime does for the old form. Versions without a rule changed types or added attributes whose default is the old
meaning; the tests hold every version of every operator, with a rule or without, against ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.literals import literal
from onnxcomp.graph.types import Shapes

_MISSING = object()
_LOWEST, _HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


class CannotRaiseError(Exception):
    """A node has no equal in the new form; the message says why."""


class Edit:
    """One node in the making of its new form.

    Attributes:
        graph: the main graph, which holds new initializers.
        scope: the graph or body whose list holds the node.
        node: the node, changed in place.
        shapes: of all tensors, by the old opset.
        version: the opset that is wanted in the end.
    """

    def __init__(self, graph: Graph, scope: Graph, node: Node, shapes: Shapes, version: int) -> None:
        self.graph, self.scope, self.node, self.shapes, self.version = graph, scope, node, shapes, version

    def take(self, name: str, default: Any = None) -> Any:
        """Remove an attribute and give its value, strings decoded."""
        value = self.node.attrs.pop(name, _MISSING)
        if value is _MISSING:
            return default
        if isinstance(value, onnx.AttributeProto):
            raise CannotRaiseError(f"attribute {name} is not a plain value")
        return value.decode() if isinstance(value, bytes) else value

    def put(self, port: int, values: Array | Sequence[int], what: str) -> None:
        """Give an input a fixed value; sequences of integers become int64 vectors."""
        array = values if isinstance(values, np.ndarray | np.generic) else np.asarray(values, np.int64)
        self.node.set_input(port, self.constant(np.asarray(array), what))

    def constant(self, values: Array, what: str) -> Constant:
        """A new initializer named after the node."""
        return self.graph.add_constant(f"{self.node.name}_{what}", values)

    def before(self, op: str, inputs: Sequence[Tensor], **attrs: Any) -> Variable:
        """A new node in front of this one; gives its output."""
        return self._insert(0, op, inputs, None, attrs)

    def after(self, op: str, inputs: Sequence[Tensor], output: Variable, **attrs: Any) -> None:
        """A new node behind this one that makes `output`."""
        self._insert(1, op, inputs, output, attrs)

    def _insert(
        self, offset: int, op: str, inputs: Sequence[Tensor], output: Variable | None, attrs: dict[str, Any]
    ) -> Variable:
        name = self.graph.unique_name(f"{self.node.name}_{op.lower()}")
        made = output or Variable(self.graph.unique_name(f"{name}_out"))
        at = self.scope.nodes.index(self.node) + offset
        self.scope.nodes.insert(at, Node(op, name, attrs, inputs, [made]))
        return made

    def detour(self) -> tuple[Variable, Variable]:
        """Let the node write a new tensor: gives that one and the one it wrote, for a node behind.

        What was known of its shape is written down: it follows no longer from the nodes in front, and a Scan needs it.
        """
        old = self.node.outputs[0]
        dtype, shape = self.shapes.dtype(old), self.shapes.shape(old)
        if old.shape is None and dtype is not None and shape is not None:
            old.dtype, old.shape = dtype, shape
        new = Variable(self.graph.unique_name(f"{old.name}_raised"))
        self.node.outputs[0] = new
        return new, old

    def value(self, port: int) -> Array | None:
        """The value at a port where it is known."""
        known = literal(self.node.input(port))
        return None if known is None else known.values

    def dtype(self, port: int = 0) -> np.dtype[Any]:
        """dtype of an input.

        Raises:
            CannotRaiseError: inference does not know it.
        """
        found = self.shapes.dtype(self.node.input(port))
        if found is None:
            raise CannotRaiseError("the type of its input is not known")
        return found

    def rank(self) -> int | None:
        """Number of dimensions of the first input, where it is known."""
        return self.shapes.rank(self.node.input(0))


Rule: TypeAlias = Callable[[Edit], None]


# -- attributes that became inputs -----------------------------------------------------------------------------


def axes_input(edit: Edit) -> None:
    """Squeeze, Unsqueeze and the Reduce operators: axes stand in the second input; none given still means all."""
    axes = edit.take("axes")
    if axes:
        edit.put(1, axes, "axes")


def split(edit: Edit) -> None:
    """Split 13: sizes stand in the second input."""
    sizes = edit.take("split")
    if sizes:
        edit.put(1, sizes, "split")


def split_evenly(edit: Edit) -> None:
    """Split 18: without sizes, the number of parts must be said."""
    if edit.node.input(1) is None:
        edit.node.attrs["num_outputs"] = len(edit.node.outputs)


def clip(edit: Edit) -> None:
    """Clip 11: bounds stand in inputs of the data's type; those that bound nothing go."""
    low, high = edit.take("min", _LOWEST), edit.take("max", _HIGHEST)
    if low > _LOWEST:
        edit.put(1, np.asarray(low, edit.dtype()), "min")
    if high < _HIGHEST:
        edit.put(2, np.asarray(high, edit.dtype()), "max")


def pad(edit: Edit) -> None:
    """Pad 11: widths and value stand in inputs."""
    value = edit.take("value", 0.0)
    edit.put(1, edit.take("pads", []), "pads")
    if value and edit.node.attrs.get("mode", "constant") in ("constant", b"constant"):
        edit.put(2, np.asarray(value, edit.dtype()), "value")


def slice_(edit: Edit) -> None:
    """Slice 10: starts, ends and axes stand in inputs."""
    starts, ends, axes = edit.take("starts", []), edit.take("ends", []), edit.take("axes")
    edit.put(1, starts, "starts")
    edit.put(2, ends, "ends")
    if axes:
        edit.put(3, axes, "axes")


def top_k(edit: Edit) -> None:
    """TopK 10: the count stands in an input."""
    edit.put(1, [edit.take("k")], "k")


def dropout(edit: Edit) -> None:
    """Dropout 12: the ratio stands in an input; without its third input nothing is dropped, as before."""
    ratio = edit.take("ratio")
    if ratio is not None:
        edit.put(1, np.asarray(ratio, np.float32), "ratio")
    _own_mask(edit, np.dtype(bool))


def dropout_mask(edit: Edit) -> None:
    """Dropout 10: the mask is of truth values, where it had the type of the data."""
    _own_mask(edit, edit.dtype() if edit.node.output(1) is not None else np.dtype(np.float32))


def _own_mask(edit: Edit, dtype: np.dtype[Any]) -> None:
    """A mask that is read is all zeros where nothing drops, until opset 12; then it is all ones."""
    node, mask = edit.node, edit.node.output(1)
    node.outputs = [node.outputs[0]]
    if mask is not None and (mask.consumers or edit.graph.is_output(mask)):
        shape = edit.before("Shape", [node.inputs[0]])
        edit.after("ConstantOfShape", [shape], mask, value=np.zeros(1, dtype))


def dft(edit: Edit) -> None:
    """DFT 20: the axis stands in an input, and the default is another."""
    edit.put(2, np.asarray(edit.take("axis", 1), np.int64), "axis")


# -- other meanings --------------------------------------------------------------------------------------------


def softmax(edit: Edit) -> None:
    """Softmax, LogSoftmax and Hardmax 13: along one axis, where it was over all axes from this one on, made one."""
    node, rank = edit.node, edit.rank()
    axis = edit.take("axis", 1)
    if rank is not None and axis < 0:
        axis += rank
    node.attrs["axis"] = -1
    if axis == -1 or axis + 1 == rank:
        return
    x = node.inputs[0]
    shape = edit.before("Shape", [x])
    node.inputs[0] = edit.before("Flatten", [x], axis=axis)
    flat, output = edit.detour()
    edit.after("Reshape", [flat, shape], output)


def batch_norm_spatial(edit: Edit) -> None:
    """BatchNormalization 9: statistics for each channel only, where there could be one for each position."""
    if edit.take("spatial", 1) == 0:
        raise CannotRaiseError("spatial=0 gives every position statistics of its own")


def batch_norm_outputs(edit: Edit) -> None:
    """BatchNormalization 14: outputs for training have other places."""
    if any(t.name for t in edit.node.outputs[1:]):
        raise CannotRaiseError("it trains its statistics")
    edit.node.outputs = [edit.node.outputs[0]]


def upsample_scales(edit: Edit) -> None:
    """Upsample 9: scales stand in an input."""
    edit.put(1, np.asarray(edit.take("scales"), np.float32), "scales")


def upsample(edit: Edit) -> None:
    """Upsample is Resize from 10 on."""
    edit.node.op = "Resize"


def scatter(edit: Edit) -> None:
    """Scatter is ScatterElements from 11 on."""
    edit.node.op = "ScatterElements"


def resize(edit: Edit) -> None:
    """Resize 11: sampling is chosen by attributes; until then output x is sampled at x / scale.

    The nearest point lies at the floor where an axis grows, and at the ceiling where it shrinks.
    """
    node = edit.node
    scales_of, scales = node.inputs[1], edit.value(1)
    node.inputs = [node.inputs[0], edit.constant(np.zeros(0, np.float32), "roi"), scales_of]
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    if node.attrs.get("mode", "nearest") not in ("nearest", b"nearest"):
        return
    node.attrs["nearest_mode"] = "floor"
    if scales is None:
        raise CannotRaiseError("its scales are computed, and the nearest point depends on them")
    shrinking = scales < 1
    if not shrinking.any():
        return
    if shrinking.all() or (scales[~shrinking] == 1).all():
        node.attrs["nearest_mode"] = "ceil"
        return
    first = edit.constant(np.where(shrinking, np.float32(1), scales), "growing")
    node.inputs[0] = edit.before("Resize", [node.inputs[0], node.inputs[1], first], **node.attrs)
    node.inputs[2] = edit.constant(np.where(shrinking, scales, np.float32(1)), "shrinking")
    node.attrs["nearest_mode"] = "ceil"


def mean_variance(edit: Edit) -> None:
    """MeanVarianceNormalization 13 is made of others, for which strict inference wants the axes to be written."""
    edit.node.attrs.setdefault("axes", [0, 2, 3])


def roi_align(edit: Edit) -> None:
    """RoiAlign 16: coordinates are shifted by half a pixel unless told not to."""
    edit.node.attrs["coordinate_transformation_mode"] = "output_half_pixel"


def grid_sample(edit: Edit) -> None:
    """GridSample 20: two modes have new names."""
    mode = edit.take("mode", "bilinear")
    edit.node.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


def group_norm(edit: Edit) -> None:
    """GroupNormalization 21: scale and bias have a value a channel, where they had one a group."""
    node = edit.node
    groups = int(node.attrs["num_groups"])
    shape = edit.shapes.shape(node.inputs[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    for port, what in ((1, "scale"), (2, "bias")):
        known = edit.value(port)
        if known is not None and isinstance(channels, int):
            edit.put(port, np.repeat(known, channels // groups), what)
        else:
            node.inputs[port] = _spread(edit, node.inputs[port], groups)


def _spread(edit: Edit, vector: Tensor, groups: int) -> Variable:
    """[groups] -> [channels], each value for all channels of its group, whatever their number."""

    def ints(what: str, *values: int) -> Constant:
        return edit.constant(np.asarray(values, np.int64), what)

    sizes = edit.before("Shape", [edit.node.inputs[0]], start=1, end=2)
    each = edit.before("Div", [sizes, ints("groups", groups)])
    wide = edit.before("Concat", [ints("rows", groups), each], axis=0)
    column = edit.before("Unsqueeze", [vector, ints("axis", 1)])
    return edit.before("Reshape", [edit.before("Expand", [column, wide]), ints("flat", -1)])


def scan(edit: Edit) -> None:
    """Scan 9 has no axis of batches and no lengths."""
    raise CannotRaiseError("it scans batches of sequences")


_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

RULES: dict[tuple[str, int], Rule] = {
    ("BatchNormalization", 9): batch_norm_spatial,
    ("BatchNormalization", 14): batch_norm_outputs,
    ("Clip", 11): clip,
    ("DFT", 20): dft,
    ("Dropout", 10): dropout_mask,
    ("Dropout", 12): dropout,
    ("GridSample", 20): grid_sample,
    ("GroupNormalization", 21): group_norm,
    ("Hardmax", 13): softmax,
    ("LogSoftmax", 13): softmax,
    ("MeanVarianceNormalization", 13): mean_variance,
    ("Pad", 11): pad,
    ("ReduceSum", 13): axes_input,
    ("Resize", 11): resize,
    ("RoiAlign", 16): roi_align,
    ("Scan", 9): scan,
    ("Scatter", 11): scatter,
    ("Slice", 10): slice_,
    ("Softmax", 13): softmax,
    ("Split", 13): split,
    ("Split", 18): split_evenly,
    ("Squeeze", 13): axes_input,
    ("TopK", 10): top_k,
    ("Unsqueeze", 13): axes_input,
    ("Upsample", 9): upsample_scales,
    ("Upsample", 10): upsample,
    **{(f"Reduce{kind}", 18): axes_input for kind in _REDUCE},
}
