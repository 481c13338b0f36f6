"""`onnxcomp inspect`: size, parameters and MACs, layer by layer, and what passes could do."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import options
from onnxcomp.job import Job


@options.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@options.written("--json", "json_file", what="Write everything as JSON")
@options.option("--all", "everything", group="Output", is_flag=True, help="Every layer, not the 20 with most MACs.")
@options.option(
    "--groups",
    group="Output",
    is_flag=True,
    help="Channels, heads and neurons that leave together, and what must stay.",
)
@options.settings(Job, "shapes")
@options.printing()
def command(
    model: Path,
    json_file: Path | None,
    everything: bool,
    groups: bool,
    shapes: dict[str, tuple[int, ...]],
    quiet: bool,
    verbose: int,
) -> None:
    """Show what MODEL holds and costs, layer by layer, and what each pass could do with it."""
    from onnxcomp import places
    from onnxcomp.cli.screen import screen
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.inspection import inspect
    from onnxcomp.report.inspection import show, show_groups
    from onnxcomp.report.record import write_data

    places.check_command(models=(model,), writes={"--json": json_file})
    found = inspect(model, shapes, groups=groups)
    if not quiet:
        console = screen(err=json_file == STANDARD_OUTPUT)
        if groups:
            show_groups(found, console)
        else:
            show(found, console, everything=everything)
    if json_file is not None:
        write_data(found.to_json(), json_file)
