"""`onnxcomp build`: the build step; builds the models of a configuration that changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli import options

if TYPE_CHECKING:
    from onnxcomp.config import Config


@options.command("build")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@options.option(
    "--only", metavar="NAME", multiple=True, help="Only this model: a name or output, globs too; repeatable."
)
@options.option("-n", "--dry-run", is_flag=True, help="Say what would be built and why; write nothing.")
@options.option("--force", is_flag=True, help="Build even where nothing changed.")
@options.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Models built at the same time."
)
@options.option(
    "--depfile", type=click.Path(path_type=Path), help="Write what the outputs depend on, for Make or CMake."
)
@options.printing("Print nothing but errors, and a line for a missed budget.")
def command(
    config: Path | None,
    only: tuple[str, ...],
    dry_run: bool,
    force: bool,
    jobs: int,
    depfile: Path | None,
    quiet: bool,
    verbose: int,
) -> int:
    """Build what changed of the models that CONFIG names: onnxcomp.toml, or [tool.onnxcomp] of pyproject.toml.

    A model is built again when its file, its data, its options, a version or the processor changed, or an output is not
    as it was left. The exit code is 0 when every model is accepted, else the lowest of the failing ones.
    """
    from onnxcomp.build.step import check_places
    from onnxcomp.config import load

    found = load(config)
    check_places(found, depfile)
    if dry_run:
        return _show_plan(found, only, force, quiet)
    from onnxcomp.build.reports import write_reports
    from onnxcomp.build.state import State
    from onnxcomp.build.step import build, depfile_text
    from onnxcomp.cli.progress import Bar
    from onnxcomp.cli.screen import echo, echo_error
    from onnxcomp.report.tables import missed
    from onnxcomp.runtime.progress import SILENT

    state = State(found)
    say = _silent if quiet else echo
    progress = SILENT if quiet else Bar()
    result = build(found, only=only, force=force, jobs=jobs, tell=say, progress=progress)
    files = write_reports(found, result)
    if depfile is not None:
        from onnxcomp.files import atomic_write

        with atomic_write(depfile) as out:
            out.write(depfile_text(found, only).encode())
    for model in result.models:
        if model.error is not None:
            echo_error(model.error, model.name)
        elif quiet and model.report is not None and model.exit_code:
            for line in missed(model.report):
                echo(f"{model.name}: {line}", err=True)
        for note in model.notes:
            say(f"{model.name}: {note}")
    if state.new:
        say(f"made {found.state}/ for what the build remembers; it may be deleted at any time")
    say("reports: " + ", ".join(path.as_posix() for path in files))
    return result.exit_code


def _show_plan(config: Config, only: tuple[str, ...], force: bool, quiet: bool) -> int:
    """Say what would be built; the code is that of the first thing that would stop a model before any work."""
    from onnxcomp.build.step import obstacle, plan
    from onnxcomp.cli.screen import echo, echo_error

    codes = []
    for item in plan(config, only=only, force=force):
        error = obstacle(item) if item.reasons else None
        if not quiet:
            words = f"would be built: {'; '.join(item.reasons)}" if item.reasons else "up to date"
            echo(f"{item.entry.name}: {'would fail' if error is not None else words}")
        if error is not None:
            codes.append(error.exit_code)
            echo_error(error, item.entry.name)
    return min(codes, default=0)


def _silent(_text: str) -> None:
    pass
