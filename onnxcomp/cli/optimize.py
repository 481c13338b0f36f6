"""`onnxcomp optimize`: compress a model and prove what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import options

OBJECTIVES = ("latency", "size", "accuracy", "macs")
TARGETS = ("cpu", "cuda", "tensorrt")


@click.command("optimize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The result [default: NAME.opt.onnx].")
@click.option("--passes", metavar="SPEC", help="Run these passes instead: name{option=value,...},name; see passes.")
@click.option("--recipe", metavar="NAME", help="Run a named pipeline instead of trying several.")
@options.teacher_option
@options.data_options
@options.eval_data_options
@options.preprocess_options
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True, help="Where it will run.")
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), default="latency", show_default=True, help="What should get better."
)
@options.budget_options
@click.option("--report", type=click.Path(path_type=Path), help="The report as JSON [default: beside the model].")
@click.option("--html", type=click.Path(path_type=Path), help="The report as a page for people, a file of its own.")
@click.option("--seed", type=int, default=0, show_default=True, help="For the split and everything drawn at random.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads for calibration; 0: every core.")
@click.option(
    "--cost-table",
    type=click.Path(path_type=Path),
    help="Times that decide something: replayed from FILE, new ones added to it [default: in the user's cache].",
)
@click.option("--no-bench", is_flag=True, help="Do not measure latency, but for times that --cost-table lacks.")
@click.option("--no-verify", is_flag=True, help="Do not run the result against the original.")
@click.option("--keep-initializer-inputs", is_flag=True, help="Leave weights listed as graph inputs among the inputs.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", count=True, help="-v: every pass, skip and layer. -vv: a traceback with an error.")
def command(model: Path, no_bench: bool, no_verify: bool, quiet: bool, verbose: int, **given: Any) -> int:
    """Compress MODEL, measure the result against it, and write both the model and the proof.

    Without --passes and --recipe several recipes are tried and the first one that is sound and better is taken.
    The exit code is 0 for an accepted result, 10 to 14 for a missed budget, 13 where nothing was gained.
    """
    from onnxcomp.cli.progress import Bar
    from onnxcomp.driver import run
    from onnxcomp.job import Job
    from onnxcomp.runtime.progress import SILENT

    job = Job(model=model, bench=not no_bench, verify=not no_verify, **given)
    report = run(job, SILENT if quiet else Bar())
    if not quiet:
        from onnxcomp.cli.screen import screen
        from onnxcomp.report.screen import show

        files = [str(path) for path in (job.report_path, job.html) if path is not None]
        show(report, screen(), verbose=bool(verbose), files=files)
    return report.exit_code
