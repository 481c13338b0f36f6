"""Does a whole run pass nothing that is wrong, and say in its first line what its verdict rests on?"""

from __future__ import annotations

import io
import json
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import onnxcomp
from onnxcomp.errors import DataError
from onnxcomp.report.screen import figures, show
from onnxcomp.results import Accuracy, Report
from onnxcomp.verify.budget import Budget
from onnxcomp.verify.verdict import PairVerdict, verify_pair

Array = np.ndarray
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def first_line(report: Report) -> str:
    console = Console(file=io.StringIO(), width=4000)
    show(report, console)
    return str(console.file.getvalue()).strip().splitlines()[0]  # type: ignore[attr-defined]


def network(tail: str = "", width: int = 10, seed: int = 0, noise: float = 0.0) -> onnx.ModelProto:
    """x [N, 32] -> 64 -> width, then ArgMax, a mask's constant or an echo of the input beside classes."""
    draw, other = rng(seed), rng(99)
    weights = {"w1": draw.normal(0, 0.25, (32, 64)), "w2": draw.normal(0, 0.2, (64, width)), "fill": -1e9}
    weights["w2"] = weights["w2"] + noise * other.normal(0, 0.2, (64, width))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "n1"),
        helper.make_node("Relu", ["a"], ["b"], "n2"),
        helper.make_node("MatMul", ["b", "w2"], ["logits"], "n3"),
    ]
    inputs = [builders.value("x", FLOAT, ["N", 32])]
    outputs = [builders.value("logits", FLOAT, ["N", width])]
    if tail in ("ArgMax", "echo"):
        nodes.append(helper.make_node("ArgMax", ["logits"], ["classes"], "n4", axis=1, keepdims=0))
        outputs = [builders.value("classes", INT64, ["N"])]
    if tail == "echo":
        nodes.append(helper.make_node("Identity", ["x"], ["same"], "n5"))
        outputs.append(builders.value("same", FLOAT, ["N", 32]))
    if tail == "mask":
        inputs.append(builders.value("legal", TensorProto.BOOL, ["N", width]))
        nodes.append(helper.make_node("Where", ["legal", "logits", "fill"], ["y"], "n4"))
        outputs = [builders.value("y", FLOAT, ["N", width])]
    arrays = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    if tail != "mask":
        del arrays["fill"]
    return builders.model(nodes, inputs, outputs, arrays)


def data(path: Path, count: int = 300, scale: float = 1.0, seed: int = 5, **more: Array) -> Path:
    mix = rng(3).normal(0, 1, (32, 32)) / np.sqrt(32)
    x = (scale * rng(seed).normal(0, 1, (count, 32)) @ mix).astype(np.float32)
    np.savez(path, x=x, **more)
    return path


def optimized(folder: Path, proto: onnx.ModelProto, samples: Path | None, **options: object) -> Report:
    model = builders.save(proto, folder / "m.onnx")
    options.setdefault("bench", False)
    return onnxcomp.optimize(
        model, data=samples, output=folder / "o.onnx", report=folder / "o.json", threads=1, **options
    )


def compared(
    folder: Path, before: onnx.ModelProto, after: onnx.ModelProto, samples: Path, **limits: float
) -> PairVerdict:
    files = [builders.save(p, folder / f"{n}.onnx") for n, p in (("a", before), ("b", after))]
    return verify_pair(*files, samples, budget=Budget(**limits), threads=1)


# -- the default run --


def test_the_samples_that_judge_decide(tmp_path: Path):
    """Calibrated and selected on one kind of sample, judged on another: what collapses there is not accepted."""
    proto = network()
    model = builders.save(proto, tmp_path / "source.onnx")
    near, far = data(tmp_path / "near.npz"), data(tmp_path / "far.npz", scale=40, seed=6)
    for samples in (near, far):
        x = np.load(samples)["x"]
        np.savez(samples, x=x, labels=builders.run(model, {"x": x})[0].argmax(1))
    report = optimized(tmp_path, proto, near, eval_data=far)
    if report.verdict == "accepted":
        assert report.accuracy is not None and report.fidelity is not None
        assert report.accuracy.drop <= 0.02
        assert report.fidelity.worst_db is None or report.fidelity.worst_db >= 10
    assert any("on the samples that judge" in line for line in report.notes)


def test_a_model_that_ends_in_argmax_is_compressed(tmp_path: Path):
    report = optimized(tmp_path, network("ArgMax"), data(tmp_path / "d.npz"))
    assert report.verdict == "accepted"
    assert report.after.bytes < 0.6 * report.before.bytes
    assert report.fidelity is not None and report.fidelity.agreement is not None
    assert report.fidelity.agreement >= 0.95


def test_what_decides_otherwise_is_not_just_accepted(tmp_path: Path):
    report = optimized(tmp_path, network(), data(tmp_path / "d.npz"), passes="quantize-weights{bits=2}")
    line = first_line(report)
    assert report.exit_code == 0
    assert "same class: " in line or "below 10 dB" in line


def test_a_verdict_without_data_says_so_first(tmp_path: Path):
    report = optimized(tmp_path, network(), None)
    if report.verdict == "accepted":
        assert "made-up samples only" in first_line(report)


def test_few_samples_are_said_first(tmp_path: Path):
    report = optimized(tmp_path, network(), data(tmp_path / "d.npz", 12), passes="quantize-weights")
    assert "judged on" in first_line(report) and "only" in first_line(report)


def test_a_model_that_knows_nothing_of_its_samples_is_said_first(tmp_path: Path):
    samples = data(tmp_path / "d.npz", labels=rng(1).integers(0, 10, 300))
    report = optimized(tmp_path, network(), samples, passes="quantize-weights")
    assert "the original itself is right on" in first_line(report)


def test_the_report_has_the_parts(tmp_path: Path):
    legal = rng(2).random((300, 40)) < 0.5
    samples = data(tmp_path / "d.npz", legal=legal)
    report = optimized(tmp_path, network("mask", 40), samples, passes="quantize-weights{bits=2}", min_sqnr=40)
    assert report.exit_code == 14
    content = json.loads((tmp_path / "o.json").read_text())
    found = content["fidelity"]["outputs"]["y"]
    assert found["total_sqnr_db"] > 100
    assert found["sqnr_db"] < 30
    assert found["worst_part"] == "all other elements"
    assert {part["name"] for part in found["parts"]} == {"all other elements", "elements of about -1e+09"}


def outliers(masked: bool) -> onnx.ModelProto:
    """Four channels a hundred times the others: on integers the product behind them loses too much."""
    draw, big = rng(7), [5, 77, 100, 120]
    scale, second = np.ones(128), draw.normal(0, 128**-0.5, (128, 128))
    scale[big], second[big] = 100, second[big] / 100
    arrays = {"w1": draw.normal(0, 0.2, (32, 128)), "s": scale, "w2": second, "w3": draw.normal(0, 0.1, (128, 8))}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "n1"),
        helper.make_node("Relu", ["a"], ["b"], "n2"),
        helper.make_node("Mul", ["b", "s"], ["c"], "n3"),
        helper.make_node("MatMul", ["c", "w2"], ["d"], "n4"),
        helper.make_node("Relu", ["d"], ["e"], "n5"),
        helper.make_node("MatMul", ["e", "w3"], ["f"], "n6"),
        helper.make_node("Where", ["legal", "f", "fill"], ["y"], "n7")
        if masked
        else helper.make_node("Identity", ["f"], ["y"], "n7"),
    ]
    weights = {name: value.astype(np.float32) for name, value in arrays.items()}
    if masked:
        weights |= {"fill": np.float32(-np.inf), "legal": np.array([True] * 6 + [False] * 2)}
    return builders.model(
        nodes, [builders.value("x", FLOAT, ["N", 32])], [builders.value("y", FLOAT, ["N", 8])], weights
    )


def test_a_guard_of_a_pass_looks_at_the_parts(tmp_path: Path):
    """quantize-qdq keeps in float what would ruin the legal logits, whatever a mask holds beside them."""
    samples = data(tmp_path / "d.npz")
    found = [
        optimized(tmp_path, outliers(masked), samples, passes="quantize-qdq{placement=table}")
        for masked in (False, True)
    ]
    plain, masked = (next(r for r in report.passes if r.name == "quantize-qdq") for report in found)
    refused = [{skip.node for skip in record.skips if "too much error" in skip.why} for record in (plain, masked)]
    assert "n4" in refused[0]
    assert refused[0] == refused[1]
    assert plain.changes == masked.changes


# -- pairs --


def test_classes_that_differ_are_never_held_by_an_echo(tmp_path: Path):
    samples = data(tmp_path / "d.npz")
    found = compared(tmp_path, network("echo"), network("echo", noise=1.0), samples, min_sqnr=30)
    assert found.exit_code == 14
    (line,) = found.budget
    assert line.value is not None and line.value < 10


def test_equality_has_a_budget_of_its_own(tmp_path: Path):
    samples = data(tmp_path / "d.npz")
    near, far = network("ArgMax", noise=0.01), network("ArgMax", noise=0.5)
    assert compared(tmp_path, network("ArgMax"), near, samples, min_agreement=0.9).exit_code == 0
    found = compared(tmp_path, network("ArgMax"), far, samples, min_agreement=0.98)
    assert found.exit_code == 15
    assert found.fidelity.agreements[0].measure == "equal values"


def test_the_lowest_code_of_several_counts(tmp_path: Path):
    samples = data(tmp_path / "d.npz")
    found = compared(tmp_path, network(), network(noise=1.0), samples, min_sqnr=30, min_agreement=0.98)
    assert [line.passed for line in found.budget] == [False, False]
    assert found.exit_code == 14


def test_same_top1_is_not_said_of_embeddings(tmp_path: Path):
    proto = builders.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("LpNormalization", ["a"], ["y"], axis=1, p=2),
        ],
        [builders.value("x", FLOAT, ["N", 32])],
        [builders.value("y", FLOAT, ["N", 64])],
        {"w": rng().normal(0, 1, (32, 64)).astype(np.float32)},
    )
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            (rng().normal(0, 1, (32, 64)) + 0.05 * rng(1).normal(0, 1, (32, 64))).astype(np.float32), "w"
        )
    )
    found = compared(tmp_path, proto, other, data(tmp_path / "d.npz")).fidelity
    assert found.outputs["y"].top1_agreement is None
    assert found.agreements[0].kind == "embeddings"
    assert found.agreements[0].value == pytest.approx(0.998, abs=0.002)


def suppressing(threshold: float) -> onnx.ModelProto:
    """Scores above a threshold, as many as there are: rows that depend on the values."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "flat"], ["b"]),
        helper.make_node("Greater", ["b", "t"], ["c"]),
        helper.make_node("Compress", ["b", "c"], ["high"], axis=0),
        helper.make_node("Identity", ["a"], ["all"]),
    ]
    weights = {
        "w": rng().normal(0, 0.3, (32, 8)).astype(np.float32),
        "flat": np.array([-1]),
        "t": np.float32(threshold),
    }
    outputs = [builders.value("high", FLOAT, ["K"]), builders.value("all", FLOAT, ["N", 8])]
    return builders.model(nodes, [builders.value("x", FLOAT, ["N", 32])], outputs, weights)


def test_rows_that_depend_on_the_values_are_called_incomparable(tmp_path: Path):
    samples = data(tmp_path / "d.npz")
    found = compared(tmp_path, suppressing(0.5), suppressing(0.6), samples)
    assert not found.fidelity.outputs["high"].comparable
    assert found.fidelity.outputs["all"].identical
    assert found.fidelity.untold == ("high",)
    assert compared(tmp_path, suppressing(0.5), suppressing(0.6), samples, min_sqnr=20).exit_code == 14


@pytest.mark.parametrize(
    "spec", ["quantize-qdq{placement=table}", "prune-weights{ratio=0.3}", "quantize-weights{bits=4}"]
)
def test_models_of_varying_rows_are_compressed(tmp_path: Path, spec: str):
    report = optimized(tmp_path, suppressing(0.5), data(tmp_path / "d.npz"), passes=spec)
    assert report.exit_code == 0
    assert "depend on the values" in first_line(report)


# -- copies --


def test_copies_of_calibration_samples_are_named_and_judge_nothing(tmp_path: Path):
    near, far = data(tmp_path / "d.npz"), data(tmp_path / "e.npz", 60, seed=8)
    x = np.concatenate([np.load(near)["x"][:40], np.load(far)["x"]])
    np.savez(far, x=x)
    report = optimized(tmp_path, network(), near, eval_data=far, passes="quantize-weights")
    assert report.fidelity is not None and report.fidelity.samples == 60
    line = first_line(report)
    assert "40 of 100 samples that judge are copies of samples seen before" in line


def test_the_same_data_under_another_name_do_not_judge(tmp_path: Path):
    near = data(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", x=np.load(near)["x"])
    with pytest.raises(DataError, match="all 300 samples of eval_data are among those of data"):
        optimized(tmp_path, network(), near, eval_data=tmp_path / "e.npz", passes="quantize-weights")


def test_samples_that_are_all_alike_are_said_first(tmp_path: Path):
    np.savez(tmp_path / "d.npz", x=np.ones((100, 32), np.float32))
    report = optimized(tmp_path, network(), tmp_path / "d.npz", passes="quantize-weights")
    assert "samples that judge are copies" in first_line(report)
    assert report.calibration is not None and report.calibration.repeated
    report.accuracy = Accuracy("top1", 50, 0.9, 0.9, 0.0)
    assert "on 50 samples" in next(words for name, *_, words in figures(report) if name == "top1")


def test_duplicated_rows_are_found(tmp_path: Path):
    x = np.load(data(tmp_path / "d.npz", 150))["x"]
    np.savez(tmp_path / "d.npz", x=np.concatenate([x, x]))
    report = optimized(tmp_path, network(), tmp_path / "d.npz", passes="quantize-weights")
    assert report.fidelity is not None and report.fidelity.samples < 120
    assert "left out" in first_line(report)
