"""How near do graphs come to the one that is the measure, on a few samples? Its answers are kept, others run once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from onnxcomp.graph.ir import Array, Graph
from onnxcomp.runtime.closeness import noise_share, rows_of, worst_sqnr_db
from onnxcomp.runtime.session import open_graph


class Reference:
    """A graph that others are held against.

    Args:
        graph: the measure; it must not change before its first answer.
        feeds: by input name, a batch each; gone through anew for every graph, so they need not be held.
        threads: of ONNX Runtime.
        optimize: let ONNX Runtime rewrite the graphs, as it will.
    """

    def __init__(
        self, graph: Graph, feeds: Iterable[Mapping[str, Array]], threads: int, *, optimize: bool = True
    ) -> None:
        self._graph, self.feeds, self._threads, self._optimize = graph, feeds, threads, optimize

    @cached_property
    def expected(self) -> list[dict[str, Array]]:
        """The measure's answers, a batch each."""
        return list(self.answers(self._graph))

    @cached_property
    def rows(self) -> list[int]:
        """Samples in each batch."""
        return [rows_of(feed) for feed in self.feeds]

    def answers(self, graph: Graph) -> Iterator[dict[str, Array]]:
        """What a graph gives, batch by batch.

        Raises:
            ModelError: ONNX Runtime does not run it.
        """
        session = open_graph(graph, threads=self._threads, optimize=self._optimize)
        for feed in self.feeds:
            yield session.run(dict(feed))

    def sqnr_db(self, graph: Graph) -> float:
        """Signal to noise ratio of the worst part of a graph's outputs, in dB; raises as `answers`."""
        return worst_sqnr_db(self.expected, self.answers(graph), self.rows)

    def noise_share(self, graph: Graph) -> float:
        """Squared error of the worst part of a graph's outputs, as a share of its signal; raises as `answers`."""
        return noise_share(self.expected, self.answers(graph), self.rows)

    def each_db(self, graph: Graph) -> tuple[float, list[float]]:
        """As `sqnr_db`, over all batches and of every batch alone; raises as `answers`."""
        found = list(self.answers(graph))
        each = [worst_sqnr_db([a], [b], [n]) for a, b, n in zip(self.expected, found, self.rows, strict=True)]
        return worst_sqnr_db(self.expected, found, self.rows), each
