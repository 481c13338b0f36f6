"""What does a small model's time go to? Models of LeNet's form with random weights, in turns, beside the call alone.

python benchmarks/small_models.py writes its table into docs/searching.md: least processor time of a run, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import common
import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper

PAGE = common.ROOT / "docs" / "searching.md"
TURNS, RUNS = 200, 10
ORIGINAL = "20-50-500, the original"
Nodes = tuple[list[NodeProto], dict[str, np.ndarray]]


def lenet(first: int, second: int, hidden: int, *, kernel: int = 5, dense: str = "gemm") -> Nodes:
    """Two convolutions with pooling and two products, all with bias.

    Args:
        dense: how the products are written: `gemm` (weights turned), `straight` (not turned), `conv`, or `one conv`.
    """
    side = ((28 - kernel + 1) // 2 - 4) // 2
    shapes = {"w1": (first, 1, kernel, kernel), "w2": (second, first, 5, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"]),
        helper.make_node("MaxPool", ["c1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"]),
        helper.make_node("MaxPool", ["c2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    if dense in ("gemm", "straight"):
        turned = dense == "gemm"
        wide, narrow = (hidden, second * side * side), (10, hidden)
        shapes |= {"w3": wide if turned else wide[::-1], "w4": narrow if turned else narrow[::-1]}
        nodes += [
            helper.make_node("Flatten", ["p2"], ["f"]),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], transB=int(turned)),
            helper.make_node("Relu", ["g"], ["r"]),
            helper.make_node("Gemm", ["r", "w4", "b4"], ["y"], transB=int(turned)),
        ]
    else:
        shapes |= {"w3": (hidden, second, side, side), "w4": (10, hidden, 1, 1) if dense == "conv" else (10, hidden)}
        nodes += [helper.make_node("Conv", ["p2", "w3", "b3"], ["g"]), helper.make_node("Relu", ["g"], ["r"])]
        if dense == "conv":
            nodes += [helper.make_node("Conv", ["r", "w4", "b4"], ["q"]), helper.make_node("Flatten", ["q"], ["y"])]
        else:
            nodes += [
                helper.make_node("Flatten", ["r"], ["q"]),
                helper.make_node("Gemm", ["q", "w4", "b4"], ["y"], transB=1),
            ]
    generator = np.random.default_rng(0)
    biases = dict(zip(("b1", "b2", "b3", "b4"), (first, second, hidden, 10), strict=True))
    held = {name: generator.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}
    return nodes, held | {name: np.zeros(width, np.float32) for name, width in biases.items()}


def chain(length: int) -> Nodes:
    """Nodes without a weight over the input."""
    names = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    kinds = ("Abs", "Neg", "Floor")
    return [helper.make_node(kinds[i % 3], [a], [b]) for i, (a, b) in enumerate(pairwise(names))], {}


FORMS: dict[str, Callable[[], Nodes]] = {
    "one node over the input: the call itself": lambda: chain(1),
    "nine nodes over the input, none of weight": lambda: chain(9),
    "8-16-40, as in the table": lambda: lenet(8, 16, 40),
    "8-16-40, its products as Conv": lambda: lenet(8, 16, 40, dense="conv"),
    "8-16-40, the first product as Conv": lambda: lenet(8, 16, 40, dense="one conv"),
    "8-16-40, Gemm without transB": lambda: lenet(8, 16, 40, dense="straight"),
    "7-15-40: below a block of eight": lambda: lenet(7, 15, 40),
    "6-16-40": lambda: lenet(6, 16, 40),
    "8-8-40": lambda: lenet(8, 8, 40),
    "4-8-40": lambda: lenet(4, 8, 40),
    "8-16-40 with 3x3 first": lambda: lenet(8, 16, 40, kernel=3),
    ORIGINAL: lambda: lenet(20, 50, 500),
}


def session(made: Nodes) -> onnxruntime.InferenceSession:
    """On the CPU provider, one thread."""
    nodes, weights = made
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 1, 28, 28])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    inits = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def least(sessions: dict[str, onnxruntime.InferenceSession]) -> dict[str, float]:
    """Microseconds of processor time of one run of each, the least of the turns."""
    feed = {"x": np.random.default_rng(1).random((1, 1, 28, 28), np.float32)}
    found = dict.fromkeys(sessions, np.inf)
    for _ in range(TURNS):
        for name, one in sessions.items():
            for _ in range(2):
                one.run(None, feed)
            start = time.thread_time()
            for _ in range(RUNS):
                one.run(None, feed)
            found[name] = min(found[name], (time.thread_time() - start) / RUNS * 1e6)
    return found


def rows(found: dict[str, float]) -> list[Sequence[str]]:
    """Each with its share of the original's time."""
    return [(name, f"{time_us:.1f}", f"{time_us / found[ORIGINAL]:.3f}") for name, time_us in found.items()]


def main() -> None:
    """Measure all and write the table."""
    found = least({name: session(make()) for name, make in FORMS.items()})
    text = common.table(["graph", "µs", "share"], rows(found))
    print(text)
    common.write_page(PAGE, "small", f"On {common.machine()['cpu']}.\n\n{text}")


if __name__ == "__main__":
    main()
