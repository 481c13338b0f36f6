"""What do the tensors inside a model look like on real data? Streams them a batch at a time, memory bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.clone import extract
from onnxcomp.graph.ir import Array, Graph, Tensor
from onnxcomp.graph.types import Shapes
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Session, open_graph, open_session

BUDGET_BYTES = 192 * 2**20


class Batches(Protocol):
    """Samples that can be read a batch at a time."""

    def __len__(self) -> int: ...

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Feeds by input name."""


def runs_over(graph: Graph, samples: Batches, batch: int) -> int:
    """How many feeds `samples.batches(batch)` gives: the samples may know their own batch, or the model fixes it."""
    shape = graph.inputs[0].shape if graph.inputs else None
    fixed = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else None
    # sources of tests and of third parties need not say how many samples they give at a time
    step = getattr(samples, "step", None)
    return -(-len(samples) // (fixed or batch if step is None else step(batch)))


def samples_in(samples: Batches, feeds: Mapping[str, np.ndarray[Any, Any]], batch: int | None) -> int:
    """How many samples a full feed of `samples.batches(batch)` holds; the first axis may be time, or tokens."""
    step = getattr(samples, "step", None)  # see `runs_over`
    if step is not None:
        return int(step(batch))
    return max((len(array) for array in feeds.values() if array.ndim), default=1)


def stream(
    graph: Graph,
    names: Sequence[str],
    samples: Batches,
    *,
    batch: int = 8,
    threads: int = 2,
    budget_bytes: int = BUDGET_BYTES,
    progress: Progress = SILENT,
    text: str = "calibrating",
) -> Iterator[dict[str, Array]]:
    """Yield the values of the named tensors on all samples.

    The names are cut into groups whose values fit the budget together; for every batch each group is run and yielded
    in turn, so a dictionary holds some of the names, and every name comes once a batch. Let the arrays go before the
    next step.

    Args:
        names: tensors of the main graph, graph inputs included.
        batch: samples a run, where the model's batch dimension is free.
        budget_bytes: most that the values of one run may take.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    inputs = {t.name for t in graph.inputs}
    computed = [n for n in dict.fromkeys(names) if n not in inputs]
    fed = [n for n in dict.fromkeys(names) if n in inputs]
    if computed and batch > 1:
        batch = fitting(graph, computed, samples, batch, budget_bytes)
    total = runs_over(graph, samples, batch)
    sessions: list[tuple[list[str], Session]] | None = None
    for feeds in progress.track(samples.batches(batch), total, text):
        if fed:
            yield {name: feeds[name] for name in fed}
        if sessions is None:
            groups = _groups(graph, computed, feeds, budget_bytes)
            sessions = [(group, tapped(graph, group, threads)) for group in groups]
        for _, session in sessions:
            yield session.run(feeds)


def fitting(graph: Graph, names: Sequence[str], samples: Batches, batch: int, budget_bytes: int) -> int:
    """Samples a run, at most `batch`, so that the named tensors fit the budget in one run where one sample's do.

    Fewer samples a run cost less than several runs, each of which computes anew what comes before its tensors.
    """
    feeds = next(iter(samples.batches(1)), None)
    if feeds is None:
        return batch
    shapes = shape_tools.infer(graph, {name: value.shape for name, value in feeds.items()})
    tensors = graph.tensors()
    one = sum(_size(tensors[name], shapes, budget_bytes) for name in names)
    return int(min(batch, max(1, budget_bytes // max(one, 1))))


def tapped(graph: Graph, names: Sequence[str], threads: int, *, optimize: bool = True) -> Session:
    """A session whose outputs are the named tensors and nothing else; it holds only the nodes they need."""
    tensors = graph.tensors()
    part = extract(graph, graph.inputs, [tensors[name] for name in names])
    return open_graph(part.graph, threads=threads, optimize=optimize, arena=False, strict=False)


@dataclass(frozen=True)
class Sessions:
    """Opens graphs on the CPU for passes that run them while they work: how is said here, and nowhere in a pass.

    Attributes:
        threads: of each session.
    """

    threads: int = 2

    def of(
        self,
        graph: Graph,
        *,
        optimize: bool = True,
        arena: bool = True,
        config: Mapping[str, str] | None = None,
        strict: bool = False,
    ) -> Session:
        """A graph as it is; `open_graph` says more, and what is raised."""
        return open_graph(graph, threads=self.threads, optimize=optimize, arena=arena, config=config, strict=strict)

    def tapped(self, graph: Graph, names: Sequence[str]) -> Session:
        """A graph whose outputs are the named tensors and nothing else."""
        return tapped(graph, names, self.threads)

    def small(self, model: bytes) -> Session:
        """A few nodes as a model of their own, computed as they stand and in little memory."""
        return open_session(model, threads=self.threads, optimize=False, lean=True)


def _size(tensor: Tensor, shapes: Shapes, budget: int) -> int:
    """Bytes of a tensor; a quarter of the budget where its size is unknown."""
    shape, dtype = shapes.static(tensor), shapes.dtype(tensor)
    return budget // 4 if shape is None or dtype is None else prod(shape) * dtype.itemsize


def _groups(graph: Graph, names: list[str], feeds: dict[str, Array], budget: int) -> list[list[str]]:
    """Consecutive names whose values on one batch fit the budget; a tensor of unknown size counts as a quarter."""
    shapes = shape_tools.infer(graph, {name: value.shape for name, value in feeds.items()})
    tensors = graph.tensors()
    groups: list[list[str]] = []
    used = budget
    for name in names:
        size = _size(tensors[name], shapes, budget)
        if used + size > budget or not groups:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
