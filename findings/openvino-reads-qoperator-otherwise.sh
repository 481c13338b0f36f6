#!/usr/bin/env bash
# openvino 2026.4.1 computes other numbers than ONNX Runtime from int8 models in QOperator format, and mostly says nothing.
#
# The QOperator format is what quantize_static(quant_format=QOperator) writes, and ONNX Runtime's own optimizer from Q/DQ. Seen on the CPU
# plugin against ONNX Runtime 1.31.1 with optimizations off (and against the arithmetic of the standard in numpy), in steps of 255:
#   QLinearConv, one weight scale per output channel   the scales are laid along the INPUT channels. Where the two counts differ the
#                                 model is refused ("must match the input shape dimension"); where they are equal, as in
#                                 most layers of a ResNet, it compiles and is up to 120 steps off. One scale for all is exact as a
#                                 scalar, and refused as the vector of one element that the standard also allows.
#   QLinearAdd, QLinearMul, QLinearSigmoid (com.microsoft)   what leaves 0..255 wraps around instead of being held at
#                                 the end: 250 + 10 becomes 4. QLinearConv and QLinearMatMul do hold it.
#   QLinearLeakyRelu (com.microsoft)   below zero the result has nothing to do with the right one, inside the range too.
# So a QOperator model that was accepted on ONNX Runtime is not to be deployed there; its Q/DQ form is read rightly. Exits non-zero
# where one of these is right, or refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
cd "$folder"
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON' 2>"$folder/log" || { tail -5 "$folder/log"; exit 1; }
import numpy as np
import openvino
from common import NONE, expect, random, session
from onnx import TensorProto, helper, numpy_helper

CORE = openvino.Core()
BYTE = TensorProto.UINT8


def scalar(value, kind):
    return np.asarray(value, kind)


def single(kind, x, constants, domain="", **attributes):
    """A model of one node on uint8 `x`; `constants` are its further inputs in order."""
    inits = [numpy_helper.from_array(value, f"c{at}") for at, value in enumerate(constants)]
    node = helper.make_node(kind, ["x", *(each.name for each in inits)], ["y"], domain=domain, **attributes)
    infos = [helper.make_tensor_value_info("x", BYTE, x.shape), helper.make_tensor_value_info("y", BYTE, [None] * x.ndim)]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], inits)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def apart(made, x):
    """The largest difference between the two runtimes, in steps; None where OpenVINO refuses the model."""
    [truth] = session(made, NONE).run(None, {"x": x})
    try:
        compiled = CORE.compile_model(CORE.read_model(made), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError:
        return None
    return int(np.abs(truth.astype(int) - np.asarray(compiled([x])[0]).astype(int)).max())


def convolution(outputs, inputs, scales):
    x = random.integers(0, 256, (1, inputs, 8, 8), np.uint8)
    weight = random.integers(-60, 61, (outputs, inputs, 3, 3), np.int8)
    bias = random.integers(-900, 901, outputs, np.int32)
    zeros = np.zeros(scales.shape, np.int8)
    step, zero = scalar(0.01, np.float32), scalar(128, np.uint8)
    made = single("QLinearConv", x, [step, zero, weight, scales, zeros, scalar(0.05, np.float32), zero, bias], pads=[1, 1, 1, 1])
    return apart(made, x)


different = np.array([0.001, 0.01, 0.02, 0.03], np.float32)
off = convolution(4, 4, different)
expect(f"QLinearConv, 4 to 4 channels, a scale each: {off} of 255 steps off", off is not None and off > 20)
expect("QLinearConv, 3 to 4 channels, a scale each: refused", convolution(4, 3, different) is None)
expect("QLinearConv, one scale as a vector of one: refused", convolution(4, 4, different[:1]) is None)
expect("QLinearConv, one scale as a scalar: equal", convolution(4, 4, scalar(0.01, np.float32)) in (0, 1))

x = np.arange(256, dtype=np.uint8)[None]
other = np.roll(x, 40)
steps = [scalar(0.05, np.float32), scalar(128, np.uint8)]
for kind, constants in [
    ("QLinearAdd", [*steps, other, *steps, scalar(0.002, np.float32), scalar(100, np.uint8)]),
    ("QLinearMul", [*steps, other, *steps, scalar(0.02, np.float32), scalar(100, np.uint8)]),
    ("QLinearSigmoid", [*steps, scalar(0.002, np.float32), scalar(0, np.uint8)]),
]:
    off = apart(single(kind, x, constants, "com.microsoft"), x)
    expect(f"{kind} where values leave 0..255: {off} of 255 steps off", off is not None and off > 200)
    wide = [*constants[:-2], scalar(0.5, np.float32), scalar(128, np.uint8)]
    off = apart(single(kind, x, wide, "com.microsoft"), x)
    expect(f"{kind} where they stay inside: {off} off", off in (0, 1))
leaky = single("QLinearLeakyRelu", x, [*steps, scalar(0.5, np.float32), scalar(128, np.uint8)], "com.microsoft", alpha=0.2)
off = apart(leaky, x)
expect(f"QLinearLeakyRelu, all results inside 0..255: {off} off", off is not None and off > 100)
PYTHON
