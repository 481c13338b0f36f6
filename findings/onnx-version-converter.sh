#!/usr/bin/env bash
# onnx 1.23.2, version_converter.convert_version: the converted model is valid and computes something else, without a word.
# Seen in ONNX Runtime 1.26.0 (CPU), each model a single node, raised to opset 17:
#   Resize 10, linear and nearest   becomes a Resize without coordinate_transformation_mode: half_pixel instead of asymmetric
#   Upsample 9, linear              the same
#   Hardmax 11, axis 1, rank 3      keeps its axis: over one axis instead of over all from it on, made one
# Also: Resize 10 with nearest takes the ceiling where an axis shrinks and the floor where it grows; Resize 11 has one
# nearest_mode for all axes, so no single node of opset 11 equals one that shrinks one axis and grows another.
# Exits non-zero where any of this is so no more.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.26.0 numpy==2.2.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
onnxruntime.set_default_logger_severity(4)
generator = np.random.default_rng(0)


def model(op, x, opset, weights=(), **attrs):
    names = ["x", *(f"w{i}" for i in range(len(weights)))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attrs)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for w, n in zip(weights, names[1:])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def run(proto, x):
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


image = generator.standard_normal((1, 2, 6, 7)).astype(np.float32)
cases = {
    "Resize 10 linear": (model("Resize", image, 10, [np.float32([1, 1, 2, 2])], mode="linear"), image, 17),
    "Resize 10 nearest": (model("Resize", image, 10, [np.float32([1, 1, 1.7, 1.7])], mode="nearest"), image, 17),
    "Upsample 9 linear": (model("Upsample", image, 9, [np.float32([1, 1, 2, 2])], mode="linear"), image, 17),
    "Hardmax 11": (model("Hardmax", image[0], 11, axis=1), image[0], 17),
}
changed = []
for name, (proto, x, version) in cases.items():
    raised = version_converter.convert_version(proto, version)
    onnx.checker.check_model(raised)
    a, b = run(proto, x), run(raised, x)
    differs = a.shape != b.shape or np.abs(a - b).max() > 1e-3
    print(f"{name}: raised to {version}, {'differs' if differs else 'the same'}")
    if not differs:
        changed.append(name)
mixed = model("Resize", image, 10, [np.float32([1, 1, 0.6, 1.7])], mode="nearest")
wanted = run(mixed, image)
for how in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
    node = helper.make_node("Resize", ["x", "", "w0"], ["y"], mode="nearest", nearest_mode=how,
                            coordinate_transformation_mode="asymmetric")
    one = onnx.ModelProto()
    one.CopyFrom(mixed)
    one.opset_import[0].version = 13
    one.graph.node[0].CopyFrom(node)
    if np.array_equal(run(one, image), wanted):
        changed.append(f"one Resize 13 with {how} equals Resize 10 that shrinks and grows")
print("Resize 10 that shrinks one axis and grows another: no single Resize 13 equals it" if not changed else changed)
raise SystemExit(bool(changed))
PY
