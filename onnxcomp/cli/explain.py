"""`onnxcomp explain`: which layers lose how much, and why; of a pair of models, or of one before it is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job

if TYPE_CHECKING:
    from onnxcomp.explanation.report import Explanation


MOST = 12  # layers on the screen


@options.command("explain")
@click.argument("models", metavar="MODEL | BEFORE AFTER", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.settings(Job, "data", "shapes", "preprocess", "seed", "threads", seed="Of the forecast.")
@options.option(
    "--samples", group="Samples", type=click.IntRange(min=1), default=16, show_default=True, help="How many are run."
)
@options.option("--all", "every", is_flag=True, help="Show every layer, not the worst twelve.")
@options.option("--no-times", is_flag=True, help="Leave out the kernels' times.")
@options.written("--json", "json_file", what="Write the findings")
@options.written("--html", "html_file", what="Write a page for people")
@options.printing()
def command(
    models: tuple[Path, ...],
    data: str | None,
    samples: int,
    every: bool,
    no_times: bool,
    json_file: Path | None,
    html_file: Path | None,
    quiet: bool,
    verbose: int,
    **given: Any,
) -> int:
    """Say which layers of AFTER lose how much against BEFORE, and why; of one MODEL, what int8 would cost each layer.

    The pair may come from any tool: layers are matched by names, weights, structure and values on the samples. Each
    layer's own error is measured with the input that BEFORE feeds it; the accumulated error with AFTER's own.
    """
    from onnxcomp import places
    from onnxcomp.cli.progress import Bar
    from onnxcomp.errors import DataError
    from onnxcomp.explanation.explain import explain
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.report.explanation import page
    from onnxcomp.report.record import write_text
    from onnxcomp.runtime.progress import SILENT

    if len(models) > 2:
        raise click.UsageError("give one MODEL, or two: BEFORE AFTER")
    if data is None:
        raise DataError("there is no data to run the models on", where="--data is missing", do="give it with --data")
    places.check_command(
        models=models, samples=(data,), functions=(data,), writes={"--json": json_file, "--html": html_file}
    )
    found = explain(
        models[0],
        models[1] if len(models) == 2 else None,
        data,
        samples=samples,
        times=not no_times,
        progress=SILENT if quiet else Bar(),
        **given,
    )
    if not quiet:
        _show(found, every, aside=STANDARD_OUTPUT in (json_file, html_file))
    if json_file is not None:
        write_text(found.to_text(), json_file)
    if html_file is not None:
        write_text(page(found.to_json()), html_file)
    return 0


def _show(found: Explanation, every: bool, *, aside: bool) -> None:
    from rich.text import Text

    from onnxcomp.cli.screen import screen
    from onnxcomp.report.explanation import COLUMNS, headline, lines, rows
    from onnxcomp.report.tables import table

    console, content = screen(err=aside), found.to_json()
    shown = None if every else MOST
    console.print(Text(headline(content)), soft_wrap=True)
    console.print(table(COLUMNS, rows(content, shown), right=(2, 3, 4, 5), prose=(0, 6)))
    for line in lines(content, shown):
        console.print(Text(line), soft_wrap=True)  # what is to be pasted stays one line
