"""Can what explain advises be pasted, and is the model that it makes better?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from test_explain import cnn_data, scale, swap, text_data

import onnxcomp
from onnxcomp.explanation.causes import _gain
from onnxcomp.explanation.explain import explain
from onnxcomp.explanation.measuring import Error
from onnxcomp.explanation.report import Explanation
from onnxcomp.manager.pipeline import Pipeline

Feeds = dict[str, np.ndarray]


class Reader(CalibrationDataReader):
    def __init__(self, feeds: Feeds) -> None:
        self.rows = iter([{n: v[i : i + 1] for n, v in feeds.items()} for i in range(len(next(iter(feeds.values()))))])

    def get_next(self) -> Feeds | None:
        return next(self.rows, None)


def decibels(before: Path, after: Path, feeds: Feeds) -> float:
    a, b = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in (before, after)
    )
    return float(10 * np.log10(np.square(a).sum() / max(float(np.square(a - b).sum()), 1e-20)))


def made(before: Path, spec: str, feeds: Feeds, folder: Path, name: str = "advised") -> Path:
    out = folder / f"{name}.onnx"
    onnxcomp.optimize(before, output=out, data=feeds, passes=spec, bench=False)
    return out


def check_all(found: Explanation) -> None:
    """Every advice is a spec; where a layer is left out, it is named."""
    for layer in found.layers:
        if layer.own_sqnr_db is not None:
            assert Pipeline.parse(layer.advice).passes, layer
    assert Pipeline.parse(found.advice).passes


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
@pytest.mark.parametrize("kind", ["cnn", "text"])
def test_advice_on_what_onnxruntime_quantized_helps(kind: str, form: str, tmp_path: Path) -> None:
    net = builders.residual_cnn(batch_norm=False) if kind == "cnn" else builders.transformer(width=64, hidden=128)
    feeds = cnn_data(16) if kind == "cnn" else text_data(16)
    before, after = builders.save(net, tmp_path / "before.onnx"), tmp_path / "after.onnx"
    if form == "dynamic":
        quantize_dynamic(before, after, weight_type=QuantType.QUInt8)
    else:
        quantize_static(
            before,
            after,
            Reader(feeds),
            quant_format=QuantFormat[form],
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        )
    found = explain(before, after, feeds, times=False)
    assert len(found.layers) == (4 if kind == "cnn" else 6) and not found.unmatched[0]
    assert any(layer.own_sqnr_db is not None for layer in found.layers)
    check_all(found)
    first = found.layers[0]
    assert (
        first.node in first.advice
        and ("quantize-dynamic" if (kind, form) == ("text", "dynamic") else "quantize-qdq") in first.advice
    )
    assert decibels(before, made(before, first.advice, feeds, tmp_path), feeds) > decibels(before, after, feeds)


def test_advice_on_our_own_file_repeats_its_passes_without_the_layer(tmp_path: Path) -> None:
    before, feeds = builders.save(builders.residual_cnn(), tmp_path / "before.onnx"), cnn_data(16)
    spec = "fuse-batchnorm,quantize-qdq{placement=table,activations=percentile,rounding=nearest}"
    after = made(before, spec, feeds, tmp_path, "after")
    found = explain(before, after, feeds, times=False)
    check_all(found)
    first = found.layers[0]
    assert first.advice.startswith("fuse-batchnorm,quantize-qdq{") and "activations=percentile" in first.advice
    assert f"exclude=[{first.node}]" in first.advice
    every = made(before, found.advice, feeds, tmp_path)
    assert decibels(before, every, feeds) > decibels(before, after, feeds)


def test_weights_in_few_bits_are_left_out_with_the_same_bits(tmp_path: Path) -> None:
    before, feeds = builders.save(builders.transformer(width=64, hidden=128), tmp_path / "before.onnx"), text_data(16)
    after = made(before, "quantize-weights{bits=4,block=32}", feeds, tmp_path, "after")
    stranger = onnx.load(after)
    del stranger.metadata_props[:]
    onnx.save(stranger, after)
    found = explain(before, after, feeds, times=False)
    check_all(found)
    assert "bits=4" in found.layers[0].advice
    assert decibels(before, made(before, found.layers[0].advice, feeds, tmp_path), feeds) > decibels(
        before, after, feeds
    )


@pytest.mark.parametrize("damage", [scale, swap])
def test_a_float_model_that_was_damaged_is_made_anew(damage: object, tmp_path: Path) -> None:
    net = builders.residual_cnn(batch_norm=False)
    before, feeds = builders.save(net, tmp_path / "before.onnx"), cnn_data()
    damage(net, next(n for n in net.graph.node if n.name == "block.conv2"))  # type: ignore[operator]
    onnx.save(net, tmp_path / "after.onnx")
    found = explain(before, tmp_path / "after.onnx", feeds, times=False)
    assert found.layers[0].node == "block.conv2" and found.layers[0].remedy
    check_all(found)
    advised = onnxcomp.PassManager(Pipeline.parse(found.advice)).run(onnxcomp.load(before)).graph
    onnxcomp.save(advised, tmp_path / "advised.onnx")
    assert decibels(before, tmp_path / "advised.onnx", feeds) > 100


def test_integers_that_onnxruntime_fused_are_fed_as_integers(tmp_path: Path) -> None:
    """Behind QLinearAdd nothing says which type a tensor has."""
    before, feeds = builders.save(builders.residual_cnn(batch_norm=False), tmp_path / "before.onnx"), cnn_data(16)
    quantize_static(
        before, tmp_path / "qdq.onnx", Reader(feeds), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "qdq.onnx"), options, providers=["CPUExecutionProvider"])
    assert "QLinearAdd" in {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    found = explain(before, tmp_path / "fused.onnx", feeds, times=False)
    assert len(found.layers) == 4 and all(20 < (layer.own_sqnr_db or 0) < 60 for layer in found.layers)


def test_channels_that_kept_their_size_do_not_say_how_large_the_others_became() -> None:
    gain = np.where(np.arange(8) < 4, 1.7, 1.0)
    cause = _gain(Error(signal=np.ones(8), noise=(gain - 1) ** 2, cross=gain, energy=gain**2, count=8))
    assert cause is not None and "4 of 8 output channels" in cause.why and "these 1.7 times" in cause.why
