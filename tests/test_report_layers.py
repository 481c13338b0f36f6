"""Is a layer told to be int8 where ONNX Runtime multiplies integers, and only there?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import helper

import onnxcomp


@pytest.mark.parametrize(
    ("spec", "opset", "computes", "stored"),
    [
        ("quantize-dynamic{least=1}", 17, "int8", None),
        ("quantize-weights{bits=8}", 17, "int8", None),  # MatMulNBits quantizes its input
        ("quantize-weights{bits=8,accuracy_level=1}", 17, "float32", "int8"),
        ("store-weights", 17, "float32", "int8"),
        ("quantize-qdq{placement=table}", 17, "int8", None),
    ],
)
def test_precision_is_what_the_kernel_multiplies(
    spec: str, opset: int, computes: str, stored: str | None, tmp_path: Path
) -> None:
    path = builders.save(builders.mlp((64, 96, 32), opset=opset, trans_b=0), tmp_path / "m.onnx")
    data = {"x": builders.rng(1).standard_normal((64, 64)).astype(np.float32)}
    out = tmp_path / "o.onnx"
    report = onnxcomp.optimize(path, data=data, passes=spec, output=out, bench=False)
    layers = [layer for layer in report.layers if layer.parameters[0] > 1000]
    assert {layer.precision[1] for layer in layers} == {computes}
    assert {layer.stored[1] if layer.stored else None for layer in layers} == {stored}
    unseen = onnxcomp.optimize(path, data=data, passes=spec, output=out, bench=False, verify=False)
    assert {layer.precision[1] for layer in unseen.layers if layer.parameters[0] > 1000} == {"int8"}  # as it is stored


def test_a_layer_that_the_runtime_runs_with_its_activation_is_told_alike(tmp_path: Path) -> None:
    path = builders.save(builders.residual_cnn(), tmp_path / "m.onnx")
    data = {"x": builders.rng(1).standard_normal((8, 3, 16, 16)).astype(np.float32)}
    spec = "fuse-batchnorm,quantize-weights{bits=2,least_sqnr=0}"
    report = onnxcomp.optimize(path, data=data, passes=spec, output=tmp_path / "o.onnx", bench=False)
    layers = [layer for layer in report.layers if layer.op == "Conv"]
    assert {layer.precision[1] for layer in layers} == {"float32"}  # codes are decoded before the layer multiplies
    assert {layer.held[1] for layer in layers} == {"int2"}


def test_layers_that_a_pass_made_have_a_row_behind_the_originals(tmp_path: Path) -> None:
    """A shortcut of Slice and Pad becomes a Conv."""
    weights = {"w": builders.normal(builders.rng(), 9, 4, 1, 1), "amounts": np.int64([0, 2, 0, 0, 0, 3, 0, 0])}
    weights |= {"starts": np.int64([0, 0]), "ends": np.int64([2**31, 2**31]), "axes": np.int64([2, 3])}
    weights["steps"] = np.int64([2, 2])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", strides=[2, 2]),
        helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["s"], "slice"),
        helper.make_node("Pad", ["s", "amounts"], ["p"], "pad"),
        helper.make_node("Add", ["c", "p"], ["y"], "add"),
    ]
    value = builders.value
    graph = builders.model(
        nodes, [value("x", builders.FLOAT, ["N", 4, 12, 12])], [value("y", builders.FLOAT, ["N", 9, 6, 6])], weights
    )
    path, page = builders.save(graph, tmp_path / "m.onnx"), tmp_path / "page.html"
    data = {"x": builders.rng(1).standard_normal((64, 4, 12, 12)).astype(np.float32)}
    report = onnxcomp.optimize(
        path, data=data, passes="convolve-shortcuts", output=tmp_path / "o.onnx", bench=False, html=page
    )
    first, new = report.layers
    assert (first.node, first.precision) == ("conv", ("float32", "float32"))
    assert (new.op, new.precision, new.own_sqnr_db) == ("Conv", ("absent", "float32"), None)
    assert new.bytes == (0, 4 * 9 * 4) and new.parameters == (0, 9 * 4)
    assert new.node in page.read_text(encoding="utf-8")


def test_samples_that_change_class_are_named_with_both_classes_and_their_label(tmp_path: Path) -> None:
    path = builders.save(builders.mlp((64, 96, 10), trans_b=0), tmp_path / "m.onnx")
    data = {"x": builders.rng(1).standard_normal((200, 64)).astype(np.float32)}
    original = builders.run(path, data)[0].argmax(axis=1)
    out, page = tmp_path / "o.onnx", tmp_path / "page.html"
    report = onnxcomp.optimize(
        path,
        data={"x": builders.rng(2).standard_normal((100, 64)).astype(np.float32)},
        eval_data=data,
        eval_labels=original,
        passes="quantize-weights{bits=2}",
        output=out,
        html=page,
        bench=False,
    )
    new = builders.run(out, data)[0].argmax(axis=1)
    wrong = [(int(i), int(original[i]), int(new[i]), int(original[i])) for i in np.flatnonzero(original != new)]
    assert wrong
    assert [(f.sample, f.before, f.after, f.label) for f in report.flips] == wrong[:24]
    assert 'id="flips"' in page.read_text()
    assert "<img" not in page.read_text()  # rows of numbers are no pictures


def test_pictures_of_samples_that_change_class_lie_in_the_page_alone(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path
) -> None:
    train, test = digits_data
    page = tmp_path / "page.html"
    report = onnxcomp.optimize(
        digits,
        data=train,
        eval_data=test,
        passes="fuse-batchnorm,quantize-weights{bits=2}",
        output=tmp_path / "o.onnx",
        html=page,
        bench=False,
    )
    assert report.flips
    assert page.read_text().count('<img src="data:image/png;base64,') == len(report.flips)
    assert "base64" not in str(report.to_json())
