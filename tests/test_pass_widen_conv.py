"""Does a Conv over an image of width 1 lie down, and give what it gave?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.widen_conv import WidenConv
from onnxcomp.testing import check_pass

FLOAT = builders.FLOAT


def upright(
    kernel: tuple[int, int] = (5, 1),
    size: tuple[int | str, int | str] = (24, 1),
    *,
    channels: int = 6,
    opset: int = 17,
    turned: bool = False,
    twice: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """x (-> Transpose) -> Conv -> Relu -> y."""
    group = attributes.get("group", 1)
    weights = {"w": builders.normal(builders.rng(), 4 * group, channels // group, *kernel)}
    weights["b"] = np.arange(4 * group, dtype=np.float32)
    nodes = [helper.make_node("Transpose", ["x"], ["t"], "turn", perm=[0, 2, 1, 3])] if turned else []
    nodes.append(helper.make_node("Conv", ["t" if turned else "x", "w", "b"], ["c"], "conv", **attributes))
    nodes.append(helper.make_node("Relu", ["c"], ["y"], "relu"))
    outputs = [builders.value("y", FLOAT, None)]
    if twice:
        nodes.append(helper.make_node("Conv", ["x", "w", "b"], ["z"], "other", **attributes))
        outputs.append(builders.value("z", FLOAT, None))
    shape = ["N", size[0], channels, size[1]] if turned else ["N", channels, *size]
    return builders.model(nodes, [builders.value("x", FLOAT, shape)], outputs, weights, opset=opset, check=False)


def widened(proto: onnx.ModelProto, x: np.ndarray, spec: str = "widen-conv,cleanup") -> Graph:
    result = PassManager(Pipeline.parse(spec)).run(decode(proto))
    wanted, got = (builders.run(m, {"x": x})[0] for m in (proto, io.to_bytes(result.graph)))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    return result.graph


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [2, 0, 1, 0]},
        {"strides": [2, 1], "dilations": [3, 1], "pads": [4, 0, 4, 0]},
        {"strides": [3, 2]},
        {"group": 3},
        {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
        {"kernel_shape": [5, 1]},
        {"opset": 9},
        {"opset": 21},
    ],
)
@pytest.mark.parametrize("size", [24, "L"])
def test_it_lies_down_whatever_its_attributes(size: Any, attributes: dict[str, Any]) -> None:
    x = builders.rng().standard_normal((2, 6, 24, 1)).astype(np.float32)
    graph = widened(upright(size=(size, 1), **attributes), x)
    conv = next(node for node in graph.nodes if node.op == "Conv")
    assert conv.inputs[1].shape[2:] == (1, 5)


def test_a_transpose_in_front_takes_the_turn_in() -> None:
    x = builders.rng().standard_normal((2, 24, 6, 1)).astype(np.float32)
    graph = widened(upright(turned=True), x)
    assert graph.operators()["Transpose"] == 2
    assert graph.nodes[0].attrs["perm"] == [0, 2, 3, 1]


def test_its_activation_lies_down_with_it_and_neighbours_need_no_turn_between() -> None:
    weights = {f"w{i}": builders.normal(builders.rng(i), 6, 6, 3, 1) for i in range(2)} | {"k": np.float32(0.5)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1, 0, 1, 0]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Mul", ["k", "b"], ["c"], "half"),
        helper.make_node("Conv", ["c", "w1"], ["y"], "second", pads=[1, 0, 1, 0]),
    ]
    ports = [builders.value("x", FLOAT, ["N", 6, 24, 1])], [builders.value("y", FLOAT, ["N", 6, 24, 1])]
    proto = builders.model(nodes, *ports, weights)
    graph = widened(proto, builders.rng().standard_normal((2, 6, 24, 1)).astype(np.float32))
    assert [node.op for node in graph.nodes] == ["Transpose", "Conv", "Relu", "Mul", "Conv", "Transpose"]


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (upright(size=(24, 3)), "1 wide"),
        (upright(size=(24, "W")), "1 wide"),
        (upright(pads=[0, 1, 0, 0]), "pads the width"),
        (upright(twice=True), "shared"),
    ],
    ids=["a wide image", "an image of unknown width", "a padded width", "a shared weight"],
)
def test_what_does_not_fit_stays_and_says_why(proto: onnx.ModelProto, words: str) -> None:
    outcome = WidenConv().run(decode(proto), PassContext())
    assert not outcome.changes
    assert all(words in skip.why for skip in outcome.skips) and outcome.skips


def test_kernels_of_other_forms_and_other_providers_are_not_looked_at() -> None:
    for proto, target in ((upright((3, 3), (24, 8)), "cpu"), (upright((1, 1)), "cpu"), (upright(), "tensorrt")):
        outcome = WidenConv().run(decode(proto), PassContext(target=target))
        assert not outcome.changes and not outcome.skips


def test_the_contract() -> None:
    check_pass(WidenConv)
    check_pass(WidenConv, upright())
