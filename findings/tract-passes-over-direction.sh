#!/usr/bin/env bash
# tract 0.23.9 (Sonos' inference engine): two attributes of valid ONNX models are read and not heeded, without a word.
#
# 1. direction="reverse" of LSTM, GRU and RNN: the layer runs forwards. "bidirectional", whose second half is the same thing, is right.
#    Seen in Y and Y_h: what comes out equals, to the bit, what the file gives with direction="forward".
#    OpenCV's dnn (opencv-python-headless 5.0.0.93) does the same with GRU.
# 2. mode of Pad, where the third input is there: by the standard constant_value counts in mode "constant" only, and may be given in
#    any. tract then pads with it in modes "edge" and "reflect" as well; without the third input it is right.
# ONNX Runtime 1.32.0 agrees with numpy in all of them. So a network that joins a forward and a reversed layer by Concat runs half
# of itself the wrong way, and padded borders become a frame of zeros. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tract==0.23.9 opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import pathlib
import sys

import cv2
import numpy as np
import onnx
import tract
from common import NONE, expect, random, session
from onnx import TensorProto, helper, numpy_helper


def runs(made, x):
    pathlib.Path(sys.argv[1]).write_bytes(made)
    loaded = tract.onnx().load(sys.argv[1])
    loaded.set_input_fact(0, ",".join(map(str, x.shape)) + ",f32")
    return [value.to_numpy() for value in loaded.into_model().into_runnable().run([x])]


def opencv(made, x, names):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(made, np.uint8))
    net.setInput(x, "x")
    return net.forward(names)


def one(node, shape, weights):
    """A model of one node with as many outputs, checked."""
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    inits = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], outputs, inits)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def far(these, those):
    return max(float(abs(a - b).max()) for a, b in zip(these, those))


STEPS, INPUTS, HIDDEN = 7, 3, 5
x = random.normal(size=(STEPS, 2, INPUTS)).astype(np.float32)
for kind, gates, names in (("LSTM", 4, ["y", "h"]), ("GRU", 3, ["y", "h"]), ("RNN", 1, ["y", "h"])):
    for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        shapes = {"w": (ways, gates * HIDDEN, INPUTS), "r": (ways, gates * HIDDEN, HIDDEN), "b": (ways, 2 * gates * HIDDEN)}
        weights = {name: (random.normal(size=shape) * 0.6).astype(np.float32) for name, shape in shapes.items()}

        def layer(which, kind=kind, names=names, weights=weights):
            node = helper.make_node(kind, ["x", *weights], names, hidden_size=HIDDEN, direction=which)
            return one(node, list(x.shape), weights)

        made = layer(direction)
        truth = session(made, NONE).run(None, {"x": x})
        off = far(runs(made, x), truth)
        if direction != "reverse":
            expect(f"{kind}, {direction}: tract is right, {off:.0e}", off < 1e-5)
            continue
        forward = session(layer("forward"), NONE).run(None, {"x": np.ascontiguousarray(x[::-1])})
        back = [forward[0][::-1], *forward[1:]]
        expect(f"{kind}, reverse: ONNX Runtime turns time round", far(truth, back) < 1e-5)
        expect(f"{kind}, reverse: tract is {off:.2f} off", off > 0.1)
        expect(f"{kind}, reverse: tract runs forwards", far(runs(made, x), runs(layer("forward"), x)) == 0)
        if kind == "GRU":
            off = far(opencv(made, x, names), truth)
            expect(f"GRU, reverse: OpenCV is {off:.2f} off", off > 0.1)
            expect("GRU, reverse: OpenCV runs forwards", far(opencv(made, x, names), opencv(layer("forward"), x, names)) == 0)

x = random.normal(size=(1, 2, 6, 6)).astype(np.float32)
for mode in ("constant", "edge", "reflect"):
    for value in (None, 0.0, 1.0):
        weights = {"pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)} | ({} if value is None else {"value": np.float32(value)})
        made = one(helper.make_node("Pad", ["x", *weights], ["y"], mode=mode), list(x.shape), weights)
        around = [(0, 0), (0, 0), (1, 1), (1, 1)]
        truth = np.pad(x, around, mode, **({"constant_values": value or 0.0} if mode == "constant" else {}))
        expect(f"Pad, {mode}, value {value}: ONNX Runtime is right", np.array_equal(session(made, NONE).run(None, {"x": x})[0], truth))
        got = runs(made, x)[0]
        if mode == "constant" or value is None:
            expect(f"Pad, {mode}, value {value}: tract is right", np.array_equal(got, truth))
        else:
            expect(f"Pad, {mode}, value {value}: tract pads with {value}", np.array_equal(got, np.pad(x, around, constant_values=value)))
PYTHON
