#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: an int32 bias of a Gemm that has a scale of its own is read as if it had the product's.
#
# In Q/DQ form the bias of a Conv or Gemm may be int32 -> DequantizeLinear(scale). By the standard any scale is good. The integer
# kernels' bias has none: it is by definition in steps of input_scale * weight_scale. For Conv the optimizer compares the two, and
# leaves the layer in float where they differ. For Gemm it does not: from ORT_ENABLE_EXTENDED on the integers go to QGemm as
# they are. Seen, a bias stored five times as finely as the product: it counts five times, outputs move by a hundred quantization
# steps of 255, no message; right with optimizations off and up to ORT_ENABLE_BASIC. The product's own scale, or a float
# bias, is right at every level.
# Where it bites: a file whose activation or weight scale was edited, re-calibrated or equalized after the bias was written, and
# writers that give the bias a range of its own. Store the bias anew with every change of a scale. Exits non-zero where that is no
# longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from common import ALL, NONE, expect, kernels, model, random, session
from onnx import helper

BASIC = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
STEP, WEIGHT_STEP, OUT_STEP = 0.05, 0.01, 0.02
BIAS = np.asarray([1.0, -0.8, 0.6, -0.4], np.float32)


def layer(kind, finer):
    """Q/DQ around a Conv or Gemm of 4 outputs; the bias is stored `finer` times as finely as the product, in float for 0."""
    shape, kernel = ([1, 4, 6, 6], (4, 4, 3, 3)) if kind == "Conv" else ([3, 8], (8, 4))
    weights = {
        "sx": np.float32(STEP), "z": np.uint8(128), "sw": np.float32(WEIGHT_STEP), "zw": np.int8(0), "sy": np.float32(OUT_STEP),
        "w8": random.integers(-60, 61, kernel, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "sw", "zw"], ["w"]),
        helper.make_node(kind, ["xd", "w", "b"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "sy", "z"], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", "sy", "z"], ["y"]),
    ]
    if finer:
        scale = STEP * WEIGHT_STEP / finer
        weights |= {"b8": np.round(BIAS / scale).astype(np.int32), "sb": np.float32(scale)}
        nodes.insert(3, helper.make_node("DequantizeLinear", ["b8", "sb"], ["b"]))
    else:
        weights["b"] = BIAS
    return model(nodes, shape, weights), random.normal(size=shape).astype(np.float32)


def steps(made, x, level):
    """The largest difference from the file run as it stands, in quantization steps of the output."""
    right, got = (session(made, each).run(None, {"x": x})[0] for each in (NONE, level))
    return float(np.abs(right - got).max() / OUT_STEP)


for kind, kernel in (("Conv", "QLinearConv"), ("Gemm", "QGemm")):
    made, x = layer(kind, 1)
    expect(f"{kind}, the product's own scale: {kernel}, right", steps(made, x, ALL) < 1.5 and kernels(made)[kernel] == 1)
    made, x = layer(kind, 0)
    expect(f"{kind}, a float bias: right", steps(made, x, ALL) < 1.5)
made, x = layer("Conv", 5)
expect("Conv, bias scale a fifth of the product's: stays a float Conv, right", steps(made, x, ALL) < 1.5 and kernels(made)["Conv"] == 1)
made, x = layer("Gemm", 5)
off = steps(made, x, ALL)
expect(f"Gemm, bias scale a fifth of the product's: QGemm, {off:.0f} steps off", off > 20 and kernels(made)["QGemm"] == 1)
expect("... up to ORT_ENABLE_BASIC right", steps(made, x, BASIC) < 1.5)
PYTHON
