"""What enters a layer, and where does the mean of its rounding error go? Moments from calibration data, and biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Node
from onnxcomp.manager.base import PassContext, WeightUse
from onnxcomp.runtime.gram import Gram, grams, why_not


def layer_moments(graph: Graph, uses: Sequence[WeightUse], context: PassContext) -> Iterator[Mapping[str, Gram]]:
    """Second moments of the inputs of each layer by node name, group by group, so that few are held at a time."""
    if not uses or context.calibration is None:
        return
    yield from grams(
        graph,
        uses,
        context.calibration,
        group_bytes=context.memory.moments,
        threads=context.threads,
        seed=context.seed,
        progress=context.progress,
    )


def unmeasured(graph: Graph, uses: Sequence[WeightUse]) -> str:
    """Why the inputs of a weight's layer cannot be looked at; empty when they can."""
    return "several nodes share it" if len(uses) > 1 else why_not(graph, uses[0])


class Absorber:
    """A bias that takes up the mean of a layer's rounding error: b += (W - Q) E[x].

    Args:
        holder, port: the node that adds the bias, and the port where it comes in.
        times: the bias counts so many times (beta of Gemm).
    """

    def __init__(self, holder: Node, port: int, times: float = 1.0) -> None:
        self.holder, self.port, self.times = holder, port, times
        self.shifts: list[Array] = []

    @classmethod
    def find(cls, graph: Graph, use: WeightUse) -> Absorber | None:
        """The bias of the node, or of the Add behind a MatMul; None where there is neither."""
        node, weight = use.node, use.weight
        outputs = use.constant.shape[weight.out_axis] * (weight.group if node.op == "ConvTranspose" else 1)
        if weight.bias is not None:
            times = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
            return cls(node, weight.bias, times) if times and _fits(node, weight.bias, outputs) else None
        readers = node.outputs[0].consumers
        if node.op != "MatMul" or weight.port != 1 or len(readers) != 1 or graph.is_output(node.outputs[0]):
            return None
        reader = readers[0]
        ports = [port for port in (0, 1) if reader.op == "Add" and _fits(reader, port, outputs)]
        return cls(reader, ports[0]) if ports else None

    def add(self, shift: Array) -> None:
        """Take up the error of the next output channels."""
        self.shifts.append(shift)

    def write(self, graph: Graph) -> None:
        """Correct the bias; one that other nodes read as well is copied first."""
        bias = graph.own_constant(self.holder, self.port)
        if bias is not None:
            shift = np.concatenate(self.shifts).astype(np.float64) / self.times
            bias.values = (bias.values + shift.reshape(bias.shape)).astype(np.float32)


def _fits(node: Node, port: int, outputs: int) -> bool:
    bias = node.constant(port)
    return bias is not None and bias.dtype == np.float32 and bias.shape in ((outputs,), (1, outputs))
