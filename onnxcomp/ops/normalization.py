"""Operators that divide by the spread, the sum or the norm of what they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.graph.coupling.flow import Axes, Kept, Step, positive
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops import zeros
from onnxcomp.ops.broadcasting import broadcast, close_all
from onnxcomp.ops.gradients import activations as activations_forms
from onnxcomp.ops.gradients import microsoft as microsoft_forms
from onnxcomp.ops.gradients import normalization as normalization_forms
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.record import OpFacts, ZeroView
from onnxcomp.ops.reductions import along_axis
from onnxcomp.ops.shapes import as_first, like


def batch_norm(step: Step) -> None:
    """BatchNormalization: scale, bias, mean and variance by channel, and the statistics that it hands out."""
    axes = step.axes(0)
    _by_channel(step, axes, range(1, 5))
    step.emit(axes)
    for index in range(1, len(step.node.outputs)):
        step.emit([axes[1]], index)


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


def layer_norm_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """SimplifiedLayerNormalization: as its input, and the inverse spread of each row."""
    found = like(node, shapes)
    if found is None or found.shape is None:
        return [None]
    rank = len(found.shape)
    first = positive(int(node.attrs.get("axis", -1)), rank)
    spread = TensorType(np.dtype(np.float32), (*found.shape[:first], *[1] * (rank - first)))
    return [found, spread]


def skip_layer_norm_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """As its input; then mean and inverse spread of each row; then the sum."""
    found = like(node, shapes)
    if found is None or found.shape is None:
        return [None]
    spread = TensorType(np.dtype(np.float32), (*found.shape[:-1], 1))
    return [found, spread, spread, found]


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


def _shifted(view: ZeroView) -> set[int]:
    """InstanceNormalization: a channel of zeros, or of scale zero, gives its shift."""
    return view.zero(2) & (view.zero(0) | view.zero(1))


RECORDS = (
    OpFacts(
        "BatchNormalization",
        gradient=normalization_forms.batch_norm,
        vector_ports=(1, 2),
        statistics_ports=(3, 4),
        coupling=batch_norm,
        zeros=zeros.scaled_and_shifted,
    ),
    OpFacts(
        "InstanceNormalization",
        gradient=normalization_forms.instance_norm,
        vector_ports=(1, 2),
        coupling=instance_norm,
        zeros=_shifted,
    ),
    OpFacts(
        "GroupNormalization",
        gradient=normalization_forms.group_norm,
        vector_ports=(1, 2),
        shape=as_first,
        coupling=group_norm,
    ),
    OpFacts("LayerNormalization", gradient=normalization_forms.layer_norm, vector_ports=(1, 2), coupling=layer_norm),
    OpFacts("RMSNormalization", gradient=normalization_forms.rms_norm, vector_ports=(1,), coupling=layer_norm),
    OpFacts(
        "SimplifiedLayerNormalization",
        gradient=normalization_forms.rms_norm,
        half=((0, 1), (0,)),
        vector_ports=(1,),
        shape=layer_norm_types,
        coupling=layer_norm,
    ),
    OpFacts(
        "SkipLayerNormalization",
        MICROSOFT_DOMAIN,
        gradient=microsoft_forms.skip_layer_norm,
        half=((0, 1, 2, 3, 4), (0, 3)),
        vector_ports=(2, 3, 4),
        shape=skip_layer_norm_types,
        coupling=skip_layer_norm,
    ),
    OpFacts(
        "SkipSimplifiedLayerNormalization",
        MICROSOFT_DOMAIN,
        gradient=microsoft_forms.skip_rms_norm,
        half=((0, 1, 2, 3), (0, 3)),
        vector_ports=(2, 3),
        shape=skip_layer_norm_types,
        coupling=skip_layer_norm,
    ),
    OpFacts(
        "MeanVarianceNormalization", gradient=normalization_forms.mean_variance, shape=as_first, coupling=mean_variance
    ),
    OpFacts("LRN", gradient=normalization_forms.local_response, coupling=neighbours, zeros=zeros.kept),
    OpFacts(
        "LpNormalization", gradient=normalization_forms.lp_norm, coupling=lp_normalize, zeros=zeros.kept, sums="norm"
    ),
    OpFacts("Softmax", gradient=keep, coupling=along_axis),
    OpFacts("LogSoftmax", gradient=keep, coupling=along_axis),
    OpFacts("Hardmax", gradient=activations_forms.constant_steps, coupling=along_axis),
)
