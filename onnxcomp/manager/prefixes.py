"""What did pipelines on one graph already do? Results of their first passes, kept for others that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from onnxcomp.graph.ir import Graph, Stored
from onnxcomp.manager.guarantee import Probe
from onnxcomp.results import PassRecord, TrainingRecord

MOST_GRAPHS = 24
MOST_BYTES = 1 << 30  # of arrays that kept graphs hold beside those of the source


@dataclass(frozen=True)
class Kept:
    """Where a pipeline stood after some of its passes.

    Attributes:
        start: the graph that its first pass ran on, local functions opened where a pass asks for that.
        inlined: what is still to be said of that.
        graph: the graph so far; nobody changes it.
    """

    start: Graph
    inlined: str
    graph: Graph
    records: tuple[PassRecord, ...] = ()
    trainings: tuple[TrainingRecord, ...] = ()


@dataclass
class Prefixes:
    """Results by the spec strings of the passes so far, for pipelines that run on one graph in one context.

    The least recently used go first where there are more than `most_graphs`, or where what they hold beside the source
    passes `most_bytes`.

    Attributes:
        strict: whether strict shape inference takes the source; None until somebody asked.
        probe: compares graphs on the same few feeds; None until somebody ran a pipeline.
    """

    source: Graph
    most_graphs: int = MOST_GRAPHS
    most_bytes: int = MOST_BYTES
    strict: bool | None = None
    probe: Probe | None = None
    _kept: OrderedDict[tuple[str, ...], Kept] = field(default_factory=OrderedDict)

    def longest(self, mode: str, specs: tuple[str, ...]) -> tuple[int, Kept] | None:
        """How many first passes of a pipeline are done, and their result; None where nothing is known.

        Args:
            mode: what else decides how a pipeline runs.
            specs: of all its passes, in order.
        """
        for count in range(len(specs), -1, -1):
            key = (mode, *specs[:count])
            if key in self._kept:
                self._kept.move_to_end(key)
                return count, self._kept[key]
        return None

    def keep(self, mode: str, specs: tuple[str, ...], found: Kept) -> None:
        """Keep what some first passes came to."""
        self._kept[(mode, *specs)] = found
        self._kept.move_to_end((mode, *specs))
        while self._kept and (len(self._kept) > self.most_graphs or self._bytes() > self.most_bytes):
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        """Bytes of the arrays in memory that kept graphs hold and the source does not, each once."""
        sizes: dict[int, int] = {}
        for graph in {id(kept.graph): kept.graph for kept in self._kept.values()}.values():
            payloads = {id(c.payload): c for c in (*graph.constants(), *graph.unused)}
            sizes |= {key: c.nbytes for key, c in payloads.items() if not isinstance(c.payload, Stored)}
        own = {id(c.payload) for c in (*self.source.constants(), *self.source.unused)}
        return sum(size for key, size in sizes.items() if key not in own)
