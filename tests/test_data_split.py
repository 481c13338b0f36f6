"""Are samples shared out once, by seed, disjoint, and is a share that is too small said?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxcomp.data.dataset import Dataset
from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.open import open_data
from onnxcomp.data.split import Split, split
from onnxcomp.errors import DataError

SPEC = InputSpec("x", np.dtype(np.float32), ("n", 2))


def rows(n: int, spec: InputSpec = SPEC, start: int = 0) -> Dataset:
    return open_data({"x": np.arange(start, start + n, dtype=np.float32)[:, None].repeat(2, 1)}, [spec])


def sizes(found: Split) -> tuple[int, int, int]:
    return len(found.calibrate), len(found.select), len(found.judge)


@given(
    n=st.integers(3, 300),
    calibrate=st.integers(1, 400),
    judge=st.none() | st.integers(1, 400),
    seed=st.integers(0, 5),
    batch=st.sampled_from([None, 1, 4]),
)
def test_parts_are_disjoint_never_empty_and_repeat(n, calibrate, judge, seed, batch) -> None:
    dataset = rows(n, InputSpec("x", np.dtype(np.float32), (batch or "n", 2)))
    if n // (batch or 1) < 3:
        with pytest.raises(DataError):
            split(dataset, calibrate=calibrate, judge=judge, seed=seed)
        return
    found = split(dataset, calibrate=calibrate, judge=judge, seed=seed)
    parts = [found.calibrate.indices, found.select.indices, found.judge.indices]
    everything = np.concatenate(parts)
    assert len(set(everything.tolist())) == len(everything) <= n
    assert all(len(p) and len(p) % (batch or 1) == 0 and (np.diff(p) > 0).all() for p in parts)
    assert len(parts[0]) <= max(calibrate, batch or 1)
    again = split(dataset, calibrate=calibrate, judge=judge, seed=seed)
    assert all((a == b.indices).all() for a, b in zip(parts, (again.calibrate, again.select, again.judge), strict=True))
    assert (len(parts[0]) < calibrate) == any("calibrate" in note for note in found.notes)


def test_small_data_are_shared_sensibly() -> None:
    assert sizes(split(rows(200), calibrate=512, judge=None)) == (100, 20, 80)
    assert sizes(split(rows(4000), calibrate=512, judge=2000)) == (512, 400, 2000)
    assert sizes(split(rows(3), calibrate=512, judge=None)) == (1, 1, 1)


def test_another_seed_draws_other_samples() -> None:
    one, two = (split(rows(100), calibrate=20, judge=None, seed=s) for s in (0, 1))
    assert one.calibrate.indices.tolist() != two.calibrate.indices.tolist()


def test_eval_data_judge_whole_and_in_order() -> None:
    found = split(rows(50), calibrate=40, judge=None, eval_data=rows(30, start=100))
    assert sizes(found) == (40, 5, 30)
    values = np.concatenate([feed["x"][:, 0] for feed in found.judge.batches(7)])
    assert values.tolist() == list(range(100, 130))
    assert len(split(rows(50), calibrate=40, judge=7, eval_data=rows(30)).judge) == 7


def test_the_same_data_cannot_calibrate_and_judge(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 2), np.float32))
    one, two = (open_data(tmp_path / "a.npz", [SPEC]) for _ in range(2))
    with pytest.raises(DataError, match="cannot calibrate and judge"):
        split(one, calibrate=4, judge=None, eval_data=two)
    with pytest.raises(DataError):
        split(one, calibrate=4, judge=None, eval_data=one)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_are_told(n: int) -> None:
    with pytest.raises(DataError, match="cannot be shared out") as caught:
        split(rows(n), calibrate=4, judge=None)
    assert "--eval-data" in caught.value.do


def test_unreadable_images_are_replaced_by_others(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("L", (2, 2), i).save(tmp_path / f"{i:02}.png")
    for i in range(0, 40, 4):
        (tmp_path / f"{i:02}.png").write_bytes(b"no")
    dataset = open_data(tmp_path, [InputSpec("x", np.dtype(np.float32), ("n", 1, 2, 2))])
    found = split(dataset, calibrate=10, judge=8)
    assert sizes(found) == (10, 4, 8)
    for part in (found.calibrate, found.select, found.judge):
        assert all(i % 4 for i in part.indices) and sum(len(f["x"]) for f in part.batches(3)) == len(part)


def test_samples_can_be_read_again_and_cut() -> None:
    samples = rows(10).subset([4, 1, 7])
    for _ in range(2):
        assert np.concatenate([f["x"][:, 0] for f in samples.batches(2)]).tolist() == [4, 1, 7]
    assert len(samples.head(2)) == 2 and samples.head(2).indices.tolist() == [4, 1]


@pytest.mark.parametrize("judged_apart", [False, True])
def test_training_gets_all_that_neither_selects_nor_judges(judged_apart: bool) -> None:
    apart = rows(30, start=1000) if judged_apart else None
    plain, found = (split(rows(400), calibrate=50, judge=None, eval_data=apart, train=train) for train in (False, True))
    assert plain.train is None and found.train is not None
    assert found.calibrate.indices.tolist() == plain.calibrate.indices.tolist()
    assert found.select.indices.tolist() == plain.select.indices.tolist()
    train = set(found.train.indices.tolist())
    assert set(found.calibrate.indices.tolist()) < train
    assert not train & set(found.select.indices.tolist())
    if judged_apart:
        assert len(train) == 360
    else:
        assert len(train) == 200 and not train & set(found.judge.indices.tolist())


def test_fewer_samples_than_the_default_are_accounted_for() -> None:
    found = split(rows(100), calibrate=512, judge=None)
    counts = [len(part) for part in (found.calibrate, found.select, found.judge)]
    assert sum(counts) == 100
    said = "{} samples calibrate, fewer than 512: of 100, {} choose between what is tried, {} may judge"
    assert found.notes == (said.format(*counts),)
    assert not split(rows(100), calibrate=10, judge=None).notes
    apart = split(rows(100), calibrate=512, judge=20, eval_data=rows(9, start=1000))
    assert "may judge" not in apart.notes[0]
    assert apart.notes[1] == "9 samples judge, fewer than the 20 of --eval-samples: there are no more"
