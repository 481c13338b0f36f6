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
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import collections
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ort.set_default_logger_severity(4)
NONE, ALL = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
random = np.random.default_rng(0)


def model(nodes, shape, weights, opset=17):
    inits = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def session(bytes_, level=ALL, out=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    if out:
        options.optimized_model_filepath = out
    return ort.InferenceSession(bytes_, options, providers=["CPUExecutionProvider"])


def kernels(bytes_, level=ALL):
    with tempfile.TemporaryDirectory() as folder:
        session(bytes_, level, f"{folder}/o.onnx")
        return collections.Counter(n.op_type for n in onnx.load(f"{folder}/o.onnx").graph.node)


def expect(what, holds):
    print(("as stated: " if holds else "CHANGED: ") + what)
    if not holds:
        sys.exit(1)


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
