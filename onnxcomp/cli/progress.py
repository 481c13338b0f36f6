"""How does a person see that long work goes on? A bar on the terminal's error stream, nothing when that is a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Bar:
    """A `Progress` that draws with rich while an iteration runs, and leaves nothing behind.

    Work inside work shows as a further line of the same display.
    """

    def __init__(self) -> None:
        self._display: Any = None

    def track(self, items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
        """Yield `items` unchanged, showing how far it is."""
        if self._display is not None:
            yield from self._follow(items, total, text)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
            self._display = display
            try:
                yield from self._follow(items, total, text)
            finally:
                self._display = None

    def _follow(self, items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
        display = self._display
        task = display.add_task(text, total=total)
        try:
            for item in items:
                yield item
                display.advance(task)
        finally:
            display.remove_task(task)
