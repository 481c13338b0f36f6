"""What does the comparison of any two model files say, from a data source and a budget to an exit code?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxcomp.data.dataset import Samples
from onnxcomp.data.metric import Metric, parse_metric
from onnxcomp.data.open import Source
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import DataError
from onnxcomp.results import Accuracy, Benchmark, BudgetLine, Fidelity, finite
from onnxcomp.runtime.acceleration import PLAIN, Acceleration
from onnxcomp.runtime.latency import Entry, compare
from onnxcomp.runtime.machine import conflict
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.agreement import TaskBook
from onnxcomp.verify.budget import Budget, exit_code
from onnxcomp.verify.evidence import doubts
from onnxcomp.verify.judge import judge
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.opening import Opener
from onnxcomp.verify.runtimes import otherwise

SYNTHETIC_SAMPLES = 64


@dataclass(frozen=True)
class PairVerdict:
    """What was found out about two models.

    `sizes`: bytes before and after, external data included. `doubts`: why this is weak evidence.
    """

    before: Path
    after: Path
    sizes: tuple[int, int]
    fidelity: Fidelity
    accuracy: Accuracy | None
    benchmark: Benchmark | None
    budget: tuple[BudgetLine, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 within the budget, else 10 accuracy, 11 size, 12 speed, 14 SQNR, 15 agreement, the lowest."""
        return exit_code(self.budget)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; fields have the names they have in a report."""
        content: dict[str, Any] = {
            "schema": 1,
            "exit_code": self.exit_code,
            "before": {"path": str(self.before), "bytes": self.sizes[0]},
            "after": {"path": str(self.after), "bytes": self.sizes[1]},
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "fidelity": asdict(self.fidelity),
            "benchmarks": [] if self.benchmark is None else [asdict(self.benchmark)],
            "budget": [asdict(line) for line in self.budget],
            "notes": list(self.notes),
            "doubts": list(self.doubts),
        }
        found: dict[str, Any] = finite(content)
        return found


def verify_pair(
    before: Path,
    after: Path,
    data: Source | None,
    *,
    labels: Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    states: Mapping[str, str] | None = None,
    preprocess: Preprocess | None = None,
    metric: str | None = None,
    task: str | None = None,
    eval_samples: int | None = None,
    allow_random: bool = False,
    budget: Budget | None = None,
    provider: str = "cpu",
    acceleration: Acceleration = PLAIN,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = SILENT,
) -> PairVerdict:
    """Judge `after` against `before`.

    Args:
        before, after: model files with the same inputs and outputs, whoever made them.
        data: samples, as `open_data` takes them; None only with `allow_random`.
        labels: labels of the data where it carries none.
        shapes: sizes for free dimensions, by input.
        states: of a stateful model, which output is which input of the next step; guessed where none is given.
        preprocess: how raw pictures become the input.
        metric: `module.py:function[:min]`; top-1 where there are labels and this is None.
        task: what the outputs are, `boxes` or `OUTPUT=KIND,...`; guessed if not given.
        eval_samples: use the first so many; None for all.
        allow_random: without data, compare on made-up samples.
        budget: what `after` has to keep. Latency is measured, at one thread, only for `min_speedup`.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        acceleration: options of a GPU provider. For closeness they are the second model's, and the first runs as
            exactly as the provider can; for latency they are both models'.
        seed: of made-up samples.
        threads: threads inside one operator; 0 means every usable core.
        progress: shows batches and rounds.

    Raises:
        ModelError: a model does not load or run, or inputs or outputs differ.
        DataError: data are missing or do not fit, or `max_drop` has no metric to look at.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    budget = budget or Budget()
    first, second = OpenedModel(before), OpenedModel(after)
    first.read()
    sizes = (first.bytes, second.bytes)
    samples, chosen = _open(
        first, data, labels, shapes or {}, states, preprocess, metric, eval_samples, allow_random, seed, budget
    )
    fidelity, accuracy = judge(
        first,
        second,
        samples,
        chosen,
        tasks=TaskBook(first, task),
        source="synthetic" if samples.dataset.synthetic else "data",
        provider=provider,
        threads=threads,
        acceleration=acceleration,
        progress=progress,
    )
    benchmark = None
    if budget.min_speedup is not None:
        feed = next(samples.batches(1))
        pair = (Entry(before, acceleration), Entry(after, acceleration))
        benchmark = compare(*pair, feed, provider=provider, seed=seed, progress=progress)
    lines = budget.evaluate(
        before_bytes=sizes[0], after_bytes=sizes[1], accuracy=accuracy, fidelity=fidelity, benchmark=benchmark
    )
    notes = (*filter(None, [conflict()]), *samples.dataset.guesses, *fidelity.guesses, *samples.dataset.problems)
    weak = (*otherwise(first, samples, provider=provider, threads=threads), *doubts(fidelity, accuracy, samples.labels))
    return PairVerdict(before, after, sizes, fidelity, accuracy, benchmark, tuple(lines), notes, weak)


def _open(
    model: OpenedModel,
    data: Source | None,
    labels: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    states: Mapping[str, str] | None,
    preprocess: Preprocess | None,
    metric: str | None,
    eval_samples: int | None,
    allow_random: bool,
    seed: int,
    budget: Budget,
) -> tuple[Samples, Metric | None]:
    """The samples and what scores them; every error of data and labels comes before any model runs."""
    if data is None:
        _without_data(labels, metric, allow_random, budget)
        return Opener(model, shapes=shapes).made_up(eval_samples or SYNTHETIC_SAMPLES, seed).samples(), None
    dataset = Opener(model, shapes=shapes, states=states).open(data, preprocess=preprocess, labels=labels)
    chosen = parse_metric(metric) if metric is not None or dataset.labels is not None else None
    budget.require_metric(chosen)
    samples = dataset.samples()
    return (samples if eval_samples is None else samples.head(eval_samples)), chosen


def _without_data(labels: Path | None, metric: str | None, allow_random: bool, budget: Budget) -> None:
    if labels is not None or metric is not None:
        raise DataError("labels and metrics need real data", where="--data is missing", do="give --data")
    budget.require_metric(None)
    if not allow_random:
        raise DataError(
            "there is no data to compare the models on",
            where="--data is missing",
            do="give samples with --data, or --allow-random to compare on made-up ones",
        )
