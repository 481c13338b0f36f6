"""How does a person see that long work goes on? Bars on the terminal's error stream; a file gets lines on downloads."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from onnxcomp.errors import plain
from onnxcomp.runtime.progress import Text

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


class Bar:
    """A `Progress` that draws with rich, inner iterations below outer ones, and leaves nothing behind."""

    def __init__(self) -> None:
        self._drawn: Progress | None = None

    def track(self, items: Iterable[T], total: int | None, text: Text) -> Iterator[T]:
        """Yield `items` unchanged, showing how far it is."""
        if not sys.stderr.isatty():
            yield from items
            return
        outermost = self._drawn is None  # rich allows one live display at a time
        drawn = self._drawn = self._drawn or _start()
        task = drawn.add_task(_words(text), total=total)
        try:
            for item in items:
                drawn.update(task, description=_words(text))  # may have become that of this item
                yield item
                drawn.update(task, advance=1, description=_words(text))
        finally:
            drawn.remove_task(task)
            if outermost:
                drawn.stop()
                self._drawn = None

    def say(self, text: str) -> None:
        """A line on the error stream, whatever that is."""
        if self._drawn is not None:
            self._drawn.console.print(plain(text), markup=False, highlight=False)
        else:
            print(plain(text), file=sys.stderr, flush=True)


def _words(text: Text) -> str:
    return plain(text if isinstance(text, str) else text())


def _start() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    drawn = Progress(*columns, console=Console(stderr=True), transient=True)
    drawn.start()
    return drawn
