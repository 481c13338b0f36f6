"""How good is a candidate? Writes it to a scratch file and measures that file: size, fidelity, accuracy, latency."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxcomp.data.dataset import Samples
from onnxcomp.data.metric import Metric, guesses_of
from onnxcomp.errors import DataError, ModelError
from onnxcomp.files import sha256_of
from onnxcomp.graph import cost
from onnxcomp.graph.io import model_files, save
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.base import PassContext
from onnxcomp.results import Accuracy, Benchmark, Fidelity, ModelStats, Report, TeacherRecord
from onnxcomp.runtime import tensorrt
from onnxcomp.runtime.acceleration import Acceleration
from onnxcomp.runtime.closeness import EXACT_DB
from onnxcomp.runtime.costs import CostTable, MeasuredCosts
from onnxcomp.runtime.latency import Entry, compare
from onnxcomp.runtime.providers import full_name, usability
from onnxcomp.runtime.session import Feeds
from onnxcomp.targets.table import find
from onnxcomp.verify.acceptance import ask_tensorrt
from onnxcomp.verify.accuracy import predict
from onnxcomp.verify.agreement import TaskBook, in_words
from onnxcomp.verify.budget import ROUNDING, Budget, exit_code
from onnxcomp.verify.judge import judge
from onnxcomp.verify.layers import own_sqnr_db

# The default run's own limits where no budget is given. They catch a collapse; a budget says what is wanted.
COLLAPSED_SQNR_DB = 10.0
COLLAPSED_DROP = 0.02
AGREES = 0.95  # below this share of equal decisions the first line says so, and another recipe is preferred
TRIAL_SECONDS = 1.5
LAYER_SAMPLES = 8
ALIKE = 0.08  # two times that differ by less are one, for the choice between recipes
WORTH_DB, LIKE_SIZE = 6.0, 1.3
UNCHANGED = 13  # the exit code where nothing was gained
WORTH_SHARE = 0.99  # a size is better when it is at most this share of the original


@dataclass(frozen=True)
class Measurements:
    """What was measured of one written file. `own_sqnr_db`: by layer, its own error in dB."""

    stats: ModelStats
    sha256: str
    fidelity: Fidelity | None
    accuracy: Accuracy | None
    benchmark: Benchmark | None
    own_sqnr_db: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def better(self, before: ModelStats, objective: str) -> bool:
        """Whether the result is an improvement: smaller or faster, and for latency never slower."""
        smaller = self.stats.bytes <= before.bytes * WORTH_SHARE
        faster = self.benchmark is not None and self.benchmark.outcome == "faster"
        slower = self.benchmark is not None and self.benchmark.outcome == "slower"
        if objective == "size":
            return smaller
        if objective == "macs":
            return self.stats.macs < before.macs
        return (smaller or faster) and not slower


@dataclass(frozen=True)
class Trial:
    """A recipe's result on the samples set aside for choosing. A lower score is better.

    `bytes` and `sqnr_db` tell apart what the score does not; `sqnr_db` is None where outputs are equal or not compared.
    `agrees`: whether it decides nearly always as the original does; among sound ones such a result is preferred.
    """

    sound: bool
    better: bool
    score: float
    why: str
    bytes: int = 0
    sqnr_db: float | None = None
    agrees: bool = True

    def preferred_to(self, other: Trial, objective: str) -> bool:
        """Whether this is the better result of two.

        For latency times within ALIKE say nothing; then what keeps WORTH_DB more at a like size is better, then what is
        smaller.
        """
        if objective != "latency" or abs(self.score / other.score - 1) > ALIKE:
            return self.score < other.score
        size, mine, theirs = self.bytes / max(other.bytes, 1), self._kept_db, other._kept_db
        if abs(mine - theirs) >= WORTH_DB and 1 / LIKE_SIZE <= size <= LIKE_SIZE:
            return mine > theirs
        return size < 1

    @property
    def _kept_db(self) -> float:
        return EXACT_DB if self.sqnr_db is None else self.sqnr_db


Timed = Callable[[Graph, Path, Feeds], Benchmark]


@dataclass
class Measurer:
    """Measures candidates against the source model.

    Attributes:
        source: the original file.
        original: the original graph.
        stats: its size and cost.
        folder: for scratch files.
        samples: what the report's figures are measured on; candidates never see them.
        select: what candidates are compared on.
        metric: the task metric, or None.
        tasks: what each output is.
        synthetic: whether the samples are made up.
        alone: entered around every timing, where others must not time meanwhile.
    """

    source: Path
    original: Graph
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
    costs: MeasuredCosts | None = None
    tasks: TaskBook | None = None
    alone: Callable[[], AbstractContextManager[object]] = nullcontext

    # -- the Evaluator protocol, for passes that measure while they work --

    def sqnr_db(self, graph: Graph) -> float:
        """Fidelity to the source on the selection samples, the worst part, in dB; 999 where outputs are equal."""
        path, _ = self._written(graph, "probe.onnx")
        fidelity, _ = judge(self.source, path, self.select, tasks=self.tasks, threads=self.context.threads)
        worst = fidelity.worst_db
        return EXACT_DB if worst is None else worst

    def accuracy(self, graph: Graph) -> float | None:
        """The metric on the selection samples; None where there is none that can be taken on a part of the data."""
        metric = self._selection_metric()
        if metric is None:
            return None
        path, _ = self._written(graph, "probe.onnx")
        _, accuracy = judge(self.source, path, self.select, metric, tasks=self.tasks, threads=self.context.threads)
        return None if accuracy is None else accuracy.after

    # -- the driver's questions --

    def trial(self, graph: Graph, budget: Budget, objective: str) -> Trial:
        """Whether a candidate is sound and better, on the selection samples and a short benchmark."""
        path, files = self._written(graph, "candidate.onnx")
        try:
            measured = self._measure(graph, path, files, self.select, self._selection_metric(), self._trial_benchmark)
        except ModelError as error:
            return Trial(False, False, float("inf"), f"the runtime refuses it: {error.what}")
        why = unsound(measured, budget)
        better = measured.better(self.stats, objective)
        if not why and not better:
            speed = "" if measured.benchmark is None else f", {1 / measured.benchmark.speedup:.2f} of the time"
            why = f"no gain: {measured.stats.bytes / self.stats.bytes:.0%} of the size{speed}"
        kept = None if measured.fidelity is None else measured.fidelity.worst_db
        score = _score(measured, objective)
        agrees = budget.min_agreement is not None or not disagreeing(measured.fidelity)
        return Trial(not unsound(measured, budget), better, score, why, measured.stats.bytes, kept, agrees)

    def candidate(self, graph: Graph, *, samples: int | None = None, timed: bool = True) -> Measurements:
        """What a candidate comes to on the selection samples, or on the first of them, and in a short benchmark.

        Raises:
            ModelError: the runtime refuses it.
        """
        path, files = self._written(graph, "candidate.onnx")
        select = self.select if samples is None else self.select.head(samples)
        timing = self._trial_benchmark if timed else None
        return self._measure(graph, path, files, select, self._selection_metric(), timing)

    def final(self, graph: Graph, name: str) -> Measurements:
        """Everything the report says of the result, measured on a file with the bytes that will be written."""
        path, files = self._written(graph, name)
        found = self._measure(graph, path, files, self.samples, self.metric, self._benchmark)
        notes = [target.why_not] if (target := find(self.context.target)).why_not else []
        if target.name == "tensorrt":
            notes += self._compiled(path)
        found = replace(found, notes=(*found.notes, *notes))
        if not self.verify:
            return found
        try:
            errors = self._own_errors(graph)
        except (ModelError, DataError) as error:
            return replace(found, notes=(*found.notes, f"the error of single layers was not measured: {error.what}"))
        return replace(found, own_sqnr_db=errors)

    def _compiled(self, path: Path) -> list[str]:
        """What TensorRT's own parser says of the file, where it is installed.

        Raises:
            ModelError: it refuses the file, and takes the original.
        """
        if not tensorrt.installed():
            return [f"TensorRT was not asked whether it takes the model: its parser is missing ({tensorrt.REMEDY})"]
        found = ask_tensorrt(path, self.context.sample_shapes)
        if not found.acceptance.accepted and ask_tensorrt(self.source, self.context.sample_shapes).acceptance.accepted:
            raise ModelError(
                "TensorRT refuses the result, and takes the original: " + "; ".join(list(found.lines())[1:]),
                where=f"{self.source}, --target tensorrt",
                do="leave the pass out that brought this in (onnxcomp verify MODEL --target tensorrt asks again)",
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
        if sha256 != sha256_of(*model_files(self.source)):
            before, _ = judge(teacher, self.source, self.samples, threads=self.context.threads)
        return TeacherRecord(str(teacher), sha256, accuracy, fidelity, before)

    def _own_errors(self, graph: Graph) -> dict[str, float]:
        context = self.context
        samples = self.select.head(LAYER_SAMPLES)
        return own_sqnr_db(self.original, graph, samples, context.operators, threads=context.threads)

    def _measure(
        self, graph: Graph, path: Path, files: list[Path], samples: Samples, metric: Metric | None, timed: Timed | None
    ) -> Measurements:
        context = self.context
        fidelity = accuracy = benchmark = None
        notes: list[str] = []
        if self.verify:
            fidelity, accuracy = judge(
                self.source,
                path,
                samples,
                metric,
                tasks=self.tasks,
                source="synthetic" if self.synthetic else "data",
                threads=context.threads,
                progress=context.progress,
            )
            notes += _meaningless(fidelity)
        if self.bench and timed is not None and (missing := self._missing()):
            notes.append(missing)
        elif self.bench and timed is not None:
            benchmark = timed(graph, path, next(iter(samples.batches(1))))
        size = sum(file.stat().st_size for file in files)
        stats = cost.stats(graph, context.operators, file_bytes=size, sample=context.sample_shapes)
        found = Measurements(stats, sha256_of(*files), fidelity, accuracy, benchmark)
        return replace(found, notes=tuple(notes))

    def _missing(self) -> str:
        """Why latency cannot be measured on the target here; empty where it can."""
        target = self.context.target
        probe = usability(full_name(target))
        if probe.usable:
            return ""
        there = f"onnxcomp bench --provider {target} measures it where it does"
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
        return self.costs.comparison(self.original, graph, lambda: self._compared(path, feed, TRIAL_SECONDS))

    def _compared(self, path: Path, feed: Feeds, seconds: float) -> Benchmark:
        progress = self.context.progress
        target = self.context.target
        # what int8 has to beat on TensorRT is half precision
        half = Acceleration(fp16=target == "tensorrt")
        pair = (Entry(self.source, half), Entry(path, half))
        return compare(*pair, feed, provider=target, seconds=seconds, seed=self.seed, progress=progress)

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


def check_metric(model: Path, samples: Samples, metric: Metric, *, whole: bool, threads: int) -> tuple[str, ...]:
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


def unsound(measured: Measurements, budget: Budget) -> str:
    """Why a candidate is not to be trusted, by the budget or the default run's own limits; empty when it is."""
    fidelity, accuracy = measured.fidelity, measured.accuracy
    allowed = COLLAPSED_DROP if budget.max_drop is None else budget.max_drop
    if accuracy is not None and accuracy.drop > allowed + ROUNDING:
        return f"{accuracy.metric} falls by {accuracy.drop:.4f}, more than {allowed:g}"
    if fidelity is None or fidelity.identical:
        return ""
    if fidelity.untold:
        return f"the rows of output {fidelity.untold[0]} depend on the values, and nothing tells whether they are right"
    worst = fidelity.worst_db
    least = COLLAPSED_SQNR_DB if budget.min_sqnr is None else budget.min_sqnr
    if worst is not None and worst < least:
        return f"SQNR {worst:.1f} dB is below {least:g} dB{_where(fidelity)}"
    agreement = fidelity.least_agreeing
    needed = AGREES if worst is None and budget.min_agreement is None else budget.min_agreement
    if needed is not None and agreement is not None and (agreement.value or 0.0) < needed:
        return f"{in_words(agreement)}, less than {needed:.0%}"
    return "outputs changed beyond comparison" if worst is None and agreement is None else ""


def disagreeing(fidelity: Fidelity | None) -> str:
    """In words where the new model decides otherwise too often to be called accepted without them; else empty."""
    found = fidelity.least_agreeing if fidelity is not None else None
    if found is None or found.value is None or found.value >= AGREES:
        return ""
    return in_words(found)


def _where(fidelity: Fidelity) -> str:
    """Which part of which output is the worst, where there are several."""
    for name, output in fidelity.outputs.items():
        if output.decibels == fidelity.worst_db and (output.worst_part or len(fidelity.outputs) > 1):
            return f" (output {name}{f', {output.worst_part}' if output.worst_part else ''})"
    return ""


def _score(measured: Measurements, objective: str) -> float:
    if objective == "size":
        return float(measured.stats.bytes)
    if objective == "macs":
        return float(measured.stats.macs)
    if objective == "accuracy":
        worst = measured.fidelity.worst_db if measured.fidelity is not None else None
        return float("-inf") if worst is None else -worst
    return 1.0 / measured.benchmark.speedup if measured.benchmark is not None else float(measured.stats.bytes)


def cost_model(job: Job, samples: Samples, alone: Callable[[], AbstractContextManager[object]]) -> MeasuredCosts | None:
    """Times of this machine, for the passes and the choice of a recipe; None where nothing is to be measured."""
    if job.target != "cpu" or not (job.bench or job.cost_table is not None):
        return None
    table = CostTable.of_this_machine() if job.cost_table is None else CostTable.at(job.cost_table)
    return MeasuredCosts(next(iter(samples.batches(1))), table=table, alone=alone)


def table_notes(job: Job, costs: MeasuredCosts | None) -> list[str]:
    """What a user should know of a table of their own."""
    if job.cost_table is None:
        return []
    if costs is None:
        return [f"{job.cost_table} was not used: no times decide anything for target {job.target}"]
    notes = []
    if costs.table.foreign:
        there = costs.table.origin
        notes.append(
            f"the times of {job.cost_table} come from {there.get('cpu', 'an unknown processor')} with ONNX Runtime "
            f"{there.get('onnxruntime', 'of an unknown version')}, not from this machine"
        )
    if costs.table.measured:
        notes.append(f"{costs.table.measured} times that {job.cost_table} lacked were measured here and added to it")
    return notes


def unchanged(report: Report, reason: str) -> None:
    """The verdict where nothing is written."""
    report.verdict, report.exit_code, report.reason = "unchanged", UNCHANGED, reason


def decide(report: Report, job: Job, measured: Measurements, *, explicit: bool, searched: bool) -> None:
    """Verdict, exit code and reason, by the budgets and by the default run's own limits.

    Args:
        explicit: the passes were asked for one by one.
        searched: recipes were tried; then the default run's own limits hold, by the samples that judge.
    """
    report.budget = job.budget.evaluate(
        before_bytes=report.before.bytes,
        after_bytes=report.after.bytes,
        accuracy=report.accuracy,
        fidelity=report.fidelity,
        benchmark=measured.benchmark,
    )
    code = exit_code(report.budget)
    if code:
        names = ", ".join(line.name for line in report.budget if not line.passed)
        report.verdict, report.exit_code, report.reason = "over-budget", code, f"missed: {names}"
    elif not explicit and not measured.better(report.before, job.objective):
        unchanged(report, _no_gain(report, job.objective))
    elif why := unsound(measured, Budget()):
        if searched:
            unchanged(report, f"on the samples that judge, {why}")
        else:
            worse = _only_worse(report)
            report.reason = worse or f"{why}: a run without --passes would not take this"
    else:
        report.reason = _only_worse(report) or missed(report) or _otherwise(report)


def _no_gain(report: Report, objective: str) -> str:
    """Why a result is not better by the objective; one that is smaller all the same has an objective of its own."""
    share = report.after.bytes / max(1, report.before.bytes)
    if share < WORTH_SHARE and objective != "size":
        return f"the result has {share:.0%} of the size and is no better for {objective}: --objective size takes it"
    return "the result is neither smaller nor faster than the original"


def _otherwise(report: Report) -> str:
    """That the result decides otherwise than the original more often than the word "accepted" should pass over."""
    words = disagreeing(report.fidelity)
    return f"but decides otherwise than the original: {words}" if words else ""


def missed(report: Report) -> str:
    """What was asked of passes and not reached."""
    return "; ".join(record.missed for record in report.passes if record.missed)


def _only_worse(report: Report) -> str:
    """Why the result is worth less than what came in; empty where something got better."""
    before, after = report.before, report.after
    gains = [after.bytes < before.bytes * WORTH_SHARE, after.macs < before.macs]
    gains.append(after.nonzero_parameters < before.nonzero_parameters)
    gains += [bench.outcome == "faster" for bench in report.benchmarks]
    if any(gains):
        return ""
    if report.accuracy is not None:
        worse = report.accuracy.drop > 0
        return f"worse than before: {report.accuracy.metric} fell, and nothing was gained for it" if worse else ""
    farther = report.teacher is not None and report.teacher.farther
    return "worse than before: farther from the teacher, and nothing was gained for it" if farther else ""
