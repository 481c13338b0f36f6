#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: with the default optimizations a model gives another answer each time it is asked the same.
#
# A model with two BatchNormalization nodes of training_mode=1 (as exported for training; their running statistics are
# outputs) whose initializers are equal, as they are in a network before its first step: scales and variances of ones, biases
# and means of zeros. From ORT_ENABLE_BASIC on, equal initializers are made one, whatever their consumers do to them; and
# the kernel writes the new running mean and variance over its input's buffer. So the scale and the bias that share that
# buffer move with every call. Same input, three calls: the standard deviation of y is 1.79, 2.51, 3.15 where it is 1.00
# with optimizations off, and in onnx's reference evaluator. No message; a session that serves such a model is not
# stateless. Initializers that differ in a single value are left alone, and the answers stay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here" "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from common import ALL, NONE, expect, random, session
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def network(offset):
    """Two normalizations in training mode; `offset` is what keeps their initializers from being equal."""
    nodes, weights, source = [], {}, "x"
    for index, result in enumerate(("a", "y")):
        names = [f"{name}{index}" for name in ("scale", "bias", "mean", "variance")]
        for place, (name, value) in enumerate(zip(names, (1, 0, 0, 1), strict=True)):
            weights[name] = np.full(4, value, np.float32) + np.float32(offset * (4 * index + place))
        nodes.append(
            helper.make_node(
                "BatchNormalization", [source, *names], [result, f"m{index}", f"v{index}"], training_mode=1, momentum=0.9
            )
        )
        source = result
    info = helper.make_tensor_value_info
    outputs = [info(name, TensorProto.FLOAT, None) for name in ("y", "m0", "v1")]
    inits = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, [8, 4, 5, 5])], outputs, inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


feed = {"x": (random.normal(size=(8, 4, 5, 5)) * 3 + 1).astype(np.float32)}


def spread(model, level):
    """The standard deviation of y in three calls of one session."""
    asked = session(model.SerializeToString(), level)
    return [float(asked.run(["y"], feed)[0].std()) for _ in range(3)]


equal, different = network(0), network(1e-4)
right = float(ReferenceEvaluator(equal).run(["y"], feed)[0].std())
print("reference", right, "optimized", spread(equal, ALL), "not optimized", spread(equal, NONE))
expect("without optimizations three calls agree with the reference", np.allclose(spread(equal, NONE), right, atol=1e-3))
first, second, third = spread(equal, ALL)
expect("with optimizations each call gives a larger y", 1.3 * right < first < second < third)
expect("initializers that differ slightly are not shared", np.allclose(spread(different, ALL), spread(different, NONE), atol=1e-3))
PYTHON
