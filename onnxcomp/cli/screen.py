"""Where commands print: the terminal, or a file or pipe that has no width of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 140


def screen() -> Console:
    """A console on standard output; tables keep their full width where no terminal limits it."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console
