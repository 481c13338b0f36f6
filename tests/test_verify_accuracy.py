"""A metric sees all samples in order, and a drop is positive when the result is worse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcomp.data.metric import Metric, parse_metric, right, top1
from onnxcomp.errors import ModelError
from onnxcomp.results import Accuracy
from onnxcomp.verify.accuracy import interval, predict
from onnxcomp.verify.judge import judge


def accuracy(*models: Any, **options: Any) -> Accuracy:
    """What the metric tells in `judge`."""
    found = judge(*models, **options)[1]
    assert found is not None
    return found


class Given:
    """Samples held in memory."""

    def __init__(self, x: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        return ({"x": self.x[start : start + size]} for start in range(0, len(self.x), size))


def scaled(path: Path, factor: float) -> Path:
    """x [N, 4] -> y = factor * x."""
    proto = builders.model(
        [helper.make_node("Mul", ["x", "f"], ["y"])],
        [builders.value("x", TensorProto.FLOAT, ["N", 4])],
        [builders.value("y", TensorProto.FLOAT, ["N", 4])],
        {"f": np.array(factor, np.float32)},
    )
    return builders.save(proto, path)


@pytest.fixture
def samples() -> Given:
    x = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    return Given(x, x.argmax(axis=1))


def test_predictions_come_in_order(tmp_path: Path, samples: Given):
    found = predict(scaled(tmp_path / "m.onnx", 2), samples)
    np.testing.assert_array_equal(found["y"], 2 * samples.x)


def test_top1_drops_when_the_answers_turn_round(tmp_path: Path, samples: Given):
    before, after = scaled(tmp_path / "a.onnx", 1), scaled(tmp_path / "b.onnx", -1)
    found = accuracy(before, after, samples, parse_metric(None))
    assert (found.metric, found.samples, found.before, found.after, found.drop) == ("top1", 100, 1.0, 0.0, 1.0)


def test_a_metric_that_should_fall_drops_when_it_rises(tmp_path: Path, samples: Given):
    loss = Metric("loss", lambda outputs, labels: float(np.abs(outputs["y"]).mean()), higher_is_better=False)
    before, after = scaled(tmp_path / "a.onnx", 1), scaled(tmp_path / "b.onnx", 3)
    found = accuracy(before, after, samples, loss)
    assert found.drop == pytest.approx(found.after - found.before) and found.drop > 0


def test_one_pass_gives_both_answers(tmp_path: Path, samples: Given):
    before, after = scaled(tmp_path / "a.onnx", 1), scaled(tmp_path / "b.onnx", 1.1)
    fidelity, found = judge(before, after, samples, parse_metric(None))
    assert found == accuracy(before, after, samples, parse_metric(None))
    assert fidelity.outputs["y"].sqnr_db == pytest.approx(20, abs=1e-3)
    assert fidelity.outputs["y"].top1_agreement == 1
    assert judge(before, after, samples)[1] is None


def test_each_model_runs_once_for_both_answers(tmp_path: Path, samples: Given, monkeypatch: pytest.MonkeyPatch):
    from onnxcomp.runtime.session import Session

    runs = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, feeds: runs.append(len(feeds["x"])) or run(self, feeds))
    path = scaled(tmp_path / "m.onnx", 1)
    judge(path, path, samples, parse_metric(None))
    probe = 2 * 2  # two samples each find out whether samples go together
    assert sum(runs) == 2 * len(samples) + probe


def test_outputs_whose_shape_follows_the_data_cannot_be_joined(tmp_path: Path):
    proto = builders.model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [builders.value("x", TensorProto.FLOAT, ["N", 4])],
        [builders.value("y", TensorProto.INT64, [2, None])],
    )
    x = np.tile(np.eye(4, dtype=np.float32), (10, 1))
    x[-1] = 1
    path = builders.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="changes its shape"):
        predict(path, Given(x))


def test_the_interval_of_the_drop_holds_what_other_samples_say(tmp_path: Path):
    """Halves of the samples, drawn anew, fall into the interval of the other half about as often as it promises."""
    rng = np.random.default_rng(0)
    inside, runs, count = 0, 400, 300
    for _ in range(runs):
        drops = rng.choice([-1.0, 0.0, 1.0], count, p=[0.02, 0.93, 0.05])
        low, high = interval(drops)
        inside += low <= 0.03 <= high
    assert 0.93 <= inside / runs <= 0.99


def test_where_no_decision_changed_one_still_may(tmp_path: Path, samples: Given):
    path = scaled(tmp_path / "m.onnx", 2)
    found = accuracy(path, path, samples, parse_metric(None))
    assert found.drop == 0 and found.interval is not None
    low, high = found.interval
    assert low == -high and 0.01 < high < 0.03
    assert accuracy(path, path, samples, parse_metric(lambda outputs, labels: 1.0)).interval is None


def test_places_of_one_sample_count_together():
    labels = np.zeros((3, 4), np.int64)
    scores = np.zeros((3, 4, 2), np.float32)
    scores[0, 0, 1] = 1  # one place of the first sample is wrong
    assert right({"y": scores}, labels).tolist() == [0.75, 1, 1]
    assert top1({"y": scores}, labels) == 11 / 12
