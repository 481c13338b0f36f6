"""`onnxcomp cache`: what onnxcomp keeps in the user's cache, how large it is, and how it goes."""

from __future__ import annotations

import shutil

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
@click.pass_context
def command(context: click.Context) -> None:
    """List what onnxcomp keeps outside of your own folders: all of it can be made again, and costs time only."""
    if context.invoked_subcommand is not None:
        return
    from onnxcomp.cli.screen import echo
    from onnxcomp.files import size_of, user_cache
    from onnxcomp.report.tables import size_text

    folder = user_cache()
    echo(f"{folder}")
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        words = KINDS.get(place.name, "")
        echo(f"  {place.name:<12} {size_text(size_of(place)):>9}  {words}")
    echo("onnxcomp cache clear [NAME] removes all of it, or one of these")


@command.command("clear", cls=options.GroupedCommand)
@click.argument("names", metavar="[NAME]...", nargs=-1)
def clear(names: tuple[str, ...]) -> None:
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
        echo(f"removed {name}, {size_text(size)}")
