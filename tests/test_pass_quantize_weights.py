"""Is every form of few-bit weights what it says, bit for bit, small in the file and no slower than float kernels?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from coupling_nets import CASES
from feeds import Feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, TensorProto, numpy_helper

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph import cost
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import load, to_bytes
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators
from onnxcomp.results import PassRecord
from onnxcomp.runtime.profile import kernels

DECODING = {"Cast", "Mul", "Sub", "BitShift", "Mod", "Reshape", "Gather", "Slice"}


def quantized(
    proto: ModelProto, options: str = "", *, feeds: dict[str, np.ndarray] | None = None, target: str = "cpu"
) -> tuple[ModelProto, PassRecord]:
    """The model after the pass, and the pass's record."""
    context = PassContext(calibration=None if feeds is None else Feeds(feeds), target=target)
    spec = f"quantize-weights{{{options}}}" if options else "quantize-weights"
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), context)
    return encode(result.graph), result.records[0]


def layer(kind: str, *, seed: int = 0) -> tuple[ModelProto, str]:
    """A model of one layer, and the name of its weight."""
    net = Net(seed=seed)
    if kind == "Conv":
        weight = net.weight(24, 8, 3, 3)
        out = net.op("Conv", net.input("N", 8, 6, 6), weight, net.weight(24, scale=0.1))
    elif kind == "depthwise":
        weight = net.weight(32, 1, 3, 3)
        out = net.op("Conv", net.input("N", 32, 6, 6), weight, group=32)
    elif kind == "ConvTranspose":
        weight = net.weight(8, 24, 3, 3)
        out = net.op("ConvTranspose", net.input("N", 8, 6, 6), weight)
    elif kind == "MatMul":
        weight = net.weight(96, 40)
        out = net.op("MatMul", net.input("N", 96), weight)
    elif kind in ("Gemm", "Gemm^T"):
        weight = net.weight(*((40, 96) if kind == "Gemm^T" else (96, 40)))
        out = net.op("Gemm", net.input("N", 96), weight, net.weight(40), transB=int(kind == "Gemm^T"))
    else:
        weight = net.weight(120, 64)
        out = net.op("Gather", weight, net.input("N", 5, dtype=TensorProto.INT64), axis=0)
    return onnx.shape_inference.infer_shapes(net.model(out), strict_mode=True), weight


KINDS = ["Conv", "depthwise", "ConvTranspose", "MatMul", "Gemm", "Gemm^T", "Gather"]
FOLDED = ["Conv", "depthwise", "ConvTranspose"]


def rows_of(kind: str, weight: np.ndarray) -> np.ndarray:
    """The weight as [outputs, what is summed up for each], by the operators' definitions."""
    if kind == "ConvTranspose":
        return np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)
    if kind in ("MatMul", "Gemm"):
        return weight.T
    return weight.reshape(len(weight), -1)


def effective(after: ModelProto, kind: str) -> np.ndarray:
    """The rows of the weight that the model really multiplies with, as ONNX Runtime decodes them."""
    if kind in FOLDED:
        probe = ModelProto()
        probe.CopyFrom(after)
        name = next(n for n in after.graph.node if n.op_type.startswith("Conv")).input[1]
        probe.graph.output.append(builders.value(name, TensorProto.FLOAT, None))
        weight = builders.run(probe, builders.feeds_of(after))[-1]
        return rows_of(kind, weight)
    name = after.graph.input[0].name
    if kind == "Gather":
        table = builders.run(after, {name: np.arange(120).reshape(24, 5)})[0]
        return table.reshape(120, 64)
    eye = np.eye(96, dtype=np.float32)
    zero = builders.run(after, {name: np.zeros((1, 96), np.float32)})[0]
    if not zero.any():
        return builders.run(after, {name: eye})[0].T
    return (builders.run(after, {name: eye})[0].astype(np.float64) - zero).T


def stored_scales(after: ModelProto) -> np.ndarray | None:
    """The scales [rows, blocks] of the only weight whose scales have 8 bits; None where there is none."""
    held = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    codes = next((values for name, values in held.items() if name.endswith("_scale_q8")), None)
    factors = next((values for name, values in held.items() if name.endswith("_scale_row")), None)
    return None if codes is None or factors is None else codes.astype(np.float32) * factors


def reference(
    rows: np.ndarray, bits: int, block: int, scales: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Decoded rows by plain rounding, block by block, and half a step for each element, in plain loops."""
    found, steps = np.empty_like(rows), np.empty_like(rows)
    for r, row in enumerate(rows):
        for start in range(0, len(row), block or len(row)):
            part = row[start : start + (block or len(row))]
            largest = part[np.argmax(np.abs(part))]
            scale = np.float32(np.abs(largest) / 127) if bits == 8 else np.float32(largest / -(2 ** (bits - 1)))
            scale = scale if scales is None else scales[r, start // block]
            low, high = (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            place = slice(start, start + len(part))
            found[r, place] = np.clip(np.rint(part / scale), low, high).astype(np.float32) * scale
            steps[r, place] = abs(scale) / 2
    return found, steps


# -- integers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_are_the_nearest_multiples_of_a_scale_for_each_output(kind: str) -> None:
    before, name = layer(kind)
    rows = rows_of(kind, numpy_helper.to_array(next(t for t in before.graph.initializer if t.name == name)))
    after, record = quantized(before, "block=0")
    assert record.changes == 1
    expected, _ = reference(rows, 8, 0)
    exact = kind in (*FOLDED, "Gather", "MatMul")
    np.testing.assert_allclose(effective(after, kind), expected, rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm^T"])
def test_products_read_few_bits_in_blocks(kind: str, bits: int, tmp_path: Path) -> None:
    before, name = layer(kind)
    rows = rows_of(kind, numpy_helper.to_array(next(t for t in before.graph.initializer if t.name == name)))
    block = 32 if bits == 4 else 64  # 2 bits in smaller blocks are slower than float
    after, _ = quantized(before, f"bits={bits},block={block},accuracy_level=1,error=round,least_sqnr=0")
    assert kernels(builders.save(after, tmp_path / "w.onnx"))["MatMulNBits"] == 1
    expected, _ = reference(rows, bits, block, scales=stored_scales(after))
    np.testing.assert_allclose(effective(after, kind), expected, rtol=0, atol=0 if kind == "MatMul" else 1e-5)


def test_scales_of_many_blocks_take_eight_bits_and_a_factor_a_row() -> None:
    net = Net()
    before = net.model(net.op("MatMul", net.input("N", 384), weight := net.weight(384, 64)))
    after, _ = quantized(onnx.shape_inference.infer_shapes(before), "bits=4,error=round,least_sqnr=0")
    held = {t.name.removeprefix(weight): numpy_helper.to_array(t) for t in after.graph.initializer}
    assert held["_scale_q8"].dtype == np.int8 and held["_scale_q8"].shape == (64, 12)
    assert held["_scale_row"].shape == (64, 1)
    exact = np.stack([b[np.argmax(np.abs(b))] / -8 for b in net.weights[weight].T.reshape(-1, 32)]).reshape(64, 12)
    assert (np.abs(stored_scales(after) - exact) <= held["_scale_row"] * 0.501).all()
    graph, operators = decode(after), load_operators()
    assert cost.parameters(graph, operators).total == 384 * 64, "scales are no parameters"
    assert sum(layer.parameters for layer in cost.layers(graph, operators)) == 384 * 64


@pytest.mark.parametrize(("inner", "block"), [(96, 32), (784, 64), (768, 128), (300, 64)])
def test_eight_bit_products_come_in_the_block_that_takes_least_space(inner: int, block: int, tmp_path: Path) -> None:
    net = Net()
    weight = net.weight(inner, 40)
    before = onnx.shape_inference.infer_shapes(net.model(net.op("MatMul", net.input("N", inner), weight)))
    after, _ = quantized(before, "accuracy_level=1")
    (node,) = (n for n in after.graph.node if n.op_type == "MatMulNBits")
    assert {a.name: a.i for a in node.attribute}["block_size"] == block
    expected, _ = reference(net.weights[weight].T, 8, block)
    found = builders.run(after, {"x0": np.eye(inner, dtype=np.float32)})[0].T
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("kind", FOLDED)
def test_convolutions_are_decoded_at_load_and_run_in_float(kind: str, bits: int, tmp_path: Path) -> None:
    before, name = layer(kind)
    rows = rows_of(kind, numpy_helper.to_array(next(t for t in before.graph.initializer if t.name == name)))
    after, _ = quantized(before, f"bits={bits},block=0,error=round,least_sqnr=0")
    expected, steps = reference(rows, bits, 0)
    found = effective(after, kind)
    np.testing.assert_array_equal(found, expected)
    assert (np.abs(found - rows) <= np.where(np.sign(rows) == np.sign(expected), 4, 2) * steps * 1.01).all()
    run = kernels(builders.save(after, tmp_path / "w.onnx"))
    assert not DECODING & set(run), "decoding nodes are left at run time"
    assert builders.ops(after)["Cast"] == 1


@pytest.mark.parametrize("bits", [4, 2])
def test_tables_are_looked_up_in_blocks_without_being_decoded(bits: int, tmp_path: Path) -> None:
    before, name = layer("Gather")
    rows = numpy_helper.to_array(next(t for t in before.graph.initializer if t.name == name))
    after, _ = quantized(before, f"bits={bits},block=32,error=round")
    assert kernels(builders.save(after, tmp_path / "w.onnx"))["GatherBlockQuantized"] == 1
    np.testing.assert_array_equal(effective(after, "Gather"), reference(rows, bits, 32)[0])


@pytest.mark.parametrize(("low", "high"), [(-3, 4), (0, 7), (-1, 1), (-7, 0), (-100, 100), (0, 255)])
def test_an_explicit_range_of_integers_is_kept_to(low: int, high: int) -> None:
    before, _ = layer("Conv")
    rows = rows_of("Conv", stored_weight(before))
    after, _ = quantized(before, f"low={low},high={high},error=round")
    found = effective(after, "Conv")
    for row, decoded in zip(rows, found, strict=True):
        above = max(row.max(), 0) / high if high else 0.0
        below = min(row.min(), 0) / low if low else 0.0
        scale = np.float32(max(above, below))
        integers = decoded / scale
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-4)
        assert low - 1e-3 <= integers.min()
        assert integers.max() <= high + 1e-3
        np.testing.assert_allclose(np.rint(integers), np.clip(np.rint(row / scale), low, high))


@pytest.mark.parametrize(
    ("options", "largest"), [("bits=8", 127), ("bits=4,block=0", 8), ("form=ternary", 1), ("form=binary", 1)]
)
def test_scales_are_powers_of_two_on_request(options: str, largest: int) -> None:
    before, _ = layer("Conv")
    rows = rows_of("Conv", stored_weight(before))
    found = effective(quantized(before, f"{options},scale=pow2")[0], "Conv")
    for row, decoded in zip(rows, found, strict=True):
        fits = [e for e in range(-24, 8) if (decoded * 2.0**-e == np.rint(decoded * 2.0**-e)).all()]
        steps = decoded * 2.0 ** -max(fits)
        assert np.abs(steps).max() <= largest
        if "bits" in options:  # no other power of two is much better
            nets = [np.clip(np.rint(row * 2.0**-e), -largest, largest - (largest == 8)) * 2.0**e for e in range(-24, 8)]
            least = min(float(np.square(row - net).sum()) for net in nets)
            assert np.square(row - decoded).sum() <= 1.001 * least


def stored_weight(proto: ModelProto) -> np.ndarray:
    """The largest initializer."""
    return max((numpy_helper.to_array(t) for t in proto.graph.initializer), key=lambda a: a.size)


# -- signs, three values, tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOLDED)
def test_binary_is_the_mean_magnitude_times_the_sign(kind: str) -> None:
    before, _ = layer(kind)
    rows = rows_of(kind, stored_weight(before))
    found = effective(quantized(before, "form=binary")[0], kind)
    np.testing.assert_array_equal(np.sign(found), np.where(rows >= 0, 1, -1))
    np.testing.assert_allclose(
        np.abs(found), np.repeat(np.abs(rows).mean(axis=1)[:, None], rows.shape[1], 1), rtol=1e-6
    )


def test_ternary_leaves_small_weights_out() -> None:
    before, _ = layer("Conv")
    rows = rows_of("Conv", stored_weight(before))
    found = effective(quantized(before, "form=ternary")[0], "Conv")
    for row, decoded in zip(rows, found, strict=True):
        kept = np.abs(row) > 0.7 * np.abs(row).mean()
        np.testing.assert_allclose(decoded, np.sign(row) * kept * np.abs(row[kept]).mean(), rtol=1e-6)


@pytest.mark.parametrize("clusters", [2, 5, 16, 200])
def test_a_codebook_has_few_levels_and_every_weight_takes_the_nearest(clusters: int) -> None:
    before, _ = layer("Conv")
    weight = stored_weight(before)
    after, _ = quantized(before, f"form=codebook,clusters={clusters}")
    found = effective(after, "Conv").reshape(-1)
    levels = np.unique(found)
    assert len(levels) <= clusters
    nearest = levels[np.abs(weight.reshape(-1)[:, None] - levels).argmin(axis=1)]
    np.testing.assert_array_equal(np.abs(found - weight.reshape(-1)), np.abs(nearest - weight.reshape(-1)))
    for level in levels:  # where k-means has come to rest every level is the mean of what it stands for
        assert abs(weight.reshape(-1)[found == level].mean() - level) < 0.02 * np.ptp(weight)


def test_a_codebook_keeps_pruned_weights_at_zero() -> None:
    before, name = layer("Conv")
    tensor = next(t for t in before.graph.initializer if t.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.6)] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    found = effective(quantized(before, "form=codebook,bits=4")[0], "Conv")
    assert (found[rows_of("Conv", weight) == 0] == 0).all()
    assert len(np.unique(found)) <= 16


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("bits=8", 8), ("bits=4,block=0", 4), ("bits=2,block=0", 2), ("form=binary", 1), ("form=ternary", 2),
        ("form=codebook,bits=4", 4), ("form=codebook,clusters=3", 2), ("low=-1,high=1", 2), ("low=-3,high=4", 4),
    ],
)  # fmt: skip
def test_the_file_shrinks_by_the_bits(options: str, bits: int) -> None:
    net = Net()
    x = net.input("N", 32, 8, 8)
    for _ in range(3):
        x = net.conv(x, 32, 32, 5)
    before = onnx.shape_inference.infer_shapes(net.model(x), strict_mode=True)
    elements = 3 * 32 * 32 * 25
    after, record = quantized(before, options)
    assert record.changes == 3
    rest = len(to_bytes(decode(before))) - 4 * elements
    assert len(to_bytes(decode(after))) < rest + elements * bits / 8 * 1.03 + 3 * 1100
    onnx.checker.check_model(after, full_check=True)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 24), st.integers(1, 3)),
    bits=st.sampled_from([8, 4, 2]),
    block=st.sampled_from([0, 16, 32, 20]),
    form=st.sampled_from(["integer", "binary", "ternary", "codebook"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=40)
def test_any_shape_comes_out_in_shape_and_close(
    shape: tuple[int, int, int], bits: int, block: int, form: str, seed: int
) -> None:
    """Odd sizes, sizes below a block, padding: the decoded weight is never farther off than its form allows."""
    out, into, size = shape
    net = Net(seed=seed)
    weight = net.weight(out, into, size, size)
    proto = net.model(net.op("Conv", net.input("N", into, 4, 4), weight))
    before = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    after, record = quantized(before, f"bits={bits},block={block},form={form}")
    if not record.changes:
        assert record.skips[0].why
        return
    rows, found = rows_of("Conv", stored_weight(before)), effective(after, "Conv")
    assert found.shape == rows.shape
    step = {8: 1 / 254, 4: 1 / 7, 2: 1.0}[bits] if form == "integer" else 1.01
    assert (np.abs(found - rows) <= np.abs(rows).max() * step * 1.01 + 1e-6).all()


def test_a_transformer_in_four_bits_has_the_work_it_had() -> None:
    """Sizes are followed through operators that onnx does not know."""
    graph, operators = decode(builders.transformer(width=64, hidden=128)), load_operators()
    sample = dict.fromkeys(("input_ids", "attention_mask"), (1, 6))
    before = cost.stats(graph, operators, file_bytes=0, sample=sample).macs
    result = PassManager(Pipeline.parse("quantize-weights{bits=4,block=32}")).run(graph, PassContext())
    assert sum(node.op == "MatMulNBits" for node in result.graph.nodes) == 6
    assert cost.stats(result.graph, operators, file_bytes=0, sample=sample).macs == before > 0


# -- errors made good --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MatMul", "Gemm^T", "Conv"])
@pytest.mark.parametrize("bits", [4, 2])
def test_calibration_data_makes_the_error_of_outputs_smaller(kind: str, bits: int) -> None:
    before, _ = layer(kind)
    random = np.random.default_rng(5)
    shape = builders.feeds_of(before, batch=256)["x0"].shape
    mix = random.standard_normal((shape[1], shape[1])).astype(np.float32)
    feeds = {"x0": np.einsum("nc...,cd->nd...", random.standard_normal(shape).astype(np.float32), mix) + 1}
    feeds["x0"] = feeds["x0"].astype(np.float32)
    unseen = {"x0": feeds["x0"][:64] * np.float32(0.9)}
    exact = builders.run(before, unseen)[0]
    found = {
        error: builders.sqnr_db(exact, builders.run(quantized(before, options, feeds=feeds)[0], unseen)[0])
        for error in ("round", "mse", "gptq", "auto")
        if (options := f"bits={bits},block=32,error={error},accuracy_level=1")
    }
    assert found["gptq"] > found["round"] + 2
    assert found["gptq"] > found["mse"]
    assert found["auto"] == found["gptq"]


def test_gptq_without_data_is_an_error() -> None:
    with pytest.raises(DataError):
        quantized(layer("MatMul")[0], "bits=4,error=gptq")


# -- what must be left alone, or handled with care ---------------------------------------------------------------------


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
