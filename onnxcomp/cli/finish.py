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

    if quiet:
        for line in missed(report):
            echo(f"{job.model}: {line}", err=True)
        return report.exit_code
    from onnxcomp.report.screen import show

    places = [job.report_path, job.html]
    files = [str(path) for path in places if path is not None and path != STANDARD_OUTPUT]
    show(report, screen(err=job.report == STANDARD_OUTPUT), verbose=verbose, files=files)
    return report.exit_code


def missed(report: Report) -> list[str]:
    """A line for each budget that was missed: what was asked for, and what came."""
    from onnxcomp.report.tables import limit_text, value_text

    lines = [f"missed {limit_text(line)}: {value_text(line)}" for line in report.budget if not line.passed]
    return lines or ([report.reason] if report.exit_code else [])
