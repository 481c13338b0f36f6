"""How good is a candidate? Writes it to a scratch file and measures that file: size, fidelity, accuracy, latency."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxcomp.data.dataset import Samples
from onnxcomp.data.metric import Metric, guesses_of
from onnxcomp.errors import DataError, EnvironmentLacksError, ModelError
from onnxcomp.files import sha256_of
from onnxcomp.graph import cost
from onnxcomp.graph.io import model_files, save
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.base import PassContext
from onnxcomp.results import Accuracy, Benchmark, Fidelity, ModelStats, TeacherRecord
from onnxcomp.runtime import kernels
from onnxcomp.runtime.acceleration import Acceleration
from onnxcomp.runtime.costs import CostTable, MeasuredCosts
from onnxcomp.runtime.latency import Entry, compare
from onnxcomp.runtime.providers import full_name, usability
from onnxcomp.runtime.session import Feeds
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find
from onnxcomp.verify import compilers
from onnxcomp.verify.accuracy import predict
from onnxcomp.verify.agreement import TaskBook
from onnxcomp.verify.enough import Limits, in_words
from onnxcomp.verify.judge import decisions, judge, judge_and_count
from onnxcomp.verify.layers import own_sqnr_db
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.runtimes import otherwise
from onnxcomp.work.choice import KEEPS

TRIAL_SECONDS = 1.5
LAYER_SAMPLES = 8


@dataclass(frozen=True)
class Kept:
    """Which share of the original's decisions a model keeps.

    Attributes:
        seen: samples it was counted on, or decisions where those are fewer.
        decisions: that it is a share of; None where it is no such share.
        rare: whether these are things found in some samples, and not one or more a sample.
    """

    value: float
    seen: int
    decisions: int | None = None
    rare: bool = False

    @classmethod
    def of(cls, fidelity: Fidelity) -> Kept | None:
        """Where it is lowest; None where the samples are too few, or of a kind that tells nothing."""
        least = fidelity.least_agreeing
        if least is None or least.doubts or least.value is None:
            return None
        rare = least.decisions is not None and least.decisions < least.samples
        return cls(least.value, least.seen, least.decisions, rare)

    @property
    def roughly(self) -> float:
        """The share, without what one thing alone brings that is found or not, where a point is less than that.

        Of the few boxes that a detector finds in 100 pictures, say, one beside the threshold is a loss of 3 points: no
        placement of integers gets rid of it but by luck. Of classes and texts, of which each sample has one, one that
        is another counts: where 1 of 48 changed, 5 of 64 others did.
        """
        if not self.rare or not self.decisions or self.decisions * (1 - KEEPS) >= 1:
            return self.value
        return min(1.0, self.value + 1 / self.decisions)


@dataclass(frozen=True)
class Measurements:
    """What was measured of one written file.

    Attributes:
        decided: the lowest share of equal decisions, on the samples that decisions are counted on; None where they are
            too few, or of a kind that tells nothing.
        own_sqnr_db: by layer, its own error in dB.
        on_integers: by node, whether the kernel that ran it works on integers; empty where nothing was run.
    """

    stats: ModelStats
    sha256: str
    fidelity: Fidelity | None
    accuracy: Accuracy | None
    benchmark: Benchmark | None
    decided: Kept | None = None
    own_sqnr_db: dict[str, float] = field(default_factory=dict)
    on_integers: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Timed = Callable[[Graph, Path, Feeds], Benchmark | None]


@dataclass
class Judge:
    """Measures candidates against the source model.

    Attributes:
        source: the original model.
        stats: its size and cost.
        folder: for scratch files.
        samples: what the report's figures are measured on; candidates never see them.
        select: what candidates are compared on.
        metric: the task metric, or None.
        further: samples that calibrate: decisions are counted on these, too, one among few says nothing of a point.
        until: limits at which `samples` need not all be seen; None where they shall.
        tasks: what each output is.
        synthetic: whether the samples are made up.
        alone: entered around every timing, where others must not time meanwhile.
    """

    source: OpenedModel
    stats: ModelStats
    folder: Path
    samples: Samples
    select: Samples
    metric: Metric | None
    synthetic: bool
    context: PassContext
    seed: int
    bench: bool
    verify: bool
    bench_seconds: float
    further: Samples | None = None
    until: Limits | None = None
    costs: MeasuredCosts | None = None
    tasks: TaskBook | None = None
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    _shares: dict[str, Kept | None] = field(default_factory=dict)

    @property
    def has_metric(self) -> bool:
        """Whether the selection samples tell the task's metric."""
        return self.verify and self._selection_metric() is not None

    @property
    def counted(self) -> int:
        """How many samples decisions are counted on."""
        return len(self.select) + (0 if self.further is None else len(self.further))

    def candidate(self, graph: Graph, *, samples: int | None = None, timed: bool = True) -> Measurements:
        """What a candidate comes to on the selection samples, or on the first of them, and in a short benchmark.

        Where nothing is to be measured the cost table still tells what it holds.

        Raises:
            ModelError: the runtime refuses it.
        """
        path, files = self._written(graph, "candidate.onnx")
        select = self.select if samples is None else self.select.head(samples)
        timing = (self._trial_benchmark if self.bench else self._recorded) if timed else None
        further = self.further if samples is None else None
        return self._measure(graph, path, files, select, self._selection_metric(), timing, further)

    def final(self, graph: Graph, name: str) -> Measurements:
        """Everything the report says of the result, measured on a file with the bytes that will be written."""
        path, files = self._written(graph, name)
        timing = self._benchmark if self.bench else None
        found = self._measure(graph, path, files, self.samples, self.metric, timing)
        notes = [target.why_not] if (target := find(self.context.target)).why_not else []
        notes += self._compiled(target, path)
        found = replace(found, notes=(*found.notes, *notes), on_integers=self._on_integers(graph, path))
        if not self.verify:
            return found
        try:
            errors = self._own_errors(graph)
        except (ModelError, DataError) as error:
            return replace(found, notes=(*found.notes, f"the error of single layers was not measured: {error.what}"))
        return replace(found, own_sqnr_db=errors)

    def compared(
        self, path: Path, samples: Samples | None = None, metric: Metric | None = None
    ) -> tuple[Fidelity, Accuracy | None]:
        """A file against the source, on the samples that judge where no others are given.

        Raises:
            ModelError: the file does not load or run, or its inputs or outputs differ.
        """
        return self._judged(path, samples, metric)[:2]

    def _judged(
        self, path: Path, samples: Samples | None, metric: Metric | None, further: Samples | None = None
    ) -> tuple[Fidelity, Accuracy | None, Fidelity]:
        """As `compared`, and the closeness on further samples besides."""
        return judge_and_count(
            self.source,
            path,
            self.samples if samples is None else samples,
            self.metric if samples is None else metric,
            further=further,
            until=self.until if samples is None or samples is self.samples else None,
            tasks=self.tasks,
            source="synthetic" if self.synthetic else "data",
            provider=judging_provider(self.context.target),
            threads=self.context.threads,
            progress=self.context.progress,
        )

    def agreement(self, graph: Graph) -> float | None:
        """The lowest share of equal decisions on the samples that select and `further` ones.

        None where they are too few, or of a kind that tells nothing.

        Raises:
            ModelError: the runtime refuses the graph.
        """
        kept = self._kept(graph)
        return None if kept is None else kept.value

    def roughly(self, graph: Graph) -> float | None:
        """As `agreement`, for passes that leave layers alone until it holds: `Kept.roughly`."""
        kept = self._kept(graph)
        return None if kept is None else kept.roughly

    def _kept(self, graph: Graph) -> Kept | None:
        """Counted once for a graph."""
        path, files = self._written(graph, "decides.onnx")
        mark = sha256_of(*files)
        if mark not in self._shares:
            found = decisions(
                self.source,
                path,
                [part for part in (self.select, self.further) if part is not None and len(part)],
                tasks=self.tasks,
                source="synthetic" if self.synthetic else "data",
                provider=judging_provider(self.context.target),
                threads=self.context.threads,
                progress=self.context.progress,
            )
            self._shares[mark] = Kept.of(found)
        return self._shares[mark]

    def otherwise(self) -> tuple[str, ...]:
        """What to say where the target's runtime makes another function of the source itself."""
        provider = judging_provider(self.context.target)
        return otherwise(self.source, self.samples, provider=provider, threads=self.context.threads)

    def _compiled(self, target: Target, path: Path) -> list[str]:
        """What the target's own compiler says of the file, where it has one and that is installed.

        Raises:
            ModelError: it refuses the file, and takes the original.
        """
        shapes = self.context.sample_shapes
        try:
            found = compilers.ask(target, path, shapes)
        except EnvironmentLacksError as error:
            return [f"{target.name} was not asked whether it takes the model: {error.what} ({error.do})"]
        if found is None:
            return []
        original = found if found.accepted else compilers.ask(target, self.source.path, shapes)
        if not found.accepted and original is not None and original.accepted:
            raise ModelError(
                f"{target.name} refuses the result, and takes the original: " + "; ".join(list(found.lines())[1:]),
                where=f"{self.source.path}, --target {target.name}",
                do=f"leave the pass out that brought this in (onnxcomp verify MODEL --target {target.name} asks again)",
            )
        return list(found.lines())

    def taught(self, graph: Graph, teacher: Path) -> TeacherRecord:
        """How the result stands to another model that taught it, on the samples that judge."""
        sha256 = sha256_of(*model_files(teacher))
        if not self.verify:
            return TeacherRecord(str(teacher), sha256)
        path, _ = self._written(graph, "student.onnx")
        fidelity, accuracy = judge(teacher, path, self.samples, self.metric, threads=self.context.threads)
        before = None
        if sha256 != sha256_of(*self.source.files):
            before, _ = judge(teacher, self.source, self.samples, threads=self.context.threads)
        return TeacherRecord(str(teacher), sha256, accuracy, fidelity, before)

    def _own_errors(self, graph: Graph) -> dict[str, float]:
        context = self.context
        samples = self.select.head(LAYER_SAMPLES)
        return own_sqnr_db(
            self.source.graph, graph, samples, context.operators, threads=context.threads, memory=context.memory
        )

    def _on_integers(self, graph: Graph, path: Path) -> dict[str, bool]:
        if not (self.verify or self.bench) or not find(self.context.target).runs_here:
            return {}
        with suppress(ModelError):  # what does not run was told of by what had to run it
            feed = next(iter(self.samples.batches(1)))
            return kernels.on_integers(graph, feed, threads=self.context.threads, written=path)
        return {}

    def _measure(
        self,
        graph: Graph,
        path: Path,
        files: list[Path],
        samples: Samples,
        metric: Metric | None,
        timed: Timed | None,
        further: Samples | None = None,
    ) -> Measurements:
        context = self.context
        fidelity = accuracy = benchmark = decided = None
        notes: list[str] = []
        if self.verify:
            fidelity, accuracy, all_told = self._judged(path, samples, metric, further)
            decided = Kept.of(all_told)
            notes += [*_meaningless(fidelity), *filter(None, [in_words(fidelity, accuracy)])]
        if self.bench and timed is not None and (missing := self._missing()):
            notes.append(missing)
        elif timed is not None:
            benchmark = timed(graph, path, next(iter(samples.batches(1))))
        size = sum(file.stat().st_size for file in files)
        stats = cost.stats(graph, context.operators, file_bytes=size, sample=context.sample_shapes)
        found = Measurements(stats, sha256_of(*files), fidelity, accuracy, benchmark, decided)
        return replace(found, notes=tuple(notes))

    def _missing(self) -> str:
        """Why latency cannot be measured on the target here; empty where it can."""
        target = self.context.target
        if elsewhere := find(target).elsewhere:
            return f"latency was not measured: {elsewhere}; onnxcomp bench measures it there"
        probe = usability(full_name(find(target).runs_with))
        if probe.usable:
            return ""
        there = f"onnxcomp bench --provider {find(target).runs_with} measures it where it does"
        return f"latency was not measured: {target} does not run here ({probe.reason}); {there}"

    def _benchmark(self, graph: Graph, path: Path, feed: Feeds) -> Benchmark:
        del graph
        with self.alone():
            return self._compared(path, feed, self.bench_seconds)

    def _trial_benchmark(self, graph: Graph, path: Path, feed: Feeds) -> Benchmark:
        """A short one, or the recorded one: it decides which recipe is taken."""
        if self.costs is None:
            with self.alone():
                return self._compared(path, feed, TRIAL_SECONDS)
        return self.costs.comparison(self.source.graph, graph, lambda: self._compared(path, feed, TRIAL_SECONDS))

    def _recorded(self, graph: Graph, path: Path, feed: Feeds) -> Benchmark | None:
        """What an earlier run measured of the same graphs; nothing is measured."""
        del path, feed
        return None if self.costs is None else self.costs.recorded(self.source.graph, graph)

    def _compared(self, path: Path, feed: Feeds, seconds: float) -> Benchmark:
        progress = self.context.progress
        target = find(self.context.target)
        half = Acceleration(fp16=target.half_first)  # what int8 has to beat
        pair = (Entry(self.source.path, half), Entry(path, half))
        return compare(*pair, feed, provider=target.runs_with, seconds=seconds, seed=self.seed, progress=progress)

    def _written(self, graph: Graph, name: str) -> tuple[Path, list[Path]]:
        path = self.folder / name
        files = save(graph, path)
        return path, files

    def _selection_metric(self) -> Metric | None:
        """The metric, where it can be taken on the selection samples: not one that needs all of the data at once."""
        metric = self.metric
        if metric is None or metric.needs_all or (metric.needs_labels and self.select.labels is None):
            return None
        return metric


def judging_provider(target: str) -> str:
    """Which provider's answers are judged: the target's own where it says so and runs here, else ONNX Runtime's CPU."""
    record = find(target)
    return record.runs_with if record.judges and usability(full_name(record.runs_with)).usable else "cpu"


def check_metric(model: OpenedModel, samples: Samples, metric: Metric, *, whole: bool, threads: int) -> tuple[str, ...]:
    """Find out before long work whether the metric can be taken of the model as it is.

    Args:
        whole: also where the metric is a function that has to see all of the samples, which takes a run over them.

    Returns:
        What was guessed of it, a line each.

    Raises:
        DataError: it cannot, or labels do not fit.
    """
    if metric.needs_all and not whole:
        return ()
    part = samples if metric.needs_all else samples.head(LAYER_SAMPLES)
    outputs = predict(model, part, threads=threads)
    metric.score(outputs, part.labels)
    return () if metric.needs_all else guesses_of(outputs, samples.labels)


def _meaningless(fidelity: Fidelity) -> list[str]:
    return [
        f"output {name} of the original is NaN or infinite throughout: nothing can be told of its fidelity"
        for name, output in fidelity.outputs.items()
        if output.finite_share == 0
    ]


def cost_model(job: Job, samples: Samples, alone: Callable[[], AbstractContextManager[object]]) -> MeasuredCosts | None:
    """Times of this machine, for the passes and the choice of a recipe; None where nothing is to be measured."""
    if not find(job.target).timed_here or not (job.bench or job.cost_table is not None):
        return None
    table = CostTable.of_this_machine() if job.cost_table is None else CostTable.at(job.cost_table)
    return MeasuredCosts(next(iter(samples.batches(1))), table=table, alone=alone)
