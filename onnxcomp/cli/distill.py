"""`onnxcomp distill`: train a compressed model, with another as teacher or by labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import options as shared
from onnxcomp.job import Job
from onnxcomp.manager import registry

FIRST = ("epochs", "steps", "lr", "batch", "bits", "sparsity", "macs")
# what the command itself decides about
DECIDED = ("model", "passes", "recipe", "objective", "verify", "cost_table", "keep_initializer_inputs")


@shared.command("distill")
@click.argument("student", type=click.Path(path_type=Path))
@shared.option(
    "--width",
    group="Training",
    type=click.FloatRange(0, 1, min_open=True),
    help="First keep this share of all channels only.",
)
@shared.option(
    "--classes",
    group="Training",
    type=click.IntRange(min=2),
    help="First give STUDENT a new last layer for so many classes.",
)
@shared.settings(Job, without=DECIDED, teacher="The model to learn from; without one, labels teach.")
@shared.pass_options(registry.find("distill"), without=("teacher",), first=FIRST)
@shared.printing(
    "Print nothing but errors, and a line for a missed budget.",
    verbose="-v: every pass, skip and layer. -vv: a traceback with an error.",
)
def command(
    student: Path,
    width: float | None,
    classes: int | None,
    options: dict[str, Any],
    quiet: bool,
    verbose: int,
    **given: Any,
) -> int:
    """Train STUDENT so that it gives what the teacher gives, or what labels say, and measure what that brought.

    What STUDENT was made to keep stays: zeros, n:m patterns, bounds of clipped weights. The report compares the result
    with STUDENT as it was, and with the teacher.
    """
    from onnxcomp.cli.finish import finish
    from onnxcomp.cli.progress import Bar
    from onnxcomp.driver import run
    from onnxcomp.runtime.progress import SILENT
    from onnxcomp.students import distillation

    with distillation(student, options, width=width, classes=classes, **given) as job:
        report = run(job, SILENT if quiet else Bar())
    return finish(job, report, quiet=quiet, verbose=bool(verbose))
