"""Is the new model still right? Fidelity and accuracy from one pass over the samples, each model run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxcomp.data.dataset import Samples as Stored
from onnxcomp.data.metric import Metric
from onnxcomp.results import Accuracy, Agreement, Fidelity
from onnxcomp.runtime.acceleration import PLAIN, Acceleration
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Array
from onnxcomp.verify.accuracy import Collected, scored
from onnxcomp.verify.agreement import Agreeing, TaskBook
from onnxcomp.verify.drift import Drifting
from onnxcomp.verify.enough import Limits, Look, certainty, looks
from onnxcomp.verify.fidelity import Closeness, Source
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Answer, Runner, Samples


def judge(
    before: Path | OpenedModel,
    after: Path | OpenedModel,
    samples: Samples,
    metric: Metric | None = None,
    *,
    until: Limits | None = None,
    tasks: TaskBook | None = None,
    source: Source = "data",
    provider: str = "cpu",
    threads: int = 0,
    acceleration: Acceleration = PLAIN,
    progress: Progress = SILENT,
) -> tuple[Fidelity, Accuracy | None]:
    """Closeness of the outputs, agreement by what they are, and with a metric its value before and after.

    Args:
        before, after: model files, or models opened already, with the same inputs and outputs.
        samples: what both are run on; outputs are kept as a whole only when there is a metric.
        metric: the task metric, or None.
        until: see samples in a seeded order until these limits are decided; None to see all of them. All are seen, too,
            of large models, of stateful ones, and by a metric that tells nothing of single samples.
        tasks: what each output is; guessed if not given.
        source: whether the samples are data or were made up.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core.
        acceleration: options of a GPU provider for the model after; the one before runs as exactly as it can.
        progress: shows the batches.

    Raises:
        ModelError: a model does not load or run, or their inputs or outputs differ.
        DataError: there are no samples, or they do not fit, or the metric refuses them.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    fidelity, accuracy, _ = judge_and_count(
        before,
        after,
        samples,
        metric,
        until=until,
        tasks=tasks,
        source=source,
        provider=provider,
        threads=threads,
        acceleration=acceleration,
        progress=progress,
    )
    return fidelity, accuracy


def judge_and_count(
    before: Path | OpenedModel,
    after: Path | OpenedModel,
    samples: Samples,
    metric: Metric | None = None,
    *,
    further: Samples | None = None,
    until: Limits | None = None,
    tasks: TaskBook | None = None,
    source: Source = "data",
    provider: str = "cpu",
    threads: int = 0,
    acceleration: Acceleration = PLAIN,
    progress: Progress = SILENT,
) -> tuple[Fidelity, Accuracy | None, Fidelity]:
    """As `judge`, and the closeness on these samples and `further` ones together; each model is opened once."""
    runner = Runner(before, after, provider=provider, threads=threads, acceleration=acceleration)
    book = tasks or TaskBook(before)
    plain = metric is None or metric.each is not None
    if until is not None and plain and isinstance(samples, Stored) and not runner.large:
        parts = looks(samples, until.seed)
        if len(parts) > 1:
            found = _until(until, runner, book, samples, parts, metric, source, progress)
            return *found, found[0]
    whole, collected = _Tallies(book, runner.varying), Collected()
    for answer in runner.answers(samples, progress=progress):
        whole.add(answer)
        if metric is not None:
            collected.add(answer)
    fidelity = whole.result(source)
    accuracy = None if metric is None else scored(metric, collected, samples.labels)
    if further is None or not len(further):
        return fidelity, accuracy, fidelity
    for answer in runner.answers(further, progress=progress):
        whole.add(answer)
    return fidelity, accuracy, whole.result(source)


def decisions(
    before: Path | OpenedModel,
    after: Path | OpenedModel,
    samples: Sequence[Samples],
    *,
    tasks: TaskBook | None = None,
    source: Source = "data",
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = SILENT,
) -> Fidelity:
    """As `judge`, for what the outputs decide alone, on several sets of samples together.

    How close outputs are is counted only where that is what agreement means: of numbers, and of states.

    Raises:
        ModelError, DataError, EnvironmentLacksError: as `judge`.
    """
    runner = Runner(before, after, provider=provider, threads=threads)
    agreeing, closeness = Agreeing(tasks or TaskBook(before)), Closeness(runner.varying)
    for part in samples:
        for answer in runner.answers(part, progress=progress):
            agreeing.add(answer)
            if agreeing.of_numbers:
                closeness.add(answer)
    return agreeing.told(closeness.result(source))


def _until(
    limits: Limits,
    runner: Runner,
    book: TaskBook,
    samples: Stored,
    parts: list[Look],
    metric: Metric | None,
    source: Source,
    progress: Progress,
) -> tuple[Fidelity, Accuracy | None]:
    """Judge on the samples of one look after another until the limits are decided."""
    whole, sections, collected = _Tallies(book, runner.varying), list[_Tallies](), Collected()
    seen = np.empty(0, np.intp)
    for number, look in enumerate(parts, 1):
        own = [_Tallies(book, runner.varying) for _ in range(look.sections)]
        sections += own
        at = 0
        for answer in runner.answers(look.samples, rows=look.rows, progress=progress):
            whole.add(answer)
            own[at * look.sections // len(look.samples)].add(answer)
            at += samples.batch or answer.rows
            if metric is not None:
                collected.add(answer)
        seen = np.concatenate([seen, look.samples.indices])
        labels = Stored(samples.dataset, seen).labels
        accuracy = None if metric is None else scored(metric, collected, labels, level=look.level)
        fidelity, each = whole.result(source), [section.result(source) for section in sections if section.samples]
        drop = None if accuracy is None else accuracy.interval
        sure = certainty(fidelity, each, drop, look.level, of=len(samples), look=number)
        if limits.decided(fidelity, sure, metric=metric is not None):
            break
    agreements = tuple(_in_order(agreement, seen, samples.indices) for agreement in fidelity.agreements)
    return replace(fidelity, agreements=agreements, certainty=sure), accuracy


@dataclass
class _Tallies:
    """What is counted of some of the samples."""

    book: TaskBook
    varying: frozenset[str]
    drifting: Drifting = field(default_factory=Drifting)

    def __post_init__(self) -> None:
        self._closeness, self._agreeing = Closeness(self.varying), Agreeing(self.book)

    @property
    def samples(self) -> int:
        """How many were counted."""
        return self._closeness.samples

    def add(self, answer: Answer) -> None:
        """Count one batch."""
        self._closeness.add(answer)
        self._agreeing.add(answer)
        self.drifting.add(answer)

    def result(self, source: Source) -> Fidelity:
        """What was counted."""
        return replace(self._agreeing.told(self._closeness.result(source)), drift=self.drifting.result())


def _in_order(found: Agreement, seen: Array, indices: Array) -> Agreement:
    """An agreement whose samples are numbered as they stand in their source, and no longer as they were seen."""
    place = {int(index): at for at, index in enumerate(indices)}
    flips = sorted((place[int(seen[sample])], before, after) for sample, before, after in found.flips)
    return replace(found, flips=tuple(flips))
