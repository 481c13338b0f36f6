#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU (and 1.32.0): nine operators that run up to opset 21 have no kernel from opset 22 on.
#
# Opset 22 gave many operators bfloat16 and changed nothing else in them. ONNX Runtime 1.31.1 loads models of opsets 22 to
# 26 without a warning; but for RoiAlign, MaxRoiPool, GlobalLpPool, Multinomial, Bernoulli, RandomNormal, RandomUniform
# and their ...Like forms the CPU kernels are still registered up to version 21. So a detector with RoiAlign is raised from
# 16 to 22 or later by an exporter or by onnx.version_converter (to get 2-bit weights, say, which need 25), passes onnx's full
# check, and is refused by the session as NOT_IMPLEMENTED. The same file stamped 21, no other byte changed, runs. Others of the same
# change (EyeLike, Det, MaxUnpool, GRU, DeformConv) run at 22. Raise such a model to 21 at most.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - <<'PYTHON'
import onnx
from common import expect, session
from onnx import TensorProto, helper, version_converter

F, I = TensorProto.FLOAT, TensorProto.INT64
IMAGE = (F, [1, 3, 8, 8])
MISSING = {
    "RoiAlign": ([IMAGE, (F, [2, 4]), (I, [2])], {"output_height": 2, "output_width": 2}, F),
    "MaxRoiPool": ([IMAGE, (F, [2, 5])], {"pooled_shape": [2, 2]}, F),
    "GlobalLpPool": ([IMAGE], {}, F),
    "Multinomial": ([(F, [2, 3])], {}, TensorProto.INT32),
    "Bernoulli": ([(F, [2, 3])], {}, F),
    "RandomNormal": ([], {"shape": [2]}, F),
    "RandomUniform": ([], {"shape": [2]}, F),
    "RandomNormalLike": ([(F, [2, 3])], {}, F),
    "RandomUniformLike": ([(F, [2, 3])], {}, F),
}
PRESENT = {"EyeLike": ([(F, [2, 3])], {}, F), "Det": ([(F, [2, 3, 3])], {}, F), "GRU": (
    [(F, [5, 2, 3]), (F, [1, 12, 3]), (F, [1, 12, 4])], {"hidden_size": 4}, F)}


def single(kind, opset):
    """A model of one node, which onnx's full check passes."""
    inputs, attributes, result = {**MISSING, **PRESENT}[kind]
    infos = [helper.make_tensor_value_info(f"i{at}", *each) for at, each in enumerate(inputs)]
    node = helper.make_node(kind, [each.name for each in infos], ["y"], **attributes)
    rank = {"GRU": 4, "RoiAlign": 4, "MaxRoiPool": 4, "GlobalLpPool": 4, "RandomNormal": 1, "RandomUniform": 1, "Det": 1}.get(kind, 2)
    output = helper.make_tensor_value_info("y", result, [None] * rank)
    graph = helper.make_graph([node], "g", infos, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def runs(model):
    """Whether a session can be made; no other failure than a missing kernel is let pass."""
    try:
        session(model.SerializeToString())
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        return False
    return True


for kind in MISSING:
    expect(f"{kind} runs at opset 21 and has no kernel at 22", runs(single(kind, 21)) and not runs(single(kind, 22)))
for kind in PRESENT:
    expect(f"{kind} runs at opset 22", runs(single(kind, 22)))
raised = version_converter.convert_version(single("RoiAlign", 16), 25)
raised.ir_version = 11
onnx.checker.check_model(raised, full_check=True)
expect("RoiAlign raised from 16 to 25 by onnx is valid and has no kernel", not runs(raised))
PYTHON
