#!/usr/bin/env bash
# onnxruntime 1.32.0: an output that get_outputs() calls tensor(float) comes back as a SparseTensor, not as an array.
#
# A Constant node with sparse_value makes a tensor that is dense by the standard, and MatMul reads it so. Where that
# tensor is itself asked for (an output of the model, or a tensor that a tool taps to see what is inside):
#   InferenceSession.get_outputs()[0].type   tensor(float), with the shape [3, 4]
#   InferenceSession.run(...)[0]             onnxruntime.SparseTensor: no dtype, no shape attribute, np.asarray of it is an
#                                            array of objects; to_numpy-like use fails far from here
# at every level of optimization; so does a sparse initializer that is an output. onnx 1.23.2 parts the two: its full
# check takes the Constant node's output as a tensor, and refuses the initializer's ("existing=tensor_type
# inferred=sparse_tensor_type"). A tool that calibrates or compares by tapping tensors must leave out, or decode, what
# sparse constants make, and cannot tell it from the types of the session. Exits non-zero where that is no longer so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
PYTHONPATH=$here "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import ALL, NONE, expect, session
from onnx import TensorProto, helper

values = np.array([1.0, 2.0, 3.0], np.float32)


def sparse(name: str) -> onnx.SparseTensorProto:
    places = helper.make_tensor("", TensorProto.INT64, [3], [1, 5, 9])
    return helper.make_sparse_tensor(helper.make_tensor(name, TensorProto.FLOAT, [3], values), places, [3, 4])


def model(as_node: bool) -> bytes:
    nodes = [helper.make_node("Constant", [], ["w"], sparse_value=sparse(""))] if as_node else []
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("w", [3, 4]), ("y", [2, 4]))]
    graph = helper.make_graph(nodes, "g", [x], outs)
    if not as_node:
        graph.sparse_initializer.append(sparse("w"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def fully_checked(made: bytes) -> str:
    try:
        onnx.checker.check_model(made, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        return str(error)
    return ""


expect("onnx takes the Constant node", not fully_checked(model(True)))
expect("and refuses the initializer", "sparse_tensor" in fully_checked(model(False)))
feed = {"x": np.ones((2, 3), np.float32)}
for level in (NONE, ALL):
    opened = session(model(True), level)
    weight, product = opened.run(None, feed)
    print("Constant node:", opened.get_outputs()[0].type, "->", type(weight).__name__, "; product", product.tolist()[0])
    expect("it is called tensor(float)", opened.get_outputs()[0].type == "tensor(float)")
    expect("it comes back as a SparseTensor", type(weight).__name__ == "SparseTensor")
    expect("which is no array of numbers", np.asarray(weight).dtype == object)
    expect("MatMul reads it as dense", np.array_equal(product[0], [0, 6, 0, 0]))
weight, _ = session(model(False), ALL).run(None, feed)
print("sparse initializer ->", type(weight).__name__)
expect("a sparse initializer comes back as a SparseTensor, too", type(weight).__name__ == "SparseTensor")
PYTHON
