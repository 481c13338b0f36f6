"""Does static quantization hit the integer kernels, mean what it says, and leave alone what it must?"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from coupling_nets import CASES
from feeds import Feeds, RuledCosts, on_integers
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Node
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.results import PassRecord
from onnxcomp.runtime import opening
from onnxcomp.runtime.profile import kernels

Q, DQ = "QuantizeLinear", "DequantizeLinear"
FUSE = "fold-constants,cleanup,fuse-batchnorm,"


def quantized(
    proto: ModelProto,
    spec: str = "quantize-qdq",
    *,
    feeds: dict[str, np.ndarray] | None = None,
    samples: int = 16,
    target: str = "cpu",
    costs: RuledCosts | None = None,
) -> tuple[ModelProto, PassRecord]:
    """The model after the passes, and the record of the last one."""
    feeds = builders.feeds_of(proto, batch=samples) if feeds is None else feeds
    context = PassContext(calibration=Feeds(feeds), target=target, costs=costs)
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), context)
    after = encode(result.graph)
    onnx.checker.check_model(after, full_check=True)
    return after, result.records[-1]


def fidelity(before: ModelProto, after: ModelProto, *, literal: bool = False) -> float:
    """SQNR in dB on samples that calibration did not see.

    Args:
        literal: run Q and DQ as they stand, in float: native weights saturate in the kernels of some processors.
    """
    feeds = builders.feeds_of(before, batch=16, seed=1)
    pairs = zip(builders.run(before, feeds), builders.run(after, feeds, optimized=not literal), strict=True)
    return min(builders.sqnr_db(a, b) for a, b in pairs)


def stored(proto: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def makers(proto: ModelProto) -> dict[str, NodeProto]:
    return {name: node for node in proto.graph.node for name in node.output}


def whys(record: PassRecord) -> dict[str, str]:
    return {skip.node: skip.why for skip in record.skips}


def weights_of(proto: ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """int8 weight and scale of every node whose second input is a DequantizeLinear of a constant."""
    values, made = stored(proto), makers(proto)
    found = {}
    for node in proto.graph.node:
        source = made.get(node.input[1]) if len(node.input) > 1 and node.op_type in ("Conv", "Gemm", "MatMul") else None
        if source is not None and source.op_type == DQ and source.input[0] in values:
            found[node.name] = values[source.input[0]], values[source.input[1]]
    return found


def model_of(net: Net, output: str) -> ModelProto:
    """The net with the shapes that onnx infers, its output's too."""
    return onnx.shape_inference.infer_shapes(net.model(output), strict_mode=True)


def concat_net() -> ModelProto:
    """Two convolutions into a Concat, a Transpose and a third one."""
    net = Net()
    x = net.input("N", 4, 8, 8)
    joined = net.op("Concat", net.op("Relu", net.conv(x, 4, 8)), net.conv(x, 4, 8), axis=1)
    turned = net.op("Transpose", joined, perm=[0, 1, 3, 2])
    return model_of(net, net.conv(net.op("MaxPool", turned, kernel_shape=[2, 2], strides=[2, 2]), 16, 8))


def silu_net() -> ModelProto:
    """Two convolutions with x * sigmoid(x) behind each."""
    net = Net()
    x = net.input("N", 4, 8, 8)
    for into, out in ((4, 16), (16, 16)):
        x = net.conv(x, into, out)
        x = net.op("Mul", x, net.op("Sigmoid", x))
    return model_of(net, x)


# -- kernels and closeness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (builders.residual_cnn, {"QLinearConv": 3, "QLinearAdd": 1, "QGemm": 1}),
        (builders.depthwise_cnn, {"QLinearConv": 3}),
        (builders.mlp, {"QGemm": 2}),
        (concat_net, {"QLinearConv": 3, "QLinearConcat": 1}),
    ],
)
def test_integer_kernels_run_and_stay_close(
    build: Callable[[], ModelProto], expected: dict[str, int], tmp_path: Path
) -> None:
    before = build()
    after, record = quantized(before, FUSE + "quantize-qdq")
    run = kernels(builders.save(after, tmp_path / "q.onnx"))
    assert {op: run[op] for op in expected} == expected
    assert not {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm"} & set(run)
    assert record.changes == sum(expected.get(op, 0) for op in ("QLinearConv", "QGemm"))
    assert fidelity(before, after) > 28


@pytest.mark.parametrize("build", [builders.residual_cnn, builders.depthwise_cnn, builders.mlp, concat_net, silu_net])
def test_integer_kernels_compute_what_q_and_dq_say(build: Callable[[], ModelProto]) -> None:
    """The optimiser's integer kernels against the graph run literally, in float between DQ and Q."""
    before = build()
    after, _ = quantized(before, FUSE + "quantize-qdq")
    feeds = builders.feeds_of(before, batch=8, seed=3)
    fused, literal = builders.run(after, feeds)[0], builders.run(after, feeds, optimized=False)[0]
    exact = builders.run(before, feeds)[0]
    assert builders.sqnr_db(literal, fused) > builders.sqnr_db(exact, literal) + 6


@given(
    channels=st.integers(1, 20),
    kernel=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 4]),
    relu=st.booleans(),
    isa=st.sampled_from(["portable", "native"]),
    activations=st.sampled_from(["auto", "minmax", "percentile", "entropy", "mse", "l3"]),
    seed=st.integers(0, 5),
)
@settings(max_examples=25)
def test_any_pair_of_convolutions(
    channels: int, kernel: int, group: int, relu: bool, isa: str, activations: str, seed: int
) -> None:
    net = Net(seed=seed)
    x = net.input("N", 4 * group, 6, 6)
    x = net.conv(x, 4 * group, channels * group, kernel, group=group, pads=[0] * 4)
    x = net.op("Relu", x) if relu else x
    before = model_of(net, net.conv(x, channels * group, 8, 1))
    after, record = quantized(before, f"quantize-qdq{{isa={isa},activations={activations},min_sqnr=0}}")
    assert record.changes == 2
    assert fidelity(before, after, literal=isa == "native") > 22
    for name, (integers, _) in weights_of(after).items():
        assert integers.dtype == np.int8
        if isa == "portable":
            assert worst_pair(integers, depthwise=integers.shape[1] == 1 and name.startswith("n1") and group > 1) <= 128


def worst_pair(integers: np.ndarray, *, depthwise: bool = False) -> int:
    """The largest sum of two neighbouring weights of one sign, in the order kh, kw, cin in which kernels add them."""
    if depthwise:
        return 0
    rows = np.moveaxis(integers, 1, -1).reshape(len(integers), -1).astype(int)  # [out, kh * kw * in]
    pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2)
    return int(np.abs(pairs.sum(axis=2)).max(initial=0))


def test_native_weights_use_the_range_that_portable_ones_must_not() -> None:
    before = builders.residual_cnn(batch_norm=False)
    plain = "rounding=nearest,bias_correction=false"  # errors made good tell little of the range
    portable, _ = quantized(before, f"quantize-qdq{{{plain}}}")
    native, _ = quantized(before, f"quantize-qdq{{isa=native,{plain}}}")
    convs = [name for name, (w, _) in weights_of(native).items() if w.ndim == 4]
    assert max(worst_pair(weights_of(native)[name][0]) for name in convs) > 128
    assert max(worst_pair(weights_of(portable)[name][0]) for name in convs) <= 128
    assert fidelity(before, native, literal=True) > fidelity(before, portable, literal=True)


# -- the form that is written ------------------------------------------------------------------------------------------


def test_weights_are_symmetric_with_a_scale_for_each_output_and_biases_have_the_product_of_scales() -> None:
    before = builders.residual_cnn(batch_norm=False)
    after, _ = quantized(before, "quantize-qdq{bias_correction=false,rounding=nearest}")
    values, made, exact = stored(after), makers(after), stored(before)
    convs = [node for node in after.graph.node if node.op_type == "Conv"]
    assert convs
    for node in convs:
        weight, bias, data = (made[name] for name in (node.input[1], node.input[2], node.input[0]))
        integers, scales = values[weight.input[0]], values[weight.input[1]]
        assert scales.shape == (len(integers),)
        assert len(weight.input) == 2 or not values[weight.input[2]].any()
        np.testing.assert_allclose(values[bias.input[1]], values[data.input[1]] * scales, rtol=1e-6)
        original = next(n for n in before.graph.node if n.name == node.name)
        error = integers * scales[:, None, None, None] - exact[original.input[1]]
        assert np.abs(error).max() < 2 * np.abs(exact[original.input[1]]).max() / 64
        np.testing.assert_allclose(
            values[bias.input[0]] * values[bias.input[1]], exact[original.input[2]], atol=values[bias.input[1]].max()
        )


def test_data_movement_and_concat_keep_kernels_on_integers() -> None:
    after, _ = quantized(concat_net())
    values = stored(after)
    for node in after.graph.node:
        if node.op_type in ("Transpose", "MaxPool"):
            source, reader = (
                makers(after)[node.input[0]],
                next(n for n in after.graph.node if node.output[0] in n.input),
            )
            assert (source.op_type, reader.op_type) == (DQ, Q)
            assert [values[i].item() for i in source.input[1:]] == [values[i].item() for i in reader.input[1:]]


def test_relu_and_clip_become_ranges() -> None:
    after, _ = quantized(builders.depthwise_cnn())
    assert not {"Relu", "Clip"} & set(builders.ops(after))


@pytest.mark.parametrize("activation", ["Relu", "Clip", "Sigmoid", "HardSwish", "LeakyRelu"])
def test_what_an_activation_function_reads_may_be_an_output_too(activation: str) -> None:
    """No range takes the function over, and none is chosen as if nothing but the function read the tensor."""
    net = Net()
    features = net.conv(net.input("N", 3, 8, 8), 3, 16, pads=[1, 1, 1, 1])
    limits = [net.const(0.0, np.float32), net.const(6.0, np.float32)] if activation == "Clip" else []
    proto = shape_inference.infer_shapes(net.model(features, net.conv(net.op(activation, features, *limits), 16, 8)))
    after, _ = quantized(proto, "quantize-qdq{placement=table,min_sqnr=0}")
    assert [o.name for o in after.graph.output] == [o.name for o in proto.graph.output]
    assert stored(after)
    assert fidelity(proto, after, literal=True) > 25


@pytest.mark.parametrize("reader", ["Relu", "Silu", "Add"])
def test_what_only_a_body_reads_is_taken_over_by_nothing_outside_of_it(reader: str) -> None:
    """The body may not run, and its tensors have no values outside of it."""
    net = Net()
    x = net.input("N", 3, 8, 8)
    features = net.conv(x, 3, 16, pads=[1, 1, 1, 1])
    inner = {
        "Relu": [helper.make_node("Relu", [features], ["then"])],
        "Silu": [
            helper.make_node("Sigmoid", [features], ["gate"]),
            helper.make_node("Mul", [features, "gate"], ["then"]),
        ],
        "Add": [
            helper.make_node("Conv", [x, net.weight(16, 3, 3, 3)], ["other"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", [features, "other"], ["then"]),
        ],
    }[reader]
    other = helper.make_node("Conv", [x, net.weight(16, 3, 3, 3)], ["else"], pads=[1, 1, 1, 1])
    branches = {
        "then_branch": helper.make_graph(
            inner, "then", [], [builders.value("then", TensorProto.FLOAT, ["N", 16, 8, 8])]
        ),
        "else_branch": helper.make_graph(
            [other], "else", [], [builders.value("else", TensorProto.FLOAT, ["N", 16, 8, 8])]
        ),
    }
    some = net.op("Greater", net.op("ReduceMean", x, keepdims=0), net.const(0.0, np.float32))
    proto = shape_inference.infer_shapes(net.model(net.conv(net.op("If", some, **branches), 16, 8)))
    after, _ = quantized(proto, "quantize-qdq{placement=table,min_sqnr=0}")
    assert stored(after)
    assert fidelity(proto, after, literal=True) > 25


def net_with_bodies(path: list[str]) -> tuple[ModelProto, str]:
    """A convolution whose output both branches of an If capture behind other nodes; the captured tensor's name."""
    net = Net()
    x = net.input(1, 3, 8, 8)
    given = seen = net.op("Relu", net.conv(x, 3, 16, pads=[1, 1, 1, 1]))
    for op in path:
        seen = net.op(op, seen, **({"kernel_shape": [2, 2], "strides": [2, 2]} if op == "MaxPool" else {}))
    branches = {
        name: helper.make_graph([helper.make_node(op, [seen], [op])], op, [], [builders.value(op, 1, list("ABCD"))])
        for name, op in (("then_branch", "Tanh"), ("else_branch", "Neg"))
    }
    some = net.op("Greater", net.op("ReduceMean", x, keepdims=0), net.const(0.0, np.float32))
    proto = net.model(net.op("Add", net.op("If", some, **branches), net.op("ReduceMean", net.conv(given, 16, 8))))
    return shape_inference.infer_shapes(proto), seen


@pytest.mark.parametrize("path", [[], ["MaxPool"], ["Transpose", "Relu", "Transpose"]])
@pytest.mark.parametrize("after", ["", ",cleanup"])
def test_what_carries_integers_to_a_body_stands_behind_a_sum(path: list[str], after: str) -> None:
    """ONNX Runtime moves Q and DQ along with data, and fails where a body captures what they come to."""
    proto, seen = net_with_bodies(path)
    written, _ = quantized(proto, f"quantize-qdq{{placement=table,min_sqnr=0}}{after}")
    assert Q in builders.ops(written)
    made = makers(written)
    source = made[seen]
    while source.op_type in ("MaxPool", "Transpose"):
        source = made[source.input[0]]
    assert source.op_type in ("Sum", "Relu")
    assert fidelity(proto, written, literal=True) > 20


def test_integers_that_end_the_process_of_the_runtime_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "death", lambda _: "SIGABRT")
    written, record = quantized(net_with_bodies([])[0], "quantize-qdq{placement=table,min_sqnr=0}")
    assert Q not in builders.ops(written)
    assert {why for why in whys(record).values() if "SIGABRT" in why}


def test_silu_runs_in_float_as_one_kernel(tmp_path: Path) -> None:
    before = silu_net()
    after, _ = quantized(before)
    run = kernels(builders.save(after, tmp_path / "q.onnx"))
    assert (run["QLinearConv"], run["QuickGelu"]) == (2, 2)
    assert not {"Sigmoid", "Mul", "QLinearSigmoid", "QLinearMul"} & set(run)
    assert fidelity(before, after) > 28


def test_tensorrt_gets_symmetric_activations_float_biases_and_integers_on_the_shortcut_alone() -> None:
    before = builders.residual_cnn(channels=32, batch_norm=False)
    after, record = quantized(before, target="tensorrt")
    assert record.changes
    values, made = stored(after), makers(after)
    for node in after.graph.node:
        if node.op_type in (Q, DQ):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type in ("Conv", "Gemm"):
            assert len(node.input) < 3 or values[node.input[2]].dtype == np.float32
    (add,) = (node for node in after.graph.node if node.op_type == "Add")
    assert sorted(made[name].op_type == DQ for name in add.input) == [False, True]


def test_tensorrt_takes_few_channels_of_a_first_convolution_alone() -> None:
    """Pooled to 4 channels and up again, as in a gate, is no image."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], "stem"),
        helper.make_node("Conv", ["s", "down"], ["d"], "down"),
        helper.make_node("Conv", ["d", "up"], ["y"], "up"),
    ]
    shapes = {"stem": (32, 3, 1, 1), "down": (4, 32, 1, 1), "up": (32, 4, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 8, 8]) for n, c in (("x", 3), ("y", 32))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    _, record = quantized(before, "quantize-qdq{min_sqnr=0}", target="tensorrt")
    assert record.changes == 1
    assert {skip.node for skip in record.skips} == {"down", "up"}


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_what_multiplies_and_has_no_integer_kernel_is_told(target: str) -> None:
    before = builders.conv_bn_relu(16, 32, op="ConvTranspose")
    after, record = quantized(before, target=target)
    assert builders.ops(after) == builders.ops(before)
    assert [(skip.node, skip.why) for skip in record.skips] == [("conv", f"{target} has no integer kernel for it")]


def test_cuda_is_told_that_nothing_is_gained() -> None:
    before = builders.residual_cnn()
    after, record = quantized(before, target="cuda")
    assert (record.changes, builders.ops(after)) == (0, builders.ops(before))
    assert "CUDA provider has no integer Conv" in record.skips[0].why


# -- refinement --------------------------------------------------------------------------------------------------------


def test_compensated_rounding_and_bias_correction_each_help() -> None:
    before = builders.residual_cnn(channels=24, batch_norm=False)
    found = {
        options: fidelity(before, quantized(before, f"quantize-qdq{{{options}}}", samples=64)[0])
        for options in (
            "rounding=nearest,bias_correction=false",
            "rounding=nearest",
            "rounding=compensated,bias_correction=false",
            "rounding=compensated",
        )
    }
    nearest, corrected, compensated, both = found.values()
    assert corrected > nearest
    assert compensated > nearest
    assert both > nearest + 1


def test_bias_correction_removes_the_mean_error() -> None:
    before = builders.residual_cnn(batch_norm=False)
    feeds = builders.feeds_of(before, batch=32)
    errors = []
    for switch in ("false", "true"):
        spec = f"quantize-qdq{{rounding=nearest,bias_correction={switch}}}"
        after, _ = quantized(before, spec, feeds=feeds)
        error = builders.run(after, feeds)[0] - builders.run(before, feeds)[0]
        errors.append(np.abs(error.mean(axis=0)).max())
    assert errors[1] < errors[0] / 3


def test_the_same_run_twice_gives_the_same_bytes() -> None:
    before = builders.residual_cnn()
    first, second = (quantized(before, FUSE + "quantize-qdq")[0].SerializeToString() for _ in range(2))
    assert first == second


# -- what must be left alone, or handled with care ---------------------------------------------------------------------


def test_a_weight_that_two_layers_share_stays_shared() -> None:
    before = builders.shared_weight()
    after, record = quantized(before, "quantize-qdq{min_sqnr=0}")
    assert record.changes == 2
    assert sum(w.dtype == np.int8 and w.ndim == 2 for w in stored(after).values()) == 1
    assert fidelity(before, after) > 25


@pytest.mark.parametrize("build", [builders.if_model, builders.loop_model])
def test_bodies_of_control_flow_are_left_alone_with_a_reason(build: Callable[[], ModelProto]) -> None:
    before = build()
    feeds = builders.feeds_of(before)
    context = PassContext(calibration=Feeds(feeds))
    result = PassManager(Pipeline.parse("quantize-qdq{min_sqnr=0}")).run(decode(before), context)
    assert any("body of If, Loop or Scan" in skip.why for skip in result.records[-1].skips)
    for a, b in zip(builders.run(before, feeds), builders.run(encode(result.graph), feeds), strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


def random_times(seed: int) -> RuledCosts:
    """Integers are faster for some nodes and slower for others, whatever they are."""

    def node_us(node: Node) -> float:
        key = zlib.crc32(f"{seed} {node.name} {on_integers(node)}".encode())
        time = float(np.random.default_rng(key).uniform(0.1, 10))
        return 0.1 * time if node.op in (Q, DQ) else 0.5 * time if on_integers(node) else time

    return RuledCosts(node_us)


@pytest.mark.parametrize("name", sorted(CASES))
def test_any_architecture_with_any_placement_stays_close(name: str) -> None:
    before = CASES[name]()
    feeds = builders.feeds_of(before, batch=16)
    context = PassContext(calibration=Feeds(feeds), costs=random_times(len(name)))
    result = PassManager(Pipeline.parse("quantize-qdq{min_sqnr=8}")).run(decode(before), context)
    pairs = zip(builders.run(before, feeds), builders.run(encode(result.graph), feeds), strict=True)
    assert all(builders.sqnr_db(a.astype(np.float64), b.astype(np.float64)) > 8 for a, b in pairs)


def test_what_local_functions_hold_is_quantized_in_the_place_of_their_calls() -> None:
    before = builders.function_model()
    after, record = quantized(before, samples=256)
    assert record.changes == 2
    assert any("local functions inlined" in note for note in record.notes)
    assert not after.functions
    assert len(weights_of(after)) == 2
    assert fidelity(before, after) > 30


def test_weights_behind_other_nodes_are_named_or_folded() -> None:
    before = builders.indirect_weights()
    _, alone = quantized(before)
    folded, record = quantized(before, "fold-constants,cleanup,quantize-qdq", samples=256)
    assert record.changes >= alone.changes
    assert all(skip.why for skip in alone.skips)
    assert fidelity(before, folded) > 28


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_gemm_scales_follow_its_outputs(trans_b: int, bias: bool) -> None:
    net = Net()
    x = net.input("N", 24)
    weight = net.weight(*((12, 24) if trans_b else (24, 12)), scale=0.2)
    rest = [net.weight(12, scale=0.1)] if bias else []
    before = model_of(net, net.op("Gemm", x, weight, *rest, transB=trans_b))
    after, record = quantized(before)
    assert record.changes == 1
    ((integers, scales),) = weights_of(after).values()
    assert (integers.shape, scales.shape) == (stored(before)[weight].shape, (12,))
    assert fidelity(before, after) > 30


@pytest.mark.parametrize(
    ("attributes", "word"), [({"alpha": 0.5}, "alpha"), ({"beta": 2.0}, "beta"), ({"transA": 1}, "transA")]
)
def test_gemm_forms_without_an_integer_kernel_are_named(attributes: dict[str, Any], word: str) -> None:
    net = Net()
    x = net.input(*((24, 4) if "transA" in attributes else (4, 24)))
    before = model_of(net, net.op("Gemm", x, net.weight(24, 12), net.weight(12), **attributes))
    feeds = {"x0": np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)}
    feeds = {"x0": feeds["x0"].T.copy()} if "transA" in attributes else feeds
    _, record = quantized(before, feeds=feeds)
    assert record.changes == 0
    assert word in record.skips[0].why


def test_transposed_convolutions_stay_float_between_integers() -> None:
    before = builders.conv_bn_relu(op="ConvTranspose")
    after, record = quantized(before)
    assert record.changes == 0
    assert fidelity(before, after) == float("inf")


def test_old_opsets_are_raised_for_per_channel_scales() -> None:
    before = builders.residual_cnn(opset=11, batch_norm=False)
    after, record = quantized(before)
    assert after.opset_import[0].version >= 13
    assert any("opset raised from 11" in note for note in record.notes)
    assert fidelity(before, after) > 28


def test_half_precision_is_left_alone_with_a_reason() -> None:
    net = Net()
    x = net.input("N", 8, dtype=onnx.TensorProto.FLOAT16)
    name = net.weight(8, 4)
    net.weights[name] = net.weights[name].astype(np.float16)
    proto = net.model(net.op("MatMul", x, name))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    _, record = quantized(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    assert record.changes == 0
    assert "float16" in record.skips[0].why


def test_a_quantized_model_is_not_quantized_again() -> None:
    once, _ = quantized(builders.residual_cnn(batch_norm=False))
    twice, record = quantized(once)
    assert (record.changes, twice.graph.node) == (0, once.graph.node)
    assert "quantized already" in record.skips[0].why


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_left_alone(value: float) -> None:
    before = builders.mlp((16, 32, 10))
    tensor = next(t for t in before.graph.initializer if len(t.dims) == 2)
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    _, record = quantized(before, "quantize-qdq{min_sqnr=0}")
    assert any("NaN or infinity" in skip.why for skip in record.skips)


def test_a_tensor_whose_outliers_would_wipe_out_the_rest_stays_float() -> None:
    net = Net()
    x, penalty = net.input("N", 16), net.input("N", 16)
    hidden = net.gemm(net.op("Add", x, penalty), 16, 16)
    before = model_of(net, net.gemm(hidden, 16, 8))
    feeds = builders.feeds_of(before, batch=16)
    feeds["x1"] = np.where(np.random.default_rng(2).random((16, 16)) < 0.05, np.float32(-3e38), np.float32(0))
    _, record = quantized(before, "quantize-qdq{activations=minmax,min_sqnr=0}", feeds=feeds)
    assert any("outliers set its range" in skip.why for skip in record.skips)


@pytest.mark.parametrize("seed", range(4))
def test_ranges_are_chosen_by_what_keeps_more_of_the_outputs(seed: int) -> None:
    """Before refinement, on the samples that it is measured on: as the better of both rules, by construction."""
    net = Net(seed=seed)
    x = net.op("Relu", net.conv(net.input("N", 4, 8, 8), 4, 12, 3))
    before = model_of(net, net.conv(net.op("Relu", net.conv(x, 12, 12, 3)), 12, 6, 1))
    plain = "rounding=nearest,bias_correction=false,min_sqnr=0"
    feeds = builders.feeds_of(before, batch=16)
    kept = {}
    for activations in ("auto", "mse", "l3"):
        after, _ = quantized(before, f"quantize-qdq{{activations={activations},{plain}}}", feeds=feeds)
        kept[activations] = builders.sqnr_db(builders.run(before, feeds)[0], builders.run(after, feeds)[0])
    assert kept["auto"] == max(kept["mse"], kept["l3"])
    assert kept["mse"] != kept["l3"]


def test_include_and_exclude_choose_layers_and_a_glob_that_matches_nothing_is_an_error() -> None:
    before = builders.depthwise_cnn()
    after, record = quantized(before, 'quantize-qdq{exclude=["depth*"]}')
    assert set(weights_of(after)) == {"stem", "pointwise"}
    assert whys(record)["depthwise"] == "not selected by include and exclude"
    only, _ = quantized(before, 'quantize-qdq{include=["stem"]}')
    assert set(weights_of(only)) == {"stem"}
    with pytest.raises(UsageError, match="nothing"):
        quantized(before, 'quantize-qdq{exclude=["nothing*"]}')


def test_without_data_there_is_an_error_that_says_what_to_give() -> None:
    with pytest.raises(DataError, match="calibration data"):
        PassManager(Pipeline.parse("quantize-qdq")).run(decode(builders.mlp()), PassContext())


def test_int64_inputs_and_attention_masks_are_no_obstacle() -> None:
    before = builders.transformer()
    feeds = builders.transformer_feed(batch=8)
    after, record = quantized(before, "quantize-qdq{min_sqnr=0}", feeds=feeds)
    assert record.changes
    for a, b in zip(builders.run(before, feeds), builders.run(after, feeds), strict=True):
        assert builders.sqnr_db(a, b) > 20
