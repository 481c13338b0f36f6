"""Is a layer told to be int8 where ONNX Runtime multiplies integers, and only there?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest

import onnxcomp


@pytest.mark.parametrize(
    ("spec", "opset", "computes", "stored"),
    [
        ("quantize-dynamic{least=1}", 17, "int8", None),
        ("quantize-weights{bits=8}", 17, "int8", None),  # MatMulNBits quantizes its input
        ("quantize-weights{bits=8,accuracy_level=1}", 17, "float32", "int8"),
        ("store-weights", 17, "float32", "int8"),
        ("quantize-qdq{placement=table}", 17, "int8", None),
    ],
)
def test_precision_is_what_the_kernel_multiplies(
    spec: str, opset: int, computes: str, stored: str | None, tmp_path: Path
) -> None:
    path = builders.save(builders.mlp((64, 96, 32), opset=opset, trans_b=0), tmp_path / "m.onnx")
    data = {"x": builders.rng(1).standard_normal((64, 64)).astype(np.float32)}
    out = tmp_path / "o.onnx"
    report = onnxcomp.optimize(path, data=data, passes=spec, output=out, bench=False)
    layers = [layer for layer in report.layers if layer.parameters[0] > 1000]
    assert {layer.precision[1] for layer in layers} == {computes}
    assert {layer.stored[1] if layer.stored else None for layer in layers} == {stored}
    unseen = onnxcomp.optimize(path, data=data, passes=spec, output=out, bench=False, verify=False)
    assert {layer.precision[1] for layer in unseen.layers if layer.parameters[0] > 1000} == {"int8"}  # as it is stored
