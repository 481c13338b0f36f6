"""Does dynamic quantization hit the integer kernels, keep the outputs close, and leave alone what it must?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import builders
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import onnxcomp
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import to_bytes
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.runtime.profile import kernels


class Feeds:
    """Model-ready samples, one batch after another."""

    labels = None
    source = "test"

    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self.feeds = feeds

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        step = size or 8
        for start in range(0, len(self), step):
            yield {name: values[start : start + step] for name, values in self.feeds.items()}


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
    proto = builders.if_model()
    _, record = quantized(proto)
    assert record.changes or all(skip.why for skip in record.skips)


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
    assert builders.sqnr_db(builders.run(path, judged)[0], after) > 19
