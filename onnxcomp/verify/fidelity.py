"""How close are the outputs of two models? Sums over all samples, one batch in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from onnxcomp.results import Fidelity
from onnxcomp.runtime.closeness import Tally
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.pair import Answer, Runner, Samples

Source = Literal["data", "synthetic"]


class Closeness:
    """A tally for each output of a pair of models.

    Args:
        varying: outputs whose number of rows depends on the values.
    """

    def __init__(self, varying: frozenset[str] = frozenset()) -> None:
        self.varying = varying
        self.tallies: dict[str, Tally] = {}
        self.samples = 0

    def add(self, answer: Answer) -> None:
        """Count one batch."""
        before, after = answer.outputs
        self.samples += answer.rows
        for name, array in before.items():
            self.tallies.setdefault(name, Tally(name in self.varying)).add(array, after[name], answer.rows)

    def result(self, source: Source) -> Fidelity:
        """Closeness of all outputs."""
        return Fidelity(self.samples, source, {name: tally.result() for name, tally in self.tallies.items()})


def fidelity(
    before: Path,
    after: Path,
    samples: Samples,
    *,
    source: Source = "data",
    provider: str = "cpu",
    threads: int = 0,
    progress: Progress = SILENT,
) -> Fidelity:
    """Closeness of every output of `after` to that of `before`, over all samples.

    Args:
        before, after: model files with the same inputs and outputs.
        samples: what both are run on.
        source: whether the samples are data or were made up.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core.
        progress: shows the batches.

    Raises:
        ModelError: a model does not load or run, or their inputs or outputs differ.
        DataError: there are no samples, or they do not fit.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    runner = Runner(before, after, provider=provider, threads=threads)
    closeness = Closeness(runner.varying)
    for answer in runner.answers(samples, progress=progress):
        closeness.add(answer)
    return closeness.result(source)
