#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: two forms of AveragePool go wrong between quantizers, one without a word.
#
# 1. ceil_mode=1 with count_include_pad=1 and padding at the end: the integer kernel that the optimizer puts in divides the
#    windows that hang over the edge by another count than the float kernel. Seen: 16 quantization steps off at the border,
#    equal inside; with padding on both sides of the same size no difference.
# 2. dilations: the optimizer fuses the pool to QLinearAveragePool, whose schema has no such attribute, and then refuses its own
#    graph as invalid; with optimizations off the same file runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from common import ALL, NONE, expect, kernels, model, random, session
from onnx import helper

def pool(**attributes):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("AveragePool", ["xd"], ["p"], kernel_shape=[3, 3], **attributes),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", "s", "z"], ["y"]),
    ]
    return model(nodes, [1, 4, 15, 15], {"s": np.float32(0.02), "z": np.uint8(0)}, opset=19)


x = np.abs(random.standard_normal((1, 4, 15, 15))).astype(np.float32)
end = pool(strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1, count_include_pad=1)
both = pool(strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1)
expect("the pool runs as QLinearAveragePool", kernels(end)["QLinearAveragePool"] == 1)
off = np.abs(np.subtract(*(session(end, level).run(None, {"x": x})[0] for level in (NONE, ALL)))) / 0.02
print(f"padding at the end: up to {off.max():.0f} steps off, {off[..., :-1, :-1].max():.0f} away from that border")
expect("it is off by more than rounding, at the border only", off.max() > 4 and off[..., :-1, :-1].max() <= 1)
same = np.abs(np.subtract(*(session(both, level).run(None, {"x": x})[0] for level in (NONE, ALL)))) / 0.02
expect("with padding on both sides it agrees", same.max() <= 1)
dilated = pool(dilations=[2, 2])
session(dilated, NONE).run(None, {"x": x})
try:
    session(dilated)
    refused = ""
except Exception as error:
    refused = str(error)
expect("the optimizer refuses the dilated pool that it fused itself", "QLinearAveragePool" in refused and "dilations" in refused)
PYTHON
