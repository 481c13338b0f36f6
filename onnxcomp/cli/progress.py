"""How does a person see that long work goes on? A bar on the terminal's error stream, nothing when that is a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Bar:
    """A `Progress` that draws with rich while an iteration runs, and leaves nothing behind."""

    def track(self, items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
        """Yield `items` unchanged, showing how far it is."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            yield from bar.track(items, total=total, description=text)
