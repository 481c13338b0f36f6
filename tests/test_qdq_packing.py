"""Do weights of 4 bits lie packed in the file, run on 8-bit kernels, and keep 8 bits where the outputs need them?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from nets import Net
from onnx import ModelProto
from test_pass_quantize_qdq import fidelity, model_of, quantized, stored

from onnxcomp.runtime.profile import kernels


def deep_net() -> ModelProto:
    """Four convolutions; what the last but one gives is weighed a hundred times in the output."""
    net = Net(seed=2)
    x = net.input("N", 16, 8, 8)
    for _ in range(2):
        x = net.op("Relu", net.conv(x, 16, 16))
    loud = net.op("Mul", net.conv(x, 16, 16), net.const([100.0], np.float32))
    return model_of(net, net.op("Add", loud, net.conv(x, 16, 16)))


def codes_of(proto: ModelProto) -> list[str]:
    """Names of the weights that are packed."""
    return [t.name for t in proto.graph.initializer if t.name.endswith("_codes")]


def test_weights_of_four_bits_lie_packed_and_are_multiplied_as_eight(tmp_path: Path) -> None:
    before = deep_net()
    wide, _ = quantized(before, "quantize-qdq{min_sqnr=0}")
    after, record = quantized(before, "quantize-qdq{bits=4,min_sqnr=0}")
    assert len(codes_of(after)) == 4 and all(held.size == 16 * 16 * 9 // 2 for held in packed(after))
    assert kernels(builders.save(after, tmp_path / "a.onnx"))["QLinearConv"] == 4
    assert len(wide.SerializeToString()) - len(after.SerializeToString()) > 4 * 500
    assert all("int4 weights" in change.what for change in record.details)
    assert fidelity(before, after) > 12
    assert fidelity(before, after) == pytest.approx(fidelity(before, after, literal=True), abs=1.0)


def packed(proto: ModelProto) -> list[np.ndarray]:
    return [values for name, values in stored(proto).items() if name.endswith("_codes")]


def test_what_costs_the_outputs_most_keeps_eight_bits() -> None:
    before = deep_net()
    narrow, _ = quantized(before, "quantize-qdq{bits=4,min_sqnr=40,average=0}")
    after, record = quantized(before, "quantize-qdq{bits=4,min_sqnr=40,average=5.2}")
    assert len(codes_of(narrow)) == 4 and len(codes_of(after)) == 3
    assert any("1 of 4 weights keep 8 bits" in note for note in record.notes)
    assert fidelity(before, after) > fidelity(before, narrow) + 0.5


def test_where_nothing_is_decoded_at_load_weights_keep_eight_bits_and_it_is_said() -> None:
    after, record = quantized(deep_net(), "quantize-qdq{bits=4,min_sqnr=0}", target="tensorrt")
    assert not codes_of(after)
    assert any("does not decode weights at load" in note for note in record.notes)
