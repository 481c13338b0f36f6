"""Which LSTM nodes run faster on 8-bit integers, and how is one written as DynamicQuantizeLSTM?

The kernel quantizes the input of all steps at once and the hidden state at every step, each with a scale of its own
values; weights have a scale for each row of a gate. Cells, gates and bias stay float. There is no such kernel for GRU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.single import unfit
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import CostModel, PassContext
from onnxcomp.passes.weights.kernels import FLOAT32, state_type
from onnxcomp.passes.weights.rounding import LEVELS, int8_rows, solved_rows
from onnxcomp.passes.weights.smoothing import FirstSamples
from onnxcomp.runtime.taps import stream

LEAST_ELEMENTS = 64 * 128  # of one direction's recurrent weight and input weight; smaller ones are slower than float
WEIGHT_PORTS = (1, 2)
RECURRENT_PORT = 2
MOST_SAMPLES = 128
FLOAT_PORTS = 8  # ports up to the peepholes are those of LSTM


def refusal(node: Node, graph: Graph) -> str:
    """Why a recurrent node cannot take its integer form; empty when it can."""
    if node.op != "LSTM":
        return f"ONNX Runtime has no kernel for {node.op} with 8-bit integers"
    if int(node.attrs.get("layout", 0)):
        return "its batch comes first (layout=1), where the integer kernel wants time first"
    for port in WEIGHT_PORTS:
        weight = node.constant(port)
        if weight is None:
            return f"its weight is computed by {node.inputs[port].producer}"
        if weight.dtype != FLOAT32:
            return unfit(weight.name, weight.dtype)
        if weight in graph.root.kept_inputs:
            return f"{weight.name} is listed as an input, so a caller may replace it"
    return "its input is a constant" if isinstance(node.inputs[0], Constant) else ""


def too_small(node: Node, least: int) -> str:
    """Why the integer form cannot be faster whatever the machine; empty where times decide."""
    elements = sum(node.inputs[port].size // max(1, node.inputs[port].shape[0]) for port in WEIGHT_PORTS)
    return f"too small: {elements} weights cost less than quantizing its input and state" if elements < least else ""


def faster(graph: Graph, nodes: list[Node], costs: CostModel, *, portable: bool) -> dict[str, tuple[float, float]]:
    """Microseconds of each node in float and in its integer form, by name, where both were seen running."""
    other = graph.clone()
    writer = LstmWriter(other, Shapes({}), portable=portable)
    names = {node.name for node in nodes}
    for node in [node for node in other.walk() if node.name in names]:
        writer.replace(node)
    exact, integer = costs.node_times_us(graph), costs.node_times_us(other)
    return {name: (exact[name], integer[name]) for name in names if name in exact and name in integer}


def moments(graph: Graph, nodes: list[Node], context: PassContext) -> dict[Constant, Array]:
    """Second moments E[x x^T] of what each weight multiplies, float64 [directions, in, in]; of both states that is Y.

    For nodes of the main graph, whose values are finite. Every step of a sequence counts; the state before the first
    one, which is zero as a rule, is not seen.
    """
    inside = set(graph.nodes)
    nodes = [node for node in nodes if node in inside]
    if context.calibration is None or not nodes:
        return {}
    copy = graph.clone()
    twins = {node.name: node for node in copy.nodes}
    read: dict[str, list[tuple[Constant, bool]]] = {}
    for node in nodes:
        twin = twins[node.name]
        if not twin.outputs[0].name:
            twin.outputs[0] = Variable(copy.unique_name(f"{node.name}_Y"), FLOAT32)
        for port, name in zip(WEIGHT_PORTS, (twin.inputs[0].name, twin.outputs[0].name), strict=True):
            read.setdefault(name, []).append((node.inputs[port], port == RECURRENT_PORT))
    found: dict[Constant, Array] = {}
    samples = FirstSamples(context.calibration, MOST_SAMPLES)
    for values in stream(
        copy,
        list(read),
        samples,
        batch=samples.size,
        threads=context.threads,
        budget_bytes=context.memory.activations,
        progress=context.progress,
        text="looking at cells",
    ):
        for name, array in values.items():
            for weight, is_state in read[name]:
                part = _moments_of(array, weight.shape[0], is_state)
                found[weight] = found[weight] + part if weight in found else part
    return {weight: total for weight, total in found.items() if np.isfinite(total).all()}


def _moments_of(array: Array, directions: int, is_state: bool) -> Array:
    """Of X [time, batch, in], the same for each direction, or of Y [time, directions, batch, hidden]."""
    if is_state:
        rows = [array[:, direction].reshape(-1, array.shape[-1]) for direction in range(directions)]
    else:
        rows = [array.reshape(-1, array.shape[-1])]
    parts = [np.asarray(r.T @ r, np.float64) for r in rows]
    return np.stack(parts if is_state else parts * directions)


@dataclass
class LstmWriter:
    """Turns LSTM nodes into DynamicQuantizeLSTM; nodes that share a weight share its integers.

    Attributes:
        portable: no two neighbouring weights can saturate the 16-bit sums of x86 without VNNI.
        moments: by weight, as `moments` gives them; those that are not there are rounded to the nearest.
    """

    graph: Graph
    shapes: Shapes
    portable: bool
    moments: Mapping[Constant, Array] = field(default_factory=dict)
    _codes: dict[Constant, tuple[Constant, Constant, Constant]] = field(default_factory=dict)

    def replace(self, node: Node) -> bool:
        """Rewrite a node for which `refusal` is empty, in place; False where a weight is not finite."""
        made = [self._coded(weight) for weight in (node.inputs[port] for port in WEIGHT_PORTS)]
        if None in made:
            return False
        (w, w_scale, w_zero), (r, r_scale, r_zero) = (parts for parts in made if parts is not None)
        for output in node.outputs:
            if output.name:
                state_type(output, self.shapes, self.graph)
        inputs: list[Tensor] = [node.input(port) or Variable("") for port in range(FLOAT_PORTS)]
        inputs[1:3] = [w, r]
        node.inputs = [*inputs, w_scale, w_zero, r_scale, r_zero]
        node.attrs = {key: value for key, value in node.attrs.items() if key != "layout"}
        node.op, node.domain = "DynamicQuantizeLSTM", MICROSOFT_DOMAIN
        self.graph.import_domain(MICROSOFT_DOMAIN)
        return True

    def _coded(self, weight: Constant) -> tuple[Constant, Constant, Constant] | None:
        """int8 [directions, in, 4 * hidden], scales and zero points [directions, 4 * hidden]; None: not finite."""
        if weight not in self._codes:
            values: Array = weight.values
            if not np.isfinite(values).all():
                return None
            directions, rows, columns = values.shape
            codes = np.empty((directions, columns, rows), LEVELS.dtype)
            scales = np.empty((directions, rows), np.float32)
            for direction in range(directions):
                if weight in self.moments:
                    seen = self.moments[weight][direction]
                    chosen, scales[direction] = solved_rows(values[direction], seen, portable=self.portable)
                else:
                    chosen, scales[direction] = int8_rows(values[direction], portable=self.portable)
                codes[direction] = chosen.T
            add, name = self.graph.root.add_constant, weight.name
            zero = np.zeros(scales.shape, LEVELS.dtype)
            self._codes[weight] = add(f"{name}_q8", codes), add(f"{name}_scale", scales), add(f"{name}_zero", zero)
        return self._codes[weight]
