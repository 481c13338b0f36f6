"""Do two detectors find the same things? Boxes above one score threshold are matched by class and overlap.

Layouts are read from shapes and values: YOLOv8's [N, 4 + classes, anchors], YOLOv5's and YOLOX's
[N, anchors, 4 + 1 + classes], raw heads [N, anchors x (5 + classes), h, w], boxes and scores as two outputs, and rows
behind non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxcomp.results import Agreement
from onnxcomp.runtime.session import Array
from onnxcomp.verify.tasks.base import KINDS, Measure

LEAST_SURE = 0.1  # boxes are drawn from scores of so much on; lower ones serve curves of precision
THRESHOLDS = (0.25, 0.1, 0.03)  # of scores; the first at which the original finds enough
NMS_IOU, MATCH_IOU = 0.45, 0.5
LEAST = 10  # boxes; fewer tell little
MOST_BOXES = 300  # a sample, before suppression
APART = 64.0  # anchors of unknown place are set so far from one another that only the same ones can meet

Decoder = Callable[[Mapping[str, Array]], list["Found"]]


@dataclass(frozen=True)
class Found:
    """What one sample holds: corners [n, 4], scores [n], classes [n], the highest score first."""

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]

    def above(self, threshold: float) -> Found:
        """Those of a higher score."""
        kept = self.scores > threshold
        return Found(self.corners[kept], self.scores[kept], self.classes[kept])


@dataclass
class Boxes(Measure):
    """F1 of boxes that meet at the same threshold: same class, IoU of at least 0.5, each matched once.

    Args:
        decode: the boxes of each sample of a batch of outputs, after suppression, down to the lowest threshold.
        layout: in words, for the guess.
    """

    outputs: tuple[str, ...]
    decode: Decoder
    layout: str
    kind: str = "boxes"
    samples: int = 0
    matched: dict[float, int] = field(default_factory=lambda: dict.fromkeys(THRESHOLDS, 0))
    before: dict[float, int] = field(default_factory=lambda: dict.fromkeys(THRESHOLDS, 0))
    after: dict[float, int] = field(default_factory=lambda: dict.fromkeys(THRESHOLDS, 0))

    def add(self, before: Mapping[str, Array], after: Mapping[str, Array], rows: int) -> None:
        """Match the boxes of one batch."""
        self.samples += rows
        for a, b in zip(self.decode(before), self.decode(after), strict=False):
            for threshold in THRESHOLDS:
                one, other = a.above(threshold), b.above(threshold)
                self.before[threshold] += len(one.scores)
                self.after[threshold] += len(other.scores)
                self.matched[threshold] += matched(one, other)

    def result(self) -> Agreement:
        """F1 over all samples."""
        enough = [t for t in THRESHOLDS if self.before[t] >= LEAST]
        threshold = enough[0] if enough else THRESHOLDS[0]
        found, other = self.before[threshold], self.after[threshold]
        doubts = []
        if found < LEAST:
            doubts.append(f"the original finds {_boxes(found)} above {threshold:g} in {self.samples} samples")
        elif threshold < THRESHOLDS[0]:
            doubts.append(f"the original is sure of hardly any box: those above {threshold:g} are matched")
        value = self._f1(threshold) if found + other else None
        words = f"{KINDS['boxes']} above {threshold:g}"
        details = {"threshold": threshold, "before": float(found), "after": float(other)}
        lower = [t for t in enough if LEAST_SURE <= t < threshold]
        return Agreement(
            self.kind,
            self.outputs,
            words,
            value,
            self.samples,
            details=details,
            doubts=tuple(doubts),
            decisions=found,
            also=tuple((f"above {t:g}", self._f1(t)) for t in lower),
        )

    def _f1(self, threshold: float) -> float:
        return 2 * self.matched[threshold] / (self.before[threshold] + self.after[threshold])


def _boxes(count: int) -> str:
    return "no box" if not count else f"{count} box{'es' * (count > 1)}"


def matched(one: Found, other: Found) -> int:
    """How many boxes of one have a partner in the other, the best overlap first."""
    if not len(one.scores) or not len(other.scores):
        return 0
    overlaps = iou(one.corners, other.corners)
    overlaps[one.classes[:, None] != other.classes[None, :]] = 0.0
    count = 0
    for _ in range(min(overlaps.shape)):
        i, j = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
        if overlaps[i, j] < MATCH_IOU:
            break
        count += 1
        overlaps[i, :], overlaps[:, j] = 0.0, 0.0
    return count


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Overlap of corners [n, 4] and [m, 4] as [n, m]: common area over the area of both."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low, 0.0).prod(axis=2)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0.0).prod(axis=1) for x in (a, b)]
    found: NDArray[np.float64] = common / np.maximum(areas[0][:, None] + areas[1][None, :] - common, 1e-12)
    return found


def suppressed(corners: Array, scores: Array, *, done: bool = False) -> Found:
    """The boxes of one sample above the lowest threshold; of those of a class that overlap the highest score stays.

    Args:
        corners: [anchors, 4].
        scores: [anchors, classes].
        done: the model has suppressed them itself.
    """
    best = scores.argmax(axis=1)
    top = scores[np.arange(len(scores)), best].astype(np.float64)
    top = np.where(np.isfinite(top), top, 0.0)
    order = np.argsort(-top, kind="stable")[:MOST_BOXES]
    order = order[top[order] > THRESHOLDS[-1]]
    found = Found(corners[order].astype(np.float64), top[order], best[order].astype(np.int64))
    if done or not len(order):
        return found
    overlaps = iou(found.corners, found.corners) * (found.classes[:, None] == found.classes[None, :])
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= overlaps[i, i + 1 :] <= NMS_IOU
    return Found(found.corners[alive], found.scores[alive], found.classes[alive])


def from_centres(boxes: Array) -> Array:
    """Centre, width and height -> corners, on the last axis."""
    middle, half = boxes[..., :2], boxes[..., 2:4] / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def from_offsets(offsets: Array, scale: tuple[float, float] = (1.0, 1.0)) -> Array:
    """Offsets [..., anchors, 4] from anchors of unknown place and size one: (x, y, log w, log h) -> corners.

    Every anchor stands far from all others, so that each can only be matched with itself.
    """
    move, grow = scale
    places = APART * np.arange(offsets.shape[-2], dtype=np.float64)[:, None]
    middle = places + move * offsets[..., :2].astype(np.float64)
    half = np.exp(np.clip(grow * offsets[..., 2:4].astype(np.float64), -4, 3)) / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def from_grid(offsets: Array, image: tuple[int, int], strides: tuple[int, ...]) -> Array:
    """YOLOX's raw rows: ((x, y) + cell) * stride, exp((w, h)) * stride -> corners in pixels."""
    cells, sizes = [], []
    for stride in strides:
        h, w = image[0] // stride, image[1] // stride
        y, x = np.mgrid[0:h, 0:w]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        sizes.append(np.full((h * w, 1), float(stride)))
    cell, stride_of = np.concatenate(cells), np.concatenate(sizes)
    middle = (offsets[..., :2] + cell) * stride_of
    half = np.exp(np.clip(offsets[..., 2:4].astype(np.float64), -10, 10)) * stride_of / 2
    return np.concatenate([middle - half, middle + half], axis=-1)
