"""`onnxcomp passes`: the passes that exist, and the options of one."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import options


@options.command("passes")
@click.argument("name", required=False)
@options.written("--json", "json_file", what="Write this")
@options.printing()
def command(name: str | None, json_file: Path | None, quiet: bool, verbose: int) -> None:
    """List all passes, or show the options of the pass NAME."""
    from onnxcomp.cli.screen import screen
    from onnxcomp.manager import registry
    from onnxcomp.report.passes import described, show_all, show_one

    if json_file is not None:
        from onnxcomp import places
        from onnxcomp.report.record import write_data

        places.check((), {"--json": json_file})
        chosen = registry.names() if name is None else [name]
        write_data({"schema": 1, "passes": [described(registry.find(one)) for one in chosen]}, json_file)
    elif quiet:
        return
    elif name is None:
        show_all([registry.find(known) for known in registry.names()], screen())
    else:
        show_one(registry.find(name), screen())
