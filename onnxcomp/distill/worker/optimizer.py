"""How do weights move? AdamW and SGD with momentum on one flat vector, in pieces that stay in the cache.

All trainable parameters lie in one float32 vector (`Flat`), of which the runtime reads and writes views, so a step is
a handful of vectorised calls whatever the number of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIECE = 1 << 15  # elements; five vectors of this length fit a core's second-level cache
ALIGN = 16  # elements: each parameter begins at a cache line


class Flat:
    """Named float32 tensors in one vector.

    Attributes:
        vector: all of them, with zeros between that align each to a cache line.
        views: by name, in its own shape; writing to one writes to the vector.
        places: by name, where in the vector it lies.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.places: dict[str, slice] = {}
        end = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            self.places[name] = slice(end, end + size)
            end += -(-size // ALIGN) * ALIGN
        raw = np.zeros(end + ALIGN, np.float32)
        skip = (-raw.ctypes.data // 4) % ALIGN
        self.vector: Vector = raw[skip : skip + end]
        self.views = {name: self.vector[self.places[name]].reshape(shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then cosine, linear or constant down to a share of lr."""

    lr: float
    steps: int
    warmup: int = 0
    kind: str = "cosine"
    final_share: float = 0.0

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.kind == "constant":
            return self.lr
        way = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        share = 0.5 * (1 + math.cos(math.pi * way)) if self.kind == "cosine" else 1 - way
        return self.lr * (self.final_share + (1 - self.final_share) * share)


@dataclass(frozen=True)
class Settings:
    """What the optimizers need to know; see `onnxcomp.distill.task.Optimizer`."""

    kind: str
    momentum: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    scales: Mapping[str, float]
    undecayed: Sequence[str]


class Stepper:
    """Moves the parameters along their gradients.

    Attributes:
        state: the vectors that a checkpoint keeps, by name.
        count: steps done.
    """

    def __init__(self, settings: Settings, places: Mapping[str, slice], size: int) -> None:
        self.settings = settings
        self.count = 0
        names = ("momentum",) if settings.kind == "sgd" else ("first", "second")
        self.state: dict[str, Vector] = {name: np.zeros(size, np.float32) for name in names}
        self._spans = _spans(settings, places)
        self._one, self._two = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)

    def step(self, values: Vector, grads: Vector, rate: float) -> float:
        """One step in place; the gradient's global norm before clipping (not finite: nothing was moved)."""
        norm = global_norm(grads)
        if not math.isfinite(norm):
            return norm
        clip = self.settings.clip_norm
        if 0 < clip < norm:
            grads *= np.float32(clip / norm)
        self.count += 1
        move = self._sgd if self.settings.kind == "sgd" else self._adamw
        for start, end, scale, decay in self._spans:
            for at in range(start, end, PIECE):
                piece = slice(at, min(at + PIECE, end))
                if decay:
                    values[piece] *= np.float32(1 - rate * scale * decay)
                move(values[piece], grads[piece], piece, rate * scale)
        return norm

    def _adamw(self, values: Vector, grads: Vector, piece: slice, rate: float) -> None:
        """Loshchilov and Hutter 2019, algorithm 2; the bias corrections are folded into two scalars."""
        s = self.settings
        first, second = self.state["first"][piece], self.state["second"][piece]
        one, two = self._one[: len(values)], self._two[: len(values)]
        np.multiply(grads, np.float32(1 - s.beta1), out=one)
        first *= np.float32(s.beta1)
        first += one
        np.multiply(grads, grads, out=one)
        one *= np.float32(1 - s.beta2)
        second *= np.float32(s.beta2)
        second += one
        np.multiply(second, np.float32(1 / (1 - s.beta2**self.count)), out=two)
        np.sqrt(two, out=two)
        two += np.float32(s.epsilon)
        np.divide(first, two, out=one)
        one *= np.float32(rate / (1 - s.beta1**self.count))
        values -= one

    def _sgd(self, values: Vector, grads: Vector, piece: slice, rate: float) -> None:
        velocity, one = self.state["momentum"][piece], self._one[: len(values)]
        velocity *= np.float32(self.settings.momentum)
        velocity += grads
        np.multiply(velocity, np.float32(rate), out=one)
        values -= one


def global_norm(grads: Vector) -> float:
    """Root of the sum of squares, summed in double precision over pieces."""
    total = 0.0
    for at in range(0, len(grads), PIECE):
        piece = grads[at : at + PIECE]
        total += float(np.dot(piece, piece))
    return math.sqrt(total) if total >= 0 else total


def _spans(settings: Settings, places: Mapping[str, slice]) -> list[tuple[int, int, float, float]]:
    """(start, end, rate scale, decay) of runs of the vector that move alike, neighbours merged."""
    undecayed = set(settings.undecayed)
    spans: list[tuple[int, int, float, float]] = []
    for name, place in places.items():
        scale = settings.scales.get(name, 1.0)
        decay = 0.0 if name in undecayed else settings.weight_decay
        if spans and spans[-1][2:] == (scale, decay):
            spans[-1] = (spans[-1][0], place.stop, scale, decay)
        else:
            spans.append((place.start, place.stop, scale, decay))
    return spans


def settings_of(job: Mapping[str, Any]) -> Settings:
    """From the job's JSON."""
    return Settings(**{name: job[name] for name in Settings.__dataclass_fields__})
