"""What does a shortcut of Slices and Pad cost beside one strided Conv of size 1?

    python benchmarks/convolve_shortcuts.py

Times a residual block that halves the image in ONNX Runtime, one thread, in float and behind Q and DQ, with either
form of shortcut and with none, in turns. What a form costs is its block's time less that of the block without:
microseconds of processor time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

# channels in and out, side of the image
CASES = ((16, 32, 32), (32, 64, 16), (64, 64, 28), (64, 128, 56), (128, 256, 28), (256, 512, 14))
ROUNDS = 60
FORMS = ("none", "slices", "conv")


@dataclass
class Block:
    """A graph as it grows, in float or with Q and DQ behind every node."""

    integers: bool
    nodes: list[NodeProto] = field(default_factory=list)
    held: list[TensorProto] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.held)}"
        self.held.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def rounded(self, tensor: str) -> str:
        if not self.integers:
            return tensor
        grid = self.constant(np.float32(0.05)), self.constant(np.uint8(0))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", tensor, *grid), *grid)

    def weight(self, shape: tuple[int, ...]) -> str:
        if not self.integers:
            return self.constant(self.random.standard_normal(shape).astype(np.float32) * 0.1)
        scale, zero = np.full(shape[0], 0.01, np.float32), np.zeros(shape[0], np.int8)
        values = self.random.integers(-64, 65, shape).astype(np.int8)
        return self.node("DequantizeLinear", self.constant(values), self.constant(scale), self.constant(zero), axis=0)

    def conv(self, x: str, fan_in: int, fan_out: int, kernel: int, stride: int, *, relu: bool) -> str:
        pads = [kernel // 2] * 4
        y = self.node("Conv", x, self.weight((fan_out, fan_in, kernel, kernel)), pads=pads, strides=[stride] * 2)
        return self.rounded(self.node("Relu", y) if relu else y)

    def slices(self, x: str, fan_in: int, fan_out: int) -> str:
        for axis in (2, 3):
            where = (self.constant(np.int64([value])) for value in (0, 2**31, axis, 2))
            x = self.rounded(self.node("Slice", x, *where))
        front = (fan_out - fan_in) // 2
        if fan_out == fan_in:
            return x
        amounts = self.constant(np.int64([0, front, 0, 0, 0, fan_out - fan_in - front, 0, 0]))
        return self.rounded(self.node("Pad", x, amounts))


def session(fan_in: int, fan_out: int, side: int, form: str, *, integers: bool) -> onnxruntime.InferenceSession:
    block = Block(integers)
    x = block.conv(block.rounded("x"), 3, fan_in, 3, 1, relu=True)
    y = block.conv(x, fan_in, fan_out, 3, 2, relu=True)
    y = block.conv(y, fan_out, fan_out, 3, 1, relu=form == "none")
    if form != "none":
        by_conv = form == "conv"
        side_way = block.conv(x, fan_in, fan_out, 1, 2, relu=False) if by_conv else block.slices(x, fan_in, fan_out)
        y = block.rounded(block.node("Relu", block.node("Add", y, side_way)))
    y = block.node("GlobalAveragePool", block.conv(y, fan_out, fan_out, 3, 1, relu=True))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (
        ("x", [1, 3, side, side]), (y, [1, fan_out, 1, 1]))]  # fmt: skip
    graph = helper.make_graph(block.nodes, "block", ports[:1], ports[1:], block.held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    print("| channels | side | numbers | Slices and Pad | Conv |\n|---|---|---|---|---|")
    for fan_in, fan_out, side in CASES:
        for integers in (False, True):
            sessions = {form: session(fan_in, fan_out, side, form, integers=integers) for form in FORMS}
            feed = {"x": np.random.default_rng(1).standard_normal((1, 3, side, side)).astype(np.float32)}
            spent: dict[str, list[float]] = {form: [] for form in FORMS}
            for _ in range(ROUNDS):
                for form, opened in sessions.items():
                    start = time.thread_time()
                    opened.run(None, feed)
                    spent[form].append(time.thread_time() - start)
            none, slices, conv = (float(np.mean(sorted(times)[: ROUNDS // 4])) * 1e6 for times in spent.values())
            numbers = "int8" if integers else "float"
            print(f"| {fan_in} to {fan_out} | {side} | {numbers} | {slices - none:.0f} | {conv - none:.0f} |")


if __name__ == "__main__":
    main()
