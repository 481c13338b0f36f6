"""Does a convolution written as a product of 8-bit windows read what it read, and is it written only where it pays?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from feeds import Feeds
from onnx import helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.results import PassRecord
from onnxcomp.runtime.profile import kernels

FLOAT = builders.FLOAT


class Costs:
    """Times that a test makes up: float convolutions take long, and what takes their place as told."""

    def __init__(self, each: float = 1.0) -> None:
        self.each = each

    def latency_ms(self, graph: Graph) -> float:
        return sum(self.node_times_us(graph).values()) / 1000

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        return {node.name: 100.0 if node.op == "Conv" else self.each for node in graph.nodes}


def convolution(
    size: tuple[int | str, ...] = (48,),
    kernel: tuple[int, ...] = (5,),
    *,
    channels: int = 96,
    outputs: int = 64,
    opset: int = 17,
    bias: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    """x -> Conv -> Relu -> y, large enough to be worth it."""
    group = attributes.get("group", 1)
    weights = {"w": builders.normal(builders.rng(), outputs, channels // group, *kernel)}
    if bias:
        weights["b"] = np.linspace(-1, 1, outputs).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", *weights], ["c"], "conv", **attributes),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    ports = [builders.value("x", FLOAT, ["N", channels, *size])], [builders.value("y", FLOAT, None)]
    return builders.model(nodes, *ports, weights, opset=opset, check=False)


@pytest.fixture(autouse=True)
def small_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.passes.weights.windows.LEAST_WORK", 1)


def quantized(
    proto: onnx.ModelProto,
    costs: Costs | None,
    feeds: dict[str, np.ndarray] | None = None,
    spec: str = "quantize-dynamic",
) -> tuple[onnx.ModelProto, PassRecord]:
    context = PassContext(costs=costs, calibration=None if feeds is None else Feeds(feeds))
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), context)
    return encode(result.graph), result.records[0]


def skewed(*shape: int) -> np.ndarray:
    """Values on one side of zero, so that a padding of anything but their zero point would show."""
    return (builders.rng().standard_normal(shape) + 3).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "kernel", "attributes"),
    [
        ((48,), (5,), {}),
        ((48,), (5,), {"pads": [2, 1]}),
        ((48,), (3,), {"strides": [2], "dilations": [3], "pads": [1, 4]}),
        ((47,), (4,), {"strides": [3]}),
        (("L",), (5,), {"strides": [2], "pads": [2, 2]}),
        ((48,), (1,), {}),
        ((48,), (5,), {"bias": False, "pads": [2, 2]}),
        ((12, 1), (5, 1), {}),
        ((9, 11), (3, 2), {"pads": [1, 0, 0, 1], "strides": [1, 2], "dilations": [2, 1]}),
        (("H", "W"), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((5, 6, 4), (2, 3, 1), {}),
        ((48,), (5,), {"auto_pad": "VALID"}),
        ((48,), (5,), {"opset": 13, "pads": [2, 2]}),
        ((48,), (5,), {"opset": 21, "pads": [2, 2]}),
    ],
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_windows_are_those_of_the_convolution(
    size: tuple[Any, ...], kernel: tuple[int, ...], attributes: dict[str, Any], calibrated: bool
) -> None:
    proto = convolution(size, kernel, **attributes)
    x = skewed(3, 96, *(s if isinstance(s, int) else 17 for s in size))
    after, record = quantized(proto, Costs(), {"x": x} if calibrated else None)
    assert [change.node for change in record.details] == ["conv"]
    operators = {node.op_type for node in after.graph.node}
    assert "MatMulInteger" in operators
    assert "Conv" not in operators
    wanted, got = builders.run(proto, {"x": x})[0], builders.run(after, {"x": x})[0]
    assert got.shape == wanted.shape
    assert builders.sqnr_db(wanted, got) > 30


def test_the_product_is_fused(tmp_path: Any) -> None:
    after, _ = quantized(convolution(), Costs())
    assert kernels(builders.save(after, tmp_path / "c.onnx"))["MatMulIntegerToFloat"] == 1


def test_what_calibration_shows_makes_the_rounding_better() -> None:
    proto = convolution(kernel=(3,), bias=False)
    mixed = builders.rng().standard_normal((96, 4)) @ builders.rng(1).standard_normal((4, 40 * 48))
    x = mixed.reshape(96, 40, 48).transpose(1, 0, 2).astype(np.float32)  # channels that move together
    wanted = builders.run(proto, {"x": x})[0]
    plain, solved = (
        builders.sqnr_db(wanted, builders.run(quantized(proto, Costs(), feeds)[0], {"x": x})[0])
        for feeds in (None, {"x": x[:20]})
    )
    assert solved > plain + 1


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (convolution(group=2), "groups"),
        (convolution(auto_pad="SAME_UPPER"), "automatic"),
        (convolution(outputs=32), "too small"),
        (convolution(opset=12, pads=[2, 2]), "opset 13"),
    ],
    ids=["groups", "automatic padding", "few outputs", "old opset"],
)
def test_what_cannot_be_written_says_why(proto: onnx.ModelProto, words: str) -> None:
    after, record = quantized(proto, Costs())
    assert [(skip.node, words in skip.why) for skip in record.skips] == [("conv", True)]
    assert after.graph.node[0].op_type == "Conv"


def test_small_ones_are_not_even_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.passes.weights.windows.LEAST_WORK", 1 << 24)
    _, record = quantized(convolution(), Costs())
    assert ["too small" in skip.why for skip in record.skips] == [True]


def test_what_is_no_faster_stays_float() -> None:
    proto = convolution()
    after, record = quantized(proto, Costs(each=50))
    assert ["measured" in skip.why for skip in record.skips] == [True]
    assert after.graph.node[0].op_type == "Conv"


def test_where_nothing_is_measured_convolutions_stay_float() -> None:
    _, record = quantized(convolution(), None)
    assert ["not measured" in skip.why for skip in record.skips] == [True]


@pytest.mark.parametrize("costs", [None, Costs(each=50)])
def test_what_is_asked_for_is_written_whatever_it_takes(costs: Costs | None) -> None:
    after, record = quantized(convolution(), costs, spec="quantize-dynamic{windows=always}")
    assert record.changes == 1 and "MatMulInteger" in builders.ops(after)


def test_two_runs_give_the_same_bytes() -> None:
    graph = decode(convolution(pads=[2, 2]))
    runs = [
        to_bytes(PassManager(Pipeline.parse("quantize-dynamic")).run(graph, PassContext(costs=Costs())).graph)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


class Running(Costs):
    """The same, of graphs that ONNX Runtime has to open."""

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        kernels(to_bytes(graph))
        return {node.name: 100.0 if node.op == "Conv" else self.each for node in graph.walk()}


def test_a_convolution_inside_a_branch_is_timed_and_written_like_any_other() -> None:
    """In bodies ONNX Runtime refuses nodes that stand before what they read."""
    plain = convolution(channels=64)
    branch = helper.make_graph(
        list(plain.graph.node), "then", [], [builders.value("y", FLOAT, None)], list(plain.graph.initializer)
    )
    other = helper.make_graph(
        [helper.make_node("Slice", ["x", "from", "to", "axis"], ["z"], "cut")],
        "else",
        [],
        [builders.value("z", FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["out"], "if", then_branch=branch, else_branch=other)
    ports = [builders.value("flag", onnx.TensorProto.BOOL, []), builders.value("x", FLOAT, [1, 64, 48])]
    bounds = {"from": np.array([0]), "to": np.array([44]), "axis": np.array([2])}
    proto = builders.model([node], ports, [builders.value("out", FLOAT, None)], bounds, opset=17, check=False)
    after, record = quantized(proto, Running())
    assert record.changes == 1
    feeds = {"flag": np.array(True), "x": builders.rng().standard_normal((1, 64, 48)).astype(np.float32)}
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 25
