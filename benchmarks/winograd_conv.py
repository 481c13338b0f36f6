"""When is a convolution along one axis faster in tiles, by Winograd's minimal filtering?

    python benchmarks/winograd_conv.py

Times a Conv over [1, C, L] and the same as `winograd-conv` writes it in ONNX Runtime, one thread, in turns: the median
share of the processor time, and the SQNR of the second against the first.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.winograd_conv import WinogradConv
from onnxcomp.runtime.closeness import sqnr_db

# channels in and out, length, kernel
CASES = (
    (256, 512, 512, 5),
    (256, 256, 500, 3),
    (128, 128, 1000, 3),
    (384, 384, 400, 3),
    (64, 128, 3000, 5),
    (64, 64, 500, 5),
    (128, 128, 1000, 7),
    (32, 32, 4000, 7),
)
ROUNDS = 40


class Always:
    """A cost model that says that tiles are faster."""

    def latency_ms(self, graph: Graph) -> float:
        return 1.0 / len(graph.nodes)

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        return {"conv": 1.0 / len(graph.nodes)}


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    rng = np.random.default_rng(0)
    for inputs, outputs, length, taps in CASES:
        weight = rng.standard_normal((outputs, inputs, taps)).astype(np.float32)
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[taps // 2] * 2)]
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs, length])
        made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs, length])
        graph = helper.make_graph(nodes, "g", [given], [made], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        other = decode(model)
        WinogradConv().run(other, PassContext(costs=Always()))
        feed = {"x": rng.standard_normal((1, inputs, length)).astype(np.float32)}
        pair = [onnxruntime.InferenceSession(m.SerializeToString(), options) for m in (model, encode(other))]
        first, second = (session.run(None, feed)[0].astype(np.float64) for session in pair)
        shares = []
        for _ in range(ROUNDS):
            spent = []
            for session in pair:
                start = time.thread_time()
                session.run(None, feed)
                spent.append(time.thread_time() - start)
            shares.append(spent[1] / spent[0])
        kept = sqnr_db(float(np.square(first).sum()), float(np.square(first - second).sum()))
        print(f"[1, {inputs}, {length}] kernel [{outputs}, {inputs}, {taps}]: {np.median(shares):.2f}, {kept:.0f} dB")


if __name__ == "__main__":
    main()
