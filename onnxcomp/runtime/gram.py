"""What enters a layer, in second moments? Streams X^T X, and X^T Y against targets, over calibration samples.

A layer with weights computes y = W x + b for many rows x: the patches of a convolution, the rows of a matrix product.
All that least squares, pruning and rounding need to know of the data is E[x x^T] and E[x y^T], which do not grow with
the number of samples. The entries of x stand in the order of `Weight.to_matrix`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.rows import LayerInputs, Patches
from onnxcomp.layers.use import WeightUse
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.taps import BUDGET_BYTES, Batches, fitting, runs_over, tapped

MAX_ROWS = 65536
ROWS_PER_FEATURE = 32  # rows of one picture are alike: beyond this, more samples help and more rows do not
LEAST_ROWS = 16384
CHUNK_ELEMENTS = 4 * 2**20  # of one block of rows: 16 MiB in float32
GROUP_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Target:
    """What a layer should give: a tensor of the reference graph, less a tensor of the graph at hand if one is named.

    The second makes a layer in front of a residual Add aim at the sum: reference sum - shortcut as it is now.

    Attributes:
        left: bool [outputs of the reference]: those that the layer still has; None where it has all.
    """

    reference: str
    minus: str = ""
    left: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of a layer themselves, where they were few enough to be held.

    Attributes:
        z: [group, rows, in + 1] float32, a constant 1 at the end.
        aim: [group, rows, out / group] float32: the target, what is to be taken off it included.
        minus: what was taken off, likewise; None where nothing was.
    """

    z: Array
    aim: Array
    minus: Array | None


@dataclass(frozen=True)
class Gram:
    """Second moments of the rows that enter a layer, convolution groups apart.

    Attributes:
        h: [group, in + 1, in + 1] float64: the mean of z z^T, z being a row with a constant 1 at its end.
        count: rows seen.
        cross: [group, in + 1, out / group] float64: the mean of z y^T for the target y; None without a target.
        power: [group, out / group] float64: the mean of y^2.
        rows: the rows themselves, where there is a target and they take no more than was allowed.
    """

    h: Array
    count: int
    cross: Array | None = None
    power: Array | None = None
    rows: Rows | None = None

    @property
    def second(self) -> Array:
        """E[x x^T] without the constant: [group, in, in]."""
        return self.h[:, :-1, :-1]

    @property
    def mean(self) -> Array:
        """E[x]: [group, in]."""
        return self.h[:, -1, :-1]

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity (or overflow of float32 squares) came in, and any rows did."""
        parts = [self.h, *(a for a in (self.cross, self.power) if a is not None)]
        return self.count > 0 and all(bool(np.isfinite(a).all()) for a in parts)


def gram(
    graph: Graph,
    uses: Sequence[WeightUse],
    samples: Batches,
    *,
    targets: Mapping[str, Target] | None = None,
    reference: Graph | None = None,
    batch: int = 8,
    threads: int = 2,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    budget_bytes: int = BUDGET_BYTES,
    hold_bytes: int = 0,
    shapes: Shapes | None = None,
    progress: Progress = SILENT,
    text: str = "layer statistics",
) -> dict[str, Gram]:
    """Second moments of what enters each layer, by node name.

    Layers that read the same tensor in the same way share one result. Products are taken in float32 blocks and summed
    in float64.

    Args:
        uses: weights for which `why_not` is empty.
        targets: by node name, what the layer should give; asks for `cross` and `power`.
        reference: the graph the targets are read from; the same graph when None.
        batch: samples a run, where the model's batch dimension is free.
        max_rows: about how many rows of a layer are looked at, or 32 a feature where that is less (but 16,384);
            beyond it, rows are drawn evenly from every batch.
        budget_bytes: most that the activations of one run may take together; the result is not counted.
        hold_bytes: most that the rows of one layer may take to be handed out with its moments.
        shapes: of all tensors on one batch, from `batch_shapes`, where many calls on one structure need them.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
        ValueError: a use cannot be measured.
    """
    jobs = _jobs(graph, uses, targets or {})
    if not jobs:
        return {}
    wanted = list(dict.fromkeys(name for job in jobs for name in (*job.here, *job.there)))
    if shapes is not None:
        batch = max(1, min(batch, budget_bytes * batch // max(1, sum(_bytes(n, shapes, budget_bytes) for n in wanted))))
    elif batch > 1:
        own = graph.tensors()
        batch = fitting(graph, [name for name in wanted if name in own], samples, batch, budget_bytes)
    runs = runs_over(graph, samples, batch)
    parts: list[_Part] | None = None
    for index, feeds in enumerate(progress.track(samples.batches(batch), runs, text)):
        if parts is None:
            known = shapes or shape_tools.infer(graph, {name: value.shape for name, value in feeds.items()})
            parts = _split(graph, reference or graph, jobs, feeds, known, budget_bytes, threads)
        generator = np.random.default_rng([seed, index])
        for part in parts:
            here, there = part.run(feeds)
            with np.errstate(over="ignore", invalid="ignore"):  # `Gram.finite` tells
                for job in part.jobs:
                    rows = job.rows(max_rows)
                    job.add(here, there, -(-rows // runs), generator, rows * job.row_bytes() <= hold_bytes)
    return {name: result for job in jobs for name, result in job.results().items()}


def gram_of(
    graph: Graph,
    uses: Sequence[WeightUse],
    batches: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]],
    *,
    targets: Mapping[str, Target],
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    hold_bytes: int = 0,
) -> dict[str, Gram]:
    """`gram` from values that are at hand already.

    Args:
        batches: tensors of the graph and of the reference by name, a pair a batch; see `needed`.
    """
    jobs = _jobs(graph, uses, targets)
    for index, (here, there) in enumerate(batches):
        generator = np.random.default_rng([seed, index])
        with np.errstate(over="ignore", invalid="ignore"):
            for job in jobs:
                rows = job.rows(max_rows)
                hold = rows * job.row_bytes() <= hold_bytes
                job.add(here, there, -(-rows // len(batches)), generator, hold)
    return {name: result for job in jobs for name, result in job.results().items()}


def needed(graph: Graph, uses: Sequence[WeightUse], targets: Mapping[str, Target]) -> tuple[list[str], list[str]]:
    """Names of the tensors that `gram_of` reads from the graph and from the reference."""
    jobs = _jobs(graph, uses, targets)
    here = dict.fromkeys(name for job in jobs for name in job.here)
    return list(here), list(dict.fromkeys(name for job in jobs for name in job.there))


def batch_shapes(graph: Graph, samples: Batches, batch: int) -> Shapes:
    """Shapes of all tensors when one batch of the samples is fed."""
    feeds = next(iter(samples.batches(batch)))
    return shape_tools.infer(graph, {name: value.shape for name, value in feeds.items()})


def grams(
    graph: Graph,
    uses: Sequence[WeightUse],
    samples: Batches,
    *,
    group_bytes: int = GROUP_BYTES,
    batch: int = 8,
    threads: int = 2,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Iterator[dict[str, Gram]]:
    """`gram` for many layers in bounded memory: one pass over the samples for every group of consecutive layers.

    Args:
        group_bytes: most that the moments of one group may take; a single larger layer is a group of its own.

    Yields:
        The moments by node name of one group after another; let them go before the next step.
    """
    group: list[WeightUse] = []
    used = 0
    for use in uses:
        size = moment_bytes(use)
        if group and used + size > group_bytes:
            yield gram(
                graph, group, samples, batch=batch, threads=threads, max_rows=max_rows, seed=seed, progress=progress
            )
            group, used = [], 0
        group.append(use)
        used += size
    if group:
        yield gram(graph, group, samples, batch=batch, threads=threads, max_rows=max_rows, seed=seed, progress=progress)


def why_not(graph: Graph, use: WeightUse) -> str:
    """Why the inputs of a layer cannot be measured; empty when they can."""
    rule = LayerInputs.of(use)
    if isinstance(rule, str):
        return rule
    if not any(node is use.node for node in graph.nodes):
        return "it stands in a body of If, Loop or Scan, whose inputs cannot be read from outside"
    tensor = use.node.input(rule.port)
    if tensor is None or isinstance(tensor, Constant):
        return "its input is a constant"
    return ""


def moment_bytes(use: WeightUse) -> int:
    """Bytes that `Gram.h` takes for a weight; 0 where the weight has no rows."""
    rule = LayerInputs.of(use)
    return 0 if isinstance(rule, str) else 8 * rule.group * (rule.features + 1) ** 2


# -- one run over the samples ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Aim:
    """A target on one batch, as rows."""

    reference: Patches
    minus: Patches | None
    left: tuple[bool, ...] | None

    def take(self, rows: Array) -> tuple[Array, Array | None]:
        """The target of some rows, [group, rows, out] float32, and what is to be taken off it."""
        found = self.reference.take(rows)
        if self.left is not None:
            left = np.asarray(self.left).reshape(len(found), -1)[0]  # convolution groups lose the same places
            found = found[..., left]
        return found, None if self.minus is None else self.minus.take(rows)


@dataclass
class _Job:
    """Sums for one input tensor read in one way, and for the layers that read it so."""

    rule: LayerInputs
    source: str
    layers: dict[str, Target | None] = field(default_factory=dict)
    count: int = 0
    h: Array | None = None
    cross: dict[str, Array] = field(default_factory=dict)
    power: dict[str, Array] = field(default_factory=dict)
    held: dict[str, list[tuple[Array, Array, Array | None]]] = field(default_factory=dict)

    @property
    def here(self) -> list[str]:
        """Tensors it reads from the graph at hand."""
        return [self.source, *(t.minus for t in self.layers.values() if t is not None and t.minus)]

    @property
    def there(self) -> list[str]:
        """Tensors it reads from the reference."""
        return [t.reference for t in self.layers.values() if t is not None]

    def rows(self, most: int) -> int:
        """How many rows to look at, all batches together."""
        return min(most, max(LEAST_ROWS, ROWS_PER_FEATURE * self.rule.features))

    def add(
        self,
        here: Mapping[str, Array],
        there: Mapping[str, Array],
        quota: int,
        generator: np.random.Generator,
        hold: bool,
    ) -> None:
        patches = self.rule.patches(here[self.source])
        wanted = {name: self._target(t, here, there) for name, t in self.layers.items() if t is not None}
        picked = _pick(patches.count, quota, generator)
        width = self.rule.features + 1
        step = max(64, CHUNK_ELEMENTS // (width * self.rule.group))
        for start in range(0, len(picked), step):
            rows = picked[start : start + step]
            z = np.ones((self.rule.group, len(rows), width), np.float32)
            z[:, :, :-1] = patches.take(rows)
            turned = z.transpose(0, 2, 1)
            self.h = _plus(self.h, turned @ z)  # a matrix with its own transpose: BLAS does half the work
            for name, target in wanted.items():
                part, minus = target.take(rows)
                if hold:
                    self.held.setdefault(name, []).append((z, part, minus))
                part = part if minus is None else part - minus
                self.cross[name] = _plus(self.cross.get(name), turned @ part)
                self.power[name] = _plus(self.power.get(name), np.square(part, dtype=np.float64).sum(axis=1))
        self.count += len(picked)

    def _target(self, target: Target, here: Mapping[str, Array], there: Mapping[str, Array]) -> _Aim:
        minus = self.rule.outputs(here[target.minus]) if target.minus else None
        return _Aim(self.rule.outputs(there[target.reference]), minus, target.left)

    def row_bytes(self) -> int:
        """About what a held row takes; the targets count as much again as the inputs at most."""
        return 8 * self.rule.group * (self.rule.features + 1)

    def rows_of(self, name: str) -> Rows | None:
        """The held rows of a layer, put together; what they were put together from is let go."""
        parts = self.held.pop(name, None)
        if parts is None:
            return None
        z, aim, minus = zip(*parts, strict=True)
        whole = None if any(one is None for one in minus) else np.concatenate(minus, axis=1)
        return Rows(np.concatenate(z, axis=1), np.concatenate(aim, axis=1), whole)

    def results(self) -> dict[str, Gram]:
        n = max(self.count, 1)
        h = np.zeros((self.rule.group, *[self.rule.features + 1] * 2)) if self.h is None else self.h / n
        return {
            name: Gram(
                h,
                self.count,
                self.cross[name] / n if name in self.cross else None,
                self.power[name] / n if name in self.power else None,
                self.rows_of(name),
            )
            for name in self.layers
        }


@dataclass
class _Part:
    """Jobs whose activations fit the budget together, with the sessions that give them."""

    jobs: list[_Job]
    here: Session | None
    there: Session | None

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        found = [{**feeds, **session.run(feeds)} if session else dict(feeds) for session in (self.here, self.there)]
        return found[0], found[1]


def _jobs(graph: Graph, uses: Sequence[WeightUse], targets: Mapping[str, Target]) -> list[_Job]:
    found: dict[tuple[object, ...], _Job] = {}
    inside = set(graph.nodes)
    for use in uses:
        rule = LayerInputs.of(use)
        if isinstance(rule, str) or use.node not in inside:
            raise ValueError(f"the inputs of {use.node} cannot be measured: {why_not(graph, use)}")
        source = use.node.inputs[rule.port]
        job = found.setdefault((source, rule), _Job(rule, source.name))
        job.layers[use.node.name] = targets.get(use.node.name)
    return list(found.values())


def _split(
    graph: Graph,
    reference: Graph,
    jobs: list[_Job],
    feeds: Mapping[str, Array],
    shapes: Shapes,
    budget: int,
    threads: int,
) -> list[_Part]:
    """Consecutive jobs whose activations fit the budget; a tensor has the same size in both graphs."""
    groups: list[list[_Job]] = []
    used = budget
    for job in jobs:
        size = sum(_bytes(name, shapes, budget) for name in (*job.here, *job.there))
        if not groups or used + size > budget:
            groups.append([])
            used = 0
        groups[-1].append(job)
        used += size

    def session(source: Graph, names: list[str]) -> Session | None:
        wanted = [name for name in dict.fromkeys(names) if name not in feeds]
        return tapped(source, wanted, threads) if wanted else None

    return [
        _Part(
            group,
            session(graph, [name for job in group for name in job.here]),
            session(reference, [name for job in group for name in job.there]),
        )
        for group in groups
    ]


def _bytes(name: str, shapes: Shapes, budget: int) -> int:
    """Size of a tensor; a quarter of the budget where it is unknown."""
    known = shapes.types.get(name)
    if known is None or known.shape is None or known.dtype is None or not all(isinstance(d, int) for d in known.shape):
        return budget // 4
    return prod(int(d) for d in known.shape if isinstance(d, int)) * known.dtype.itemsize


def _pick(count: int, quota: int, generator: np.random.Generator) -> Array:
    """`quota` of `count` row numbers, one from each of equal stretches; all of them where there are no more."""
    if count <= quota:
        return np.arange(count)
    places = (np.arange(quota) + generator.random(quota)) * (count / quota)
    return np.minimum(places.astype(np.int64), count - 1)


def _plus(total: Array | None, part: Array) -> Array:
    if total is None:
        return part.astype(np.float64)
    total += part
    return total
