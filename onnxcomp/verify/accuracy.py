"""How good are the answers of a model? A task metric over all samples, before and after."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

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


def accuracy(
    before: Path,
    after: Path,
    samples: Samples,
    metric: Metric,
    *,
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = SILENT,
) -> Accuracy:
    """A task metric of both models on the same samples.

    Raises:
        ModelError: a model does not load or run, or their inputs or outputs differ.
        DataError: there are no samples, or they do not fit, or the metric refuses them.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    collected = Collected()
    for answer in Runner(before, after, provider=provider, threads=threads).answers(samples, progress=progress):
        collected.add(answer)
    return scored(metric, collected, samples.labels)


def scored(metric: Metric, collected: Collected, labels: Array | None) -> Accuracy:
    """The metric of both models, and how much worse the second is: positive means worse, whichever way it points."""
    before, after = (metric.score(collected.outputs(model), labels) for model in (0, 1))
    return Accuracy(metric.name, collected.samples, before, after, metric.drop(before, after))
