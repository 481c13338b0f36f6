"""Does a fused BatchNormalization give what it gave on its own, and is every one that stays explained?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
import random_models
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.guarantee import relative_error
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.fuse_batchnorm import FuseBatchNorm

FLOAT = builders.FLOAT


def fuse(proto: onnx.ModelProto, **feeds: int) -> tuple[onnx.ModelProto, Any]:
    """The fused model, checked against the original on random feeds, and the pass's record."""
    result = PassManager(Pipeline((FuseBatchNorm(),)), verify=False).run(decode(proto))
    after = encode(result.graph)
    inputs = builders.feeds_of(proto)
    for wanted, got in zip(builders.run(proto, inputs), builders.run(after, inputs), strict=True):
        scale = float(np.abs(wanted).max()) or 1.0
        assert wanted.dtype == got.dtype
        np.testing.assert_allclose(got / scale, wanted / scale, atol=2e-5 if wanted.dtype == np.float32 else 1e-2)
    return after, result.records[0]


def chain(nodes: list[NodeProto], weights: dict[str, np.ndarray], shape: list[int], **options: Any) -> onnx.ModelProto:
    """A model from x to y whose output has no stated shape."""
    return builders.model(
        nodes,
        [builders.value("x", FLOAT, ["N", *shape])],
        [builders.value("y", FLOAT, None)],
        weights,
        check=False,
        **options,
    )


def norm(name: str, x: str, y: str, channels: int, weights: dict[str, np.ndarray], **attributes: Any) -> NodeProto:
    values = builders.norm_weights(name, channels, builders.rng(len(name)))
    weights.update(values)
    return helper.make_node("BatchNormalization", [x, *values], [y], name, **attributes)


@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    group=st.integers(1, 3),
    per_in=st.integers(1, 3),
    per_out=st.integers(1, 3),
    kernel=st.integers(1, 3),
    dims=st.integers(1, 2),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
)
def test_norm_after_any_convolution(
    op: str, group: int, per_in: int, per_out: int, kernel: int, dims: int, bias: bool, stride: int, pad: int
) -> None:
    generator = builders.rng(group * 100 + per_in * 10 + per_out)
    channels_in, channels_out = group * per_in, group * per_out
    shape = (channels_out, per_in) if op == "Conv" else (channels_in, per_out)
    weights = {"w": builders.normal(generator, *shape, *[kernel] * dims)}
    if bias:
        weights["b"] = builders.normal(generator, channels_out, scale=0.5)
    pads = [min(pad, kernel - 1)] * 2 * dims
    nodes = [
        helper.make_node(op, ["x", *weights], ["c"], "conv", group=group, strides=[stride] * dims, pads=pads),
        norm("bn", "c", "y", channels_out, weights),
    ]
    after, record = fuse(chain(nodes, weights, [channels_in, *[7] * dims]))
    assert builders.ops(after) == {op: 1}
    assert record.skips == ()
    assert after.graph.output[0].name == "y"


@given(
    trans_b=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, 2.0]),
    bias=st.sampled_from([None, (), (1,), (5,), (1, 5), (2, 1), (2, 5)]),
)
def test_norm_after_any_gemm(trans_b: bool, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    generator = builders.rng(3)
    weights = {"w": builders.normal(generator, *((5, 4) if trans_b else (4, 5)))}
    if bias is not None:
        weights["b"] = np.asarray(generator.standard_normal(bias), np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", *weights], ["c"], "fc", transB=int(trans_b), alpha=alpha, beta=beta),
        norm("bn", "c", "y", 5, weights),
    ]
    after, _ = fuse(chain(nodes, weights, [4]))
    assert builders.ops(after) == {"Gemm": 1}


@pytest.mark.parametrize("bias", [False, True])
def test_norm_after_matmul_leaves_one_add(bias: bool) -> None:
    weights = {"w": builders.normal(builders.rng(), 4, 5)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], "mm")]
    if bias:
        weights["b"] = np.arange(5, dtype=np.float32)
        nodes.append(helper.make_node("Add", ["b", "m"], ["a"], "add"))
    nodes.append(norm("bn", nodes[-1].output[0], "y", 5, weights))
    after, _ = fuse(chain(nodes, weights, [4]))
    assert builders.ops(after) == {"Add": 1, "MatMul": 1}


def test_decomposed_norm_fuses_and_a_plain_bias_behind_a_matmul_stays() -> None:
    generator = builders.rng()
    weights = {
        "w": builders.normal(generator, 6, 3, 3, 3),
        "mean": builders.normal(generator, 6, 1, 1, scale=1.0),
        "std": generator.uniform(0.5, 2, (1, 6, 1, 1)).astype(np.float32),
        "gamma": generator.uniform(0.5, 2, (6, 1, 1)).astype(np.float32),
        "beta": np.float32(0.25),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Sub", ["c", "mean"], ["s"], "sub"),
        helper.make_node("Div", ["s", "std"], ["d"], "div"),
        helper.make_node("Mul", ["gamma", "d"], ["m"], "mul"),
        helper.make_node("Sub", ["beta", "m"], ["y"], "flip"),
    ]
    after, record = fuse(chain(nodes, weights, [3, 8, 8]))
    assert builders.ops(after) == {"Conv": 1}
    assert record.changes == 4
    weights = {"w": builders.normal(generator, 4, 5), "b": np.arange(5, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
        helper.make_node("Add", ["m", "b"], ["y"], "add"),
    ]
    _, record = fuse(chain(nodes, weights, [4]))
    assert record.changes == 0


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8), (6, 8, 8), (2, 6, 1, 1), (1, 1, 1, 1, 1)])
def test_operand_that_varies_elsewhere_stays(shape: tuple[int, ...]) -> None:
    generator = builders.rng()
    weights = {"w": builders.normal(generator, 6, 3, 1, 1), "m": builders.normal(generator, *shape, scale=1.0)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("Mul", ["c", "m"], ["y"], "mul")]
    after, record = fuse(chain(nodes, weights, [3, 8, 8]))
    assert builders.ops(after) == {"Conv": 1, "Mul": 1}
    assert record.changes == 0


@pytest.mark.parametrize(
    ("op", "attributes", "shifted", "fused"),
    [
        ("Conv", {}, True, True),
        ("Conv", {"group": 2}, True, True),
        ("Conv", {"pads": [1, 1, 1, 1]}, True, False),
        ("Conv", {"pads": [1, 1, 1, 1]}, False, True),
        ("Conv", {"auto_pad": "SAME_UPPER"}, True, False),
        ("Conv", {"auto_pad": "VALID"}, True, True),
        ("ConvTranspose", {}, True, False),
        ("ConvTranspose", {"group": 2}, False, True),
    ],
)
def test_norm_before_a_convolution(op: str, attributes: dict[str, Any], shifted: bool, fused: bool) -> None:
    generator = builders.rng()
    group = attributes.get("group", 1)
    shape = (6, 4 // group, 3, 3) if op == "Conv" else (4, 6 // group, 3, 3)
    weights = {"w": builders.normal(generator, *shape)}
    nodes = [norm("bn", "x", "n", 4, weights), helper.make_node(op, ["n", "w"], ["y"], "conv", **attributes)]
    if not shifted:
        weights["bn.bias"] = np.zeros(4, np.float32)
        weights["bn.mean"] = np.zeros(4, np.float32)
    after, record = fuse(chain(nodes, weights, [4, 8, 8]))
    assert builders.ops(after) == ({op: 1} if fused else {"BatchNormalization": 1, op: 1})
    assert [s.why for s in record.skips] == (
        [] if fused else ["it shifts values before the zero padding of " + f"{op} conv"]
    )


@pytest.mark.parametrize("trans_b", [0, 1])
def test_norm_before_two_gemms_goes_into_both(trans_b: int) -> None:
    generator = builders.rng()
    w = builders.normal(generator, 4, 4)
    weights = {"w": w, "b": np.arange(4, dtype=np.float32)}
    nodes = [
        norm("bn", "x", "n", 4, weights),
        helper.make_node("Gemm", ["n", "w", "b"], ["p"], "fc1", transB=trans_b, alpha=0.5, beta=3.0),
        helper.make_node("Gemm", ["n", "w"], ["q"], "fc2", transB=trans_b),
        helper.make_node("Concat", ["p", "q"], ["y"], "cat", axis=1),
    ]
    after, _ = fuse(chain(nodes, weights, [4]))
    assert builders.ops(after) == {"Concat": 1, "Gemm": 2}


def test_shared_weight_is_copied_for_the_node_that_changes() -> None:
    weights = {"w": builders.normal(builders.rng(), 4, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first"),
        norm("bn", "c", "n", 4, weights),
        helper.make_node("Conv", ["n", "w"], ["y"], "second", pads=[1, 1, 1, 1]),
    ]
    after, _ = fuse(chain(nodes, weights, [4, 8, 8]))
    assert builders.ops(after) == {"Conv": 2}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_array_equal(stored["w"], weights["w"])
    assert after.graph.node[0].input[1] != "w"


@pytest.mark.parametrize("case", ["branch", "output", "training", "extra", "negative", "computed", "weight", "spatial"])
def test_what_stays_is_explained(case: str) -> None:
    weights = {"w": builders.normal(builders.rng(), 4, 4, 1, 1)}
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "conv")
    bn = norm("bn", "c", "y", 4, weights)
    nodes, opset, outputs = [conv, bn], 17, ["y"]
    if case == "branch":
        nodes.append(helper.make_node("Relu", ["c"], ["z"], "relu"))
        outputs.append("z")
    elif case == "output":
        outputs.append("c")
    elif case == "training":
        bn.attribute.append(helper.make_attribute("training_mode", 1))
        bn.output.extend(["m2", "v2"])
    elif case == "extra":
        opset = 9
        bn.output.extend(["m2", "v2", "m3", "v3"])
    elif case == "negative":
        weights["bn.var"][1] = -1
    elif case == "computed":
        nodes.insert(0, helper.make_node("Abs", ["bn.var"], ["v"], "abs"))
        bn.input[4] = "v"
    elif case == "weight":
        nodes.insert(0, helper.make_node("Abs", ["w"], ["w2"], "abs"))
        conv.input[1] = "w2"
    elif case == "spatial":
        opset = 8
        bn.attribute.append(helper.make_attribute("spatial", 0))
    proto = builders.model(
        nodes,
        [builders.value("x", FLOAT, ["N", 4, 8, 8])],
        [builders.value(name, FLOAT, None) for name in outputs],
        weights,
        opset=opset,
        check=False,
    )
    outcome = FuseBatchNorm().run(graph := decode(proto), PassContext())
    assert outcome.changes == []
    assert graph.operators()["BatchNormalization"] == 1
    assert [(s.node, bool(s.why)) for s in outcome.skips] == [("bn", True)]
    words = {
        "branch": "needed elsewhere", "output": "needed elsewhere", "training": "training mode",
        "extra": "several outputs",
        "negative": "not positive", "computed": "is computed", "weight": "comes through Abs", "spatial": "spatial",
    }  # fmt: skip
    assert words[case] in outcome.skips[0].why


@pytest.mark.parametrize("opset", [6, 7, 8, 9, 13, 15, 17])
def test_every_opset(opset: int) -> None:
    proto = builders.conv_bn_relu(opset=17)
    proto.opset_import[0].version = opset
    if opset < 7:
        proto.graph.node[1].attribute.append(helper.make_attribute("is_test", 1))
    result = PassManager(Pipeline((FuseBatchNorm(),)), verify=False).run(decode(proto))
    assert "BatchNormalization" not in result.graph.operators()
    if opset >= 7:
        fuse(proto)


def test_half_precision_stays_half_precision() -> None:
    proto = builders.conv_bn_relu(8, 8)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for entry in (*proto.graph.input, *proto.graph.output):
        entry.type.tensor_type.elem_type = TensorProto.FLOAT16
    after, _ = fuse(proto)
    assert {t.data_type for t in after.graph.initializer} == {TensorProto.FLOAT16}
    PassManager(Pipeline((FuseBatchNorm(),))).run(decode(proto))  # the guarantee knows what half precision can do


def test_weight_that_would_overflow_stays() -> None:
    proto = builders.conv_bn_relu()
    for tensor in proto.graph.initializer:
        if tensor.name == "bn.scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(8, 3e38, np.float32), tensor.name))
        if tensor.name == "conv.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((8, 3, 3, 3), 3e5, np.float32), tensor.name))
    outcome = FuseBatchNorm().run(decode(proto), PassContext())
    assert [s.why for s in outcome.skips] == ["the result does not fit float32"]


def test_norm_inside_a_body() -> None:
    generator = builders.rng()
    weights = {"w": builders.normal(generator, 4, 4)}
    bn = builders.norm_weights("bn", 4, generator)
    branch = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w"], ["g"], "fc"),
            helper.make_node("BatchNormalization", ["g", *bn], ["t"], "bn"),
        ],
        "then",
        [],
        [builders.value("t", FLOAT, ["N", 4])],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["e"], "mm")], "else", [], [builders.value("e", FLOAT, ["N", 4])]
    )
    node = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch, else_branch=other)
    inputs = [builders.value("flag", TensorProto.BOOL, []), builders.value("x", FLOAT, ["N", 4])]
    proto = builders.model([node], inputs, [builders.value("y", FLOAT, ["N", 4])], weights | bn)
    after, record = fuse(proto)
    assert record.changes == 1
    assert builders.ops(after) == {"Gemm": 1, "If": 1, "MatMul": 1}


def test_weights_that_a_caller_may_feed_are_left_alone() -> None:
    proto = builders.weights_as_inputs(builders.conv_bn_relu())
    outcome = FuseBatchNorm().run(decode(proto, keep_initializer_inputs=True), PassContext())
    assert outcome.changes == []
    assert FuseBatchNorm().run(decode(proto), PassContext()).changes


def test_excluded_norm_stays() -> None:
    proto = builders.residual_cnn()
    outcome = FuseBatchNorm(exclude=("block.*",)).run(graph := decode(proto), PassContext())
    assert graph.operators()["BatchNormalization"] == 2
    assert len(outcome.changes) == 1


def test_digits_model_keeps_its_answers(digits: Path, digits_data: tuple[Path, Path]) -> None:
    result = PassManager(Pipeline((FuseBatchNorm(),))).run(io.load(digits))
    assert "BatchNormalization" not in result.graph.operators()
    with np.load(digits_data[1]) as data:
        name = result.graph.inputs[0].name
        feed = {name: data[name] if name in data else data["images"].astype(np.float32)}
    if feed[name].ndim == 3:
        feed[name] = feed[name][:, None]
    before, after = builders.run(digits, feed)[0], builders.run(io.to_bytes(result.graph), feed)[0]
    assert (before.argmax(1) == after.argmax(1)).all()


@given(seed=st.integers(0, 100_000), static=st.booleans())
def test_random_models_stay_close_through_all_exact_and_close_passes(seed: int, static: bool) -> None:
    proto = random_models.random_model(seed, static=static)
    feeds = random_models.random_feeds(seed)
    expected = random_models.outputs(proto, feeds)
    assume(expected is not None)
    pipeline = Pipeline.parse("fuse-batchnorm,fold-constants,cleanup,fuse-batchnorm,fuse-slices,cleanup")
    graph = PassManager(pipeline).run(decode(proto)).graph
    for wanted, got in zip(expected or [], builders.run(io.to_bytes(graph), feeds, optimized=False), strict=True):
        assert relative_error(wanted, got) < 1e-4


def test_a_bias_that_does_not_fit_its_layer_is_left_for_the_runtime_to_refuse() -> None:
    weights = {"w": builders.normal(builders.rng(), 8, 3, 3, 3), "b": np.zeros(4, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"), norm("bn", "c", "y", 8, weights)]
    ports = [builders.value("x", builders.FLOAT, [1, 3, 8, 8]), builders.value("y", builders.FLOAT, None)]
    graph = decode(builders.model(nodes, ports[:1], ports[1:], weights, check=False))
    outcome = FuseBatchNorm().run(graph, PassContext())
    assert not outcome.changes
    assert [skip.why for skip in outcome.skips] == ["the bias of Conv conv has 4 values for 8 outputs"]
