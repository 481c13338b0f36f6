"""What does rounding a weight do to the outputs of the model? One session, to which the weights are fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxcomp.graph.ir import Array, Constant, Graph, Variable
from onnxcomp.runtime.closeness import rows_of, worst_sqnr_db
from onnxcomp.runtime.session import open_graph

T = TypeVar("T")


class Trials:
    """The outputs of a graph under other values of some weights.

    Args:
        weights: initializers of floating point.
        feeds: a few samples, held.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """

    def __init__(
        self, graph: Graph, weights: Sequence[Constant], feeds: Sequence[Mapping[str, Array]], threads: int
    ) -> None:
        copy, wanted = graph.clone(), set(weights)
        self.weights: dict[Constant, str] = {}
        for constant, copied in zip(graph.constants(), copy.constants(), strict=True):
            if constant in wanted:
                fed = Variable(copy.unique_name("weight"), constant.dtype, constant.shape)
                copy.replace_uses(copied, fed)
                copy.inputs.append(fed)
                self.weights[constant] = fed.name
        self.feeds = list(feeds)
        self.session = open_graph(copy, threads=threads)
        self.exact = self._outputs({})

    def noise(self, changed: Mapping[Constant, Array], samples: int) -> float:
        """Noise over signal of the worst part of the outputs when these weights have these values.

        Args:
            samples: run on so many, the first ones.
        """
        return self._against(self._outputs(changed, samples)) if changed else 0.0

    def noise_of(self, graph: Graph, threads: int) -> float:
        """Noise over signal of another graph's outputs on the same samples, the worst part of those that both have."""
        session = open_graph(graph, threads=threads)
        return self._against([session.run(feed) for feed in self.feeds])

    def _against(self, found: list[dict[str, Array]]) -> float:
        rows = [rows_of(feed) for feed in self.feeds[: len(found)]]
        expected = [{name: run[name] for name in run if name in found[0]} for run in self.exact[: len(found)]]
        return float(10 ** (-worst_sqnr_db(expected, found, rows) / 10))

    def _outputs(self, changed: Mapping[Constant, Array], samples: int | None = None) -> list[dict[str, Array]]:
        fed = {name: changed[c].astype(c.dtype) if c in changed else c.values for c, name in self.weights.items()}
        return [self.session.run({**feed, **fed}) for feed in self.feeds[:samples]]


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

    Errors add up, so a group that brings little holds no item that brings much: groups are halved, the one that costs
    most for its size first.

    Args:
        noise: what items bring together.
        looks: calls of `noise`, at most.
        fair: noise for its size up to which a group is not looked into.
    """

    def price(group: Group[T]) -> float:
        return group.noise / sum(size(item) for item in group.items)

    whole = list(items)
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
