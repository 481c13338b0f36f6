"""`onnxcomp optimize`: compress a model and prove what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job


@options.command("optimize")
@click.argument("model", type=click.Path(path_type=Path))
@options.settings(Job, without=("model",))
@options.option(
    "--save-config",
    group="Output",
    type=click.Path(path_type=Path),
    help="Write this command to a configuration for onnxcomp build, too.",
)
@options.printing(
    "Print nothing but errors, and a line for a missed budget.",
    verbose="-v: every pass, skip and layer. -vv: a traceback with an error.",
)
def command(model: Path, save_config: Path | None, quiet: bool, verbose: int, **given: Any) -> int:
    """Compress MODEL, measure the result against it, and write both the model and the proof.

    Without --passes and --recipe several recipes are tried and the first one that is sound and better is taken.
    The exit code is 0 for an accepted result, 10 to 15 for a missed budget, 13 where nothing was gained.
    """
    from onnxcomp.cli.finish import finish
    from onnxcomp.cli.progress import Bar
    from onnxcomp.driver import run
    from onnxcomp.recipes import AIMS
    from onnxcomp.runtime.progress import SILENT

    job = Job(model=model, **given)
    if save_config is not None:
        from onnxcomp.build.first import save_job

        save_job(job, save_config)
    report = run(job, SILENT if quiet else Bar())
    if job.recipe in AIMS and report.verdict != "unchanged":
        from onnxcomp.build.first import save_result
        from onnxcomp.cli.screen import echo

        config = save_result(job, ",".join(record.spec for record in report.passes))
        if not quiet:
            echo(f"makes it again: onnxcomp build {config}", err=True)
    return finish(job, report, quiet=quiet, verbose=bool(verbose))
