"""Convolutions: a kernel over channels and places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.errors import ModelError
from onnxcomp.graph.coupling.flow import Axes, Kept, Labels, Step, UnknownShapeError
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops.broadcasting import close_all
from onnxcomp.ops.gradients import linear as linear_forms
from onnxcomp.ops.gradients import microsoft as microsoft_forms
from onnxcomp.ops.record import IntegerForm, OpFacts, Reads, Weight, elements, volume
from onnxcomp.ops.shapes import inferred_as

LEAST_RANK = 3  # of an image and of a kernel: samples or outputs, channels, one axis of places


def conv_weights(node: Node) -> tuple[Weight, ...]:
    """Conv: W [M, C/group, k...]; kernels run over k... first and channels last. FusedConv may go on behind it."""
    bare = not node.attrs.get("activation") and node.input(3) is None
    return _kernel(node, 0, 1, "patches", bare=bare)


def conv_transpose_weights(node: Node) -> tuple[Weight, ...]:
    """ConvTranspose: W [C, M/group, k...]."""
    return _kernel(node, 1, 0, "spread")


def _kernel(node: Node, out: int, inner: int, reads: Reads, *, bare: bool = True) -> tuple[Weight, ...]:
    shape = node.inputs[1].shape
    rank = 4 if shape is None else len(shape)
    if rank < LEAST_RANK:
        return ()
    axes = (*range(2, rank), inner)
    return (Weight(1, out_axis=out, in_axes=axes, group=groups_of(node), bias=2, reads=reads, rank=rank, bare=bare),)


def groups_of(node: Node) -> int:
    """Into how many groups a convolution parts its channels; inference does not look at that.

    Raises:
        ModelError: no such number parts the kernels.
    """
    group = int(node.attrs.get("group", 1))
    kernels = next(iter(node.inputs[1].shape or ()), None)
    if group < 1 or (isinstance(kernels, int) and kernels % group):
        raise ModelError(f"{kernels} kernels do not part into {group} groups", where=str(node), do="export it again")
    return group


def conv_macs(node: Node, shapes: Shapes) -> int:
    """One multiply-accumulate a kernel element and output position."""
    kernel, out = shapes.static(node.inputs[1]), shapes.static(node.outputs[0])
    if kernel is None or out is None:
        return 0
    return volume(out[:1]) * volume(kernel) * volume(out[2:])


def conv_transpose_macs(node: Node, shapes: Shapes) -> int:
    """One multiply-accumulate a kernel element and input position."""
    kernel, data = shapes.static(node.inputs[1]), shapes.static(node.inputs[0])
    if kernel is None or data is None:
        return 0
    return volume(data[:1]) * volume(kernel) * volume(data[2:])


def qlinear_conv_macs(node: Node, shapes: Shapes) -> int:
    """As Conv, with the weight at port 3."""
    kernel, out = shapes.static(node.inputs[3]), shapes.static(node.outputs[0])
    return 0 if kernel is None or out is None else volume(out[:1]) * volume(kernel) * volume(out[2:])


def _ports(step: Step) -> tuple[Axes, Axes]:
    """Labels of the image and of the kernel.

    Raises:
        UnknownShapeError: a broken model convolves what has no places.
    """
    data, weight = step.axes(0), step.axes(1)
    if min(len(data), len(weight)) < LEAST_RANK:
        raise UnknownShapeError(f"{step.node} reads a tensor without places")
    return data, weight


def conv(step: Step) -> None:
    """Conv: X [N, C, ...], W [M, C / group, k...], B [M]; FusedConv adds Z [N, M, ...]."""
    group = groups_of(step.node)
    data, weight = _ports(step)
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
    close_all(step, [*data[2:], *weight[2:]])
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
    group = groups_of(step.node)
    data, weight = _ports(step)
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
    close_all(step, [*data[2:], *weight[2:]])
    if step.has(2):
        out = step.tie(out, step.axes(2)[0])
    step.emit([data[0], out, *[None] * (len(data) - 2)])


def fused_conv_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """As the Conv in it."""
    return [inferred_as(node, "Conv", 2, shapes)]


RECORDS = (
    OpFacts("Conv", gradient=linear_forms.conv, weights=conv_weights, macs=conv_macs, coupling=conv),
    OpFacts(
        "ConvTranspose",
        gradient=linear_forms.conv_transpose,
        weights=conv_transpose_weights,
        macs=conv_transpose_macs,
        coupling=conv_transpose,
    ),
    OpFacts(
        "FusedConv",
        MICROSOFT_DOMAIN,
        gradient=microsoft_forms.fused_conv,
        half=((0, 1, 2, 3), (0,)),
        weights=conv_weights,
        macs=conv_macs,
        shape=fused_conv_types,
        coupling=conv,
    ),
    OpFacts(
        "ConvInteger",
        macs=conv_macs,
        quantization_ports=(2, 3),
        integers=IntegerForm("Conv", 0, 1, zero=3),
        packed={1: elements},
    ),
    OpFacts(
        "QLinearConv",
        macs=qlinear_conv_macs,
        quantization_ports=(1, 2, 4, 5, 6, 7),
        integers=IntegerForm("Conv", 0, 3, 4, 5, 8, (1, 2), (6, 7)),
        packed={3: elements, 8: elements},
    ),
)
