"""Operators that divide by the spread, the sum or the norm of what they hold."""

from __future__ import annotations

from onnxcomp.graph.coupling.flow import Axes, Kept, Step, positive
from onnxcomp.graph.ir import MICROSOFT_DOMAIN
from onnxcomp.ops import zeros
from onnxcomp.ops.broadcasting import broadcast, close_all
from onnxcomp.ops.record import OpFacts
from onnxcomp.ops.reductions import along_axis


def batch_norm(step: Step) -> None:
    """BatchNormalization: scale, bias, mean and variance by channel."""
    axes = step.axes(0)
    _by_channel(step, axes, range(1, 5))
    step.emit(axes)


def instance_norm(step: Step) -> None:
    """InstanceNormalization: every channel by itself."""
    axes = step.axes(0)
    _by_channel(step, axes, range(1, 3))
    close_all(step, axes[2:])
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
    close_all(step, axes[2:])
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


def lp_normalize(step: Step) -> None:
    """LpNormalization: a zero adds nothing to the norm."""
    step.emit(step.axes(0))


def neighbours(step: Step) -> None:
    """LRN: divided by what stands in neighbouring channels; these change when one between them leaves."""
    axes = step.axes(0)
    step.inexact(axes[1], f"{step.node} looks at neighbouring channels")
    step.emit(axes)


RECORDS = (
    OpFacts(
        "BatchNormalization",
        vector_ports=(1, 2),
        statistics_ports=(3, 4),
        coupling=batch_norm,
        zeros=zeros.scaled_and_shifted,
    ),
    OpFacts("InstanceNormalization", vector_ports=(1, 2), coupling=instance_norm),
    OpFacts("GroupNormalization", vector_ports=(1, 2), coupling=group_norm),
    OpFacts("LayerNormalization", vector_ports=(1, 2), coupling=layer_norm),
    OpFacts("RMSNormalization", vector_ports=(1,), coupling=layer_norm),
    OpFacts("SimplifiedLayerNormalization", vector_ports=(1,)),
    OpFacts("SkipLayerNormalization", MICROSOFT_DOMAIN, vector_ports=(2, 3, 4), coupling=skip_layer_norm),
    OpFacts("SkipSimplifiedLayerNormalization", MICROSOFT_DOMAIN, vector_ports=(2, 3), coupling=skip_layer_norm),
    OpFacts("MeanVarianceNormalization", coupling=mean_variance),
    OpFacts("LRN", coupling=neighbours),
    OpFacts("LpNormalization", coupling=lp_normalize, sums="norm"),
    OpFacts("Softmax", coupling=along_axis),
    OpFacts("LogSoftmax", coupling=along_axis),
    OpFacts("Hardmax", coupling=along_axis),
)
