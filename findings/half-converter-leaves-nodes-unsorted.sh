#!/usr/bin/env bash
# onnxruntime 1.32.0: transformers.float16.convert_float_to_float16(keep_io_types=True) puts the Cast behind its reader.
#
# The casts at the interface are appended to the list of nodes and stay there: MatMul reads graph_input_cast_0, which the
# third node makes. ONNX wants nodes in an order that runs. Seen, of two nodes and of any larger model alike:
#   onnx 1.23.2 checker.check_model         refuses it: "Nodes in a graph must be topologically sorted"
#   onnx.reference.ReferenceEvaluator       ends in "Unable to find input 'graph_input_cast_0' in known results"
#   onnx.shape_inference, strict            passes it
#   ONNX Runtime itself                     sorts on loading, and runs it
# so that nobody who tests with ONNX Runtime alone sees it. The function of the same name in onnxconverter-common 1.16.0, from
# which this one was taken, gives the same model in order. With keep_io_types=False both are in order. A tool that reads such
# files has to sort first. Exits non-zero where that is no longer so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxconverter-common==1.16.0
ORT_DISABLE_TELEMETRY=1 PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" - <<'PYTHON'
from collections.abc import Callable

import numpy as np
import onnx
from common import expect, model, random, session
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnxconverter_common import float16 as common_float16
from onnxruntime.transformers import float16 as runtime_float16

weight = random.standard_normal((8, 8)).astype(np.float32)
nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
plain = model(nodes, ["N", 8], {"w": weight})
x = random.standard_normal((2, 8)).astype(np.float32)


def converted(module: object, keep: bool) -> onnx.ModelProto:
    return module.convert_float_to_float16(onnx.load_from_string(plain), keep_io_types=keep)


def refused(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:
        return str(error)
    return ""


half = converted(runtime_float16, True)
print([node.op_type for node in half.graph.node])
expect("the checker refuses the order", "topologically sorted" in refused(lambda: onnx.checker.check_model(half)))
lost = refused(lambda: ReferenceEvaluator(half).run(None, {"x": x}))
expect("the reference evaluator does not find the cast", "graph_input_cast_0" in lost)
passed = not refused(lambda: onnx.shape_inference.infer_shapes(half, strict_mode=True))
expect("strict shape inference passes it", passed)
given = session(half.SerializeToString()).run(None, {"x": x})[0]
expect("ONNX Runtime runs it", float(np.abs(given - np.maximum(x @ weight, 0)).max()) < 0.05)
for name, module, keep in (
    ("onnxconverter-common, casts at the interface", common_float16, True),
    ("onnxconverter-common, without", common_float16, False),
    ("ONNX Runtime's, without", runtime_float16, False),
):
    other = converted(module, keep)
    expect(f"{name}: in order", not refused(lambda other=other: onnx.checker.check_model(other)))
PYTHON
