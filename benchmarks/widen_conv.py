"""When is a convolution along one axis faster as a row than as a column, or with one axis only?

    python benchmarks/widen_conv.py

Times a Conv with Relu over [N, C, 1, L], [N, C, L, 1] and [N, C, L] in ONNX Runtime, one thread, the three in turns; as
shares of the time of the column.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# channels in and out, length, kernel, stride
CASES = (
    (256, 512, 512, 5, 1),
    (32, 32, 100, 3, 1),
    (64, 64, 400, 7, 1),
    (16, 32, 1000, 9, 1),
    (128, 128, 64, 3, 1),
    (8, 16, 3000, 15, 2),
    (1, 32, 4000, 25, 4),
    (256, 256, 128, 3, 1),
    (40, 40, 300, 3, 1),
)
ROUNDS = 100


def session(
    shape: tuple[int, ...], kernel: tuple[int, ...], channels: tuple[int, int], stride: tuple[int, ...]
) -> onnxruntime.InferenceSession:
    weight = np.random.default_rng(0).standard_normal((channels[1], channels[0], *kernel)).astype(np.float32)
    pads = [k // 2 for k in kernel] * 2
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=pads, strides=list(stride)),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    held = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(channels[1], np.float32), "b")]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels[0], *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        held,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    print("| channels | length | kernel | stride | row / column | one axis / column |\n|---|---|---|---|---|---|")
    for fan_in, fan_out, length, k, stride in CASES:
        forms = {(length, 1): (k, 1), (1, length): (1, k), (length,): (k,)}
        sessions = {
            shape: session(shape, kernel, (fan_in, fan_out), tuple(stride if size > 1 else 1 for size in shape))
            for shape, kernel in forms.items()
        }
        x = np.random.default_rng(1).standard_normal((1, fan_in, length)).astype(np.float32)
        spent: dict[tuple[int, ...], list[float]] = {shape: [] for shape in forms}
        for _ in range(ROUNDS):
            for shape, opened in sessions.items():
                feed = {"x": x.reshape(1, fan_in, *shape)}
                start = time.thread_time()
                opened.run(None, feed)
                spent[shape].append(time.thread_time() - start)
        column, row, line = (float(np.mean(sorted(times)[: ROUNDS // 4])) for times in spent.values())
        print(f"| {fan_in} to {fan_out} | {length} | {k} | {stride} | {row / column:.2f} | {line / column:.2f} |")


if __name__ == "__main__":
    main()
