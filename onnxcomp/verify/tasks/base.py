"""What is a measure of agreement: it sees the outputs of both models batch by batch, and says how often they agree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from onnxcomp.results import Agreement
from onnxcomp.runtime.session import Array

# what an output can be, and what is counted
KINDS = {
    "classes": "same class",
    "decisions": "same yes or no",
    "tokens": "same class at each place",
    "pixels": "same class at each pixel",
    "ctc": "same text",
    "boxes": "boxes matched (F1 at IoU 0.5)",
    "embeddings": "cosine about the mean",
    "regression": "share of the variance kept",
    "state": "share of the variance kept",
}
LEAST = 20  # samples, boxes or texts; fewer tell little


@dataclass(frozen=True)
class Seen:
    """What a guess looks at: one batch.

    Attributes:
        inputs, outputs: arrays by name, of the original model.
        rows: samples in the batch.
        tails: the last operators before each output, the last first.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rows: int
    tails: Mapping[str, tuple[str, ...]]

    @property
    def image(self) -> tuple[int, int] | None:
        """Height and width of the first input that holds pictures: four axes, one of them of 1, 3 or 4 channels."""
        for array in self.inputs.values():
            if array.ndim == 4 and array.dtype.kind in "fu" and min(array.shape[1], array.shape[3]) <= 4:
                return (array.shape[2], array.shape[3]) if array.shape[1] <= 4 else (array.shape[1], array.shape[2])
        return None

    @property
    def text(self) -> bool:
        """Whether an input holds whole numbers, as of tokens."""
        return any(array.dtype.kind in "iu" and array.ndim == 2 for array in self.inputs.values())


class Measure(ABC):
    """Agreement on one output, or on several that say one thing together.

    Attributes:
        kind: one of `KINDS`.
        outputs: which outputs it reads.
    """

    kind: str
    outputs: tuple[str, ...]

    @abstractmethod
    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch of `rows` samples."""

    @abstractmethod
    def result(self) -> Agreement:
        """How often both agreed so far."""
