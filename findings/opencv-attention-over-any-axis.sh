#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, dnn: what looks like attention becomes attention over the last axis, without a word.
#
# Two products with a Softmax between them, on projections that are reshaped to heads and transposed, are fused to one Attention
# layer. Two things of the pattern are not looked at:
#   axis of Softmax       attention that is normalized over the queries (axis 2 of 4, as in slot attention) or the heads (1)
#                         is computed over the keys
#   perm of the Transpose behind, which brings the heads together    [0, 1, 2, 3] and [1, 0, 2, 3] as [0, 2, 1, 3]
# The scale and an added mask are heeded. Seen, two samples of six tokens and two heads of four: 2 to 11 off, as large as the values
# themselves, in float32; the same nodes with an Identity behind the Softmax, which hides the pattern, are right, as the plain
# form is. onnx 1.23.2's full check passes, numpy and ONNX Runtime 1.32.0 agree. A network that uses both kinds of attention is wrong in
# one of them only. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
import onnx
from common import NONE, expect, model, random, session
from onnx import helper

BATCH, TOKENS, HEADS, WIDTH = 2, 6, 2, 8
PERMS = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
draw = {f"w{part}": (WIDTH, WIDTH) for part in PERMS} | {f"b{part}": (WIDTH,) for part in PERMS}
weights = {name: (random.normal(size=shape) * 0.6).astype(np.float32) for name, shape in draw.items()}
weights |= {"heads": np.asarray([0, 0, HEADS, WIDTH // HEADS], np.int64), "flat": np.asarray([BATCH, TOKENS, WIDTH], np.int64)}
weights |= {"divisor": np.float32(3), "mask": random.normal(size=(1, 1, TOKENS, TOKENS)).astype(np.float32)}
x = random.normal(size=(BATCH, TOKENS, WIDTH)).astype(np.float32)


def attention(axis, perm, hidden=False):
    """MatMul, Add, Reshape, Transpose three times; MatMul, Div, Add, Softmax, MatMul, Transpose, Reshape."""
    nodes = []
    for part, turned in PERMS.items():
        nodes.append(helper.make_node("MatMul", ["x", f"w{part}"], [f"p{part}"]))
        nodes.append(helper.make_node("Add", [f"p{part}", f"b{part}"], [f"a{part}"]))
        nodes.append(helper.make_node("Reshape", [f"a{part}", "heads"], [f"h{part}"]))
        nodes.append(helper.make_node("Transpose", [f"h{part}"], [part], perm=turned))
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["product"]))
    nodes.append(helper.make_node("Div", ["product", "divisor"], ["scaled"]))
    nodes.append(helper.make_node("Add", ["scaled", "mask"], ["masked"]))
    nodes.append(helper.make_node("Softmax", ["masked"], ["share"], axis=axis))
    if hidden:
        nodes.append(helper.make_node("Identity", ["share"], ["same"]))
    nodes.append(helper.make_node("MatMul", ["same" if hidden else "share", "v"], ["mixed"]))
    nodes.append(helper.make_node("Transpose", ["mixed"], ["together"], perm=perm))
    nodes.append(helper.make_node("Reshape", ["together", "flat"], ["y"]))
    made = onnx.shape_inference.infer_shapes(onnx.load_from_string(model(nodes, list(x.shape), weights)))
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def computes(axis, perm):
    """The same in numpy."""
    q, k, v = ((x @ weights[f"w{part}"] + weights[f"b{part}"]).reshape(BATCH, TOKENS, HEADS, -1) for part in PERMS)
    score = q.transpose(PERMS["q"]) @ k.transpose(PERMS["k"]) / 3 + weights["mask"]
    e = np.exp(score - score.max(axis, keepdims=True))
    return (e / e.sum(axis, keepdims=True) @ v.transpose(PERMS["v"])).transpose(perm).reshape(x.shape)


def opencv(made):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(made, np.uint8))
    net.setInput(x, "x")
    return net.forward("y")


plain = opencv(attention(-1, [0, 2, 1, 3]))
for axis in (-1, 3, 2, 1):
    for perm in ([0, 2, 1, 3], [0, 1, 2, 3], [1, 0, 2, 3]):
        made, truth = attention(axis, perm), computes(axis, perm)
        case = f"Softmax axis {axis}, Transpose {perm}"
        expect(f"{case}: ONNX Runtime is right", abs(session(made, NONE).run(None, {"x": x})[0] - truth).max() < 1e-4)
        got = opencv(made)
        off = float(abs(got - truth).max())
        if axis in (-1, 3) and perm == [0, 2, 1, 3]:
            expect(f"{case}: OpenCV is right, {off:.0e} off", off < 1e-4)
        else:
            expect(f"{case}: OpenCV is {off:.1f} off", off > 0.1)
            expect(f"{case}: OpenCV gives the plain form's numbers", abs(got - plain).max() < 1e-4)
        off = float(abs(opencv(attention(axis, perm, hidden=True)) - truth).max())
        expect(f"{case}: right with an Identity behind the Softmax, {off:.0e} off", off < 1e-4)
PYTHON
