"""What is drawn for people, as plain data: nodes and arrows of a graph, what became of each, how weights are spread."""

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


@dataclass(frozen=True)
class WeightHistogram:
    """How a layer's weights are spread before and after: shares of them in bins of equal width from `low` to `high`.

    `range`, `zeros`: lowest and highest weight, and share of zeros, before and after; the range after is where clipping
    or quantization ends. None where what the new model computes with is not known.
    """

    low: float
    high: float
    before: tuple[float, ...]
    after: tuple[float, ...] | None
    range: tuple[tuple[float, float], tuple[float, float] | None]
    zeros: tuple[float, float | None]
