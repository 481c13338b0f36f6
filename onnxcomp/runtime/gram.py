"""What enters a layer, in second moments? Streams X^T X, and X^T Y against targets, over calibration samples.

A layer with weights computes y = W x + b for many rows x: the patches of a convolution, the rows of a matrix product.
All that least squares, pruning and rounding need to know of the data is E[x x^T] and E[x y^T], which do not grow with
the number of samples. The entries of x stand in the order of `Weight.to_matrix`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Literal, Protocol

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Constant, Graph, Node
from onnxcomp.graph.ops.facts import Weight
from onnxcomp.graph.types import Shapes
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.taps import BUDGET_BYTES, Batches, tapped

MAX_ROWS = 65536
ROWS_PER_FEATURE = 32  # rows of one picture are alike: beyond this, more samples help and more rows do not
LEAST_ROWS = 16384
CHUNK_ELEMENTS = 4 * 2**20  # of one block of rows: 16 MiB in float32
GROUP_BYTES = 512 * 2**20

_CONVS = ("Conv", "FusedConv")


class Use(Protocol):
    """A weight at a port of a node; the pass manager's `WeightUse` is one."""

    @property
    def node(self) -> Node:
        """The node that reads the weight."""

    @property
    def weight(self) -> Weight:
        """What its axes mean."""


@dataclass(frozen=True)
class Target:
    """What a layer should give: a tensor of the reference graph, less a tensor of the graph at hand if one is named.

    The second makes a layer in front of a residual Add aim at the sum: reference sum - shortcut as it is now.
    """

    reference: str
    minus: str = ""


@dataclass(frozen=True)
class Gram:
    """Second moments of the rows that enter a layer, convolution groups apart.

    Attributes:
        h: [group, in + 1, in + 1] float64: the mean of z z^T, z being a row with a constant 1 at its end.
        count: rows seen.
        cross: [group, in + 1, out / group] float64: the mean of z y^T for the target y; None without a target.
        power: [group, out / group] float64: the mean of y^2.
    """

    h: Array
    count: int
    cross: Array | None = None
    power: Array | None = None

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


@dataclass(frozen=True)
class LayerInputs:
    """How the tensor that enters a layer turns into rows.

    Attributes:
        port: input port of the activations.
        kind: `conv` and `deconv` cut patches, `rows` takes the last axis, `columns` the last but one.
        group: convolution groups.
        kernel: spatial extents of the kernel.
        features: entries of a row, of one group.
    """

    port: int
    kind: Literal["conv", "deconv", "rows", "columns"]
    features: int
    group: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, use: Use) -> LayerInputs | str:
        """The rule for a node and its weight, or why there is none."""
        node, weight = use.node, use.weight
        shape = node.inputs[weight.port].shape
        if weight.role != "kernel":
            return f"{node.op} does not multiply rows with this weight"
        if not isinstance(shape, tuple) or not all(isinstance(d, int) for d in shape):
            return "the shape of its weight is unknown"
        if node.op in _CONVS and len(shape) >= 3:
            return _conv(node, weight, shape)
        if node.op == "ConvTranspose" and len(shape) >= 3:
            return _deconv(node, weight, shape)
        if node.op == "Gemm":
            kind: Literal["rows", "columns"] = "columns" if node.attrs.get("transA", 0) else "rows"
            return cls(0, kind, shape[weight.in_axes[0]])
        if node.op == "MatMul" and prod(shape[:-2]) == 1:
            right = weight.port == 1
            return cls(1 - weight.port, "rows" if right else "columns", shape[-2 if right else -1])
        return f"{node.op} with a weight of shape {list(shape)} has no rows that all outputs share"

    def patches(self, x: Array) -> Patches:
        """The rows of one batch of the input tensor, not yet copied."""
        if self.kind == "columns":
            x = np.swapaxes(x, -1, -2)
        if self.kind in ("rows", "columns"):
            return Patches(x.reshape(-1, self.features), 1)
        return Patches(self._cut(x), 1 + len(self.kernel), self.group)

    def outputs(self, y: Array) -> Patches:
        """The layer's output, or a tensor like it, as rows in the order of `patches`, not yet copied."""
        if self.kind in ("conv", "deconv"):
            y = np.moveaxis(y, 1, -1)
        elif self.kind == "columns" and self.port == 1:  # a constant left side gives [..., out, rows]
            y = np.swapaxes(y, -1, -2)
        y = np.atleast_2d(y)
        return Patches(y, y.ndim - 1, self.group)

    def _cut(self, x: Array) -> Array:
        """A view of all patches: [n, *positions, *kernel, channels]."""
        x = np.moveaxis(x, 1, -1)
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        strides, taps = self.strides, [slice(None, None, d) for d in self.dilations]
        if self.kind == "deconv":  # a convolution of the input with zeros between its pixels, taps turned round
            x = _spread(x, self.strides)
            taps = [slice(None, None, -d) for d in self.dilations]
            strides = (1,) * len(spans)
        x = _padded(x, self._padding(x.shape[1:-1], spans))
        axes = tuple(range(1, 1 + len(spans)))
        view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)  # [n, *positions, channels, *spans]
        view = view[(slice(None), *(slice(None, None, s) for s in strides), slice(None), *taps)]
        return np.moveaxis(view, 1 + len(spans), -1)

    def _padding(self, sizes: tuple[int, ...], spans: Sequence[int]) -> list[tuple[int, int]]:
        rank = len(spans)
        pads = list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        if self.kind == "deconv":
            extra = self.output_padding
            return [(s - 1 - b, s - 1 - e + o) for s, (b, e), o in zip(spans, pads, extra, strict=True)]
        if not self.auto_pad.startswith("SAME"):
            return pads
        found = []
        for size, span, stride in zip(sizes, spans, self.strides, strict=True):
            total = max((ceil(size / stride) - 1) * stride + span - size, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return found


class Patches:
    """The rows of one batch, copied a block at a time.

    Args:
        view: [*positions, *row] of any strides.
        leading: how many axes are positions.
        group: convolution groups; the last axis holds the channels of all of them.
    """

    def __init__(self, view: Array, leading: int, group: int = 1) -> None:
        self.view, self.group = view, group
        self.positions = view.shape[:leading]
        self.count = prod(self.positions)

    def take(self, rows: Array) -> Array:
        """Some rows by their flat index, as [group, rows, in] float32."""
        picked = self.view[np.unravel_index(rows, self.positions)]
        parts = picked.reshape(len(rows), -1, self.group, picked.shape[-1] // self.group)
        return parts.transpose(2, 0, 1, 3).reshape(self.group, len(rows), -1).astype(np.float32, copy=False)


def gram(
    graph: Graph,
    uses: Sequence[Use],
    samples: Batches,
    *,
    targets: Mapping[str, Target] | None = None,
    reference: Graph | None = None,
    batch: int = 8,
    threads: int = 2,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    budget_bytes: int = BUDGET_BYTES,
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
        shapes: of all tensors on one batch, from `batch_shapes`, where many calls on one structure need them.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
        ValueError: a use cannot be measured.
    """
    jobs = _jobs(graph, uses, targets or {})
    if not jobs:
        return {}
    runs = -(-len(samples) // (_fixed_batch(graph) or batch))
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
                    job.add(here, there, -(-job.rows(max_rows) // runs), generator)
    return {name: result for job in jobs for name, result in job.results().items()}


def batch_shapes(graph: Graph, samples: Batches, batch: int) -> Shapes:
    """Shapes of all tensors when one batch of the samples is fed."""
    feeds = next(iter(samples.batches(batch)))
    return shape_tools.infer(graph, {name: value.shape for name, value in feeds.items()})


def grams(
    graph: Graph,
    uses: Sequence[Use],
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
    group: list[Use] = []
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


def why_not(graph: Graph, use: Use) -> str:
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


def moment_bytes(use: Use) -> int:
    """Bytes that `Gram.h` takes for a weight; 0 where the weight has no rows."""
    rule = LayerInputs.of(use)
    return 0 if isinstance(rule, str) else 8 * rule.group * (rule.features + 1) ** 2


# -- one run over the samples ------------------------------------------------------------------------------------------


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
        self, here: Mapping[str, Array], there: Mapping[str, Array], quota: int, generator: np.random.Generator
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
                part = sum(sign * values.take(rows) for sign, values in target)  # [group, rows, out]
                self.cross[name] = _plus(self.cross.get(name), turned @ part)
                self.power[name] = _plus(self.power.get(name), np.square(part, dtype=np.float64).sum(axis=1))
        self.count += len(picked)

    def _target(
        self, target: Target, here: Mapping[str, Array], there: Mapping[str, Array]
    ) -> list[tuple[np.float32, Patches]]:
        found = [(np.float32(1), self.rule.outputs(there[target.reference]))]
        if target.minus:
            found.append((np.float32(-1), self.rule.outputs(here[target.minus])))
        return found

    def results(self) -> dict[str, Gram]:
        n = max(self.count, 1)
        h = np.zeros((self.rule.group, *[self.rule.features + 1] * 2)) if self.h is None else self.h / n
        return {
            name: Gram(
                h,
                self.count,
                self.cross[name] / n if name in self.cross else None,
                self.power[name] / n if name in self.power else None,
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


def _jobs(graph: Graph, uses: Sequence[Use], targets: Mapping[str, Target]) -> list[_Job]:
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


def _fixed_batch(graph: Graph) -> int | None:
    """The batch size that the model's first input prescribes; None when it is free."""
    shape = graph.inputs[0].shape if graph.inputs else None
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else None


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


# -- geometry ----------------------------------------------------------------------------------------------------------


def _conv(node: Node, weight: Weight, shape: tuple[int, ...]) -> LayerInputs:
    """Conv: W [M, C / group, k...]."""
    rank = len(shape) - 2
    return LayerInputs(
        0,
        "conv",
        prod(shape[1:]),
        weight.group,
        shape[2:],
        _ints(node, "strides", 1, rank),
        _ints(node, "dilations", 1, rank),
        (0,) * 2 * rank if _auto_pad(node) != "NOTSET" else _ints(node, "pads", 0, 2 * rank),
        _auto_pad(node),
    )


def _deconv(node: Node, weight: Weight, shape: tuple[int, ...]) -> LayerInputs | str:
    """ConvTranspose: W [C, M / group, k...]."""
    rank = len(shape) - 2
    if weight.group != 1:
        return "a ConvTranspose with groups is not measured"
    if _auto_pad(node) not in ("NOTSET", "VALID") or "output_shape" in node.attrs:
        return "a ConvTranspose whose padding follows from output_shape or auto_pad is not measured"
    return LayerInputs(
        0,
        "deconv",
        shape[0] * prod(shape[2:]),
        1,
        shape[2:],
        _ints(node, "strides", 1, rank),
        _ints(node, "dilations", 1, rank),
        (0,) * 2 * rank if _auto_pad(node) != "NOTSET" else _ints(node, "pads", 0, 2 * rank),
        output_padding=_ints(node, "output_padding", 0, rank),
    )


def _ints(node: Node, name: str, default: int, count: int) -> tuple[int, ...]:
    found = tuple(int(v) for v in node.attrs.get(name) or ())
    return found or (default,) * count


def _auto_pad(node: Node) -> str:
    value = node.attrs.get("auto_pad", "NOTSET")
    return value.decode() if isinstance(value, bytes) else str(value)


def _spread(x: Array, strides: tuple[int, ...]) -> Array:
    """[n, *sizes, c] with stride - 1 zeros between neighbours along each spatial axis."""
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[1:-1], strides, strict=True)]
    wide = np.zeros((x.shape[0], *sizes, x.shape[-1]), x.dtype)
    wide[(slice(None), *(slice(None, None, s) for s in strides))] = x
    return wide


def _padded(x: Array, pads: list[tuple[int, int]]) -> Array:
    """[n, *sizes, c] with zeros added around, channels last in memory too; negative pads cut off."""
    if not any(pair != (0, 0) for pair in pads):
        return x
    cut = [slice(max(-b, 0), size - max(-e, 0)) for (b, e), size in zip(pads, x.shape[1:-1], strict=True)]
    inner = x[(slice(None), *cut)]
    sizes = [size + max(b, 0) + max(e, 0) for (b, e), size in zip(pads, inner.shape[1:-1], strict=True)]
    wide = np.zeros((x.shape[0], *sizes, x.shape[-1]), x.dtype)
    place = [slice(max(b, 0), max(b, 0) + size) for (b, _), size in zip(pads, inner.shape[1:-1], strict=True)]
    wide[(slice(None), *place)] = inner
    return wide
