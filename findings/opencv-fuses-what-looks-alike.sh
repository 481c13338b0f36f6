#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, dnn: four valid patterns are taken for layers that they only resemble, without a word.
#
#   x * tanh(log(exp(x) + c))          Mish, which is c = 1, whatever the constant is
#   s * tanh(s), s = Softplus(x)       Mish as well, which is x * tanh(s)
#   mean and variance over the axes [0, 2, 3], as a norm over the batch is written step by step (and as a tool writes
#                                      MeanVarianceNormalization, whose default axes these are, in basic operators)
#                                      other numbers, of no set of axes; over [2, 3], [1] or [1, 2, 3] they are right
#   Swish with alpha (opset 24)        alpha = 1, whatever the attribute says
# Seen in float32, 0.2 to 2.7 off on standard normal values; Mish and Swish equal the layer they were taken for. numpy and ONNX
# Runtime 1.32.0 agree (it has no kernel for Swish; onnx's reference evaluator agrees there), onnx 1.23.2's full check
# passes. A graph that a tool cut into basic operators is not safe there: compare outputs. Exits non-zero where that is
# no longer so.
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
from onnx.reference import ReferenceEvaluator

x = (random.normal(size=(3, 4, 6, 5)) + 0.3).astype(np.float32)
EPSILON = np.float32(1e-5)


def built(nodes, weights, opset=17):
    """The model with its shapes, checked."""
    made = onnx.shape_inference.infer_shapes(onnx.load_from_string(model(nodes, list(x.shape), weights, opset)))
    onnx.checker.check_model(made, full_check=True)
    return made


def opencv(made):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(made.SerializeToString(), np.uint8))
    net.setInput(x, "x")
    return net.forward("y")


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def logarithm(constant):
    """x * tanh(log(exp(x) + constant))."""
    nodes = [node("Exp", "x", "e"), node("Add", "e c", "a"), node("Log", "a", "s")]
    return built([*nodes, node("Tanh", "s", "t"), node("Mul", "x t", "y")], {"c": np.float32(constant)})


def softplus(left):
    """left * tanh(Softplus(x))."""
    return built([node("Softplus", "x", "s"), node("Tanh", "s", "t"), node("Mul", f"{left} t", "y")], {})


def norm(axes):
    """(x - mean) / sqrt(variance + epsilon), step by step."""
    nodes = [node("ReduceMean", "x", "m", axes=axes), node("Sub", "x m", "d"), node("Pow", "d two", "p")]
    nodes += [node("ReduceMean", "p", "v", axes=axes), node("Add", "v epsilon", "a"), node("Sqrt", "a", "r")]
    return built([*nodes, node("Div", "d r", "y")], {"two": np.float32(2), "epsilon": EPSILON})


def normed(axes):
    axes = tuple(axes)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPSILON)


def mish(value, constant=1.0):
    return value * np.tanh(np.log(np.exp(value) + constant))


plus = np.log1p(np.exp(x))
ALL_AXES = [[0], [1], [2], [3], [0, 1], [2, 3], [0, 2], [0, 3], [1, 2], [1, 3], [0, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
for case, made, truth, taken in [
    ("Mish, c = 1", logarithm(1), mish(x), None),
    ("c = 3", logarithm(3), mish(x, 3), mish(x)),
    ("x * tanh(Softplus(x))", softplus("x"), mish(x), None),
    ("s * tanh(s)", softplus("s"), plus * np.tanh(plus), mish(x)),
    ("norm over [2, 3]", norm([2, 3]), normed([2, 3]), None),
    ("norm over [1]", norm([1]), normed([1]), None),
    ("norm over [1, 2, 3]", norm([1, 2, 3]), normed([1, 2, 3]), None),
    ("norm over [0, 2, 3]", norm([0, 2, 3]), normed([0, 2, 3]), None),
]:
    ours = session(made.SerializeToString(), NONE).run(None, {"x": x})[0]
    expect(f"{case}: ONNX Runtime is right", abs(ours - truth).max() < 1e-4)
    got = opencv(made)
    off = float(abs(got - truth).max())
    if case == "norm over [0, 2, 3]":
        least = min(float(abs(got - normed(axes)).max()) for axes in ALL_AXES)
        expect(f"{case}: OpenCV is {off:.2f} off, and {least:.2f} from any set of axes", least > 0.05)
    elif taken is None:
        expect(f"{case}: OpenCV is right, {off:.0e} off", off < 1e-4)
    else:
        expect(f"{case}: OpenCV is {off:.2f} off", off > 0.1)
        expect(f"{case}: OpenCV gives the other layer's numbers, to {abs(got - taken).max():.0e}", abs(got - taken).max() < 1e-4)

for alpha in (1.0, 0.5, 1.702):
    made = built([helper.make_node("Swish", ["x"], ["y"], alpha=alpha)], {}, 24)
    truth = x / (1 + np.exp(-alpha * x))
    expect(f"Swish, alpha {alpha}: onnx's reference is right", abs(ReferenceEvaluator(made).run(None, {"x": x})[0] - truth).max() < 1e-5)
    got = opencv(made)
    off = float(abs(got - truth).max())
    expect(f"Swish, alpha {alpha}: OpenCV is {off:.2f} off", (off < 1e-4) == (alpha == 1))
    expect(f"Swish, alpha {alpha}: OpenCV computes with 1", abs(got - x / (1 + np.exp(-x))).max() < 1e-4)
PYTHON
