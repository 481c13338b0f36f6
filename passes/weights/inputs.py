"""What enters a layer, and where does the mean of its rounding error go? Moments from calibration data, and biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxcomp.graph.ir import Array, Graph
from onnxcomp.layers.layer import Bias
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.runtime.gram import Gram, grams, why_not

MADE_UP_SHARE = 0.5  # of a layer's mean input power: how little made-up samples say of directions


def seen_samples(context: PassContext) -> SampleSource | None:
    """What layers' inputs are looked at on: data that were given, or else samples that were made up."""
    return context.calibration if context.calibration is not None else context.probes


def layer_moments(graph: Graph, uses: Sequence[WeightUse], context: PassContext) -> Iterator[Mapping[str, Gram]]:
    """Second moments of the inputs of each layer by node name, group by group, so that few are held at a time."""
    samples = seen_samples(context)
    if not uses or samples is None:
        return
    yield from grams(
        graph,
        uses,
        samples,
        group_bytes=context.memory.moments,
        threads=context.threads,
        seed=context.seed,
        progress=context.progress,
    )


def hedged(gram: Array) -> Array:
    """Second moments [in, in] of made-up samples, pulled towards inputs that are alike in every direction."""
    pulled: Array = gram + MADE_UP_SHARE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return pulled


def unmeasured(graph: Graph, uses: Sequence[WeightUse]) -> str:
    """Why the inputs of a weight's layer cannot be looked at; empty when they can."""
    return "several nodes share it" if len(uses) > 1 else why_not(graph, uses[0])


class Absorber:
    """A bias that takes up the mean of a layer's rounding error: b += (W - Q) E[x]."""

    def __init__(self, bias: Bias) -> None:
        self.bias = bias
        self.shifts: list[Array] = []

    def add(self, shift: Array) -> None:
        """Take up the error of the next output channels."""
        self.shifts.append(shift)

    def write(self, graph: Graph) -> None:
        """Correct the bias; one that other nodes read as well is copied first."""
        self.bias.write(graph, self.bias.values() + np.concatenate(self.shifts).astype(np.float64))
