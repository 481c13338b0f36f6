"""Where is a Conv that spans its image's height faster with the height as channels? Ratios of processor time.

Run: python benchmarks/flatten_conv.py. The rule in passes/flatten_conv.py comes from it. One thread; the input of the
Conv comes from another Conv, as in a network, or from the caller.
"""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.flatten_conv import FlattenConv

CHANNELS = (3, 5, 7, 8, 10, 12, 16, 20, 24, 25, 33, 48, 50, 64, 100)
SHAPES = (  # H, W, M, k
    (4, 64, 32, 3),
    (22, 250, 40, 1),
    (22, 100, 64, 5),
    (40, 300, 16, 5),
    (64, 100, 64, 3),
    (80, 32, 16, 5),
    (96, 400, 128, 3),
)
SECONDS = 0.12  # of processor time a form


def model(size: tuple[int, ...], *, flat: bool, behind: bool) -> onnx.ModelProto:
    """x [1, C, H, W] -> (Conv of 1 x 1 -> Relu ->) Conv [M, C, H, k] -> Relu -> y, the height as channels if flat."""
    channels, height, width, outputs, reach = size
    weight = np.random.default_rng(0).standard_normal((outputs, channels, height, reach)).astype(np.float32) * 0.02
    held = {"w": weight.reshape(outputs, channels * height, 1, reach) if flat else weight}
    nodes, data = [], "x"
    if behind:
        held["p"] = np.eye(channels, dtype=np.float32)[:, :, None, None]
        nodes += [helper.make_node("Conv", ["x", "p"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
        data = "b"
    if flat:
        held["s"] = np.array([0, channels * height, 1, 0], np.int64)
        nodes.append(helper.make_node("Reshape", [data, "s"], ["f"]))
        data = "f"
    pads = [0, reach // 2, 0, reach // 2]
    nodes += [helper.make_node("Conv", [data, "w"], ["z"], pads=pads), helper.make_node("Relu", ["z"], ["y"])]
    ports = [("x", [1, channels, height, width])], [("y", None)]
    values = [[helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in side] for side in ports]
    graph = helper.make_graph(nodes, "g", *values, [numpy_helper.from_array(v, k) for k, v in held.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ratio(size: tuple[int, ...], *, behind: bool) -> float:
    """Processor time of the flat form over that of the other, the least of runs taken in turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    forms = [model(size, flat=flat, behind=behind).SerializeToString() for flat in (False, True)]
    sessions = [onnxruntime.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in forms]
    feeds = {"x": np.random.default_rng(1).standard_normal((1, *size[:3])).astype(np.float32)}
    best = [np.inf, np.inf]
    end, turns = time.thread_time() + SECONDS, 0
    while time.thread_time() < end or turns < 4:
        for i, session in enumerate(sessions):
            start = time.thread_time()
            session.run(None, feeds)
            best[i] = min(best[i], time.thread_time() - start) if turns else np.inf
        turns += 1
    return best[1] / best[0]


def main() -> None:
    """Print a row a size, and the extremes on both sides of the rule."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for channels, (height, width, outputs, reach) in product(CHANNELS, SHAPES):
        size = (channels, height, width, outputs, reach)
        graph = decode(model(size, flat=False, behind=False))
        taken = bool(FlattenConv().run(graph, PassContext()).changes)
        ratios = [ratio(size, behind=behind) for behind in (True, False)]
        found[taken] += ratios
        print(*size, "flattened" if taken else "left", *(f"{r:.2f}" for r in ratios), flush=True)
    for taken, ratios in found.items():
        print(
            "flattened" if taken else "left", f"{min(ratios):.2f} to {max(ratios):.2f}, median {np.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
