"""Does a Conv that spans its image's height read the height as channels, and give what it gave?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from feeds import Feeds
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.flatten_conv import FlattenConv
from onnxcomp.testing import check_pass, dump

FLOAT = builders.FLOAT
GOLDEN = Path(__file__).parent / "golden"
SMALL = FlattenConv(least=1)  # small models stand for large ones


def spanning(
    channels: int = 9,
    size: tuple[int | str, int | str] = (5, 8),
    kernel: tuple[int, int] = (5, 3),
    *,
    batch: int | str = "N",
    bias: bool = True,
    **attributes: Any,
) -> onnx.ModelProto:
    """x -> Relu -> Conv -> y."""
    group = attributes.get("group", 1)
    weights = {"w": builders.normal(builders.rng(), 3 * group, channels // group, *kernel)}
    if bias:
        weights["b"] = np.arange(3 * group, dtype=np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Conv", ["r", *weights], ["y"], "conv", **attributes),
    ]
    ports = [builders.value("x", FLOAT, [batch, channels, *size])], [builders.value("y", FLOAT, None)]
    return builders.model(nodes, *ports, weights, check=False)


def flattened(proto: onnx.ModelProto, feeds: dict[str, Any] | None = None) -> Graph:
    result = PassManager(Pipeline((SMALL,))).run(decode(proto))
    feeds = builders.feeds_of(proto) if feeds is None else feeds
    wanted, got = (builders.run(m, feeds)[0] for m in (proto, io.to_bytes(result.graph)))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    return result.graph


def skips(item: FlattenConv, proto: onnx.ModelProto) -> list[tuple[str, str]]:
    outcome = item.run(decode(proto), PassContext())
    assert not outcome.changes
    return [(skip.node, skip.why) for skip in outcome.skips]


@given(
    channels=st.sampled_from([9, 10, 12, 15, 17]),
    height=st.integers(2, 6),
    width=st.integers(7, 9),
    reach=st.integers(1, 3),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    batch=st.sampled_from([1, 2, "N"]),
    bias=st.booleans(),
    unknown=st.booleans(),
)
def test_any_size_stride_and_padding(
    channels: int,
    height: int,
    width: int,
    reach: int,
    strides: tuple[int, int],
    dilation: int,
    pads: tuple[int, int],
    batch: int | str,
    bias: bool,
    unknown: bool,
) -> None:
    proto = spanning(
        channels,
        (height, "W" if unknown else width),
        (height, reach),
        batch=batch,
        bias=bias,
        strides=list(strides),
        dilations=[1, dilation],
        pads=[0, pads[0], 0, pads[1]],
    )
    shape = (batch if isinstance(batch, int) else 3, channels, height, width)
    graph = flattened(proto, {"x": builders.normal(builders.rng(), *shape)})
    assert graph.operators() == {"Relu": 1, "Reshape": 1, "Conv": 1}
    assert graph.nodes[-1].inputs[1].shape == (3, channels * height, 1, reach)


def test_an_empty_batch_stays_one() -> None:
    flattened(spanning(), {"x": np.zeros((0, 9, 5, 8), np.float32)})


def test_valid_padding_and_a_conv_without_attributes() -> None:
    for attributes in ({"auto_pad": "VALID"}, {"kernel_shape": [5, 3]}, {}):
        assert flattened(spanning(**attributes)).operators()["Reshape"] == 1


def test_a_second_time_changes_nothing() -> None:
    once = PassManager(Pipeline((SMALL,))).run(decode(spanning())).graph
    again = PassManager(Pipeline((SMALL,))).run(once)
    assert not again.changes
    assert io.to_bytes(again.graph) == io.to_bytes(once)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (spanning(pads=[1, 0, 0, 0]), "pads the axis"),
        (spanning(pads=[0, 0, 1, 0]), "pads the axis"),
        (spanning(auto_pad="SAME_UPPER"), "automatic"),
        (spanning(group=3), "groups"),
        (spanning(size=(5, 3)), "the whole image"),
        (spanning(16), "no gain"),
        (spanning(7), "no gain"),
    ],
)
def test_what_has_to_stay_says_why(proto: onnx.ModelProto, words: str) -> None:
    ((node, why),) = skips(SMALL, proto)
    assert node == "conv"
    assert words in why


def test_small_kernels_stay_by_default() -> None:
    ((_, why),) = skips(FlattenConv(), spanning())
    assert "no gain" in why
    assert PassManager(Pipeline((FlattenConv(),))).run(decode(spanning(9, (64, 8), (64, 3)))).changes == 1


@pytest.mark.parametrize(
    "proto",
    [spanning(size=("H", 8)), spanning(size=(6, 8)), spanning(size=(1, 8), kernel=(1, 3))],
    ids=["height unknown", "image higher than the kernel", "height 1"],
)
def test_what_spans_nothing_is_not_its_concern(proto: onnx.ModelProto) -> None:
    assert skips(SMALL, proto) == []


def test_a_declared_shape_that_nothing_enforces_is_not_believed() -> None:
    proto = spanning(size=("H", 8))
    proto.graph.value_info.append(builders.value("r", FLOAT, ["N", 9, 5, 8]))
    assert skips(SMALL, proto) == []


def test_a_shared_weight_stays() -> None:
    proto = spanning()
    proto.graph.node.append(helper.make_node("Conv", ["x", "w"], ["z"], "other"))
    proto.graph.output.append(builders.value("z", FLOAT, None))
    assert skips(SMALL, proto) == [("conv", "its weight is shared"), ("other", "its weight is shared")]


def test_a_computed_weight_stays() -> None:
    proto = spanning()
    proto.graph.node.insert(0, helper.make_node("Abs", ["w"], ["v"], "abs"))
    proto.graph.node[-1].input[1] = "v"
    assert skips(SMALL, proto) == [
        ("conv", "the weight of Conv conv comes through Abs abs: fold-constants makes it a plain one")
    ]


def test_excluded_by_name() -> None:
    assert skips(FlattenConv(least=1, exclude=("conv",)), spanning()) == []


def test_golden_graph() -> None:
    graph = flattened(spanning(pads=[0, 1, 0, 1], strides=[2, 1]))
    assert dump(graph) == (GOLDEN / "flatten_conv.txt").read_text()


@pytest.mark.parametrize("first", ["flatten-conv{least=1}", "cleanup"])
def test_int8_and_pruning_come_as_without_it(first: str) -> None:
    """A flat Conv is quantized as any other; its channels are those of its neighbours no more and simply stay."""
    proto = spanning(20, (16, 64), (16, 3))
    feeds = {"x": np.random.default_rng(0).standard_normal((32, 20, 16, 64)).astype(np.float32)}
    spec = f"{first},prune-channels{{ratio=0.3}},quantize-qdq{{placement=table}}"
    context = PassContext(calibration=Feeds(feeds))
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), context)
    x = {"x": feeds["x"][:1]}
    wanted, got = (builders.run(m, x)[0] for m in (proto, io.to_bytes(result.graph)))
    assert "QuantizeLinear" in result.graph.operators()
    assert builders.sqnr_db(wanted, got) > 25


def test_contract() -> None:
    check_pass(SMALL, spanning())
