#!/usr/bin/env bash
# onnxruntime 1.31.1 (CPU provider): a Softmax along an axis with two more behind it takes 2.5 to 8 times as long as the five
# operators that it stands for (ReduceMax, Sub, Exp, ReduceSum, Div), each a pass of its own over all values, although one
# kernel should need fewer. It turns the axis to the end and back value by value: [1, 21, 256, 256] along axis 1, classes
# of pixels, 52 ms against 10; [1, 16, 4, 2100], the distances of a YOLOv8 head, 2.7 ms against 0.35 (one thread, AVX2).
# Explicit Transposes around a Softmax along the last axis do not help: the Transpose inwards is as slow. Along the last
# axis, or the last but one, Softmax is the faster of the two. Exits non-zero where the first is not at least 1.5 times
# as slow, the results differ by more than rounding, or Softmax along the last axis is no faster than the steps.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.31.1 onnx==1.23.2 numpy
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import sys, time
import numpy as np, onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

def session(nodes, shape, held=()):
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, shape)], [h.make_tensor_value_info("y", T.FLOAT, shape)], list(held))
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8).SerializeToString()
    options = ort.SessionOptions(); options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])

def both(shape, axis):
    """Processor time of the operator as a multiple of that of its steps, and how far they differ."""
    one = session([h.make_node("Softmax", ["x"], ["y"], axis=axis)], shape)
    steps = session([h.make_node("ReduceMax", ["x"], ["m"], axes=[axis]), h.make_node("Sub", ["x", "m"], ["c"]), h.make_node("Exp", ["c"], ["e"]),
                     h.make_node("ReduceSum", ["e", "a"], ["t"]), h.make_node("Div", ["e", "t"], ["y"])], shape, [nh.from_array(np.int64([axis]), "a")])
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    spent = {one: [], steps: []}
    for _ in range(25):  # in turns, so that other work slows both
        for s in spent:
            start = time.thread_time(); s.run(None, x); spent[s].append(time.thread_time() - start)
    ratio = np.median(spent[one]) / np.median(spent[steps])
    return ratio, float(np.abs(one.run(None, x)[0] - steps.run(None, x)[0]).max())

inner = [both(*case) for case in (([1, 16, 4, 2100], 1), ([1, 21, 256, 256], 1), ([12, 64, 64], 0))]
last, _ = both([1, 12, 128, 128], 3)
for (ratio, error), case in zip(inner, ("[1, 16, 4, 2100] axis 1", "[1, 21, 256, 256] axis 1", "[12, 64, 64] axis 0")):
    print(f"{case}: Softmax takes {ratio:.1f} times as long as its steps; they differ by {error:.1e}")
print(f"[1, 12, 128, 128] along the last axis: {last:.2f} times")
sys.exit(not (min(r for r, _ in inner) > 1.5 and max(e for _, e in inner) < 1e-6 and last < 1))
PY
