"""Is each part of an output judged by itself, and an ordinary output as the whole that it is?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxcomp.results import OutputFidelity
from onnxcomp.runtime.closeness import EXACT_DB, Tally, sqnr_db, worst_sqnr_db
from onnxcomp.runtime.parts import AxisSums, Pieces

Array = np.ndarray
ROWS = 48


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def judged(before: Array, after: Array, rows: int | None = None, batch: int = 16) -> OutputFidelity:
    tally = Tally()
    rows = len(before) if rows is None else rows
    if before.shape[0] != rows:
        tally.add(before, after, rows)
        return tally.result()
    for start in range(0, rows, batch):
        tally.add(before[start : start + batch], after[start : start + batch], min(batch, rows - start))
    return tally.result()


def rounded(values: Array, bits: int = 8) -> Array:
    """Rounded to 8 bits over the range of all, as an honest quantized model may give."""
    finite = values[np.isfinite(values) & (np.abs(values) < 1e6)]
    step = (finite.max() - finite.min()) / (2**bits - 1)
    return np.where(np.isfinite(values) & (np.abs(values) < 1e6), np.rint(values / step) * step, values).astype(
        np.float32
    )


def sigmoid(values: Array) -> Array:
    return (1 / (1 + np.exp(-values))).astype(np.float32)


def softmax(values: Array, axis: int = -1) -> Array:
    found = np.exp(values - values.max(axis=axis, keepdims=True))
    return (found / found.sum(axis=axis, keepdims=True)).astype(np.float32)


def pixels(*shape: int, size: float = 640) -> Array:
    return rng(1).uniform(0, size, shape).astype(np.float32)


def rare(*shape: int, classes: int = -1) -> Array:
    """Scores near 0 but for a few: what a detector says of its anchors."""
    draw = rng(2)
    found = sigmoid(draw.normal(-8, 1, shape))
    return np.where(draw.random(shape) < 0.02, draw.uniform(0.3, 0.95, shape), found).astype(np.float32)


def bordered(values: Array) -> Array:
    edge = [(0, 0)] * (values.ndim - 2)
    return np.pad(sigmoid(values), [*edge, (8, 8), (0, 0)])


def joined(*parts: Array, axis: int) -> Array:
    return np.concatenate(parts, axis=axis)


# -- a part is ruined: name -> (the original, slices of it that are ruined) --

BOXES = {
    "yolov8": lambda: (joined(pixels(ROWS, 4, 64), rare(ROWS, 8, 64), axis=1), np.s_[:, 4:]),
    "yolov8, one class": lambda: (joined(pixels(ROWS, 4, 64), rare(ROWS, 1, 64), axis=1), np.s_[:, 4:]),
    "yolov8, eighty classes": lambda: (joined(pixels(ROWS, 4, 64), rare(ROWS, 80, 64), axis=1), np.s_[:, 4:]),
    "channels last": lambda: (joined(pixels(ROWS, 64, 4), rare(ROWS, 64, 8), axis=2), np.s_[:, :, 4:]),
    "yolov5": lambda: (joined(pixels(ROWS, 64, 4), rare(ROWS, 64, 81), axis=2), np.s_[:, :, 4:]),
    "scores of low level": lambda: (
        joined(pixels(ROWS, 4, 64), 0.02 * sigmoid(rng().normal(0, 1, (ROWS, 8, 64))), axis=1),
        np.s_[:, 4:],
    ),
    "logits": lambda: (
        joined(pixels(ROWS, 4, 64), rng().normal(-3, 3, (ROWS, 8, 64)).astype(np.float32), axis=1),
        np.s_[:, 4:],
    ),
    "normalised boxes": lambda: (joined(pixels(ROWS, 4, 256, size=1), rare(ROWS, 8, 256), axis=1), np.s_[:, 4:]),
    "objectness alone": lambda: (
        joined(pixels(ROWS, 64, 4), rare(ROWS, 64, 1), sigmoid(rng(3).normal(0, 1, (ROWS, 64, 20))), axis=2),
        np.s_[:, :, 4:5],
    ),
    "scores first": lambda: (joined(rare(ROWS, 8, 64), pixels(ROWS, 4, 64), axis=1), np.s_[:, :8]),
    "three anchors": lambda: (
        np.concatenate([p for _ in range(3) for p in (pixels(ROWS, 4, 10, 10), rare(ROWS, 9, 10, 10))], axis=1),
        (slice(None), [4, 5, 6, 7, 8, 9, 10, 11, 12, 17, 18, 19, 20, 21, 22, 23, 24, 25]),
    ),
    "five dimensions": lambda: (
        joined(pixels(ROWS, 3, 8, 8, 4), rare(ROWS, 3, 8, 8, 6), axis=4),
        np.s_[:, :, :, :, 4:],
    ),
    "batch of one": lambda: (joined(pixels(1, 4, 512), rare(1, 8, 512), axis=1), np.s_[:, 4:]),
    "behind suppression": lambda: (
        joined(pixels(ROWS, 30, 4), sigmoid(rng().normal(0, 1, (ROWS, 30, 1))), axis=2),
        np.s_[:, :, 4:],
    ),
    "keypoints with visibility": lambda: (
        np.stack([*(pixels(2, ROWS, 17)), sigmoid(rng().normal(0, 2, (ROWS, 17)))], axis=2),
        np.s_[:, :, 2],
    ),
    "three anchors, one class": lambda: (
        np.concatenate([p for _ in range(3) for p in (pixels(ROWS, 4, 10, 10), rare(ROWS, 1, 10, 10))], axis=1),
        (slice(None), [4, 9, 14]),
    ),
}
SCALES = {
    "regressors of unlike scale": lambda: (
        (rng().normal(0, 1, (400, 4)) * [300, 0.5, 12, 1e-3]).astype(np.float32),
        np.s_[:, 3],
    ),
    "heads in one vector": lambda: (
        joined(rng().normal(0, 1, (400, 12)) * 1e-3, rng().normal(0, 1, (400, 40)) * 100, axis=1).astype(np.float32),
        np.s_[:, :12],
    ),
    "layers of a state": lambda: (
        (rng().normal(0, 1, (2, ROWS, 64)) * np.array([1.0, 0.01])[:, None, None]).astype(np.float32),
        np.s_[1],
    ),
    "an attention sink": lambda: (
        (rng().normal(0, 1, (ROWS, 40, 32)) * np.r_[100.0, np.ones(39)][:, None]).astype(np.float32),
        np.s_[:, 1:],
    ),
}


@pytest.mark.parametrize("name", [*BOXES, *SCALES])
@pytest.mark.parametrize("fault", ["zero", "noise", "mean"])
def test_a_ruined_part_is_never_passed(name: str, fault: str):
    before, where = (BOXES | SCALES)[name]()
    after = before.copy()
    part = before[where]
    ruined = {"zero": np.zeros_like(part), "noise": rng(9).permutation(part.ravel()).reshape(part.shape)}
    after[where] = ruined.get(fault, np.full_like(part, part.mean()))
    found = judged(before, after, ROWS if name == "layers of a state" else None)
    assert found.sqnr_db is not None and found.total_sqnr_db is not None
    assert found.sqnr_db < 10, found
    assert found.worst_part in {part.name for part in found.parts}
    assert found.total_sqnr_db > found.sqnr_db + 6


@pytest.mark.parametrize("name", [*BOXES, *SCALES])
def test_parts_that_are_right_are_not_accused(name: str):
    before, _ = (BOXES | SCALES)[name]()
    after = (before * rng(8).normal(1, 0.03, before.shape)).astype(np.float32)
    found = judged(before, after, ROWS if name == "layers of a state" else None)
    assert found.sqnr_db is None or found.sqnr_db > 20, found


def test_the_report_names_the_part():
    before, _ = BOXES["yolov8"]()
    after = before.copy()
    after[:, 4:] = 0
    found = judged(before, after)
    assert found.worst_part == "axis 1: 4-11"
    assert found.sqnr_db == pytest.approx(0.0, abs=1e-9)
    boxes = next(part for part in found.parts if part.name == "axis 1: 0-3")
    assert (boxes.sqnr_db, boxes.max_abs_error, boxes.elements) == (EXACT_DB, 0.0, ROWS * 4 * 64)


# -- constants --


@pytest.mark.parametrize("fill", [-1e9, -3.4028234663852886e38, -1e4, -100.0, -np.inf, 1e9])
@pytest.mark.parametrize("additive", [False, True])
def test_a_masks_constant_hides_no_error(fill: float, additive: bool):
    draw = rng(4)
    logits = draw.normal(0, 2, (200, 40)).astype(np.float32)
    masked = draw.random((200, 40)) < 0.5

    def filled(values: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.where(masked, values + np.float32(fill) if additive else np.float32(fill), values).astype(
                np.float32
            )

    noisy = logits + draw.normal(0, 2, logits.shape).astype(np.float32)
    found = judged(filled(logits), filled(noisy))
    legal = ~masked
    expected = 10 * np.log10(np.square(logits[legal]).sum() / np.square(logits - noisy)[legal].sum())
    assert found.sqnr_db == pytest.approx(expected, abs=0.5)
    good = judged(filled(logits), filled(rounded(logits)))
    assert good.sqnr_db is not None and good.sqnr_db > 30


def test_a_mask_that_is_gone_is_seen():
    logits = rng().normal(0, 2, (200, 40)).astype(np.float32)
    masked = rng(1).random((200, 40)) < 0.5
    before = np.where(masked, np.float32(-1e9), logits)
    found = judged(before, logits)
    assert found.sqnr_db == pytest.approx(0.0, abs=0.1)
    assert found.worst_part == "elements of about -1e+09"


@pytest.mark.parametrize("offset", [300.0, 1013.0, 1e5, -273.15])
def test_an_offset_hides_no_error(offset: float):
    draw = rng(5)
    values = draw.normal(0, 2, (400, 4))
    noise = draw.normal(0, 2, values.shape)
    before, after = ((v + offset).astype(np.float32) for v in (values, values + noise))
    found = judged(before, after)
    assert found.sqnr_db == pytest.approx(10 * np.log10(values.var() / np.square(noise).mean()), abs=0.3)
    assert found.parts[0].judged_by == "what varies about the mean"
    good = judged(before, (values + 0.01 * noise + offset).astype(np.float32))
    assert good.sqnr_db is not None and good.sqnr_db > 35


def test_offsets_of_their_own_hide_no_error():
    draw = rng(5)
    values = draw.normal(0, 2, (400, 3))
    noise = draw.normal(0, 2, values.shape)
    before, after = ((v + np.array([300.0, 1013.0, 990.0])).astype(np.float32) for v in (values, values + noise))
    assert judged(before, after).sqnr_db == pytest.approx(0.0, abs=0.5)


def test_logits_that_hardly_vary_are_no_offset():
    """What an untrained network, or one on data that are all alike, gives."""
    draw = rng(5)
    before = (rng(6).normal(0, 3, 10) + draw.normal(0, 0.05, (200, 10))).astype(np.float32)
    after = before + draw.normal(0, 0.05, before.shape).astype(np.float32)
    found = judged(before, after)
    assert found.parts == ()
    assert found.sqnr_db == found.total_sqnr_db


# -- ordinary outputs are one quantity --

ORDINARY: dict[str, Callable[[], Array]] = {
    "logits": lambda: rng().normal(0, 3, (200, 10)),
    "logits of two classes": lambda: rng().normal(0, 3, (200, 1)) * [1, -1],
    "logits of a thousand": lambda: rng().normal(0, 2, (50, 1000)) + rng(1).normal(0, 1, 1000),
    "one number": lambda: rng().normal(0, 3, (200, 1)),
    "probabilities": lambda: softmax(rng().normal(0, 4, (200, 10))),
    "probabilities of a thousand": lambda: softmax(rng().normal(0, 4, (50, 1000)) + rng(1).normal(0, 4, 1000)),
    "a class that is always sure": lambda: softmax(rng().normal(0, 0.5, (200, 2)) + np.array([6, 0])),
    "a class that never comes": lambda: softmax(rng().normal(0, 2, (200, 5)) + np.array([0, 0, 0, 0, -9])),
    "tags": lambda: sigmoid(rng().normal(0, 1, (100, 300)) + rng(1).normal(-5, 3, 300)),
    "embedding": lambda: rng().normal(0, 0.3, (100, 384)) + rng(1).normal(0, 0.1, 384),
    "embedding with outlier channels": lambda: (
        rng().normal(0, 0.3, (100, 384)) + np.where(np.isin(np.arange(384), [77, 200]), 8.0, 0)
    ),
    "hidden states": lambda: rng().normal(0, 1, (20, 32, 64)),
    "latent of which most is unused": lambda: (
        rng().normal(0, 1, (100, 128)) * np.where(rng(7).random(128) < 0.2, 1.0, 0.02)
    ),
    "image": lambda: rng().uniform(0, 1, (8, 3, 32, 32)),
    "image of bytes": lambda: rng().uniform(0, 255, (8, 32, 32, 3)),
    "segmentation": lambda: rng().normal(0, 3, (8, 21, 32, 32)),
    "heat maps": lambda: sigmoid(rng().normal(-6, 2, (8, 17, 24, 32))),
    "a map with an empty border": lambda: bordered(rng().normal(0, 1, (8, 1, 24, 32))),
    "a flat map with an empty border": lambda: bordered(rng().normal(0, 1, (8, 24, 32))),
    "text": lambda: rng().normal(0, 3, (20, 40, 90)),
    "padded tokens": lambda: np.pad(rng().normal(0, 1, (20, 24, 32)), [(0, 0), (0, 16), (0, 0)]),
    "waveform": lambda: np.pad(rng().normal(0, 0.1, (8, 1, 3000)), [(0, 0), (0, 0), (500, 0)]),
    "spectrum": lambda: rng().normal(0, 1, (8, 80, 60)) * 10 ** np.linspace(0, -3, 80)[:, None],
    "features behind Relu": lambda: np.maximum(
        rng().normal(0, 1, (16, 64, 7, 7)) + rng(1).normal(-0.5, 1, 64)[:, None, None], 0
    ),
    "state": lambda: np.tanh(rng().normal(0, 1, (2, 30, 64))),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_output_is_not_accused(name: str):
    before = ORDINARY[name]().astype(np.float32)
    rows = 30 if name == "state" else None
    found = judged(before, rounded(before), rows)
    assert found.sqnr_db is not None and found.total_sqnr_db is not None
    assert found.sqnr_db > min(15.0, found.total_sqnr_db - 6), found


def test_parts_do_not_depend_on_the_batches():
    before, where = BOXES["yolov8"]()
    after = before.copy()
    after[where] *= np.float32(0.9)
    one, many = judged(before, after, batch=ROWS), judged(before, after, batch=7)
    assert [p.name for p in one.parts] == [p.name for p in many.parts]
    assert one.sqnr_db == pytest.approx(many.sqnr_db, abs=1e-9)
    assert one.sqnr_db == pytest.approx(20.0, abs=1e-3)


# -- what passes ask --


def test_passes_see_the_worst_part_of_the_worst_output():
    before, where = BOXES["yolov8"]()
    after = before.copy()
    after[where] *= np.float32(0.9)
    other = rng().normal(0, 1, (ROWS, 5)).astype(np.float32)
    got = worst_sqnr_db([{"a": before, "b": other}], [{"a": after, "b": other}])
    assert got == pytest.approx(20.0, abs=1e-3)
    assert worst_sqnr_db([{"a": before}], [{"a": before}]) == EXACT_DB


def test_classes_count_by_their_share():
    before = rng().integers(0, 6, (10, 20, 20))
    after = before.copy()
    after.reshape(-1)[:40] += 1
    assert worst_sqnr_db([{"mask": before}], [{"mask": after}]) == pytest.approx(40.0)


def test_infinities_on_both_sides_do_not_switch_the_guard_off():
    before = np.where(np.arange(8) < 6, rng().normal(0, 1, (30, 8)), -np.inf).astype(np.float32)
    after = (before * np.float32(0.5)).astype(np.float32)
    assert worst_sqnr_db([{"y": before}], [{"y": after}]) == pytest.approx(6.02, abs=0.01)


def test_rows_that_depend_on_the_values_have_no_counterpart():
    tally = Tally(varying=True)
    tally.add(np.ones((3, 4), np.float32), np.ones((2, 4), np.float32), 1)
    found = tally.result()
    assert (found.comparable, found.identical, found.sqnr_db) == (False, False, None)
    assert worst_sqnr_db([{"y": np.ones((3, 4))}], [{"y": np.ones((2, 4))}]) == EXACT_DB


@pytest.mark.parametrize(("signal", "noise", "expected"), [
    (1.0, 0.0, EXACT_DB), (1.0, np.nan, -999.0), (0.0, 1.0, -999.0), (1.0, np.inf, -999.0), (1e308, 1e-10, 999.0),
    (100.0, 1.0, 20.0),
])  # fmt: skip
def test_decibels_of_anything(signal: float, noise: float, expected: float):
    assert sqnr_db(signal, noise) == pytest.approx(expected)


@pytest.mark.parametrize("holes", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5,), (3, 1, 4), (2, 3, 4, 5), (1, 6, 2)])
def test_sums_along_an_axis_are_those_of_its_slices(shape: tuple[int, ...], holes: float) -> None:
    draw = rng(3)
    values, errors = draw.normal(0, 1, shape), draw.normal(0, 0.1, shape)
    counted = draw.random(shape) >= holes if holes else None
    pieces = Pieces.of(values, errors, counted) if counted is not None else Pieces.whole(values, np.abs(errors))
    for axis in range(len(shape)):
        sums = AxisSums(axis, shape[axis])
        sums.add(pieces)
        for place in range(shape[axis]):
            kept = np.ones(shape, bool) if counted is None else counted
            one, other = (a.take(place, axis)[kept.take(place, axis)] for a in (values, errors))
            assert sums.count[place] == one.size
            assert sums.total[place] == pytest.approx(one.sum())
            assert sums.energy[place] == pytest.approx((one**2).sum())
            assert sums.noise[place] == pytest.approx((other**2).sum())
            assert sums.largest[place] == pytest.approx(np.abs(other).max(initial=0.0))
            assert sums.low[place] == one.min(initial=np.inf) and sums.high[place] == one.max(initial=-np.inf)
