"""How does a graph compute as if it were quantized, with gradients through the rounding and learned scales?

LSQ (Esser et al., "Learned step size quantization", ICLR 2020): x is replaced by s * round(clip(x / s, low, high)),
where rounding passes its gradient straight through. The gradient of s that follows, round(x/s) - x/s inside and `low`
or `high` outside, is the paper's. What is trained is not s but r in s = base + spread * r, starting at 0: for SGD the
spread is the root of the paper's gradient scale 1 / sqrt(count * high), so that a step moves s as there; AdamW does not
see a gradient's scale, and its spread is the base, so that a step moves s by a share of itself.

Binary weights are a * sign(w), a learned; the sign passes gradients while |w| is within a bound (clipped straight-
through estimator, Hubara et al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxcomp.distill.task import Constraint
from onnxcomp.graph.ir import Array, Constant, Graph, Tensor, Variable
from onnxcomp.graph.rounding import Levels
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.training.scales import least_squares_scales

LEAST_SCALE = 0.05  # of where a scale started; below, a gradient step could turn its sign


@dataclass(frozen=True)
class Step:
    """A learned scale: base + spread * r.

    Attributes:
        name: of the initializer that holds r in the training graph.
        base, spread: float32, of r's shape.
    """

    name: str
    base: Array
    spread: Array

    @classmethod
    def start(cls, name: str, scale: Array, count: int, high: int, optimizer: Literal["adamw", "sgd"]) -> Step:
        """A scale that starts at `scale`; `count` values share it, and `high` is the largest level."""
        base = np.asarray(scale, np.float32)
        of_paper = np.full_like(base, (count * max(high, 1)) ** -0.25)
        return cls(name, base, of_paper if optimizer == "sgd" else base)

    def scale(self, learned: Array | None) -> Array:
        """The scale for a value of r, by the arithmetic of the training graph."""
        moved = np.zeros_like(self.base) if learned is None else np.asarray(learned, np.float32)
        return np.asarray(self.base + self.spread * moved.reshape(self.base.shape), np.float32)

    @property
    def constraint(self) -> Constraint:
        """Keeps the scale above zero."""
        return Constraint(low=np.asarray((LEAST_SCALE - 1) * self.base / self.spread, np.float32))


@dataclass(frozen=True)
class FakeWeight:
    """One weight on few levels.

    Attributes:
        constant: name of its initializer.
        weight: what its axes mean.
        levels: integers; of binary weights -1 and 1.
        step: scale of each output channel, [out] shaped to broadcast against the weight, or one for all of them.
        bound: for binary weights, float32 like the scale: the sign passes gradients up to this magnitude.
    """

    constant: str
    weight: Weight
    levels: Levels
    step: Step
    bound: Array | None = None

    @classmethod
    def of(
        cls,
        constant: Constant,
        weight: Weight,
        levels: Levels | None,
        name: str,
        optimizer: Literal["adamw", "sgd"],
        *,
        each_channel: bool = True,
    ) -> FakeWeight:
        """The weight with the scale of least error; without levels its sign times its mean magnitude.

        Args:
            name: for what is learned.
            each_channel: a scale for each output channel; False: one for the weight.
        """
        rank, matrix = len(constant.shape), weight.to_matrix(constant.values)
        if not each_channel:
            matrix = matrix.reshape(1, -1)
        if levels is None:
            mean = np.maximum(np.abs(matrix).mean(axis=1), np.finfo(np.float32).tiny).astype(np.float32)
            bound = np.maximum(np.abs(matrix).max(axis=1), mean).astype(np.float32)
            scale, levels = mean, Levels(-1, 1)
        else:
            bound, scale = None, least_squares_scales(matrix, levels)

        def shaped(values: Array) -> Array:
            return weight.along_out(values, rank) if each_channel else values.reshape((1,) * rank)

        step = Step.start(name, shaped(scale), matrix.shape[1], levels.high, optimizer)
        return cls(constant.name, weight, levels, step, None if bound is None else shaped(bound))

    @property
    def each_channel(self) -> bool:
        """Whether output channels have scales of their own."""
        return self.step.base.size > 1

    def integers(self, values: Array, learned: Array | None) -> tuple[Array, Array]:
        """Integers as [out, in], int8, and scales [out], as the training graph rounds."""
        values = np.asarray(values, np.float32)
        scale = self.step.scale(learned)
        if self.bound is not None:
            half = np.float32(0.5)
            codes = np.rint(np.clip(values / (self.bound * np.float32(2)) + half, 0, 1))
            found = codes * 2 - 1
        else:
            found = np.rint(np.clip(values / scale, self.levels.low, self.levels.high))
        integers = self.weight.to_matrix(found.astype(np.int8))
        return integers, np.broadcast_to(scale.reshape(-1), (len(integers),))


@dataclass(frozen=True)
class FakeActivation:
    """Tensors on one grid.

    Attributes:
        tensors: by name, the readers as (node, port) that see the rounded value; None where all do.
        grid: where it starts; the zero point stays.
        step: its scale.
    """

    tensors: tuple[tuple[str, tuple[tuple[str, int], ...] | None], ...]
    grid: Grid
    step: Step

    def trained(self, learned: Array | None) -> Grid:
        """The grid with the learned scale."""
        return Grid(float(self.step.scale(learned).reshape(())), self.grid.zero, self.grid.levels)


@dataclass(frozen=True)
class FakeBias:
    """A bias in units of its layer's input scale times weight scale, as integer kernels add it.

    Attributes:
        node, port: where it enters.
        weight, activation: names of the two learned scales.
    """

    node: str
    port: int
    weight: str
    activation: str


@dataclass
class Inserted:
    """What the training graph holds now: names of learned scales and what they must keep."""

    trainable: list[str] = field(default_factory=list)
    constraints: dict[str, Constraint] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Enter one scale."""
        self.trainable.append(step.name)
        self.constraints[step.name] = step.constraint


def insert(
    graph: Graph,
    weights: Sequence[FakeWeight],
    activations: Sequence[FakeActivation] = (),
    biases: Sequence[FakeBias] = (),
) -> Inserted:
    """Put fake quantization into a training graph whose tensors have the names that the specifications bear."""
    result, writer = Inserted(), _Writer(graph)
    for weight in weights:
        result.add(weight.step)
        writer.weight(weight)
    for activation in activations:
        result.add(activation.step)
        writer.activation(activation)
    for bias in biases:
        writer.bias(bias)
    graph.sort()
    return result


class _Writer:
    """Writes the arithmetic. Clip has fixed bounds, as an input each: the form whose gradient is right and fast."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors = graph.tensors()
        self.nodes = {node.name: node for node in graph.nodes}
        self._numbers: dict[float, Constant] = {}
        self._scales: dict[str, Variable] = {}

    def weight(self, fake: FakeWeight) -> None:
        constant = self.tensors[fake.constant]
        readers = list(dict.fromkeys(constant.consumers))
        scale = self._scale(fake.step)
        if fake.bound is None:
            rounded = self._rounded(constant, scale, fake.levels.low, fake.levels.high)
        else:
            twice = self.graph.add_constant(f"{fake.constant}.bound", np.asarray(fake.bound * np.float32(2)))
            share = self._op("Add", self._op("Div", constant, twice), self._number(0.5))
            code = self._op("Round", self._clipped(share, 0, 1))
            sign = self._op("Sub", self._op("Mul", code, self._number(2.0)), self._number(1.0))
            rounded = self._op("Mul", sign, scale)
        self.graph.replace_uses(constant, rounded, only=readers)

    def activation(self, fake: FakeActivation) -> None:
        grid, scale = fake.grid, self._scale(fake.step)
        for name, ports in fake.tensors:
            tensor = self.tensors[name]
            if ports is None and self.graph.is_output(tensor):
                tensor = self._named_anew(tensor)
            readers = list(dict.fromkeys(tensor.consumers))
            rounded = self._rounded(tensor, scale, grid.levels.low - grid.zero, grid.levels.high - grid.zero)
            if ports is None:
                self.graph.replace_uses(tensor, rounded, only=readers)
                self._take_name(rounded, name)
            else:
                for node, port in ports:
                    self.nodes[node].inputs[port] = rounded

    def _named_anew(self, output: Tensor) -> Tensor:
        """What makes an output makes another tensor instead, so that what is rounded bears the output's name."""
        maker = output.producer
        assert maker is not None
        inner = Variable(self.graph.unique_name(f"{output.name}.exact"), output.dtype, output.shape)
        maker.outputs[maker.outputs.index(output)] = inner
        self.graph.replace_uses(output, inner)
        return inner

    def _take_name(self, rounded: Variable, name: str) -> None:
        """Let what is rounded be the output of this name, where there is one."""
        for at, output in enumerate(self.graph.outputs):
            if output.name == name:
                rounded.name, rounded.dtype, rounded.shape = name, output.dtype, output.shape
                self.graph.outputs[at] = rounded

    def bias(self, fake: FakeBias) -> None:
        node = self.nodes[fake.node]
        flat = self.graph.add_constant("distill.flat", np.asarray([-1], np.int64))
        each = self._op("Reshape", self._scales[fake.weight], flat)  # [out, 1, ...] -> [out]
        unit = self._op("Mul", each, self._scales[fake.activation])
        whole = self._op("Round", self._op("Div", node.inputs[fake.port], unit))
        node.inputs[fake.port] = self._op("Mul", whole, unit)

    def _scale(self, step: Step) -> Variable:
        learned = Constant(step.name, np.zeros(step.base.shape, np.float32))
        spread = self.graph.add_constant(f"{step.name}.spread", step.spread)
        base = self.graph.add_constant(f"{step.name}.base", step.base)
        self._scales[step.name] = self._op("Add", base, self._op("Mul", spread, learned))
        return self._scales[step.name]

    def _rounded(self, tensor: Tensor, scale: Variable, low: int, high: int) -> Variable:
        clipped = self._clipped(self._op("Div", tensor, scale), low, high)
        return self._op("Mul", self._op("Round", clipped), scale)

    def _clipped(self, tensor: Variable, low: float, high: float) -> Variable:
        return self._op("Clip", tensor, self._number(low), self._number(high))

    def _number(self, value: float) -> Constant:
        if value not in self._numbers:
            self._numbers[value] = self.graph.add_constant("distill.level", np.asarray(value, np.float32))
        return self._numbers[value]

    def _op(self, op: str, *inputs: Tensor) -> Variable:
        result: Variable = self.graph.add_node(op, inputs, name=f"distill.{op}").outputs[0]
        return result
