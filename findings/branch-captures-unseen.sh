#!/usr/bin/env bash
# onnx 1.23.2: its tools that cut and rename do not see all that a body of If, Loop or Scan takes from the graph around it.
#
# A body names tensors of the graph around it without listing them as inputs of its node. Two functions of onnx miss that:
#   utils.extract_model   follows inputs back to find what an output needs. Nodes and initializers that only a body reads are
#                         left out, so even a cut from all inputs to all outputs of a valid model gives an invalid one. With
#                         check_model=False it is written without a word.
#   compose.add_prefix    renames in the bodies what they take from nodes outside, and leaves the old names of initializers there; so
#                         does merge_models with prefix1 or prefix2.
# Both models are refused by onnx's checker and by ONNX Runtime 1.31.1 with a message about sorting ("Nodes in a graph must be
# topologically sorted"), which sends one to look in the wrong place. A tool that cuts or joins models must collect captures itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
cd "$folder"
PYTHONPATH="$here" "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnx.compose
import onnx.utils
from common import expect, session
from onnx import TensorProto, helper, numpy_helper

info = helper.make_tensor_value_info
WIDE = [2, 8]


def branch(name, kind):
    """A body that reads `a` and `w` of the graph around it."""
    nodes = [helper.make_node("MatMul", ["a", "w"], [f"{name}_m"]), helper.make_node(kind, [f"{name}_m"], [name])]
    return helper.make_graph(nodes, name, [], [info(name, TensorProto.FLOAT, WIDE)])


graph = helper.make_graph(
    [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t", "Tanh"), else_branch=branch("e", "Neg")),
    ],
    "g",
    [info("x", TensorProto.FLOAT, WIDE), info("c", TensorProto.BOOL, [])],
    [info("y", TensorProto.FLOAT, WIDE)],
    [numpy_helper.from_array(np.ones((8, 8), np.float32), "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
session(model.SerializeToString())


def refused(each):
    """Whether both the checker and the runtime refuse a model for its order."""
    said = []
    for check in (onnx.checker.check_model, lambda m: session(m.SerializeToString())):
        try:
            check(each)
        except Exception as error:
            said.append("topologically sorted" in str(error))
    return said == [True, True]


onnx.save(model, "whole.onnx")
onnx.utils.extract_model("whole.onnx", "cut.onnx", ["x", "c"], ["y"], check_model=False)
cut = onnx.load("cut.onnx")
expect("the cut from all inputs to all outputs has lost Relu", [node.op_type for node in cut.graph.node] == ["If"])
expect("it has lost the weight", len(cut.graph.initializer) == 0)
expect("and is refused, for its order", refused(cut))
renamed = onnx.compose.add_prefix(model, "left/")
inside = {name for attribute in renamed.graph.node[1].attribute for node in attribute.g.node for name in node.input}
expect("add_prefix renames the weight", renamed.graph.initializer[0].name == "left/w")
expect("and what the branches take from nodes", "left/a" in inside)
expect("and not what they take from initializers", "w" in inside)
expect("so that the model is refused, for its order", refused(renamed))
PYTHON
