"""Closeness of outputs is exact arithmetic over all samples, and honest about what no number can tell."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcomp.data.metric import parse_metric
from onnxcomp.errors import DataError, ModelError
from onnxcomp.results import Fidelity, OutputFidelity
from onnxcomp.runtime.closeness import WORST_DB, Tally
from onnxcomp.verify import pair
from onnxcomp.verify.judge import judge
from onnxcomp.verify.pair import Runner

Arrays = list[np.ndarray]


def fidelity(*models: Any, **options: Any) -> Fidelity:
    """The closeness that `judge` finds."""
    return judge(*models, **options)[0]


def tallied(before: np.ndarray, after: np.ndarray, rows: int | None = None) -> OutputFidelity:
    tally = Tally()
    tally.add(before, after, len(before) if rows is None else rows)
    return tally.result()


class Given:
    """Samples held in memory."""

    def __init__(self, feeds: dict[str, np.ndarray], labels: np.ndarray | None = None) -> None:
        self.feeds, self.labels = feeds, labels
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        self.sizes.append(size)
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.feeds.items()}


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(1e-6, 10))
def test_sqnr_does_not_depend_on_the_batches(seed: int, rows: int, size: int, scale: float):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, 5)).astype(np.float32)
    b = a + (scale * rng.standard_normal(a.shape)).astype(np.float32)
    tally = Tally()
    for start in range(0, rows, size):
        tally.add(a[start : start + size], b[start : start + size], len(a[start : start + size]))
    found = tally.result()
    assert not found.identical
    assert found.sqnr_db == pytest.approx(builders.sqnr_db(a, b), abs=1e-6)
    assert found.max_abs_error == np.abs(a.astype(np.float64) - b).max()
    assert found.top1_agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_equal_outputs_are_identical_and_have_no_sqnr():
    a = np.array([[1.0, np.nan, np.inf, -np.inf, 0.0]], np.float32)
    found = tallied(a, a.copy())
    assert found == OutputFidelity(True, None, 0.0, 1.0, finite_share=0.4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_new_nan_or_infinity_is_an_error_without_bound(bad: float):
    a = np.ones((4, 3), np.float32)
    b = a.copy()
    b[1, 1] = bad
    for before, after in ((a, b), (b, a)):
        found = tallied(before, after)
        assert not found.identical
        assert found.sqnr_db == WORST_DB
        assert found.max_abs_error == math.inf


def test_a_row_with_nan_agrees_only_with_itself():
    a = np.array([[np.nan, 1, 2], [0, 1, 2], [np.nan, 1, 2]], np.float32)
    b = np.array([[np.nan, 1, 2], [np.nan, 1, 2], [np.nan, 1, 3]], np.float32)
    assert tallied(a, b).top1_agreement == pytest.approx(1 / 3)


def test_another_shape_is_an_error_without_bound():
    found = tallied(np.ones((3, 4), np.float32), np.ones((2, 4), np.float32), 3)
    assert (found.identical, found.sqnr_db, found.max_abs_error) == (False, WORST_DB, math.inf)


def test_silence_with_noise_has_the_worst_sqnr_and_no_division_by_zero():
    found = tallied(np.zeros((2, 2), np.float32), np.full((2, 2), 1e-3, np.float32))
    assert found.sqnr_db == WORST_DB
    assert found.max_abs_error == pytest.approx(1e-3)


def test_integers_are_counted_not_measured_in_decibels():
    found = tallied(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]))
    assert found == OutputFidelity(False, None, 5.0, None, 0.75)
    assert tallied(np.array([True, False]), np.array([True, True])) == OutputFidelity(False, None, 1.0, None, 0.5)
    same = np.array([[1, 2], [3, 4]], np.uint8)
    assert tallied(same, same) == OutputFidelity(True, None, 0.0, None, 1.0)


def test_strings_are_compared():
    a, b = np.array(["cat", "dog"], object), np.array(["cat", "cow"], object)
    assert tallied(a, b) == OutputFidelity(False, None, 1.0, None, 0.5)
    assert tallied(a, a.copy()).identical


def test_half_precision_is_measured_against_the_original():
    a = np.array([[1.0001, 2.5]], np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        found = tallied(a, a.astype(dtype))
        assert found.sqnr_db == pytest.approx(builders.sqnr_db(a, a.astype(dtype).astype(np.float32)), abs=1e-6)
    exact = np.array([[1.0, 2.5]], np.float32)
    assert not tallied(exact, exact.astype(np.float16)).identical  # equal numbers, another type
    assert tallied(exact, exact.astype(np.float16)).sqnr_db == -WORST_DB


def test_top1_needs_one_row_of_scores_a_sample():
    a = np.ones((4, 3), np.float32)
    assert tallied(a, a, rows=2).top1_agreement is None  # four rows of two samples: boxes, say
    assert tallied(a[:, :1], a[:, :1]).top1_agreement is None
    assert tallied(a[:, None], a[:, None]).top1_agreement is None
    assert tallied(a.astype(np.int64), a.astype(np.int64)).top1_agreement is None


# -- whole models --


def perturbed(proto: onnx.ModelProto, seed: int = 1, scale: float = 0.01) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    rng = np.random.default_rng(seed)
    for tensor in copy.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            noisy = array + (scale * rng.standard_normal(array.shape)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    return copy


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    proto = builders.residual_cnn()
    return builders.save(proto, tmp_path / "a.onnx"), builders.save(perturbed(proto), tmp_path / "b.onnx")


def images(count: int = 50) -> Given:
    return Given({"image": np.random.default_rng(3).standard_normal((count, 3, 16, 16)).astype(np.float32)})


@pytest.mark.parametrize("large", [False, True])
def test_fidelity_of_models_is_that_of_their_outputs(
    models: tuple[Path, Path], large: bool, monkeypatch: pytest.MonkeyPatch
):
    if large:
        monkeypatch.setattr(pair, "LARGE_BYTES", 0)
    samples = images()
    found = fidelity(*models, samples, threads=1)
    (a,), (b,) = (builders.run(model, samples.feeds) for model in models)
    assert found.samples == 50
    assert found.outputs["logits"].sqnr_db == pytest.approx(builders.sqnr_db(a, b), abs=1e-2)
    assert found.outputs["logits"].top1_agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    assert max(samples.sizes) > 1
    assert fidelity(models[0], models[0], samples, threads=1).identical


def test_large_models_are_never_open_together(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pair, "LARGE_BYTES", 0)
    runner = Runner(*models)
    most = 0
    for _ in runner.answers(images()):
        most = max(most, sum(session is not None for session in runner._sessions))
    assert most == 1


def test_external_data_pairs_work(tmp_path: Path):
    proto = builders.mlp()
    files = [builders.save_external(p, tmp_path / n / "m.onnx") for p, n in ((proto, "a"), (perturbed(proto), "b"))
             if (tmp_path / n).mkdir() is None]  # fmt: skip
    x = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
    found = fidelity(files[0], files[1], Given({"x": x}), threads=1)
    assert found.worst_sqnr_db is not None and 10 < found.worst_sqnr_db < 60


def test_outputs_are_matched_by_name_whatever_their_order(tmp_path: Path):
    proto = builders.model(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])],
        [builders.value("x", TensorProto.FLOAT, ["n", 4])],
        [builders.value(name, TensorProto.FLOAT, ["n", 4]) for name in "ab"],
    )
    turned = onnx.ModelProto()
    turned.CopyFrom(proto)
    del turned.graph.output[:]
    turned.graph.output.extend(reversed(proto.graph.output))
    one, other = builders.save(proto, tmp_path / "1.onnx"), builders.save(turned, tmp_path / "2.onnx")
    assert fidelity(one, other, Given({"x": np.ones((3, 4), np.float32)})).identical


def renamed(proto: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for node in copy.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name
    for entry in (*copy.graph.input, *copy.graph.output):
        entry.name = new if entry.name == old else entry.name
    return copy


@pytest.mark.parametrize(("old", "kind"), [("x", "input"), ("y", "output")])
def test_other_names_are_refused(tmp_path: Path, old: str, kind: str):
    proto = builders.mlp()
    one = builders.save(proto, tmp_path / "1.onnx")
    other = builders.save(renamed(proto, old, "other"), tmp_path / "2.onnx")
    with pytest.raises(ModelError, match=f"different {kind}s"):
        fidelity(one, other, Given({"x": np.ones((2, 16), np.float32)}))


def test_other_sizes_and_other_kinds_are_refused(tmp_path: Path):
    one = builders.save(builders.mlp((16, 4)), tmp_path / "1.onnx")
    other = builders.save(builders.mlp((12, 4)), tmp_path / "2.onnx")
    with pytest.raises(ModelError, match="has the shape"):
        fidelity(one, other, Given({"x": np.ones((2, 16), np.float32)}))
    values = [builders.value("x", TensorProto.FLOAT, ["N", 16]), builders.value("y", TensorProto.INT64, ["N"])]
    classes = builders.model([helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)], values[:1], values[1:])
    with pytest.raises(ModelError, match=r"is tensor\(float\) before and tensor\(int64\) after"):
        fidelity(one, builders.save(classes, tmp_path / "3.onnx"), Given({"x": np.ones((2, 16), np.float32)}))


def test_a_half_precision_copy_is_fed_and_compared(tmp_path: Path):
    half = builders.model(
        [helper.make_node("Softmax", ["x"], ["y"])],
        [builders.value("x", TensorProto.FLOAT16, ["N", 8])],
        [builders.value("y", TensorProto.FLOAT16, ["N", 8])],
    )
    full = builders.model(
        [helper.make_node("Softmax", ["x"], ["y"])],
        [builders.value("x", TensorProto.FLOAT, ["N", 8])],
        [builders.value("y", TensorProto.FLOAT, ["N", 8])],
    )
    paths = builders.save(full, tmp_path / "1.onnx"), builders.save(half, tmp_path / "2.onnx")
    x = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    found = fidelity(*paths, Given({"x": x}))
    assert found.worst_sqnr_db is not None and found.worst_sqnr_db > 50


def test_a_batch_fixed_in_a_reshape_runs_one_sample_at_a_time(tmp_path: Path):
    proto = builders.model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [builders.value("x", TensorProto.FLOAT, ["n", 2, 2])],
        [builders.value("y", TensorProto.FLOAT, [1, 4])],
        {"s": np.array([1, 4])},
        check=False,
    )
    path = builders.save(proto, tmp_path / "m.onnx")
    samples = Given({"x": np.ones((5, 2, 2), np.float32)})
    assert fidelity(path, path, samples).samples == 5
    assert samples.sizes[-1] == 1


def test_no_samples_and_a_sequence_output_are_refused(tmp_path: Path):
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    with pytest.raises(DataError, match="no samples"):
        fidelity(path, path, Given({"x": np.ones((0, 16), np.float32)}))
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [builders.value("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = builders.save(made, tmp_path / "s.onnx")
    with pytest.raises(ModelError, match="sequence"):
        fidelity(path, path, Given({"x": np.ones((1,), np.float32)}))


def test_figures_agree_with_an_outside_judge(tmp_path: Path, assets: Path):
    spec = importlib.util.spec_from_file_location("meter", assets / "meter.py")
    assert spec is not None and spec.loader is not None
    meter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(meter)
    before = assets / "models" / "lenet5-mnist.onnx"
    after = builders.save(perturbed(onnx.load(before), scale=0.02), tmp_path / "after.onnx")
    x, labels = meter.mnist()
    x, labels = x[:500], labels[:500]
    found, accuracy = judge(before, after, Given({"input": x}, labels), parse_metric(None))
    assert found.worst_sqnr_db == pytest.approx(meter.fidelity(before, after, x), abs=1e-3)
    assert accuracy is not None
    assert accuracy.before == pytest.approx(meter.top1(before, x, labels))
    assert accuracy.after == pytest.approx(meter.top1(after, x, labels))
