"""How near are vectors and numbers: the direction of embeddings and their neighbours, the spread of a regression?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxcomp.results import Agreement
from onnxcomp.runtime.session import Array
from onnxcomp.verify.tasks.base import KINDS, LEAST, Measure

MOST_KEPT = 1024  # vectors, for neighbours
MOST_BYTES = 64 << 20


class Embeddings(Measure):
    """Mean cosine of vectors, about the mean of the original's: what all have in common tells nothing apart.

    Vectors lie on the last axis. Whether the nearest neighbour among the first `MOST_KEPT` samples is the same stands
    beside it where there is one vector a sample.
    """

    kind = "embeddings"

    def __init__(self, output: str) -> None:
        self.outputs = (output,)
        self.samples = self.seen = 0
        self.kept: tuple[list[Array], list[Array]] = ([], [])
        self.single = True
        self.held = 0

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Keep the vectors of one batch, as long as there is room."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        self.samples += rows
        self.single = self.single and a.size == rows * a.shape[-1]
        if a.shape != b.shape or self.held * 8 > MOST_BYTES:
            return
        self.seen += rows
        self.held += a.size
        for kept, side in zip(self.kept, (a, b), strict=True):
            kept.append(side.reshape(-1, side.shape[-1]).astype(np.float32))

    def result(self) -> Agreement:
        """Mean cosine."""
        doubts = [f"{self.samples} samples tell little"] if self.samples < LEAST else []
        if not self.seen:
            return Agreement(self.kind, self.outputs, KINDS[self.kind], None, self.samples, doubts=tuple(doubts))
        a, b = (np.concatenate(kept) for kept in self.kept)
        centre = a.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = float(np.linalg.norm(a - centre)) / max(float(np.linalg.norm(a)), 1e-30)
        if spread < 1e-4:
            doubts.append("the original gives one vector for every sample")
            centre = np.zeros_like(centre)
        value = float(np.mean(_cosines(a - centre, b - centre)))
        details = {"cosine": float(np.mean(_cosines(a, b)))}
        if self.single and len(a) > 2:
            n = min(len(a), MOST_KEPT)
            details["same_nearest"] = float((_nearest(a[:n]) == _nearest(b[:n])).mean())
        return Agreement(
            self.kind, self.outputs, KINDS[self.kind], value, self.seen, details=details, doubts=tuple(doubts)
        )


class Values(Measure):
    """The share of the original's variance that is kept: 1 - sum (a - b)^2 / sum (a - mean)^2, at least 0.

    The mean is that of the whole output; of rows [samples, numbers], of which there are enough, that of each number, so
    that it counts what tells samples apart, and not how unlike the numbers are (R^2, weighted by variance).
    """

    def __init__(self, output: str, kind: str = "regression") -> None:
        self.kind, self.outputs = kind, (output,)
        self.samples = 0
        self.count, self.total, self.energy = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
        self.noise = 0.0
        self.apart = False

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Count one batch."""
        a, b = before[self.outputs[0]], after[self.outputs[0]]
        self.samples += rows
        numbers = a.shape[1] if a.ndim == 2 and a.shape[0] == rows else 1
        if a.shape != b.shape or (len(self.count) != numbers and self.samples > rows):
            self.apart = True
            return
        with np.errstate(over="ignore", invalid="ignore"):
            known = np.isfinite(a) & (np.abs(a) < 1e30)
            x = np.where(known, a, 0).astype(np.float64).reshape(-1, numbers)  # [values, numbers]
            error = x - np.where(known, b, 0).astype(np.float64).reshape(-1, numbers)
            self.count = self.count + known.reshape(-1, numbers).sum(axis=0)
            self.total = self.total + x.sum(axis=0)
            self.energy = self.energy + np.einsum("ij,ij->j", x, x)
            self.noise += float(np.einsum("ij,ij->", error, error))

    def _varying(self) -> float:
        """Squares about the mean."""
        if self.samples >= LEAST:
            return float((self.energy - self.total**2 / np.maximum(self.count, 1)).sum())
        return float(self.energy.sum() - self.total.sum() ** 2 / max(int(self.count.sum()), 1))

    def result(self) -> Agreement:
        """The share, None where rows differ in number or the original does not vary."""
        doubts = [f"{self.samples} samples tell little"] if self.samples < LEAST else []
        varying = self._varying()
        value = None
        if not self.apart and varying > 1e-12 * self.energy.sum():
            value = max(0.0, 1.0 - self.noise / varying) if np.isfinite(self.noise) else 0.0
        elif self.count.any() and not self.apart:
            doubts.append("the original gives one value everywhere")
        return Agreement(self.kind, self.outputs, KINDS[self.kind], value, self.samples, doubts=tuple(doubts))


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> Array:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return np.where(same, 1.0, np.einsum("ij,ij->i", a, b) / np.maximum(lengths, 1e-30))


def _nearest(vectors: NDArray[np.float32]) -> Array:
    scaled = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    likeness = scaled @ scaled.T
    np.fill_diagonal(likeness, -np.inf)
    nearest: Array = likeness.argmax(axis=1)
    return nearest
