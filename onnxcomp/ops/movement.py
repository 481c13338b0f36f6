"""Operators that move values: Concat, Split, Slice, Pad, Transpose, Resize, Expand and the like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcomp.graph.coupling.flow import Axes, Kept, Labels, Step, UnknownShapeError, positive, set_ints
from onnxcomp.graph.ir import Array, Constant, Node, Variable
from onnxcomp.graph.noops import TO_THE_END, Known, first, one_input, permutation
from onnxcomp.graph.partial import slice_of
from onnxcomp.ops import zeros
from onnxcomp.ops.gradients import movement as movement_forms
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.record import OpFacts, ZeroView

_LOWEST = np.iinfo(np.int64).min


def transpose(step: Step) -> None:
    """Axes in another order."""
    axes = step.axes(0)
    order = step.attr("perm", None) or range(len(axes))[::-1]
    step.emit([axes[int(a)] for a in order])


def concat(step: Step) -> None:
    """Along one axis the labels stand one after another; the other axes are tied."""
    inputs = [(step.axes(port), step.sizes(port)) for port in range(len(step.node.inputs))]
    rank = len(inputs[0][0])
    along = positive(int(step.attr("axis", 1)), rank)
    result: Axes = [step.join([axes[a] for axes, _ in inputs]) if a != along else None for a in range(rank)]
    parts = [axes[along] for axes, _ in inputs]
    if any(labels is not None for labels in parts):
        joined: list[Labels] = []
        for labels, (_, sizes) in zip(parts, inputs, strict=True):
            size = sizes[along]
            if labels is None and size is None:
                raise UnknownShapeError(f"{step.node} joins parts of unknown size")
            part = step.flow.fresh(size or 0) if labels is None else labels
            if labels is None:
                step.close(part, f"it meets a fixed dimension in {step.node}")
            joined.append(part)
        result[along] = np.concatenate(joined)
    step.emit(result)


def split(step: Step) -> None:
    """Consecutive parts of one axis; their sizes are written anew."""
    axes = step.axes(0)
    axis = positive(int(step.attr("axis", 0)), len(axes))
    outputs = step.node.outputs
    labels = axes[axis]
    if labels is None:
        for index in range(len(outputs)):
            step.emit(axes, index)
        return
    size = len(labels)
    sizes = step.ints("split", 1)
    if sizes is None and (step.has(1) or "split" in step.node.attrs):
        step.close_axes(0, f"the sizes of {step.node} are computed")
        return
    if sizes is None:
        even = -(-size // len(outputs))
        sizes = [min(even, size - even * i) for i in range(len(outputs))]
    parts = np.split(labels, np.cumsum(sizes)[:-1])
    for index, part in enumerate(parts):
        if len(part) == 1:
            step.close(part, f"{step.node} cuts it out alone")
        step.emit([*axes[:axis], part, *axes[axis + 1 :]], index)

    def resize(kept: Kept) -> None:
        step.node.attrs.pop("num_outputs", None)
        values = [kept.count(part) for part in parts]
        if step.opset < 13:
            step.node.attrs["split"] = values
        else:
            set_ints(kept, step.node, "split", 1, values)

    step.edit(resize, labels)


def slice_(step: Step) -> None:
    """A regular part of some axes, from attributes (opset < 10) or inputs."""
    axes = step.axes(0)
    starts, ends = step.ints("starts", 1), step.ints("ends", 2)
    where, steps = step.ints("axes", 3), step.ints("steps", 4)
    named_axes = "axes" in step.node.attrs or step.has(3)
    if where is None and not named_axes and starts is not None:
        where = list(range(len(starts)))
    if where is None or (steps is None and step.has(4)):
        step.close_axes(0, f"where {step.node} cuts is computed")
        return
    where = [positive(a, len(axes)) for a in where]
    if starts is None or ends is None:
        for a in where:
            step.close(axes[a], f"where {step.node} cuts is computed")
            axes[a] = None
        step.emit(axes)
        return
    cut = _Slices(step, where, starts, ends, steps or [1] * len(where))
    touched = [axes[a] for a in where if axes[a] is not None]
    for position, a in enumerate(where):
        labels = axes[a]
        if labels is not None:
            part = labels[cut.chosen(position, len(labels))]
            if len(part) == 1:
                step.close(part, f"{step.node} cuts it out alone")
            axes[a] = part
    if touched:
        step.edit(cut.rewrite(step.axes(0)), *touched)
    step.emit(axes)


class _Slices:
    """The ranges of a Slice and how they look when some indices left."""

    def __init__(self, step: Step, where: list[int], starts: list[int], ends: list[int], steps: list[int]) -> None:
        self.step, self.where, self.starts, self.ends, self.steps = step, where, starts, ends, steps

    def chosen(self, position: int, size: int) -> Array:
        """Indices that one range takes of an axis."""
        start, end, stride = self.starts[position], self.ends[position], self.steps[position]
        bound = slice(start, None if stride < 0 and end < -size else end, stride)
        return np.arange(size)[bound]

    def rewrite(self, axes: Axes) -> Callable[[Kept], None]:
        """An edit that writes the ranges anew; what is no range any more becomes a Gather in front."""

        def edit(kept: Kept) -> None:
            node = self.step.node
            starts, ends, steps = list(self.starts), list(self.ends), list(self.steps)
            for position, axis in enumerate(self.where):
                labels = axes[axis]
                if labels is None:
                    continue
                mask = kept.mask(labels)
                chosen = self.chosen(position, len(labels))
                left = (np.cumsum(mask) - 1)[chosen[mask[chosen]]]
                strides = np.unique(np.diff(left))
                if len(strides) > 1:
                    _gather_before(kept, self.step, axis, left)
                    left, strides = np.arange(len(left)), np.array([1])
                stride = int(strides[0]) if len(strides) else 1
                last = int(left[-1]) + stride
                starts[position], steps[position] = int(left[0]), stride
                ends[position] = _LOWEST if last < 0 else last
            set_ints(kept, node, "starts", 1, starts)
            set_ints(kept, node, "ends", 2, ends)
            if steps != self.steps and self.step.opset >= 10:
                set_ints(kept, node, "axes", 3, self.where)
                set_ints(kept, node, "steps", 4, steps)

        return edit


def _gather_before(kept: Kept, step: Step, axis: int, indices: Array) -> None:
    node = step.node
    table = kept.graph.add_constant(f"{node.name}_indices", indices.astype(np.int64))
    made = kept.graph.add_node("Gather", [node.inputs[0], table], name=f"{node.name}_gather", attrs={"axis": axis})
    node.inputs[0] = made.outputs[0]


def pad(step: Step) -> None:
    """What a constant Pad adds along a labelled axis may leave like the rest: option-A shortcuts of ResNets."""
    axes = step.axes(0)
    rank = len(axes)
    pads = step.ints("pads", 1)
    named = step.ints("axes", 3)
    if pads is None or (named is None and step.has(3)):
        step.close_axes(0, f"how much {step.node} adds is computed")
        return
    where = [positive(a, rank) for a in named] if named is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for position, a in enumerate(where):
        before[a], after[a] = pads[position], pads[len(where) + position]
    plain = step.attr("mode", "constant") == "constant"
    added: dict[int, tuple[Labels, Labels]] = {}
    for a, labels in enumerate(axes):
        if labels is None or not (before[a] or after[a]):
            continue
        if not plain or before[a] < 0 or after[a] < 0:
            step.close(labels)
            axes[a] = None
            continue
        added[a] = step.flow.fresh(before[a]), step.flow.fresh(after[a])
        axes[a] = np.concatenate([added[a][0], labels, added[a][1]])

    def resize(kept: Kept) -> None:
        fronts, backs = list(before), list(after)
        for a, (front, back) in added.items():
            fronts[a], backs[a] = kept.count(front), kept.count(back)
        set_ints(kept, step.node, "pads", 1, [fronts[a] for a in where] + [backs[a] for a in where])

    if added:
        step.edit(resize, *(axes[a] for a in added))
    step.emit(axes)


def resize(step: Step) -> None:
    """Axes that keep their size pass; explicit sizes are written anew."""
    axes, out = step.axes(0), step.out_sizes()
    tensor = step.node.output(0)
    sizes = step.sizes(0)
    if out is None:
        raise UnknownShapeError(f"the size of {tensor.name if tensor else 'the output'} is unknown")
    for a, labels in enumerate(axes):
        if labels is not None and out[a] != sizes[a]:
            step.close(labels)
            axes[a] = None
    labelled = [a for a, labels in enumerate(axes) if labels is not None]
    if labelled and step.has(3):
        wanted, given = step.value(3), step.node.attrs.get("axes")
        where = [positive(int(a), len(axes)) for a in given] if given is not None else list(range(len(axes)))
        if not set(labelled) & set(where):
            step.emit(axes)
            return
        if wanted is None:
            _patch_sizes(step, axes, where)
        else:

            def rewrite(kept: Kept) -> None:
                values = [int(v) for v in wanted]
                for position, a in enumerate(where):
                    labels = axes[a]
                    if labels is not None:
                        values[position] = kept.count(labels)
                set_ints(kept, step.node, "sizes", 3, values)

            step.edit(rewrite, *axes)
    step.emit(axes)


def _patch_sizes(step: Step, axes: Axes, where: list[int]) -> None:
    """Computed sizes: the labelled ones are replaced where the sizes are used."""

    def rewrite(kept: Kept) -> None:
        found = [(position, axes[a]) for position, a in enumerate(where)]
        patch_elements(kept, step, 3, {p: kept.count(labels) for p, labels in found if labels is not None})

    step.edit(rewrite, *axes)


def patch_elements(kept: Kept, step: Step, port: int, replaced: dict[int, int], size: int | None = None) -> None:
    """Put constants in place of some elements of a vector of sizes that is computed at run time."""
    node, graph = step.node, kept.graph
    source = node.inputs[port]
    shape = step.flow.shapes.static(source)
    length = size if size is not None else (shape[0] if shape else max(replaced) + 1)
    parts = []
    for position in range(length):
        if position in replaced:
            parts.append(graph.add_constant(f"{node.name}_size", np.asarray([replaced[position]], np.int64)))
        else:
            index = graph.add_constant(f"{node.name}_at", np.asarray([position], np.int64))
            parts.append(graph.add_node("Gather", [source, index], name=f"{node.name}_size_at").outputs[0])
    joined = graph.add_node("Concat", parts, name=f"{node.name}_sizes", attrs={"axis": 0})
    result: Variable = joined.outputs[0]
    node.inputs[port] = result


def expand(step: Step) -> None:
    """Labelled axes are asked for size 1, which broadcasts to whatever is there; a single value is spread at will."""
    axes, out = step.axes(0), step.out_sizes()
    if out is None:
        raise UnknownShapeError(f"the size of what {step.node} gives is unknown")
    rank = len(out)
    if all(size == 1 for size in step.sizes(0)):
        spread(step, 1, rank)
        return
    axes = [*[None] * (rank - len(axes)), *axes]
    where = [a for a, labels in enumerate(axes) if labels is not None]
    if where:
        asked = step.flow.shapes.static(step.node.input(1))
        if asked is None:
            raise UnknownShapeError(f"what {step.node} is asked for is unknown")
        length, wanted = asked[0], step.value(1)

        def rewrite(kept: Kept) -> None:
            ones = {a - rank + length: 1 for a in where if a - rank + length >= 0}
            if not ones:
                return
            if wanted is None:
                patch_elements(kept, step, 1, ones, length)
            else:
                set_ints(kept, step.node, "shape", 1, [ones.get(p, int(v)) for p, v in enumerate(wanted)])

        step.edit(rewrite, *axes)
    step.emit(axes)


def tile(step: Step) -> None:
    """A repeated axis carries its labels as often."""
    axes, repeats = step.axes(0), step.ints("repeats", 1)
    if repeats is None:
        step.close_axes(0, f"how often {step.node} repeats is computed")
        return
    step.emit([None if labels is None else np.tile(labels, r) for labels, r in zip(axes, repeats, strict=True)])


def depth_to_space(step: Step) -> None:
    """[N, b * b * C, H, W] -> [N, C, H * b, W * b]: the channels that make one output channel leave together."""
    axes = step.axes(0)
    block = int(step.attr("blocksize", 1)) ** 2
    labels = axes[1]
    if labels is not None:
        outer = step.attr("mode", "DCR") == "DCR"
        labels = step.together(labels.reshape(block, -1).T if outer else labels.reshape(-1, block))
    for spatial in axes[2:]:
        step.close(spatial)
    step.emit([axes[0], labels, None, None])


def space_to_depth(step: Step) -> None:
    """[N, C, H, W] -> [N, b * b * C, H / b, W / b]."""
    axes = step.axes(0)
    block = int(step.attr("blocksize", 1)) ** 2
    for spatial in axes[2:]:
        step.close(spatial)
    step.emit([axes[0], None if axes[1] is None else np.tile(axes[1], block), None, None])


def spread(step: Step, port: int, rank: int) -> None:
    """One value everywhere: any index may leave of an axis whose size hangs on no input; the sizes are written anew."""
    wanted, known = step.value(port), known_elements(step, port)
    if len(known) != rank:
        return
    axes = [step.flow.fresh(size) if size is not None and size > 1 else None for size in known]

    def rewrite(kept: Kept) -> None:
        counts = {a: kept.count(labels) for a, labels in enumerate(axes) if labels is not None}
        if wanted is None:
            patch_elements(kept, step, port, counts, rank)
        else:
            set_ints(kept, step.node, "shape", port, [counts.get(a, int(v)) for a, v in enumerate(wanted)])

    step.edit(rewrite, *axes)
    step.emit(axes)


def known_elements(step: Step, port: int) -> list[int | None]:
    """Elements of a vector that constants give, also where it is joined from parts; empty where none is known."""
    wanted = step.value(port)
    if wanted is not None:
        return [int(v) for v in np.asarray(wanted).reshape(-1)]
    tensor = step.node.input(port)
    maker = tensor.producer if tensor is not None else None
    if maker is None or maker.op != "Concat" or maker.domain:
        return []
    found: list[int | None] = []
    for part in maker.inputs:
        shape = step.flow.shapes.static(part)
        if shape is None:
            return []
        value = part.values if isinstance(part, Constant) else step.flow.values.get(part.name)
        found += [None] * shape[0] if value is None else [int(v) for v in np.asarray(value).reshape(-1)]
    return found


def last_two_fixed(step: Step) -> None:
    """Trilu and the like: what happens depends on the place in the last two axes."""
    axes = step.axes(0)
    for a in (-2, -1):
        step.close(axes[a])
        axes[a] = None
    step.emit(axes)


def _transpose_keeps(node: Node, known: Known) -> bool:
    perm = permutation(node, known.shapes)
    return perm is not None and perm == list(range(len(perm)))


def _expand_keeps(node: Node, known: Known) -> bool:
    shape, target = known.shapes.shape(node.inputs[0]), known.values(node, 1)
    if shape is None or target is None or len(target) > len(shape):
        return False
    return all(t in (1, d) for t, d in zip(target[::-1], shape[::-1], strict=False))


def _tile_keeps(node: Node, known: Known) -> bool:
    repeats = known.values(node, 1)
    return known.opset >= 6 and repeats is not None and bool((repeats == 1).all())


def _slice_keeps(node: Node, known: Known) -> bool:
    parts = slice_of(node, known.opset)
    if parts is None:
        return False
    starts, ends, axes, steps = parts
    shape = known.shapes.shape(node.inputs[0])
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        whole = end >= size if isinstance(size, int) else end >= TO_THE_END
        if start != 0 or step != 1 or not whole:
            return False
    return True


def _pad_keeps(node: Node, known: Known) -> bool:
    if known.opset < 11:
        pads = node.attrs.get("pads", node.attrs.get("paddings"))
        return pads is not None and not any(pads)
    amounts = known.values(node, 1)
    return amounts is not None and not amounts.any()


def _pad_zeros(view: ZeroView) -> set[int]:
    """Zero stays where zeros, or values of the input, are put beside it."""
    node = view.node
    mode = node.attrs.get("mode", "constant")
    value = node.constant(2)
    given = node.attrs.get("value", 0.0) if value is None else value.values
    plain = mode in ("constant", b"constant")
    if plain and ((node.input(2) is not None and value is None) or np.any(np.asarray(given) != 0)):
        return set()
    return view.zero(0)


RECORDS = (
    OpFacts(
        "Transpose",
        gradient=movement_forms.transpose,
        moves_data=True,
        coupling=transpose,
        zeros=zeros.kept,
        noop=first("keeps every axis in place", _transpose_keeps),
    ),
    OpFacts("Concat", gradient=keep, moves_data=True, coupling=concat, zeros=zeros.parts, noop=one_input),
    OpFacts(
        "Split",
        gradient=movement_forms.split,
        moves_data=True,
        shape_ports=(1,),
        coupling=split,
        zeros=zeros.kept,
        noop=first("has one output", lambda node, known: len(node.outputs) == 1),
    ),
    OpFacts(
        "Slice",
        gradient=movement_forms.slice_,
        moves_data=True,
        shape_ports=(1, 2, 3, 4),
        coupling=slice_,
        zeros=zeros.kept,
        noop=first("takes everything", _slice_keeps),
    ),
    OpFacts(
        "Pad",
        gradient=movement_forms.pad,
        shape_ports=(1, 3),
        coupling=pad,
        zeros=_pad_zeros,
        noop=first("pads nothing", _pad_keeps),
    ),
    OpFacts(
        "Expand",
        gradient=keep,
        moves_data=True,
        shape_ports=(1,),
        coupling=expand,
        zeros=zeros.kept,
        noop=first("expands nothing", _expand_keeps),
    ),
    OpFacts(
        "Tile",
        gradient=keep,
        moves_data=True,
        shape_ports=(1,),
        coupling=tile,
        zeros=zeros.kept,
        noop=first("repeats once", _tile_keeps),
    ),
    OpFacts("Resize", shape_ports=(1, 2, 3), coupling=resize, zeros=zeros.kept),
    OpFacts("Upsample", shape_ports=(1,), coupling=resize, zeros=zeros.kept),
    OpFacts(
        "DepthToSpace",
        gradient=movement_forms.depth_to_space,
        moves_data=True,
        coupling=depth_to_space,
        zeros=zeros.kept,
    ),
    OpFacts(
        "SpaceToDepth",
        gradient=movement_forms.space_to_depth,
        moves_data=True,
        coupling=space_to_depth,
        zeros=zeros.kept,
    ),
    OpFacts("Trilu", gradient=keep, coupling=last_two_fixed),
)
