"""How good are the answers of a model? A task metric over all samples, before and after."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from statistics import NormalDist

import numpy as np

from onnxcomp.data.metric import Metric
from onnxcomp.results import Accuracy
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Array
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Answer, Runner, Samples, joined


class Collected:
    """The outputs of each model for all samples, which a metric sees as a whole."""

    def __init__(self) -> None:
        self.parts: list[dict[str, list[Array]]] = []
        self.samples = 0

    def add(self, answer: Answer) -> None:
        """Keep one batch."""
        self.samples += answer.rows
        self.parts = self.parts or [defaultdict(list) for _ in answer.outputs]
        for parts, outputs in zip(self.parts, answer.outputs, strict=True):
            for name, array in outputs.items():
                parts[name].append(array)

    def outputs(self, model: int) -> dict[str, Array]:
        """All outputs of one model, batches joined along the first axis."""
        return {name: joined(arrays) for name, arrays in self.parts[model].items()}


def predict(
    model: Path | OpenedModel, samples: Samples, *, provider: str = "cpu", threads: int = 0, progress: Progress = SILENT
) -> dict[str, Array]:
    """The outputs of one model for all samples, by name: `[samples, ...]`.

    Raises:
        ModelError: the model does not load or run, or an output changes its shape from batch to batch.
        DataError: there are no samples, or they do not fit.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    collected = Collected()
    runner = Runner(model, provider=provider, threads=threads)
    for answer in runner.answers(samples, progress=progress, text="predicting"):
        collected.add(answer)
    return collected.outputs(0)


def scored(metric: Metric, collected: Collected, labels: Array | None, *, level: float = 0.05) -> Accuracy:
    """The metric of both models, and how much worse the second is: positive means worse, whichever way it points.

    `level`: the chance that the drop lies outside its interval.
    """
    outputs = [collected.outputs(model) for model in (0, 1)]
    before, after = (metric.score(found, labels) for found in outputs)
    drop = metric.drop(before, after)
    told = None
    if metric.each is not None and len(labels if labels is not None else ()) > 1:
        first, second = (np.asarray(metric.each(dict(found), labels), np.float64) for found in outputs)
        told = interval(first - second if metric.higher_is_better else second - first, level)
    return Accuracy(metric.name, collected.samples, before, after, drop, told)


def interval(drops: Array, level: float = 0.05) -> tuple[float, float]:
    """Where the mean of paired differences, [samples] of -1, 0 and 1, lies but for a chance of `level`.

    One more sample than was seen counts as changed: where none changed, one in so many still may (the paired form of
    Agresti's adjustment, Agresti and Min 2005, Statistics in Medicine 24, 729-740).
    """
    count, mean = len(drops), float(drops.mean())
    variance = (float(np.square(drops).sum()) + 1.0) / count - mean**2
    half = NormalDist().inv_cdf(1 - level / 2) * math.sqrt(max(variance, 0.0) / count)
    return max(mean - half, -1.0), min(mean + half, 1.0)
