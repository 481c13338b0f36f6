#!/usr/bin/env bash
# onnx-graphsurgeon 0.6.1: import and export of a model doubles each weight that both branches of an If use.
#
# A weight stands once in the main graph and is captured by name in then_branch and else_branch, as exporters write it. After
# gs.export_onnx(gs.import_onnx(model)), with no edit between, it stands in each branch as an initializer of its own: the file is twice
# as large, and where it was used outside too, three times. The outputs are the same, so nothing shows it but the size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 onnx-graphsurgeon==0.6.1
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


import onnx_graphsurgeon as gs

weight = random.standard_normal((128, 128)).astype(np.float32)


def branch(name, function):
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"{name}_m"]), helper.make_node(function, [f"{name}_m"], [name])]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


choose = helper.make_node("If", ["c"], ["y"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Tanh"))
test = [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0), helper.make_node("Greater", ["total", "zero"], ["c"])]
made = onnx.load_from_string(model([*test, choose], [1, 128], {"w": weight, "zero": np.float32(0)}))
again = gs.export_onnx(gs.import_onnx(made))
again.ir_version = made.ir_version
before, after = (len(m.SerializeToString()) for m in (made, again))
print(f"{before} bytes before, {after} after, {weight.nbytes} of them the weight")
expect("the weight stands twice", after > before + 0.9 * weight.nbytes)
inner = [len(a.g.initializer) for n in again.graph.node if n.op_type == "If" for a in n.attribute]
expect("once in each branch", inner == [1, 1])
x = random.standard_normal((1, 128)).astype(np.float32)
a, b = (session(m.SerializeToString()).run(None, {"x": x})[0] for m in (made, again))
expect("the outputs are equal", np.array_equal(a, b))
PYTHON
