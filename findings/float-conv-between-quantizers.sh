#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: a convolution left in float between two quantized neighbours does not stay float.
#
# A model quantizes the tensor in front of a Conv and the one behind it, and leaves the Conv's weight in float32, as mixed
# precision does with a sensitive layer. From ORT_ENABLE_BASIC on, the optimizer rounds that weight to int8 by itself, with one
# scale for the whole tensor, and runs QLinearConv. No message. Where one output channel has far larger weights than the others,
# these lose almost everything: seen, with a channel 50 times as large, errors of a quarter of the full range in the
# other seven, against none with optimizations off.
# So whoever wants a float layer must also take away the quantizers around it.
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

weight = random.standard_normal((8, 4, 3, 3)).astype(np.float32)
weight[0] *= 50  # one channel sets the scale of all
nodes = [
    helper.make_node("QuantizeLinear", ["x", "sx", "z"], ["xq"]),
    helper.make_node("DequantizeLinear", ["xq", "sx", "z"], ["xd"]),
    helper.make_node("Conv", ["xd", "w"], ["c"], pads=[1] * 4),
    helper.make_node("QuantizeLinear", ["c", "sy", "z"], ["cq"]),
    helper.make_node("DequantizeLinear", ["cq", "sy", "z"], ["y"]),
]
values = {"w": weight, "sx": np.float32(0.02), "sy": np.float32(0.25), "z": np.uint8(128)}
made = model(nodes, [1, 4, 16, 16], values)
x = random.standard_normal((1, 4, 16, 16)).astype(np.float32)
exact, ran = (session(made, level).run(None, {"x": x})[0] for level in (NONE, ALL))
basic = kernels(made, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
expect("without optimization the Conv reads a float weight", kernels(made, NONE)["DequantizeLinear"] == 2)
expect("ORT_ENABLE_BASIC has put a DequantizeLinear in front of the weight", basic["DequantizeLinear"] == 3)
expect("the convolution that runs is an integer one", kernels(made)["QLinearConv"] == 1)
steps = np.abs(exact - ran)[:, 1:].max() / 0.25
print(f"largest error in the seven ordinary channels: {steps:.0f} quantization steps")
expect("the error is many steps of the output's own quantization", steps >= 4)
PYTHON
