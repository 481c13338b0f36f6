"""The one place where the stages meet: load, data, passes, verify, benchmark, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress

from onnxcomp import places
from onnxcomp.errors import OnnxcompError
from onnxcomp.files import atomic_write, sha256_of
from onnxcomp.graph.io import model_files, save
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.lock import folder_lock
from onnxcomp.manager.plan import Plan
from onnxcomp.report.html import write_html
from onnxcomp.report.record import write_json
from onnxcomp.results import FileRef, Report
from onnxcomp.runtime.machine import peak_memory_bytes
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.evidence import doubts
from onnxcomp.work.finalist import finalist
from onnxcomp.work.flips import in_feeds_of_one, pictures
from onnxcomp.work.front import runnable_files
from onnxcomp.work.judging import Measurements
from onnxcomp.work.reporting import begin, decide, fill, table_notes, unchanged
from onnxcomp.work.strategies import propose
from onnxcomp.work.study import Study


def run(
    job: Job, progress: Progress = SILENT, *, alone: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Report:
    """Carry out one job.

    Args:
        progress: shows long work.
        alone: a context that every timing is made in, where other processes must not time meanwhile.

    Raises:
        OnnxcompError: a subclass tells what cannot be used: model, data, options, environment, output.
    """
    start = time.perf_counter()
    with ExitStack() as writing:
        with Study.open(job, progress=progress, alone=alone) as study:
            report = begin(study)
            proposed = propose(study)
            report.passes, report.training = proposed.records, proposed.trainings
            report.notes += proposed.notes
            if proposed.candidates:
                chosen, final, measured = finalist(study, proposed.candidates, report.notes)
                fill(report, study, final, chosen, measured)
                if job.teacher is not None:
                    report.teacher = study.judge.taught(final, job.teacher)
                decide(report, job, explicit=chosen.explicit, searched=chosen.searched)
                report.doubts += study.judge.otherwise() if job.verify else ()
                report.doubts += doubts(report.fidelity, report.accuracy, study.material.judge.labels)
                writing.enter_context(_alone_at(report, job))
                _write_model(report, study, final, measured)
            else:
                unchanged(report, proposed.why)
                writing.enter_context(_alone_at(report, job))
            report.notes += table_notes(job, study.costs)
            judged, found = study.material.judge, report.fidelity
            placed = job.html is not None and found is not None and in_feeds_of_one(found, judged)
            shown = pictures(report.flips, judged) if placed else {}
        report.notes += places.settle(job, accepted=report.verdict == "accepted")
        report.seconds = round(time.perf_counter() - start, 3)
        report.peak_memory_bytes = peak_memory_bytes()
        write_json(report, job.report_path)
        _write_plan(report, job)
        if job.html is not None:
            write_html(report, job.html, shown)
    return report


def _alone_at(report: Report, job: Job) -> AbstractContextManager[None]:
    """Keep other runs from writing where this one does: a model and its reports belong together."""
    if report.verdict != "unchanged":
        with suppress(OSError):  # told where the model is written
            job.out.parent.mkdir(parents=True, exist_ok=True)
    return folder_lock(job.out.parent)


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
        with Study.open(job, progress=progress, again=True) as study, runnable_files(job.out) as (out,):
            fidelity, accuracy = study.judge.compared(out)
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


def _write_plan(report: Report, job: Job) -> None:
    """The plan that a pass decided, as a file to edit and to run again."""
    plan = next((record.documents["plan"] for record in report.passes if "plan" in record.documents), None)
    if plan is not None and job.plan_path is not None:
        with atomic_write(job.plan_path) as file:
            file.write(str(Plan.of(plan)).encode())


def _write_model(report: Report, study: Study, graph: Graph, measured: Measurements) -> None:
    if report.verdict == "unchanged":
        return
    rejected = report.verdict == "over-budget"
    path = study.job.rejected if rejected else study.job.out
    written = study.whole(graph)
    files = save(written, path)
    report.output = FileRef(str(path), sha256_of(*files))
    if study.parting is not None:  # what was measured is the part that runs
        report.before = study.stats_of(study.parting.whole, study.files)
        report.after = study.stats_of(written, files)
        return
    if not rejected and report.output.sha256 != measured.sha256:
        raise OnnxcompError(
            "the file written is not the file that was measured", where=f"file {path}", do="check the disk, run again"
        )
