"""Which layers of a pair of models lose how much, and why: from two files and data to an explanation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxcomp.data.dataset import Samples
from onnxcomp.data.inputs import inputs_of
from onnxcomp.data.open import Source, open_data
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError, ModelError
from onnxcomp.explanation.advising import Advisor
from onnxcomp.explanation.causes import cause_of, compare_weights, of_one_model
from onnxcomp.explanation.matching import match
from onnxcomp.explanation.measuring import Finding, measure, seen
from onnxcomp.explanation.products import Layer, Reading, feeds_shapes, layers
from onnxcomp.explanation.report import Explanation, LayerLoss, culprits, in_order
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.io import load, to_bytes
from onnxcomp.graph.ir import Array, Constant, Graph, Tensor
from onnxcomp.job import Job
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import Operators, load_operators
from onnxcomp.runtime.profile import node_times
from onnxcomp.runtime.progress import SILENT, Progress

SAMPLES = 16
MATCHED_ON = 2  # samples that matching looks at
ALIGNED_BYTES = 256 << 20  # of values, of as many samples as there are, by which channels that are left are known
FORECAST = (
    "fold-constants,cleanup,fuse-batchnorm,"
    "quantize-qdq{placement=table,rounding=nearest,bias_correction=false,min_sqnr=0}"
)
FEW = 4


def explain(
    before: Path,
    after: Path | None,
    data: Source,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    preprocess: Preprocess | None = None,
    samples: int = SAMPLES,
    times: bool = True,
    seed: int = 0,
    threads: int = 2,
    progress: Progress = SILENT,
) -> Explanation:
    """Explain a pair of models, or what would hurt one model if every layer became int8.

    Args:
        before: the original.
        after: any other form of it; None for a forecast of `before` alone.
        data: samples, as `open_data` takes them.
        shapes: sizes for free dimensions, by input.
        preprocess: how raw pictures become the input.
        samples: how many are run.
        times: profile both models for the kernels' microseconds.
        seed: of the forecast's calibration.
        threads: of ONNX Runtime.
        progress: shows the stages.

    Raises:
        ModelError: a model does not load or run, the two have other inputs, or none of their layers is the same.
        DataError: data are missing or do not fit.
    """
    inputs, metadata = inputs_of(before)
    dataset = open_data(data, inputs, preprocess=preprocess, metadata=metadata, shapes=shapes)
    chosen = dataset.samples().head(samples)
    if not len(chosen):
        raise DataError("there are no samples to run the models on", where="--data", do="give at least one sample")
    first = load(before)
    notes = [*dataset.guesses, *dataset.problems]
    if len(chosen) < FEW:
        count = "one sample" if len(chosen) == 1 else f"{len(chosen)} samples"
        notes.append(f"only {count}: the order of layers with errors alike is not certain")
    if after is None:
        second = forecast(first, chosen, seed, threads, progress)
        told = f"{before.name} with every layer in int8 (a forecast)"
    else:
        second, told = load(after), str(after)
        _check_inputs(first, second, after)
    found = explain_graphs(
        first, second, chosen, names=(str(before), told), notes=notes, times=times, threads=threads, progress=progress
    )
    # what is to be pasted reads the same samples in the same way
    asked = Job(before, data=data, shapes=shapes or {}, preprocess=preprocess or Preprocess(), seed=seed)
    return replace(found, options=shlex.join(asked.flags()))


def forecast(graph: Graph, samples: Samples, seed: int, threads: int, progress: Progress) -> Graph:
    """The model with every layer that can be in int8, by plain rounding."""
    context = PassContext(
        calibration=samples,
        sample_shapes=feeds_shapes(next(iter(samples.batches(1)))),
        seed=seed,
        threads=threads,
        progress=progress,
    )
    return PassManager(Pipeline.parse(FORECAST), verify=False, on_failure="rollback").run(graph, context).graph


def explain_graphs(
    before: Graph,
    after: Graph,
    samples: Samples,
    *,
    names: tuple[str, str],
    notes: Sequence[str] = (),
    times: bool = True,
    threads: int = 2,
    progress: Progress = SILENT,
) -> Explanation:
    """As `explain`, on graphs in memory."""
    operators = load_operators()
    feed = next(iter(samples.batches(1)))
    sides = [_read(graph, feed, operators) for graph in (before, after)]
    for (_, found), where in zip(sides, names, strict=True):
        if not found:
            raise ModelError(
                "there are no layers with weights in the main graph",
                where=where,
                do="explain needs convolutions, matrix products or recurrent layers that are not inside If or Loop",
            )
    values = tuple(_places(reading, found, samples, threads) for reading, found in sides)
    pairs = match(sides[0][1], sides[1][1], (values[0], values[1]))
    if pruned := [pair for pair in pairs if pair.entry is None or not pair.exits]:
        held = sum(array.nbytes for side in values for array in side.values()) // MATCHED_ON
        count = max(MATCHED_ON, min(len(samples), ALIGNED_BYTES // max(1, held)))
        ends = [pair.before for pair in pruned], [pair.after for pair in pruned]
        more = [_places(sides[k][0], ends[k], samples, threads, count) for k in (0, 1)]
        shapes = sides[0][0].shapes, sides[1][0].shapes
        pairs = match(sides[0][1], sides[1][1], (values[0] | more[0], values[1] | more[1]), shapes)
    if not of_one_model(pairs, sides[0][1]):
        raise ModelError(
            "the models compute different things: no layer of the second has the weights of one of the first",
            where=f"{names[0]} and {names[1]}",
            do="give two forms of one model: the same layers, whatever their names and types",
        )
    readings = sides[0][0], sides[1][0]
    findings = measure(pairs, *readings, samples, threads=threads)
    spent = _times((before, after), feed) if times else ({}, {})
    advisor = Advisor(after, sides[0][1])
    by_row = {_row(f, readings, operators, spent, advisor): f for f in findings}
    rows = in_order(list(by_row))
    blamed = culprits(rows)
    together = advisor.without([by_row[row] for row in rows[:blamed]])
    matched = {p.before for p in pairs}, {p.after for p in pairs}
    unmatched = tuple(
        tuple(layer.node.name for layer in found if layer not in known)
        for (_, found), known in zip(sides, matched, strict=True)
    )
    return Explanation(
        *names,
        len(samples),
        tuple(rows),
        blamed,
        (unmatched[0], unmatched[1]),
        tuple(notes),
        advice=together,
        total=len(samples.dataset),
    )


def _check_inputs(first: Graph, second: Graph, where: Path) -> None:
    mine, other = ({t.name for t in graph.inputs} for graph in (first, second))
    if mine != other:
        raise ModelError(
            f"the models have different inputs: {', '.join(sorted(mine))} before, {', '.join(sorted(other))} after",
            where=str(where),
            do="only models that take the same data can be compared",
        )
    shapes = {t.name: t.shape for t in first.inputs}
    for port in second.inputs:
        known = shapes[port.name]
        if known is not None and port.shape is not None and not _alike(known, port.shape):
            raise ModelError(
                f"the models have different inputs: {port.name} is {list(known)} before, {list(port.shape)} after",
                where=str(where),
                do="only models that take the same data can be compared",
            )


def _alike(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether two shapes can be one, however many samples are taken at once."""
    return len(a) == len(b) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a[1:], b[1:], strict=True)
    )


def _read(graph: Graph, feed: Mapping[str, Array], operators: Operators) -> tuple[Reading, list[Layer]]:
    return layers(graph, shape_tools.infer(graph, feeds_shapes(feed)), operators)


def _places(
    reading: Reading, found: Sequence[Layer], samples: Samples, threads: int, count: int = MATCHED_ON
) -> dict[str, Array]:
    places = [p for layer in found for p in (*layer.entries, layer.product, layer.linear, layer.active)]
    return seen(reading, places, samples, count, threads)


def _row(
    finding: Finding,
    readings: tuple[Reading, Reading],
    operators: Operators,
    spent: tuple[Mapping[str, float], Mapping[str, float]],
    advisor: Advisor,
) -> LayerLoss:
    pair, own, piled = finding.pair, finding.own_error, finding.piled_error
    weights = compare_weights(pair.before, pair.after)
    cause = cause_of(finding, weights)
    entry = pair.entry[1] if pair.entry is not None else None
    ranged = entry is not None and np.isfinite(entry.high)
    measured = own is not None and own.count > 0
    equal = bool(piled is not None and piled.count and piled.sqnr_db is None)
    dead = int(((own.energy == 0) & (own.signal > 0)).sum()) if own is not None and measured else 0
    times = tuple(_time_of(p, s) for p, s in zip((pair.before, pair.after), spent, strict=True))
    return LayerLoss(
        node=pair.before.node.name,
        output=pair.before.active.tensor.name,
        after=pair.after.node.name,
        op=(pair.before.node.op, pair.after.node.op),
        own_sqnr_db=own.sqnr_db if own is not None and measured else None,
        accumulated_sqnr_db=piled.sqnr_db if piled is not None and piled.count else None,
        equal=equal,
        why=cause.why,
        remedy=cause.remedy,
        fault=cause.fault,
        advice="" if equal or not measured or own is None or own.sqnr_db is None else advisor.without([finding]),
        weight_sqnr_db=weights.sqnr_db,
        input_range=(finding.fed.low, finding.fed.high) if finding.fed.count else None,
        quantized_range=(entry.low, entry.high) if entry is not None and ranged else None,
        scale=entry.step if entry is not None else 0.0,
        clipped=finding.fed.beyond / finding.fed.count if finding.fed.count else 0.0,
        saturated=weights.saturated,
        dead_channels=dead,
        bytes=(_bytes(pair.before), _bytes(pair.after)),
        microseconds=None if None in times else (float(times[0] or 0), float(times[1] or 0)),
    )


def _bytes(layer: Layer) -> int:
    """Of the initializers that the layer's weight and bias are made of."""
    held: dict[Tensor, int] = {}
    stack: list[Tensor] = list(layer.node.inputs)
    entry = {place.tensor for place in layer.entries}
    visited: set[Tensor] = set()
    while stack:
        tensor = stack.pop()
        if tensor in visited or tensor in entry:
            continue
        visited.add(tensor)
        if isinstance(tensor, Constant):
            held[tensor] = tensor.nbytes
        elif tensor.producer is not None and not any(t in entry for t in tensor.producer.inputs):
            stack.extend(tensor.producer.inputs)
    return sum(held.values())


def _times(graphs: tuple[Graph, Graph], feed: Mapping[str, Array]) -> tuple[dict[str, float], dict[str, float]]:
    found = []
    for graph in graphs:
        wanted = {t.name for t in graph.inputs}
        times = node_times(to_bytes(graph), {n: a for n, a in feed.items() if n in wanted}, runs=10)
        found.append({t.name: t.microseconds for t in times})
    return found[0], found[1]


def _time_of(layer: Layer, spent: Mapping[str, float]) -> float | None:
    """The time of the kernel that bears the layer's name, fused or not."""
    name = layer.node.name
    if not name or layer.node.unnamed:
        return None
    return next((time for kernel, time in spent.items() if kernel == name or kernel.startswith(f"{name}_")), None)
