"""Does a Conv in tiles give what it gave, only where that is measured to be faster, with its weight as it was?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.cost import layers
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators
from onnxcomp.passes import winograd_conv
from onnxcomp.passes.winograd_conv import TILES, WinogradConv, matrices

FLOAT = builders.FLOAT


class Costs:
    """Times as a test says: of a whole graph and of a Conv as it is, in tiles, and on integers."""

    def __init__(self, whole: tuple[float, float, float] = (1, 0.5, 0.8), kernel: tuple[float, ...] = (1, 0.5, 0.8)):
        self.whole, self.kernel = whole, kernel

    def latency_ms(self, graph: Graph) -> float:
        return self.whole[_form(graph)]

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        return {"conv": self.kernel[_form(graph)]}


def _form(graph: Graph) -> int:
    ops = {node.op for node in graph.nodes}
    return 2 if "QuantizeLinear" in ops else int("MatMul" in ops)


def convolution(
    shape: tuple[Any, ...], kernel: tuple[int, ...], channels: int = 40, **attributes: Any
) -> onnx.ModelProto:
    """x -> Conv -> Relu -> y."""
    group = attributes.get("group", 1)
    weights = {"w": builders.normal(builders.rng(), channels, shape[1] // group, *kernel)}
    inputs = ["x", "w"]
    if attributes.pop("bias", True):
        weights["b"] = np.arange(channels, dtype=np.float32)
        inputs.append("b")
    nodes = [helper.make_node("Conv", inputs, ["c"], "conv", **attributes), helper.make_node("Relu", ["c"], ["y"])]
    given = [builders.value("x", FLOAT, list(shape))]
    return builders.model(nodes, given, [builders.value("y", FLOAT, None)], weights, opset=17, check=False)


def written(proto: onnx.ModelProto, *, costs: Costs | None = None, than: str = "float") -> tuple[Graph, list[str]]:
    """The graph after the pass, and why what was left was left."""
    context = PassContext(costs=costs or Costs())
    result = PassManager(Pipeline.parse(f"winograd-conv{{than={than}}}")).run(decode(proto), context)
    return result.graph, [skip.why for skip in result.records[0].skips]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_conv, "LEAST_WORK", 1)


@pytest.mark.parametrize("taps", TILES)
def test_tiles_are_the_same_sums(taps: int) -> None:
    back, weight, forth = matrices(TILES[taps], taps)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(TILES[taps] + taps - 1), rng.standard_normal(taps)
    np.testing.assert_allclose(back @ ((weight @ w) * (forth @ x)), np.correlate(x, w, "valid"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("taps", TILES)
@pytest.mark.parametrize(
    ("shape", "kernel", "pads"),
    [
        (("N", 36, 50), (0,), [0, 0]),
        (("N", 36, 50), (0,), [3, 1]),
        ((2, 36, 1, 47), (1, 0), [0, 2, 0, 2]),
        (("N", 36, 3, 48), (1, 0), [0, 0, 0, 5]),
        (("N", 36, 49, 1), (0, 1), [1, 0, 2, 0]),
        ((1, 36, 8), (0,), [0, 0]),
    ],
)
def test_it_gives_what_it_gave(taps: int, shape: tuple[Any, ...], kernel: tuple[int, ...], pads: list[int]) -> None:
    for bias in (True, False):
        proto = convolution(shape, tuple(size or taps for size in kernel), pads=pads, bias=bias)
        graph, _ = written(proto)
        assert _form(graph) == 1
        x = builders.rng().standard_normal([3 if d == "N" else d for d in shape]).astype(np.float32)
        wanted, got = (builders.run(m, {"x": x})[0] for m in (proto, io.to_bytes(graph)))
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"strides": [2]}, "strides or dilations"),
        ({"dilations": [2]}, "strides or dilations"),
        ({"group": 4}, "it has groups"),
        ({"auto_pad": "SAME_UPPER"}, "padding is automatic"),
        ({"channels": 24}, "few channels"),
        ({"shape": ("N", 36, "L")}, "size of its data is not known"),
        ({"kernel": (11,)}, "kernel of 11"),
        ({"shape": ("N", 36, 40, 2), "kernel": (5, 1)}, "does not lie along the last axis"),
    ],
)
def test_what_has_no_such_form_is_left_with_the_reason(change: dict[str, Any], why: str) -> None:
    proto = convolution(**{"shape": ("N", 36, 50), "kernel": (5,), **change})
    graph, skips = written(proto)
    assert _form(graph) == 0 and len(skips) == 1 and why in skips[0]


def test_small_ones_and_kernels_along_both_axes_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(convolution(("N", 36, 9, 9), (3, 3)))[1] == []
    monkeypatch.setattr(winograd_conv, "LEAST_WORK", 10**9)
    assert "too small" in written(convolution(("N", 36, 50), (5,)))[1][0]


@pytest.mark.parametrize(
    ("costs", "than", "taken"),
    [
        (Costs(), "float", True),
        (Costs(kernel=(1, 0.95, 0.8)), "float", False),
        (Costs(whole=(1, 0.99, 0.8)), "float", False),
        (Costs(whole=(1, 0.6, 0.4), kernel=(1, 0.6, 0.4)), "float", True),
        (Costs(whole=(1, 0.6, 0.4), kernel=(1, 0.6, 0.4)), "integers", False),
        (Costs(whole=(1, 0.5, 0.4)), "integers", False),
        (Costs(), "integers", True),
        (Costs(whole=(1, 0.5, 0.48), kernel=(1, 0.5, 0.48)), "integers", True),  # as fast, and nothing lost
    ],
)
def test_it_is_taken_where_the_kernel_and_the_whole_are_faster(costs: Costs, than: str, taken: bool) -> None:
    graph, skips = written(convolution(("N", 36, 50), (5,)), costs=costs, than=than)
    assert bool(_form(graph)) == taken
    assert taken or "measured" in skips[0]


def test_nothing_is_rewritten_where_nothing_is_measured() -> None:
    outcome = WinogradConv().run(decode(convolution(("N", 36, 50), (5,))), PassContext())
    assert not outcome.changes


def test_the_file_keeps_the_weight_and_the_layer_its_name() -> None:
    proto = convolution((1, 64, 50), (5,), channels=64)
    graph, _ = written(proto)
    (layer,) = [found for found in layers(graph, load_operators()) if found.node == "conv"]
    assert (layer.op, layer.bytes, layer.precision) == ("Conv", 64 * 64 * 5 * 4, "float32")
    assert len(io.to_bytes(graph)) < 1.1 * len(proto.SerializeToString())
    stored = PassManager(Pipeline.parse("store-weights")).run(graph).graph
    assert len(io.to_bytes(stored)) < 0.4 * len(proto.SerializeToString())
    (layer,) = [found for found in layers(stored, load_operators()) if found.node == "conv"]
    assert (layer.bytes, layer.precision) == (64 * 64 * 5, "int8")
