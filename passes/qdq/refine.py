"""How do weights and biases make good the errors of rounding? Layer by layer, on what the layers before really give.

Walks the quantized graph in order on a few samples. Each layer's weights are solved once more, so that on the inputs
that the quantized layers before it give its output (in front of a residual Add: the sum) comes nearest to the float
model's. They are rounded so that every weight's error is made good by the next ones (GPTQ, arXiv 2210.17323), then
moved one by one as long as that helps. Then its bias takes up what is left of the error in its mean output (M. Nagel et
al., ICCV 2019, "empirical bias correction"); in front of a residual Add the mean of the sum is what counts, so that the
shortcut's error is taken up too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.layer import Residual, residual_of
from onnxcomp.layers.rows import Patches
from onnxcomp.passes.qdq.emit import Written
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.progress import Progress
from onnxcomp.runtime.stages import Stages
from onnxcomp.runtime.taps import Batches, samples_in, stream

BUDGET_BYTES = 192 * 2**20  # of the activations held, about
JUDGED_BYTES = 48 * 2**20  # of the inputs held to judge placements
LIVE = 6  # tensors of the largest size that are held at a time, about
LEAST_SAMPLES, MOST_SAMPLES = 4, 512
JUDGED_SAMPLES = 32
ROWS = 32768
ROWS_BYTES = 128 * 2**20  # of the rows of one layer
ROWS_PER_FEATURE = 16  # with fewer, what is solved for fits these rows and not others
MOST_FEATURES = 2304  # Cholesky of a larger matrix takes many seconds
DAMPING = 0.1
RIDGE = 1.0  # of the mean diagonal: how firmly a weight is held to what it was


@dataclass(frozen=True)
class Aim:
    """What a layer's mean output should be.

    Attributes:
        exact: the layer's output in the float graph.
        axis: of the channels.
        behind: the residual sum that alone reads the output.
        shortcut: name of that sum's other summand in the float graph.
    """

    exact: str
    axis: int
    behind: Residual | None = None
    shortcut: str = ""


def aims(graph: Graph, layers: Mapping[Node, Integers], shapes: Shapes) -> dict[Node, Aim]:
    """One aim a layer; to be called before Q and DQ are written."""
    found = {}
    for node, layer in layers.items():
        output: Variable = node.outputs[0]
        behind = residual_of(graph, output, shapes)
        name = "" if behind is None else behind.other.name
        found[node] = Aim(output.name, layer.weight.result_axis, behind, name)
    return found


def few(
    graph: Graph, samples: Batches, shapes: Shapes, batch: int = 8, budget_bytes: int = BUDGET_BYTES
) -> list[dict[str, Array]]:
    """The first samples, as many as the memory budget allows: batches of feeds."""
    tensors = [*graph.inputs, *(t for node in graph.nodes for t in node.outputs)]
    largest = max((prod(shape) for t in tensors if (shape := shapes.static(t))), default=1)
    count = int(np.clip(min(BUDGET_BYTES, budget_bytes) // (4 * largest * LIVE), LEAST_SAMPLES, MOST_SAMPLES))
    found: list[dict[str, Array]] = []
    taken = 0
    for feeds in samples.batches(min(batch, count)):
        found.append(feeds)
        taken += samples_in(samples, feeds, min(batch, count))
        if taken >= count:
            break
    return found


def judged(
    samples: Batches, batch: int = 8, answer_bytes: int = 0, budget_bytes: int = BUDGET_BYTES
) -> list[dict[str, Array]]:
    """The first samples, enough to tell how much placements cost: feeds whose inputs and answers alone are held.

    Scores of things that are rare in the data say nothing on the few samples whose activations fit into memory.

    Args:
        answer_bytes: of the float model's outputs for one sample.
        budget_bytes: what inputs and answers may take.
    """
    found: list[dict[str, Array]] = []
    taken = held = answered = 0
    for feeds in samples.batches(batch):
        found.append(feeds)
        taken += samples_in(samples, feeds, batch)
        held += sum(a.nbytes for a in feeds.values())
        answered = taken * answer_bytes
        if taken >= JUDGED_SAMPLES or held >= JUDGED_BYTES or (held + answered) * (1 + 1 / len(found)) > budget_bytes:
            break
    return found


def refine(
    graph: Graph,
    exact: Graph,
    wanted: Mapping[Node, Aim],
    layers: Mapping[Node, Integers],
    written: Written,
    batches: Sequence[Mapping[str, Array]],
    *,
    compensate: bool,
    correct: bool,
    threads: int,
    memory: int,
    progress: Progress,
) -> None:
    """Change the weights and biases in the written graph, in place.

    Args:
        graph: the quantized graph, sorted.
        exact: the float graph.
        wanted: `aims` of the layers.
        batches: feeds, all of them held.
        compensate: round weights again with error compensation.
        correct: correct biases.
        memory: bytes of activations held; what is more lies in temporary files.
    """
    along = {
        (aim.exact, aim.axis) for aim in wanted.values()
    }  # a tensor may be one layer's output and another's shortcut
    along |= {(aim.shortcut, aim.axis) for aim in wanted.values() if aim.behind is not None}
    goal = _means(exact, along, batches, threads) if correct else {}
    stages, floats = (Stages(g, batches, threads, memory=memory) for g in (graph, exact))
    known = {tensor.name: tensor for node in exact.nodes for tensor in node.outputs}
    ahead = set(layers)
    for node in progress.track(list(layers), len(layers), "rounding layers"):
        layer = layers[node]
        if compensate and node in written.weights and layer.rows is not None and layer.rows.features <= MOST_FEATURES:
            free = correct and node in written.biases  # a weight that is solved anew has another mean output
            _round(stages, node, layer, written, _missed(floats, known, wanted[node], stages, ahead) if free else None)
        ahead.discard(node)
        if correct and node in written.biases:
            _center(stages, node, layer, written, wanted[node], goal, ahead)


def _missed(floats: Stages, known: Mapping[str, Variable], aim: Aim, stages: Stages, ahead: set[Node]) -> list[Array]:
    """What a layer should give, one array a batch: its output in the float graph and what its shortcut is short of."""
    other = None if aim.behind is None else aim.behind.add.inputs[aim.behind.port]
    if other is None or aim.shortcut not in known or not stages.ready(other, ahead):
        return [found[0] for found in floats.get([known[aim.exact]])]
    now = [arrays[0] for arrays in stages.get([other])]
    pairs = floats.get([known[aim.exact], known[aim.shortcut]])
    return [exact + shortcut - there for (exact, shortcut), there in zip(pairs, now, strict=True)]


def _round(stages: Stages, node: Node, layer: Integers, written: Written, goal: Sequence[Array] | None) -> None:
    """Round a layer's weights for what really enters it, and solve them anew where a goal is given."""
    rule = layer.rows
    if rule is None or (rule.group > 1 and rule.features < MOST_FEATURES and layer.exact.shape[0] == rule.group):
        return  # a depthwise kernel has too few weights to make good for one another
    inputs = [arrays[0] for arrays in stages.get([node.inputs[rule.port]])]
    most = min(ROWS, ROWS_BYTES // (4 * rule.group * rule.features))
    rows = _rows(rule.patches, inputs, most)
    moments = np.stack([(part.T @ part).astype(np.float64) / len(part) for part in rows])
    wanted = layer.exact
    if goal is not None and rows.shape[1] >= ROWS_PER_FEATURE * rule.features:
        parts = zip(np.split(layer.exact, len(rows)), moments, rows, _rows(rule.outputs, goal, most), strict=True)
        wanted = np.concatenate([_solved(*part) for part in parts])
    layer.compensate(wanted, moments, DAMPING)
    written.weights[node].values = layer.tensor()


def _solved(weight: Array, moment: Array, rows: Array, aimed: Array) -> Array:
    """The weight [out, in] that gives most nearly what is aimed at, on what really enters; held to the one there is.

    Args:
        moment: E[x x^T] of the rows.
        rows: [n, in] float32, aimed: [n, out], both of mean zero.
    """
    ridge = RIDGE * float(np.trace(moment)) / max(len(moment), 1)
    if not np.isfinite(moment).all() or not np.isfinite(aimed).all() or ridge <= 0:
        return weight
    missing = rows.T @ (aimed - rows @ weight.T.astype(np.float32)) / len(rows)
    try:
        return np.asarray(weight + np.linalg.solve(moment + ridge * np.eye(len(moment)), missing).T)
    except np.linalg.LinAlgError:
        return weight


def _center(
    stages: Stages,
    node: Node,
    layer: Integers,
    written: Written,
    aim: Aim,
    goal: Means,
    ahead: set[Node],
) -> None:
    wanted = goal[aim.exact, aim.axis]
    if aim.behind is not None:
        other = aim.behind.add.inputs[aim.behind.port]  # what stands there once Q and DQ are written
        if stages.ready(other, ahead):
            now = [arrays[0] for arrays in stages.get([other])]
            wanted = wanted + goal[aim.shortcut, aim.axis] - _mean(now, aim.axis)
    raw = written.outputs[node]
    arrays = [found[0] for found in stages.get([raw])]
    error = wanted - _mean(arrays, aim.axis)
    if not np.isfinite(error).all():
        return
    layer.bias = (error if layer.bias is None else layer.bias + error).astype(np.float32)
    written.biases[node].store(layer.bias)
    axis = aim.axis % arrays[0].ndim
    shift = error.reshape([-1 if a == axis else 1 for a in range(arrays[0].ndim)]).astype(np.float32)
    stages.replace(raw, [array + shift for array in arrays])


def _rows(patches: Callable[[Array], Patches], arrays: Sequence[Array], most: int) -> Array:
    """Some rows of a layer's inputs or outputs less their mean, which is the bias's affair: [group, n, features]."""
    quota = max(1, most // len(arrays))
    blocks = []
    for index, array in enumerate(arrays):
        found = patches(array)
        step = max(1, found.count // quota)
        blocks.append(found.take(np.arange(index % step, found.count, step)))
    rows = np.concatenate(blocks, axis=1)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows


Means = Mapping[tuple[str, int], Array]  # by name and axis: float64 [size of that axis]


def _means(
    graph: Graph, along: Iterable[tuple[str, int]], batches: Sequence[Mapping[str, Array]], threads: int
) -> Means:
    """Mean of tensors over everything but an axis of each."""
    axes: dict[str, list[int]] = {}
    for name, axis in sorted(along):
        axes.setdefault(name, []).append(axis)
    total: dict[tuple[str, int], Array] = {}
    count: dict[tuple[str, int], int] = {}
    for values in stream(graph, list(axes), _Held(batches), threads=threads):
        for name, array in values.items():
            for axis in axes[name]:
                total[name, axis] = total.get((name, axis), np.zeros(1)) + _sum(array, axis)
                count[name, axis] = count.get((name, axis), 0) + array.size // array.shape[axis]
    return {key: value / max(count[key], 1) for key, value in total.items()}


def _mean(arrays: Sequence[Array], axis: int) -> Array:
    count = sum(array.size // array.shape[axis] for array in arrays)
    total: Array = sum(_sum(array, axis) for array in arrays) / max(count, 1)
    return total


def _sum(array: Array, axis: int) -> Array:
    rest = tuple(a for a in range(array.ndim) if a != axis % array.ndim)
    total: Array = array.sum(axis=rest, dtype=np.float64)
    return total


@dataclass(frozen=True)
class _Held:
    """Batches in memory, as samples to stream."""

    held: Sequence[Mapping[str, Array]]

    def __len__(self) -> int:
        return len(self.held)

    def batches(self, size: int | None = None) -> Iterator[dict[str, Array]]:
        """The batches as they are."""
        del size
        yield from (dict(feeds) for feeds in self.held)
