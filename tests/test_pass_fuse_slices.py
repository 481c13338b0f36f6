"""Does a Conv on strided slices become one Conv on the image, and give what it gave?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.fuse_slices import FuseSlices
from onnxcomp.testing import check_pass

FLOAT = builders.FLOAT


def focus(
    offsets: list[tuple[int, int]],
    factor: tuple[int, int] = (2, 2),
    *,
    channels: int = 3,
    kernel: tuple[int, int] = (3, 3),
    size: tuple[int | str, int | str] = (12, 12),
    end: int = 2**63 - 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """x -> strided Slices, first rows then columns -> Concat -> Conv -> y."""
    weights: dict[str, np.ndarray] = {"end": np.int64([end]), "rows": np.int64([2]), "columns": np.int64([3])}
    nodes, parts = [], []
    for i, (a, b) in enumerate(offsets):
        weights |= {f"a{i}": np.int64([a]), f"b{i}": np.int64([b])}
        weights |= {"fa": np.int64([factor[0]]), "fb": np.int64([factor[1]])}
        nodes.append(helper.make_node("Slice", ["x", f"a{i}", "end", "rows", "fa"], [f"r{i}"], f"rows{i}"))
        nodes.append(helper.make_node("Slice", [f"r{i}", f"b{i}", "end", "columns", "fb"], [f"p{i}"], f"columns{i}"))
        parts.append(f"p{i}")
    weights["w"] = builders.normal(builders.rng(), 5, channels * len(offsets) // attributes.get("group", 1), *kernel)
    weights["b"] = np.arange(5, dtype=np.float32)
    nodes.append(helper.make_node("Concat", parts, ["c"], "concat", axis=1))
    nodes.append(helper.make_node("Conv", ["c", "w", "b"], ["y"], "conv", **attributes))
    ports = [builders.value("x", FLOAT, ["N", channels, *size])], [builders.value("y", FLOAT, None)]
    return builders.model(nodes, *ports, weights, check=False)


ALL = [(0, 0), (1, 0), (0, 1), (1, 1)]


def same(proto: onnx.ModelProto, **feeds: Any) -> tuple[Any, Any]:
    result = PassManager(Pipeline((FuseSlices(),))).run(decode(proto))
    inputs = builders.feeds_of(proto)
    wanted, got = (builders.run(m, inputs)[0] for m in (proto, io.to_bytes(result.graph)))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    return result.graph, result.records[0]


@given(
    order=st.permutations(ALL),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    size=st.sampled_from([(12, 12), (8, 14), ("H", "W")]),
)
def test_any_order_kernel_stride_and_padding(
    order: list[tuple[int, int]], kernel: Any, stride: Any, pads: Any, size: Any
) -> None:
    proto = focus(order, kernel=kernel, size=size, strides=list(stride), pads=list(pads))
    graph, record = same(proto)
    assert graph.operators() == {"Conv": 1}
    assert record.changes == 1


def test_factors_need_not_be_equal() -> None:
    offsets = [(a, b) for b in range(2) for a in range(3)]
    graph, _ = same(focus(offsets, (3, 2), pads=[1, 1, 1, 1]))
    assert graph.operators() == {"Conv": 1}
    assert graph.nodes[0].inputs[1].shape == (5, 3, 9, 6)


def test_space_to_depth_is_the_same() -> None:
    weights = {"w": builders.normal(builders.rng(), 5, 27, 3, 3)}
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["s"], "s2d", blocksize=3),
        helper.make_node("Conv", ["s", "w"], ["y"], "conv", pads=[1, 0, 1, 0]),
    ]
    ports = [builders.value("x", FLOAT, ["N", 3, 9, 12])], [builders.value("y", FLOAT, None)]
    graph, _ = same(builders.model(nodes, *ports, weights, check=False))
    assert graph.operators() == {"Conv": 1}


@pytest.mark.parametrize(
    "proto",
    [
        focus(ALL[:3]),
        focus([(0, 0)] * 4),
        focus(ALL, end=10),
        focus(ALL, group=1, size=(12, 12), channels=3, end=11),
    ],
    ids=["an offset is missing", "one offset four times", "slices end early", "slices end one early"],
)
def test_what_is_no_whole_image_stays(proto: onnx.ModelProto) -> None:
    outcome = FuseSlices().run(decode(proto), PassContext())
    assert not outcome.changes


@pytest.mark.parametrize(
    ("attributes", "words"),
    [({"dilations": [2, 2]}, "dilations"), ({"auto_pad": "SAME_UPPER"}, "automatic")],
)
def test_what_cannot_fuse_says_why(attributes: dict[str, Any], words: str) -> None:
    outcome = FuseSlices().run(decode(focus(ALL, **attributes)), PassContext())
    assert [(s.node, words in s.why) for s in outcome.skips] == [("conv", True)]


def test_slices_that_others_read_stay() -> None:
    proto = focus(ALL)
    proto.graph.node.append(helper.make_node("Relu", ["p1"], ["z"], "relu"))
    proto.graph.output.append(builders.value("z", FLOAT, None))
    graph, _ = same(proto)
    assert graph.operators() == {"Conv": 1, "Relu": 1, "Slice": 2}


def test_contract() -> None:
    check_pass(FuseSlices(), focus(ALL))


def test_yolox_stem(assets: Path) -> None:
    result = PassManager(Pipeline.parse("fuse-slices")).run(io.load(assets / "models" / "yolox-nano.onnx"))
    assert result.changes == 1
    assert "Slice" not in result.graph.operators()
    stem = result.graph.nodes[0]
    assert (stem.op, stem.inputs[0].name, stem.inputs[1].shape[2:]) == ("Conv", "images", (6, 6))
