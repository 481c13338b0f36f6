"""Are the weights that a report shows those that the models compute with? Against ONNX Runtime and by construction."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.drawn import WeightHistogram
from onnxcomp.graph.io import load
from onnxcomp.ops.facts import load_operators
from onnxcomp.verify.weights import BINS, histograms

FLOAT, OPERATORS = TensorProto.FLOAT, load_operators()
WEIGHT = builders.normal(builders.rng(3), 16, 8)


def linear(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], opset: int = 21) -> onnx.ModelProto:
    """x @ w, where `nodes` make w out of `weights`."""
    nodes = [*nodes, helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    inputs, outputs = [builders.value("x", FLOAT, (2, 16))], [builders.value("y", FLOAT, (2, 8))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def quantized(axis: int | None, block: int = 0, zero: bool = True, opset: int = 21) -> onnx.ModelProto:
    if axis is None:
        scale = np.float32(np.abs(WEIGHT).max() / 127)
    else:
        groups = WEIGHT.reshape(16 // block, block, 8).transpose(0, 2, 1) if block else np.moveaxis(WEIGHT, axis, -1).T
        scale = (np.abs(groups).max(axis=-1) / 127).astype(np.float32)
    wide = scale if axis is None else np.repeat(scale, block, 0) if block else np.expand_dims(scale, 1 - axis)
    codes = np.clip(np.rint(WEIGHT / wide), -127, 127).astype(np.int8)
    weights = {"q": codes, "s": np.asarray(scale)} | ({"z": np.zeros(np.shape(scale), np.int8)} if zero else {})
    attributes = {} if axis is None else {"axis": axis}
    node = helper.make_node(
        "DequantizeLinear", list(weights), ["w"], **attributes, **({"block_size": block} if block else {})
    )
    return linear([node], weights, opset)


def shown(model: onnx.ModelProto, tmp_path: Path) -> WeightHistogram:
    before = load(builders.save(linear([], {"w": WEIGHT}), tmp_path / "before.onnx"))
    after = load(builders.save(model, tmp_path / "after.onnx"))
    return histograms(before, after, OPERATORS)["layer"]


def fed(model: onnx.ModelProto) -> np.ndarray:
    """What the layer is fed, as ONNX Runtime computes it: the identity times w."""
    feeds = [np.eye(16, dtype=np.float32)[i : i + 2] for i in range(0, 16, 2)]
    return np.concatenate([builders.run(model, {"x": feed})[0] for feed in feeds])


@pytest.mark.parametrize(
    "model",
    [
        quantized(None),
        quantized(None, zero=False, opset=13),
        quantized(0),
        quantized(1),
        quantized(0, block=4),
        linear([], {"w": np.clip(WEIGHT, -0.5, 0.7)}),
        linear(
            [helper.make_node("Cast", ["q"], ["f"], to=FLOAT), helper.make_node("Mul", ["f", "s"], ["w"])],
            {"q": np.rint(WEIGHT * 10).astype(np.int8), "s": np.float32(0.1)},
        ),
    ],
    ids=["per tensor", "no zero point", "axis 0", "axis 1", "blocks", "clipped", "cast and scale"],
)
def test_the_range_after_is_what_the_layer_is_fed(model: onnx.ModelProto, tmp_path: Path) -> None:
    found, weight = shown(model, tmp_path), fed(model)
    assert found.range[0] == (float(WEIGHT.min()), float(WEIGHT.max()))
    assert found.range[1] == pytest.approx((weight.min(), weight.max()), rel=1e-6)
    assert found.zeros == pytest.approx((0.0, (weight == 0).mean()), abs=1e-5)
    assert (found.low, found.high) == (min(r[0] for r in found.range if r), max(r[1] for r in found.range if r))
    for shares in (found.before, found.after):
        assert shares is not None
        assert len(shares) == BINS
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)


def test_weights_that_are_computed_from_the_input_have_no_range(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Mul", ["v", "m"], ["w"])]
    found = shown(linear(nodes, {"v": WEIGHT}, 13), tmp_path)
    assert (found.after, found.range[1], found.zeros[1]) == (None, None, None)


def test_constant_and_removed_layers(tmp_path: Path) -> None:
    before = load(builders.save(linear([], {"w": np.zeros((16, 8), np.float32)}), tmp_path / "b.onnx"))
    other = load(builders.save(builders.mlp(), tmp_path / "o.onnx"))
    found = histograms(before, other, OPERATORS)["layer"]
    assert (found.low, found.high, found.before[0], found.after, found.zeros) == (0.0, 0.0, 1.0, None, (1.0, None))


def test_the_parts_of_a_weight_are_shown_together(tmp_path: Path) -> None:
    parts = {"layer.part0": WEIGHT[:, :3], "layer.part1": WEIGHT[:, 3:] / 2}
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"p{i}"], name=name) for i, name in enumerate(parts)]
    nodes.append(helper.make_node("Concat", ["p0", "p1"], ["y"], "join", axis=-1))
    inputs, outputs = [builders.value("x", FLOAT, (2, 16))], [builders.value("y", FLOAT, (2, 8))]
    held = [numpy_helper.from_array(values.copy(), f"w{i}") for i, values in enumerate(parts.values())]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    found = shown(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path)
    whole = np.concatenate([values.reshape(-1) for values in parts.values()])
    assert found.range[1] == (pytest.approx(float(whole.min())), pytest.approx(float(whole.max())))
    assert found.after is not None and sum(found.after) == pytest.approx(1, abs=1e-3)
