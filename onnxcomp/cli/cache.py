"""`onnxcomp cache`: what onnxcomp keeps in the user's cache, how large it is, and how it goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from onnxcomp.cli import options

# folder below the cache -> what lies in it
KINDS = {
    "costs": "times of layers on this machine",
    "checkpoints": "trainings that were interrupted",
    "teacher": "answers of teachers",
    "training": "the training runtime",
}


@click.group("cache", invoke_without_command=True)
@options.written("--json", "json_file", what="Write the list")
@options.printing()
@click.pass_context
def command(context: click.Context, json_file: Path | None, quiet: bool, verbose: int) -> None:
    """List what onnxcomp keeps outside of your own folders: all of it can be made again, and costs time only."""
    if context.invoked_subcommand is not None:
        return
    from onnxcomp import places
    from onnxcomp.cli.screen import echo
    from onnxcomp.files import STANDARD_OUTPUT, size_of, user_cache
    from onnxcomp.report.record import write_data
    from onnxcomp.report.tables import size_text

    places.check((), {"--json": json_file})
    folder, err = user_cache(), json_file == STANDARD_OUTPUT
    found = {place.name: size_of(place) for place in sorted(folder.iterdir())} if folder.is_dir() else {}
    if not quiet:
        echo(f"{folder}", err=err)
        for name, size in found.items():
            echo(f"  {name:<12} {size_text(size):>9}  {KINDS.get(name, '')}", err=err)
        echo("onnxcomp cache clear [NAME] removes all of it, or one of these", err=err)
    if json_file is not None:
        entries = [{"name": name, "bytes": size, "what": KINDS.get(name, "")} for name, size in found.items()]
        write_data({"schema": 1, "folder": str(folder), "entries": entries}, json_file)


@command.command("clear", cls=options.GroupedCommand)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@options.printing()
def clear(names: tuple[str, ...], quiet: bool, verbose: int) -> None:
    """Remove everything that onnxcomp keeps, or what lies under NAME."""
    from onnxcomp.cli.screen import echo
    from onnxcomp.errors import UsageError
    from onnxcomp.files import size_of, user_cache
    from onnxcomp.report.tables import size_text

    folder = user_cache()
    there = {place.name: place for place in folder.iterdir()} if folder.is_dir() else {}
    for name in names:
        if name not in there:
            what = f"the cache holds no {name!r}"
            raise UsageError(what, where=f"folder {folder}", do=f"it holds: {', '.join(sorted(there)) or 'nothing'}")
    for name in names or sorted(there):
        place = there[name]
        size = size_of(place)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()
        if not quiet:
            echo(f"removed {name}, {size_text(size)}")
