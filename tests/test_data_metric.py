"""Does top-1 count right, and does a user's metric work or fail in its own words?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.data.metric import guesses_of, parse_metric
from onnxcomp.errors import DataError, UsageError

SCORES = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]


def test_top1_is_the_share_of_right_answers() -> None:
    metric = parse_metric(None)
    assert (metric.name, metric.higher_is_better, metric.needs_all) == ("top1", True, False)
    assert metric.score({"y": SCORES}, np.array([0, 1, 2, 0, 1])) == 0.6
    assert metric.drop(0.9, 0.8) == pytest.approx(0.1)


def test_top1_finds_the_output_with_classes_and_takes_pooled_shapes() -> None:
    outputs = {"features": np.zeros((5, 4, 7, 7)), "flag": np.zeros((5, 1)), "y": SCORES[:, :, None, None]}
    assert parse_metric("top1").score(outputs, np.array([0, 1, 2, 3, 0])) == 1.0


@pytest.mark.parametrize("numbers", [[0.1, 0.9, 0.4, 0.7], [-3.0, 2.0, -0.4, 0.7]])
def test_top1_of_one_number_a_sample_tells_two_classes_apart(numbers: list[float]) -> None:
    outputs = {"p": np.array(numbers, np.float32)[:, None]}
    assert parse_metric(None).score(outputs, np.array([0, 1, 1, 1])) == 0.75
    with pytest.raises(DataError, match="needs an output"):
        parse_metric(None).score(outputs, np.array([0, 1, 2, 1]))


@pytest.mark.parametrize("axis", [1, -1])
def test_top1_counts_tokens_and_pixels_place_by_place(axis: int) -> None:
    labels = np.array([[0, 1, 2], [3, 3, 0]])
    scores = np.moveaxis(np.eye(4, dtype=np.float32)[[[0, 1, 1], [3, 0, 0]]], -1, axis)
    assert parse_metric(None).score({"box": np.zeros((2, 7)), "y": scores}, labels) == pytest.approx(4 / 6)
    with pytest.raises(DataError, match="not among the model's 4 classes"):
        parse_metric(None).score({"y": scores}, labels + 1)


@pytest.mark.parametrize(
    ("outputs", "labels", "words"),
    [
        ({"y": SCORES}, None, "needs labels"),
        ({"y": SCORES}, np.zeros((5, 3), int), r"no output scores classes where the labels are: \[5, 3\]"),
        ({"y": SCORES}, np.arange(4), "4 labels for 5 outputs"),
        ({"y": SCORES}, np.array([0, 1, 2, 3, 4]), "not among the model's 4 classes"),
        ({"y": SCORES}, np.array([0.0, 1, 2, 3, 0.5]), "no class numbers"),
        ({"boxes": np.zeros((5, 10, 4))}, np.arange(5), r"needs an output of \[samples, classes\]"),
        ({"p": np.zeros((5, 1))}, np.arange(5), "needs an output"),
    ],
)
def test_top1_that_cannot_be_counted_is_told(outputs, labels, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_metric(None).score(outputs, labels)


MODULE = """
import numpy as np
from helper_of_mine import half
def error(outputs, labels):
    return np.abs(outputs["y"] - half()).mean()
def fails(outputs, labels):
    return outputs["z"]
def text(outputs, labels):
    return "good"
def nan(outputs, labels):
    return float("nan")
def array(outputs, labels):
    return np.array([0.25])
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    (tmp_path / "helper_of_mine.py").write_text("def half():\n    return 0.5\n")
    (tmp_path / "metrics.py").write_text(MODULE)
    return str(tmp_path / "metrics.py")


def test_own_metric_with_a_direction_and_a_neighbouring_module(module: str) -> None:
    metric = parse_metric(f"{module}:error:min")
    assert (metric.name, metric.higher_is_better, metric.needs_all) == ("error", False, True)
    assert metric.score({"y": SCORES}, None) == 0.5
    assert metric.drop(0.2, 0.5) == pytest.approx(0.3)
    assert parse_metric(f"{module}:error").higher_is_better
    assert parse_metric(f"{module}:array").score({"y": SCORES}, None) == 0.25


@pytest.mark.parametrize(("name", "words"), [("fails", "KeyError: 'z'"), ("text", "type str"), ("nan", "gave nan")])
def test_own_metric_that_fails_is_told_in_its_own_words(module: str, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse_metric(f"{module}:{name}").score({"y": SCORES}, None)
    if name == "fails":
        assert "metrics.py, line 7" in caught.value.where


@pytest.mark.parametrize("text", ["top5", "none.py:f", "{module}:eror", "{module}:error:mni", "no.such.module:f"])
def test_metrics_that_do_not_exist_are_usage_errors(module: str, text: str) -> None:
    with pytest.raises(UsageError):
        parse_metric(text.format(module=module))


def test_metric_of_the_assets(assets: Path) -> None:
    metric = parse_metric(f"{assets}/metrics.py:recall_at_1")
    embedding = np.random.default_rng(0).standard_normal((6, 8))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    assert metric.score({"e": np.concatenate([embedding, embedding])}, None) == 1.0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.exit(0)", r"left with sys.exit\(0\)"),
        ("raise SystemExit", "left with sys.exit"),
        ("labels[:] = outputs['y'].argmax(1); return 1.0", "raised ValueError: .*read-only"),
        ("labels.sort(); return 1.0", "raised ValueError: .*read-only"),
        ("return 1 + 2j", "not a number"),
        ("import numpy as np; return np.array([1j])", "not a number"),
        ("return 'good'", "not a number"),
        ("import numpy as np; return np.array(['a'])", "not a number"),
    ],
)
def test_what_a_users_metric_does_ends_as_its_own_error(tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "own.py").write_text(f"def measure(outputs, labels):\n    {body}\n")
    metric = parse_metric(f"{tmp_path / 'own.py'}:measure")
    labels = np.array([0, 1, 2, 3, 1])
    with pytest.raises(DataError, match=words) as caught:
        metric.score({"y": SCORES}, labels)
    assert "measure" in f"{caught.value.what} {caught.value.where}" or "own.py" in str(caught.value.where)
    assert labels.tolist() == [0, 1, 2, 3, 1]


def test_a_file_that_leaves_when_it_is_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\ndef measure(outputs, labels):\n    return 1.0\n")
    with pytest.raises(UsageError, match="SystemExit"):
        parse_metric(f"{tmp_path / 'gone.py'}:measure")


def test_top1_is_not_taken_of_features_beside_scores() -> None:
    features = np.random.default_rng(0).normal(0, 1, (5, 64)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0])
    outputs = {"features": features, "y": SCORES}
    assert parse_metric(None).score(outputs, labels) == 1.0
    (line,) = guesses_of(outputs, labels)
    assert "output y, not of features" in line and "--metric" in line


def test_a_threshold_is_no_secret() -> None:
    numbers = {"p": np.array([[-3.0], [2.0]], np.float32)}
    (line,) = guesses_of(numbers, np.array([0, 1]))
    assert "told apart at 0" in line and "--metric" in line
    assert guesses_of({"y": SCORES}, np.array([0, 1, 2, 3, 0])) == ()
