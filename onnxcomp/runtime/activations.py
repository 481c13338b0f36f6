"""Which values do activations take on calibration data? Exact extremes and bounded histograms, streamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Array, Graph
from onnxcomp.runtime.histograms import BINS, Histogram
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.taps import BUDGET_BYTES, Batches, runs_over, stream

VALUES_A_TENSOR = 2**18  # about so many values of a tensor go into its histogram, over all samples
LEAST_VALUES_A_RUN = 1024
WAITING_VALUES = 2**14


@dataclass
class Activation:
    """What a tensor holds over all samples.

    Attributes:
        minimum, maximum: of all finite values; 0 before any came.
        count: values seen.
        nonfinite: how many of them were NaN or infinite.
        histogram: of an even share of the finite values, the same places in every run.
    """

    minimum: float = 0.0
    maximum: float = 0.0
    count: int = 0
    nonfinite: int = 0
    histogram: Histogram = field(default_factory=Histogram)
    _arrays: int = 0
    _waiting: list[Array] = field(default_factory=list)
    _held: int = 0

    def add(self, array: Array, most: int) -> None:
        """Take in one array of float32; about `most` of its values go into the histogram."""
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        picked = thinned(array, most, self._arrays)
        started = self.count > self.nonfinite
        self._arrays += 1
        self.count += array.size
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = array[np.isfinite(array)]
            self.nonfinite += array.size - finite.size
            if not finite.size:
                return
            low, high = float(finite.min()), float(finite.max())
            picked = picked[np.isfinite(picked)]
        self.minimum = min(self.minimum, low) if started else low
        self.maximum = max(self.maximum, high) if started else high
        self._waiting.append(np.array(picked, np.float32))
        self._held += picked.size
        if self._held >= WAITING_VALUES:
            self.flush()

    def flush(self) -> None:
        """Bring the values that wait into the histogram: a few large additions cost less than many small ones."""
        if self._waiting:
            self.histogram.add(np.concatenate(self._waiting))
        self._waiting, self._held = [], 0


def thinned(array: Array, most: int, turn: int) -> Array:
    """About `most` values at even distances, from a start that moves with `turn`: flat view.

    The distance shares no factor with the two innermost dimensions, so that no row or column is passed over.
    """
    flat = array.reshape(-1)
    step = array.size // most
    if step < 2:
        return flat
    inner = math.prod(array.shape[-2:])
    while math.gcd(step, inner) != 1:
        step += 1
    return flat[(turn * 7919) % step :: step]


def collect(
    graph: Graph,
    names: Sequence[str],
    samples: Batches,
    *,
    batch: int = 8,
    threads: int = 2,
    bins: int = BINS,
    budget_bytes: int = BUDGET_BYTES,
    progress: Progress = SILENT,
) -> dict[str, Activation]:
    """Statistics of the named float32 tensors over all samples; memory does not grow with their number.

    Args:
        names: tensors of the main graph, graph inputs included.
        batch: samples a run, where the model's batch dimension is free.
        budget_bytes: most that the tensors of one run may take together.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
        DataError: the samples do not fit.
    """
    found = {name: Activation(histogram=Histogram(bins)) for name in names}
    runs = max(1, runs_over(graph, samples, batch))
    most = max(LEAST_VALUES_A_RUN, VALUES_A_TENSOR // runs)
    for values in stream(
        graph, list(found), samples, batch=batch, threads=threads, budget_bytes=budget_bytes, progress=progress
    ):
        for name, array in values.items():
            found[name].add(array, most)
    for activation in found.values():
        activation.flush()
    return found
