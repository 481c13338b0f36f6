#!/usr/bin/env bash
# onnx 1.23.2: shape inference with data_prop=True keeps an entry for every element of a vector, samples of sound included.
#
# data_prop follows the values of shape arithmetic. It takes any tensor of one dimension for a possible shape, whatever its type
# and length, and makes a TensorShapeProto with as many dimensions as it has elements, at each node that it passes. A
# model that takes a recording of 4,000,000 floats (4 minutes at 16 kHz) and has three trivial nodes, 200 bytes in all:
#   infer_shapes(model)                          some milliseconds
#   infer_shapes(model, data_prop=True)          seconds, and about 1 GB of memory
#   the same with a name in the place of 4000000 under a millisecond, and the same shapes otherwise
# Time and memory grow with the number in the file, not with the file. A tool that reads models of strangers has to hide long
# vectors from it. Exits non-zero where that is no longer so (50 times the time, 200 MB are asked for here).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
ORT_DISABLE_TELEMETRY=1 PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import resource
import time

import numpy as np
import onnx
from common import expect, model
from onnx import helper, shape_inference

LENGTH = 4_000_000
nodes = [
    helper.make_node("Neg", ["x"], ["n"]),
    helper.make_node("Add", ["n", "one"], ["s"]),
    helper.make_node("Unsqueeze", ["s", "axis"], ["y"]),
]
weights = {"one": np.float32([1]), "axis": np.int64([0])}
made = {size: onnx.load_from_string(model(nodes, [size], weights)) for size in (LENGTH, "samples")}


def cost(size: int | str, **options: bool) -> tuple[float, int, list[int | str]]:
    """Seconds, growth of the peak in MB, and the shape of y."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    inferred = shape_inference.infer_shapes(made[size], **options)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    return seconds, grown, [d.dim_value or d.dim_param for d in dims]


plain, named = cost(LENGTH), cost("samples", data_prop=True)
followed = cost(LENGTH, data_prop=True)
for words, (seconds, megabytes, shape) in (("plain", plain), ("named", named), ("followed", followed)):
    print(f"{words:9} {1000 * seconds:8.1f} ms  {megabytes:5} MB more  {shape}")
expect("all three give the same shape", plain[2] == followed[2] == [1, LENGTH] and named[2] == [1, "samples"])
expect("following costs 50 times the time", followed[0] > 50 * max(plain[0], named[0]))
expect("and hundreds of megabytes", followed[1] > 200)
PYTHON
