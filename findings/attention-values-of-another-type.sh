#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: Attention of the standard, whose values have another float type than queries and keys, is valid
# and is refused.
#
# The schema (opsets 23 and 24) gives values a type variable of their own, T2; onnx's checker and its strict inference pass
# float16 queries and keys beside float32 values. ONNX Runtime opens equal types; it unfolds a node of two types
# by the standard's own definition, where the product of the weights (T1) and the values (T2) binds one type twice.
# Seen: the file does not open, and the error names a MatMul without a name, which stands nowhere in it. A mask of another
# float type than the queries opens. Whoever converts node by node, type variable by type variable, must take the two
# variables of this operator for one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
ORT_DISABLE_TELEMETRY=1 PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
import onnx
from common import expect, session
from onnx import TensorProto, helper

SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def attention(opset, queries, values, mask=None):
    """Two heads of four over six tokens."""
    ports = {"q": (queries, [1, 6, 8]), "k": (queries, [1, 6, 8]), "v": (values, [1, 6, 8])}
    if mask is not None:
        ports["m"] = (mask, [6, 6])
    node = helper.make_node("Attention", list(ports), ["y"], q_num_heads=2, kv_num_heads=2)
    inputs = [helper.make_tensor_value_info(name, *port) for name, port in ports.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", queries, [1, 6, 8])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def refusal(proto):
    try:
        session(proto.SerializeToString())
    except Exception as error:
        return str(error)
    return ""


for opset in (23, 24):
    for both in (SINGLE, HALF):
        expect(f"opset {opset}: one type for all opens", not refusal(attention(opset, both, both)))
    expect(f"opset {opset}: a mask of another float type opens", not refusal(attention(opset, HALF, HALF, SINGLE)))
    for queries, values in ((HALF, SINGLE), (SINGLE, HALF)):
        said = refusal(attention(opset, queries, values))
        print(f"opset {opset}: {said[:110]}")
        expect("a product that is not in the file is refused", "MatMul" in said and "different types" in said)
PYTHON
