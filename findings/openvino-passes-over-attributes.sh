#!/usr/bin/env bash
# openvino 2026.4.1 reads valid ONNX models whose attributes it does not know, and computes as if they were not there.
#
# No error at read_model or compile_model, no warning; the result is another function, sometimes another shape. Seen on the CPU
# plugin in float32, each model one node, valid by onnx 1.23.2's full check, against onnx's reference evaluator (ONNX Runtime
# 1.31.1 agrees with it, or says that it has no such kernel, as for layout=1):
#   LSTM, GRU, RNN       layout=1 (batch first)                      first axis taken for time: other values, other shape
#   Resize 18            antialias=1, linear and cubic, shrinking    plain interpolation, 0.2 to 0.5 off in 1 to 16
#   Resize 18            keep_aspect_ratio_policy not_larger         both sizes taken as given: other shape
#   RoiAlign 16          mode=max                                    largest of the bilinear values, not of their summands
#   Attention (com.microsoft, ONNX Runtime's fused form)   scale, mask_filter_value   1/sqrt(head size) and -10000 all the same;
#                        MultiHeadAttention and the standard's own Attention (23) hear them
# So a model that was exported for ONNX Runtime and is deployed on OpenVINO has to be compared on its own outputs, not only
# loaded: that it compiles says nothing. Exits non-zero where one of these is right, or refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import openvino
from common import expect, random, session
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

core = openvino.Core()


def node(kind, shape, weights, rank, opset, **attributes):
    """A model of one node: float x, constants, one output y."""
    names = ["x", *(name if value is not None else "" for name, value in weights.items())]
    made = helper.make_node(kind, names, ["y"], **attributes)
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    inits = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items() if v is not None]
    graph = helper.make_graph([made], "g", infos, [output], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def recurrent(kind, gates):
    """Three samples of five steps, batch first."""
    draw = {"w": random.normal(size=(1, 4 * gates, 2)), "r": random.normal(size=(1, 4 * gates, 4))}
    weights = {name: value.astype(np.float32) for name, value in draw.items()}
    return node(kind, [3, 5, 2], weights, 4, 14, hidden_size=4, layout=1)


def resize(opset, shape, scales=None, sizes=None, **attributes):
    """Scales or sizes of the last two axes."""
    weights = {"roi": None, "scales": None if scales is None else np.asarray([1, 1, *scales], np.float32)}
    if sizes is not None:
        weights["sizes"] = np.asarray(sizes, np.int64)
    return node("Resize", shape, weights, 4, opset, **attributes)


boxes = {"rois": np.asarray([[1, 1, 7, 6]], np.float32), "index": np.zeros(1, np.int64)}
CASES = {
    "LSTM, layout=1": recurrent("LSTM", 4),
    "GRU, layout=1": recurrent("GRU", 3),
    "RNN, layout=1": recurrent("RNN", 1),
    "Resize, linear, antialias": resize(18, [1, 1, 4, 4], scales=(0.6, 0.6), mode="linear", antialias=1),
    "Resize, cubic, antialias": resize(18, [1, 1, 4, 4], scales=(0.6, 0.6), mode="cubic", antialias=1),
    "Resize, keep_aspect_ratio_policy=not_larger": resize(
        18, [1, 1, 2, 4], sizes=[7, 8], axes=[2, 3], mode="nearest", keep_aspect_ratio_policy="not_larger"),
    "RoiAlign, mode=max": node("RoiAlign", [1, 1, 10, 10], boxes, 4, 16, mode="max", output_height=3, output_width=3,
                               sampling_ratio=2, coordinate_transformation_mode="half_pixel"),
}
for name, model in CASES.items():
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    x = x / x.size if "layout" in name else random.permutation(x.ravel()).reshape(shape) if "max" in name else x
    truth = ReferenceEvaluator(model).run(None, {"x": x})[0]
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled({"x": x})[0]
    try:
        twin = session(model.SerializeToString()).run(None, {"x": x})[0]
        runtime = "agrees" if twin.shape == truth.shape and np.allclose(twin, truth, atol=1e-3) else "does not agree"
    except Exception as error:
        runtime = "refuses" if "not supported" in str(error) else f"fails: {error}"
    off = float(abs(got - truth).max()) if got.shape == truth.shape else None
    print(name, "| right", truth.shape, "| openvino", got.shape, "| largest difference", off, "| ONNX Runtime", runtime)
    expect(f"{name}: another result", got.shape != truth.shape or off > 1e-2)
    expect(f"{name}: ONNX Runtime is right, or refuses", runtime in ("agrees", "refuses"))


def fused(kind, inputs, **attributes):
    """ONNX Runtime's Attention or MultiHeadAttention of 4 heads of 16 on x [2, 5, 64]; the mask leaves one token of five out."""
    draw = {"w": random.normal(size=(64, 192)) / 3, "b": random.normal(size=192)}
    inits = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in draw.items()]
    inits.append(numpy_helper.from_array(np.asarray([[1, 1, 1, 1, 0]] * 2, np.int32), "mask"))
    made = helper.make_node(kind, inputs, ["y"], domain="com.microsoft", num_heads=4, **attributes)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 5, 64]) for name in ("x", "y")]
    graph = helper.make_graph([made], "g", infos[:1], infos[1:], inits)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


x = random.normal(size=(2, 5, 64)).astype(np.float32)
ONE, MANY = ["x", "w", "b", "mask"], ["x", "x", "x", "b", "mask"]
for kind, inputs, attributes, heard in [
    ("Attention", ONE, {}, True),
    ("Attention", ONE, {"scale": 0.7}, False),
    ("Attention", ONE, {"mask_filter_value": -1.0}, False),
    ("MultiHeadAttention", MANY, {"scale": 0.7}, True),
    ("MultiHeadAttention", MANY, {"mask_filter_value": -1.0}, True),
]:
    made = fused(kind, inputs, **attributes)
    got = core.compile_model(core.read_model(made), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})[0]
    off = float(abs(got - session(made).run(None, {"x": x})[0]).max())
    expect(f"{kind}, {attributes or 'no attribute'}: {off:.0e} off", (off < 1e-3) == heard)
PYTHON
