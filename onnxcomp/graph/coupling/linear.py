"""Rules of operators that multiply with weights: convolutions, matrix products, recurrent cells, and normalizations."""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.coupling.elementwise import broadcast
from onnxcomp.graph.coupling.flow import Axes, Kept, Labels, Rule, Step, positive


def conv(step: Step) -> None:
    """Conv: X [N, C, ...], W [M, C / group, k...], B [M]; FusedConv adds Z [N, M, ...]."""
    group = int(step.attr("group", 1))
    data, weight = step.axes(0), step.axes(1)
    sizes = step.sizes(1)
    channels = data[1]
    out = weight[0]
    if group == 1:
        if sizes[1] != 1 or channels is not None:
            step.tie(channels, weight[1])
    elif sizes[1] == 1:
        out = _depthwise(step, group, channels, out)
    else:
        out = _grouped(step, group, channels, weight[1], out)
    _fixed(step, [*data[2:], *weight[2:]])
    if step.has(2):
        out = step.tie(out, step.axes(2)[0])
    if step.has(3):
        out = step.tie(out, step.axes(3)[1])
    step.emit([data[0], out, *[None] * (len(data) - 2)])


def _depthwise(step: Step, group: int, channels: Labels | None, out: Labels | None) -> Labels | None:
    """Each input channel makes its own block of outputs: it leaves with them, and `group` counts those that stay."""
    if out is None or channels is None:
        step.tie(channels, out)
        return None
    blocks = step.together(out.reshape(group, -1))
    step.tie(channels, blocks)
    _count_groups(step, channels)
    return out


def _count_groups(step: Step, channels: Labels) -> None:
    def recount(kept: Kept) -> None:
        step.node.attrs["group"] = kept.count(channels)

    step.edit(recount, channels)


def _grouped(
    step: Step, group: int, channels: Labels | None, inner: Labels | None, out: Labels | None
) -> Labels | None:
    """Every group loses the same places, so that groups stay equal."""
    if channels is None:
        step.close(inner, f"it meets a fixed dimension in {step.node}")
    else:
        step.tie(step.together(channels.reshape(group, -1).T), inner)
    if out is not None:
        step.together(out.reshape(group, -1).T)
    return out


def conv_transpose(step: Step) -> None:
    """ConvTranspose: X [N, C, ...], W [C, M / group, k...], B [M]."""
    group = int(step.attr("group", 1))
    data, weight = step.axes(0), step.axes(1)
    channels, out = data[1], weight[1]
    if channels is not None or weight[0] is not None:
        channels = step.tie(channels, weight[0])
    if group > 1 and step.sizes(0)[1] == group:  # one input channel a group, which leaves with its outputs
        step.close(out)
        block = int(step.sizes(1)[1] or 1)
        out = None if channels is None else np.repeat(channels, block)
        if channels is not None:
            _count_groups(step, channels)
    elif group > 1:
        if channels is not None:
            step.together(channels.reshape(group, -1).T)
        out = None if out is None else np.tile(out, group)
    _fixed(step, [*data[2:], *weight[2:]])
    if step.has(2):
        out = step.tie(out, step.axes(2)[0])
    step.emit([data[0], out, *[None] * (len(data) - 2)])


def gemm(step: Step) -> None:
    """Gemm: A [M, K], B [K, N], either turned by transA, transB; C broadcast to [M, N]."""
    left, right = step.axes(0), step.axes(1)
    if step.attr("transA", 0):
        left = left[::-1]
    if step.attr("transB", 0):
        right = right[::-1]
    if left[1] is not None or right[0] is not None:
        step.tie(left[1], right[0])
    out: Axes = [left[0], right[1]]
    if step.has(2):
        added, sizes = step.axes(2), step.sizes(2)
        for axis in range(-len(added), 0):
            if sizes[axis] != 1:
                out[axis] = step.tie(out[axis], added[axis])
    step.emit(out)


def matmul(step: Step) -> None:
    """MatMul: [..., M, K] x [..., K, N], leading axes broadcast; a vector has only K."""
    left, right = step.axes(0), step.axes(1)
    inner = right[-2] if len(right) > 1 else right[-1]
    if left[-1] is not None or inner is not None:
        step.tie(left[-1], inner)
    batch: Axes = []
    sides = [(left[:-2], step.sizes(0)[:-2]), (right[:-2], step.sizes(1)[:-2])]
    for axis in range(-max(len(axes) for axes, _ in sides), 0):
        parts = [(axes[axis], sizes[axis]) for axes, sizes in sides if len(axes) >= -axis]
        batch.append(step.join([labels for labels, size in parts if size != 1]))
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    step.emit([*batch, *rows, *columns])


def recurrent(step: Step) -> None:
    """LSTM, GRU, RNN: X [S, B, I]; W [D, gates * H, I]; R [D, gates * H, H]; hidden units leave in both directions."""
    data, weight, again = step.axes(0), step.axes(1), step.axes(2)
    step.tie(data[2], weight[2])
    hidden = again[2]
    if hidden is None:
        step.close(weight[1])
        step.close(again[1])
    else:
        size = len(hidden)
        for port in (1, 2, 3, 7):  # W, R, B, P: blocks of H along their second axis
            labels = step.axes(port)[1] if step.has(port) else None
            if labels is not None:
                step.tie(hidden, step.together(labels.reshape(-1, size).T))
        for port in (5, 6):
            if step.has(port):
                step.tie(hidden, step.axes(port)[2])

        def recount(kept: Kept) -> None:
            step.node.attrs["hidden_size"] = kept.count(hidden)

        step.edit(recount, hidden)
    _fixed(step, data[:2])
    for port in (1, 2, 3, 5, 6, 7):
        if step.has(port):
            _fixed(step, [step.axes(port)[0], *(step.axes(port)[1:2] if port in (5, 6) else [])])
    for index in range(3):
        step.emit([None, None, None, hidden] if index == 0 else [None, None, hidden], index)


def batch_norm(step: Step) -> None:
    """BatchNormalization: scale, bias, mean and variance by channel."""
    axes = step.axes(0)
    _by_channel(step, axes, range(1, 5))
    step.emit(axes)


def instance_norm(step: Step) -> None:
    """InstanceNormalization: every channel by itself."""
    axes = step.axes(0)
    _by_channel(step, axes, range(1, 3))
    _fixed(step, axes[2:])
    step.emit([*axes[:2], *[None] * (len(axes) - 2)])


def _by_channel(step: Step, axes: Axes, ports: range) -> None:
    for port in ports:
        if axes[1] is not None or step.axes(port)[0] is not None:
            axes[1] = step.tie(axes[1], step.axes(port)[0])


def group_norm(step: Step) -> None:
    """GroupNormalization: whole groups leave; scale and bias by channel (opset 21) or by group (18)."""
    axes = step.axes(0)
    groups = int(step.attr("num_groups", 1))
    channels = axes[1]
    if channels is None:
        for port in (1, 2):
            step.close_axes(port, f"it meets a fixed dimension in {step.node}")
        step.emit(axes)
        return
    whole = step.together(channels.reshape(groups, -1))
    for port in (1, 2):
        scale = step.axes(port)[0]
        if scale is not None:
            step.tie(channels if len(scale) == len(channels) else whole, scale)

    def recount(kept: Kept) -> None:
        step.node.attrs["num_groups"] = kept.count(whole)

    step.edit(recount, whole)
    _fixed(step, axes[2:])
    step.emit([*axes[:2], *[None] * (len(axes) - 2)])


def layer_norm(step: Step) -> None:
    """LayerNormalization, RMSNormalization: statistics over all axes from `axis` on."""
    axes = step.axes(0)
    first = positive(int(step.attr("axis", -1)), len(axes))
    for labels in axes[first:]:
        step.inexact(labels, f"{step.node} takes its statistics over it")
    joined = broadcast(step, [port for port in range(min(3, len(step.node.inputs))) if step.has(port)])
    step.emit(joined)
    for index in (1, 2):
        step.emit([*axes[:first], *[None] * (len(axes) - first)], index)


def skip_layer_norm(step: Step) -> None:
    """com.microsoft SkipLayerNormalization: (input + skip + bias) normalized over the last axis, scale, shift."""
    joined = broadcast(step, [port for port in range(len(step.node.inputs)) if step.has(port)])
    step.inexact(joined[-1], f"{step.node} takes its statistics over it")
    step.emit(joined)
    step.emit(joined, 3)


def mean_variance(step: Step) -> None:
    """MeanVarianceNormalization: statistics over `axes`, by default all but channels; zeros divided by their spread."""
    axes = step.axes(0)
    for labels in axes:
        step.inexact(labels, f"{step.node} divides by the spread of what it holds")
    step.emit(axes)


def _fixed(step: Step, parts: Axes) -> None:
    for labels in parts:
        step.close(labels)


RULES: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "MeanVarianceNormalization": mean_variance,
}
MICROSOFT_RULES: dict[str, Rule] = {
    "FusedConv": conv,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_layer_norm,
}
