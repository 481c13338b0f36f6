"""How is one model built in a process of its own? One order in, one answer out; it ends when its parent does.

A process for each model: a runtime that crashes takes one model down and not the build, peak memory is that model's
own, and the current folder is the configuration's, so that reports name files as the configuration does.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from onnxcomp.config import entry_of
from onnxcomp.errors import OnnxcompError
from onnxcomp.lock import file_lock
from onnxcomp.runtime import child


def main() -> int:
    """Build the model that standard input describes; the outcome goes to what was standard output."""
    answers = child.Answers()
    try:
        answers.send(_build(next(child.orders())))
    except KeyboardInterrupt:
        return child.INTERRUPTED
    return 0


def _build(order: dict[str, Any]) -> dict[str, Any]:
    """Run the job and measure its file again; the exit code and the files that stand, or the error."""
    from onnxcomp.driver import check_written, run
    from onnxcomp.graph.io import model_files

    scratch = Path(order["scratch"])
    scratch.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(scratch)
    try:
        job = entry_of(order["table"]).job
        pages = [job.html] if job.html is not None else []
        for path in (job.out, job.report_path, *pages):
            path.parent.mkdir(parents=True, exist_ok=True)
        report = run(job, alone=lambda: file_lock(Path(order["timing_lock"])))
        if report.verdict == "accepted":
            check_written(job, report)
            written = [*model_files(job.out), job.report_path, *pages]
        else:
            written = [job.report_path]
        return {"exit_code": report.exit_code, "files": [str(path) for path in written]}
    except OnnxcompError as error:
        return _failure(error.exit_code, error.what, error.where, error.do)
    except OSError as error:
        return _failure(6, f"a file cannot be written: {error.strerror}", str(error.filename), "check the folder")
    except Exception as error:
        traceback.print_exc()
        return _failure(1, f"internal error: {type(error).__name__}: {error}", "this is a defect", "report it")


def _failure(code: int, what: str, where: str, do: str) -> dict[str, Any]:
    return {"exit_code": code, "files": [], "error": {"what": what, "where": where, "do": do}}


if __name__ == "__main__":
    sys.exit(main())
