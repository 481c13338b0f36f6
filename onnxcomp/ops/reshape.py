"""Operators that give the same values another shape: what a merged or split axis carries, index by index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import ModelError
from onnxcomp.graph.coupling.flow import Axes, Kept, Labels, Step, UnknownShapeError, positive, set_ints
from onnxcomp.graph.ir import Dim, Node
from onnxcomp.graph.noops import Known, Same, first, same_shape
from onnxcomp.graph.partial import axes_of
from onnxcomp.ops import zeros
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.movement import patch_elements
from onnxcomp.ops.record import OpFacts


@dataclass(frozen=True)
class Block:
    """Consecutive input axes that hold the same values as consecutive output axes."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def align(before: tuple[int, ...], after: tuple[int, ...]) -> list[Block] | None:
    """The smallest blocks of equal size, in order; None where the sizes do not fit."""
    blocks: list[Block] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, second, left, right = i, j, 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif right < left and j < len(after):
                right, j = right * after[j], j + 1
            else:
                return None
        blocks.append(Block(tuple(range(first, i)), tuple(range(second, j))))
    return blocks


def reshape(step: Step) -> None:
    """Reshape, Flatten: merged axes carry the labels of the one that had them, split axes hand them to one part."""
    axes = step.axes(0)
    out = step.out_sizes()
    if all(labels is None for labels in axes):
        if out is not None:
            step.emit([None] * len(out))
        return
    before = step.sizes(0)
    if out is None or any(d is None for d in (*before, *out)):
        raise UnknownShapeError(f"sizes around {step.node} are unknown")
    sizes = tuple(d or 0 for d in out)
    blocks = align(tuple(d or 0 for d in before), sizes)
    if blocks is None:
        raise UnknownShapeError(f"{step.node} mixes axes in a way that sizes do not tell")
    result: Axes = [None] * len(sizes)
    for block in blocks:
        labels = _merged(step, axes, tuple(d or 0 for d in before), block)
        if labels is not None:
            axis = _live(step, labels, [sizes[a] for a in block.after])
            rows = np.moveaxis(labels.reshape([sizes[a] for a in block.after]), axis, 0)
            result[block.after[axis]] = step.together(rows.reshape(len(rows), -1))
    if step.node.op == "Reshape":
        _retarget(step, axes, result, sizes, blocks)
    step.emit(result)


def _merged(step: Step, axes: Axes, sizes: tuple[int, ...], block: Block) -> Labels | None:
    """The labels of a block, flattened; of several labelled axes the largest keeps its labels."""
    labelled = [a for a in block.before if axes[a] is not None]
    if not labelled:
        return None
    keep = max(labelled, key=lambda a: sizes[a])
    for a in labelled:
        if a != keep:
            step.close(axes[a], f"{step.node} merges it with another prunable axis")
    shape = [sizes[a] for a in block.before]
    labels = axes[keep]
    assert labels is not None
    spread = labels.reshape([-1 if a == keep else 1 for a in block.before])
    return np.ascontiguousarray(np.broadcast_to(spread, shape)).reshape(-1)


def _live(step: Step, labels: Labels, sizes: list[int]) -> int:
    """Which part of a split axis carries the labels: one that they follow already, else the one chosen."""
    parts = [a for a, size in enumerate(sizes) if size > 1]
    if len(parts) < 2:
        return parts[0] if parts else 0
    table = labels.reshape(sizes)
    for a in parts:
        rows = np.moveaxis(table, a, 0).reshape(sizes[a], -1)
        if (rows == rows[:, :1]).all():
            return a
    step.flow.splits[step.node] = (labels, len(parts))
    return parts[step.flow.choices.get(step.node, 0) % len(parts)]


def _retarget(step: Step, axes: Axes, result: Axes, sizes: tuple[int, ...], blocks: list[Block]) -> None:
    """Plan the new target: numbers, 0 for a copied size, -1 for one free size, and computed sizes where more are."""
    asked = step.ints("shape", 1)
    plan: list[Labels | int | None]  # labels to count, a number, or None for -1
    if asked is not None and not step.attr("allowzero", 0):
        # what the file leaves open stays so: which sizes it depends on, those of one sample do not tell
        plan = [None if d < 0 else result[a] if d and result[a] is not None else d for a, d in enumerate(asked)]
    else:
        plan = _planned(step, result, sizes, blocks)
    open_ends = [a for a, entry in enumerate(plan) if entry is None]
    labelled = [a for a in open_ends if result[a] is not None]
    if len(labelled) > 1:
        for axis in axes:
            step.close(axis, f"several sizes of {step.node} are known at run time only")
        return

    def number(kept: Kept, entry: Labels | int | None) -> int:
        return -1 if entry is None else entry if isinstance(entry, int) else kept.count(entry)

    def rewrite(kept: Kept) -> None:
        step.node.attrs.pop("allowzero", None)
        if len(open_ends) <= 1:
            set_ints(kept, step.node, "shape", 1, [number(kept, entry) for entry in plan])
            return
        wild = labelled or open_ends[:1]
        known = {a: number(kept, entry) for a, entry in enumerate(plan) if entry is not None or a in wild}
        patch_elements(kept, step, 1, known, len(plan))

    step.edit(rewrite, *axes)


def _planned(step: Step, result: Axes, sizes: tuple[int, ...], blocks: list[Block]) -> list[Labels | int | None]:
    """What to ask for where the sizes that a file asks for are computed."""
    block_of = {a: block for block in blocks for a in block.after}
    plan: list[Labels | int | None] = []
    for a, size in enumerate(sizes):
        block, labels = block_of[a], result[a]
        free = any(step.moves_freely(0, b) for b in block.before)  # of heads times batch, too
        if labels is not None:
            plan.append(None if free else labels)
        elif not free:
            plan.append(size)
        elif block.before == (a,) and block.after == (a,):
            plan.append(0)
        else:
            plan.append(None)
    return plan


def squeeze(step: Step) -> None:
    """Axes of size 1 go."""
    axes, sizes = step.axes(0), step.sizes(0)
    given = step.ints("axes", 1)
    if given is None and step.has(1):
        raise UnknownShapeError(f"the axes of {step.node} are computed")
    if given is None:
        if any(d is None for d in sizes):
            raise UnknownShapeError(f"sizes around {step.node} are unknown")
        given = [a for a, d in enumerate(sizes) if d == 1]
    gone = {positive(a, len(axes)) for a in given}
    step.emit([labels for a, labels in enumerate(axes) if a not in gone])


def unsqueeze(step: Step) -> None:
    """Axes of size 1 come."""
    axes, given = step.axes(0), step.ints("axes", 1)
    if given is None:
        raise UnknownShapeError(f"the axes of {step.node} are computed")
    rank = len(axes) + len(given)
    new = {positive(a, rank) for a in given}
    if len(new) != len(given) or not new <= set(range(rank)):
        wrong = f"axes {list(given)} are not {len(given)} different ones of {rank}"
        raise ModelError(wrong, where=str(step.node), do="export the model again")
    rest = iter(axes)
    step.emit([None if a in new else next(rest) for a in range(rank)])


def _reshape_keeps(node: Node, known: Known) -> bool:
    shape = known.shapes.shape(node.inputs[0])
    if same_shape(shape, known.shapes.shape(node.outputs[0])):
        return True
    target = known.values(node, 1) if known.opset >= 5 else np.asarray(node.attrs.get("shape", []))
    if shape is None or target is None or node.attrs.get("allowzero", 0) or len(target) != len(shape):
        return False
    wanted: list[Dim] = [d if t == 0 else None if t < 0 else int(t) for t, d in zip(target, shape, strict=True)]
    free = [i for i, t in enumerate(target) if t != 0 and (not isinstance(shape[i], int) or wanted[i] != shape[i])]
    return len(free) <= 1 and all(t < 0 for t in target[free]) and 0 not in shape


def _reshaped(node: Node, known: Known) -> Same | None:
    if same_shape(known.shapes.shape(node.inputs[0]), known.shapes.shape(node.outputs[0])):
        return Same(node.inputs[0], "keeps the shape")
    opposite = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(node.op)
    maker = node.inputs[0].producer
    if maker is None or maker.op != opposite or not known.fixed(maker):
        return None
    mine, theirs = axes_of(node, known.opset), axes_of(maker, known.opset)
    if mine == theirs and mine[0] and mine[1] is not None:
        return Same(maker.inputs[0], f"undoes {maker}")
    return None


RECORDS = (
    OpFacts(
        "Reshape",
        gradient=keep,
        moves_data=True,
        shape_ports=(1,),
        coupling=reshape,
        zeros=zeros.kept,
        noop=first("keeps the shape", _reshape_keeps),
    ),
    OpFacts("Flatten", gradient=keep, moves_data=True, coupling=reshape, zeros=zeros.kept, noop=_reshaped),
    OpFacts(
        "Squeeze", gradient=keep, moves_data=True, shape_ports=(1,), coupling=squeeze, zeros=zeros.kept, noop=_reshaped
    ),
    OpFacts(
        "Unsqueeze",
        gradient=keep,
        moves_data=True,
        shape_ports=(1,),
        coupling=unsqueeze,
        zeros=zeros.kept,
        noop=_reshaped,
    ),
)
