#!/usr/bin/env bash
# onnxscript 0.7.2: optimizer.optimize makes other functions of five valid patterns, and an invalid model of a sixth.
#
#   ScatterND, reduction add, mul, max or min, with indices of all rows   the updates alone: an accumulator that forgets what it had
#   Clip behind Clip, the second range above the first    bounds joined to a Clip whose min exceeds its max, which gives the max: 1
#                         where it is 2. Relu behind Clip(-6, -1) gives -1, where no Relu gives less than 0
#   Reshape, Reshape, MatMul, Reshape back      products of blocks ([4, 2, 2] of a [4, 4] each) become one product of the whole
#                         matrices, since that has the same shape: how the Reshapes cut is not looked at
#   Shape, Reshape to [2, 2], Gather            the first row of a table of sizes is taken for its first number
#   SplitToSequence with split and keepdims=0   by the standard keepdims is ignored where split is given; here it squeezes
#   Reshape to a computed shape, opset 13       gets allowzero, which came with opset 14: ONNX Runtime refuses the model
# Nothing is raised; only the split logs that shapes do not merge. These rules are on by default. Each model is valid by onnx 1.23.2's
# full check; ONNX Runtime 1.32.0 without optimizations and numpy agree on it. Compare outputs after optimizing.
# Exits non-zero where one of these is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx-ir==1.1.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import NONE, expect, random, session
from onnx import TensorProto, helper, numpy_helper
from onnxscript import optimizer


def both(nodes, inputs, weights, opset=18, sizes=None):
    """What ONNX Runtime makes of a model without optimizations, before onnxscript and after it."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT}
    values = [helper.make_tensor_value_info(n, kinds[v.dtype], (sizes or {}).get(n, v.shape)) for n, v in inputs.items()]
    held = [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (sizes or {}).get("y"))
    graph = helper.make_graph(nodes, "g", values, [y], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if not (sizes or {}).get("y"):
        proto.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.output[0])
    onnx.checker.check_model(proto, full_check=True)
    before = session(proto.SerializeToString(), NONE).run(None, inputs)[0]
    done = optimizer.optimize(onnx.ModelProto.FromString(proto.SerializeToString()))
    return before, session(done.SerializeToString(), NONE).run(None, inputs)[0]


def node(op, inputs, output="y", **attributes):
    return helper.make_node(op, inputs.split(","), [output], **attributes)


def array(*shape):
    return random.normal(size=shape).astype(np.float32)


x, u = array(4, 5), array(4, 5)
rows = {"i": np.int64([[0], [1], [2], [3]])}
for reduction, truth in {"add": x + u, "mul": x * u, "max": np.maximum(x, u), "min": np.minimum(x, u), "none": u}.items():
    before, after = both([node("ScatterND", "x,i,u", reduction=reduction)], {"x": x, "u": u}, rows)
    right = np.allclose(before, truth) and np.array_equal(after, u)
    expect(f"ScatterND, reduction {reduction}: the updates alone{'' if reduction == 'none' else ', which is wrong'}", right)

bounds = {"a": np.float32(0), "b": np.float32(1), "c": np.float32(2), "d": np.float32(3)}
before, after = both([node("Clip", "x,a,b", "t"), node("Clip", "t,c,d")], {"x": x}, bounds)
expect("Clip(2, 3) behind Clip(0, 1): 1 for 2", (before == 2).all() and (after == 1).all())
bounds = {"a": np.float32(-6), "b": np.float32(-1)}
before, after = both([node("Clip", "x,a,b", "t"), node("Relu", "t")], {"x": x}, bounds)
expect("Relu behind Clip(-6, -1): -1 for 0", (before == 0).all() and (after == -1).all())

a, b = array(4, 4), array(4, 4)
nodes = [node("Reshape", "x,s", "p"), node("Reshape", "w,s", "q"), node("MatMul", "p,q", "m"), node("Reshape", "m,t")]
before, after = both(nodes, {"x": a, "w": b}, {"s": np.int64([4, 2, 2]), "t": np.int64([4, 4])})
blocks = (a.reshape(4, 2, 2) @ b.reshape(4, 2, 2)).reshape(4, 4)
expect("products of blocks: one product of all", np.allclose(before, blocks, atol=1e-5) and np.allclose(after, a @ b, atol=1e-5))

image = array(2, 3, 7, 9)
nodes = [node("Shape", "x", "s"), node("Reshape", "s,r", "t"), node("Gather", "t,i", "g", axis=0)]
nodes += [node("Cast", "g", "f", to=TensorProto.FLOAT), node("ReduceSum", "f", keepdims=0)]
table = {"r": np.int64([2, 2]), "i": np.int64([1])}
before, after = both(nodes, {"x": image}, table, sizes={"x": ["n", 3, "h", "w"]})
expect("second row of [[2, 3], [7, 9]], summed: 3 for 16", before == 16 and after == 3)

nodes = [node("SplitToSequence", "x,p", "s", axis=1, keepdims=0), node("SequenceAt", "s,i")]
before, after = both(nodes, {"x": x}, {"p": np.int64([1] * 5), "i": np.int64(1)})
expect("SplitToSequence with split: an axis is gone", before.shape == (4, 1) and after.shape == (4,))

nodes = [node("Shape", "x", "s"), node("Concat", "s,one", "t", axis=0), node("Reshape", "x,t")]
refused = ""
try:
    both(nodes, {"x": x}, {"one": np.int64([1])}, opset=13, sizes={"x": ["n", 5], "y": ["n", 5, 1]})
except Exception as error:
    refused = str(error)
expect("Reshape of opset 13: refused afterwards", "allowzero" in refused)
before, after = both(nodes, {"x": x}, {"one": np.int64([1])}, opset=14, sizes={"x": ["n", 5], "y": ["n", 5, 1]})
expect("Reshape of opset 14: right", np.array_equal(before, after))
PYTHON
