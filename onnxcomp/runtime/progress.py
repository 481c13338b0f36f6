"""How does long work show that it goes on? A protocol that the command line fills in; the library stays silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias, TypeVar

T = TypeVar("T")
Text: TypeAlias = str | Callable[[], str]


class Progress(Protocol):
    """Something that shows how far an iteration is."""

    def track(self, items: Iterable[T], total: int | None, text: Text) -> Iterator[T]:
        """Yield `items` unchanged, showing `text` and how many of `total` (None: unknown) are done.

        A function as `text` is asked again after each item.
        """
        ...

    def say(self, text: str) -> None:
        """Tell a person who waits, in a line that stays: what is downloaded, and how much of it there is."""
        ...


class Silent:
    """Shows nothing: the default of the library."""

    def track(self, items: Iterable[T], total: int | None, text: Text) -> Iterator[T]:
        """Yield `items` unchanged."""
        del total, text
        yield from items

    def say(self, text: str) -> None:
        """Say nothing."""


SILENT = Silent()
