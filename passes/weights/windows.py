"""Which convolutions run faster as products of 8-bit windows, and how is one written so?

ONNX Runtime's ConvInteger is slow on x86 with signed weights. The same sums as a product are not: the data [N, C, S...]
are turned to [N, S..., C] and quantized at once, the places that a kernel reads are cut out of the integers and laid
side by side, and MatMulInteger takes the windows [N, S'..., k C].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.noops import TO_THE_END
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.rows import LayerInputs
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import CostModel, PassContext
from onnxcomp.passes.weights.rounding import MOST_SOLVED
from onnxcomp.passes.weights.smoothing import FirstSamples
from onnxcomp.runtime.gram import gram, why_not

LEAST_OUTPUTS = 64  # channels that share one copying of the windows; with fewer that takes what the product saves
MOST_SAMPLES = 64
LEAST_WORK = 1 << 24  # multiply-accumulates; smaller ones save microseconds, if anything
WORTH = 0.97  # of the graph's kernel time, at most, so that noise alone rewrites nothing
CUTS = 10  # the opset since which Slice takes its places as inputs
PADS_INTEGERS = 13  # the opset since which Pad takes every type, and its value as an input

Quantized = tuple[Variable, Variable, Variable]
"""An activation in integers, its scale and its zero point."""


def refusal(use: WeightUse, shapes: Shapes, opset: int) -> str:
    """Why a convolution cannot be written as a product of windows, or gains nothing; empty where it may."""
    rows = LayerInputs.of(use)
    if isinstance(rows, str):
        return rows
    if use.weight.reads != "patches" or not use.weight.bare:
        return "its kernel is no product of windows alone"
    if rows.group != 1:
        return "it has groups"
    if rows.auto_pad not in ("NOTSET", "VALID"):
        return "its padding is automatic"
    if any(pad < 0 for pad in rows.pads):
        return "its padding is negative"
    if opset < (needed := PADS_INTEGERS if any(rows.pads) else CUTS):
        return f"cutting its windows takes opset {needed}, the model has {opset}"
    if shapes.rank(use.node.inputs[0]) != len(rows.kernel) + 2:
        return "the rank of its input is not known"
    outputs = use.weight.channels(use.constant.shape)[1]
    places = [size for size in (shapes.shape(use.node.outputs[0]) or ())[2:] if isinstance(size, int)]
    known = len(places) == len(rows.kernel)
    if outputs < LEAST_OUTPUTS or (known and use.constant.size * prod(places) < LEAST_WORK):
        return "too small: cutting its windows costs more than integers save"
    return ""


@dataclass(frozen=True)
class Windows:
    """Writes what turns data into windows of integers, for one convolution."""

    graph: Graph
    owner: Graph
    node: Node
    rows: LayerInputs

    @classmethod
    def of(cls, graph: Graph, owner: Graph, use: WeightUse) -> Windows:
        """For a convolution that `refusal` lets pass."""
        rows = LayerInputs.of(use)
        assert isinstance(rows, LayerInputs)
        return cls(graph, owner, use.node, rows)

    @property
    def rank(self) -> int:
        """Axes of the data: samples, channels, places."""
        return len(self.rows.kernel) + 2

    def quantized(self) -> Quantized:
        """The windows [N, S'..., k C], uint8, their scale and zero point."""
        x = self._op("Transpose", [self.node.inputs[0]], perm=[0, *range(2, self.rank), 1])[0]
        q, scale, zero = self._op("DynamicQuantizeLinear", [x], outputs=3)
        padded = self._padded(q, zero)
        cuts = [self._cut(padded, place) for place in product(*map(range, self.rows.kernel))]
        windows = cuts[0] if len(cuts) == 1 else self._op("Concat", cuts, axis=self.rank - 1)[0]
        return windows, scale, zero

    def turned_back(self, rows: Variable, out: Variable) -> None:
        """Let the product's rows [N, S'..., M] be the convolution's output [N, M, S'...]."""
        order = [0, self.rank - 1, *range(1, self.rank - 1)]
        self.owner.add_node("Transpose", [rows], name=f"{self.node.name}_back", attrs={"perm": order}, outputs=[out])

    def _padded(self, q: Variable, zero: Variable) -> Variable:
        """The integers with their zero point around them."""
        spatial = len(self.rows.kernel)
        if not any(self.rows.pads):
            return q
        begin, end = self.rows.pads[:spatial], self.rows.pads[spatial:]
        return self._op("Pad", [q, self._numbers([0, *begin, 0, 0, *end, 0]), zero])[0]

    def _cut(self, x: Variable, place: tuple[int, ...]) -> Variable:
        """What a kernel reads at one of its places, for all windows: [N, S'..., C]."""
        axes, starts, ends, steps = [], [], [], []
        sizes = zip(place, self.rows.kernel, self.rows.dilations, self.rows.strides, strict=True)
        for axis, (at, size, dilation, stride) in enumerate(sizes, 1):
            left, right = at * dilation, (size - 1 - at) * dilation
            if left or right or stride > 1:
                axes.append(axis)
                starts.append(left)
                ends.append(-right if right else TO_THE_END)
                steps.append(stride)
        if not axes:
            return x
        return self._op("Slice", [x, *map(self._numbers, (starts, ends, axes, steps))])[0]

    def _numbers(self, values: list[int]) -> Constant:
        return self.graph.add_constant(f"{self.node.name}_places", np.asarray(values, np.int64))

    def _op(self, op: str, inputs: list[Tensor], outputs: int = 1, **attrs: object) -> list[Variable]:
        node = self.owner.add_node(op, inputs, name=f"{self.node.name}_{op.lower()}", attrs=attrs, outputs=outputs)
        return list(node.outputs)


def faster(
    before: Graph, written: dict[str, set[str]], after: Graph, costs: CostModel
) -> dict[str, tuple[float, float]]:
    """Of convolutions that `after` writes as windows, those that pay: microseconds before and after, by name.

    None where all of them pay by their own kernels and yet the whole is not faster: what ONNX Runtime adds between
    kernels, or no longer fuses into them, counts as well.

    Args:
        written: for each convolution's name those of the nodes that do its work in `after`.
    """
    exact, windows = costs.node_times_us(before), costs.node_times_us(after)
    found = {}
    for name, parts in written.items():
        time = sum(windows.get(part, 0.0) for part in parts)
        if 0 < time < exact.get(name, 0.0):
            found[name] = exact[name], time
    if len(found) == len(written) and sum(windows.values()) > WORTH * sum(exact.values()):
        return {}
    return found


def moments(graph: Graph, uses: list[WeightUse], context: PassContext) -> dict[str, Array]:
    """Second moments E[x x^T] of what convolutions read, float64 [in, in], by node name, where they can be seen."""
    if context.calibration is None:
        return {}
    seen = [use for use in uses if not why_not(graph, use) and prod(use.constant.shape[1:]) <= MOST_SOLVED]
    found = gram(
        graph,
        seen,
        FirstSamples(context.calibration, MOST_SAMPLES),
        threads=context.threads,
        budget_bytes=context.memory.activations,
        progress=context.progress,
    )
    return {name: item.second[0] for name, item in found.items() if item.finite}
