"""Are positions, grids and phases found by structure, and do they keep their digits in half precision at any size?"""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.positions import is_grid, positional
from onnxcomp.graph.shapes import infer
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def rotary(product: bool) -> onnx.ModelProto:
    """x [N, T, 8] turned by angles of its position, then a product; angles by Mul, or as a matrix product."""
    generator = builders.rng()
    weights = {
        "zero": np.array(0, np.int64), "one": np.array(1, np.int64), "axis": np.array([1], np.int64),
        "freq": np.float32([[1, 0.3, 0.1, 0.03]]), "w": builders.normal(generator, 8, 200),
        "a": np.array([0], np.int64), "b": np.array([4], np.int64), "c": np.array([8], np.int64),
        "two": np.array([2], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "one"], ["len"]),
        node("Range", ["zero", "len", "one"], ["range"]), node("Cast", ["range"], ["pos"], "pos", to=FLOAT),
        node("Unsqueeze", ["pos", "axis"], ["column"], "column"),
        node("MatMul" if product else "Mul", ["column", "freq"], ["phase"], "phase"),
        node("Cos", ["phase"], ["cos"], "cos"), node("Sin", ["phase"], ["sin"], "sin"),
        node("Slice", ["x", "a", "b", "two"], ["x1"]), node("Slice", ["x", "b", "c", "two"], ["x2"]),
        node("Mul", ["x1", "cos"], ["m1"]), node("Mul", ["x2", "sin"], ["m2"]),
        node("Concat", ["m1", "m2"], ["turned"], axis=2), node("MatMul", ["turned", "w"], ["y"], "product"),
    ]  # fmt: skip
    ports = builders.value("x", FLOAT, ["N", "T", 8]), builders.value("y", FLOAT, ["N", "T", 200])
    return builders.model(nodes, ports[:1], ports[1:], weights)


def kept(proto: onnx.ModelProto) -> set[str]:
    graph = decode(proto)
    return {node.name for node in positional(graph, infer(graph), load_operators())}


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    return encode(PassManager(Pipeline.parse("convert-float16")).run(decode(proto), PassContext()).graph)


def error_db(before: onnx.ModelProto, after: onnx.ModelProto, feed: dict[str, np.ndarray]) -> float:
    a, b = (builders.run(m, feed)[0].astype(np.float64) for m in (before, after))
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


@pytest.mark.parametrize("product", [False, True])
def test_phases_of_positions_stay_float32_at_any_length(product: bool) -> None:
    proto = rotary(product)
    assert {"pos", "column", "phase", "cos", "sin"} <= kept(proto)
    assert "product" not in kept(proto)
    after = halved(proto)
    assert any(t.data_type == TensorProto.FLOAT16 for t in after.graph.initializer), "the product is half"
    for length in (16, 3000):
        x = builders.rng(1).standard_normal((1, length, 8)).astype(np.float32)
        assert error_db(proto, after, {"x": x}) > 55


def test_a_grid_of_pixels_keeps_its_place() -> None:
    """Boxes as (offset + grid) * 8: half precision would move them by half a pixel."""
    generator = builders.rng()
    grid = np.stack(np.meshgrid(np.arange(160), np.arange(160)))[None].astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h"], "first", pads=[1] * 4),
        helper.make_node("Conv", ["h", "w2"], ["o"], "second"),
        helper.make_node("Sigmoid", ["o"], ["s"], "sigmoid"),
        helper.make_node("Add", ["s", "grid"], ["g"], "grid_add"),
        helper.make_node("Mul", ["g", "stride"], ["y"], "scale"),
    ]
    weights = {"w1": builders.normal(generator, 16, 3, 3, 3), "w2": builders.normal(generator, 2, 16, 1, 1)}
    weights |= {"grid": grid, "stride": np.float32(8)}
    ports = builders.value("x", FLOAT, ["N", 3, 160, 160]), builders.value("y", FLOAT, ["N", 2, 160, 160])
    proto = builders.model(nodes, ports[:1], ports[1:], weights)
    assert kept(proto) == {"grid_add", "scale"}
    after = halved(proto)
    assert any(t.data_type == TensorProto.FLOAT16 for t in after.graph.initializer)
    x = generator.standard_normal((1, 3, 160, 160)).astype(np.float32)
    a, b = (builders.run(m, {"x": x})[0] for m in (proto, after))
    assert np.abs(a - b).max() < 0.05


def test_time_steps_given_as_an_input_are_phases_too() -> None:
    nodes = [
        helper.make_node("Mul", ["t", "freq"], ["p"], "phase"),
        helper.make_node("Cos", ["p"], ["e"], "cos"),
        helper.make_node("MatMul", ["e", "w"], ["y"], "product"),
    ]
    weights = {"freq": np.float32([[1, 0.1]]), "w": builders.normal(builders.rng(), 2, 30)}
    ports = builders.value("t", FLOAT, ["N", 1]), builders.value("y", FLOAT, ["N", 30])
    assert kept(builders.model(nodes, ports[:1], ports[1:], weights)) == {"phase", "cos"}


def test_masks_sizes_and_residuals_are_no_positions() -> None:
    """An attention mask cast from integers, the root of a size, a bias of each channel."""
    node = helper.make_node
    nodes = [
        node("Cast", ["mask"], ["m"], to=FLOAT), node("Mul", ["m", "low"], ["ml"]), node("Add", ["x", "ml"], ["s"]),
        node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "one"], ["n"]), node("Cast", ["n"], ["f"], to=FLOAT),
        node("Sqrt", ["f"], ["r"]), node("Div", ["s", "r"], ["d"]), node("Add", ["d", "bias"], ["b"]),
        node("MatMul", ["b", "w"], ["y"]),
    ]  # fmt: skip
    generator = builders.rng()
    weights = {
        "low": np.float32(-1e4), "one": np.array(1, np.int64), "bias": 30 * builders.normal(generator, 40),
        "w": builders.normal(generator, 40, 40),
    }  # fmt: skip
    inputs = [builders.value("mask", INT64, ["N", 40]), builders.value("x", FLOAT, ["N", 40])]
    assert kept(builders.model(nodes, inputs, [builders.value("y", FLOAT, ["N", 40])], weights)) == set()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.arange(32, dtype=np.float32), True),
        (np.arange(40) * 8 + 4.0, True),
        (np.concatenate([np.arange(0, 640, 8), np.arange(0, 640, 16), np.arange(0, 640, 32)]) + 0.5, True),
        (np.random.default_rng(0).normal(0, 50, 400), False),
        (np.arange(8, dtype=np.float32), False),
        (np.linspace(0, 1, 100), False),
        (np.round(np.random.default_rng(0).normal(0, 1, 400) * 64) / 640, False),
        (np.array([np.nan] * 20), False),
    ],
)
def test_what_an_even_grid_is(values: np.ndarray, wanted: bool) -> None:
    assert is_grid(values) is wanted
    assert numpy_helper.from_array(values).dims
