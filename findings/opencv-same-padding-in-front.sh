#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93, dnn: auto_pad of Conv and pools puts the odd row at the wrong end, without a word.
#
# By the standard SAME_UPPER puts the odd row and column of padding at the end, SAME_LOWER at the start; how many there are follows from
# kernel, stride and size. OpenCV puts (kernel - 1) / 2, rounded down, in front, whatever the stride, the size and the name. So
#   SAME_UPPER, kernel 3, stride 2, even size    one in front and none behind, where it is none and one: all is shifted by a row
#   SAME_UPPER, kernel 5, stride 2, even size    two and one, where it is one and two
#   SAME_LOWER, kernel 2, stride 1               none and one, where it is one and none
# and right where both agree (odd kernels at stride 1; stride 2 on odd sizes). Seen for Conv, MaxPool and AveragePool in float and for
# Conv between quantizers, with each of the three engines, against numpy; ONNX Runtime 1.32.0 is right. The same
# padding written as `pads` is right in OpenCV.
# Where it bites: the first of the three is every downsampling layer of a network that comes from TensorFlow or Keras (tf2onnx writes
# SAME_UPPER): MobileNet, EfficientNet, SSD. Every map is shifted by a row, and nothing fails. Write pads before deploying
# there. Exits non-zero where that is no longer so.
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


def opencv(made, x, engine):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(made, np.uint8), engine)
    net.setInput(x, "x")
    return net.forward("y")


def shaped(*parts):
    """The model with all shapes, which OpenCV asks for, checked."""
    made = onnx.shape_inference.infer_shapes(onnx.load_from_string(model(*parts)))
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def windows(x, kernel, stride, pads, fill):
    """All windows of one plane, [rows, columns, kernel, kernel], with the padding (in front, behind) of each axis."""
    wide = np.pad(x[0, 0], (pads, pads), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(wide, (kernel, kernel))[::stride, ::stride]


def ends(auto_pad, kernel, stride, size):
    """The padding in front and behind that the standard asks for."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def computes(kind, x, kernel, stride, pads):
    """What a kernel of ones, a largest value or a mean over the values there (no padding) gives."""
    if kind == "MaxPool":
        return windows(x, kernel, stride, pads, -np.inf).max((2, 3))
    total = windows(x, kernel, stride, pads, 0).sum((2, 3))
    return total / windows(np.ones_like(x), kernel, stride, pads, 0).sum((2, 3)) if kind == "AveragePool" else total


ENGINES = {name: getattr(cv2.dnn, name) for name in ("ENGINE_CLASSIC", "ENGINE_NEW", "ENGINE_AUTO")}
for auto_pad, kernel, stride, size, right in [
    ("SAME_UPPER", 3, 1, 6, True), ("SAME_UPPER", 3, 2, 7, True), ("SAME_UPPER", 3, 2, 6, False),
    ("SAME_UPPER", 5, 2, 8, False), ("SAME_UPPER", 2, 1, 6, True), ("SAME_LOWER", 2, 1, 6, False),
    ("SAME_LOWER", 3, 2, 6, True),
]:
    x = random.normal(size=(1, 1, size, size)).astype(np.float32)
    wanted = ends(auto_pad, kernel, stride, size)
    front = (kernel - 1) // 2
    seen = (front, sum(wanted) - front)
    for kind in ("Conv", "MaxPool", "AveragePool"):
        weights = {"w": np.ones((1, 1, kernel, kernel), np.float32)} if kind == "Conv" else {}
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        made = shaped([helper.make_node(kind, ["x", *weights], ["y"], auto_pad=auto_pad, **sizes)], list(x.shape), weights)
        truth = computes(kind, x, kernel, stride, wanted)
        case = f"{kind}, {auto_pad}, kernel {kernel}, stride {stride}, size {size}, padding {wanted}"
        expect(f"{case}: ONNX Runtime is right", abs(session(made, NONE).run(None, {"x": x})[0][0, 0] - truth).max() < 1e-4)
        for name, engine in ENGINES.items():
            got = opencv(made, x, engine)[0, 0]
            off = float(abs(got - truth).max())
            expect(f"{case}: OpenCV, {name}, {off:.2f} off", (off < 1e-4) == right)
            expect(f"{case}: OpenCV, {name}, pads {seen}", abs(got - computes(kind, x, kernel, stride, seen)).max() < 1e-4)
        pads = [wanted[0]] * 2 + [wanted[1]] * 2
        named = shaped([helper.make_node(kind, ["x", *weights], ["y"], pads=pads, **sizes)], list(x.shape), weights)
        off = float(abs(opencv(named, x, cv2.dnn.ENGINE_AUTO)[0, 0] - truth).max())
        expect(f"{case}: right with pads={pads}", off < 1e-4)


def pair(tensor, scale, name):
    """QuantizeLinear and DequantizeLinear of a tensor."""
    whole = helper.make_node("QuantizeLinear", [tensor, scale, "zero"], [f"{name}_q"])
    return [whole, helper.make_node("DequantizeLinear", [f"{name}_q", scale, "zero"], [name])]


x = random.normal(size=(1, 4, 6, 6)).astype(np.float32)
weights = {"sx": np.float32(0.02), "sw": np.float32(0.01), "sy": np.float32(0.2), "zero": np.int8(0)}
weights["w"] = random.integers(-100, 100, (4, 4, 3, 3)).astype(np.int8)
for padding, right in (({"auto_pad": "SAME_UPPER"}, False), ({"pads": [0, 0, 1, 1]}, True)):
    conv = helper.make_node("Conv", ["a", "wf"], ["m"], strides=[2, 2], **padding)
    decoded = helper.make_node("DequantizeLinear", ["w", "sw", "zero"], ["wf"])
    made = shaped([*pair("x", "sx", "a"), decoded, conv, *pair("m", "sy", "y")], [1, 4, 6, 6], weights)
    off = float(abs(opencv(made, x, cv2.dnn.ENGINE_AUTO) - session(made, NONE).run(None, {"x": x})[0]).max() / 0.2)
    expect(f"Conv between quantizers, {padding}: {off:.0f} steps off", (off < 1.5) == right)
PYTHON
