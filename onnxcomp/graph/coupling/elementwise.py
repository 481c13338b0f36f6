"""Rules of operators that work element by element, with broadcasting, and of reductions, pooling and the like."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.graph.coupling.flow import Axes, Labels, Rule, Step, positive

# removing a zero changes nothing in these sums
_SUMS = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})


def broadcast(step: Step, ports: Sequence[int]) -> Axes:
    """The labels of the broadcast inputs, aligned at their last axes; inputs of size 1 have no say."""
    inputs = [(step.axes(port), step.sizes(port)) for port in ports]
    rank = max((len(axes) for axes, _ in inputs), default=0)
    result: Axes = []
    for axis in range(-rank, 0):
        parts = [(axes[axis], sizes[axis]) for axes, sizes in inputs if len(axes) >= -axis]
        result.append(step.join([labels for labels, size in parts if size != 1]))
    return result


def elementwise(step: Step) -> None:
    """Each output element depends on the input elements at its place, after broadcasting."""
    step.emit(broadcast(step, [port for port in range(len(step.node.inputs)) if step.has(port)]))


def unary(step: Step) -> None:
    """The first input, element by element; other inputs are scalars. Further outputs look like the first."""
    axes = step.axes(0)
    for index in range(len(step.node.outputs)):
        step.emit(axes, index)


def pool(step: Step) -> None:
    """[N, C, ...]: channels pass; positions of maxima count them all."""
    axes = step.axes(0)
    if step.node.output(1) is not None:
        step.close(axes[1], f"{step.node} gives positions among all channels")
    step.emit([*axes[:2], *[None] * (len(axes) - 2)])
    for labels in axes[2:]:
        step.close(labels)


def reduce(step: Step) -> None:
    """Reduced axes are summed up; the others pass."""
    axes = step.axes(0)
    given = step.ints("axes", 1)
    if given is None and step.has(1):
        step.close_axes(0, f"the axes of {step.node} are computed")
        return
    empty_means_all = not step.attr("noop_with_empty_axes", 0)
    rank = len(axes)
    reduced = {positive(a, rank) for a in given} if given else (set(range(rank)) if empty_means_all else set())
    for axis in reduced:
        if step.node.op not in _SUMS:
            step.inexact(axes[axis], f"{step.node} counts what is zero too")
    if step.attr("keepdims", 1):
        step.emit([None if a in reduced else labels for a, labels in enumerate(axes)])
    else:
        step.emit([labels for a, labels in enumerate(axes) if a not in reduced])


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


def lp_normalize(step: Step) -> None:
    """LpNormalization: a zero adds nothing to the norm."""
    step.emit(step.axes(0))


def last_two_fixed(step: Step) -> None:
    """Trilu and the like: what happens depends on the place in the last two axes."""
    axes = step.axes(0)
    for a in (-2, -1):
        step.close(axes[a])
        axes[a] = None
    step.emit(axes)


def neighbours(step: Step) -> None:
    """LRN: divided by what stands in neighbouring channels; these change when one between them leaves."""
    axes = step.axes(0)
    step.inexact(axes[1], f"{step.node} looks at neighbouring channels")
    step.emit(axes)


def einsum(step: Step) -> None:
    """One letter, one axis: equal letters are tied."""
    equation = str(step.attr("equation", "")).replace(" ", "")
    if "." in equation or "->" not in equation:
        for port in range(len(step.node.inputs)):
            step.close_axes(port, f"{step.node} has an equation with implicit axes")
        return
    left, right = equation.split("->")
    found: dict[str, Labels | None] = {}
    for port, letters in enumerate(left.split(",")):
        for letter, labels, size in zip(letters, step.axes(port), step.sizes(port), strict=True):
            if size != 1:
                found[letter] = step.tie(found[letter], labels) if letter in found else labels
    step.emit([found.get(letter) for letter in right])


def _table() -> dict[str, Rule]:
    many = (
        "Add Sub Mul Div Pow Mod Max Min Mean Sum And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where PRelu "
        "BitShift BitwiseAnd BitwiseOr BitwiseXor"
    )
    one = (
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp "
        "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu "
        "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
    )
    pools = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"
    sums = (
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum "
        "ReduceLogSumExp"
    )
    looking = "Softmax LogSoftmax Hardmax ArgMax ArgMin CumSum"
    return {
        **dict.fromkeys(many.split(), elementwise),
        **dict.fromkeys(one.split(), unary),
        **dict.fromkeys(pools.split(), pool),
        **dict.fromkeys(sums.split(), reduce),
        **dict.fromkeys(looking.split(), along_axis),
        "LpNormalization": lp_normalize,
        "Trilu": last_two_fixed,
        "LRN": neighbours,
        "Einsum": einsum,
    }


RULES: dict[str, Rule] = _table()
MICROSOFT_RULES: dict[str, Rule] = {
    "QuickGelu": unary,
    "FastGelu": elementwise,
    "BiasGelu": elementwise,
    "Gelu": unary,
}
