"""How close are the outputs of two models? Sums over all samples, one batch in memory at a time."""

from __future__ import annotations

from typing import Literal

from onnxcomp.results import Fidelity
from onnxcomp.runtime.closeness import Tally
from onnxcomp.verify.pair import Answer

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
