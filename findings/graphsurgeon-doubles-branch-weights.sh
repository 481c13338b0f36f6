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
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import expect, model, random, session
from onnx import TensorProto, helper

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
