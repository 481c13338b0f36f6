"""`onnxcomp help`: the help of a command, as `onnxcomp COMMAND --help` prints it."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Print the help of COMMAND, or of onnxcomp."""
    assert context.parent is not None
    place = context.parent
    for word in words:
        if not isinstance(place.command, click.Group):
            raise click.UsageError(f"{place.command_path} has no commands below it")
        name, found, _ = place.command.resolve_command(place, [word])
        assert found is not None
        place = click.Context(found, info_name=name, parent=place)
    click.echo(place.command.get_help(place))
