"""Which of many yes-or-no choices together cost least, when some pairs of them cost extra? A minimum cut."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator
from itertools import pairwise

_SMALL = 1e-9


class Choices:
    """Choices between 0 and 1 with costs of single choices and of unequal pairs; `solve` finds the cheapest.

    Costs of pairs must not be negative, which makes the problem a minimum cut (V. Kolmogorov and R. Zabih, "What energy
    functions can be minimized via graph cuts?", PAMI 2004), solved here by Dinic's algorithm.
    """

    def __init__(self) -> None:
        self._index: dict[Hashable, int] = {}
        self._edges: list[dict[int, float]] = [{}, {}]  # node 0 stands for choice 1, node 1 for choice 0

    def one(self, item: Hashable, cost: float) -> None:
        """Choosing 1 for the item costs so much; less than nothing is a gain."""
        if cost >= 0:
            self._add(self._node(item), 1, cost)
        else:
            self._add(0, self._node(item), -cost)

    def unequal(self, one: Hashable, zero: Hashable, cost: float) -> None:
        """Choosing 1 for the first and 0 for the second costs so much; infinite forbids it."""
        self._add(self._node(one), self._node(zero), cost)

    def solve(self) -> set[Hashable]:
        """The items for which 1 is the cheaper choice; 0 where both are equal."""
        self._maximum_flow()
        reached = self._levels()
        return {item for item, node in self._index.items() if node in reached}

    def _node(self, item: Hashable) -> int:
        if item not in self._index:
            self._index[item] = len(self._edges)
            self._edges.append({})
        return self._index[item]

    def _add(self, start: int, end: int, capacity: float) -> None:
        self._edges[start][end] = self._edges[start].get(end, 0.0) + capacity
        self._edges[end].setdefault(start, 0.0)

    def _levels(self) -> dict[int, int]:
        """Distance from node 0 along edges that have capacity left."""
        found = {0: 0}
        queue = deque([0])
        while queue:
            node = queue.popleft()
            for end, capacity in self._edges[node].items():
                if capacity > _SMALL and end not in found:
                    found[end] = found[node] + 1
                    queue.append(end)
        return found

    def _maximum_flow(self) -> None:
        while 1 in (levels := self._levels()):
            open_ends = {node: iter(list(edges)) for node, edges in enumerate(self._edges)}
            while path := self._path(levels, open_ends):
                most = min(self._edges[a][b] for a, b in pairwise(path))
                for a, b in pairwise(path):
                    if not math.isinf(self._edges[a][b]):
                        self._edges[a][b] -= most
                    self._edges[b][a] += most

    def _path(self, levels: dict[int, int], open_ends: dict[int, Iterator[int]]) -> list[int]:
        """A path from 0 to 1 that goes one level down with every step; empty where none is left."""
        path = [0]
        while path:
            node = path[-1]
            if node == 1:
                return path
            for end in open_ends[node]:
                if self._edges[node][end] > _SMALL and levels.get(end, -1) == levels[node] + 1:
                    path.append(end)
                    break
            else:
                path.pop()
        return []
