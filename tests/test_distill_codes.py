"""Are weights that a model stores as integers trained on their own grid, and written back as integers?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import pytest
from nets import Net
from onnx import ModelProto, numpy_helper
from training_cases import write_back

from onnxcomp.distill.trainable import prepare
from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.coded import Coded, CodedWriter
from onnxcomp.graph.ir import Graph
from onnxcomp.ops.facts import load_operators
from onnxcomp.runtime.session import open_session

OPERATORS = load_operators()
SHAPE = (8, 6)


def integers(low: int, high: int) -> np.ndarray:
    return builders.rng(2).integers(low, high + 1, SHAPE)


def dequantized(kind: Any, low: int, high: int, opset: int = 17, **attrs: Any) -> ModelProto:
    """x [N, 8] @ DequantizeLinear(codes [8, 6]), one scale a column, or one a block."""
    net = Net(opset=opset)
    x = net.op("Relu", net.input("N", 8))
    size = (2, 6) if "block_size" in attrs else (6,)
    codes = net.const(integers(low, high), kind)
    scale, zero = net.const(np.full(size, 0.1), np.float32), net.const(np.full(size, (low + high + 1) // 2), kind)
    axis = 0 if "block_size" in attrs else 1
    return net.model(net.op("MatMul", x, net.op("DequantizeLinear", codes, scale, zero, axis=axis, **attrs)))


def written(bits: int) -> ModelProto:
    """A product whose weight is stored as quantize-weights stores it."""
    net = Net()
    y = net.op("MatMul", net.input("N", 8), net.weight(*SHAPE))
    graph = decode(net.model(y))
    codes = integers(0, 2**bits - 1).astype(np.uint8)
    scale = np.full((1, 6), 0.1, np.float32)
    constant = next(c for c in graph.constants() if c.name == "w0")
    CodedWriter(graph).write(constant, Coded(codes, bits, zero=float(2 ** (bits - 1)), scale=scale))
    graph.sort()
    return encode(graph)


def in_blocks(bits: int, *, zero: bool, small_scales: bool = False) -> ModelProto:
    net = Net()
    packed = net.const(builders.rng(3).integers(0, 256, (4, 2, 16 * bits // 8)), np.uint8)
    scales = net.const(np.full((4, 2), 0.1), np.float32)
    if small_scales:
        codes = net.const(np.array([[127, -90], [3, 127], [100, 127], [-127, 5]]), np.int8)
        scales = net.op("Mul", net.const(np.full((4, 1), 1e-3), np.float32), net.op("Cast", codes, to=1))
    ports = [packed, scales]
    if zero:
        ports.append(net.const(np.full((4, 2 * bits // 8 or 1), 0x77), np.uint8))
    attrs = {"K": 24, "N": 4, "bits": bits, "block_size": 16, "domain": "com.microsoft"}
    return net.model(net.op("MatMulNBits", net.input("N", 24), *ports, **attrs), domains={"com.microsoft": 1})


FORMS: dict[str, ModelProto] = {
    "int8": dequantized(np.int8, -127, 127),
    "uint8": dequantized(np.uint8, 0, 255),
    "int8 blocks": dequantized(np.int8, -127, 127, 21, block_size=4),
    **{f"{bits} bits, decoded by nodes": written(bits) for bits in (2, 4, 8)},
    "4 bits of MatMulNBits": in_blocks(4, zero=True),
    "8 bits of MatMulNBits": in_blocks(8, zero=False),
    "4 bits of MatMulNBits, 8-bit scales": in_blocks(4, zero=False, small_scales=True),
}


def run(proto: ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output by the operators as they stand: ONNX Runtime's fused product rounds its other operand, too."""
    found = open_session(proto.SerializeToString(), optimize=False).run(feeds)
    return next(iter(found.values()))


def values(graph: Graph) -> dict[str, np.ndarray]:
    return {c.name: np.asarray(c.values) for c in graph.constants()}


@pytest.mark.parametrize("form", FORMS)
def test_the_training_form_of_stored_integers_computes_the_same(form: str) -> None:
    graph = decode(FORMS[form])
    ready = prepare(graph, OPERATORS, {}, 2)
    assert len(ready.trainable) == 1
    feeds = builders.feeds_of(FORMS[form], batch=2)
    want, got = run(FORMS[form], feeds), run(encode(ready.graph), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_not_moved_comes_back_to_the_byte_and_what_was_moved_on_the_grid(form: str) -> None:
    graph = decode(FORMS[form])
    ready = prepare(graph, OPERATORS, {}, 2)
    (name,) = ready.trainable
    weight, before = values(ready.graph)[name], values(graph)[name]
    same = values(write_back(graph, ready, {name: weight}))[name]
    changed = values(write_back(graph, ready, {name: weight + np.float32(0.13)}))[name]
    if "MatMulNBits" not in form:  # what fills up its last block is nobody's
        np.testing.assert_array_equal(same, before)
    assert changed.dtype == before.dtype
    moved = write_back(graph, ready, {name: weight + np.float32(0.13)})
    feeds = builders.feeds_of(FORMS[form], batch=2)
    exact = prepare(graph, OPERATORS, {}, 2)
    constant = next(c for c in exact.graph.constants() if c.name == name)
    low, high = (np.broadcast_to(bound, constant.shape) for bound in ready.grids[name].bounds)
    constant.values = np.clip(constant.values + np.float32(0.13), low, high)
    want, got = run(encode(exact.graph), feeds), run(encode(moved), feeds)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_biases_stored_as_int32_are_trained_too() -> None:
    net = Net()
    codes = net.const(integers(-127, 127), np.int8)
    weight = net.op("DequantizeLinear", codes, net.const(0.1, np.float32), net.const(0, np.int8))
    bias = net.op("DequantizeLinear", net.const([5, -3, 2, 1, 0, 9], np.int32), net.const(0.01, np.float32))
    ready = prepare(decode(net.model(net.op("Gemm", net.input("N", 8), weight, bias))), OPERATORS, {}, 2)
    assert len(ready.trainable) == 2


def test_products_of_integers_are_refused_with_the_reason() -> None:
    net = Net()
    x, scale, zero = net.op("DynamicQuantizeLinear", net.input("N", 8), outputs=3)
    product = net.op("MatMulInteger", x, net.const(integers(-127, 127), np.int8), zero)
    y = net.op("Mul", net.op("Cast", product, to=1), scale)
    ready = prepare(decode(net.model(y)), OPERATORS, {}, 2)
    with pytest.raises(ModelError, match="carry no gradient: MatMulInteger"):
        ready.require()


def test_shared_codes_stay() -> None:
    net = Net()
    codes, zero = net.const(integers(-127, 127), np.int8), net.const(0, np.int8)
    parts = [net.op("DequantizeLinear", codes, net.const(s, np.float32), zero) for s in (0.1, 0.2)]
    x = net.input("N", 8)
    y = net.op("Add", *(net.op("MatMul", x, part) for part in parts))
    proto = net.model(y)
    assert prepare(decode(proto), OPERATORS, {}, 2).trainable == ()
    assert numpy_helper.to_array(proto.graph.initializer[0]).dtype == np.int8
