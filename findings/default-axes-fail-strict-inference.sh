#!/usr/bin/env bash
# onnx 1.23.2: MeanVarianceNormalization with the standard's own default axes passes no strict shape inference from opset 13 on.
#
# From opset 13 the operator is a function of others, and inference reads it through its body. There the default of `axes`
# ([0, 2, 3], which the schema gives) does not arrive: the body's Constant has no value, and
# infer_shapes(strict_mode=True) ends in
#   (op_type:Constant): One and only one of the attributes 'value', 'value_*' or 'sparse_value' must be specified
# although the model has no Constant node at all. In opsets 9 to 12, and with `axes` written out, the same node passes; ONNX
# Runtime 1.32.0 runs all of them with equal results; onnx's own version converter makes a refused model of an accepted
# one, from 12 to 13. Not strict, inference says nothing and leaves the output, and all behind it, without a shape.
# Exits non-zero where that is no longer so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
ORT_DISABLE_TELEMETRY=1 PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import expect, model, random, session
from onnx import helper, shape_inference, version_converter

x = random.standard_normal((2, 3, 4, 5)).astype(np.float32)


def made(opset: int, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], **attributes)
    return onnx.load_from_string(model([node], [2, 3, 4, 5], {}, opset))


def refused(proto: onnx.ModelProto) -> str:
    try:
        shape_inference.infer_shapes(proto, strict_mode=True)
    except Exception as error:
        return str(error)
    return ""


def given(proto: onnx.ModelProto) -> np.ndarray:
    return session(proto.SerializeToString()).run(None, {"x": x})[0]


def rank(proto: onnx.ModelProto) -> int:
    return len(shape_inference.infer_shapes(proto).graph.output[0].type.tensor_type.shape.dim)


for opset in (13, 18, 24):
    plain, written = made(opset), made(opset, axes=[0, 2, 3])
    expect(f"opset {opset}: with the default axes strict inference fails on a Constant", "Constant" in refused(plain))
    expect(f"opset {opset}: with the same axes written out it passes", not refused(written))
    expect("a runtime gives the same for both", bool(np.array_equal(given(plain), given(written))))
    expect("without strictness the shape is lost in silence", (rank(plain), rank(written)) == (0, 4))
expect("opset 12 with the default axes passes", not refused(made(12)))
raised = version_converter.convert_version(made(12), 13)
expect("the converter turns what passes into what does not", "Constant" in refused(raised))
PYTHON
