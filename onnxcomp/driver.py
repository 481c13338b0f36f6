"""The one place where the stages meet: load, data, passes, verify, benchmark, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxcomp import measure, places, recipes
from onnxcomp._version import __version__
from onnxcomp.errors import ModelError, OnnxcompError, UsageError
from onnxcomp.files import sha256_of
from onnxcomp.graph import cost
from onnxcomp.graph.health import broken_weights
from onnxcomp.graph.io import load, model_files, save
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import Pipeline, RunResult
from onnxcomp.material import prepare
from onnxcomp.measure import Measurements, Trial
from onnxcomp.ops.facts import Operators
from onnxcomp.report.html import write_html
from onnxcomp.report.record import write_json
from onnxcomp.results import Calibration, FileRef, LayerRecord, Report
from onnxcomp.runtime.machine import conflict, machine, peak_memory_bytes, usable_cores, versions
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.agreement import TaskBook
from onnxcomp.verify.budget import Budget, parse_size
from onnxcomp.verify.evidence import doubts
from onnxcomp.verify.judge import judge
from onnxcomp.verify.weights import histograms
from onnxcomp.work.asked import pipeline_of
from onnxcomp.work.study import Study

CLEARLY_FASTER, SMALL_SHARE = 0.8, 0.4  # of the original's time and size: no recipe that computes in float does better
COVERED = 0.9  # share of a model's MACs: where so much is integer, no other recipe can gain much


def optimize(
    model: str | Path,
    *,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    max_size: str | None = None,
    min_speedup: float | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Report:
    """Compress a model file, measure what it cost, write the result and report.json.

    Args:
        model: the .onnx file.
        max_drop: largest loss of the metric, absolute; needs labels or a metric.
        min_sqnr: lowest signal-to-noise ratio of any part of an output, in dB.
        min_agreement: lowest share of decisions that are the original's, 0 to 1.
        max_size: bytes, `4MB`, or a share such as `30%`.
        min_speedup: latency before/after.
        progress: shows long work.
        options: fields of `onnxcomp.job.Job`.

    Returns:
        The report; its `exit_code` and `verdict` say whether the result was accepted.

    Raises:
        OnnxcompError: a subclass tells what cannot be used: model, data, options, environment, output.
    """
    size = parse_size(max_size) if max_size is not None else None
    budget = Budget(
        max_drop=max_drop, min_sqnr=min_sqnr, min_agreement=min_agreement, max_size=size, min_speedup=min_speedup
    )
    for key in ("output", "report", "html"):
        if options.get(key) is not None:
            options[key] = Path(options[key])
    unknown = sorted(set(options) - set(Job.__dataclass_fields__))
    if unknown:
        raise UsageError(f"optimize has no option {unknown[0]!r}", where="onnxcomp.optimize", do="see onnxcomp.job.Job")
    return run(Job(Path(model), budget=budget, **options), progress)


def run(
    job: Job, progress: Progress = SILENT, *, alone: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Report:
    """Carry out one job.

    Args:
        progress: shows long work.
        alone: a context that every timing is made in, where other processes must not time meanwhile.

    Raises:
        OnnxcompError: as `optimize`.
    """
    start = time.perf_counter()
    with Study.open(job, progress=progress, alone=alone) as study:
        report = _begin(study)
        candidates = _compress(study, report)
        if candidates:
            chosen, final, measured = _finalist(study, candidates, report)
            _fill(report, study, final, chosen, measured)
            if job.teacher is not None:
                report.teacher = study.measurer.taught(final, job.teacher)
            measure.decide(report, job, measured, explicit=chosen.explicit, searched=chosen.searched)
            report.doubts += doubts(report.fidelity, report.accuracy, study.material.judge.labels)
            _write_model(report, job, final, measured)
        report.notes += measure.table_notes(job, study.costs)
    report.notes += places.settle(job, accepted=report.verdict == "accepted")
    report.seconds = round(time.perf_counter() - start, 3)
    report.peak_memory_bytes = peak_memory_bytes()
    write_json(report, job.report_path)
    if job.html is not None:
        write_html(report, job.html)
    return report


def check_written(job: Job, report: Report, progress: Progress = SILENT) -> None:
    """Measure the accepted file again as it stands on the disk, and hold it to its report.

    Size, hash, fidelity and accuracy are taken anew; the latency stays that of the report, made on the same bytes.

    Raises:
        OnnxcompError: the file is not the one measured, or does not keep a budget that the report says it keeps.
    """
    files = model_files(job.out)
    size = sum(path.stat().st_size for path in files)
    where, again = f"file {job.out}", "check the disk, and that nothing else writes there; then build again"
    if report.output is None or sha256_of(*files) != report.output.sha256 or size != report.after.bytes:
        raise OnnxcompError("the file on the disk is not the one that was measured", where=where, do=again)
    fidelity, accuracy = report.fidelity, report.accuracy
    if job.verify:
        graph = load(job.model, keep_initializer_inputs=job.keep_initializer_inputs)
        material = prepare(job, graph, trains=pipeline_of(job).trains, doubting=False)
        kind: Literal["data", "synthetic"] = "synthetic" if material.synthetic else "data"
        threads = job.threads or usable_cores()
        fidelity, accuracy = judge(
            job.model,
            job.out,
            material.judge,
            material.metric,
            tasks=TaskBook(job.model, job.task),
            source=kind,
            threads=threads,
            progress=progress,
        )
    lines = job.budget.evaluate(
        before_bytes=report.before.bytes,
        after_bytes=size,
        accuracy=accuracy,
        fidelity=fidelity,
        benchmark=next(iter(report.benchmarks), None),
    )
    for line in lines:
        if not line.passed:
            raise OnnxcompError(
                f"measured again from the disk, the file misses {line.name}: {line.value}, limit {line.limit:g}",
                where=where,
                do=again,
            )


# -- preparing -------------------------------------------------------------------------------------------------


def _begin(study: Study) -> Report:
    job, graph, material, before = study.job, study.original, study.material, study.stats
    found = machine()
    installed = versions()
    calibrate = material.calibrate
    return Report(
        tool={
            "name": "onnxcomp",
            "version": __version__,
            "onnxruntime": installed.get("onnxruntime-gpu", installed.get("onnxruntime", "")),
            "onnx": installed.get("onnx", ""),
        },
        machine=found.to_json(),
        seed=job.seed,
        source=FileRef(str(job.model), study.source_sha256),
        before=before,
        after=before,
        calibration=None if calibrate is None else Calibration(len(calibrate), material.source),
        warnings=list(material.doubts),
        guesses=list(material.guesses),
        request=job.request() | {"timed_shapes": {k: list(v) for k, v in material.sample_shapes.items()}},
        notes=[*filter(None, [conflict()]), *graph.notes, *_broken(graph, study.operators), *material.notes],
        doubts=list(material.copies),
    )


def _broken(graph: Graph, operators: Operators) -> list[str]:
    """What a user should know of weights that hold no numbers; passes leave them alone."""
    return [
        f"weight {name} holds {what}: passes leave it alone" for name, what in broken_weights(graph, operators).items()
    ]


# -- compressing -----------------------------------------------------------------------------------------------


@dataclass
class Chosen:
    """A pipeline that may be taken, and what it made.

    Attributes:
        explicit: it was asked for pass by pass.
        searched: it was found by trying recipes, so that the default run's own limits hold.
    """

    pipeline: Pipeline
    result: RunResult
    explicit: bool
    searched: bool = False

    @property
    def graph(self) -> Graph:
        """The rewritten graph."""
        return self.result.graph


def _compress(study: Study, report: Report) -> list[Chosen]:
    """Run what was asked for, or try recipes until one holds. None where nothing changed or nothing was better.

    Of several the best stands first: the others count where it does not hold on the samples that judge.
    """
    job = study.job
    if job.passes is not None:
        pipeline = pipeline_of(job)
        result = study.run(pipeline, on_failure="raise")
        report.passes, report.training = result.records, result.trainings
        if result.changes:
            return [Chosen(pipeline, result, True)]
        useless = "training brought nothing, the weights stay as they were: " if result.trainings else ""
        measure.unchanged(report, f"{useless}{measure.missed(report) or 'the passes changed nothing'}")
        return []
    if job.recipe is not None:
        pipeline = recipes.find(job.recipe, job.target).pipeline
        result = study.run(pipeline, on_failure="raise")
        # cleaning alone is worth writing where it changed something: it costs nothing
        cleaned = result.changes > 0 and all(record.guarantee != "lossy" for record in result.records)
        return [Chosen(pipeline, result, cleaned)]
    return _search(study, report)


def _search(study: Study, report: Report) -> list[Chosen]:
    """Try recipes; those that are sound and better, the best by the objective first.

    One that decides nearly always as the original does goes before one that does not. For latency the search ends
    early: with the first recipe whose integer arithmetic covers nearly all of the work, and before those that compute
    in float once one of integers is clearly faster and small.
    """
    job, context = study.job, study.context
    held: list[tuple[Trial, Chosen]] = []
    for recipe in recipes.candidates(
        study.original, has_data=context.calibration is not None, objective=job.objective, target=job.target
    ):
        best = held[0][0] if held and held[0][0].agrees else None
        if best is not None and job.objective == "latency" and _enough(best, recipe, report):
            break
        try:
            result = study.run(recipe.pipeline)
        except ModelError as error:
            report.notes.append(f"recipe {recipe.name} does not fit this model: {error.what}")
            continue
        report.passes = result.records
        if recipe.aim and not any(record.changes for record in result.records if record.name in recipe.aim):
            report.notes.append(f"recipe {recipe.name} was left: {' and '.join(recipe.aim)} found nothing to do")
            continue
        trial = study.measurer.trial(result.graph, job.budget, job.objective)
        if not trial.sound or not trial.better:
            report.notes.append(f"recipe {recipe.name} was tried and left: {trial.why}")
            continue
        better = not held or _preferred(trial, held[0][0], job.objective)
        held.insert(0 if better else len(held), (trial, Chosen(recipe.pipeline, result, False, True)))
        if job.objective == "latency" and recipe.integer and trial.agrees and _covers(result.graph, context):
            break
    if not held:
        measure.unchanged(report, "nothing that was tried made the model smaller or faster and kept it right")
        return []
    for _, chosen in held[1:]:
        report.notes.append(f"{chosen.pipeline} was tried and left: another is better for {job.objective}")
    return [chosen for _, chosen in held]


def _preferred(trial: Trial, other: Trial, objective: str) -> bool:
    """Whether a trial's result goes before another's."""
    return trial.agrees if trial.agrees != other.agrees else trial.preferred_to(other, objective)


def _finalist(study: Study, candidates: list[Chosen], report: Report) -> tuple[Chosen, Graph, Measurements]:
    """The first candidate that holds on the samples that judge, as it will be written; the best one if none does."""
    found: list[tuple[Chosen, Graph, Measurements]] = []
    for chosen in candidates:
        final = study.stamped(chosen.graph, chosen.pipeline)
        measured = study.measurer.final(final, study.job.out.name)
        found.append((chosen, final, measured))
        why = measure.unsound(measured, study.job.budget) if chosen.searched else ""
        if not why:
            return found[-1]
        report.notes.append(f"{chosen.pipeline} was left: on the samples that judge, {why}")
    return found[0]


def _enough(best: Trial, recipe: recipes.Recipe, report: Report) -> bool:
    """Whether a recipe without integers cannot do better than what was found, or is there only if all else fails."""
    if recipe.integer:
        return False
    fast_and_small = best.score <= CLEARLY_FASTER and best.bytes <= SMALL_SHARE * report.before.bytes
    return fast_and_small or recipe.name in recipes.LAST_RESORT


def _covers(graph: Graph, context: PassContext) -> bool:
    return cost.integer_share(graph, context.operators, context.sample_shapes) >= COVERED


# -- judging and writing ---------------------------------------------------------------------------------------


def _fill(report: Report, study: Study, after: Graph, chosen: Chosen, measured: Measurements) -> None:
    report.passes, report.training = chosen.result.records, chosen.result.trainings
    report.after = measured.stats
    report.fidelity, report.accuracy = measured.fidelity, measured.accuracy
    report.benchmarks = [measured.benchmark] if measured.benchmark is not None else []
    report.layers = _layers(study.original, after, study.operators, measured)
    report.notes += measured.notes
    report.guesses += measured.fidelity.guesses if measured.fidelity is not None else ()


def _layers(before: Graph, after: Graph, operators: Operators, measured: Measurements) -> list[LayerRecord]:
    """Weighted layers by name, before and after; one that is gone has zeros after."""
    new = {layer.node: layer for layer in cost.joined(cost.layers(after, operators))}
    weights = histograms(before, after, operators)
    records = []
    for old in cost.layers(before, operators):
        now = new.get(old.node)
        records.append(
            LayerRecord(
                node=old.node,
                op=old.op,
                precision=(old.precision, now.precision if now else "removed"),
                bytes=(old.bytes, now.bytes if now else 0),
                parameters=(old.parameters, now.parameters if now else 0),
                own_sqnr_db=measured.own_sqnr_db.get(old.node),
                weights=weights.get(old.node),
            )
        )
    return records


def _write_model(report: Report, job: Job, graph: Graph, measured: Measurements) -> None:
    if report.verdict == "unchanged":
        return
    rejected = report.verdict == "over-budget"
    path = job.rejected if rejected else job.out
    files = save(graph, path)
    report.output = FileRef(str(path), sha256_of(*files))
    if not rejected and report.output.sha256 != measured.sha256:
        raise OnnxcompError(
            "the file written is not the file that was measured", where=f"file {path}", do="check the disk, run again"
        )
