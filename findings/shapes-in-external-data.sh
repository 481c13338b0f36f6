#!/usr/bin/env bash
# onnxruntime 1.32.0 opens no model that keeps a shape in external data, which onnx 1.23.2 writes when asked to.
#
# onnx.save(..., save_as_external_data=True, size_threshold=0) puts every initializer into the data file, also the few numbers
# that Reshape, Expand, Slice, Pad, Tile, Unsqueeze, ReduceSum and ConstantOfShape read their shape or axes from. onnx's
# checker passes such files and onnx.load gives the model whole; InferenceSession(path) ends in
#   ShapeInferenceError: Cannot parse data from external tensors. Please load external data into raw data for tensor: ...
# for each of these operators, at every level of optimization, with the data file in its place. A Gather's index, which no
# shape depends on, may lie there. With the default threshold (1024 bytes) all open; files written with 0 open when onnx
# reads them and their bytes are handed over. Exits non-zero where that is no longer so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime as ort
from common import ALL, NONE, expect, model
from onnx import helper

CASES = {
    "Reshape": {"i": np.int64([-1, 8])},
    "Expand": {"i": np.int64([3, 4, 2])},
    "Slice": {"i": np.int64([0]), "j": np.int64([2])},
    "Pad": {"i": np.int64([0, 1, 0, 1])},
    "Tile": {"i": np.int64([1, 2])},
    "Unsqueeze": {"i": np.int64([0])},
    "ReduceSum": {"i": np.int64([1])},
    "Gather": {"i": np.int64([1])},
    "ConstantOfShape": {"i": np.int64([2, 2])},
}


def saved(op: str, threshold: int) -> str:
    path = f"{op}{threshold}.onnx"
    ins = [*CASES[op]] if op == "ConstantOfShape" else ["x", *CASES[op]]
    nodes = [helper.make_node(op, ins, ["r"]), helper.make_node("ReduceMax", ["r"], ["m"], keepdims=0)]
    nodes.append(helper.make_node("Add", ["x", "m"], ["y"]))
    proto = onnx.load_from_string(model(nodes, [4, 2], CASES[op]))
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.shape.dim.add()
    proto.graph.output[0].type.tensor_type.shape.dim.add()
    onnx.save(proto, path, save_as_external_data=True, location=f"{path}.data", size_threshold=threshold)
    onnx.checker.check_model(path)
    return path


def opens(path: str, level: object = ALL) -> bool:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        assert "data from external tensors" in str(error), error
        return False
    return True


paths = {op: saved(op, 0) for op in CASES}
refused = [op for op in CASES if not opens(paths[op])]
expect("only Gather opens, whose output's shape needs no values", refused == [op for op in CASES if op != "Gather"])
expect("without optimizations it is the same", not any(opens(paths[op], NONE) for op in refused))
expect("with the default threshold all open", all(opens(saved(op, 1024)) for op in CASES))
for op in CASES:
    ort.InferenceSession(onnx.load(paths[op]).SerializeToString(), providers=["CPUExecutionProvider"])
expect("read by onnx and handed over as bytes, all open", True)
PYTHON
