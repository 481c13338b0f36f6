"""How does long work show that it goes on? A protocol that the command line fills in; the library stays silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Something that shows how far an iteration is."""

    def track(self, items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
        """Yield `items` unchanged, showing `text` and how many of `total` (None: unknown) are done."""
        ...


class Silent:
    """Shows nothing: the default of the library."""

    def track(self, items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
        """Yield `items` unchanged."""
        del total, text
        yield from items


SILENT = Silent()
