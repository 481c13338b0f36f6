#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: a model that it wrote itself, turned to half precision by its own converter, is refused by its
# own optimizer.
#
# The CPU provider computes chains of float16 nodes in float32 and keeps the weights: beside each weight it puts a Cast whose
# output it calls InsertedPrecisionFreeCast_NAME. optimized_model_filepath writes that graph; it opens again. Turn it to
# half precision with onnxruntime.transformers.float16 (as one does with any float32 graph): the result is valid, and runs
# with graph optimizations off. With them on, the same rewrite meets the weight NAME again, makes a tensor of the name that is
# there already, and the session ends in
#   Type (tensor(float16)) of output arg (InsertedPrecisionFreeCast_w) ... does not match expected type (tensor(float))
# Renaming that one tensor is the whole cure. Whoever writes float16 after ONNX Runtime has optimized has to do so.
# Exits non-zero where that is no longer so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
from common import ALL, NONE, expect, model, random, session
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

weights = {"w": random.standard_normal((8, 8)), "v": random.standard_normal((8, 4))}
nodes = [
    helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
    helper.make_node("MatMul", ["xh", "w"], ["m"]),
    helper.make_node("Relu", ["m"], ["r"]),
    helper.make_node("MatMul", ["r", "v"], ["yh"]),
    helper.make_node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
]
made = model(nodes, ["N", 8], {name: values.astype(np.float16) for name, values in weights.items()})
session(made, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, "written.onnx")
written = onnx.load("written.onnx")
names = [n.output[0] for n in written.graph.node if n.op_type == "Cast" and n.input[0] == "w"]
expect("the written graph casts the weight w under a name made of it", names == ["InsertedPrecisionFreeCast_w"])
session(written.SerializeToString(), ALL)
half = convert_float_to_float16(written, keep_io_types=False)
onnx.checker.check_model(half)
x = random.standard_normal((3, 8)).astype(np.float16)
plain = session(half.SerializeToString(), NONE).run(None, {"x": x})[0]
expect("the half-precision form is valid and runs unoptimized", bool(np.isfinite(plain).all()))
try:
    session(half.SerializeToString(), ALL)
    refused = ""
except Exception as error:
    refused = str(error)
expect("with optimizations it is refused for the name", "InsertedPrecisionFreeCast_" in refused and "Type Error" in refused)
for node in half.graph.node:
    for ends in (node.input, node.output):
        for at, name in enumerate(ends):
            ends[at] = name.replace("InsertedPrecisionFreeCast_", "widened_")
near = np.abs(session(half.SerializeToString(), ALL).run(None, {"x": x})[0] - plain).max()
expect("with other names it opens, and gives the same", float(near) < 0.05)
PYTHON
