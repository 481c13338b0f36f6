"""`onnxcomp passes`: the passes that exist, and the options of one."""

from __future__ import annotations

import click


@click.command("passes")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List all passes, or show the options of the pass NAME."""
    from onnxcomp.cli.screen import screen
    from onnxcomp.manager import registry
    from onnxcomp.report.passes import show_all, show_one

    if name is None:
        show_all([registry.find(known) for known in registry.names()], screen())
    else:
        show_one(registry.find(name), screen())
