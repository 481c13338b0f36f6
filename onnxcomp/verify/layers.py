"""Which layers paid? Each layer of the new model is fed what the original feeds it, and its own error is measured.

All layers are measured in one run: the new graph is cut at every layer's input, and the original's values go in there.
So an error counts where it arises and not again in every layer behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.clone import extract
from onnxcomp.graph.ir import Array, Constant, Dim, Graph, Node, Tensor, Variable, elem_type
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators
from onnxcomp.runtime.memory import Memory
from onnxcomp.runtime.session import open_graph
from onnxcomp.runtime.taps import Batches, stream

BUDGET_BYTES = 128 * 2**20  # of one sample's activations
WEIGHT_BYTES = 512 * 2**20  # of layers that are measured together: stored in few bits, they are decoded as floats
Left = Mapping[int, Array]  # as of a Variable
MOST_HOPS = 4  # from a layer to the first tensor behind it that both graphs have


@dataclass(frozen=True)
class Segment:
    """One layer: the tensors before and behind it, which bear these names in both graphs."""

    node: str
    entry: str
    exit: str


def own_sqnr_db(
    before: Graph,
    after: Graph,
    samples: Batches,
    operators: Operators,
    *,
    threads: int = 2,
    memory: Memory = Memory(),  # noqa: B008 (frozen)
) -> dict[str, float]:
    """SQNR of each weighted layer alone, in dB, by the name of its node in `before`.

    Behind pruning a layer is fed those of the original's channels that are left, and what it gives is compared with
    those of the original's that it still gives. A layer is left out where it has no counterpart, its output is equal,
    or what enters or leaves it has another shape for another reason.

    Raises:
        ModelError: a graph does not run.
    """
    found: dict[str, float] = {}
    first = next(iter(samples.batches(1)), None)
    if first is None:
        return found
    given = {name: array.shape for name, array in first.items()}
    shapes, now = (shape_tools.infer(graph, given) for graph in (before, after))
    left = {name: t.left for name, t in after.tensors().items() if isinstance(t, Variable) and t.left}
    found_in_both = [s for s in segments(before, after, operators) if _as_wide(s, shapes, now, left)]
    most = min(BUDGET_BYTES, memory.activations)
    all_told = sum(_bytes(segment, before.tensors(), shapes, most) for segment in found_in_both)
    batch = len(samples) if all_told * len(samples) <= most else 1  # weights are read once, where that is all there is
    for group in _groups(found_in_both, before, shapes, most, min(WEIGHT_BYTES, memory.inside)):
        found.update(_measure(group, before, after, (shapes, now), left, samples, threads, 4 * most, batch))
    return found


def segments(before: Graph, after: Graph, operators: Operators) -> list[Segment]:
    """Layers with weights that stand between tensors which both graphs have, in the main graph."""
    kept = {name for name, tensor in after.tensors().items() if isinstance(tensor, Variable)}
    found = []
    for node in before.nodes:
        weights = [w for w, _ in operators.weights(node) if w.role == "kernel"]
        if not weights:
            continue
        entry = node.input(1 - weights[0].port)
        exit_ = _first_kept(node, kept)
        if isinstance(entry, Variable) and entry.name in kept and exit_ is not None:
            found.append(Segment(node.name, entry.name, exit_))
    return found


def _as_wide(segment: Segment, before: Shapes, after: Shapes, left: Mapping[str, Left]) -> bool:
    """Whether the tensors around a layer have the shapes that are expected of them, as far as they are known."""
    for name in (segment.entry, segment.exit):
        old, new = before.known(name), after.known(name)
        if old is not None and new is not None and _narrowed(old, left.get(name, {})) != new:
            return False
    return True


def _narrowed(shape: tuple[Dim, ...], left: Left) -> tuple[Dim, ...]:
    return tuple(len(left[axis]) if axis in left else size for axis, size in enumerate(shape))


def _taken(values: Array, left: Left) -> Array:
    """What pruning left of the values of a tensor."""
    for axis, indices in left.items():
        values = values.take(indices, axis)
    return values


def _first_kept(node: Node, kept: set[str]) -> str | None:
    """The layer's output, or the first tensor on the single path behind it that the new graph still has."""
    for _ in range(MOST_HOPS):
        out = node.output()
        if out is None or out.name in kept:
            return None if out is None else out.name
        if len(out.consumers) != 1:
            return None
        node = out.consumers[0]
    return None


def _groups(
    found: list[Segment], graph: Graph, shapes: Shapes, most: int, most_weights: int
) -> Iterator[list[Segment]]:
    """Consecutive layers whose activations and weights fit the budgets, in bytes, together."""
    tensors, nodes = graph.tensors(), {node.name: node for node in graph.nodes}
    group: list[Segment] = []
    used = weights = 0
    for segment in found:
        size = _bytes(segment, tensors, shapes, most)
        held = sum(4 * t.size for t in nodes[segment.node].inputs if isinstance(t, Constant))
        if group and (used + size > most or weights + held > most_weights):
            yield group
            group, used, weights = [], 0, 0
        group.append(segment)
        used, weights = used + size, weights + held
    if group:
        yield group


def _bytes(segment: Segment, tensors: Mapping[str, Tensor], shapes: Shapes, most: int) -> int:
    """What enters and leaves a layer, of one sample; an eighth of `most` for what is not known."""
    sizes = [shapes.static(tensors[name]) for name in (segment.entry, segment.exit)]
    return sum(prod(shape) * 4 if shape is not None else most // 8 for shape in sizes)


def _measure(
    group: list[Segment],
    before: Graph,
    after: Graph,
    shapes: tuple[Shapes, Shapes],
    left: Mapping[str, Left],
    samples: Batches,
    threads: int,
    most: int,
    batch: int,
) -> dict[str, float]:
    cut, exits = _cut(group, after, *shapes, sized=batch == 1)
    session = open_graph(cut, threads=threads, strict=False)
    wanted = [t.name for t in cut.inputs]
    names = list(dict.fromkeys((*wanted, *(s.exit for s in group))))
    signal = dict.fromkeys((s.node for s in group), 0.0)
    noise = dict.fromkeys(signal, 0.0)
    held: dict[str, Array] = {}
    for part in stream(before, names, samples, batch=batch, threads=threads, budget_bytes=most):
        held.update(part)
        if len(held) < len(names):
            continue
        outputs = session.run({name: _taken(held[name], left.get(name, {})) for name in wanted})
        for s in group:
            original = _taken(np.asarray(held[s.exit], np.float64), left.get(s.exit, {}))
            if outputs[exits[s.exit]].shape != original.shape:  # inference did not know that it changed
                noise[s.node] = np.inf
                continue
            signal[s.node] += float((original**2).sum())
            noise[s.node] += float(((original - outputs[exits[s.exit]]) ** 2).sum())
        held = {}
    return {
        name: float(10 * np.log10(signal[name] / noise[name]))
        for name in signal
        if signal[name] > 0 and noise[name] > 0 and np.isfinite(noise[name])
    }


def _cut(
    group: list[Segment], after: Graph, shapes: Shapes, now: Shapes, *, sized: bool
) -> tuple[Graph, dict[str, str]]:
    """The new graph with every layer's input made an input of the graph, and every layer's output an output.

    Args:
        shapes, now: of the graph before and of the new one; inputs are what the one before computes.
        sized: whether inputs have the sizes that `shapes` knows.

    Returns:
        The graph, and the names its outputs bear by the names of the layers' outputs.
    """
    tensors = after.tensors()
    forced = [t for t in dict.fromkeys(tensors[segment.entry] for segment in group) if isinstance(t, Variable)]
    exits = list(dict.fromkeys(segment.exit for segment in group))
    part = extract(after, [*after.inputs, *forced], [tensors[name] for name in exits])
    graph = part.graph
    for tensor in forced:
        if tensor in after.inputs:
            continue
        entry = part.variable(tensor)
        dtype, new, shape = shapes.dtype(tensor), now.dtype(tensor), shapes.shape(tensor)
        shape = None if shape is None else _narrowed(shape, tensor.left)
        entry.shape = shape if sized or shape is None else (None,) * len(shape)
        if new is not None and dtype is not None and new != dtype:
            given = Variable(entry.name, dtype, entry.shape)
            entry.name = graph.unique_name(f"{entry.name}_here")
            graph.inputs = [given if t is entry else t for t in graph.inputs]
            graph.add_node("Cast", [given], attrs={"to": elem_type(new)}, outputs=[entry])
        else:
            entry.dtype = dtype
    graph.sort()
    return graph, dict(zip(exits, (t.name for t in graph.outputs), strict=True))
