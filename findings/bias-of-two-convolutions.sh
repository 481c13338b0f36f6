#!/usr/bin/env bash
# onnxruntime 1.31.1, quantize_static in QOperator format: a bias that two layers share is right in the first of them only.
#
# An int32 bias has the scale input_scale * weight_scale of its layer, so two convolutions with inputs of different range need two
# biases. quantize_static keeps what it quantized by the name of the float tensor: the second layer gets the integers that were
# made with the first one's scale. Shared biases are common: exporters merge equal constants (a bias of zeros, a prior of
# detection heads that is one value), heads over a feature pyramid share their weights, onnxslim and onnxsim merge equal
# initializers. Seen, two convolutions of 8 channels, the second's input 100 times as large: 35 dB in the first layer, -3 to 5 dB
# in the second, where the same file with two copies of the bias has 34 dB in both. Per channel or not, weight shared or not.
# QDQ format, which decodes each layer's own bias, is right; nothing warns in QOperator. So give each layer a bias of its own
# before that format is written, and never merge constants in front of it. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 sympy==1.14.0
here=$(cd "$(dirname "$0")" && pwd)
cd "$folder"
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON' 2>"$folder/log" || { tail -5 "$folder/log"; exit 1; }
import logging

import numpy as np
import onnx
from common import NONE, expect, random, session
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

logging.disable(logging.CRITICAL)
SHAPE = [1, 8, 16, 16]
SAMPLES = [random.normal(size=SHAPE).astype(np.float32) for _ in range(16)]


class Reader(CalibrationDataReader):
    def __init__(self):
        self.left = iter(SAMPLES)

    def get_next(self):
        sample = next(self.left, None)
        return None if sample is None else {"x": sample}


def two_layers(biases, weights):
    """u = Conv(x), v = Conv(100 x), with one or two biases and weights of equal or like values."""
    value = random.normal(size=8).astype(np.float32)
    constants = {"k": np.float32(100).reshape(())}
    constants |= {f"b{at}": value for at in range(biases)}
    constants |= {f"w{at}": (random.normal(size=(8, 8, 3, 3)) / 10).astype(np.float32) for at in range(weights)}
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["large"], name="large"),
        helper.make_node("Conv", ["x", "w0", "b0"], ["u"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["large", f"w{weights - 1}", f"b{biases - 1}"], ["v"], name="second", pads=[1, 1, 1, 1]),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "u", "v")]
    inits = [numpy_helper.from_array(each, name) for name, each in constants.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sqnr(made, style, per_channel):
    """SQNR in dB of both outputs, every node run as it stands in the file."""
    onnx.save(made, "float.onnx")
    # Seven bits of weight, so that processors that add products in 16 bits say the same.
    options = {"activation_type": QuantType.QUInt8, "reduce_range": True}
    quantize_static("float.onnx", "small.onnx", Reader(), quant_format=style, per_channel=per_channel, **options)
    with open("small.onnx", "rb") as file:
        small = session(file.read(), NONE)
    truth = session(made.SerializeToString(), NONE)
    pairs = zip(truth.run(None, {"x": SAMPLES[0]}), small.run(None, {"x": SAMPLES[0]}), strict=True)
    return [10 * np.log10((a**2).mean() / ((a - b) ** 2).mean()) for a, b in pairs]


for per_channel in (False, True):
    for weights in (1, 2):
        how = f"{'per channel' if per_channel else 'per tensor'}, {weights} weight{'s' * (weights - 1)}"
        first, second = sqnr(two_layers(1, weights), QuantFormat.QOperator, per_channel)
        expect(f"QOperator, {how}, one bias: {first:.0f} dB in the first layer, {second:.0f} dB in the second", first > 25 and second < 10)
        first, second = sqnr(two_layers(2, weights), QuantFormat.QOperator, per_channel)
        expect(f"QOperator, {how}, two biases: {first:.0f} and {second:.0f} dB", min(first, second) > 25)
        first, second = sqnr(two_layers(1, weights), QuantFormat.QDQ, per_channel)
        expect(f"QDQ, {how}, one bias: {first:.0f} and {second:.0f} dB", min(first, second) > 25)
PYTHON
