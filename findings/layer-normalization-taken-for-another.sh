#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: by default two models of this family compute another function than their file says, without a word.
#
# 1. Add in front of LayerNormalization with axis=1 of three (normalize over tokens and features together), scale and bias of the last
#    axis: valid, both broadcast. From ORT_ENABLE_EXTENDED on the pair becomes SkipLayerNormalization, which has no axis and
#    always normalizes the last one. Seen up to 2 off on values of size 1. Without the Add, or with scale and bias of all
#    normalized axes, it is right. A scale of one element, as valid, ends in an error at the first run ("Last dimension of
#    gamma and input does not match") where without optimizations it runs.
# 2. The pattern ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add becomes LayerNormalization from ORT_ENABLE_BASIC on,
#    whatever the exponent of Pow is: with 4 (a kurtosis norm) as with 2.
# A comparison of two such models in this runtime shows nothing, both go wrong alike; one run with optimizations off does. Exits
# non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from common import ALL, NONE, expect, kernels, model, random, session
from onnx import helper

TOKENS, SIZE = 6, 8
BASIC = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
X = random.normal(size=(2, TOKENS, SIZE)).astype(np.float32) * np.linspace(0.2, 2, TOKENS, dtype=np.float32)[:, None]


def normed(axis, shape, *, add=True):
    """y = LayerNormalization(x + x W), or of x W alone."""
    draw = {"w": random.normal(size=(SIZE, SIZE)) / 3, "scale": np.ones(shape), "bias": np.zeros(shape)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["x", "m"], ["a"])][: 1 + add]
    nodes.append(helper.make_node("LayerNormalization", [nodes[-1].output[0], "scale", "bias"], ["y"], axis=axis))
    return model(nodes, [2, TOKENS, SIZE], {name: np.asarray(value, np.float32) for name, value in draw.items()})


def powered(exponent):
    """The norm written in parts, with Pow(d, exponent)."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["d"]),
        helper.make_node("Pow", ["d", "e"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["s"]),
        helper.make_node("Div", ["d", "s"], ["n"]),
        helper.make_node("Mul", ["n", "scale"], ["ns"]),
        helper.make_node("Add", ["ns", "bias"], ["y"]),
    ]
    weights = {"e": exponent, "eps": 1e-5, "scale": np.ones(SIZE), "bias": np.zeros(SIZE)}
    return model(nodes, [2, TOKENS, SIZE], {name: np.asarray(value, np.float32) for name, value in weights.items()})


def off(made, level):
    """The largest difference from the file run as it stands."""
    right, got = (session(made, each).run(None, {"x": X})[0] for each in (NONE, level))
    return float(np.abs(right - got).max())


wrong = off(normed(1, [SIZE]), ALL)
fused = kernels(normed(1, [SIZE]))
expect(f"Add, LayerNormalization over two axes: SkipLayerNormalization, {wrong:.1f} off", wrong > 0.3 and fused["SkipLayerNormalization"] == 1)
expect("... right up to ORT_ENABLE_BASIC", off(normed(1, [SIZE]), BASIC) < 1e-4)
expect("... right with the scale of both axes", off(normed(1, [TOKENS, SIZE]), ALL) < 1e-4)
expect("... right over the last axis", off(normed(-1, [SIZE]), ALL) < 1e-4)
expect("... right without the Add", off(normed(1, [SIZE], add=False), ALL) < 1e-4)
one = normed(-1, [1])
session(one, NONE).run(None, {"x": X})
try:
    session(one).run(None, {"x": X})
    said = ""
except Exception as error:
    said = str(error)
expect("a scale of one element runs without optimizations and fails with them", "gamma" in said)

for level, name in ((BASIC, "BASIC"), (ALL, "ALL")):
    wrong = off(powered(4.0), level)
    expect(f"{name}, Pow(d, 4) in the parts of a norm: taken for LayerNormalization, {wrong:.1f} off", wrong > 0.3)
expect("... and is one node", kernels(powered(4.0)) == {"LayerNormalization": 1})
expect("... as Pow(d, 2) is, rightly", off(powered(2.0), ALL) < 1e-4 and kernels(powered(2.0)) == {"LayerNormalization": 1})
PYTHON
