"""The one place where the stages meet: load, data, passes, verify, benchmark, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxcomp import places, recipes
from onnxcomp._version import __version__
from onnxcomp.errors import DataError, ModelError, OnnxcompError, UsageError
from onnxcomp.files import remove_abandoned_scratch, scratch, sha256_of
from onnxcomp.graph import cost
from onnxcomp.graph.health import broken_weights
from onnxcomp.graph.io import load, model_files, save
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.material import Material, prepare
from onnxcomp.measure import WORTH_SHARE, Measurements, Measurer, Trial, check_metric, cost_model, table_notes
from onnxcomp.ops.facts import Operators, load_operators
from onnxcomp.report.html import write_html
from onnxcomp.report.record import write_json
from onnxcomp.results import Calibration, FileRef, LayerRecord, Report
from onnxcomp.runtime.machine import check_threads, machine, peak_memory_bytes, usable_cores, versions
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.budget import Budget, exit_code, parse_size
from onnxcomp.verify.judge import judge
from onnxcomp.verify.pair import check_runs
from onnxcomp.verify.provenance import stamp
from onnxcomp.verify.weights import histograms

UNCHANGED = 13
CLEARLY_FASTER, SMALL_SHARE = 0.8, 0.4  # of the original's time and size: no recipe that computes in float does better
COVERED = 0.9  # share of a model's MACs: where so much is integer, no other recipe can gain much
SYNTHETIC_JUDGED = 16  # enough to see that two graphs compute the same; never called accuracy


def optimize(
    model: str | Path,
    *,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    max_size: str | None = None,
    min_speedup: float | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Report:
    """Compress a model file, measure what it cost, write the result and report.json.

    Args:
        model: the .onnx file.
        max_drop: largest loss of the metric, absolute; needs labels or a metric.
        min_sqnr: lowest signal-to-noise ratio of an output, in dB.
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
    budget = Budget(max_drop=max_drop, min_sqnr=min_sqnr, max_size=size, min_speedup=min_speedup)
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
    check_options(job)
    places.check_job(job)
    remove_abandoned_scratch()
    graph = load(job.model, keep_initializer_inputs=job.keep_initializer_inputs)
    if job.verify or job.bench:
        check_runs(job.model)
    operators = load_operators()
    material = prepare(job, graph, trains=_asked_for(job).trains, progress=progress)
    places.check(places.loaded_files(), places.writes_of(job))  # now the user's own functions are loaded
    if material.metric is not None and job.verify:
        trains = _asked_for(job).trains
        check_metric(job.model, material.judge, material.metric, whole=trains, threads=job.threads)
    report = _begin(job, graph, operators, material)
    context = PassContext(
        operators=operators,
        target=job.target,
        calibration=material.calibrate,
        probes=material.calibrate if material.calibrate is not None else material.select,
        training=material.train,
        held_out=material.select if material.train is not None else None,
        original=graph if job.teacher is None else _teacher(job, graph),
        sample_shapes=material.sample_shapes,
        memory=material.memory,
        seed=job.seed,
        threads=job.threads or usable_cores(),
        progress=progress,
        alone=alone,
    )
    with scratch() as folder:
        measurer = Measurer(
            source=job.model,
            original=graph,
            stats=report.before,
            folder=folder,
            samples=material.judge,
            select=material.select,
            metric=material.metric,
            synthetic=material.synthetic,
            context=context,
            seed=job.seed,
            bench=job.bench,
            verify=job.verify,
            bench_seconds=job.bench_seconds,
            costs=cost_model(job, material.calibrate or material.judge, alone),
            alone=alone,
        )
        context.evaluator, context.costs = measurer, measurer.costs
        chosen = _compress(job, graph, context, measurer, report)
        if chosen is not None:
            final = _stamped(job, chosen.graph, report, chosen)
            measured = measurer.final(final, job.out.name)
            _fill(report, job, graph, final, chosen, measured, operators)
            if job.teacher is not None:
                report.teacher = measurer.taught(final, job.teacher)
            _decide(report, job, chosen, measured)
            _write_model(report, job, final, measured)
        report.notes += table_notes(job, measurer.costs)
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
        material = prepare(job, graph, trains=_asked_for(job).trains, doubting=False)
        kind: Literal["data", "synthetic"] = "synthetic" if material.synthetic else "data"
        threads = job.threads or usable_cores()
        fidelity, accuracy = judge(
            job.model, job.out, material.judge, material.metric, source=kind, threads=threads, progress=progress
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


def check_options(job: Job) -> None:
    """Find contradictions and unknown names in what was asked, without a look at any file.

    Raises:
        UsageError: options exclude each other, or a pass, option or recipe does not exist.
        DataError: a budget needs data, and there is none.
    """
    if job.passes is not None and job.recipe is not None:
        raise UsageError("--passes and --recipe exclude each other", where="the options", do="give one of them")
    if not job.verify and (job.budget.max_drop is not None or job.budget.min_sqnr is not None):
        raise UsageError("a quality budget needs verification", where="--no-verify", do="drop --no-verify")
    if not job.bench and job.budget.min_speedup is not None:
        raise UsageError("--min-speedup needs the benchmark", where="--no-bench", do="drop --no-bench")
    if job.calib_samples < 1 or (job.eval_samples is not None and job.eval_samples < 1):
        raise UsageError("sample counts must be 1 or more", where="--calib-samples, --eval-samples", do="raise them")
    if not 0 <= job.seed < 2**63:
        raise UsageError(f"a seed is a whole number from 0 on, not {job.seed}", where="--seed", do="give another one")
    check_threads(job.threads)
    _asked_for(job)
    if job.data is None and not job.allow_random and job.budget.min_sqnr is not None:
        raise DataError("--min-sqnr needs data", where="--min-sqnr", do="give real samples with --data")


def _asked_for(job: Job) -> Pipeline:
    """The pipeline that the job names; an empty one where recipes are to be tried.

    Raises:
        UsageError: the spec is malformed, or names a pass, option or recipe that does not exist.
    """
    if job.recipe is not None:
        return recipes.find(job.recipe, job.target).pipeline
    if isinstance(job.passes, Pipeline):
        return job.passes
    return Pipeline.parse(job.passes) if job.passes is not None else Pipeline()


def _teacher(job: Job, graph: Graph) -> Graph:
    """The model to learn from.

    Raises:
        ModelError: it cannot be read, or its inputs or outputs are others.
        UsageError: no pass learns from it.
    """
    assert job.teacher is not None
    if not _asked_for(job).trains:
        raise UsageError("a teacher is given, and no pass trains", where="--teacher", do="add distill to --passes")
    teacher = load(job.teacher)
    for ours, theirs, what in ((graph.inputs, teacher.inputs, "inputs"), (graph.outputs, teacher.outputs, "outputs")):
        if [t.name for t in ours] != [t.name for t in theirs]:
            raise ModelError(
                f"teacher and student have other {what}",
                where=f"{', '.join(t.name for t in theirs)} and {', '.join(t.name for t in ours)}",
                do="give two models that take and give the same",
            )
    return teacher


def _begin(job: Job, graph: Graph, operators: Operators, material: Material) -> Report:
    files = model_files(job.model)
    found = machine()
    size = sum(path.stat().st_size for path in files)
    before = cost.stats(graph, operators, file_bytes=size, sample=material.sample_shapes)
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
        source=FileRef(str(job.model), sha256_of(*files)),
        before=before,
        after=before,
        calibration=None if calibrate is None else Calibration(len(calibrate), material.source),
        warnings=list(material.doubts),
        guesses=list(material.guesses),
        request=job.request() | {"timed_shapes": {k: list(v) for k, v in material.sample_shapes.items()}},
        notes=[*graph.notes, *_broken(graph, operators), *material.notes],
    )


def _broken(graph: Graph, operators: Operators) -> list[str]:
    """What a user should know of weights that hold no numbers; passes leave them alone."""
    return [
        f"weight {name} holds {what}: passes leave it alone" for name, what in broken_weights(graph, operators).items()
    ]


# -- compressing -----------------------------------------------------------------------------------------------


@dataclass
class Chosen:
    """The pipeline that was taken, and what it made."""

    pipeline: Pipeline
    result: RunResult
    explicit: bool

    @property
    def graph(self) -> Graph:
        """The rewritten graph."""
        return self.result.graph


def _compress(job: Job, graph: Graph, context: PassContext, measurer: Measurer, report: Report) -> Chosen | None:
    """Run what was asked for, or try recipes until one holds. None where nothing changed or nothing was better."""
    if job.passes is not None:
        pipeline = _asked_for(job)
        result = PassManager(pipeline, verify=job.verify).run(graph, context)
        report.passes, report.training = result.records, result.trainings
        if result.changes:
            return Chosen(pipeline, result, True)
        useless = "training brought nothing, the weights stay as they were: " if result.trainings else ""
        _unchanged(report, f"{useless}{_missed(report) or 'the passes changed nothing'}")
        return None
    if job.recipe is not None:
        pipeline = recipes.find(job.recipe, job.target).pipeline
        return Chosen(pipeline, PassManager(pipeline, verify=job.verify).run(graph, context), False)
    return _search(job, graph, context, measurer, report)


def _search(job: Job, graph: Graph, context: PassContext, measurer: Measurer, report: Report) -> Chosen | None:
    """Try recipes and take the one that is sound, better, and best by the objective.

    For latency the search ends early: with the first recipe whose integer arithmetic covers nearly all of the work, and
    before those that compute in float once one of integers is clearly faster and small.
    """
    best: tuple[Trial, Chosen] | None = None
    for recipe in recipes.candidates(
        graph, has_data=context.calibration is not None, objective=job.objective, target=job.target
    ):
        if best is not None and job.objective == "latency" and _enough(best[0], recipe, report):
            break
        try:
            result = PassManager(recipe.pipeline, verify=job.verify, on_failure="rollback").run(graph, context)
        except ModelError as error:
            report.notes.append(f"recipe {recipe.name} does not fit this model: {error.what}")
            continue
        report.passes = result.records
        if recipe.aim and not any(record.changes for record in result.records if record.name in recipe.aim):
            report.notes.append(f"recipe {recipe.name} was left: {' and '.join(recipe.aim)} found nothing to do")
            continue
        trial = measurer.trial(result.graph, job.budget, job.objective)
        if not trial.sound or not trial.better:
            report.notes.append(f"recipe {recipe.name} was tried and left: {trial.why}")
            continue
        chosen = Chosen(recipe.pipeline, result, False)
        if best is None or trial.preferred_to(best[0], job.objective):
            best = trial, chosen
        else:
            report.notes.append(f"recipe {recipe.name} was tried and left: another is better for {job.objective}")
        if job.objective == "latency" and recipe.integer and _covers(result.graph, context):
            break
    if best is not None:
        report.passes = best[1].result.records
        return best[1]
    _unchanged(report, "nothing that was tried made the model smaller or faster and kept it right")
    return None


def _enough(best: Trial, recipe: recipes.Recipe, report: Report) -> bool:
    """Whether a recipe without integers cannot do better than what was found, or is there only if all else fails."""
    if recipe.integer:
        return False
    fast_and_small = best.score <= CLEARLY_FASTER and best.bytes <= SMALL_SHARE * report.before.bytes
    return fast_and_small or recipe.name in recipes.LAST_RESORT


def _covers(graph: Graph, context: PassContext) -> bool:
    return cost.integer_share(graph, context.operators, context.sample_shapes) >= COVERED


def _unchanged(report: Report, reason: str) -> None:
    report.verdict, report.exit_code, report.reason = "unchanged", UNCHANGED, reason


# -- judging and writing ---------------------------------------------------------------------------------------


def _stamped(job: Job, graph: Graph, report: Report, chosen: Chosen) -> Graph:
    final = graph.clone()
    marks = stamp(
        version=__version__,
        source_sha256=report.source.sha256,
        spec=str(chosen.pipeline),
        config_sha256=job.options_sha256(),
    )
    for key, value in marks.items():
        final.set_metadata(key, value)
    return final


def _fill(
    report: Report,
    job: Job,
    before: Graph,
    after: Graph,
    chosen: Chosen,
    measured: Measurements,
    operators: Operators,
) -> None:
    report.passes, report.training = chosen.result.records, chosen.result.trainings
    report.after = measured.stats
    report.fidelity, report.accuracy = measured.fidelity, measured.accuracy
    report.benchmarks = [measured.benchmark] if measured.benchmark is not None else []
    report.layers = _layers(before, after, operators, measured)
    report.notes += measured.notes


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


def _decide(report: Report, job: Job, chosen: Chosen, measured: Measurements) -> None:
    report.budget = job.budget.evaluate(
        before_bytes=report.before.bytes,
        after_bytes=report.after.bytes,
        accuracy=report.accuracy,
        fidelity=report.fidelity,
        benchmark=measured.benchmark,
    )
    code = exit_code(report.budget)
    if code:
        missed = ", ".join(line.name for line in report.budget if not line.passed)
        report.verdict, report.exit_code, report.reason = "over-budget", code, f"missed: {missed}"
    elif not chosen.explicit and not measured.better(report.before, job.objective):
        _unchanged(report, "the result is neither smaller nor faster than the original")
    else:
        report.reason = _only_worse(report) or _missed(report)


def _missed(report: Report) -> str:
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
