#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: whether a quantized MatMul with a bias runs on integers depends on its input's rank.
#
# The same Q/DQ pattern, DequantizeLinear -> MatMul -> Add(bias) -> QuantizeLinear, with an int8 weight without zero point:
# with an input of rank 3 with a free axis it becomes MatMulIntegerToFloat; with an input of rank 2, free batch or not, the pair
# MatMul + Add first becomes Gemm, and the Gemm so made matches no integer pattern: all four DequantizeLinear stay, the weight
# is decoded on every call, and the product runs in float. Nothing is logged; the file is far slower than the float one.
# Written as Gemm with an int32 bias behind DequantizeLinear, the same layer runs as one QGemm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from common import expect, kernels, model, random
from onnx import helper

weight = (random.standard_normal((64, 64)) / 8).astype(np.float32)
scale = np.float32(np.abs(weight).max() / 127)
values = {
    "wq": np.round(weight / scale).astype(np.int8), "sw": scale, "sx": np.float32(0.03), "sy": np.float32(0.05),
    "z": np.uint8(128), "b": random.standard_normal(64).astype(np.float32),
}
nodes = [
    helper.make_node("QuantizeLinear", ["x", "sx", "z"], ["xq"]),
    helper.make_node("DequantizeLinear", ["xq", "sx", "z"], ["xd"]),
    helper.make_node("DequantizeLinear", ["wq", "sw"], ["wd"]),
    helper.make_node("MatMul", ["xd", "wd"], ["m"]),
    helper.make_node("Add", ["m", "b"], ["a"]),
    helper.make_node("QuantizeLinear", ["a", "sy", "z"], ["yq"]),
    helper.make_node("DequantizeLinear", ["yq", "sy", "z"], ["y"]),
]
rank3 = kernels(model(nodes, ["N", 7, 64], values))
expect("rank 3, free batch: MatMulIntegerToFloat", rank3["MatMulIntegerToFloat"] == 1 and not rank3["Gemm"])
for shape in (["N", 64], [4, 64]):
    found = kernels(model(nodes, shape, values))
    expect(f"rank 2, {shape}: a float Gemm and a weight decoded on each call", found["Gemm"] == 1 and found["DequantizeLinear"] >= 3)
bias = np.round(values["b"] / (0.03 * scale)).astype(np.int32)
gemm = [
    *nodes[:2],
    helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"]),
    helper.make_node("DequantizeLinear", ["bq", "sb", "zb"], ["bd"]),
    helper.make_node("Gemm", ["xd", "wd", "bd"], ["a"]),
    *nodes[5:],
]
more = {"zw": np.int8(0), "bq": bias, "sb": np.float32(0.03) * scale, "zb": np.int32(0)}
expect("written as Gemm with an int32 bias: QGemm", kernels(model(gemm, [4, 64], values | more))["QGemm"] == 1)
PYTHON
