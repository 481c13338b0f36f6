"""How much of a model's own decisions is left? Agreement with the float model by the task's measure, 0 to 1.

Knows nothing of onnxcomp: every measure takes what two models gave for the same feeds, a list of outputs a feed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Runs = Sequence[Sequence[Array]]  # [feed][output]
Measure = Callable[[Runs, Runs], float]


def classes(output: int = 0, axis: int = -1) -> Measure:
    """Share of rows, or of positions, whose largest score is at the same class."""

    def measure(before: Runs, after: Runs) -> float:
        same = [(a[output].argmax(axis) == b[output].argmax(axis)).ravel() for a, b in zip(before, after, strict=True)]
        return float(np.concatenate(same).mean())

    return measure


def all_classes(before: Runs, after: Runs) -> float:
    """Share of samples in which every output names the same class."""
    rows = [
        all((x.argmax(-1) == y.argmax(-1)).all() for x, y in zip(a, b, strict=True))
        for a, b in zip(before, after, strict=True)
    ]
    return float(np.mean(rows))


def ctc(output: int = 0, blank: int = 0, time_axis: int = 1) -> Measure:
    """Share of samples whose greedy text (repeats joined, blanks out) is the same to the letter."""

    def text(run: Sequence[Array]) -> list[int]:
        best = run[output].argmax(-1)
        best = best[0] if time_axis == 1 else best[:, 0]
        kept = best[np.r_[True, best[1:] != best[:-1]]]
        return [int(v) for v in kept if v != blank]

    return lambda before, after: float(np.mean([text(a) == text(b) for a, b in zip(before, after, strict=True)]))


def equal(output: int = 0) -> Measure:
    """Share of samples whose output is equal, element by element."""
    return lambda before, after: float(
        np.mean(
            [
                a[output].shape == b[output].shape and bool((a[output] == b[output]).all())
                for a, b in zip(before, after, strict=True)
            ]
        )
    )


def decisions(output: int = 0, threshold: float = 0.5) -> Measure:
    """Share of values on the same side of a threshold."""
    return lambda before, after: float(
        np.mean(
            np.concatenate(
                [
                    ((a[output] > threshold) == (b[output] > threshold)).ravel()
                    for a, b in zip(before, after, strict=True)
                ]
            )
        )
    )


def area(output: int = 0, threshold: float = 0.3) -> Measure:
    """Intersection over union of what lies above the threshold, over all samples."""

    def measure(before: Runs, after: Runs) -> float:
        both = either = 0
        for a, b in zip(before, after, strict=True):
            x, y = a[output] > threshold, b[output] > threshold
            both, either = both + int((x & y).sum()), either + int((x | y).sum())
        return both / either if either else 1.0

    return measure


def cosine(output: int = 0) -> Measure:
    """Mean cosine of the rows of the last axis."""

    def measure(before: Runs, after: Runs) -> float:
        found = []
        for a, b in zip(before, after, strict=True):
            x, y = (v[output].reshape(-1, v[output].shape[-1]).astype(np.float64) for v in (a, b))
            found.append((x * y).sum(-1) / np.maximum(np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1), 1e-30))
        return float(np.concatenate(found).mean())

    return measure


def explained(output: int = 0) -> Measure:
    """R^2 of the second model's values against the first's."""

    def measure(before: Runs, after: Runs) -> float:
        x, y = (np.concatenate([r[output].ravel() for r in runs]).astype(np.float64) for runs in (before, after))
        return float(1 - np.square(x - y).sum() / max(np.square(x - x.mean()).sum(), 1e-30))

    return measure


def boxes(decode: Callable[[Sequence[Array]], tuple[Array, Array, Array]], threshold: float) -> Measure:
    """F1 of boxes above a score, after the same suppression of overlaps, matched at IoU 0.5 and equal class.

    Args:
        decode: outputs of one run -> corner boxes [N, 4], scores [N], classes [N].
    """

    def found(run: Sequence[Array]) -> tuple[Array, Array]:
        box, score, kind = decode(run)
        order = np.flatnonzero(score > threshold)
        order = order[np.argsort(-score[order], kind="stable")]
        kept: list[int] = []
        for i in order:
            if all(kind[i] != kind[j] or overlap(box[i], box[j : j + 1])[0] < 0.45 for j in kept):
                kept.append(int(i))
        return box[kept], kind[kept]

    def measure(before: Runs, after: Runs) -> float:
        matched = total = 0
        for a, b in zip(before, after, strict=True):
            (box_a, kind_a), (box_b, kind_b) = found(a), found(b)
            total += len(box_a) + len(box_b)
            free = np.ones(len(box_b), bool)
            for box, kind in zip(box_a, kind_a, strict=True):
                fit = np.where(free & (kind_b == kind), overlap(box, box_b), 0) if len(box_b) else np.zeros(0)
                if len(fit) and fit.max() >= 0.5:
                    free[fit.argmax()] = False
                    matched += 1
        return 2 * matched / total if total else 1.0

    return measure


def overlap(box: Array, others: Array) -> Array:
    """IoU of a corner box [4] with others [N, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - both
    return np.asarray(both / np.maximum(union, 1e-9))


def yolo8(run: Sequence[Array]) -> tuple[Array, Array, Array]:
    """[1, 4 + classes, boxes], centre, width and height."""
    table = run[0][0].T
    half = table[:, 2:4] / 2
    return np.c_[table[:, :2] - half, table[:, :2] + half], table[:, 4:].max(1), table[:, 4:].argmax(1)


def yolox(size: int) -> Callable[[Sequence[Array]], tuple[Array, Array, Array]]:
    """[1, boxes, 5 + classes] of a YOLOX head, offsets still to be decoded on grids of strides 8, 16 and 32."""
    grids = [np.stack(np.meshgrid(*[np.arange(size // s)] * 2), -1).reshape(-1, 2) for s in (8, 16, 32)]
    grid = np.concatenate(grids)
    stride = np.concatenate([np.full(len(g), s) for g, s in zip(grids, (8, 16, 32), strict=True)])[:, None]

    def decode(run: Sequence[Array]) -> tuple[Array, Array, Array]:
        table = run[0][0]
        centre, half = (table[:, :2] + grid) * stride, np.exp(table[:, 2:4]) * stride / 2
        scores = table[:, 4:5] * table[:, 5:]
        return np.c_[centre - half, centre + half], scores.max(1), scores.argmax(1)

    return decode


def sqnr_db(before: Array, after: Array) -> float:
    """Signal to noise in dB; 999 where nothing differs."""
    a, b = before.astype(np.float64), after.astype(np.float64)
    noise = np.square(a - b).sum()
    return 999.0 if noise == 0 else float(10 * np.log10(max(np.square(a).sum(), 1e-300) / noise))
