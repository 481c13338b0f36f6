"""What do tests calibrate on, and how do they say how long kernels take? Samples in memory, and times by rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Graph, Node
from onnxcomp.targets.cpu import TARGET as CPU


class Feeds:
    """Model-ready samples, one batch after another."""

    labels = None
    source = "test"

    def __init__(self, feeds: Mapping[str, np.ndarray]) -> None:
        self.feeds = dict(feeds)

    def __len__(self) -> int:
        return 1 if self._whole else len(next(iter(self.feeds.values())))

    @property
    def _whole(self) -> bool:
        """Whether an input has no batch dimension: then there is one sample."""
        return any(values.ndim == 0 for values in self.feeds.values())

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        if self._whole:
            yield self.feeds
            return
        step = size or 8
        for start in range(0, len(self), step):
            yield {name: values[start : start + step] for name, values in self.feeds.items()}


@dataclass
class RuledCosts:
    """A cost model whose times come from a rule, so that no clock decides a test.

    Attributes:
        node_us: microseconds of a node of a graph.
    """

    node_us: Callable[[Node], float]

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        return {node.name: self.node_us(node) for node in graph.walk()}

    def latency_ms(self, graph: Graph) -> float:
        return sum(self.node_times_us(graph).values()) / 1e3


def on_integers(node: Node) -> bool:
    """Whether a node gets an integer kernel: its weight is an integer, or all it reads and writes is."""
    if node.op not in CPU.kernels and node.op not in CPU.moves:
        return False
    read = [t.producer is not None and t.producer.op == "DequantizeLinear" for t in node.inputs if t.name]
    if node.op in ("Conv", "Gemm", "MatMul"):
        return all(read[:2])
    return any(read) and all(reader.op == "QuantizeLinear" for t in node.outputs for reader in t.outputs)
