#!/usr/bin/env bash
# onnxruntime 1.31.1 (CPU provider): a Relu or Clip behind a quantized product makes the product run in float.
#
# DequantizeLinear(x), DequantizeLinear(w) -> MatMul -> Tanh, without a QuantizeLinear behind, is fused to one
# MatMulIntegerToFloat; Gemm with zero points and an int32 bias to QGemm. With Relu (or Clip) instead of Tanh nothing is
# fused: the optimiser takes the Relu for one that a QuantizeLinear behind it makes redundant, finds no such node and gives
# the product up. Weight and activations are then decoded on every call, and a float MatMul or FusedGemm runs.
# LeakyRelu, Sigmoid, Max(x, 0) do not hide the product, and a Sum of one tensor between product and Relu brings the
# integer kernel back. Exits non-zero where any of this changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.31.1 onnx==1.23.2 numpy
"$folder/venv/bin/python" - "$folder" <<'PY'
import json, sys
import numpy as np, onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

def kernels(op, behind):
    r, held, nodes = np.random.default_rng(0), [], []
    def keep(name, value): held.append(nh.from_array(np.asarray(value), name)); return name
    def node(kind, inputs, output, **attrs): nodes.append(h.make_node(kind, inputs, [output], name=output, **attrs)); return output
    s, z = keep("s", np.float32(0.02)), keep("z", np.uint8(128))
    x = node("DequantizeLinear", [node("QuantizeLinear", ["x", s, z], "q"), s, z], "d")
    w = node("DequantizeLinear", [keep("w", r.integers(-60, 60, (64, 48)).astype(np.int8)), keep("sw", np.full(48, .01, np.float32)), keep("zw", np.zeros(48, np.int8))], "wd", axis=1)
    b = node("DequantizeLinear", [keep("b", np.arange(48, dtype=np.int32)), keep("sb", np.full(48, 2e-4, np.float32)), keep("zb", np.zeros(48, np.int32))], "bd", axis=0)
    y = node(op, [x, w, b] if op == "Gemm" else [x, w], "product")
    for kind in behind:
        extra = [keep("zero", np.float32(0))] if kind == "Max" else [keep("lo", np.float32(0)), keep("hi", np.float32(6))] if kind == "Clip" else []
        y = node(kind, [y, *extra], f"{kind}_out")
    node("Tanh", [y], "y")
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, ["N", 64])], [h.make_tensor_value_info("y", T.FLOAT, ["N", 48])], held)
    options = ort.SessionOptions(); options.enable_profiling, options.profile_file_prefix, options.log_severity_level = True, sys.argv[1] + "/p", 4
    session = ort.InferenceSession(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": r.standard_normal((4, 64)).astype(np.float32)})
    return {e["args"]["op_name"] for e in json.load(open(session.end_profiling())) if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")}

INTEGER = {"MatMul": "MatMulIntegerToFloat", "Gemm": "QGemm"}
changed = False
for op in INTEGER:
    for behind, fused in (((), True), (("Relu",), False), (("Clip",), False), (("LeakyRelu",), True), (("Max",), True), (("Sum", "Relu"), True), (("Sum", "Clip"), True)):
        ran = kernels(op, behind); seen = INTEGER[op] in ran; changed |= seen != fused
        print(f"{op:6} behind: {' '.join(behind) or '-':10} {'integer' if seen else 'FLOAT  '} {sorted(ran - {'Tanh'})}")
sys.exit(changed)
PY
