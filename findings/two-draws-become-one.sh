#!/usr/bin/env bash
# Five optimizers take two random draws for one computation done twice, and keep one: what should differ becomes equal.
#
# Two nodes of one operator, the same input and attributes, no seed: by the standard each has a seed of its own, so y = a - b is noise.
# What is merged, so that y is 0 (optimizations as they are by default; "-": two nodes stay):
#                                       ONNX Runtime  onnxslim  onnxsim  onnxoptimizer  onnxscript
#                                             1.32.0    0.1.98    0.8.1          0.4.2       0.7.2
#   Bernoulli                                 merged    merged   merged         merged      merged
#   Dropout, training_mode true                    -   dropped   merged         merged      merged
#   RandomNormalLike, RandomUniformLike            -    merged   merged         merged           -
#   Multinomial                                    -    merged   merged         merged           -
#   RandomNormal, RandomUniform                    -    frozen   merged         merged           -
# dropped: onnxslim takes Dropout out whatever training_mode says. frozen: it stores one draw as an initializer. Each of those that
# spare some operators has a list of random ones, and Bernoulli or Dropout is missing in it.
# Where it bites: noise that a generator of speech or images draws in several places with one shape, members of an
# ensemble by Monte Carlo Dropout, samples that are compared with each other. Outputs of a random model are hardly
# compared before and after, so nobody sees it. Different seeds (any, one each) keep the draws apart in all five, where the
# operator has the attribute. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxslim==0.1.98 onnxsim==0.8.1 onnxoptimizer==0.4.2 \
    onnxscript==0.7.2 onnx-ir==1.1.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxoptimizer
import onnxsim
import onnxslim
from common import NONE, expect, session
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer


def runtime(proto):
    """The graph that ONNX Runtime makes of a model by default."""
    session(proto.SerializeToString(), out=f"{sys.argv[1]}/o.onnx")
    return onnx.load(f"{sys.argv[1]}/o.onnx")


TOOLS = {
    "ONNX Runtime": runtime,
    "onnxslim": onnxslim.slim,
    "onnxsim": lambda proto: onnxsim.simplify(proto)[0],
    "onnxoptimizer": onnxoptimizer.optimize,
    "onnxscript": lambda proto: optimizer.optimize(proto),
}
TABLE = {
    "Bernoulli": ["merged"] * 5,
    "Dropout": ["-", "dropped", "merged", "merged", "merged"],
    "RandomNormalLike": ["-", "merged", "merged", "merged", "-"],
    "RandomUniformLike": ["-", "merged", "merged", "merged", "-"],
    "Multinomial": ["-", "merged", "merged", "merged", "-"],
    "RandomNormal": ["-", "frozen", "merged", "merged", "-"],
    "RandomUniform": ["-", "frozen", "merged", "merged", "-"],
}
X = np.full((40, 40), 0.5, np.float32)


def build(op, *seeds):
    """y = a - b + x for two draws a and b."""
    held, inputs, attributes = [], ["x"], {}
    if op == "Dropout":
        held = [numpy_helper.from_array(np.float32(0.5), "r"), numpy_helper.from_array(np.bool_(True), "t")]
        inputs = ["x", "r", "t"]
    elif op in ("RandomNormal", "RandomUniform"):
        inputs, attributes = [], {"shape": [40, 40]}
    elif op == "Multinomial":
        attributes = {"sample_size": 40}
    nodes = []
    for at, name in enumerate("ab"):
        seed = {"seed": seeds[at]} if seeds else {}
        nodes.append(helper.make_node(op, inputs, [f"{name}0"], **attributes, **seed))
        nodes.append(helper.make_node("Cast", [f"{name}0"], [name], to=TensorProto.FLOAT))
    nodes += [helper.make_node("Sub", ["a", "b"], ["d"]), helper.make_node("Add", ["d", "x"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [40, 40]) for n in "xy")
    opsets = [helper.make_opsetid("", 18)]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], held), opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def noisy(proto):
    return bool(abs(session(proto.SerializeToString(), NONE).run(None, {"x": X})[0] - X).max() > 1e-3)


def verdict(op, proto):
    drawn = (op, "RandomUniformLike")  # which ONNX Runtime writes for Bernoulli
    left = sum(node.op_type in drawn for node in proto.graph.node)
    return {2: "-", 1: "merged", 0: "frozen" if noisy(proto) else "dropped"}[left]


for op, row in TABLE.items():
    expect(f"{op}, as it is: two draws differ", noisy(build(op)))
    for (tool, optimize), told in zip(TOOLS.items(), row, strict=True):
        after = optimize(build(op))
        found = verdict(op, after)
        expect(f"{op}, {tool}: {found}", found == told and noisy(after) == (found in ("-", "frozen")))
        if op in ("Bernoulli", "RandomNormalLike", "Multinomial"):
            expect(f"{op}, {tool}, two seeds: two draws", verdict(op, optimize(build(op, 1.0, 2.0))) == "-")
PYTHON
