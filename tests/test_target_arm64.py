"""Do integers for ARM64 have the form that its kernels take: signed on both sides, and no pair of weights held back?"""

from __future__ import annotations

import builders
import numpy as np
import pytest
from feeds import RuledCosts
from onnx import ModelProto, TensorProto, numpy_helper
from test_pass_quantize_qdq import fidelity, quantized, weights_of

from onnxcomp.targets.table import find


def types(model: ModelProto) -> tuple[set[int], set[int]]:
    """Element types of the zero points of activations, and of the weights."""
    held = {t.name: t for t in model.graph.initializer}
    zeros = {held[n.input[2]].data_type for n in model.graph.node if n.op_type == "QuantizeLinear"}
    stored = [n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    return zeros, {held[name].data_type for name in stored} - {TensorProto.INT32}


def largest_pair(model: ModelProto) -> int:
    """The largest sum of two neighbouring weights of one sign along the columns of any stored int8 matrix or kernel."""
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    rows = [np.abs(np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]).astype(int)) for a in arrays if a.ndim > 1]
    return max(int((r[:, ::2][:, : r.shape[1] // 2] + r[:, 1::2]).max()) for r in rows if r.shape[1] > 1)


def test_activations_and_weights_are_signed() -> None:
    before = builders.residual_cnn()
    after, record = quantized(before, "fuse-batchnorm,quantize-qdq", target="arm64")
    assert record.changes
    assert types(after) == ({TensorProto.INT8}, {TensorProto.INT8})
    assert types(quantized(before, "fuse-batchnorm,quantize-qdq")[0])[0] == {TensorProto.UINT8}
    assert fidelity(before, after, literal=True) > 28


def test_an_activation_behind_relu_uses_all_of_its_integers() -> None:
    after, _ = quantized(builders.residual_cnn(), "fuse-batchnorm,quantize-qdq", target="arm64")
    held = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    zeros = [int(held[n.input[2]]) for n in after.graph.node if n.op_type == "QuantizeLinear"]
    assert -128 in zeros  # 0 is the lowest value: half of the range would be lost with a zero point of 0


@pytest.mark.parametrize("target", ["arm64", "tensorrt"])
def test_no_weight_is_held_back_for_sums_of_sixteen_bits(target: str) -> None:
    before = builders.mlp((16, 64, 10))
    held = quantized(before, "quantize-qdq{rounding=nearest}")[0]
    free = quantized(before, "quantize-qdq{rounding=nearest}", target=target)[0]
    native = quantized(before, "quantize-qdq{rounding=nearest,isa=native}", target=target)[0]
    assert weights_of(free) and largest_pair(free) > largest_pair(held)
    assert [t.raw_data for t in free.graph.initializer] == [t.raw_data for t in native.graph.initializer]


def test_products_quantized_at_run_time_hold_nothing_back_either() -> None:
    before, spec = builders.transformer(), "quantize-dynamic{least=1,smooth=0}"
    feeds = builders.transformer_feed()
    free, held = (quantized(before, spec, feeds=feeds, target=target)[0] for target in ("arm64", "cpu"))
    assert largest_pair(free) > largest_pair(held)


def test_times_of_another_processor_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, costs = builders.mlp((16, 64, 10)), RuledCosts(lambda node: 1.0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not find("arm64").timed_here and find("cpu").timed_here
    assert quantized(before, target="arm64", costs=costs)[1].changes  # by its table: here nothing is faster
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert find("arm64").timed_here
    assert not quantized(before, target="arm64", costs=costs)[1].changes
