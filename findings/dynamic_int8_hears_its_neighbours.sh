#!/usr/bin/env bash
# onnxruntime 1.32.0, quantize_dynamic: what a sample gets depends on the samples beside it in the batch.
#
# A model that quantize_dynamic wrote takes one scale for the whole activation tensor of a MatMul (DynamicQuantizeLinear
# knows no axis), batch included. So a sample that is large leaves few of the 256 steps to all others. Two layers of 256
# and 10, standard normal input, 32 samples, SQNR against the float model:
#   each sample alone                                       38 dB
#   a batch of the 32                                       37 dB
#   the same beside one sample that is 10 times as large    22 dB
#   the same beside one that is 100 times as large           4 dB, the same class for 41 % of them
# A server that batches requests of several users gives each of them answers that hang on the others' requests, and a test
# with batch 1, or on samples of like size, does not see it. Exits non-zero where that is no longer so.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

logging.disable(logging.WARNING)
generator = np.random.default_rng(0)
first = numpy_helper.from_array(generator.normal(0, 64**-0.5, (64, 256)).astype(np.float32), "first")
second = numpy_helper.from_array(generator.normal(0, 256**-0.5, (256, 10)).astype(np.float32), "second")
nodes = [
    helper.make_node("MatMul", ["x", "first"], ["a"]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("MatMul", ["b", "second"], ["y"]),
]
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", size]) for n, size in (("x", 64), ("y", 10)))
graph = helper.make_graph(nodes, "g", [x], [y], [first, second])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "float.onnx")
quantize_dynamic("float.onnx", "int8.onnx", weight_type=QuantType.QUInt8)
exact, coarse = (ort.InferenceSession(name, providers=["CPUExecutionProvider"]) for name in ("float.onnx", "int8.onnx"))
samples = generator.standard_normal((32, 64)).astype(np.float32)
wanted = exact.run(None, {"x": samples})[0]


def told(what, given):
    decibels = 10 * np.log10((wanted**2).sum() / ((wanted - given) ** 2).sum())
    same = np.mean(wanted.argmax(1) == given.argmax(1))
    print(f"{what}: {decibels:.1f} dB, same class {same:.0%}")
    return decibels


alone = told("each alone", np.concatenate([coarse.run(None, {"x": one[None]})[0] for one in samples]))
told("a batch of 32", coarse.run(None, {"x": samples})[0])
large = [told(f"beside one {k} times as large", coarse.run(None, {"x": np.concatenate([samples, k * samples[:1]])})[0][:32])
         for k in (10, 100)]
assert alone > 30 and large[0] < 27 and large[1] < 10
PYTHON
