"""Which outputs hold boxes, and in which layout? Told from shapes and values of one batch of the original's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onnxcomp.runtime.session import Array
from onnxcomp.verify.tasks.base import Seen
from onnxcomp.verify.tasks.boxes import Boxes, Found, from_centres, from_grid, from_offsets, suppressed

LEAST_ANCHORS = 16
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32), (32,), (16,), (8,))
PIXELS = 1.5  # a coordinate above this is in pixels, or an offset
ORDERED = 0.98  # of boxes, of which the second corner lies beyond the first
MOST_ROWS = 1000  # behind suppression; anchors are more
UNIT = (-1e-3, 1 + 1e-3)

Corners = Callable[[Array], Array]


def find_boxes(seen: Seen, *, asked: bool = False) -> list[Boxes]:
    """The groups of outputs that hold boxes; usually one or none.

    Args:
        asked: the user says that there are boxes: no picture has to come in.
    """
    if seen.image is None and not asked:
        return []
    numbers = {name: array for name, array in seen.outputs.items() if array.dtype.kind == "f" and array.size}
    for look in (_two_outputs, _rows, _one_output, _heads, _alone):
        found = look(numbers, seen)
        if found is not None:
            return [found]
    return []


# -- boxes and scores as two outputs ------------------------------------------------------------------------------


def _two_outputs(numbers: Mapping[str, Array], seen: Seen) -> Boxes | None:
    """[N, A, 4] (or [N, A, 1, 4], [A, 4]) beside [N, A, C] or [N, A]; classes may be a third output [N, A]."""
    for name, boxes in numbers.items():
        flat = _squeezed(boxes, seen.rows)
        if flat is None or flat.shape[-1] != 4 or flat.shape[-2] < 2:
            continue
        anchors, done = flat.shape[-2], flat.shape[-2] <= MOST_ROWS // 5
        scores = _scores_beside(name, numbers, anchors, seen.rows)
        if scores is None:
            continue
        labels = _labels_beside({name, scores}, seen.outputs, anchors, seen.rows) if done else None
        corners, words = _corners(flat, None, seen)
        raw = _matrix(seen.outputs[scores], anchors, seen.rows)
        ranked = _before_softmax(raw)
        background = _background(_softmax(raw) if ranked else _probable(raw))
        single, suppressed_inside = seen.rows == 1, done and labels is not None
        decode = _Pair(name, scores, labels, corners, background, single, suppressed_inside, ranked)
        outputs = (name, scores, *([labels] if labels else []))
        return Boxes(outputs, decode, f"boxes {words} and scores as {len(outputs)} outputs")
    return None


def _squeezed(boxes: Array, rows: int) -> Array | None:
    """[N, A, 4] of an output that may have axes of one, or lack the first."""
    if boxes.ndim == 2 and boxes.shape[1] == 4:
        return boxes[None] if boxes.shape[0] != rows or rows == 1 else None
    if boxes.ndim == 4 and boxes.shape[2] == 1:
        boxes = boxes[:, :, 0]
    if boxes.ndim == 3 and boxes.shape[1] == 4 and boxes.shape[2] != 4:
        boxes = boxes.transpose(0, 2, 1)
    return boxes if boxes.ndim == 3 else None


def _matrix(scores: Array, anchors: int, rows: int) -> Array:
    """[N, A, C] of scores in any of the usual shapes."""
    if scores.ndim == 3 and scores.shape[1] != anchors and scores.shape[2] == anchors:
        scores = scores.transpose(0, 2, 1)
    if scores.ndim == 2 and scores.shape[0] == anchors and scores.shape[1] != anchors:
        scores = scores[None]
    if scores.ndim == 1:
        scores = scores[None, :, None]
    if scores.ndim == 2:
        scores = scores[:, :, None]
    return scores


def _scores_beside(name: str, numbers: Mapping[str, Array], anchors: int, rows: int) -> str | None:
    """The output that scores these boxes: as many of them, and by preference in 0..1."""
    fitting = []
    for other, array in numbers.items():
        if other == name or array.ndim > 3 or anchors not in array.shape or array.shape[-1] == 4 != anchors:
            continue
        if array.ndim == 3 or array.shape[-1] == anchors or array.shape[0] == anchors:
            unit = float(array.min()) >= UNIT[0] and float(array.max()) <= UNIT[1]
            whole = bool((array == np.rint(array)).all())
            fitting.append((not unit, whole, -array.ndim, other))
    return min(fitting)[-1] if fitting else None


def _labels_beside(taken: set[str], outputs: Mapping[str, Array], anchors: int, rows: int) -> str | None:
    """The output that names the class of each box: whole numbers, one a box."""
    for other, array in outputs.items():
        if other in taken or array.dtype.kind not in "iuf" or array.size not in (anchors, rows * anchors):
            continue
        if array.shape[-1] == anchors and bool((array == np.rint(array)).all()):
            return other
    return None


def _before_softmax(raw: Array) -> bool:
    """Whether scores [N, A, C] are logits beside one of nothing: first or last, best at most places, and above zero.

    Where each class has a sigmoid of its own, the best is below zero wherever there is nothing.
    """
    if raw.shape[2] < 2 or _in_unit(raw):
        return False
    best = raw.argmax(axis=2)
    name = int(np.bincount(best.reshape(-1)).argmax())
    at = best == name
    return name in (0, raw.shape[2] - 1) and float(at.mean()) >= 0.5 and float(np.median(raw[at][:, name])) > 0


def _background(scores: Array) -> int | None:
    """The class of nothing, where scores sum to one: the commonest, first or last."""
    if scores.shape[2] < 2 or not np.allclose(scores.sum(axis=2), 1.0, atol=1e-2):
        return None
    best = int(scores.mean(axis=(0, 1)).argmax())
    return best if best in (0, scores.shape[2] - 1) else None


@dataclass(frozen=True)
class _Pair:
    boxes: str
    scores: str
    labels: str | None
    corners: Corners
    background: int | None
    single: bool
    done: bool
    ranked: bool

    def __call__(self, outputs: Mapping[str, Array]) -> list[Found]:
        flat = _squeezed(outputs[self.boxes], 1 if self.single else len(outputs[self.boxes]))
        if flat is None:
            return []
        raw = _matrix(outputs[self.scores], flat.shape[1], len(flat))
        scores = _softmax(raw) if self.ranked else _probable(raw)
        if self.background is not None:
            scores = np.delete(scores, self.background, axis=2)
        corners = self.corners(flat)
        if self.labels is None:
            return [suppressed(c, s, done=self.done) for c, s in zip(corners, scores, strict=False)]
        labels = outputs[self.labels].reshape(len(flat), -1).astype(np.int64)
        return [_labelled(c, s[:, 0], n) for c, s, n in zip(corners, scores, labels, strict=False)]


def _labelled(corners: Array, scores: Array, labels: Array) -> Found:
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    return Found(corners[order].astype(np.float64), scores[order].astype(np.float64), labels[order])


# -- rows behind suppression ---------------------------------------------------------------------------------------


def _rows(numbers: Mapping[str, Array], seen: Seen) -> Boxes | None:
    """[N, K, 6], [K, 6] or [K, 7]: corners, score and class in one row."""
    for name, array in numbers.items():
        width = array.shape[-1] if array.ndim in (2, 3) else 0
        if not 5 <= width <= 7 or array.shape[-2] > MOST_ROWS or (array.ndim == 2 and array.shape[0] == seen.rows > 1):
            continue
        table = array.reshape(-1, width)
        table = table[np.abs(table).sum(axis=1) > 0]
        if len(table) < 2:
            continue
        whole = (table == np.rint(table)).all(axis=0) & (table >= -1).all(axis=0)
        unit = ((table >= UNIT[0]) & (table <= UNIT[1])).all(axis=0) & ~whole
        scores = [i for i in np.flatnonzero(unit).tolist() if i >= 4] or np.flatnonzero(unit).tolist()
        labels = [i for i in np.flatnonzero(whole).tolist() if i >= width - 2]
        if not scores or (width > 5 and not labels):
            continue
        score, label = scores[-1], labels[-1] if labels else None
        rest = [i for i in range(width) if i not in (score, label)][-4:]
        if len(rest) == 4 and rest[3] - rest[0] == 3:
            decode = _Rows(name, rest[0], score, label)
            return Boxes((name,), decode, "rows of corners, score and class")
    return None


@dataclass(frozen=True)
class _Rows:
    output: str
    first: int
    score: int
    label: int | None

    def __call__(self, outputs: Mapping[str, Array]) -> list[Found]:
        array = outputs[self.output]
        found = []
        for table in array if array.ndim == 3 else array[None]:
            labels = np.zeros(len(table), np.int64) if self.label is None else table[:, self.label].astype(np.int64)
            found.append(_labelled(table[:, self.first : self.first + 4], table[:, self.score], labels))
        return found


# -- one output of boxes and scores ---------------------------------------------------------------------------------


def _one_output(numbers: Mapping[str, Array], seen: Seen) -> Boxes | None:
    """[N, 4 + classes, A] or [N, A, 4 (+ 1) + classes], decoded, normalised, or raw on YOLOX's grid."""
    for name, array in numbers.items():
        if array.ndim != 3 or array.shape[0] != seen.rows:
            continue
        for axis in (1, 2):
            features, anchors = array.shape[axis], array.shape[3 - axis]
            if features < 5 or anchors < LEAST_ANCHORS or (axis == 1 and features >= anchors):
                continue
            if np.allclose(array.sum(axis=axis), 1.0, atol=1e-2):  # one distribution holds no boxes
                continue
            rows = array if axis == 2 else array.transpose(0, 2, 1)  # [N, A, features]
            scores = _score_columns(rows)
            if scores is None:
                continue
            objectness = axis == 2 and anchors > MOST_ROWS and scores.stop - scores.start >= 2
            objectness = objectness or (axis == 2 and _conditional(rows, scores))
            corners, words = _corners(rows[..., :4], rows[..., scores], seen)
            order = "features first" if axis == 1 else "anchors first"
            obj = ", objectness" if objectness else ""
            decode = _Single(name, axis, scores, objectness, corners)
            return Boxes((name,), decode, f"boxes {words}{obj} and scores in one output, {order}")
    return None


def _score_columns(rows: Array) -> slice | None:
    """The columns behind the first four that lie in 0..1, where those four are of another kind."""
    low, high = rows.min(axis=(0, 1)), rows.max(axis=(0, 1))
    unit = (low >= UNIT[0]) & (high <= UNIT[1])
    end = 4
    while end < len(unit) and unit[end]:
        end += 1
    pixels = float(high[:4].min()) > 16 and float(low[:2].min()) > -16
    if end == 5 and pixels:  # one class, and what else belongs to a box: key points, a mask's coefficients, an angle
        return slice(4, 5) if float(high[4]) > float(low[4]) else None
    if end == 4:  # scores before their sigmoid beside boxes in pixels
        return slice(4, len(unit)) if pixels and float(np.abs(rows[..., 4:]).max()) < 64 else None
    if unit[:4].all():
        rms = np.sqrt(np.square(rows, dtype=np.float64).mean(axis=(0, 1)))
        apart = float(rms[:4].mean()) > 3 * float(np.median(rms[4:end]))
        return slice(4, end) if apart and end == len(unit) else None
    return slice(4, end) if end - 4 >= (len(unit) - 4) // 4 or end > 5 else None


def _conditional(rows: Array, scores: slice) -> bool:
    """Whether the first score is an objectness: it varies freely while the others say which class it would be."""
    if scores.stop - scores.start < 2:
        return False
    first, others = rows[..., scores.start].astype(np.float64), rows[..., scores.start + 1 : scores.stop].max(axis=-1)
    return bool(others.mean() > 2 * first.mean() and first.max() > 0.05)


@dataclass(frozen=True)
class _Single:
    output: str
    axis: int
    scores: slice
    objectness: bool
    corners: Corners

    def __call__(self, outputs: Mapping[str, Array]) -> list[Found]:
        array = outputs[self.output]
        rows = array if self.axis == 2 else array.transpose(0, 2, 1)
        scores = _probable(rows[..., self.scores])
        if self.objectness:
            scores = scores[..., 1:] * scores[..., :1]
        return [suppressed(c, s) for c, s in zip(self.corners(rows[..., :4]), scores, strict=True)]


# -- raw heads ------------------------------------------------------------------------------------------------------


def _heads(numbers: Mapping[str, Array], seen: Seen) -> Boxes | None:
    """Two to five maps [N, anchors x (5 + classes), h, w], each of half the size of the one before.

    Anchors are three where that divides the channels, else one; their sizes are not known and do not matter: each is
    matched with itself.
    """
    maps = {n: a for n, a in numbers.items() if a.ndim in (4, 5) and len(a) == seen.rows}
    sizes = sorted({int(np.prod(_places(array))) for array in maps.values()}, reverse=True)
    if not 2 <= len(maps) <= 5 or len(sizes) != len(maps) or any(a < 2 * b for a, b in pairwise(sizes)):
        return None
    widths = {array.size // max(1, array.shape[0] * int(np.prod(_places(array)))) for array in maps.values()}
    if len(widths) != 1:
        return None
    width = widths.pop()
    anchors = 3 if width % 3 == 0 and width // 3 >= 6 else 1
    if width // anchors < 6:
        return None
    return Boxes(tuple(maps), _Heads(tuple(maps), anchors), f"raw heads of {anchors} anchors a place")


def _places(array: Array) -> tuple[int, ...]:
    """Height and width of a map, whichever axes they are: those of like size."""
    shape: tuple[int, ...] = array.shape[1:]
    if array.ndim == 5:
        return shape[1:3]
    return shape[1:] if abs(shape[1] - shape[2]) <= abs(shape[0] - shape[1]) else shape[:2]


@dataclass(frozen=True)
class _Heads:
    outputs: tuple[str, ...]
    anchors: int

    def __call__(self, outputs: Mapping[str, Array]) -> list[Found]:
        rows = np.concatenate([self._flat(outputs[name]) for name in self.outputs], axis=1)
        scores = _probable(rows[..., 4:], logits=True)
        scores = scores[..., 1:] * scores[..., :1]
        corners = from_offsets(rows[..., :4])
        return [suppressed(c, s) for c, s in zip(corners, scores, strict=True)]

    def _flat(self, array: Array) -> Array:
        """[N, places x anchors, features]."""
        if array.ndim == 5:
            return array.reshape(len(array), -1, array.shape[-1])
        if _places(array) == array.shape[2:]:
            array = array.transpose(0, 2, 3, 1)
        return array.reshape(len(array), -1, array.shape[-1] // self.anchors)


# -- corners alone --------------------------------------------------------------------------------------------------


def _alone(numbers: Mapping[str, Array], seen: Seen) -> Boxes | None:
    """[K, 4]: corners that suppression kept, without their scores."""
    for name, array in numbers.items():
        if array.ndim != 2 or array.shape[1] != 4 or array.shape[0] < 2:
            continue
        ordered = (array[:, 2] > array[:, 0]) & (array[:, 3] > array[:, 1])
        if array.shape[0] != seen.rows and float(ordered.mean()) > ORDERED:
            return Boxes((name,), _Alone(name), "corners that were kept")
    return None


@dataclass(frozen=True)
class _Alone:
    output: str

    def __call__(self, outputs: Mapping[str, Array]) -> list[Found]:
        corners = outputs[self.output].astype(np.float64)
        return [Found(corners, np.ones(len(corners)), np.zeros(len(corners), np.int64))]


# -- shared ---------------------------------------------------------------------------------------------------------


def _in_unit(scores: Array) -> bool:
    return not scores.size or (float(scores.min()) >= UNIT[0] and float(scores.max()) <= UNIT[1] + 0.05)


def _softmax(raw: Array) -> Array:
    shares = np.exp(raw - raw.max(axis=-1, keepdims=True))
    found: Array = shares / shares.sum(axis=-1, keepdims=True)
    return found


def _probable(scores: Array, *, logits: bool = False) -> Array:
    """Scores in 0..1; numbers outside of that go through a sigmoid."""
    if not logits and _in_unit(scores):
        return scores
    if logits and float(scores.min()) >= 0 and float(scores.max()) <= 1:
        return scores
    found: Array = 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -60, 60)))
    return found


def _corners(boxes: Array, scores: Array | None, seen: Seen) -> tuple[Corners, str]:
    """How four numbers [N, A, 4] become corners, and in words; boxes of high score tell, where they are known."""
    image, anchors = seen.image, boxes.shape[1]
    strides = _grid(image, anchors)
    if strides is not None and image is not None and not _decoded(boxes, image):
        return lambda rows: from_grid(rows, image, strides), f"raw on a grid of strides {strides}"
    picked = boxes.reshape(-1, 4)
    if scores is not None:
        best = scores.max(axis=-1).reshape(-1)
        picked = picked[np.argsort(-best, kind="stable")[:256]]
    picked = picked[np.abs(picked).sum(axis=1) > 0]  # rows that nothing fills
    ordered = (picked[:, 2] > picked[:, 0]) & (picked[:, 3] > picked[:, 1])
    if float(ordered.mean()) > ORDERED:
        return lambda rows: rows, "as corners"
    if float((picked[:, 2:] > 0).mean()) > ORDERED:
        return from_centres, "as centre and size"
    return lambda rows: from_offsets(rows, (0.1, 0.2)), "as offsets from anchors"


def _grid(image: tuple[int, int] | None, anchors: int) -> tuple[int, ...] | None:
    if image is None:
        return None
    for strides in STRIDES:
        if sum((image[0] // s) * (image[1] // s) for s in strides) == anchors:
            return strides
    return None


def _decoded(boxes: Array, image: tuple[int, int]) -> bool:
    """Whether the first two numbers are places all over the picture, not offsets within a cell."""
    spread = float(np.percentile(boxes[..., 0], 95) - np.percentile(boxes[..., 0], 5))
    if float(boxes.max()) > PIXELS:
        return spread > 0.3 * image[1]
    return spread > 0.3 and float(boxes[..., 2:].min()) >= 0
