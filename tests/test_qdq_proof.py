"""Do layers that quantize-qdq calls int8 run on integers, and do integer kernels compute what Q and DQ say?

One small net a row: an operator between convolutions or products, over its attributes. ONNX Runtime fuses Q and DQ
around many operators unasked, some of its integer kernels compute something else, and some fusions end in a model that
it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import builders
import numpy as np
import pytest
from feeds import Feeds
from nets import Net
from onnx import ModelProto

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.qdq import proof
from onnxcomp.results import PassRecord
from onnxcomp.runtime import kernels
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.taps import Sessions

TABLE = "quantize-qdq{placement=table,min_sqnr=0}"


@dataclass(frozen=True)
class Row:
    """A net, and how many of its layers can run on integers.

    Attributes:
        build: the net; gives the name of its output.
        integer: products that run on integers.
        opset: of the model.
    """

    build: Callable[[Net], str]
    integer: int
    opset: int = 17


def around(op: str, *, channels: int = 8, shape: tuple[int, ...] = (8, 8), **attrs: Any) -> Callable[[Net], str]:
    """An operator between two convolutions."""

    def build(net: Net) -> str:
        x = net.input("N", channels, *shape)
        x = net.op("Relu", net.conv(x, channels, channels))
        x = net.op(op, x, **attrs)
        return str(net.conv(x, channels, 4, 1, pads=[0] * 4))

    return build


def dense(*shape: int | str, bias: tuple[int, ...] = (24,), first: bool = True) -> Callable[[Net], str]:
    """MatMul, Add, Relu, MatMul, Add."""

    def build(net: Net) -> str:
        x = net.input(*shape)
        for into, width in ((shape[-1], 24), (24, 24)):
            x = net.op("MatMul", x, net.weight(into, width, scale=into**-0.5))
            added = net.weight(*bias)
            x = net.op("Relu", net.op("Add", x, added) if first else net.op("Add", added, x))
        return str(x)

    return build


def convs(dims: int, group: int, into: int, out: int, **attrs: Any) -> Callable[[Net], str]:
    """Two convolutions of 1, 2 or 3 dimensions, the first one with the attributes."""

    def build(net: Net) -> str:
        x = net.input("N", into, *[8] * dims)
        w = net.weight(out, into // group, *[3] * dims)
        x = net.op(
            "Relu", net.op("Conv", x, w, net.weight(out, scale=0.1), group=group, **{"pads": [1] * 2 * dims, **attrs})
        )
        return str(net.op("Conv", x, net.weight(8, out, *[1] * dims)))

    return build


def gemms(**attrs: Any) -> Callable[[Net], str]:
    """Two Gemm, the first one with the attributes."""

    def build(net: Net) -> str:
        x = net.input("N", 16)
        x = net.op("Relu", net.op("Gemm", x, net.weight(16, 16), net.weight(16), **attrs))
        return str(net.op("Gemm", x, net.weight(16, 10)))

    return build


def transposed(group: int, **attrs: Any) -> Callable[[Net], str]:
    """ConvTranspose between two convolutions."""

    def build(net: Net) -> str:
        x = net.op("Relu", net.conv(net.input("N", 8, 6, 6), 8, 8))
        w = net.op("ConvTranspose", x, net.weight(8, 8 // group, 2, 2), group=group, strides=[2, 2], **attrs)
        return str(net.conv(w, 8, 4))

    return build


def both(op: str, *, constant: tuple[int, ...] | None = None, **attrs: Any) -> Callable[[Net], str]:
    """An operator of two inputs, both from convolutions or one a constant."""

    def build(net: Net) -> str:
        x = net.input("N", 8, 8, 8)
        one = net.op("Relu", net.conv(x, 8, 8))
        other = net.positive(*constant) if constant is not None else net.conv(x, 8, 8)
        made = net.op(op, one, other, **attrs)
        return str(net.conv(made, 16 if op == "Concat" and attrs.get("axis") == 1 else 8, 8))

    return build


def resized(mode: str, **attrs: Any) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        x = net.op("Relu", net.conv(net.input("N", 8, 6, 6), 8, 8))
        scales = net.const([1.0, 1.0, 2.0, 2.0], np.float32)
        return str(net.conv(net.op("Resize", x, "", scales, mode=mode, **attrs), 8, 4))

    return build


def where() -> Callable[[Net], str]:
    def build(net: Net) -> str:
        x = net.input("N", 8, 8, 8)
        return str(
            net.conv(
                net.op("Where", net.op("Greater", x, net.const(0.3, np.float32)), net.conv(x, 8, 8), net.conv(x, 8, 8)),
                8,
                8,
            )
        )

    return build


def parts(axis: int, share: tuple[int, ...]) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        x = net.op("Relu", net.conv(net.input("N", 8, 8, 8), 8, 8))
        one, two = net.op("Split", x, net.const(share), outputs=2, axis=axis)
        return str(net.op("Concat", net.conv(one, share[0], 8), net.conv(two, share[1], 8), axis=1))

    return build


def attention() -> Callable[[Net], str]:
    def build(net: Net) -> str:
        x = net.input("N", 6, 16)
        q, k, v = (net.dense(x, 16, 16) for _ in range(3))
        scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
        return str(net.dense(net.op("MatMul", net.op("Softmax", scores, axis=-1), v), 16, 16))

    return build


def before_relu(op: str, activation: str) -> Callable[[Net], str]:
    """A product, an activation function and a float operator behind it."""

    def build(net: Net) -> str:
        x, w = net.input("N", 64), net.weight(64, 48)
        x = net.op(op, x, w) if op == "MatMul" else net.op(op, x, w, net.weight(48))
        limits = [net.const(end, np.float32) for end in (0.0, 6.0)] if activation == "Clip" else []
        return str(net.op("Tanh", net.op(activation, x, *limits)))

    return build


SAME = {"pads": [1, 1, 1, 1]}
ROWS = {
    "matmul-rank2": Row(dense("N", 16), 2),
    "matmul-rank2-fixed": Row(dense(4, 16), 2),
    "matmul-rank2-bias-first": Row(dense("N", 16, first=False), 2),
    "matmul-rank2-bias-1xN": Row(dense("N", 16, bias=(1, 24)), 2),
    "matmul-rank2-bias-one": Row(dense("N", 16, bias=(1,)), 2),
    "matmul-rank2-bias-a-row": Row(dense(4, 16, bias=(4, 1)), 0),
    "matmul-rank3": Row(dense("N", 5, 16), 2),
    "matmul-rank3-fixed": Row(dense(2, 5, 16), 2),
    "matmul-rank4-fixed": Row(dense(1, 2, 5, 16), 2),
    "matmul-rank4": Row(dense("N", 2, 5, 16), 2),
    "gemm": Row(gemms(), 2),
    "gemm-transB": Row(gemms(transB=1), 2),
    "gemm-alpha": Row(gemms(alpha=0.5), 1),
    "gemm-beta": Row(gemms(beta=0.5), 1),
    "matmul-relu-float": Row(before_relu("MatMul", "Relu"), 1),
    "matmul-clip-float": Row(before_relu("MatMul", "Clip"), 1),
    "gemm-relu-float": Row(before_relu("Gemm", "Relu"), 1),
    "gemm-clip-float": Row(before_relu("Gemm", "Clip"), 1),
    "conv1d": Row(convs(1, 1, 8, 16), 2),
    "conv3d": Row(convs(3, 1, 8, 16), 2),
    "conv1d-depthwise": Row(convs(1, 8, 8, 8), 2),
    "conv2d-multiplier": Row(convs(2, 8, 8, 16), 2),
    "conv2d-grouped": Row(convs(2, 2, 8, 16), 2),
    "conv2d-dilated": Row(convs(2, 1, 8, 16, dilations=[2, 2], pads=[2] * 4), 2),
    "conv2d-strided": Row(convs(2, 1, 8, 16, strides=[2, 2]), 2),
    "conv2d-same-upper": Row(convs(2, 1, 8, 16, auto_pad="SAME_UPPER", pads=None), 2),
    "conv2d-uneven-pads": Row(convs(2, 1, 8, 16, pads=[0, 1, 2, 1]), 2),
    "transposed": Row(transposed(1), 2),
    "transposed-depthwise": Row(transposed(8), 2),
    "transposed-grouped": Row(transposed(2), 2),
    "add": Row(both("Add"), 3),
    "add-constant": Row(both("Add", constant=(1, 8, 1, 1)), 2),
    "mul": Row(both("Mul"), 3),
    "mul-constant": Row(both("Mul", constant=(8, 1, 1)), 2),
    "max": Row(both("Max"), 3),
    "concat": Row(both("Concat", axis=1), 3),
    "concat-rows": Row(both("Concat", axis=2), 3),
    "concat-last": Row(both("Concat", axis=-1), 3),
    "prelu": Row(both("PRelu", constant=(8, 1, 1)), 2),
    "where": Row(where(), 3),
    "split": Row(parts(1, (4, 4)), 3),
    "split-uneven": Row(parts(1, (2, 6)), 3),
    "attention": Row(attention(), 4),
    "resize-nearest": Row(resized("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"), 2),
    "resize-linear": Row(resized("linear"), 2),
    "resize-cubic": Row(resized("cubic"), 2),
    "average": Row(around("AveragePool", kernel_shape=[3, 3]), 2),
    "average-counted": Row(around("AveragePool", kernel_shape=[3, 3], count_include_pad=1, **SAME), 2),
    "average-ceil": Row(around("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), 2),
    "average-ceil-padded": Row(around("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, **SAME), 2),
    "average-ceil-counted": Row(
        around("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1), 2
    ),
    "average-same-upper": Row(around("AveragePool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"), 2),
    "average-same-lower": Row(around("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_LOWER"), 2),
    "average-same-counted": Row(
        around("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER", count_include_pad=1), 2
    ),
    "average-dilated": Row(around("AveragePool", kernel_shape=[3, 3], dilations=[2, 2]), 2, opset=19),
    "average-global": Row(around("GlobalAveragePool"), 2),
    "maxpool": Row(around("MaxPool", kernel_shape=[3, 3], strides=[2, 2]), 2),
    "maxpool-padded": Row(around("MaxPool", kernel_shape=[3, 3], **SAME), 2),
    "maxpool-ceil": Row(around("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), 2),
    "leakyrelu": Row(around("LeakyRelu", alpha=0.2), 2),
    "sigmoid": Row(around("Sigmoid"), 2),
    "hardswish": Row(around("HardSwish"), 2),
    "tanh": Row(around("Tanh"), 2),
    "softmax-last": Row(around("Softmax", axis=-1), 2),
    "softmax-rows": Row(around("Softmax", axis=2), 2),
    "softmax-old": Row(around("Softmax", axis=1), 2, opset=11),
    "transpose": Row(around("Transpose", perm=[0, 1, 3, 2]), 2),
    "lrn": Row(around("LRN", size=3), 2),
    "reduce-mean": Row(around("ReduceMean", axes=[2, 3], keepdims=1), 2),
}


def quantized(before: ModelProto, feeds: dict[str, np.ndarray], spec: str = TABLE) -> tuple[ModelProto, PassRecord]:
    """The model after the passes, and the record of the last one."""
    result = PassManager(Pipeline.parse(spec)).run(decode(before), PassContext(calibration=Feeds(feeds)))
    return encode(result.graph), result.records[-1]


def net_of(name: str) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A row's net and samples for it."""
    net = Net(opset=ROWS[name].opset)
    before = net.model(ROWS[name].build(net))
    return before, builders.feeds_of(before, batch=16)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_called_int8_runs_on_integers_and_computes_what_q_and_dq_say(name: str) -> None:
    before, feeds = net_of(name)
    after, record = quantized(before, feeds)
    ran = kernels.ran(decode(after), feeds)
    reported = {change.node for change in record.details}
    assert {node for node in reported if ran[node].integer} == reported
    assert len(reported) == ROWS[name].integer
    exact = builders.run(before, feeds)[0]
    literal, fused = builders.run(after, feeds, optimized=False)[0], builders.run(after, feeds)[0]
    assert builders.sqnr_db(literal, fused) > 60
    assert builders.sqnr_db(exact, fused) > 28


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("matmul-rank2", "QGemm"), ("matmul-rank3-fixed", "QGemm"), ("matmul-rank3", "MatMulIntegerToFloat")],
)
def test_a_product_and_its_bias_have_the_form_that_is_fused(name: str, kernel: str) -> None:
    before, feeds = net_of(name)
    after, record = quantized(before, feeds)
    ran = kernels.ran(decode(after), feeds)
    assert [ran[change.node].op for change in record.details][-1] == kernel
    assert "2 of 2 MatMul quantized" in record.summary


def test_a_product_that_stays_float_keeps_its_form() -> None:
    before, feeds = net_of("matmul-rank3-fixed")
    first = next(node.name for node in before.graph.node if node.op_type == "MatMul")
    after, _ = quantized(before, feeds, f'quantize-qdq{{placement=table,min_sqnr=0,exclude=["{first}"]}}')
    kept = [node.op_type for node in after.graph.node if node.name.startswith(first[:2])]
    assert kept == ["MatMul"]
    nothing, _ = quantized(before, feeds, "quantize-qdq{placement=table,min_sqnr=200}")
    assert builders.ops(nothing) == builders.ops(before)
    assert all((a == b).all() for a, b in zip(builders.run(before, feeds), builders.run(nothing, feeds), strict=True))


@pytest.mark.parametrize(
    ("name", "fence"),
    [
        ("average-dilated", True),
        ("average-ceil-counted", True),
        ("transposed", True),
        ("average", False),
        ("tanh", False),
    ],
)
def test_a_float_node_that_would_be_fused_wrongly_is_kept_apart(name: str, fence: bool) -> None:
    before, feeds = net_of(name)
    after, record = quantized(before, feeds)
    assert ("Sum" in builders.ops(after)) == fence
    assert any("unasked" in note for note in record.notes) == fence


def test_a_layer_that_would_run_in_float_is_named_with_the_kernel_that_runs_it() -> None:
    before, feeds = net_of("matmul-rank2-bias-a-row")
    after, record = quantized(before, feeds)
    assert builders.ops(after) == builders.ops(before)
    assert all("in float between Q and DQ" in skip.why for skip in record.skips)
    assert record.summary.startswith("0 of 2 MatMul quantized")


def test_a_whole_that_does_not_run_where_its_parts_do_is_no_error() -> None:
    """ONNX Runtime carries its layout through Pad and permutes the pads of all axes, where only some are given."""
    net = Net(opset=18)
    x = net.conv(net.input("N", 1, 8, 6), 1, 4)
    net.op(
        "Reshape", x, net.op("Concat", net.op("Gather", net.op("Shape", x), net.const([0])), net.const([-1]), axis=0)
    )
    padded = net.op("Pad", x, net.const([1, 1]), net.const(0.0, np.float32), net.const([-1]))
    before = net.model(net.conv(padded, 4, 8, 1))
    feeds = builders.feeds_of(before, batch=16)
    after, record = quantized(before, feeds)
    assert builders.sqnr_db(builders.run(before, feeds)[0], builders.run(after, feeds)[0]) > 28
    assert any("does not run the whole" in skip.why for skip in record.skips)


def test_what_proves_integers_keeps_no_memory_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A literal run hands out every tensor at once; an arena would hold what computed them besides."""
    kept: list[bool] = []
    original = proof._Probe.__init__

    def watched(self: proof._Probe, graph: Graph, planned: Any, feed: Any, sessions: Sessions) -> None:
        class Watching(Sessions):
            def of(self, graph: Graph, **given: Any) -> Session:
                kept.append(given.get("arena", True))
                return super().of(graph, **given)

        original(self, graph, planned, feed, Watching(sessions.threads))

    monkeypatch.setattr(proof._Probe, "__init__", watched)
    _, record = quantized(*net_of("average"))
    assert record.changes and len(kept) >= 2 and not any(kept)


def test_kernels_are_traced_to_the_nodes_they_came_from() -> None:
    origins = kernels.Origins(decode(net_of("matmul-rank2")[0]))
    for name in ("n1_MatMul", "fused n1_MatMul/MatMulAddFusion", "n1_MatMul_token_7", "n1_MatMul/QuickGeluFusion/"):
        assert origins.of(name) == "n1_MatMul"
    assert origins.of("n1_MatMul.0_nchwc") == "n1_MatMul"
    assert origins.of("ReorderInput_token_3") == ""
