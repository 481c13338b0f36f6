"""How fast are some models, on which providers, with how many threads and samples? A table of measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp._version import __version__
from onnxcomp.data.dataset import Dataset
from onnxcomp.data.inputs import InputSpec, inputs_of, interface_of
from onnxcomp.data.open import Source
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.files import scratch
from onnxcomp.report.notebook import fragment
from onnxcomp.report.timings import LATENCY, latency_cells
from onnxcomp.results import Benchmark, Footprint, finite
from onnxcomp.runtime.acceleration import PLAIN, Acceleration, is_quantized
from onnxcomp.runtime.footprint import footprint
from onnxcomp.runtime.latency import Entry, bench_many
from onnxcomp.runtime.machine import check_threads, conflict, machine, versions
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.providers import TENSORRT, full_name, require, short_name
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.opening import Opener

Feed = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Variant:
    """A model under the options of a provider. `label`: its name in the table, unique there."""

    model: Path
    label: str
    acceleration: Acceleration = PLAIN


@dataclass(frozen=True)
class Row:
    """All variants at one setting; `benchmarks` sets each further variant against the first."""

    variants: tuple[Variant, ...]
    shapes: dict[str, tuple[int, ...]]
    benchmarks: tuple[Benchmark, ...]


@dataclass(frozen=True)
class BenchTable:
    """What was measured, on what data. `notes`: what spoils it."""

    models: tuple[Path, ...]
    source: str
    synthetic: bool
    guesses: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[tuple[str, ...]]:
        """A row of text for each model at each setting: its label, provider, threads, batch, and latency."""
        found = []
        for row in self.rows:
            sides = [(row.benchmarks[0], 0), *((bench, 1) for bench in row.benchmarks)]
            for variant, (one, side) in zip(row.variants, sides, strict=True):
                setting = (short_name(one.provider), str(one.threads), str(one.batch))
                found.append((variant.label, *setting, *latency_cells(one, side)))
        return found

    def __repr__(self) -> str:
        return f"<BenchTable {'; '.join(f'{row[0]} {row[4]} ms ({row[7]})' for row in self.cells())}>"

    def _repr_html_(self) -> str:
        title = f"latency on {'made-up samples' if self.synthetic else self.source}"
        return fragment(
            title, ("model", "provider", "threads", "batch", *LATENCY), self.cells(), (*self.notes, *self.guesses)
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: a list with an entry for each pair at each setting."""
        benchmarks = [
            {
                "before": str(row.variants[0].model),
                "after": str(variant.model),
                "labels": [row.variants[0].label, variant.label],
                **asdict(bench),
                "shapes": row.shapes,
                "outcome": bench.outcome,
            }
            for row in self.rows
            for variant, bench in zip(row.variants[1:], row.benchmarks, strict=True)
        ]
        found: dict[str, Any] = finite(
            {
                "schema": 1,
                "tool": {"name": "onnxcomp", "version": __version__, **versions()},
                "machine": machine().to_json(),
                "data": self.source,
                "synthetic": self.synthetic,
                "notes": list(self.notes),
                "benchmarks": benchmarks,
            }
        )
        return found


def bench(
    models: Sequence[Path],
    *,
    data: Source | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    states: Mapping[str, str] | None = None,
    preprocess: Preprocess | None = None,
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    acceleration: Acceleration = PLAIN,
    seconds: float = 4.0,
    footprints: bool = True,
    seed: int = 0,
    progress: Progress = SILENT,
) -> BenchTable:
    """Latency, load time and memory of each model against the first, at every setting.

    On TensorRT the first model in half precision is the baseline where a later one is quantized or half precision was
    asked for, and the first in full precision stands beside it: what int8 has to beat there is fp16.

    Args:
        models: files, whoever made them; a single one is measured against itself.
        data: samples; made-up ones without.
        shapes: sizes for free dimensions, by input; a batch asked for takes the place of a free one.
        states: of a stateful model, which output is which input of the next step; guessed where none is given.
        preprocess: how raw pictures become the input.
        providers: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full names.
        batches, threads: every combination is measured; more threads than one only where the CPU computes.
        acceleration: options of GPU providers; each provider takes those it has.
        seconds: about how long to measure each model after the first at each setting.
        footprints: measure load time and memory, in processes of their own.
        seed: of made-up data and of the models' turns.
        progress: shows the rounds.

    Raises:
        UsageError: no model, a wrong option, or a batch that the model does not take.
        ModelError, DataError: a model or the data cannot be used.
        EnvironmentLacksError: a provider does not run on this machine; found out before anything is measured.
    """
    if not models:
        raise UsageError("there is no model to measure", do="name at least one")
    chosen = list(dict.fromkeys(full_name(provider) for provider in providers))
    for name in acceleration.given:
        if not any(name in acceleration.meant_for(provider).given for provider in chosen):
            acceleration.check(chosen[0])
    for provider in chosen:
        require(provider)
    for count in threads:
        check_threads(count)
    first = OpenedModel(models[0])
    wanted = interface_of(first.graph).inputs
    _check_inputs(models, wanted)
    settings = [(batch, count) for batch in dict.fromkeys(batches) for count in dict.fromkeys(threads)]
    sized = {batch: _sized(wanted, shapes, batch, several=len(batches) > 1) for batch in dict.fromkeys(batches)}
    datasets: dict[int, Dataset] = {}
    for batch, sizes in sized.items():
        same = next((datasets[other] for other in datasets if sized[other] == sizes), None)
        datasets[batch] = same or _dataset(first, data, preprocess, sizes, states, seed, max(batches))
    dataset = datasets[batches[0]]
    feeds = {batch: _feed(datasets[batch], batch) for batch in sized}
    rows = []
    with ExitStack() as stack:
        for provider in chosen:
            options = _with_cache(acceleration.meant_for(provider), provider, stack)
            variants = tuple(_variants(models, provider, options))
            for batch, count in progress.track(settings, len(settings), f"measuring on {provider}"):
                feed = feeds[batch]
                taken = _footprints(variants, feed, provider, count, progress) if footprints else None
                entries = [Entry(variant.model, variant.acceleration) for variant in variants]
                found = bench_many(
                    entries, feed, provider=provider, threads=count, seconds=seconds, seed=seed, progress=progress
                )
                rows.append(_row(variants, feed, found, taken))
    return BenchTable(
        tuple(models),
        dataset.source,
        dataset.synthetic,
        dataset.guesses,
        tuple(rows),
        tuple(filter(None, [conflict()])),
    )


def _check_inputs(models: Sequence[Path], wanted: Sequence[InputSpec]) -> None:
    """Refuse models that do not take what the first one does, before any of them is run."""
    for model in models[1:]:
        found, _ = inputs_of(model)
        if {(spec.name, spec.dtype) for spec in found} != {(spec.name, spec.dtype) for spec in wanted}:
            first, other = (", ".join(map(str, specs)) for specs in (wanted, found))
            raise ModelError(
                f"the models take different inputs: {first}, but {other}",
                where=str(model),
                do="only models with the same inputs can be timed on the same data",
            )


def _row(variants: tuple[Variant, ...], feed: Feed, found: list[Benchmark], taken: list[Footprint] | None) -> Row:
    if taken is not None:
        found = [replace(one, footprints=(taken[0], other)) for one, other in zip(found, taken[1:], strict=True)]
    return Row(variants, {name: tuple(array.shape) for name, array in feed.items()}, tuple(found))


def _variants(models: Sequence[Path], provider: str, acceleration: Acceleration) -> Iterator[Variant]:
    """What competes on a provider; the first is the baseline."""
    names = _names(models)
    half = replace(acceleration, fp16=True)
    quantized = provider == TENSORRT and [is_quantized(model) for model in models]
    if quantized and (acceleration.fp16 or any(quantized[1:])):
        yield Variant(models[0], f"{names[0]}, {'int8 and ' * quantized[0]}fp16", half)
        yield Variant(models[0], f"{names[0]}, {'int8 and ' * quantized[0]}fp32", replace(acceleration, fp16=False))
        for model, name, integer in zip(models[1:], names[1:], quantized[1:], strict=True):
            yield Variant(model, f"{name}, {'int8 and ' * integer}fp16", half)
        return
    yield from (Variant(model, name, acceleration) for model, name in zip(models, names, strict=True))
    if len(models) == 1:
        yield Variant(models[0], "the same again", acceleration)


def _with_cache(acceleration: Acceleration, provider: str, stack: ExitStack) -> Acceleration:
    """TensorRT's engines are built once a model and setting, not once a session: in a folder for this run at least."""
    if provider != TENSORRT:
        return acceleration
    if acceleration.engine_cache is not None:
        acceleration.engine_cache.mkdir(parents=True, exist_ok=True)
        return acceleration
    folder = stack.enter_context(scratch("engines"))
    return replace(acceleration, engine_cache=folder)


def _footprints(
    variants: Sequence[Variant], feed: Feed, provider: str, threads: int, progress: Progress
) -> list[Footprint]:
    done: dict[tuple[Path, Acceleration], Footprint] = {}
    for variant in progress.track(variants, len(variants), "loading each model alone"):
        key = (variant.model, variant.acceleration)
        if key not in done:
            done[key] = footprint(
                variant.model, feed, provider=provider, threads=threads, acceleration=variant.acceleration
            )
    return [done[variant.model, variant.acceleration] for variant in variants]


def _sized(
    inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]] | None, batch: int, *, several: bool
) -> Mapping[str, tuple[int, ...]] | None:
    """The sizes given, with the batch first where the model leaves that free.

    A single batch of 1, which is the default, leaves them as they were given.
    """
    if not shapes or (batch == 1 and not several):
        return shapes
    free = {spec.name: spec.axis for spec in inputs if spec.axis is not None and spec.batch is None}

    def with_batch(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = free.get(name)
        return shape if axis is None else (*shape[:axis], batch, *shape[axis + 1 :])

    return {name: with_batch(name, shape) for name, shape in shapes.items()}


def _dataset(
    model: OpenedModel,
    data: Source | None,
    preprocess: Preprocess | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    states: Mapping[str, str] | None,
    seed: int,
    samples: int,
) -> Dataset:
    opener = Opener(model, shapes=shapes, states=states)
    return opener.made_up(samples, seed) if data is None else opener.open(data, preprocess=preprocess)


def _feed(dataset: Dataset, batch: int) -> Feed:
    samples = dataset.samples()
    fixed = dataset.reader.batch
    if fixed is not None and batch not in (1, fixed):
        raise UsageError(
            f"a call of this model takes {fixed} sample{'s' * (fixed != 1)}, and --batch asks for {batch}",
            where=dataset.source,
            do="leave it out, or export the model with a free batch size",
        )
    if len(samples) < batch:
        raise DataError(
            f"there are {len(samples)} samples, and --batch asks for {batch}", where=dataset.source, do="give more data"
        )
    feed: Feed = next(samples.batches(batch))
    return feed


def _names(models: Sequence[Path]) -> list[str]:
    """File names, or whole paths where file names repeat."""
    names = [model.name for model in models]
    return names if len(set(names)) == len(names) else [str(model) for model in models]
