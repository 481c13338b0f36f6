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
@options.option("--force", is_flag=True, help="Replace a configuration that is there, instead of adding to it.")
@options.printing()
def command(model: Path, data: str | None, output: Path, force: bool, quiet: bool, verbose: int) -> None:
    """Write a commented configuration for MODEL, with every key and its default, for `onnxcomp build`.

    Where there is one already, MODEL is added to it.
    """
    from onnxcomp import places
    from onnxcomp.build.first import data_doubt, extended, first_config, first_model
    from onnxcomp.cli.screen import echo
    from onnxcomp.files import atomic_write

    places.check_command(models=(model,), samples=(data,), functions=(data,), writes={"-o": output})
    added = output.exists() and not force
    if added:
        text = extended(output, first_model(model, output.parent, data))
    else:
        text = first_config(model, output.parent, data)
    with atomic_write(output) as file:
        file.write(text.encode())
    if doubt := data_doubt(data):
        echo(f"warning: {doubt}", err=True)
    if not quiet:
        done = f"added {model} to {output}" if added else f"wrote {output}"
        echo(f"{done}; set what the model must keep (max_drop, max_size, ...), then: onnxcomp build")
