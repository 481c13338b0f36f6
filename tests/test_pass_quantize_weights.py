"""Is every form of few-bit weights what it says, bit for bit, small in the file and no slower than float kernels?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from feeds import Feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, TensorProto, numpy_helper

from onnxcomp.errors import DataError
from onnxcomp.graph import cost
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import to_bytes
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


def test_made_up_samples_show_along_which_directions_a_layer_is_fed() -> None:
    """Behind a layer inputs lie in few directions, whatever enters the model; biases take no mean of such samples."""
    net = Net()
    weight, bias = net.weight(96, 40), net.weight(40)
    out = net.op("Gemm", net.op("MatMul", net.input("N", 24), net.weight(24, 96)), weight, bias)
    proto = net.model(out)
    random = np.random.default_rng(3)
    probes = Feeds({"x0": random.standard_normal((64, 24)).astype(np.float32)})
    unseen = {"x0": (random.uniform(0, 3, (256, 24)) ** 2).astype(np.float32)}
    exact, found = builders.run(proto, unseen)[0], {}
    for error in ("mse", "auto"):
        pipeline = Pipeline.parse(
            f"quantize-weights{{bits=4,error={error},accuracy_level=1,least_sqnr=0,include=[*Gemm]}}"
        )
        result = encode(PassManager(pipeline).run(decode(proto), PassContext(probes=probes)).graph)
        found[error] = builders.sqnr_db(exact, builders.run(result, unseen)[0])
        kept = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
        assert np.array_equal(kept[bias], {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}[bias])
    assert found["auto"] > found["mse"] + 1


def test_gptq_without_data_is_an_error() -> None:
    with pytest.raises(DataError):
        quantized(layer("MatMul")[0], "bits=4,error=gptq")


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**90])
def test_codes_do_not_depend_on_the_scale_of_a_weight(scale: float) -> None:
    net = Net()
    model = net.model(net.op("MatMul", net.input("N", 128), net.weight(128, 64)))
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    (weight,) = (t for t in scaled.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(scale), weight.name))
    codes = []
    for proto in (model, scaled):
        with np.errstate(over="raise"):
            result = PassManager(Pipeline.parse("quantize-weights{bits=4}"), verify=False).run(
                decode(proto), PassContext()
            )
        found = onnx.load_from_string(to_bytes(result.graph))
        codes.append(
            [numpy_helper.to_array(t) for t in found.graph.initializer if len(t.dims) > 1 and t.data_type != 1]
        )
    assert codes[0]
    for one, other in zip(*codes, strict=True):
        np.testing.assert_array_equal(one, other)
