"""What does rounding a weight do to the outputs of the model? Weights are fed, and only what reads them runs again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxcomp.graph.clone import clone
from onnxcomp.graph.io import total_bytes
from onnxcomp.graph.ir import Array, Constant, Graph, Variable, reads
from onnxcomp.runtime.chain import Chain, cut
from onnxcomp.runtime.closeness import rows_of, worst_sqnr_db
from onnxcomp.runtime.session import LARGE_BYTES
from onnxcomp.runtime.taps import Sessions

T = TypeVar("T")

PARTS = 8  # of the graph; more would save little: what changes runs, and on average half of what stands behind


class Trials:
    """The outputs of a graph under other values of some weights.

    The graph is cut into parts. What they hand on is kept, so that what stands before the first weight that changes is
    not run again.

    Args:
        weights: initializers of floating point.
        feeds: a few samples, held.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """

    def __init__(
        self, graph: Graph, weights: Sequence[Constant], feeds: Sequence[Mapping[str, Array]], sessions: Sessions
    ) -> None:
        copied = clone(graph)
        copy, exact = copied.graph, dict[str, Array]()
        self.weights: dict[Constant, str] = {}
        for constant in dict.fromkeys(weights):
            fed = Variable(copy.unique_name("weight"), constant.dtype, constant.shape)
            copy.replace_uses(copied.tensors[constant], fed)
            copy.inputs.append(fed)
            self.weights[constant], exact[fed.name] = fed.name, constant.values
        copy.sort()
        readers = [node for node in copy.nodes if any(t.name in exact for t in reads(node))]
        self.feeds, self._sessions = list(feeds), sessions
        spans = [(node, node) for node in readers]
        self._chain = Chain(
            copy, cut(copy.nodes, spans, 1 if total_bytes(graph) > LARGE_BYTES else PARTS), sessions.threads
        )
        self._exact = [self._chain.run({**feed, **exact}) for feed in self.feeds]

    def noise(self, changed: Mapping[Constant, Array], samples: int) -> float:
        """Noise over signal of the worst part of the outputs when these weights have these values.

        Args:
            samples: run on so many, the first ones.
        """
        fed = {self.weights[c]: values.astype(c.dtype, copy=False) for c, values in changed.items()}
        found = [self._chain.follow(values, -1, fed) for values in self._exact[:samples]]
        return self._against(found) if changed else 0.0

    def noise_of(self, graph: Graph) -> float:
        """Noise over signal of another graph's outputs on the same samples, the worst part of those that both have."""
        session = self._sessions.of(graph)
        return self._against([session.run(feed) for feed in self.feeds])

    def _against(self, found: list[dict[str, Array]]) -> float:
        rows = [rows_of(feed) for feed in self.feeds[: len(found)]]
        names = [name for name in self._chain.outputs if name in found[0]]
        expected = [{name: run[name] for name in names} for run in self._exact[: len(found)]]
        return float(10 ** (-worst_sqnr_db(expected, found, rows) / 10))


@dataclass
class Group(Generic[T]):
    """Weights, and the noise over signal that they bring together."""

    items: list[T]
    noise: float


def costly_first(
    items: Sequence[T],
    noise: Callable[[list[T]], float],
    size: Callable[[T], int],
    *,
    looks: int,
    fair: float = 0.0,
) -> list[Group[T]]:
    """Items in groups, as small as a number of runs allows, those that cost most for their size first.

    Where there are no more items than runs, each is looked at alone. Else errors add up, so a group that brings little
    holds no item that brings much: groups are halved, the one that costs most for its size first.

    Args:
        noise: what items bring together.
        looks: calls of `noise`, at most.
        fair: noise for its size up to which a group is not looked into.
    """

    def price(group: Group[T]) -> float:
        return group.noise / sum(size(item) for item in group.items)

    whole = list(items)
    if len(whole) <= looks and not fair:
        return sorted((Group([item], noise([item])) for item in whole), key=price, reverse=True)
    groups = [Group(whole, noise(whole))]
    for _ in range(looks // 2):
        costly = [group for group in groups if len(group.items) > 1 and price(group) > fair]
        if not costly:
            break
        worst = max(costly, key=price)
        half = len(worst.items) // 2
        at = next(place for place, group in enumerate(groups) if group is worst)
        groups[at : at + 1] = [Group(part, noise(part)) for part in (worst.items[:half], worst.items[half:])]
    return sorted(groups, key=price, reverse=True)
