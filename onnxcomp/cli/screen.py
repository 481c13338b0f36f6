"""Where commands print: the terminal, or a file or pipe that has no width of its own; never a name's control codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.errors import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

PIPE_COLUMNS = 140


def screen(*, err: bool = False) -> Console:
    """A console on standard output, or on standard error; tables keep their full width where no terminal limits it."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Shows control characters of what it prints as escapes."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    console = Plain(highlight=False, soft_wrap=True, stderr=err)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def echo(text: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(plain(text), err=err)
