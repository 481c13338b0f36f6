#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: two equal ways to store a Conv's weight in 8 bits, and only one costs nothing at run time.
#
# int8 -> DequantizeLinear -> Conv keeps the DequantizeLinear in the optimized graph: constant folding leaves it alone, so that
# the weight is decoded on each call. int8 -> Cast -> Mul(scale) -> Conv, the same numbers, is folded when the session is
# made, and the convolution then gets the blocked layout that DequantizeLinear had kept it from. Outputs agree to rounding.
# A model that wants small files and float speed must not use the operator that was made for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from common import expect, kernels, model, random, session
from onnx import TensorProto, helper

values = {"q": random.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8), "s": np.float32(0.01)}
conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
decoded = model([helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), conv], [1, 16, 32, 32], values)
cast = helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT)
folded = model([cast, helper.make_node("Mul", ["f", "s"], ["w"]), conv], [1, 16, 32, 32], values)
expect("DequantizeLinear stays in the optimized graph", kernels(decoded)["DequantizeLinear"] == 1)
left = kernels(folded)
expect("Cast and Mul are gone", not left["Cast"] and not left["Mul"] and not left["DequantizeLinear"])
x = random.standard_normal((1, 16, 32, 32)).astype(np.float32)
a, b = (session(m).run(None, {"x": x})[0] for m in (decoded, folded))
expect("both compute the same", np.allclose(a, b, rtol=1e-4, atol=1e-3))
PYTHON
