"""What does rounding a weight do to the outputs of the model? One session, to which the weights are fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Variable
from onnxcomp.runtime.session import open_graph

LARGEST_PART_AXIS = 256  # an axis of more indices is one of places, not of kinds of values
FAINT = 1e-4  # of the mean power: a part below it counts as if it had that much


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

    def noise(self, changed: Mapping[Constant, Array]) -> float:
        """Noise over signal of the worst output when these weights have these values; infinite where it breaks."""
        return self._against(self._outputs(changed))

    def noise_of(self, graph: Graph, threads: int) -> float:
        """Noise over signal of another graph's outputs on the same samples, the worst of those that both have."""
        session = open_graph(graph, threads=threads)
        return self._against([session.run(feed) for feed in self.feeds])

    def _against(self, found: Sequence[Mapping[str, Array]]) -> float:
        shares = [
            noise_share([run[name] for run in self.exact], [run[name] for run in found])
            for name in self.exact[0]
            if name in found[0]
        ]
        return max(shares, default=0.0)

    def _outputs(self, changed: Mapping[Constant, Array]) -> list[dict[str, Array]]:
        fed = {name: changed[c].astype(c.dtype) if c in changed else c.values for c, name in self.weights.items()}
        return [self.session.run({**feed, **fed}) for feed in self.feeds]


def noise_share(exact: Sequence[Array], other: Sequence[Array]) -> float:
    """Noise over signal of one output over some samples; parts of unlike scale along an axis count alike.

    Parts are the indices of an axis behind the first: boxes and scores, say. The axis under which the noise looks worst
    counts. Outputs that are no floats count the share of elements that differ.
    """
    if any(a.shape != b.shape for a, b in zip(exact, other, strict=True)):
        return float("inf")
    if exact[0].dtype.kind != "f":
        size = sum(a.size for a in exact)
        return sum(int((a != b).sum()) for a, b in zip(exact, other, strict=True)) / max(size, 1)
    usable = [np.isfinite(a) for a in exact]
    signal = [np.square(np.where(ok, a, 0), dtype=np.float64) for a, ok in zip(exact, usable, strict=True)]
    noise = [np.square(np.where(ok, b - a, 0), dtype=np.float64) for a, b, ok in zip(exact, other, usable, strict=True)]
    if not all(np.isfinite(array).all() for array in noise):
        return float("inf")
    worst = _share(np.asarray([_total(signal)]), np.asarray([_total(noise)]))
    rank = exact[0].ndim
    for axis in range(1, rank):
        sizes = {array.shape[axis] for array in exact}
        if len(sizes) == 1 and 1 < min(sizes) <= LARGEST_PART_AXIS:
            rest = tuple(a for a in range(rank) if a != axis)
            parts = [sum(array.sum(axis=rest) for array in arrays) for arrays in (signal, noise)]
            worst = max(worst, _share(np.asarray(parts[0]), np.asarray(parts[1])))
    return worst


def _total(arrays: Sequence[Array]) -> float:
    return float(sum(array.sum() for array in arrays))


def _share(signal: Array, noise: Array) -> float:
    """Mean of noise over signal of the parts; a part that is almost nothing is held to a floor."""
    power = float(signal.mean())
    if power == 0:
        return 0.0 if not noise.any() else float("inf")
    return float(np.mean(noise / np.maximum(signal, FAINT * power)))
