"""Operators that gather values along axes: sums, means, extremes, places of extremes, running sums."""

from __future__ import annotations

from functools import partial

from onnxcomp.graph.coupling.flow import Axes, Step, positive
from onnxcomp.ops import zeros
from onnxcomp.ops.gradients import reductions as reductions_forms
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.record import OpFacts


def reduce(step: Step) -> None:
    """The reduced axes end; the others pass."""
    for labels in reduce_sum(step):
        step.inexact(labels, f"{step.node} counts what is zero too")


def reduce_sum(step: Step) -> Axes:
    """The reduced axes are summed up, where a zero adds nothing; the others pass. Gives the labels of the reduced."""
    axes = step.axes(0)
    given = step.ints("axes", 1)
    if given is None and step.has(1):
        step.close_axes(0, f"the axes of {step.node} are computed")
        return []
    empty_means_all = not step.attr("noop_with_empty_axes", 0)
    rank = len(axes)
    reduced = {positive(a, rank) for a in given} if given else (set(range(rank)) if empty_means_all else set())
    if step.attr("keepdims", 1):
        step.emit([None if a in reduced else labels for a, labels in enumerate(axes)])
    else:
        step.emit([labels for a, labels in enumerate(axes) if a not in reduced])
    return [axes[axis] for axis in sorted(reduced)]


def sums(step: Step) -> None:
    """ReduceSum and others to which a zero adds nothing."""
    reduce_sum(step)


def along_axis(step: Step) -> None:
    """Softmax and others that look along one axis: it stays; the others pass."""
    axes = step.axes(0)
    flattens = step.node.op in ("Softmax", "LogSoftmax", "Hardmax") and step.opset < 13
    value = step.value(1) if step.node.op == "CumSum" else None
    if step.node.op == "CumSum" and value is None:
        step.close_axes(0, f"the axis of {step.node} is computed")
        return
    default = 1 if flattens else 0 if step.node.op.startswith("Arg") else -1
    axis = positive(int(step.attr("axis", default) if value is None else value.reshape(-1)[0]), len(axes))
    closed = range(axis, len(axes)) if flattens else [axis]
    for a in closed:
        step.close(axes[a])
        axes[a] = None
    if step.node.op.startswith("Arg") and not step.attr("keepdims", 1):
        del axes[axis]
    for index in range(len(step.node.outputs)):
        step.emit(axes, index)


_sum = partial(OpFacts, shape_ports=(1,), coupling=sums, zeros=zeros.kept, sums="zeros")

RECORDS = (
    _sum("ReduceL1", gradient=reductions_forms.absolute_sum),
    _sum("ReduceL2", gradient=reductions_forms.no_keep),
    _sum("ReduceSum", gradient=reductions_forms.plain),
    _sum("ReduceSumSquare", gradient=reductions_forms.square_sum),
    OpFacts("ReduceMean", gradient=reductions_forms.plain, shape_ports=(1,), coupling=reduce, zeros=zeros.kept),
    OpFacts(
        "ReduceMax",
        gradient=reductions_forms.extreme(1),
        moves_data=True,
        shape_ports=(1,),
        coupling=reduce,
        zeros=zeros.kept,
    ),
    OpFacts(
        "ReduceMin",
        gradient=reductions_forms.extreme(0),
        moves_data=True,
        shape_ports=(1,),
        coupling=reduce,
        zeros=zeros.kept,
    ),
    OpFacts("ReduceProd", gradient=reductions_forms.product, shape_ports=(1,), coupling=reduce, zeros=zeros.kept),
    OpFacts("ReduceLogSum", gradient=reductions_forms.log_sum, shape_ports=(1,), coupling=reduce),
    OpFacts("ReduceLogSumExp", gradient=reductions_forms.no_keep, shape_ports=(1,), coupling=reduce),
    OpFacts("ArgMax", coupling=along_axis),
    OpFacts("ArgMin", coupling=along_axis),
    OpFacts("CumSum", gradient=reductions_forms.running_sum, shape_ports=(1,), coupling=along_axis, zeros=zeros.kept),
    OpFacts("TopK", gradient=keep, shape_ports=(1,), coupling=along_axis),
)
