"""What does a run's report say? The source before any pass, the result beside it, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from onnxcomp._version import __version__
from onnxcomp.drawn import ChangedPart
from onnxcomp.graph import cost
from onnxcomp.graph.changed import changed_parts
from onnxcomp.graph.health import broken_weights
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.ops.facts import Operators
from onnxcomp.results import ABSENT, REMOVED, Calibration, FileRef, LayerRecord, Report
from onnxcomp.runtime.costs import MeasuredCosts
from onnxcomp.runtime.machine import conflict, machine, versions
from onnxcomp.verify.budget import UNCHANGED, Budget, exit_code
from onnxcomp.verify.weights import histograms
from onnxcomp.work.choice import WORTH_SHARE, better, disagreeing, unsound
from onnxcomp.work.flips import flips
from onnxcomp.work.front import operator, told
from onnxcomp.work.judging import Measurements
from onnxcomp.work.strategies import Candidate, missed
from onnxcomp.work.study import Study

MOST_PARTS = 100  # of a graph that a report draws


def begin(study: Study) -> Report:
    """What is known before any pass runs."""
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
        calibration=None if calibrate is None else Calibration(len(calibrate), material.source, material.repeated),
        warnings=list(material.doubts),
        guesses=list(material.guesses),
        request=job.request() | {"timed_shapes": {k: list(v) for k, v in material.sample_shapes.items()}},
        notes=[
            *filter(None, [conflict()]),
            *(told(study.parting) if study.parting else ()),
            *graph.notes,
            *_broken(graph, study.operators),
            *material.notes,
        ],
        doubts=[*material.copies, *([f"judged in front of {operator(study.parting)}"] if study.parting else ())],
    )


def _broken(graph: Graph, operators: Operators) -> list[str]:
    """What a user should know of weights that hold no numbers; passes leave them alone."""
    return [
        f"weight {name} holds {what}: passes leave it alone" for name, what in broken_weights(graph, operators).items()
    ]


def fill(report: Report, study: Study, after: Graph, chosen: Candidate, measured: Measurements) -> None:
    """Enter what a candidate was measured to on the samples that judge."""
    report.passes, report.training = chosen.result.records, chosen.result.trainings
    report.after = measured.stats
    report.fidelity, report.accuracy = measured.fidelity, measured.accuracy
    report.benchmarks = [measured.benchmark] if measured.benchmark is not None else []
    report.layers = _layers(study.original, after, study.operators, measured)
    report.changed_parts, report.more_parts = _changed(study, after, measured)
    report.notes += measured.notes
    if measured.fidelity is not None:
        report.guesses += measured.fidelity.guesses
        report.flips = flips(measured.fidelity, study.material.judge)


def _changed(study: Study, after: Graph, measured: Measurements) -> tuple[list[ChangedPart], int]:
    """The layers whose part of the graph changed, those with the largest error where there are many; how many more."""
    found = changed_parts(study.original, after, study.operators)
    errors = measured.own_sqnr_db
    worst = sorted(range(len(found)), key=lambda i: errors.get(found[i].layer, math.inf))[:MOST_PARTS]
    return [found[i] for i in sorted(worst)], len(found) - len(worst)


def _layers(before: Graph, after: Graph, operators: Operators, measured: Measurements) -> list[LayerRecord]:
    """Weighted layers by name, before and after: those of the original in its order, then those that passes made.

    One that is gone has zeros after, one that is new has zeros before.
    """
    found = cost.layers(after, operators)
    new = {layer.node: layer for layer in cost.joined(found)}
    runs = {layer.node: layer.precision for layer in cost.joined(_computed(found, measured.on_integers))}
    weights = histograms(before, after, operators)
    records = []
    originals = cost.layers(before, operators)
    for old in originals:
        now = new.get(old.node)
        records.append(
            LayerRecord(
                node=old.node,
                op=old.op,
                precision=(old.precision, runs[old.node] if now else REMOVED),
                bytes=(old.bytes, now.bytes if now else 0),
                parameters=(old.parameters, now.parameters if now else 0),
                own_sqnr_db=measured.own_sqnr_db.get(old.node),
                weights=weights.get(old.node),
                stored=(old.precision, now.precision) if now and runs[old.node] != now.precision else None,
            )
        )
    known = {old.node for old in originals}
    return records + [
        LayerRecord(
            node=made.node,
            op=made.op,
            precision=(ABSENT, runs[made.node]),
            bytes=(0, made.bytes),
            parameters=(0, made.parameters),
            stored=(ABSENT, made.precision) if runs[made.node] != made.precision else None,
        )
        for made in new.values()
        if made.node not in known
    ]


def _computed(found: list[cost.LayerCost], on_integers: Mapping[str, bool]) -> Iterator[cost.LayerCost]:
    """The layers with what they compute in: float where integers are decoded before they are multiplied."""
    for layer in found:
        decoded = "int" in layer.precision and not on_integers.get(layer.node, True)
        yield replace(layer, precision="float32") if decoded else layer


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


def decide(report: Report, job: Job, *, explicit: bool, searched: bool) -> None:
    """Verdict, exit code and reason, by the budgets and by the default run's own limits.

    Args:
        explicit: the passes were asked for one by one.
        searched: recipes were tried; then the default run's own limits hold, by the samples that judge.
    """
    benchmark = next(iter(report.benchmarks), None)
    report.budget = job.budget.evaluate(
        before_bytes=report.before.bytes,
        after_bytes=report.after.bytes,
        accuracy=report.accuracy,
        fidelity=report.fidelity,
        benchmark=benchmark,
    )
    code = exit_code(report.budget)
    if code:
        names = ", ".join(line.name for line in report.budget if not line.passed)
        report.verdict, report.exit_code, report.reason = "over-budget", code, f"missed: {names}"
    elif not explicit and not better(report.before, report.after, benchmark, job.objective):
        unchanged(report, _no_gain(report, job.objective))
    elif why := unsound(report.fidelity, report.accuracy, Budget()):
        if searched:
            unchanged(report, f"on the samples that judge, {why}")
        else:
            worse = _only_worse(report)
            report.reason = worse or f"{why}: a run without --passes would not take this"
    else:
        report.reason = _only_worse(report) or missed(report.passes) or _otherwise(report)


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


def _only_worse(report: Report) -> str:
    """Why the result is worth less than what came in; empty where something got better."""
    before, after = report.before, report.after
    gains = [after.bytes < before.bytes * WORTH_SHARE, after.macs < before.macs]
    gains.append(after.nonzero_parameters < before.nonzero_parameters)
    gains += [bench.outcome == "faster" for bench in report.benchmarks]
    if any(gains):
        return ""
    what = ""
    if report.accuracy is not None:
        if report.accuracy.drop < 0:
            return ""
        what = f"{report.accuracy.metric} fell" if report.accuracy.drop > 0 else ""
    elif report.teacher is not None and report.teacher.farther:
        what = "farther from the teacher"
    if not what and after.bytes * WORTH_SHARE > before.bytes:
        what = "the file grew"
    return f"worse than before: {what}, and nothing was gained for it" if what else ""
