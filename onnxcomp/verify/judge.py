"""Is the new model still right? Fidelity and accuracy from one pass over the samples, each model run once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxcomp.data.metric import Metric
from onnxcomp.results import Accuracy, Fidelity
from onnxcomp.runtime.acceleration import PLAIN, Acceleration
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.accuracy import Collected, scored
from onnxcomp.verify.agreement import Agreeing, TaskBook
from onnxcomp.verify.drift import Drifting
from onnxcomp.verify.fidelity import Closeness, Source
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Runner, Samples


def judge(
    before: Path | OpenedModel,
    after: Path | OpenedModel,
    samples: Samples,
    metric: Metric | None = None,
    *,
    tasks: TaskBook | None = None,
    source: Source = "data",
    provider: str = "cpu",
    threads: int = 0,
    acceleration: Acceleration = PLAIN,
    progress: Progress = SILENT,
) -> tuple[Fidelity, Accuracy | None]:
    """Closeness of the outputs, agreement by what they are, and with a metric its value before and after.

    Args:
        before, after: model files, or models opened already, with the same inputs and outputs.
        samples: what both are run on; outputs are kept as a whole only when there is a metric.
        metric: the task metric, or None.
        tasks: what each output is; guessed if not given.
        source: whether the samples are data or were made up.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core.
        acceleration: options of a GPU provider for the model after; the one before runs as exactly as it can.
        progress: shows the batches.

    Raises:
        ModelError: a model does not load or run, or their inputs or outputs differ.
        DataError: there are no samples, or they do not fit, or the metric refuses them.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    runner = Runner(before, after, provider=provider, threads=threads, acceleration=acceleration)
    closeness, collected, drifting = Closeness(runner.varying), Collected(), Drifting()
    agreeing = Agreeing(tasks or TaskBook(before))
    for answer in runner.answers(samples, progress=progress):
        closeness.add(answer)
        agreeing.add(answer)
        drifting.add(answer)
        if metric is not None:
            collected.add(answer)
    found = replace(agreeing.told(closeness.result(source)), drift=drifting.result())
    return found, None if metric is None else scored(metric, collected, samples.labels)
