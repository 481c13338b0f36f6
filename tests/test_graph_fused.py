"""Are models that ONNX Runtime's optimizer wrote compressed as the plain ones are?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import Net

import onnxcomp
from onnxcomp.graph.fused import is_fused, take_apart
from onnxcomp.graph.io import load, save


def plain() -> onnx.ModelProto:
    """Convolutions with each activation that ONNX Runtime fuses, one with a summand, and a Gemm."""
    net = Net(opset=17)
    x = net.input("N", 8, 8, 8)
    h = net.op("Relu", net.conv(x, 8, 16))
    summed = {"activation": "Relu", "pads": [1] * 4, "kernel_shape": [3, 3]}
    h = net.op("FusedConv", h, net.weight(16, 16, 3, 3), net.weight(16), h, domain="com.microsoft", **summed)
    h = net.op("LeakyRelu", net.conv(h, 16, 16), alpha=0.2)
    h = net.op("Clip", net.conv(h, 16, 16), net.const(0.0, np.float32), net.const(6.0, np.float32))
    h = net.op("HardSigmoid", net.conv(h, 16, 16), alpha=0.3, beta=0.4)
    h = net.op("Sigmoid", net.conv(h, 16, 16))
    h = net.op("Tanh", net.conv(h, 16, 16))
    h = net.op("Flatten", net.op("GlobalAveragePool", h))
    y = net.op("Relu", net.op("Gemm", h, net.weight(16, 12), net.weight(12)))
    return net.model(y, domains={"com.microsoft": 1})


def optimized(proto: onnx.ModelProto, path: Path) -> Path:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def test_taken_apart_they_compute_the_same(tmp_path: Path) -> None:
    proto = plain()
    path = optimized(proto, tmp_path / "m.onnx")
    assert {"FusedConv", "FusedGemm"} <= set(builders.ops(onnx.load(path)))
    graph = load(path)
    names = [node.name for node in graph.nodes if node.op.startswith("Fused")]
    (said,) = take_apart(graph)
    assert "7 FusedConv" in said and "1 FusedGemm" in said and not is_fused(graph)
    assert {node.op for node in graph.nodes if node.name in names} == {"Conv", "Gemm"}
    save(graph, tmp_path / "o.onnx")
    feeds = {"x0": builders.rng(1).standard_normal((3, 8, 8, 8)).astype(np.float32)}
    for level in (True, False):
        a, b = (builders.run(p, feeds, optimized=level)[0] for p in (path, tmp_path / "o.onnx"))
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("spec", ["quantize-qdq{placement=table}", "prune-channels{macs=0.6}"])
def test_passes_meet_the_plain_layers_and_it_is_said(spec: str, tmp_path: Path) -> None:
    net = Net(opset=17)
    h = net.input("N", 3, 16, 16)
    for fan_in, fan_out in ((3, 16), (16, 16), (16, 32)):
        h = net.op("Relu", net.conv(h, fan_in, fan_out))
    path = optimized(net.model(net.op("Flatten", net.op("GlobalAveragePool", h))), tmp_path / "m.onnx")
    x = np.repeat(np.repeat(builders.rng(1).standard_normal((48, 3, 4, 4)), 4, 2), 4, 3).astype(np.float32)
    out = tmp_path / "o.onnx"
    report = onnxcomp.optimize(path, data={"x0": x}, passes=spec, output=out, bench=False)
    assert report.verdict == "accepted" and report.after.bytes < 0.75 * report.before.bytes
    assert any("taken apart" in note for record in report.passes for note in record.notes)
    clean = onnxcomp.optimize(path, passes="cleanup", output=out, bench=False)
    assert clean.exit_code == 13  # what changes nothing leaves them as they are
