"""Does quantize-weights leave alone what it must, and write weights rightly wherever they stand, shared or not?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from coupling_nets import CASES
from nets import Net
from onnx import ModelProto, TensorProto, numpy_helper
from test_pass_quantize_weights import effective, layer, quantized

from onnxcomp.errors import UsageError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import load
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline


def test_a_weight_that_two_layers_share_is_stored_once() -> None:
    net = Net()
    weight, x = net.weight(64, 64), net.input("N", 64)
    hidden = net.op("MatMul", x, weight)
    before = onnx.shape_inference.infer_shapes(net.model(net.op("MatMul", hidden, weight)), strict_mode=True)
    for options in ("bits=8", "bits=4,block=32", "form=codebook"):
        after, record = quantized(before, options)
        assert record.changes == 2
        assert sum(len(t.raw_data) or 4 for t in after.graph.initializer) < 64 * 64 * 1.3
        pairs = zip(builders.run(before, f := builders.feeds_of(before)), builders.run(after, f), strict=True)
        assert min(builders.sqnr_db(a, b) for a, b in pairs) > 12


@pytest.mark.parametrize("options", ["bits=8", "form=binary", "form=codebook,bits=4"])
@pytest.mark.parametrize("build", [builders.if_model, builders.loop_model, builders.indirect_weights])
def test_weights_in_bodies_and_behind_other_nodes_are_handled(build: Callable[[], ModelProto], options: str) -> None:
    """Made large enough to be worth it by repeating; what is said to be changed runs, and nothing else changes."""
    before = build()
    after, record = quantized(before, options)
    assert record.changes + len(record.skips) > 0
    feeds = builders.feeds_of(before)
    for a, b in zip(builders.run(before, feeds), builders.run(after, feeds), strict=True):
        assert a.shape == b.shape
        if not record.changes:
            np.testing.assert_array_equal(a, b)


def large_bodies(weight_name: str = "{}_w") -> ModelProto:
    """An If with a product in either branch whose weights pay.

    Args:
        weight_name: where {} stands for the branch; without it both weights bear one name, as from one Python module.
    """
    random = builders.rng(0)
    branches = []
    for name in ("then", "else"):
        node = onnx.helper.make_node("MatMul", ["h", weight_name.format(name)], [f"{name}_y"], f"{name}_mm")
        weight = numpy_helper.from_array(builders.normal(random, 64, 64), weight_name.format(name))
        info = builders.value(f"{name}_y", TensorProto.FLOAT, ["N", 64])
        branches.append(onnx.helper.make_graph([node], name, [], [info], [weight]))
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["h"], "relu"),
        onnx.helper.make_node("If", ["c"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    inputs = [builders.value("x", TensorProto.FLOAT, ["N", 64]), builders.value("c", TensorProto.BOOL, [])]
    return builders.model(nodes, inputs, [builders.value("y", TensorProto.FLOAT, ["N", 64])], {})


@pytest.mark.parametrize("options", ["bits=8", "bits=4,block=32", "bits=2,block=64", "form=ternary", "form=codebook"])
@pytest.mark.parametrize("names", ["{}_w", "w"])
def test_weights_in_branches_are_decoded_there(options: str, names: str) -> None:
    before = large_bodies(names)
    after, record = quantized(before, options)
    assert record.changes == 2
    random = np.random.default_rng(0)
    for side in (True, False):
        feeds = {"x": random.standard_normal((8, 64)).astype(np.float32), "c": np.asarray(side)}
        exact, found = builders.run(before, feeds)[0], builders.run(after, feeds)[0]
        assert builders.sqnr_db(exact, found) > (4 if "2" in options or "ternary" in options else 15)


@pytest.mark.parametrize("options", ["bits=8", "bits=4,block=16", "form=codebook", "bits=4,error=gptq"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_any_architecture_keeps_its_interface_and_stays_close(name: str, options: str) -> None:
    """Outputs without declared shapes, branches, shared and odd weights among them."""
    before = CASES[name]()
    feeds = builders.feeds_of(before, batch=16)
    after, _ = quantized(before, options, feeds=feeds)
    pairs = zip(builders.run(before, feeds), builders.run(after, feeds), strict=True)
    least = 6 if "4" in options else 20
    assert all(builders.sqnr_db(a.astype(np.float64), b.astype(np.float64)) > least for a, b in pairs)


def test_half_precision_weights_keep_their_type() -> None:
    before, _ = layer("Conv")
    proto = ModelProto()
    proto.CopyFrom(before)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for entry in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        entry.type.tensor_type.elem_type = TensorProto.FLOAT16
    after, record = quantized(proto)
    assert record.changes == 1
    feeds = {"x0": builders.feeds_of(before)["x0"].astype(np.float16)}
    exact, found = builders.run(proto, feeds)[0], builders.run(after, feeds)[0]
    assert found.dtype == np.float16
    assert builders.sqnr_db(exact, found) > 30


def test_weights_already_in_few_bits_are_left_alone() -> None:
    once, _ = quantized(layer("Conv")[0])
    twice, record = quantized(once)
    assert (record.changes, len(twice.graph.node)) == (0, len(once.graph.node))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("options", ["bits=8", "bits=4", "form=binary", "form=codebook"])
def test_weights_that_are_no_numbers_are_left_alone(options: str, value: float) -> None:
    before, name = layer("MatMul")
    tensor = next(t for t in before.graph.initializer if t.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[3, 3] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    after, record = quantized(before, options)
    assert record.changes == 0
    assert "NaN or infinity" in record.skips[0].why
    assert after.graph.initializer[0].raw_data == before.graph.initializer[0].raw_data


def test_rows_of_zeros_stay_zeros() -> None:
    before, name = layer("Conv")
    tensor = next(t for t in before.graph.initializer if t.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[::2] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    for options in ("bits=8", "bits=4,block=0", "form=ternary", "form=codebook"):
        found = effective(quantized(before, options)[0], "Conv")
        assert not found[::2].any()
        assert np.isfinite(found).all()


def test_tiny_weights_are_not_worth_the_nodes() -> None:
    net = Net()
    before = onnx.shape_inference.infer_shapes(net.model(net.gemm(net.input("N", 4), 4, 4)), strict_mode=True)
    _, record = quantized(before)
    assert record.changes == 0
    assert record.skips


def test_weights_in_external_data_are_read_from_there(tmp_path: Path) -> None:
    before, _ = layer("MatMul")
    path = builders.save_external(before, tmp_path / "m.onnx")
    result = PassManager(Pipeline.parse("quantize-weights{bits=4,block=32}")).run(load(path), PassContext())
    assert encode(result.graph).SerializeToString() == quantized(before, "bits=4,block=32")[0].SerializeToString()


@pytest.mark.parametrize(("options", "kind"), [("bits=8", TensorProto.INT8), ("bits=4,block=32", TensorProto.INT4)])
def test_tensorrt_gets_dequantize_linear_with_zero_points_of_zero(options: str, kind: int) -> None:
    before, _ = layer("MatMul")
    after, record = quantized(before, options, target="tensorrt")
    assert record.changes == 1
    (node,) = (n for n in after.graph.node if n.op_type == "DequantizeLinear")
    tensors = {t.name: t for t in after.graph.initializer}
    assert [tensors[node.input[i]].data_type for i in (0, 2)] == [kind, kind]
    assert not numpy_helper.to_array(tensors[node.input[2]]).astype(np.int32).any()
    feeds = builders.feeds_of(before)
    assert builders.sqnr_db(builders.run(before, feeds)[0], builders.run(after, feeds)[0]) > 15


def test_include_and_exclude_choose_weights() -> None:
    before = builders.residual_cnn(batch_norm=False, channels=32)
    _, everything = quantized(before)
    _, without = quantized(before, 'exclude=["block.*"]')
    assert 0 < without.changes < everything.changes
    with pytest.raises(UsageError, match="nothing"):
        quantized(before, 'include=["nothing*"]')


@pytest.mark.parametrize(
    "options",
    [
        "low=0", "low=0,high=0", "form=binary,low=0,high=1", "form=codebook,scale=pow2", "clusters=4",
        "form=codebook,clusters=1", "form=ternary,error=gptq",
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options: str) -> None:
    with pytest.raises(UsageError):
        Pipeline.parse(f"quantize-weights{{{options}}}")


def test_the_same_run_twice_gives_the_same_bytes() -> None:
    before, _ = layer("MatMul")
    feeds: dict[str, Any] = builders.feeds_of(before, batch=64)
    first, second = (quantized(before, "bits=4", feeds=feeds)[0].SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("group", "out"), [(16, 1), (16, 2), (4, 3)])
@pytest.mark.parametrize("spec", ["quantize-weights", "quantize-weights{bits=4,block=8}", "store-weights"])
def test_every_group_of_a_transposed_convolution_has_scales_of_its_own(group: int, out: int, spec: str) -> None:
    net = Net()
    x = net.input("N", 16, 5, 5)
    weight = net.weight(16, out, 4, 4)
    net.weights[weight] *= np.repeat(np.float32(10.0) ** np.arange(-2, 2), 4)[:, None, None, None]
    proto = net.model(net.op("ConvTranspose", x, weight, group=group, strides=[2, 2]))
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), PassContext())
    assert result.records[0].changes == 1
    feeds = builders.feeds_of(proto)
    before, after = (builders.run(m, feeds)[0] for m in (proto, encode(result.graph)))
    step = out * 16 // group if group == 4 else out * 4  # output channels whose weights are of one size
    for start in range(0, out * group, step):
        part = slice(start, start + step)
        assert builders.sqnr_db(before[:, part], after[:, part]) > (17 if "4" in spec else 38)


def test_weights_behind_other_nodes_and_of_fused_operators_are_quantized() -> None:
    net = Net()
    table = net.weight(200, 32)
    x = net.op("Gather", table, net.input("N", 5, dtype=TensorProto.INT64))
    x = net.op("Attention", x, net.weight(32, 96), net.weight(96), domain="com.microsoft", num_heads=4)
    x = net.op("Einsum", x, net.weight(32, 32), equation="nsd,dk->nsk")
    proto = net.model(net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0])), domains={"com.microsoft": 1})
    result = PassManager(Pipeline.parse("quantize-weights")).run(decode(proto), PassContext())
    assert result.records[0].changes == 3
    assert not result.records[0].skips
    assert len(encode(result.graph).SerializeToString()) < 0.35 * len(proto.SerializeToString())
    feeds = builders.feeds_of(proto)
    before, after = (builders.run(m, feeds)[0] for m in (proto, encode(result.graph)))
    assert builders.sqnr_db(before, after) > 30


def test_no_block_is_wider_than_its_row_needs() -> None:
    proto, _ = layer("MatMul")  # 96 summed elements
    found = {}
    for block in (32, 128, 256):
        after, _ = quantized(proto, f"bits=4,block={block}")
        node = next(n for n in after.graph.node if n.op_type == "MatMulNBits")
        found[block] = next(a.i for a in node.attribute if a.name == "block_size")
    assert found == {32: 32, 128: 128, 256: 128}
