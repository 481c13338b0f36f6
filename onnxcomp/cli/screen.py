"""Where commands print: the terminal, or a file or pipe that has no width of its own; never a name's control codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxcomp.errors import OnnxcompError, one_line, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from onnxcomp.results import Failure

PIPE_COLUMNS = 140


def screen(*, err: bool = False) -> Console:
    """A console on standard output, or on standard error; tables keep their full width where no terminal limits it."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Shows control characters of what it prints as escapes, and line breaks within a text as well."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(_within_lines, objects), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    console = Plain(highlight=False, soft_wrap=True, stderr=err)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def _within_lines(shown: Any) -> Any:
    """A text whose line breaks are at its ends alone, where ours are; what is no text as it is."""
    from rich.text import Text

    words = shown.plain if isinstance(shown, Text) else shown
    if not isinstance(words, str) or "\n" not in words.strip("\n"):
        return shown
    first, last = len(words) - len(words.lstrip("\n")), len(words.rstrip("\n"))
    if isinstance(shown, str):
        return shown[:first] + one_line(shown[first:last]) + shown[last:]
    return shown[:first] + Text("\\n").join(shown[first:last].split("\n")) + shown[last:]


def echo_error(error: OnnxcompError | Failure, of: str) -> None:
    """Print an error of one of several, in its three lines."""
    for text in (f"error: {of}: {error.what}", f"where: {error.where}", f"do:    {error.do}"):
        click.echo(one_line(text), err=True)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(plain(text), err=err)
