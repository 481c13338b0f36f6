"""How do tests write small graphs in few lines? `Net` collects nodes and weights; each call gives the tensor's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import builders
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper


class Net:
    """A graph under construction, seeded."""

    def __init__(self, *, seed: int = 0, opset: int = 17) -> None:
        self.generator = builders.rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: dict[str, Sequence[int | str | None]] = {}
        self.types: dict[str, int] = {}
        self.opset = opset
        self.count = 0

    def input(self, *shape: int | str | None, dtype: int = builders.FLOAT) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name], self.types[name] = shape, dtype
        return name

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = builders.normal(self.generator, *shape, scale=scale)
        return name

    def positive(self, *shape: int) -> str:
        name = f"p{len(self.weights)}"
        self.weights[name] = self.generator.uniform(0.5, 1.5, shape).astype(np.float32)
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        """Add a node; gives the name of its output, or a list where there are several."""
        self.count += 1
        name = f"n{self.count}_{kind}"
        outs = [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name, domain=domain, **attrs))
        return outs[0] if outputs == 1 else outs

    def graph_attr(self, graph: GraphProto) -> GraphProto:
        return graph

    # -- layers that many nets are made of --

    def conv(self, x: str, fan_in: int, fan_out: int, kernel: int = 3, *, group: int = 1, **attrs: Any) -> str:
        pads = attrs.pop("pads", [kernel // 2] * 4)
        w = self.weight(fan_out, fan_in // group, kernel, kernel)
        return str(self.op("Conv", x, w, self.weight(fan_out, scale=0.1), group=group, pads=pads, **attrs))

    def dense(self, x: str, fan_in: int, fan_out: int) -> str:
        product = self.op("MatMul", x, self.weight(fan_in, fan_out, scale=1 / fan_in**0.5))
        return str(self.op("Add", product, self.weight(fan_out, scale=0.1)))

    def gemm(self, x: str, fan_in: int, fan_out: int) -> str:
        return str(self.op("Gemm", x, self.weight(fan_out, fan_in), self.weight(fan_out, scale=0.1), transB=1))

    def batch_norm(self, x: str, channels: int) -> str:
        vectors = (self.positive(channels), self.weight(channels), self.weight(channels), self.positive(channels))
        return str(self.op("BatchNormalization", x, *vectors))

    def layer_norm(self, x: str, width: int) -> str:
        return str(self.op("LayerNormalization", x, self.positive(width), self.weight(width), axis=-1))

    def model(self, *outputs: str, **options: Any) -> ModelProto:
        """The checked model; outputs have the shapes that inference finds."""
        inputs = [builders.value(name, self.types[name], shape) for name, shape in self.inputs.items()]
        ends = [builders.value(name, builders.FLOAT, None) for name in outputs]
        return builders.model(self.nodes, inputs, ends, self.weights, opset=self.opset, check=False, **options)
