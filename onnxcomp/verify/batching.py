"""How many samples does one run of a model take, and where do they lie? Found by running it on one and on several.

What the interface says is often not so: exporters leave the batch free and fix it in a Reshape inside, or call the axis
of time the batch. A run of two samples that gives what each of them gives alone proves that samples go together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcomp.data.axes import Axes
from onnxcomp.data.dataset import Dataset, FeedReader
from onnxcomp.data.inputs import interface_of
from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Graph
from onnxcomp.runtime.memory import Memory
from onnxcomp.runtime.session import Array, Session
from onnxcomp.runtime.stages import peak_bytes
from onnxcomp.verify.opened import OpenedModel

SAME_SHARE = 3e-3  # of an output's energy: what quantization inside a model may differ by when the batch is another
INSIDE = (2, 4, 8, 16, 32, 64, 128, 3, 5, 6, 10, 12, 20, 24)  # sizes to try where a model takes neither one nor two

Outputs = Mapping[str, Array]


def settle(model: Path | OpenedModel, *datasets: Dataset, memory: Memory = Memory()) -> None:  # noqa: B008
    """Run the model on one and two samples of the first data set, and let all keep what that proves.

    From then on no feed holds more samples than the model can be run on within the memory.

    A model that does not run is left as it is: whoever needs it to run says why it does not.

    Raises:
        DataError: a sample cannot be read.
    """
    model = OpenedModel.of(model)
    graph = model.graph
    declared = Axes(outputs={o.name: o.axis for o in interface_of(graph).outputs})
    try:
        session = model.plain()
    except ModelError:
        return
    first = datasets[0]
    for dataset in datasets:
        # opened for it again, if it asks: held it takes memory
        dataset.give_session(lambda feed: model.plain().run(feed))
        _divide(session, dataset, declared)
    axes = Axes(first.axes.inputs, declared.outputs, declared.time)
    found = _Found(axes, first.reader.batch)
    if first.reader.batch in (None, 1) and len(first) > 1:
        found = _try(session, first, axes, graph)
    most = _most(graph, first, memory)
    for dataset in datasets:
        own = Axes(dataset.axes.inputs, found.axes.outputs, found.axes.time)
        dataset.settle(own, dataset.reader.batch or found.batch, found.remarks, most)


def _divide(session: Session, dataset: Dataset, axes: Axes) -> None:
    """Let rows of whole feeds be the samples, where two of a feed together give what each of them gives alone."""
    reader = dataset.reader
    rows = reader.rows_of(0) if isinstance(reader, FeedReader) else 1
    if not isinstance(reader, FeedReader) or rows < 2:
        return
    pair = reader.divided()
    one, two, both = (_outputs(session, pair.read(np.array(chosen), finite=False)) for chosen in ([0], [1], [0, 1]))
    if one is None or two is None or both is None:
        return
    apart = not any(_place(name, both[name], one[name], two[name], axes) is _MIXED for name in both)
    if apart and dataset.divide():
        dataset.remark(f"each row of the feeds is a sample, {len(dataset)} in all, found by running the model")
    elif not apart:
        dataset.remark(f"a feed of {rows} rows is one sample: its rows depend on one another, found by running it")


def _most(graph: Graph, dataset: Dataset, memory: Memory) -> int | None:
    """Samples whose activations fit the memory while the model runs; None where their sizes are unknown."""
    samples = dataset.samples().head(1)
    feed = next(samples.batches(1))
    shapes = shape_tools.infer(graph, {name: array.shape for name, array in feed.items()})
    peak = peak_bytes(graph, shapes) / len(samples)
    return None if not np.isfinite(peak) else max(1, int(memory.inside // max(peak, 1)))


@dataclass(frozen=True)
class _Found:
    axes: Axes
    batch: int | None
    remarks: tuple[str, ...] = ()


def _try(session: Session, dataset: Dataset, axes: Axes, graph: Graph) -> _Found:
    samples = dataset.samples().head(2)
    if len(samples) < 2:
        return _Found(axes, dataset.reader.batch)
    if dataset.reader.batch == 1:
        return _Found(axes, 1)
    one = [next(samples.dataset.subset([int(i)]).batches(1)) for i in samples.indices]
    alone = [_outputs(session, feed) for feed in one]
    together = _outputs(session, next(samples.batches(2)))
    if alone[0] is None or alone[1] is None:
        return _inside(session, dataset, axes, graph) if together is None else _Found(axes, dataset.reader.batch)
    if together is None:
        return _Found(axes, 1, ("the model takes one sample a run although its batch is free, found by running it",))
    again = _outputs(session, one[0])
    if again is None or not all(_same(again[name], alone[0][name]) for name in again):
        return _Found(axes, dataset.reader.batch)  # it draws random numbers: no run tells anything of another
    places = {name: _place(name, together[name], alone[0][name], alone[1][name], axes) for name in together}
    mixed = sorted(name for name, place in places.items() if place is _MIXED)
    if not mixed:
        proven = {name: place for name, place in places.items() if not isinstance(place, _Mixed)}
        return _Found(Axes(axes.inputs, proven, axes.time), None)
    remark = (
        f"{mixed[0]} of a sample depends on the samples beside it, found by running the model: it is run on one at a "
        "time; if axis 0 is time, give [samples, time, ...]"
    )
    return _Found(axes, 1, (remark,))


def _inside(session: Session, dataset: Dataset, axes: Axes, graph: Graph) -> _Found:
    """A batch of several samples that is fixed inside."""
    for size in dict.fromkeys((*_written(graph), *INSIDE)):
        samples = dataset.samples().head(size)
        if len(samples) == size and _outputs(session, next(samples.batches(size))) is not None:
            what = f"the model takes {size} samples a run although its batch is free, found by running it"
            return _Found(axes, size, (what,))
    return _Found(axes, dataset.reader.batch)


def _written(graph: Graph) -> Sequence[int]:
    """First sizes that the graph's Reshapes ask for."""
    found = []
    for node in graph.nodes:
        target = node.constant(1) if node.op in ("Reshape", "Expand") else None
        if target is not None and target.size and int(target.values.reshape(-1)[0]) > 1:
            found.append(int(target.values.reshape(-1)[0]))
    return [size for size in found if size <= 1024]


class _Mixed:
    """Stands for an output in which samples cannot be told apart."""


_MIXED = _Mixed()


def _place(name: str, together: Array, first: Array, second: Array, axes: Axes) -> int | _Mixed | None:
    """The axis along which the output of two samples is that of each alone; None where it is the same for all."""
    if together.shape == first.shape == second.shape and _same(together, first) and _same(together, second):
        return None
    if first.ndim != second.ndim or together.ndim != first.ndim:
        return _MIXED
    likely = axes.output(name)
    order = sorted(range(first.ndim), key=lambda axis: (axis != likely, axis))
    for axis in order:
        sizes = first.shape[axis] + second.shape[axis]
        rest = [shape[:axis] + shape[axis + 1 :] for shape in (together.shape, first.shape, second.shape)]
        if together.shape[axis] == sizes and rest[0] == rest[1] == rest[2]:
            return axis if _same(together, np.concatenate([first, second], axis)) else _MIXED
    return _MIXED


def _same(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape:
        return False
    if found.dtype.kind not in "fc" and not found.dtype.name.startswith(("bfloat", "float")):
        return bool(np.mean(found == wanted) > 0.9) if found.size else True
    a, b = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if np.mean(finite == np.isfinite(a)) < 0.999 if a.size else False:
        return False
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    return float(np.square(a - b).sum()) <= SAME_SHARE * float(np.square(a).sum()) + 1e-12


def _outputs(session: Session, feed: dict[str, Array]) -> dict[str, Array] | None:
    """What the model gives; None where it does not run."""
    try:
        values = session.run(feed).items()  # scalars may come as numbers; lists and maps are refused where compared
        return {name: np.asarray(value) for name, value in values if not isinstance(value, list | dict)}
    except (ModelError, DataError):
        return None
