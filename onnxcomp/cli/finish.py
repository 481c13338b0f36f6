"""How does a run end on the screen? In full, or with -q in a line for each budget that was missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.job import Job
    from onnxcomp.results import Report


def finish(job: Job, report: Report, *, quiet: bool, verbose: bool) -> int:
    """Tell what came of a job; its exit code.

    The screen goes to standard error where the report goes to standard output.
    """
    from onnxcomp.cli.screen import echo, screen
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.report.tables import missed

    if quiet:
        for line in missed(report):
            echo(f"{job.model}: {line}", err=True)
        return report.exit_code
    from onnxcomp.report.screen import show

    planned = any("plan" in record.documents for record in report.passes)
    places = [job.plan_path if planned else None, job.report_path, job.html]
    files = [str(path) for path in places if path is not None and path != STANDARD_OUTPUT]
    show(report, screen(err=job.report == STANDARD_OUTPUT), verbose=verbose, files=files)
    return report.exit_code
