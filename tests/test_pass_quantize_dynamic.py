"""Does dynamic quantization hit the integer kernels, keep the outputs close, and leave alone what it must?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from coupling_nets import CASES
from feeds import Feeds
from hypothesis import given
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, TensorProto, numpy_helper
from test_weights_places import large_bodies

import onnxcomp
from onnxcomp.errors import UsageError
from onnxcomp.graph import cost
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import to_bytes
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.runtime.profile import kernels


def quantized(proto, spec: str = "quantize-dynamic{least=1}", feeds: dict[str, np.ndarray] | None = None):
    context = PassContext(calibration=None if feeds is None else Feeds(feeds))
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), context)
    return encode(result.graph), result.records[0]


def test_a_transformer_block_runs_fused_integer_kernels(tmp_path: Path) -> None:
    proto = builders.transformer()
    after, record = quantized(proto)
    path = builders.save(after, tmp_path / "t.onnx")
    run = kernels(path)
    products = sum(node.op_type == "MatMulInteger" for node in after.graph.node)
    assert 0 < products <= record.changes
    assert run["DynamicQuantizeMatMul"] + run["MatMulIntegerToFloat"] == products
    feeds = builders.transformer_feed()
    for a, b in zip(builders.run(proto, feeds), builders.run(after, feeds), strict=True):
        assert builders.sqnr_db(a, b) > 25


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_either_way_round(trans_b: int) -> None:
    proto = builders.mlp((64, 96, 32), trans_b=trans_b)
    after, record = quantized(proto)
    assert record.changes == 2
    feeds = builders.feeds_of(proto)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


def test_convolutions_and_small_products_stay_float() -> None:
    proto = builders.mlp((8, 4, 2))
    _, record = quantized(proto, "quantize-dynamic")
    assert record.changes == 0
    assert len(record.skips) == 2


@pytest.mark.parametrize(("picked", "coded"), [(64, False), (63, True)])
def test_a_table_of_which_all_rows_are_picked_is_left_to_what_costs_no_time(picked: int, coded: bool) -> None:
    weights = {"w": builders.normal(builders.rng(), 64, 32)}
    node = builders.helper.make_node("Gather", ["w", "i"], ["y"], "rows")
    ports = [builders.value("i", TensorProto.INT64, ["N", picked])], [builders.value("y", TensorProto.FLOAT, None)]
    _, record = quantized(builders.model([node], *ports, weights, check=False))
    assert (record.changes == 1) is coded
    assert [("store-weights" in skip.why) for skip in record.skips] == [True] * (not coded)


def test_a_shared_weight_is_stored_once() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        builders.helper.make_node("MatMul", [source, "w"], [to], name=to) for source, to in (("x", "a"), ("a", "y"))
    ]
    proto = builders.model(
        nodes,
        [builders.value("x", TensorProto.FLOAT, [1, 64])],
        [builders.value("y", TensorProto.FLOAT, [1, 64])],
        {"w": weight},
    )
    after, record = quantized(proto)
    assert record.changes == 2
    assert sum(t.data_type == TensorProto.INT8 for t in after.graph.initializer) == 1
    assert not any(t.name == "w" for t in after.graph.initializer)


def test_weights_in_bodies_are_quantized_too() -> None:
    proto = large_bodies()
    after, record = quantized(proto)
    assert record.changes == 2
    for side in (True, False):
        feeds = {"x": builders.rng(1).standard_normal((8, 64)).astype(np.float32), "c": np.asarray(side)}
        assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


@pytest.mark.parametrize("name", sorted(CASES))
def test_any_architecture_keeps_its_interface_and_stays_close(name: str) -> None:
    before = CASES[name]()
    feeds = builders.feeds_of(before, batch=16)
    after, _ = quantized(before, feeds=feeds)
    pairs = zip(builders.run(before, feeds), builders.run(after, feeds), strict=True)
    assert all(builders.sqnr_db(a.astype(np.float64), b.astype(np.float64)) > 15 for a, b in pairs)


def test_weights_behind_other_nodes_are_named() -> None:
    _, record = quantized(builders.indirect_weights())
    assert record.changes == 1, "what a Constant node holds is a weight"
    assert [skip.node for skip in record.skips] == ["mm1", "mm2", "mm3"]
    assert all("fold-constants" in skip.why for skip in record.skips)


def product(inner: int = 64, outer: int = 96, *, opset: int = 17, weight: np.ndarray | None = None) -> ModelProto:
    net = Net(opset=opset)
    x = net.input("N", inner)
    name = net.weight(inner, outer)
    net.weights[name] = net.weights[name] if weight is None else weight
    return onnx.shape_inference.infer_shapes(net.model(net.op("MatMul", x, name)), strict_mode=True)


def test_old_opsets_are_raised() -> None:
    proto = product(opset=10)
    after, record = quantized(proto)
    assert after.opset_import[0].version >= 11
    assert any("opset raised" in note for note in record.notes)
    feeds = builders.feeds_of(proto)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_left_alone(value: float) -> None:
    weight = builders.normal(builders.rng(), 64, 96)
    weight[0, 0] = value
    after, record = quantized(product(weight=weight))
    assert record.changes == 0
    assert "NaN or infinity" in record.skips[0].why
    assert builders.ops(after) == {"MatMul": 1}


def test_half_precision_products_are_left_alone_with_a_reason() -> None:
    proto = product()
    (tensor,) = proto.graph.initializer
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for entry in (*proto.graph.input, *proto.graph.output):
        entry.type.tensor_type.elem_type = TensorProto.FLOAT16
    _, record = quantized(proto)
    assert record.changes == 0
    assert "float16" in record.skips[0].why


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"beta": 0.0}, {"transA": 1}])
def test_every_form_of_gemm_keeps_its_meaning(attributes: dict[str, float]) -> None:
    net = Net()
    x = net.input(*((64, 5) if "transA" in attributes else (5, 64)))
    out = net.op("Gemm", x, net.weight(64, 96), net.weight(96), **attributes)
    proto = onnx.shape_inference.infer_shapes(net.model(out), strict_mode=True)
    after, record = quantized(proto)
    assert record.changes == 1
    feeds = {"x0": builders.rng(3).standard_normal((64, 5) if "transA" in attributes else (5, 64)).astype(np.float32)}
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


def outliers(rows: int = 64) -> dict[str, np.ndarray]:
    """Activations of which three channels are a hundred times the others."""
    x = builders.rng(5).standard_normal((rows, 64)).astype(np.float32)
    x[:, [3, 17, 40]] *= 100
    return {"x0": x}


def test_smoothing_helps_where_channels_differ_and_is_not_applied_where_it_does_not() -> None:
    weight = builders.normal(builders.rng(2), 64, 96)
    weight[[3, 17, 40]] *= 0.01
    proto = product(weight=weight)
    exact = builders.run(proto, outliers())[0]
    plain, _ = quantized(proto, "quantize-dynamic{least=1,smooth=0}", outliers())
    smoothed, record = quantized(proto, feeds=outliers())
    gains = [builders.sqnr_db(exact, builders.run(model, outliers())[0]) for model in (plain, smoothed)]
    assert gains[1] > gains[0] + 10
    assert "smoothed" in record.details[0].what
    even = builders.feeds_of(proto, batch=64)
    flat, record = quantized(product(), feeds=even)
    exact = builders.run(product(), even)[0]
    assert builders.sqnr_db(exact, builders.run(flat, even)[0]) > 35


def far_units(
    outputs: int, channels: int = 2048, *, transposed: bool = False
) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A product of many channels, one of which is large in the first row of each 16 and weighs as much as any other."""
    net = Net()
    weight = net.weight(outputs, channels) if transposed else net.weight(channels, outputs)
    bias = net.const(np.linspace(-1, 1, outputs), np.float32)
    x = net.input("N", channels)
    y = net.op("Gemm", x, weight, bias, transB=1, alpha=0.5) if transposed else net.op("MatMul", x, weight)
    proto = onnx.shape_inference.infer_shapes(net.model(y), strict_mode=True)
    rows = builders.rng(6).standard_normal((64, channels)).astype(np.float32)
    rows[::16, 77] = 4 * channels**0.5
    return proto, {"x0": rows}


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_that_reach_far_beyond_all_others_are_multiplied_apart(transposed: bool) -> None:
    proto, feeds = far_units(2048, transposed=transposed)
    exact = builders.run(proto, feeds)[0]
    inside, _ = quantized(proto, "quantize-dynamic{least=1,apart=false}", feeds)
    apart, record = quantized(proto, "quantize-dynamic{least=1}", feeds)
    reached = [builders.sqnr_db(exact, builders.run(model, feeds)[0]) for model in (inside, apart)]
    assert reached[1] > reached[0] + 8
    assert "16 channels in float" in record.details[0].what
    places = next(node.input[1] for node in apart.graph.node if node.op_type == "Gather")
    assert 77 in next(numpy_helper.to_array(t) for t in apart.graph.initializer if t.name == places)


def test_channels_are_not_multiplied_apart_where_that_costs_more_than_it_gives() -> None:
    for outputs, channels in ((2560, 2048), (96, 512)):  # a sum over more outputs than channels; a small product
        proto, feeds = far_units(outputs, channels)
        after, _ = quantized(proto, feeds=feeds)
        assert "Gather" not in builders.ops(after)
    even, _ = far_units(2048)
    after, _ = quantized(even, feeds=builders.feeds_of(even, batch=64))
    assert "Gather" not in builders.ops(after)


def test_the_most_sensitive_products_are_protected_on_request() -> None:
    net = Net()
    x = net.input("N", 64)
    a, b = net.op("MatMul", x, net.weight(64, 64)), net.op("MatMul", net.op("Tanh", x), net.weight(64, 64))
    proto = onnx.shape_inference.infer_shapes(net.model(net.op("Add", a, b)), strict_mode=True)
    after, _ = quantized(proto, "quantize-dynamic{least=1,smooth=0,protect=0.5}", outliers())
    (block,) = (node for node in after.graph.node if node.op_type == "MatMulNBits")
    assert block.input[0] == "x0", "the product that reads the outliers"


def test_products_of_one_activation_quantize_it_once() -> None:
    net = Net()
    x = net.input("N", 64)
    a, b = (net.op("MatMul", x, net.weight(64, 64)) for _ in range(2))
    proto = onnx.shape_inference.infer_shapes(net.model(net.op("Add", a, b)), strict_mode=True)
    after, _ = quantized(proto)
    assert builders.ops(after)["DynamicQuantizeLinear"] == 1


def test_other_targets_are_told_why_not_and_globs_choose() -> None:
    proto = builders.mlp((64, 96, 32))
    context = PassContext(target="tensorrt")
    record = PassManager(Pipeline.parse("quantize-dynamic")).run(decode(proto), context).records[0]
    assert record.changes == 0
    assert "tensorrt has no kernels" in record.skips[0].why
    first = proto.graph.node[0].name
    _, record = quantized(proto, f'quantize-dynamic{{least=1,include=["{first}"]}}')
    assert record.changes == 1
    with pytest.raises(UsageError):
        quantized(proto, 'quantize-dynamic{exclude=["nothing*"]}')


def test_portable_weights_never_saturate_sixteen_bits() -> None:
    """Two neighbours along K times 255 stay within int16 for every output channel."""
    proto = builders.mlp((256, 64, 32))
    after, _ = quantized(proto)
    weights = [builders.numpy_helper.to_array(t) for t in after.graph.initializer if t.data_type == TensorProto.INT8]
    assert weights
    for stored in weights:
        wide = stored.astype(np.int32)  # [K, N]
        sums = wide[0::2][: len(wide) // 2] + wide[1::2]
        assert np.abs(sums * 255).max() <= 32767


@given(st.integers(33, 80), st.integers(33, 80), st.integers(0, 99))
def test_every_product_stays_within_the_rounding_of_both_sides(inner: int, outer: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((inner, outer)).astype(np.float32)
    x = rng.standard_normal((3, inner)).astype(np.float32)
    proto = builders.model(
        [builders.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [builders.value("x", TensorProto.FLOAT, ["n", inner])],
        [builders.value("y", TensorProto.FLOAT, ["n", outer])],
        {"w": weight},
    )
    after, _ = quantized(proto)
    assert builders.sqnr_db(builders.run(proto, {"x": x})[0], builders.run(after, {"x": x})[0]) > 28


def test_the_sentence_encoder_keeps_its_quality(assets: Path) -> None:
    path = assets / "models" / "minilm-l6.onnx"
    rows = {key: values[:24] for key, values in np.load(assets / "data" / "packages-train.npz").items()}
    graph = onnxcomp.load(path)
    spec = "fold-constants,cleanup,quantize-dynamic"
    result = PassManager(Pipeline.parse(spec), verify=False).run(graph, PassContext(calibration=Feeds(rows)))
    judged = {key: values[:8] for key, values in np.load(assets / "data" / "packages-test.npz").items()}
    after = builders.run(to_bytes(result.graph), judged)[0]
    assert builders.sqnr_db(builders.run(path, judged)[0], after) > 24


def lstm(size: int = 48, hidden: int = 64, *, direction: str = "forward", full: bool = False, **attrs: object):
    """LSTM over [10, 2, size], alone or with sequence lengths, initial states and peepholes; Y, Y_h and Y_c go out."""
    net = Net(opset=17)
    directions = 2 if direction == "bidirectional" else 1
    x = net.input(10, 2, size)
    scale = hidden**-0.5
    weights = [net.weight(directions, 4 * hidden, n, scale=scale) for n in (size, hidden)]
    more = [net.weight(directions, 8 * hidden, scale=scale)]
    if full:
        states = [net.weight(directions, 2, hidden) for _ in range(2)]
        more += [net.const([10, 7], np.int32), *states, net.weight(directions, 3 * hidden, scale=scale)]
    outputs = net.op("LSTM", x, *weights, *more, outputs=3, hidden_size=hidden, direction=direction, **attrs)
    return net.model(*outputs)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_runs_in_integers_with_states_lengths_and_peepholes(full: bool, direction: str, tmp_path: Path) -> None:
    proto = lstm(direction=direction, full=full, **({"clip": 3.0} if full else {}))
    after, record = quantized(proto)
    assert [node.op_type for node in after.graph.node] == ["DynamicQuantizeLSTM"]
    assert kernels(builders.save(after, tmp_path / "l.onnx"))["DynamicQuantizeLSTM"] == 1
    assert record.changes == 1
    feeds = builders.feeds_of(proto)
    for a, b in zip(builders.run(proto, feeds), builders.run(after, feeds), strict=True):
        assert builders.sqnr_db(a, b) > 30


class Sequences(Feeds):
    """One sequence [time, batch, features] a sample."""

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        yield from ({name: values[i] for name, values in self.feeds.items()} for i in range(len(self)))


@pytest.mark.parametrize("heard", [True, False])
def test_the_weights_of_an_lstm_are_rounded_for_what_it_reads(heard: bool) -> None:
    proto = lstm(direction="bidirectional")
    if not heard:  # nobody reads the states of all steps
        del proto.graph.output[0]
        proto.graph.node[0].output[0] = ""
    generator = builders.rng()
    mixed = generator.standard_normal((6, 48)).astype(np.float32)
    read = np.abs(generator.standard_normal((40, 10, 2, 6)).astype(np.float32) @ mixed)
    name = proto.graph.input[0].name
    context = PassContext(calibration=Sequences({name: read[:32]}))
    solved = encode(PassManager(Pipeline.parse("quantize-dynamic{least=1}")).run(decode(proto), context).graph)
    noise = []
    for after in (solved, quantized(proto)[0]):
        runs = [(builders.run(proto, {name: x})[0], builders.run(after, {name: x})[0]) for x in read[32:]]
        noise.append(sum(float(np.square(a - b).sum()) for a, b in runs))
    assert noise[0] < 0.5 * noise[1]
    codes = [numpy_helper.to_array(t) for t in solved.graph.initializer if t.name.endswith("_q8")]
    for direction in (part for array in codes for part in array):
        assert np.abs(direction[::2].astype(np.int16) + direction[1::2]).max() <= 128


def test_the_work_of_an_lstm_and_of_what_follows_is_counted_as_before() -> None:
    net = Net(opset=17)
    x = net.input("T", "N", 64)
    for _ in range(2):
        hidden = net.op("LSTM", x, net.weight(1, 256, 64), net.weight(1, 256, 64), hidden_size=64)
        x = net.op("Squeeze", hidden, net.const([1]))
    before = decode(net.model(x))
    after = PassManager(Pipeline.parse("quantize-dynamic{least=1}")).run(before, PassContext()).graph
    operators, sample = PassContext().operators, {"x0": (10, 1, 64)}
    macs = [cost.stats(graph, operators, file_bytes=0, sample=sample).macs for graph in (before, after)]
    assert macs[0] == macs[1] == 2 * 10 * 256 * 128


def test_large_lstm_weights_are_a_quarter_and_do_not_saturate() -> None:
    proto = lstm(128, 128)
    after, _ = quantized(proto)
    assert after.ByteSize() < 0.28 * proto.ByteSize()
    codes = [numpy_helper.to_array(t) for t in after.graph.initializer if t.name.endswith("_q8")]
    for direction in (array[0] for array in codes):  # [in, gates * hidden]
        pairs = direction[::2].astype(np.int16)[: len(direction) // 2] + direction[1::2]
        assert np.abs(pairs).max() <= 128


class Times:
    """Kernel times that a test decides about."""

    def __init__(self, exact: float, integer: float) -> None:
        self.exact, self.integer = exact, integer

    def latency_ms(self, graph: onnxcomp.Graph) -> float:
        raise NotImplementedError

    def node_times_us(self, graph: onnxcomp.Graph) -> dict[str, float]:
        return {n.name: self.integer if n.op == "DynamicQuantizeLSTM" else self.exact for n in graph.walk()}


@pytest.mark.parametrize(("integer", "op"), [(5.0, "DynamicQuantizeLSTM"), (20.0, "LSTM")])
def test_measured_times_decide_about_an_lstm(integer: float, op: str) -> None:
    graph = decode(lstm())
    context = PassContext(costs=Times(10.0, integer))
    result = PassManager(Pipeline.parse("quantize-dynamic")).run(graph, context)
    assert [node.op for node in result.graph.nodes] == [op]
    assert op != "LSTM" or "measured: 20 us with 8-bit integers, 10 us in float" in result.records[0].skips[0].why


def test_cells_without_an_integer_kernel_are_named() -> None:
    net = Net(opset=17)
    hidden = net.op("GRU", net.input(6, 2, 64), net.weight(1, 192, 64), net.weight(1, 192, 64), hidden_size=64)
    _, record = quantized(net.model(hidden))
    assert [skip.why for skip in record.skips] == ["ONNX Runtime has no kernel for GRU with 8-bit integers"]
    small = quantized(lstm(4, 4), "quantize-dynamic")[1]
    assert "too small" in small.skips[0].why


def fused_attention(**attrs: Any) -> ModelProto:
    """com.microsoft Attention over [N, 6, 32] with a mask, and a product behind it."""
    net = Net(opset=17)
    x = net.input("N", 6, 32)
    mask = net.op("Cast", net.op("ReduceSum", x, net.const([2]), keepdims=0), to=TensorProto.BOOL)
    mask = net.op("Cast", mask, to=TensorProto.INT32)
    weight, bias = net.weight(32, 96, scale=0.2), net.weight(96, scale=0.1)
    y = net.op("Attention", x, weight, bias, mask, domain="com.microsoft", num_heads=4, **attrs)
    return net.model(net.op("MatMul", y, net.weight(32, 32)), domains={"com.microsoft": 1})


@pytest.mark.parametrize("attrs", [{}, {"unidirectional": 1}, {"scale": 0.3}])
def test_fused_attention_projects_in_integers(attrs: dict[str, Any], tmp_path: Path) -> None:
    proto = fused_attention(**attrs)
    after, record = quantized(proto)
    assert record.changes == 2
    assert kernels(builders.save(after, tmp_path / "a.onnx"))["QAttention"] == 1
    feeds = builders.feeds_of(proto)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30


def test_attention_that_has_no_integer_form_says_why() -> None:
    _, record = quantized(fused_attention(qkv_hidden_sizes=[32, 32, 32]))
    assert [skip.why for skip in record.skips] == ["QAttention knows no qkv_hidden_sizes"]


@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_products_keep_their_factor(trans_b: int) -> None:
    net = Net(opset=17)
    x, shape = net.input("N", 6, 32), (48, 32) if trans_b else (32, 48)
    y = net.op("FusedMatMul", x, net.weight(*shape), domain="com.microsoft", alpha=0.25, transB=trans_b)
    proto = net.model(y, domains={"com.microsoft": 1})
    after, record = quantized(proto)
    assert record.changes == 1
    feeds = builders.feeds_of(proto)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 30
