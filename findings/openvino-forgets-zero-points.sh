#!/usr/bin/env bash
# openvino 2026.4.1, CPU: two layers between quantizers forget a zero point, without a word; Q/DQ form is not read rightly throughout.
#
#   AveragePool, count_include_pad=1   what pads the image is the integer 0, not the zero point, which is what 0 is stored as: a frame
#                         of other values around each map. Seen with uint8, zero point 128, and int8, -128: 71 steps of 255 off at
#                         the border, exact inside; right where the zero point is 0, without padding, with count_include_pad=0
#   ConvTranspose         a weight with a zero point (uint8 with 128 or 100, int8 with 5), where the input's is 0: off by half of
#                         the largest output up to several times it; of uint8 with 128, as symmetric weights are written in uint8, each
#                         weight below 128 counts as 256 more. Right where the input's zero point is not 0, as Conv is throughout
# Each model has one such layer; onnx 1.23.2's full check passes, onnx's reference evaluator and ONNX Runtime 1.32.0 agree with
# each other. Where it bites: count_include_pad=1 with padding is what PyTorch's AvgPool2d means by default, and asymmetric
# activations are what quantize_static and others write by default; zero point 0 is what Relu's outputs get, in front of a decoder's
# ConvTranspose. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import openvino
from common import NONE, expect, model, random, session
from onnx import helper
from onnx.reference import ReferenceEvaluator

CORE = openvino.Core()
STEP = np.float32(0.02)


def runs(nodes, shape, weights):
    """What OpenVINO gives, and what ONNX Runtime and the reference evaluator agree on; also the sample."""
    made = model(nodes, shape, weights, opset=19)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(onnx.load_from_string(made)), full_check=True)
    x = abs(random.normal(size=shape)).astype(np.float32)
    truth = session(made, NONE).run(None, {"x": x})[0]
    assert abs(truth - ReferenceEvaluator(onnx.load_from_string(made)).run(None, {"x": x})[0]).max() < 1e-4
    compiled = CORE.compile_model(CORE.read_model(made), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([x])[0], truth, x


def pair(dtype, zero):
    """Quantizers of x, and what they read."""
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]))
    return nodes, {"s": STEP, "z": dtype(zero)}


WINDOW = {"kernel_shape": [3, 3]}
for dtype, zero in ((np.uint8, 0), (np.uint8, 128), (np.int8, 0), (np.int8, -128)):
    for name, attributes in {
        "padded, counted": {**WINDOW, "pads": [1, 1, 1, 1], "count_include_pad": 1},
        "padded by auto_pad, counted": {**WINDOW, "auto_pad": "SAME_UPPER", "count_include_pad": 1},
        "padded, not counted": {**WINDOW, "pads": [1, 1, 1, 1]},
        "not padded": {**WINDOW, "count_include_pad": 1},
    }.items():
        nodes, held = pair(dtype, zero)
        nodes.append(helper.make_node("AveragePool", ["a"], ["y"], **attributes))
        got, truth, _ = runs(nodes, [1, 2, 6, 6], held)
        error = abs(got - truth) / STEP
        case = f"AveragePool, {dtype.__name__}, zero point {zero}, {name}"
        if "padded, counted" in name or "auto_pad" in name:
            inner, border = error[..., 1:-1, 1:-1].max(), error.max()
            if zero:
                expect(f"{case}: {border:.0f} steps off at the border, right inside", border > 30 and inner < 0.1)
                continue
        expect(f"{case}: right", error.max() < 0.1)

for dtype, zero in ((np.uint8, 0), (np.int8, 0), (np.uint8, 20)):
    for kind, weight_zero in ((np.uint8, 128), (np.uint8, 100), (np.uint8, 0), (np.int8, 5), (np.int8, 0)):
        for op, shape in (("ConvTranspose", (3, 4, 3, 3)), ("Conv", (4, 3, 3, 3))):
            nodes, held = pair(dtype, zero)
            held["w8"] = random.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, size=shape).astype(kind)
            held |= {"sw": np.float32(0.01), "zw": kind(weight_zero)}
            nodes.append(helper.make_node("DequantizeLinear", ["w8", "sw", "zw"], ["w"]))
            nodes.append(helper.make_node(op, ["a", "w"], ["y"]))
            shown = held["w8"].astype(int) - weight_zero
            got, truth, x = runs(nodes, [1, 3, 5, 5], held)
            off = abs(got - truth).max() / abs(truth).max()
            case = f"{op}, {dtype.__name__}, zero point {zero}, weight {kind.__name__}, zero point {weight_zero}"
            if op == "Conv" or zero or not weight_zero:
                expect(f"{case}: right", off < 1e-4)
                continue
            expect(f"{case}: {off:.1f} of the largest output off", off > 0.2)
            if weight_zero == 128:
                front, held = pair(dtype, zero)
                held["w"] = (shown + 256.0 * (shown < 0)).astype(np.float32) * np.float32(0.01)
                front.append(helper.make_node("ConvTranspose", ["a", "w"], ["y"]))
                same = session(model(front, [1, 3, 5, 5], held, opset=19), NONE).run(None, {"x": x})[0]
                expect(f"{case}: as if those below the zero point were 256 more", abs(got - same).max() < 1e-3)
PYTHON
