"""How does a tensor that enters a layer turn into rows of a matrix product?

A layer with weights computes y = W x + b for many rows x: the patches of a convolution, the rows of a matrix product.
The entries of x stand in the order of `Weight.to_matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from onnxcomp.graph.ir import Array, Node
from onnxcomp.layers.use import WeightUse
from onnxcomp.ops.record import WINDOWS, Reads, Weight


@dataclass(frozen=True)
class LayerInputs:
    """How the tensor that enters a layer turns into rows.

    Attributes:
        port: input port of the activations.
        kind: as `Weight.reads`.
        group: convolution groups.
        kernel: spatial extents of the kernel.
        features: entries of a row, of one group.
        out_axis: channel axis of the layer's output, where it is counted from the back.
    """

    port: int
    kind: Reads
    features: int
    group: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    out_axis: int = -1

    @classmethod
    def of(cls, use: WeightUse) -> LayerInputs | str:
        """The rule for a node and its weight, or why there is none."""
        node, weight = use.node, use.weight
        shape = node.inputs[weight.port].shape
        if weight.role != "kernel":
            return f"{node.op} does not multiply rows with this weight"
        if not isinstance(shape, tuple) or not all(isinstance(d, int) for d in shape):
            return "the shape of its weight is unknown"
        if weight.reads == "patches" and len(shape) >= 3:
            return _conv(node, weight, shape)
        if weight.reads == "spread" and len(shape) >= 3:
            return _deconv(node, weight, shape)
        if weight.reads in ("rows", "columns") and prod(shape[:-2]) == 1:
            inner, out = shape[weight.in_axes[-1]], weight.result_axis
            return cls(weight.data, weight.reads, inner, out_axis=out)
        return f"{node.op} with a weight of shape {list(shape)} has no rows that all outputs share"

    def patches(self, x: Array) -> Patches:
        """The rows of one batch of the input tensor, not yet copied."""
        if self.kind == "columns":
            x = np.swapaxes(x, -1, -2)
        if self.kind in ("rows", "columns"):
            return Patches(x.reshape(-1, self.features), 1)
        return Patches(self._cut(x), 1 + len(self.kernel), self.group)

    def outputs(self, y: Array) -> Patches:
        """The layer's output, or a tensor like it, as rows in the order of `patches`, not yet copied."""
        if self.kind in WINDOWS:
            y = np.moveaxis(y, 1, -1)
        elif self.out_axis == -2:  # a weight on the left gives [..., out, rows]
            y = np.swapaxes(y, -1, -2)
        y = np.atleast_2d(y)
        return Patches(y, y.ndim - 1, self.group)

    def _cut(self, x: Array) -> Array:
        """A view of all patches: [n, *positions, *kernel, channels]."""
        x = np.moveaxis(x, 1, -1)
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        strides, taps = self.strides, [slice(None, None, d) for d in self.dilations]
        if self.kind == "spread":  # a convolution of the input with zeros between its pixels, taps turned round
            x = _spread(x, self.strides)
            taps = [slice(None, None, -d) for d in self.dilations]
            strides = (1,) * len(spans)
        x = _padded(x, self._padding(x.shape[1:-1], spans))
        axes = tuple(range(1, 1 + len(spans)))
        view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)  # [n, *positions, channels, *spans]
        view = view[(slice(None), *(slice(None, None, s) for s in strides), slice(None), *taps)]
        return np.moveaxis(view, 1 + len(spans), -1)

    def _padding(self, sizes: tuple[int, ...], spans: Sequence[int]) -> list[tuple[int, int]]:
        rank = len(spans)
        pads = list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        if self.kind == "spread":
            extra = self.output_padding
            return [(s - 1 - b, s - 1 - e + o) for s, (b, e), o in zip(spans, pads, extra, strict=True)]
        if not self.auto_pad.startswith("SAME"):
            return pads
        found = []
        for size, span, stride in zip(sizes, spans, self.strides, strict=True):
            total = max((ceil(size / stride) - 1) * stride + span - size, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return found


class Patches:
    """The rows of one batch, copied a block at a time.

    Args:
        view: [*positions, *row] of any strides.
        leading: how many axes are positions.
        group: convolution groups; the last axis holds the channels of all of them.
    """

    def __init__(self, view: Array, leading: int, group: int = 1) -> None:
        self.view, self.group = view, group
        self.positions = view.shape[:leading]
        self.count = prod(self.positions)

    def take(self, rows: Array) -> Array:
        """Some rows by their flat index, as [group, rows, in] float32."""
        picked = self.view[np.unravel_index(rows, self.positions)]
        parts = picked.reshape(len(rows), -1, self.group, picked.shape[-1] // self.group)
        return parts.transpose(2, 0, 1, 3).reshape(self.group, len(rows), -1).astype(np.float32, copy=False)


# -- geometry ----------------------------------------------------------------------------------------------------------


def _conv(node: Node, weight: Weight, shape: tuple[int, ...]) -> LayerInputs:
    """Conv: W [M, C / group, k...]."""
    rank = len(shape) - 2
    return LayerInputs(
        0,
        "patches",
        prod(shape[1:]),
        weight.group,
        shape[2:],
        _ints(node, "strides", 1, rank),
        _ints(node, "dilations", 1, rank),
        (0,) * 2 * rank if _auto_pad(node) != "NOTSET" else _ints(node, "pads", 0, 2 * rank),
        _auto_pad(node),
    )


def _deconv(node: Node, weight: Weight, shape: tuple[int, ...]) -> LayerInputs | str:
    """ConvTranspose: W [C, M / group, k...]."""
    rank = len(shape) - 2
    if weight.group != 1:
        return "a ConvTranspose with groups is not measured"
    if _auto_pad(node) not in ("NOTSET", "VALID") or "output_shape" in node.attrs:
        return "a ConvTranspose whose padding follows from output_shape or auto_pad is not measured"
    return LayerInputs(
        0,
        "spread",
        shape[0] * prod(shape[2:]),
        1,
        shape[2:],
        _ints(node, "strides", 1, rank),
        _ints(node, "dilations", 1, rank),
        (0,) * 2 * rank if _auto_pad(node) != "NOTSET" else _ints(node, "pads", 0, 2 * rank),
        output_padding=_ints(node, "output_padding", 0, rank),
    )


def _ints(node: Node, name: str, default: int, count: int) -> tuple[int, ...]:
    found = tuple(int(v) for v in node.attrs.get(name) or ())
    return found or (default,) * count


def _auto_pad(node: Node) -> str:
    value = node.attrs.get("auto_pad", "NOTSET")
    return value.decode() if isinstance(value, bytes) else str(value)


def _spread(x: Array, strides: tuple[int, ...]) -> Array:
    """[n, *sizes, c] with stride - 1 zeros between neighbours along each spatial axis."""
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[1:-1], strides, strict=True)]
    wide = np.zeros((x.shape[0], *sizes, x.shape[-1]), x.dtype)
    wide[(slice(None), *(slice(None, None, s) for s in strides))] = x
    return wide


def _padded(x: Array, pads: list[tuple[int, int]]) -> Array:
    """[n, *sizes, c] with zeros added around, channels last in memory too; negative pads cut off."""
    if not any(pair != (0, 0) for pair in pads):
        return x
    cut = [slice(max(-b, 0), size - max(-e, 0)) for (b, e), size in zip(pads, x.shape[1:-1], strict=True)]
    inner = x[(slice(None), *cut)]
    sizes = [size + max(b, 0) + max(e, 0) for (b, e), size in zip(pads, inner.shape[1:-1], strict=True)]
    wide = np.zeros((x.shape[0], *sizes, x.shape[-1]), x.dtype)
    place = [slice(max(b, 0), max(b, 0) + size) for (b, _), size in zip(pads, inner.shape[1:-1], strict=True)]
    wide[(slice(None), *place)] = inner
    return wide
