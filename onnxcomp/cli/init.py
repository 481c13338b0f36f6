"""`onnxcomp init`: write a first onnxcomp.toml from a model."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import options
from onnxcomp.job import Job


@options.command("init")
@click.argument("model", type=click.Path(path_type=Path))
@options.settings(Job, "data")
@options.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("onnxcomp.toml"),
    show_default=True,
    help="The configuration to write.",
)
@options.option("--force", is_flag=True, help="Replace a configuration that is there.")
def command(model: Path, data: str | None, output: Path, force: bool) -> None:
    """Write a commented configuration for MODEL, with every key and its default, for `onnxcomp build`."""
    from onnxcomp import places
    from onnxcomp.build.first import first_config
    from onnxcomp.errors import OutputError
    from onnxcomp.files import atomic_write

    if output.exists() and not force:
        raise OutputError(
            f"{output} is there already", where=f"file {output}", do="add a [[model]] to it, or replace it with --force"
        )
    places.check_command(models=(model,), samples=(data,), functions=(data,), writes={"-o": output})
    text = first_config(model, output.parent, data)
    with atomic_write(output) as file:
        file.write(text.encode())
    click.echo(f"wrote {output}; set what the model must keep (max_drop, max_size, ...), then: onnxcomp build")
