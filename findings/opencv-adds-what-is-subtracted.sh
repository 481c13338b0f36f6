#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, dnn: between quantizers, Sub, Div, Min and Max of two tensors are computed as Add, without a word.
#
# A Q/DQ model (DequantizeLinear on both inputs, QuantizeLinear behind, one scale for each tensor) that readNetFromONNX reads is
# turned to integer layers. Its integer layer of elementwise operators gets Add and Mul right; Sub, Div, Min and Max get the
# numbers of Add, to the last step. Seen in int8 and uint8, with equal and different scales: the output of such a Sub equals that
# of the same file with Add in its place, and is up to 3.5 off where the values are of size 1. The float model is right, and so is the
# Q/DQ model without the QuantizeLinear behind the operator, which stays in float. onnx 1.23.2's full check passes all of
# them; ONNX Runtime 1.32.0 agrees with the arithmetic in numpy.
# Where it bites: a subtraction of two activations, Min and Max as a clamp by a tensor, a division by a norm, in any model that
# quantize_static wrote with these among its operators. Compare outputs after deployment. Exits non-zero where that is no longer so.
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
from common import NONE, expect, random, session
from onnx import TensorProto, helper, numpy_helper

COMPUTES = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Min": np.minimum, "Max": np.maximum}
SHAPE = [2, 6, 8]


def pair(tensor, scale, name):
    """QuantizeLinear and DequantizeLinear of a tensor."""
    whole = helper.make_node("QuantizeLinear", [tensor, scale, "zero"], [f"{name}_q"])
    return [whole, helper.make_node("DequantizeLinear", [f"{name}_q", scale, "zero"], [name])]


def quantized(kind, dtype, scales, behind=True):
    """x and z, each quantized, through one operator; quantized again if `behind`."""
    nodes = pair("x", "sx", "a") + pair("z", "sz", "b") + [helper.make_node(kind, ["a", "b"], ["m" if behind else "y"])]
    held = dict(zip(("sx", "sz", "sy"), map(np.float32, scales))) | {"zero": dtype(0 if dtype is np.int8 else 128)}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "z", "y")]
    inits = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    graph = helper.make_graph(nodes + (pair("m", "sy", "y") if behind else []), "g", infos[:2], infos[2:], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def opencv(made, feed):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(made, np.uint8))
    for name, value in feed.items():
        net.setInput(value, name)
    return net.forward("y")


def stepped(value, scale, dtype):
    """The values of a tensor behind a pair."""
    zero, ends = (0, (-128, 127)) if dtype is np.int8 else (128, (0, 255))
    return (np.clip(np.rint(value / np.float32(scale)) + zero, *ends) - zero) * np.float32(scale)


feed = {"x": random.normal(size=SHAPE) * 0.6, "z": abs(random.normal(size=SHAPE)) * 0.6 + 0.3}
feed = {name: value.astype(np.float32) for name, value in feed.items()}
for dtype in (np.int8, np.uint8):
    for scales in ((0.02, 0.02, 0.05), (0.02, 0.03, 0.05)):
        sums = opencv(quantized("Add", dtype, scales), feed)
        for kind, compute in COMPUTES.items():
            made = quantized(kind, dtype, scales)
            a, b = (stepped(feed[name], scale, dtype) for name, scale in zip(("x", "z"), scales))
            truth = stepped(compute(a, b), scales[2], dtype)
            case = f"{kind}, {dtype.__name__}, scales {scales}"
            off = float(abs(session(made, NONE).run(None, feed)[0] - truth).max())
            expect(f"{case}: ONNX Runtime is within one step ({off:.2f})", off < 1.01 * scales[2])
            got = opencv(made, feed)
            off = float(abs(got - truth).max())
            if kind in ("Add", "Mul"):
                expect(f"{case}: OpenCV is within one step ({off:.2f})", off < 1.01 * scales[2])
            else:
                expect(f"{case}: OpenCV is {off:.2f} off, and equals its Add", off > 1 and np.array_equal(got, sums))
            if kind == "Sub":
                bare = opencv(quantized(kind, dtype, scales, behind=False), feed)
                expect(f"{case}: right without QuantizeLinear behind", abs(bare - (a - b)).max() < 1e-5)
PYTHON
