"""Do portable weights compute the same on every x86? The arithmetic without VNNI, in numpy, against that with it."""

from __future__ import annotations

from collections.abc import Callable

import builders
import numpy as np
import pytest
import saturating
from nets import Net
from onnx import ModelProto, numpy_helper
from test_pass_quantize_qdq import FUSE, concat_net, model_of, quantized

MODELS = [builders.residual_cnn, builders.depthwise_cnn, builders.mlp, concat_net]


def bright(proto: ModelProto) -> ModelProto:
    """The same model with weights of one sign, which saturate most."""
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), tensor.name))
    return proto


def feeds(proto: ModelProto) -> dict[str, np.ndarray]:
    """Inputs that reach the upper end of their range."""
    return {name: np.abs(array) + 0.5 for name, array in builders.feeds_of(proto, batch=8).items()}


@pytest.mark.parametrize("build", MODELS)
def test_the_emulation_without_saturation_is_what_this_machine_computes(build: Callable[[], ModelProto]) -> None:
    before = build()
    after, _ = quantized(before, FUSE + "quantize-qdq{isa=native}", feeds=feeds(before))
    found = saturating.run(after, feeds(before), saturating=False)[0]
    assert builders.sqnr_db(builders.run(after, feeds(before), optimized=False)[0], found) > 50


@pytest.mark.parametrize("build", MODELS)
def test_portable_weights_never_saturate(build: Callable[[], ModelProto]) -> None:
    before = bright(build())
    after, _ = quantized(before, FUSE + "quantize-qdq", feeds=feeds(before))
    wide = saturating.run(after, feeds(before), saturating=False)[0]
    np.testing.assert_array_equal(saturating.run(after, feeds(before))[0], wide)


@pytest.mark.parametrize("offset", [0, 1])
def test_kernels_over_an_odd_number_of_channels_are_safe_wherever_pairs_begin(offset: int) -> None:
    net = Net()
    before = bright(model_of(net, net.conv(net.input("N", 3, 8, 8), 3, 16, 5)))
    after, _ = quantized(before, feeds=feeds(before))
    wide = saturating.run(after, feeds(before), saturating=False)[0]
    np.testing.assert_array_equal(saturating.run(after, feeds(before), offset=offset)[0], wide)


def test_native_weights_saturate_and_lose_by_it() -> None:
    before = bright(builders.residual_cnn(batch_norm=False))
    exact = builders.run(before, feeds(before))[0]
    native, _ = quantized(before, "quantize-qdq{isa=native}", feeds=feeds(before))
    wide = builders.sqnr_db(exact, saturating.run(native, feeds(before), saturating=False)[0])
    narrow = builders.sqnr_db(exact, saturating.run(native, feeds(before))[0])
    assert narrow < wide - 6
