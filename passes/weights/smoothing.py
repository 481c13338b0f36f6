"""May outlying channels of an activation be evened out before it is quantized? Factors from streamed statistics.

x W = (x m) (W / m) for any positive m, one factor a channel. SmoothQuant (G. Xiao et al., ICML 2023) takes
1/m = max|x|^a / max|w|^(1-a), so that part of an outlier moves from the activation, which has one scale, to the
weight, which has one scale an output channel. Whether that pays, and which a, is decided by the noise to expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Array, Graph
from onnxcomp.runtime.taps import Batches, stream

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
WORTH = 0.6  # noise must fall to this share of the unsmoothed one, or the product by m is not written
SAMPLES = 48
ACTIVATION_STEPS, WEIGHT_STEPS = 255.0, 127.0
LEAST = 1e-5  # of the largest channel: factors of channels that are never used stay bounded


@dataclass
class ChannelStatistics:
    """An activation over samples: lowest and highest value of each channel in each sample, and mean squares.

    Attributes:
        low, high: one array [channels] a sample.
        squares: sum of x^2 over all rows, [channels].
        rows: number of rows.
    """

    low: list[Array] = field(default_factory=list)
    high: list[Array] = field(default_factory=list)
    squares: Array | float = 0.0
    rows: int = 0

    def add(self, values: Array) -> None:
        """Take in one sample's activation [..., channels]."""
        rows = values.reshape(-1, values.shape[-1])
        self.low.append(rows.min(axis=0))
        self.high.append(rows.max(axis=0))
        self.squares = self.squares + np.einsum("rk,rk->k", rows, rows, dtype=np.float64)
        self.rows += len(rows)

    def factors(self, weights: Sequence[Array]) -> Array | None:
        """The factors m [channels] of least expected noise; None where none is worth a product.

        Args:
            weights: of all products that read the activation, each [channels, out].
        """
        low, high = np.stack(self.low), np.stack(self.high)  # [samples, channels]
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        joined = np.concatenate([np.asarray(w, np.float32) for w in weights], axis=1)
        largest = np.maximum(np.abs(low), np.abs(high)).max(axis=0)
        heaviest = np.abs(joined).max(axis=1)
        largest = np.maximum(largest, LEAST * max(float(largest.max()), 1e-30))
        heaviest = np.maximum(heaviest, LEAST * max(float(heaviest.max()), 1e-30))
        plain = self._noise(np.ones_like(largest), low, high, joined)
        best: tuple[float, Array | None] = (WORTH * plain, None)
        for strength in STRENGTHS:
            factors = heaviest ** (1 - strength) / largest**strength
            factors = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
            noise = self._noise(factors, low, high, joined)
            if noise < best[0]:
                best = (noise, factors)
        return best[1]

    def _noise(self, factors: Array, low: Array, high: Array, joined: Array) -> float:
        """Expected squared error of the products of one row: rounding of the activation, and of the weights."""
        top = np.maximum((high * factors).max(axis=1), 0.0)
        bottom = np.minimum((low * factors).min(axis=1), 0.0)
        step = float(np.square((top - bottom) / ACTIVATION_STEPS).mean()) / 12
        moved = joined / factors[:, None]
        scales = np.abs(moved).max(axis=0) / WEIGHT_STEPS
        power = float((self.squares / max(self.rows, 1) * np.square(factors)).sum())
        return step * float(np.square(moved, dtype=np.float64).sum()) + power * float(np.square(scales).sum()) / 12


def channel_statistics(
    graph: Graph, names: Sequence[str], samples: Batches, *, threads: int, progress: Any
) -> Mapping[str, ChannelStatistics]:
    """Statistics of the named tensors of the main graph over the first samples, by name; one sample a run."""
    found = {name: ChannelStatistics() for name in names}
    part = _First(samples, SAMPLES)
    for values in stream(graph, names, part, batch=1, threads=threads, progress=progress, text="looking at channels"):
        for name, array in values.items():
            if name in found and array.ndim >= 2:
                found[name].add(np.asarray(array, np.float32))
    return {name: statistics for name, statistics in found.items() if statistics.rows}


class _First:
    """The first samples of a source."""

    def __init__(self, samples: Batches, most: int) -> None:
        self.samples, self.most = samples, min(most, len(samples))

    def __len__(self) -> int:
        return self.most

    def batches(self, size: int | None = None) -> Any:
        """Feeds, `size` samples each, until there were enough."""
        given = 0
        for feeds in self.samples.batches(size):
            if given >= self.most:
                return
            yield feeds
            given += size or 1
