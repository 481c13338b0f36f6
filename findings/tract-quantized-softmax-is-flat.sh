#!/usr/bin/env bash
# tract 0.23.9 (Sonos' inference engine): a Softmax between quantizers gives its largest value for every class, without a word.
#
# DequantizeLinear -> Softmax -> QuantizeLinear -> DequantizeLinear, as quantize_static writes it for each Softmax of a network (scale
# 1/256, zero point at the lowest integer). tract makes one integer Softmax of it, and each element of what comes out is the top of
# the range: 0.99609375, whatever goes in; a row of 64 "probabilities" sums to 63.75. Seen with uint8 and int8, scales of the input
# from 0.01 to 0.5, rows of 4 and 64. Each half alone is right: without the QuantizeLinear behind, or without the pair in front;
# so are Sigmoid and Tanh in the Softmax's place. numpy and ONNX Runtime 1.32.0 agree on the right values.
# So a classifier that ends so has no class any more, and attention in a quantized transformer becomes a sum of all values.
# Leave Softmax out of op_types_to_quantize for tract. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tract==0.23.9 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import pathlib
import sys

import numpy as np
import onnx
import tract
from common import NONE, expect, model, random, session
from onnx import helper


def runs(made, x):
    pathlib.Path(sys.argv[1]).write_bytes(made)
    loaded = tract.onnx().load(sys.argv[1])
    loaded.set_input_fact(0, ",".join(map(str, x.shape)) + ",f32")
    return loaded.into_model().into_runnable().run([x])[0].to_numpy()


def pair(tensor, scale, zero, name):
    """QuantizeLinear and DequantizeLinear of a tensor."""
    whole = helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{name}_q"])
    return [whole, helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [name])]


def steps(value, scale, zero, dtype):
    """The values of a tensor behind a pair."""
    held = np.iinfo(dtype)
    return (np.clip(np.rint(value / np.float32(scale)) + zero, held.min, held.max) - zero) * np.float32(scale)


def softmax(value):
    e = np.exp(value - value.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


TOP = np.float32(255 / 256)
for dtype, zero in ((np.uint8, 128), (np.int8, 0)):
    low = int(np.iinfo(dtype).min)
    for scale in (0.01, 0.1, 0.5):
        for size in (4, 64):
            x = (random.normal(size=(2, size)) * 2).astype(np.float32)
            held = {"s": np.float32(scale), "z": dtype(zero), "sy": np.float32(1 / 256), "zy": dtype(low)}
            stepped = steps(x, scale, zero, dtype)
            for kind, front, behind, compute in [
                ("Softmax", True, True, softmax), ("Softmax", True, False, softmax), ("Softmax", False, True, softmax),
                ("Sigmoid", True, True, sigmoid), ("Tanh", True, True, np.tanh),
            ]:
                nodes = pair("x", "s", "z", "a") if front else []
                nodes.append(helper.make_node(kind, ["a" if front else "x"], ["m" if behind else "y"]))
                nodes += pair("m", "sy", "zy", "y") if behind else []
                used = {name for node in nodes for name in node.input}
                made = model(nodes, list(x.shape), {name: value for name, value in held.items() if name in used})
                onnx.checker.check_model(onnx.shape_inference.infer_shapes(onnx.load_from_string(made)), full_check=True)
                truth = compute(stepped if front else x)
                truth = steps(truth, 1 / 256, low, dtype) if behind else truth
                ours = session(made, NONE).run(None, {"x": x})[0]
                case = f"{kind}, {dtype.__name__}, scale {scale}, {size} values, quantized {front} in front, {behind} behind"
                expect(f"{case}: ONNX Runtime is right", abs(ours - truth).max() < 1.01 / 256)
                got = runs(made, x)
                if kind == "Softmax" and front and behind:
                    expect(f"{case}: tract gives {got.min()} to {got.max()} for all", (got == TOP).all())
                else:
                    expect(f"{case}: tract is right", abs(got - truth).max() < 1.01 / 256)
PYTHON
