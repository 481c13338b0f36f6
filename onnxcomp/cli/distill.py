"""`onnxcomp distill`: train a compressed model, with another as teacher or by labels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import options as shared
from onnxcomp.manager import registry

TARGETS = ("cpu", "cuda", "tensorrt")


@click.command("distill")
@click.argument("student", type=click.Path(path_type=Path))
@click.option("--teacher", type=click.Path(path_type=Path), help="The model to learn from; without one, labels teach.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The result [default: NAME.opt.onnx].")
@click.option("--width", type=click.FloatRange(0, 1, min_open=True), help="First keep this share of all channels only.")
@click.option("--classes", type=click.IntRange(min=2), help="First give STUDENT a new last layer for so many classes.")
@shared.pass_options(registry.find("distill"), without=("teacher",))
@shared.data_options
@shared.eval_data_options
@shared.preprocess_options
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True, help="Where it will run.")
@shared.budget_options
@click.option("--report", type=click.Path(path_type=Path), help="The report as JSON [default: beside the model].")
@click.option("--html", type=click.Path(path_type=Path), help="The report as a page for people, with the loss curves.")
@click.option("--seed", type=int, default=0, show_default=True, help="For the split, the order of samples and views.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0: every core.")
@click.option("--no-bench", is_flag=True, help="Do not measure latency.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", count=True, help="-v: every pass, skip and layer. -vv: a traceback with an error.")
def command(
    student: Path,
    width: float | None,
    classes: int | None,
    options: dict[str, Any],
    no_bench: bool,
    quiet: bool,
    verbose: int,
    **given: Any,
) -> int:
    """Train STUDENT so that it gives what the teacher gives, or what labels say, and measure what that brought.

    What STUDENT was made to keep stays: zeros, n:m patterns, bounds of clipped weights. The report compares the result
    with STUDENT as it was, and with the teacher.
    """
    from onnxcomp.cli.progress import Bar
    from onnxcomp.driver import run
    from onnxcomp.job import Job
    from onnxcomp.manager.base import exactly
    from onnxcomp.manager.pipeline import Pipeline
    from onnxcomp.runtime.progress import SILENT
    from onnxcomp.students import narrower, with_classes

    if given["teacher"] is None:
        options["teacher"] = "none"
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        model = student
        if classes is not None:
            model, new = with_classes(student, classes, Path(folder), given["seed"])
            options["fresh"] = (*options.get("fresh", ()), *map(exactly, new))
        passes = Pipeline((*narrower(width), registry.find("distill")(**options)))
        job = Job(model=model, passes=passes, bench=not no_bench, **given)
        report = run(job, SILENT if quiet else Bar())
    if not quiet:
        from onnxcomp.cli.screen import screen
        from onnxcomp.report.screen import show

        files = [str(path) for path in (job.report_path, job.html) if path is not None]
        show(report, screen(), verbose=bool(verbose), files=files)
    return report.exit_code
