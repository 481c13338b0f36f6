"""What is drawn of a graph for people, as plain data: nodes, arrows, and what became of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["kept", "changed", "gone", "new", "outside"]


@dataclass(frozen=True)
class DrawnNode:
    """A node of a drawn graph. `words`: types and shapes of its constants; `state`: what became of it.

    One that is `outside` stands for where an arrow comes from or goes to; its operator is empty.
    """

    name: str
    op: str
    words: str
    state: State


@dataclass(frozen=True)
class DrawnGraph:
    """Nodes in an order that runs, arrows between them by index, and how many more nodes there are."""

    nodes: tuple[DrawnNode, ...]
    edges: tuple[tuple[int, int], ...]
    more: int = 0


@dataclass(frozen=True)
class ChangedPart:
    """One layer with what follows it up to the next, before and after; a side without nodes has no such layer."""

    layer: str
    before: DrawnGraph
    after: DrawnGraph
