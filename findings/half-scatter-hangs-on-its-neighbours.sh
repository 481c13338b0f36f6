#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: whether a float16 ScatterElements or ScatterND that adds can run depends on the nodes around it.
#
# The provider registers both operators for float16, so that a session opens; the kernel then has no float16 for some reductions:
#   ScatterElements   add, mul               refused in the first run, with the shapes and values at hand
#   ScatterND         add, mul, max, min     ("MLFloat16 data type is not supported with ScatterElements opset 16 when
#                                            reduction is 'add'"); opsets 16 and 18, all optimizations and none
# none runs everywhere, and so do max and min of ScatterElements. But a node that is refused alone runs, and right, where it stands
#   at opset 18, between two nodes without a float16 kernel (Mul, Pow);   at opset 16, between any two (Relu, Erf) as well
# since casts to float32 are put around nodes, and pairs of casts between them taken out, by which the Scatter moves to float32. With
# the input, the output or (18) a Relu on one side it is refused, and so it is when its result is tapped: made an output
# for a comparison. So a half model runs, and stops running when its opset is raised, or a neighbour is fused, pruned
# or cut off. Opening a session does not show it: run half models once, in the form that is shipped. Exits non-zero where
# that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import ALL, NONE, expect, session
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

HALF = TensorProto.FLOAT16
X = np.float16([[1, 2], [3, 4]])
INDICES = {"ScatterElements": [[0, 1], [1, 0]], "ScatterND": [[1], [0]]}


def verdict(op, reduction, front, behind, opset, tap=False):
    """Whether a model around one Scatter runs: "right", or "refused" in its first run."""
    nodes, source = [], "x"
    for at, kind in enumerate((front, op, behind)):
        if not kind:
            continue
        inputs = {op: [source, "i", "u"], "Mul": [source, "two"], "Pow": [source, "two"]}.get(kind, [source])
        attributes = {"reduction": reduction} if kind == op else {}
        source = f"t{at}"
        nodes.append(helper.make_node(kind, inputs, [source], **attributes))
    inner = next(node.output[0] for node in nodes if node.op_type == op)
    used = {name for node in nodes for name in node.input}
    held = {"i": np.int64(INDICES[op]), "u": np.float16([[1, 2], [3, 4]]), "two": np.float16(2)}
    inits = [numpy_helper.from_array(value, name) for name, value in held.items() if name in used]
    outputs = [helper.make_tensor_value_info(n, HALF, [2, 2]) for n in ([source, inner] if tap else [source])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", HALF, [2, 2])], outputs, inits)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    truth = ReferenceEvaluator(made).run(None, {"x": X})[0]
    found = set()
    for level in (NONE, ALL):
        opened = session(made.SerializeToString(), level)
        try:
            ours = opened.run(None, {"x": X})[0]
            found.add("right" if np.allclose(ours, truth, rtol=2e-3) else "wrong")
        except Exception as error:
            assert f"MLFloat16 data type is not supported with {op}" in str(error), error
            found.add("refused")
    return found.pop() if len(found) == 1 else "differs"


REFUSED = {"ScatterElements": {"add", "mul"}, "ScatterND": {"add", "mul", "max", "min"}}
for op, lacking in REFUSED.items():
    for opset in (16, 18):
        for reduction in ("none", "add", "mul", "max", "min") if opset == 18 else ("none", "add", "mul"):
            lacks = reduction in lacking
            told = "refused" if lacks else "right"
            for front, behind in (("", ""), ("", "Mul"), ("Mul", "")):
                case = f"{op} {opset}, {reduction}, between {front or 'the input'} and {behind or 'the output'}"
                expect(f"{case}: {told}", verdict(op, reduction, front, behind, opset) == told)
            for front, behind in (("Relu", "Relu"), ("Erf", "Relu"), ("Mul", "Relu"), ("Relu", "Mul"), ("Mul", "Mul"), ("Pow", "Pow")):
                case = f"{op} {opset}, {reduction}, between {front} and {behind}"
                moved = opset == 16 or not {front, behind} & {"Relu", "Erf"}
                found = "refused" if lacks and not moved else "right"
                expect(f"{case}: {found}", verdict(op, reduction, front, behind, opset) == found)
                expect(f"{case}, tapped: {told}", verdict(op, reduction, front, behind, opset, tap=True) == told)
PYTHON
