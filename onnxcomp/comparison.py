"""How do any number of variants of a model stand to each other? Each opened and run once, all timed in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from onnxcomp._version import __version__
from onnxcomp.data.dataset import Samples
from onnxcomp.data.metric import Metric, MetricSource, parse_metric
from onnxcomp.data.open import Source
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError, UsageError
from onnxcomp.files import sha256_of
from onnxcomp.graph import cost
from onnxcomp.graph.io import read
from onnxcomp.ops.facts import load_operators
from onnxcomp.report.comparison import COLUMNS, cells, lines
from onnxcomp.report.notebook import fragment
from onnxcomp.results import Accuracy, Benchmark, Fidelity, ModelStats, finite
from onnxcomp.runtime.latency import bench_many
from onnxcomp.runtime.machine import conflict, machine, versions
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.accuracy import Collected
from onnxcomp.verify.agreement import Agreeing, TaskBook
from onnxcomp.verify.evidence import doubts
from onnxcomp.verify.fidelity import Closeness
from onnxcomp.verify.opening import Opener
from onnxcomp.verify.pair import Runner

MADE_UP = 64  # samples to compare on where there are none and that was asked for


@dataclass(frozen=True)
class Variant:
    """One model of a comparison.

    Attributes:
        label: its name in the table: the file's, or its path where two files have one name.
        latency_ms: p50, p90 and p99 of single calls; None where nothing was timed.
        benchmark: against the first; None for the first itself.
        accuracy: `before` is the first model's; for the first itself both are its own.
        fidelity: to the first; None for the first itself.
    """

    label: str
    path: str
    sha256: str
    stats: ModelStats
    latency_ms: dict[str, float] | None = None
    benchmark: Benchmark | None = None
    accuracy: Accuracy | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class Comparison:
    """Variants of a model, side by side; the first is what the others are held against.

    Attributes:
        source: what the samples are.
        samples: how many each model answered to; 0 where there were none.
        notes: guesses, and what the reader must know of how it was measured.
        doubts: why it is weak evidence.
    """

    variants: tuple[Variant, ...]
    source: str
    samples: int
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; fields have the names they have in a report."""
        models = []
        for one in self.variants:
            bench, accuracy, fidelity = one.benchmark, one.accuracy, one.fidelity
            models.append(
                {
                    "label": one.label,
                    "path": one.path,
                    "sha256": one.sha256,
                    **asdict(one.stats),
                    "latency_ms": one.latency_ms,
                    "speedup": None if bench is None else bench.speedup,
                    "speedup_interval": None if bench is None else bench.speedup_interval,
                    "outcome": None if bench is None else bench.outcome,
                    "accuracy": None if accuracy is None else accuracy.after,
                    "drop": None if accuracy is None else accuracy.drop,
                    "sqnr_db": None if fidelity is None else fidelity.worst_sqnr_db,
                    "identical": None if fidelity is None else fidelity.identical,
                    "agreement": None if fidelity is None else fidelity.agreement,
                    "fidelity": None if fidelity is None else asdict(fidelity),
                }
            )
        metric = next((one.accuracy.metric for one in self.variants if one.accuracy is not None), None)
        found: dict[str, Any] = finite(
            {
                "schema": 1,
                "tool": {"name": "onnxcomp", "version": __version__, **versions()},
                "machine": machine().to_json(),
                "data": self.source,
                "samples": self.samples,
                "metric": metric,
                "timed": next((_timed(one.benchmark) for one in self.variants if one.benchmark is not None), None),
                "models": models,
                "notes": list(self.notes),
                "doubts": list(self.doubts),
            }
        )
        return found

    def __repr__(self) -> str:
        return f"<Comparison of {len(self.variants)} models: {', '.join(one.label for one in self.variants)}>"

    def _repr_html_(self) -> str:
        content = self.to_json()
        return fragment(repr(self)[1:-1], COLUMNS, cells(content), lines(content))


def compare(
    models: Sequence[Path],
    data: Source | None = None,
    *,
    labels: Any = None,
    metric: MetricSource | None = None,
    task: str | None = None,
    eval_samples: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    states: Mapping[str, str] | None = None,
    preprocess: Preprocess | None = None,
    allow_random: bool = False,
    bench: bool = True,
    bench_seconds: float = 4.0,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = SILENT,
) -> Comparison:
    """Set variants of a model side by side, whoever made them: size, MACs, latency, accuracy, closeness to the first.

    Every model answers to the samples once, and all are timed in turns in one process, with one thread.

    Args:
        models: files with the same inputs and outputs, two or more; the others are held against the first.
        data: samples; without any, models are timed on made-up ones and closeness is told only with `allow_random`.
        labels: labels of the data where it carries none.
        metric: as `parse_metric` takes it; top-1 where there are labels and this is None.
        task: what the outputs are, `boxes` or `OUTPUT=KIND,...`; guessed if not given.
        eval_samples: use the first so many; None for all.
        shapes: sizes for free dimensions, by input.
        states: of a stateful model, which output is which input of the next step; guessed where none is given.
        preprocess: how raw pictures become the input.
        allow_random: without data, compare on made-up samples.
        bench: measure latency.
        bench_seconds: for each model after the first.
        seed: of made-up samples and of the turns.
        threads: for the answers, 0: every core.
        progress: shows batches and rounds.

    Raises:
        UsageError: there are fewer than two models.
        ModelError: a model does not load or run, or inputs or outputs differ.
        DataError: data do not fit, or labels or a metric come without data.
    """
    if len(models) < 2:
        raise UsageError("there is nothing to compare with", where="the models", do="give two or more")
    if data is None and (labels is not None or metric is not None):
        raise DataError("labels and metrics need real data", where="--data is missing", do="give --data")
    opener = Opener(models[0], shapes=shapes, states=states)
    if data is None:
        dataset = opener.made_up(MADE_UP if eval_samples is None else eval_samples, seed)
    else:
        dataset = opener.open(data, preprocess=preprocess, labels=labels)
    chosen = parse_metric(metric) if metric is not None or dataset.labels is not None else None
    samples = dataset.samples() if eval_samples is None else dataset.samples().head(eval_samples)
    runner = Runner(*models, threads=threads)  # what differs in inputs or outputs is told before anything runs
    judged = data is not None or allow_random
    found = _answers(runner, models, samples, chosen, task, progress) if judged else [(None, None)] * len(models)
    feed = next(samples.batches(1))
    against: list[Benchmark | None] = [None] * len(models)
    times: list[dict[str, float] | None] = [None] * len(models)
    if bench:
        measured = bench_many(list(models), feed, seconds=bench_seconds, seed=seed, progress=progress)
        against[1:] = measured
        times = [measured[0].before_ms, *(one.after_ms for one in measured)]
    shown = {name: tuple(array.shape) for name, array in feed.items()}
    variants = tuple(
        _variant(path, label, shown, latency_ms, one, *answers)
        for path, label, latency_ms, one, answers in zip(models, labels_of(models), times, against, found, strict=True)
    )
    told = variants[1].fidelity
    notes = [*dataset.guesses, *(told.guesses if told is not None else ()), *dataset.problems]
    if not judged:
        notes.append("no --data: nothing tells how close the answers are, and times are of made-up samples")
    weak = [line for one in variants[1:] for line in doubts(one.fidelity, one.accuracy, samples.labels)]
    source = dataset.source if data is not None else "made-up samples"
    return Comparison(
        variants,
        source,
        len(samples) if judged else 0,
        tuple(filter(None, [conflict(), *dict.fromkeys(notes)])),
        tuple(dict.fromkeys(weak)),
    )


def labels_of(models: Sequence[Path]) -> list[str]:
    """What each is called in tables: the file's name, more of its path where names repeat, a number where paths do."""
    names = [path.name for path in models]
    found = [name if names.count(name) == 1 else str(path) for name, path in zip(names, models, strict=True)]
    return [
        label if found.count(label) == 1 else f"{label} ({found[: index + 1].count(label)})"
        for index, label in enumerate(found)
    ]


def _answers(
    runner: Runner,
    models: Sequence[Path],
    samples: Samples,
    metric: Metric | None,
    task: str | None,
    progress: Progress,
) -> list[tuple[Fidelity | None, Accuracy | None]]:
    """Closeness to the first and accuracy of every model, from one pass over the samples."""
    book, collected = TaskBook(models[0], task), Collected()
    closeness = [Closeness(runner.varying) for _ in models[1:]]
    agreeing = [Agreeing(book) for _ in models[1:]]
    for answer in runner.answers(samples, progress=progress, text="comparing"):
        for index, (close, agree) in enumerate(zip(closeness, agreeing, strict=True), 1):
            pair = replace(answer, outputs=(answer.outputs[0], answer.outputs[index]))
            close.add(pair)
            agree.add(pair)
        if metric is not None:
            collected.add(answer)
    source: Literal["data", "synthetic"] = "synthetic" if samples.dataset.synthetic else "data"
    close_to: list[Fidelity | None] = [None]
    close_to += [a.told(c.result(source)) for a, c in zip(agreeing, closeness, strict=True)]
    if metric is None:
        return [(fidelity, None) for fidelity in close_to]
    scores = [metric.score(collected.outputs(index), samples.labels) for index in range(len(models))]
    return [
        (fidelity, Accuracy(metric.name, collected.samples, scores[0], score, metric.drop(scores[0], score)))
        for fidelity, score in zip(close_to, scores, strict=True)
    ]


def _variant(
    path: Path,
    label: str,
    shapes: Mapping[str, tuple[int, ...]],
    latency_ms: dict[str, float] | None,
    bench: Benchmark | None,
    fidelity: Fidelity | None,
    accuracy: Accuracy | None,
) -> Variant:
    graph, files = read(path)
    size = sum(file.stat().st_size for file in files)
    stats = cost.stats(graph, load_operators(), file_bytes=size, sample=shapes)
    return Variant(label, str(path), sha256_of(*files), stats, latency_ms, bench, accuracy, fidelity)


def _timed(bench: Benchmark) -> dict[str, Any]:
    """What was timed, and how."""
    return {
        "provider": bench.provider,
        "batch": bench.batch,
        "threads": bench.threads,
        "compared": bench.compared,
        "shapes": bench.shapes,
    }
