"""How much faster is a sum along an inner axis as a product with a row of ones?

    python benchmarks/multiply_sums.py

Times ReduceSum as exported and what the pass `multiply-sums` makes of it in ONNX Runtime, one thread, both in turns,
and the share that the product takes.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime
from common import load_onnxcomp
from onnx import TensorProto, helper, numpy_helper

load_onnxcomp()
from onnxcomp.graph.codec import decode, encode  # noqa: E402 (of this checkout)
from onnxcomp.manager.pipeline import PassManager, Pipeline  # noqa: E402

# shape and the axes that are added up
CASES = (
    ((1, 512, 256), (1,)),
    ((1, 64, 56, 56), (1,)),
    ((1, 7, 7, 1280), (1, 2)),
    ((1, 128, 64), (1,)),
    ((1, 2000, 16), (1,)),
)
ROUNDS = 200


def summed(shape: tuple[int, ...], axes: tuple[int, ...]) -> bytes:
    """A model of one ReduceSum."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in (("x", shape), ("y", None))]
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    held = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
    graph = helper.make_graph([node], "sum", ends[:1], ends[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def rewritten(model: bytes) -> bytes:
    """The same with the sum as a product."""
    from onnx import load_from_string

    result = PassManager(Pipeline.parse("multiply-sums")).run(decode(load_from_string(model)))
    assert result.changes == 1, "the pass left the sum as it was"
    return bytes(encode(result.graph).SerializeToString())


def session(model: bytes) -> onnxruntime.InferenceSession:
    """Opened for one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print a table."""
    print("| shape | axes | ReduceSum | product | share |\n|---|---|---|---|---|")
    for shape, axes in CASES:
        model = summed(shape, axes)
        sessions = [session(model), session(rewritten(model))]
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        spent: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for opened, times in zip(sessions, spent, strict=True):
                start = time.thread_time()
                opened.run(None, {"x": x})
                times.append(time.thread_time() - start)
        plain, product = (1e6 * float(np.mean(sorted(times)[: ROUNDS // 4])) for times in spent)
        places = " and ".join(map(str, axes))
        print(f"| {list(shape)} | {places} | {plain:.0f} us | {product:.0f} us | {product / plain:.2f} |")


if __name__ == "__main__":
    main()
