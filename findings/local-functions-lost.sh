#!/usr/bin/env bash
# onnx 1.23.2: two of onnx's own tools lose what a model's local functions say, and neither says a word.
#
# 1. version_converter.convert_version keeps the nodes that call a local function and drops the function: model.functions is
#    empty in what it returns. Nothing is raised; ONNX Runtime then refuses the file ("is not a registered function/op").
# 2. inliner.inline_local_functions forgets defaults. A function may give its attributes default values (attribute_proto), and a
#    node that calls it may leave them out. Inlined, an inner node that refers to such an attribute ends without it: a Constant
#    without a value (ONNX Runtime refuses), or an operator whose own default steps in: LeakyRelu(alpha = default 0.5
#    of the function) becomes LeakyRelu with alpha 0.01, a valid model of other numbers. ONNX Runtime reads the default;
#    onnx's reference evaluator does not either, and raises.
# So a model of functions is inlined before it is raised, and after the defaults were written into its calls.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnx.inliner
from common import expect, session
from onnx import AttributeProto, TensorProto, helper, version_converter
from onnx.reference import ReferenceEvaluator

inner = helper.make_node("LeakyRelu", ["x"], ["y"])
inner.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
slope = helper.make_attribute("slope", 0.5)
function = helper.make_function("mine", "Leaky", ["x"], ["y"], [inner], opsets[:1], attribute_protos=[slope])
info = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("Leaky", ["x"], ["y"], domain="mine")],
    "g",
    [info("x", TensorProto.FLOAT, [2])],
    [info("y", TensorProto.FLOAT, [2])],
)
model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
onnx.checker.check_model(model, full_check=True)
feed = {"x": np.array([-1, 1], np.float32)}


def answer(each):
    """What ONNX Runtime makes of -1 and 1."""
    return session(each.SerializeToString()).run(None, feed)[0].tolist()


right = answer(model)
expect("ONNX Runtime reads the function's default", right == [-0.5, 1])
try:
    ReferenceEvaluator(model).run(None, feed)
    evaluated = True
except TypeError:
    evaluated = False
expect("onnx's reference evaluator has no value for it", not evaluated)
inlined = onnx.inliner.inline_local_functions(model)
onnx.checker.check_model(inlined, full_check=True)
got = answer(inlined)
print("as it stands", right, "inlined", got)
expect("inlined it is valid and computes with the operator's default", np.allclose(got, [-0.01, 1]))
raised = version_converter.convert_version(model, 19)
expect("raised it still calls the function", [node.op_type for node in raised.graph.node] == ["Leaky"])
expect("raised it has no function", len(raised.functions) == 0)
try:
    session(raised.SerializeToString())
    refused = False
except Exception as error:
    refused = "not a registered function" in str(error)
expect("ONNX Runtime refuses the raised model", refused)
PYTHON
