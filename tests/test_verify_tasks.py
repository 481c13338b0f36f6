"""Is each kind of answer known by its shapes and values, and is agreement what its name says?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph.io import load
from onnxcomp.results import Agreement, Fidelity
from onnxcomp.runtime.closeness import Tally
from onnxcomp.verify.agreement import Agreeing, TaskBook
from onnxcomp.verify.pair import Answer
from onnxcomp.verify.tasks import Seen, look, parse_task
from onnxcomp.verify.tasks.boxes import Found, from_centres, iou, matched, suppressed
from onnxcomp.verify.tasks.tails import tails_of

Array = np.ndarray
Named = dict[str, Array]
ROWS = 24
PICTURE = {"image": np.zeros((ROWS, 3, 64, 64), np.float32)}
TOKENS = {"ids": np.ones((ROWS, 12), np.int64)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def judged(before: Named, after: Named, inputs: Named | None = None, task: str | None = None, **tails: tuple[str, ...]):
    """Agreements and guesses for one batch."""
    inputs = PICTURE if inputs is None else inputs
    tasks = look(Seen(inputs, before, ROWS, tails), parse_task(task))
    measures = tasks.make()
    for measure in measures:
        measure.add(before, after, ROWS)
    return [measure.result() for measure in measures], tasks.guesses


def one(before: Array, after: Array, inputs: Named | None = None, task: str | None = None, tail: str = "") -> Agreement:
    (found,), _ = judged({"y": before}, {"y": after}, inputs, task, y=(tail,) if tail else ())
    return found


def softmax(values: Array, axis: int = -1) -> Array:
    found = np.exp(values - values.max(axis=axis, keepdims=True))
    return (found / found.sum(axis=axis, keepdims=True)).astype(np.float32)


def sigmoid(values: Array) -> Array:
    return (1 / (1 + np.exp(-values))).astype(np.float32)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (scale * rng(seed).normal(0, 1, shape)).astype(np.float32)


# -- detectors: things of known place and class, written in every layout --

SIZE, STRIDES, CLASSES = 256, (8, 16, 32), 5
ANCHORS = sum((SIZE // s) ** 2 for s in STRIDES)
BIG = {"image": np.zeros((ROWS, 3, SIZE, SIZE), np.float32)}


def things(seed: int = 1) -> tuple[Array, Array]:
    """Centre boxes [N, A, 4] in pixels and scores [N, A, C]: each picture has four things, one anchor each."""
    draw = rng(seed)
    grid = np.concatenate([_cells(s) for s in STRIDES])
    boxes = np.broadcast_to(np.concatenate([grid, np.full((ANCHORS, 2), 24.0)], axis=1), (ROWS, ANCHORS, 4)).copy()
    boxes[..., :2] += draw.uniform(-3, 3, (ROWS, ANCHORS, 2))
    boxes[..., 2:] *= draw.uniform(0.8, 1.6, (ROWS, ANCHORS, 2))
    scores = draw.uniform(0, 0.01, (ROWS, ANCHORS, CLASSES))
    for n in range(ROWS):
        for a in draw.choice(ANCHORS, 4, replace=False):
            scores[n, a, draw.integers(CLASSES)] = draw.uniform(0.4, 0.85)
    return boxes.astype(np.float32), scores.astype(np.float32)


def _cells(stride: int) -> Array:
    y, x = np.mgrid[0 : SIZE // stride, 0 : SIZE // stride]
    return stride * (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5)


def _raw(boxes: Array) -> Array:
    """YOLOX's numbers for boxes in pixels."""
    stride = np.concatenate([np.full((SIZE // s) ** 2, float(s)) for s in STRIDES])[:, None]
    cell = np.concatenate([_cells(s) / s - 0.5 for s in STRIDES])
    return np.concatenate([boxes[..., :2] / stride - cell, np.log(boxes[..., 2:] / stride)], axis=2).astype(np.float32)


def _objectness(scores: Array) -> Array:
    """Objectness, and classes given an object: [N, A, 1 + C] whose products are the scores."""
    given = np.where(scores == scores.max(axis=2, keepdims=True), 0.9, 0.05)
    return np.concatenate([scores.max(axis=2, keepdims=True) / 0.9, given], axis=2).astype(np.float32)


def _kept(boxes: Array, scores: Array, most: int = 12) -> tuple[Array, Array, Array]:
    """Rows behind suppression: corners [N, K, 4], scores [N, K], classes [N, K]; zeros fill up."""
    corners, top, names = np.zeros((ROWS, most, 4)), np.zeros((ROWS, most)), np.zeros((ROWS, most))
    for n in range(ROWS):
        found = suppressed(from_centres(boxes[n]), scores[n]).above(0.25)
        k = min(most, len(found.scores))
        corners[n, :k], top[n, :k], names[n, :k] = found.corners[:k], found.scores[:k], found.classes[:k]
    return corners.astype(np.float32), top.astype(np.float32), names.astype(np.float32)


def _rows(boxes: Array, scores: Array) -> Array:
    corners, top, names = _kept(boxes, scores)
    return np.concatenate([corners, top[..., None], names[..., None]], axis=2)


def _three(boxes: Array, scores: Array) -> Named:
    corners, top, names = _kept(boxes, scores)
    return {"boxes": corners, "scores": top, "classes": names}


def _background(scores: Array) -> Array:
    return np.concatenate([1 - scores.sum(axis=2, keepdims=True), scores], axis=2).astype(np.float32)


LAYOUTS: dict[str, Callable[[Array, Array], Named]] = {
    "yolov8": lambda b, s: {"y": np.concatenate([b, s], axis=2).transpose(0, 2, 1)},
    "yolov8, normalised": lambda b, s: {"y": np.concatenate([b / SIZE, s], axis=2).transpose(0, 2, 1)},
    "yolov8, logits": lambda b, s: {"y": np.concatenate([b, np.log(s / (1 - s))], axis=2).transpose(0, 2, 1)},
    "yolov8 with masks": lambda b, s: {
        "y": np.concatenate([b, s, normal(ROWS, ANCHORS, 6)], axis=2).transpose(0, 2, 1),
        "masks": normal(ROWS, 6, 16, 16),
    },
    "yolov5": lambda b, s: {"y": np.concatenate([b, _objectness(s)], axis=2)},
    "yolox": lambda b, s: {"y": np.concatenate([_raw(b), _objectness(s)], axis=2)},
    "corners and scores": lambda b, s: {"boxes": from_centres(b), "scores": s},
    "boxes second": lambda b, s: {"scores": s, "boxes": from_centres(b) / SIZE},
    "centres and scores": lambda b, s: {"boxes": b, "scores": s},
    "with background": lambda b, s: {"boxes": from_centres(b) / SIZE, "scores": _background(s)},
    "detr": lambda b, s: {"logits": np.roll(np.log(_background(s)) + 6, -1, axis=2), "boxes": b / SIZE},
    "features first": lambda b, s: {"boxes": b.transpose(0, 2, 1), "scores": s.transpose(0, 2, 1)},
    "offsets": lambda b, s: {"loc": normal(ROWS, ANCHORS, 4), "conf": _background(s)},
    "rows": lambda b, s: {"y": _rows(b, s)},
    "three outputs": _three,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_are_known_in_every_layout(layout: str):
    boxes, scores = things()
    before = LAYOUTS[layout](boxes, scores)
    noisy = scores * rng(5).normal(1, 0.02, scores.shape).astype(np.float32)
    moved = boxes * rng(6).normal(1, 0.002, boxes.shape).astype(np.float32)
    found, guesses = judged(before, LAYOUTS[layout](moved, noisy), BIG)
    (agreement,) = [a for a in found if a.kind == "boxes"]
    assert agreement.details["before"] == agreement.decisions == ROWS * 4
    assert agreement.value is not None and agreement.value > 0.97
    assert agreement.doubts == ()
    assert any("boxes" in line and "--task" in line for line in guesses)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fault", ["no scores", "other classes", "moved"])
def test_detectors_that_find_something_else_do_not_agree(layout: str, fault: str):
    boxes, scores = things()
    before = LAYOUTS[layout](boxes, scores)
    if fault == "no scores":
        after = LAYOUTS[layout](boxes, np.full_like(scores, 1e-3))
    elif fault == "other classes":
        after = LAYOUTS[layout](boxes, np.roll(scores, 1, axis=2))
    else:
        after = LAYOUTS[layout](boxes + np.float32(40), scores)
        if layout == "offsets":
            after["loc"] = before["loc"] + np.float32(12)
    found, _ = judged(before, after, BIG)
    (agreement,) = [a for a in found if a.kind == "boxes"]
    assert agreement.value is not None and agreement.value < 0.3


def test_boxes_of_one_class_may_have_key_points_beside_them():
    boxes, scores = things()
    points = boxes[..., :2].repeat(5, axis=2) + normal(ROWS, ANCHORS, 10, scale=5)
    before = {"y": np.concatenate([boxes, scores.max(axis=2, keepdims=True), points], axis=2).transpose(0, 2, 1)}
    after = {"y": before["y"].copy()}
    after["y"][:, 4, ::2] = 0
    (found,), _ = judged(before, after, BIG)
    assert (found.kind, found.details["before"]) == ("boxes", ROWS * 4)
    assert found.value is not None and found.value < 0.8


def test_raw_heads_are_matched_anchor_by_anchor():
    draw = rng(3)
    heads = {
        f"p{i}": draw.normal(0, 1, (ROWS, 3 * (5 + CLASSES), n, n)).astype(np.float32) for i, n in enumerate((8, 4, 2))
    }
    for head in heads.values():
        head.reshape(ROWS, 3, 10, *head.shape[2:])[:, :, 4] -= 3
    near = {name: head + draw.normal(0, 0.005, head.shape).astype(np.float32) for name, head in heads.items()}
    far = {name: np.roll(head, 1, axis=1) for name, head in heads.items()}
    (good,), _ = judged(heads, near)
    (bad,), _ = judged(heads, far)
    assert (good.kind, bad.kind) == ("boxes", "boxes")
    assert good.value is not None and bad.value is not None
    assert good.value > 0.95
    assert bad.value < 0.5


def test_what_is_lost_among_fainter_boxes_is_told_beside():
    """Applications draw boxes from 0.25 on, or from 0.1."""
    boxes, scores = things()
    before, after = scores.copy(), scores.copy()
    before[:, 7, 2] = 0.15  # one in each picture, which the other model does not find
    (found,), _ = judged(*({"y": np.concatenate([boxes, s], axis=2).transpose(0, 2, 1)} for s in (before, after)), BIG)
    assert found.value == 1.0 and found.measure.endswith("above 0.25")
    ((where, share),) = found.also
    assert where == "above 0.1" and share == pytest.approx(2 * 4 / (4 + 5), abs=0.01)


def test_few_boxes_are_weak_evidence():
    boxes, scores = things()
    quiet = {"y": np.concatenate([boxes, 0.001 * scores], axis=2).transpose(0, 2, 1)}
    (found,), _ = judged(quiet, quiet, BIG)
    assert found.value is None
    assert "the original finds no box above 0.25" in found.doubts[0]


def test_overlap_and_matching_are_what_they_are_called():
    a = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    b = np.array([[0, 0, 10, 5], [100, 100, 110, 110]], float)
    assert iou(a, b) == pytest.approx(np.array([[0.5, 0.0], [0.0, 0.0]]))
    names = np.zeros(2, np.int64)
    assert matched(Found(a, np.ones(2), names), Found(b, np.ones(2), names)) == 1
    assert matched(Found(a, np.ones(2), names), Found(a, np.ones(2), names + 1)) == 0


# -- everything else --

CTC = softmax(normal(ROWS, 20, 30, seed=1) * 6 + np.r_[10.0, np.zeros(29)])


@pytest.mark.parametrize(
    ("kind", "values", "inputs", "tail"),
    [
        ("classes", normal(ROWS, 10, scale=3), PICTURE, "Gemm"),
        ("classes", softmax(normal(ROWS, 1000, scale=5)), PICTURE, "Softmax"),
        ("classes", normal(ROWS, 1000, scale=6), PICTURE, "Gemm"),
        ("embeddings", normal(ROWS, 384, scale=0.05), TOKENS, "LayerNormalization"),
        ("embeddings", normal(ROWS, 512, scale=0.05), PICTURE, "Gemm"),
        ("embeddings", np.maximum(normal(ROWS, 512), 0), PICTURE, "Relu"),
        ("embeddings", normal(ROWS, 12, 64), TOKENS, "LayerNormalization"),
        ("tokens", normal(ROWS, 12, 9, scale=5), TOKENS, "MatMul"),
        ("tokens", softmax(normal(ROWS, 12, 9)), TOKENS, "Softmax"),
        ("ctc", CTC, PICTURE, "Softmax"),
        ("ctc", np.ascontiguousarray(CTC.transpose(1, 0, 2)), PICTURE, "Softmax"),
        ("ctc", np.roll(CTC, -1, axis=2), PICTURE, "Softmax"),
        ("pixels", normal(ROWS, 6, 64, 64), PICTURE, "Conv"),
        ("pixels", normal(ROWS, 64, 64, 6), PICTURE, "Conv"),
        ("pixels", normal(ROWS, 6, 16, 16), PICTURE, "Resize"),
        ("decisions", sigmoid(normal(ROWS, 1, 64, 64)), PICTURE, "Sigmoid"),
        ("decisions", sigmoid(normal(ROWS, 20)), PICTURE, "Sigmoid"),
        ("decisions", sigmoid(normal(ROWS, 1)), PICTURE, "Sigmoid"),
        ("regression", normal(ROWS, 1, scale=9), PICTURE, "Gemm"),
        ("regression", normal(ROWS, 4) + np.float32(300), TOKENS, "Add"),
        ("regression", (normal(ROWS, 4) * [300, 0.5, 12, 1e-3]).astype(np.float32), PICTURE, "Gemm"),
        ("regression", normal(ROWS, 30, seed=2) + 10 * np.abs(normal(30)) + np.float32(4), PICTURE, "Gemm"),
        ("regression", normal(ROWS, 3, 64, 64), PICTURE, "Conv"),
        ("regression", normal(ROWS, 128, 2, 2), PICTURE, "Relu"),
        ("classes", rng().integers(0, 9, (ROWS, 32, 32)), PICTURE, "ArgMax"),
    ],
)
def test_the_kind_of_an_answer_is_guessed(kind: str, values: Array, inputs: Named, tail: str):
    found = one(values, values.copy(), inputs, tail=tail)
    assert found.kind == kind
    assert found.value == pytest.approx(1.0)
    if values.dtype.kind == "f":
        worse = one(values, rng(7).permuted(values, axis=0), inputs, tail=tail)
        assert worse.value is not None and worse.value < 0.9


def test_masks_are_compared_by_area():
    before = np.zeros((ROWS, 1, 8, 8), np.float32)
    before[:, :, 1:5, 1:5] = 0.9
    after = np.roll(before, 1, axis=3)  # 12 of 16 pixels stay, 4 come in
    found = one(before, after, tail="Sigmoid")
    assert found.measure == "same yes or no at 0.5, IoU"
    assert found.value == pytest.approx(12 / 20)
    flat = one(before.reshape(ROWS, 64), after.reshape(ROWS, 64), tail="Sigmoid")
    assert flat.measure == "same yes or no at 0.5, F1"
    assert flat.value == pytest.approx(2 * 12 / 32)


@pytest.mark.parametrize("scores", [True, False])
def test_a_rare_class_of_pixels_that_vanishes_is_named(scores: bool):
    """It stands at two of a hundred pixels, so that nearly all of them stay equal without it."""
    classes = rng().integers(0, 2, (ROWS, 64, 64))
    classes[:, 10:20, 10:18] = 3
    gone = np.where((classes == 3) & (rng(1).random(classes.shape) < 0.9), 1, classes)
    before, after = (
        np.moveaxis(np.eye(4, dtype=np.float32)[part], -1, 1) if scores else part for part in (classes, gone)
    )
    found = one(before, after)
    assert found.value is not None and found.value > 0.98
    assert found.doubts[0].startswith(f"class 3, 2.0% of the {'pixels' if scores else 'places'}, keeps an IoU of 0.1")
    assert found.details["mean_iou"] == pytest.approx((2 + 0.1) / 3, abs=0.02)
    kept = one(before, before)
    assert not kept.doubts and kept.details["mean_iou"] == 1


def test_what_is_one_number_a_place_of_a_recording_names_no_class():
    inputs = {"signal": normal(ROWS, 2, 750)}
    found = one(normal(ROWS, 750, 1, seed=4), normal(ROWS, 750, 1, seed=4), inputs, tail="Concat")
    assert found.kind == "regression"
    assert one(normal(ROWS, 10), normal(ROWS, 10), inputs, tail="Gemm").kind == "classes"


def test_a_state_decides_nothing():
    inputs = {"x": normal(ROWS, 64), "state": normal(2, ROWS, 16)}
    outputs = {"y": sigmoid(normal(ROWS, 1)), "next": normal(2, ROWS, 16, seed=3)}
    found, _ = judged(outputs, outputs, inputs, y=("Sigmoid",))
    assert [a.kind for a in found] == ["decisions", "state"]


def test_a_number_without_axes_is_judged_as_a_number():
    total = np.array(2.5, np.float32)
    (found,), (guess,) = judged({"y": total}, {"y": total})
    assert found.kind == "regression"
    assert "numbers" in guess


def test_rows_that_vary_in_number_are_matched_wherever_they_stand():
    picked = rng().integers(0, 50, (40, 3))
    other = np.concatenate([rng(1).permutation(picked[:36]), picked[:2] + 1000])
    found = one(picked, other)
    assert found.measure == "equal rows, F1"
    assert found.value == pytest.approx(2 * 36 / (40 + 38)) and found.decisions == 40
    corners = rng(2).uniform(0, 60, (40, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 9], axis=1)
    (kept,), _ = judged({"y": boxes}, {"y": rng(3).permutation(boxes[:30]) + np.float32(0.2)})
    assert kept.kind == "boxes"
    assert kept.value == pytest.approx(2 * 30 / 70, abs=0.02)


def test_text_counts_as_a_whole():
    other = CTC.copy()
    other[:6, 3] = np.roll(CTC[:6, 3], 5, axis=-1)
    other[:6, 3] += softmax(normal(6, 30) * 50)
    found = one(CTC, other, PICTURE, tail="Softmax")
    assert found.value == pytest.approx((ROWS - 6) / ROWS, abs=0.09)


def spoken(lengths: tuple[int, int], letters: int, blanks: int, *, steps: int = 60, classes: int = 30) -> Array:
    """Scores [ROWS, steps, classes]: so many letters, each of some places, then some places of blank, and so on."""
    names, random = np.zeros((ROWS, steps + 60), np.int64), rng(5)
    for row in names:
        at = blanks
        while at < steps:
            for _ in range(letters):
                end = at + int(random.integers(*lengths))
                row[at:end] = random.integers(1, classes)
                at = end
            at += blanks
    return softmax(10 * np.eye(classes, dtype=np.float32)[names[:, :steps]])


FRAMES = {"sound": normal(ROWS, 60, 80)}
SHORTER = {"sound": normal(ROWS, 240, 80)}


@pytest.mark.parametrize(
    ("kind", "values", "inputs"),
    [
        ("ctc", spoken((1, 2), letters=1, blanks=3), PICTURE),  # letters far apart
        ("ctc", spoken((1, 3), letters=2, blanks=2), SHORTER),
        ("ctc", spoken((1, 2), letters=9, blanks=6), PICTURE),  # dense: no blank between different letters
        ("ctc", spoken((1, 3), letters=1, blanks=3), FRAMES),  # strokes of a pen, a place each
        ("tokens", spoken((1, 5), letters=8, blanks=20), FRAMES),  # sounds and silence
        ("tokens", spoken((1, 5), letters=8, blanks=20), SHORTER),
        ("tokens", spoken((12, 20), letters=1, blanks=14), FRAMES),  # what is heard, one event at a time
        ("tokens", spoken((12, 20), letters=1, blanks=14), SHORTER),
        ("tokens", spoken((1, 2), letters=8, blanks=12), FRAMES),
    ],
)
def test_letters_come_in_spikes_and_classes_of_frames_last(kind: str, values: Array, inputs: Named):
    assert one(values, values, inputs, tail="Softmax").kind == kind
    turned = np.ascontiguousarray(values.transpose(1, 0, 2))
    sounds = {name: array.transpose(1, 0, 2) if array.ndim == 3 else array for name, array in inputs.items()}
    assert one(turned, turned, sounds, tail="Softmax").kind == kind


def test_one_silent_recording_is_no_text():
    quiet = np.zeros((1, 60, 30), np.float32)
    quiet[..., 0] = 1
    assert one(quiet, quiet, {"sound": normal(1, 60, 80)}, tail="Softmax").kind == "tokens"


def test_characters_of_one_text_count_together():
    """Each output alone is wrong on few samples, and no two on the same one."""
    before = {f"digit_{k}": softmax(normal(ROWS, 10, scale=5, seed=k)) for k in range(5)}
    after = {name: array.copy() for name, array in before.items()}
    for k, array in enumerate(after.values()):
        array[2 * k : 2 * k + 2] = np.roll(array[2 * k : 2 * k + 2], 1, axis=1)
    tails = dict.fromkeys(before, ("Softmax",))
    found, (guess,) = judged(before, after, PICTURE, **tails)
    assert [a.value for a in found] == pytest.approx([22 / ROWS] * 5 + [14 / ROWS])
    assert found[-1].outputs == tuple(before) and found[-1].decisions == ROWS
    assert found[-1].measure == "same class in all 5 outputs"
    assert guess.endswith(
        "taken for characters of one text, each a class: override with --task classes if each is read alone"
    )
    alone, guesses = judged(before, after, PICTURE, task="classes", **tails)
    assert len(alone) == 5 and not guesses


@pytest.mark.parametrize("sizes", [(10, 12), (2, 2), (3, 3, 3)])
def test_heads_of_unlike_classes_or_few_are_read_alone(sizes: tuple[int, ...]):
    outputs = {f"y{k}": softmax(normal(ROWS, size, scale=5, seed=k)) for k, size in enumerate(sizes)}
    found, guesses = judged(outputs, outputs, PICTURE, **dict.fromkeys(outputs, ("Softmax",)))
    assert len(found) == len(guesses) == len(sizes)


def test_heads_with_axes_of_size_one_are_read_alone():
    outputs = {f"y{k}": normal(ROWS, 1, 16, seed=k) for k in range(3)}
    found, guesses = judged(outputs, outputs, PICTURE, **dict.fromkeys(outputs, ("MatMul",)))
    assert len(found) == len(guesses) == len(outputs)
    assert all(f"output y{k} taken for scores of classes" in guesses[k] for k in range(3))


@pytest.mark.parametrize("shape", [(1, 16), (16, 1), (1, 1, 16), (16, 1, 1)])
def test_classes_are_told_along_their_axis_whatever_ones_stand_around(shape: tuple[int, ...]):
    before = normal(ROWS, 16)
    after = before.copy()
    after[:6] = np.roll(after[:6], 1, axis=1)
    found = one(before.reshape(ROWS, *shape), after.reshape(ROWS, *shape), TOKENS, tail="MatMul")
    assert found.value == pytest.approx((ROWS - 6) / ROWS)


def test_cosine_is_about_the_mean():
    common = np.float32(5)
    a = common + normal(ROWS, 64, scale=0.05)
    b = common + normal(ROWS, 64, scale=0.05, seed=2)
    found = one(a, b, TOKENS, task="embeddings")
    assert found.details["cosine"] > 0.99
    assert found.value is not None and abs(found.value) < 0.2
    assert found.details["same_nearest"] < 0.5


def test_a_question_of_yes_or_no_counts_the_yes():
    scores = sigmoid(normal(ROWS, 100, scale=1) - 4)
    scores[:, 0] = 0.9
    none = np.minimum(scores, 0.4)
    found = one(scores, none, PICTURE, tail="Sigmoid")
    assert found.value == 0.0 and found.decisions == (scores > 0.5).sum()


def test_an_answer_that_never_varies_is_weak_evidence():
    shares = softmax(normal(ROWS, 10, scale=0.1) + np.r_[9, np.zeros(9)])
    assert one(shares, shares, PICTURE, tail="Softmax").doubts == ("the original names class 0 of every sample",)
    masks = np.zeros((ROWS, 8, 8), np.int64)
    assert one(masks, masks, PICTURE).doubts == ("the original gives one value everywhere",)


# -- what the user says --


def test_the_user_overrides_the_guess():
    values = normal(ROWS, 10, scale=3)
    found, guesses = judged({"y": values, "z": values}, {"y": values, "z": values}, task="y=embeddings")
    assert [a.kind for a in found] == ["embeddings", "classes"]
    assert len(guesses) == 1 and "output z" in guesses[0]


@pytest.mark.parametrize("task", ["cats", "y=cats", "y="])
def test_a_task_that_does_not_exist_is_named(task: str):
    with pytest.raises(UsageError, match="there is no task"):
        parse_task(task)


@pytest.mark.parametrize(
    ("task", "why"),
    [("q=classes", "no output 'q'"), ("ctc", "cannot be judged as ctc"), ("boxes", "laid out as boxes")],
)
def test_a_task_that_does_not_fit_is_told(task: str, why: str):
    with pytest.raises(DataError, match=why):
        judged({"y": normal(ROWS, 10)}, {"y": normal(ROWS, 10)}, task=task)


# -- on models --


def test_the_last_operators_are_read_from_the_file(tmp_path: Path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    ]
    proto = builders.model(
        nodes, [builders.value("x", TensorProto.FLOAT, ["N", 4])], [builders.value("y", 1, ["N", 4])]
    )
    assert tails_of(load(builders.save(proto, tmp_path / "m.onnx"))) == {"y": ("Softmax", "Relu")}


def test_numbers_are_kept_as_their_worst_part_is(tmp_path: Path):
    book = TaskBook(builders.save(builders.mlp(), tmp_path / "m.onnx"), "regression")
    before = {"y": normal(ROWS, 17, 3) * np.float32([100, 100, 0.1])}
    after = {"y": before["y"] * np.float32([1, 1, 0])}
    agreeing, tally = Agreeing(book), Tally()
    agreeing.add(Answer(ROWS, (before, after), {"x": normal(ROWS, 16)}))
    tally.add(before["y"], after["y"], ROWS)
    (found,) = agreeing.told(Fidelity(ROWS, "data", {"y": tally.result()})).agreements
    assert found.value == pytest.approx(0, abs=1e-6)
    assert found.measure.endswith("axis 2: 2")


def test_one_look_serves_every_comparison(tmp_path: Path):
    book = TaskBook(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    values = {"y": normal(ROWS, 10, scale=3)}
    for _ in range(2):
        agreeing = Agreeing(book)
        agreeing.add(Answer(ROWS, (values, values), {"x": normal(ROWS, 16)}))
    first = book.tasks
    assert first is not None
    assert first.guesses == ("output y taken for scores of classes: override with --task",)


def test_maps_of_unlike_numbers_of_samples_are_no_heads():
    outputs = {"p3": normal(ROWS, 6, 8, 8), "p4": normal(2, 6, 4, 4, seed=2)}
    found, _ = judged(outputs, outputs, PICTURE)
    assert all(a.kind != "boxes" for a in found)
