"""What do the scripts of this folder share? A model, a session, the kernels that run, and a check in words."""

from __future__ import annotations

import collections
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ort.set_default_logger_severity(4)
NONE, ALL = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
random = np.random.default_rng(0)


def model(nodes: Sequence[onnx.NodeProto], shape: Sequence[Any], weights: Mapping[str, Any], opset: int = 17) -> bytes:
    """A model of float32 `x` -> `y`."""
    inits = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], inits)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def session(made: bytes, level: Any = ALL, out: str = "") -> ort.InferenceSession:
    """On the CPU provider; `out` is where the optimized graph goes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    if out:
        options.optimized_model_filepath = out
    return ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def kernels(made: bytes, level: Any = ALL) -> collections.Counter[str]:
    """How often each operator stands in the optimized graph."""
    with tempfile.TemporaryDirectory() as folder:
        session(made, level, f"{folder}/o.onnx")
        return collections.Counter(node.op_type for node in onnx.load(f"{folder}/o.onnx").graph.node)


def expect(what: str, holds: bool) -> None:
    """Say whether a statement of the script still holds, and end the script where it does not."""
    print(("as stated: " if holds else "CHANGED: ") + what)
    if not holds:
        sys.exit(1)
