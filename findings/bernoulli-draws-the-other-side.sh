#!/usr/bin/env bash
# onnxruntime 1.32.0 (and 1.31.1), onnx 1.23.2: Bernoulli gives 1 with probability 1 - p, where the standard says p.
#
# The operator's text: "an output of 1 is produced with probability p". Its schema has a function body too, for runtimes without a
# kernel of their own, and that body compares the wrong way: Cast(Greater(RandomUniformLike(x), x)) is 1 where the random
# number is above p. ONNX Runtime has no kernel and takes the body. Seen, 10,000 draws a time, opsets 15, 18 and 21, all
# optimizations and none, with a seed and without:
#   p            0     0.1    0.5    0.9     1
#   share of 1   1.0   0.9    0.5    0.1   0.0       onnx's reference evaluator: 0, 0.1, 0.5, 0.9, 1
# Nothing fails, and p = 0.5 hides it. Where it bites: stochastic depth, masks and spiking layers in models that are exported with their
# randomness, a dropout that keeps with p: the share that is kept is the share that should go. From opset 22 on ONNX Runtime refuses the
# operator. RandomUniformLike and Less, written out, are right everywhere. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import ALL, NONE, expect, model, session
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

SIZE = [100, 100]


def share(nodes, p, opset, level=None):
    """The share of ones among 10,000 draws; level None asks the reference evaluator."""
    made = model(nodes, SIZE, {}, opset)
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(made))
    onnx.checker.check_model(proto, full_check=True)
    x = {"x": np.full(SIZE, p, np.float32)}
    drawn = ReferenceEvaluator(proto).run(None, x)[0] if level is None else session(made, level).run(None, x)[0]
    assert set(np.unique(drawn)) <= {0, 1}
    return float(drawn.mean())


body = onnx.defs.get_schema("Bernoulli", 21)
expect("the text asks for 1 with probability p", "output of 1 is produced with probability p" in body.doc)
node = helper.make_node("Bernoulli", ["x"], ["y"]).SerializeToString()
kind = helper.make_tensor_type_proto(TensorProto.FLOAT, SIZE).SerializeToString()
function = onnx.FunctionProto.FromString(body.get_context_dependent_function_with_opset_version(15, node, [kind]))
draw, compare, _ = function.node
expect("the body asks whether the random number is greater", compare.op_type == "Greater" and compare.input[0] == draw.output[0])

WRITTEN_OUT = [
    helper.make_node("RandomUniformLike", ["x"], ["r"]),
    helper.make_node("Less", ["r", "x"], ["l"]),
    helper.make_node("Cast", ["l"], ["y"], to=TensorProto.FLOAT),
]
for opset in (15, 18, 21):
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        for seed in ({}, {"seed": 7.0}):
            draw = [helper.make_node("Bernoulli", ["x"], ["y"], **seed)]
            found = [share(draw, p, opset, level) for level in (NONE, ALL)]
            case = f"opset {opset}, p {p}, {'a seed' if seed else 'no seed'}"
            expect(f"{case}: ONNX Runtime gives {found[0]:.2f} ones", max(abs(f - (1 - p)) for f in found) < 0.03)
            expect(f"{case}: the reference evaluator is right", abs(share(draw, p, opset) - p) < 0.03)
        expect(f"opset {opset}, p {p}: written out it is right", abs(share(WRITTEN_OUT, p, opset, ALL) - p) < 0.03)

refused = ""
try:
    share([helper.make_node("Bernoulli", ["x"], ["y"])], 0.5, 22, ALL)
except Exception as error:
    refused = str(error)
expect("opset 22: refused", "NOT_IMPLEMENTED" in refused)
PYTHON
