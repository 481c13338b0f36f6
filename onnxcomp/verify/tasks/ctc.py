"""Do two models of written or spoken text read the same? Greedy decoding: repeats joined, blanks left out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.results import Agreement
from onnxcomp.runtime.session import Array
from onnxcomp.verify.tasks.base import KINDS, LEAST, Measure

LASTING = 4.0  # places without a blank, on average; what lasts longer is no letter
LASTING_ALIGNED = 2.0  # where each place is a frame of the input: text is read from fewer places than came in
SPIKE = 1.5  # places of one class, on average; letters of dense text stand side by side, each for a moment


class Text(Measure):
    """Share of samples whose greedy text is the same.

    Args:
        batch_axis: of the samples, 0 or 1; the other one counts time steps, and the last one classes.
        blank: the class that stands for nothing.
    """

    kind = "ctc"

    def __init__(self, output: str, batch_axis: int, blank: int) -> None:
        self.outputs, self.batch_axis, self.blank = (output,), batch_axis, blank
        self.samples = self.equal = self.empty = 0

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch."""
        a, b = (self._texts(side[self.outputs[0]]) for side in (before, after))
        self.samples += rows
        self.equal += sum(x == y for x, y in zip(a, b, strict=False))
        self.empty += sum(not x for x in a)

    def result(self) -> Agreement:
        """Share of equal texts; empty ones tell nothing."""
        told = self.samples - self.empty
        doubts = [f"{self.samples} samples tell little"] if self.samples < LEAST else []
        if told < LEAST <= self.samples:
            doubts.append(f"the original reads text in {told} of {self.samples} samples only")
        value = self.equal / self.samples if self.samples else None
        words = KINDS["ctc"]
        return Agreement(
            self.kind, self.outputs, words, value, self.samples, doubts=tuple(doubts), decisions=self.samples
        )

    def _texts(self, scores: Array) -> list[tuple[int, ...]]:
        names = np.moveaxis(scores, self.batch_axis, 0).argmax(axis=-1)  # [samples, steps]
        found = []
        for row in names:
            kept = row[np.concatenate([[True], row[1:] != row[:-1]])]
            found.append(tuple(kept[kept != self.blank].tolist()))
        return found


def blank_of(names: Array, classes: int) -> int | None:
    """The blank, where classes [places] look like those of text: the first or last class at most places.

    Other classes have to come too, and more than one.
    """
    counts = np.bincount(names.reshape(-1), minlength=classes)
    best = int(counts.argmax())
    few = int((counts > 0).sum()) < 3
    return best if best in (0, classes - 1) and counts[best] >= 0.3 * names.size and not few else None


def comes_in_spikes(names: Array, blank: int, *, aligned: bool) -> bool:
    """Whether classes [samples, places] come as letters do, and not as what goes on for a while.

    CTC names a letter at one place or two and falls back to the blank; classes of frames (speech or silence, sounds,
    phases of sleep) hold as long as what they name, and one follows the other without the blank between.

    Args:
        aligned: there is a place for each frame of the input.
    """
    marked = names != blank
    before = np.pad(marked[:, :-1], ((0, 0), (1, 0)))
    changed = np.pad(names[:, 1:] != names[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    places, stretches, letters = (int(part.sum()) for part in (marked, marked & ~before, marked & changed))
    if aligned:
        return places <= LASTING_ALIGNED * stretches
    return places <= LASTING * stretches or places <= SPIKE * letters
