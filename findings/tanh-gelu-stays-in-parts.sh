#!/usr/bin/env bash
# onnxruntime 1.31.1 (CPU provider): GELU by tanh, as torch.nn.functional.gelu(approximate="tanh") is exported below opset 20
# and as JAX writes it, is run node by node, eight of them, with all optimizations on; GELU by erf, from the same exporters,
# becomes one kernel. com.microsoft has that kernel for the form with tanh as well, and the CPU provider runs it: a file that
# names FastGelu takes 0.3 to 0.6 of the time and differs by rounding. Exits non-zero where any of this changed.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.31.1 onnx==1.23.2 numpy
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import collections, sys, time
import numpy as np, onnx, onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

node = h.make_node
numbers = {"three": 3, "k": 0.044715, "s": np.sqrt(2 / np.pi), "one": 1, "half": 0.5, "root": np.sqrt(2)}
by_tanh = [node("Pow", ["x", "three"], ["p"]), node("Mul", ["p", "k"], ["a"]), node("Add", ["x", "a"], ["b"]), node("Mul", ["b", "s"], ["c"]),
           node("Tanh", ["c"], ["t"]), node("Add", ["t", "one"], ["u"]), node("Mul", ["x", "half"], ["v"]), node("Mul", ["v", "u"], ["y"])]
by_erf = [node("Div", ["x", "root"], ["a"]), node("Erf", ["a"], ["b"]), node("Add", ["b", "one"], ["c"]), node("Mul", ["x", "c"], ["d"]), node("Mul", ["d", "half"], ["y"])]
kernel = [node("FastGelu", ["x"], ["y"], domain="com.microsoft")]

def session(nodes, name):
    read = {i for n in nodes for i in n.input}
    held = [nh.from_array(np.float32(v), k) for k, v in numbers.items() if k in read]
    shape = [1, 512, 508]
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", T.FLOAT, shape)], [h.make_tensor_value_info("y", T.FLOAT, shape)], held)
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)], ir_version=8).SerializeToString()
    options = ort.SessionOptions(); options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.optimized_model_filepath = f"{sys.argv[1]}/{name}.onnx"
    found = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    return found, collections.Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)

(parts, tanh_ops), (_, erf_ops), (fused, _) = session(by_tanh, "tanh"), session(by_erf, "erf"), session(kernel, "kernel")
x = {"x": np.random.default_rng(0).standard_normal([1, 512, 508]).astype(np.float32)}
spent = {parts: [], fused: []}
for _ in range(60):
    for s in spent:
        start = time.thread_time(); s.run(None, x); spent[s].append(time.thread_time() - start)
share = np.median(spent[fused]) / np.median(spent[parts])
error = float(np.abs(parts.run(None, x)[0] - fused.run(None, x)[0]).max())
print("by tanh, optimized:", dict(tanh_ops)); print("by erf, optimized:", dict(erf_ops))
print(f"FastGelu takes {share:.2f} of the time of the nodes, and differs by {error:.1e}")
sys.exit(not (tanh_ops["Tanh"] == 1 and sum(tanh_ops.values()) == 8 and dict(erf_ops) == {"Gelu": 1} and share < 0.8 and error < 1e-5))
PY
