"""`onnxcomp plan`: which form each layer should take, and what other trades there are; writes no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job

if TYPE_CHECKING:
    from onnxcomp.planning import Planned

WRITES = ("model", "output", "passes", "recipe", "plan", "teacher", "report", "html", "verify", "bench_seconds")


@options.command("plan")
@click.argument("model", type=click.Path(path_type=Path))
@options.settings(Job, without=WRITES)
@options.option(
    "--points", group="First", type=click.IntRange(2, 1000), default=8, show_default=True, help="Of the front, about."
)
@options.option("--point", group="First", type=int, help="Write this point of the front to -o, not the measured one.")
@options.option(
    "-o", "--output", group="Output", type=click.Path(path_type=Path), help="Write the plan here: TOML, for --plan."
)
@options.written("--json", "json_file", what="Write front and plan")
@options.printing()
def command(
    model: Path,
    points: int,
    point: int | None,
    output: Path | None,
    json_file: Path | None,
    quiet: bool,
    verbose: int,
    **given: Any,
) -> int:
    """Decide on a form for every layer of MODEL, and show the front: decibels against time and size.

    The points are predicted from measured kernels and errors of single layers; the plan itself was written and measured
    on samples kept back. onnxcomp optimize MODEL --plan FILE carries a plan out. Exit code 13 where nothing is gained.
    """
    from onnxcomp import places
    from onnxcomp.cli.progress import Bar
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.planning import plan
    from onnxcomp.report.record import write_text
    from onnxcomp.runtime.progress import SILENT

    job = Job(model=model, **given)
    places.check(places.reads_of(job), {"-o": output, "--json": json_file})
    found = plan(job, points, SILENT if quiet else Bar())
    chosen = found.plan if point is None else found.at(point)
    if not quiet:
        _show(found, aside=json_file == STANDARD_OUTPUT)
    if output is not None and chosen is not None:
        write_text(str(chosen), output)
    if json_file is not None:
        write_text(found.to_text(), json_file)
    return 0 if chosen is not None else 13


def _show(found: Planned, *, aside: bool) -> None:
    from rich.text import Text

    from onnxcomp.cli.screen import screen
    from onnxcomp.report.planning import COLUMNS, rows
    from onnxcomp.report.tables import table

    console = screen(err=aside)
    if found.front:
        console.print(table(COLUMNS, rows(found.front), right=(0, 1, 2, 3), prose=(4,)))
    console.print(Text(found.why or found.summary))
