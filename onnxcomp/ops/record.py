"""What is known about an operator, in one frozen record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Node
from onnxcomp.graph.types import Shapes, TensorType

if TYPE_CHECKING:
    from onnxcomp.graph import noops
    from onnxcomp.graph.coupling import flow
    from onnxcomp.graph.rewriting import Rewrite

Role = Literal["kernel", "embedding", "recurrent"]
Reads = Literal["", "patches", "spread", "rows", "columns"]
WINDOWS: tuple[Reads, ...] = ("patches", "spread")


@dataclass(frozen=True)
class Weight:
    """Where a node takes a weight, and what its axes mean.

    Attributes:
        port: input port.
        role: `kernel` is multiplied with activations, `embedding` is looked up by row, `recurrent` is of an RNN.
        out_axis: axis of output channels (for an embedding: of rows).
        in_axes: axes that are summed over, in the order of the kernel's inner loop; that of the channels is the last.
        group: convolution groups; 1 elsewhere.
        bias: port of the bias, or None.
        reads: how the outputs read the data, where each is the product of one row of the weight with a part of it:
            `patches` are windows with channels at axis 1, `spread` the same of data with zeros between (a transposed
            convolution), `rows` lie along the last axis, `columns` along the last but one; empty where it is otherwise.
        data: port of what is multiplied with the weight.
        rank: of data and result, where the operator or the weight fixes it.
        alpha, beta: factors of the product and of the bias.
        bare: whether the result is product and bias alone: no activation function, no further sum.
    """

    port: int
    role: Role = "kernel"
    out_axis: int = 0
    in_axes: tuple[int, ...] = (1,)
    group: int = 1
    bias: int | None = None
    reads: Reads = ""
    data: int = 0
    rank: int | None = None
    alpha: float = 1.0
    beta: float = 1.0
    bare: bool = True

    @property
    def windows(self) -> bool:
        """Whether it is a convolution's, transposed or not."""
        return self.reads in WINDOWS

    @property
    def data_axis(self) -> int:
        """Channel axis of the data: 1, or counted from the back."""
        return 1 if self.windows else -2 if self.reads == "columns" else -1

    @property
    def result_axis(self) -> int:
        """Channel axis of the result: 1, or counted from the back; a weight on the left makes rows of it."""
        return 1 if self.windows else -2 if self.port < self.data else -1

    def channels(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Channels in and out of a weight of the given shape, those of all groups."""
        inner, out = shape[self.in_axes[-1]], shape[self.out_axis]
        return (inner, out * self.group) if 0 in self.in_axes else (inner * self.group, out)

    def to_matrix(self, values: Array) -> Array:
        """The weight as [out, in]: every row holds what is summed into one output channel."""
        return np.transpose(values, self._order(values.ndim)).reshape(values.shape[self.out_axis], -1)

    def from_matrix(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """Undo `to_matrix` for a weight of the given shape."""
        order = self._order(len(shape))
        moved = matrix.reshape([shape[a] for a in order])
        return np.ascontiguousarray(np.transpose(moved, np.argsort(order)))

    def along_out(self, vector: Array, rank: int) -> Array:
        """A vector over output channels, shaped to broadcast against the weight."""
        return vector.reshape([-1 if a == self.out_axis % rank else 1 for a in range(rank)])

    def _order(self, rank: int) -> list[int]:
        out = self.out_axis % rank
        inner = [a % rank for a in self.in_axes]
        return [out, *inner, *(a for a in range(rank) if a != out and a not in inner)]


Weights = Callable[[Node], tuple[Weight, ...]]
Macs = Callable[[Node, Shapes], int]
OutputTypes = Callable[[Node, Shapes], "Sequence[TensorType | None]"]


class ZeroView(Protocol):
    """A node as a rule of zeros sees it; units are those of the coupling analysis."""

    @property
    def node(self) -> Node:
        """The node itself, for its attributes."""

    @property
    def ports(self) -> list[int]:
        """The inputs that are given."""

    def zero(self, port: int) -> set[int]:
        """Units that are zero throughout an input."""

    def units(self, port: int) -> set[int]:
        """Units that an input carries."""


Zeros = Callable[[ZeroView], set[int]]


def elements(node: Node, held: Constant) -> int:
    """Every element of a packed weight counts."""
    return held.size


def no_weights(node: Node) -> tuple[Weight, ...]:
    """For operators without weights."""
    return ()


def no_macs(node: Node, shapes: Shapes) -> int:
    """For operators whose multiply-accumulates are not counted."""
    return 0


def every(node: Node) -> bool:
    """For what holds of an operator whatever its attributes are."""
    return True


@dataclass(frozen=True)
class IntegerForm:
    """How an operator takes its operands as integers.

    Attributes:
        like: the float operator that it computes.
        data, weight: ports of the operands.
        scale, zero: ports of the weight's scale and zero point; -1 where a later node scales.
        bias: port, or -1.
        entry: ports of the data operand's scale and zero point where that is an integer tensor.
        exit: likewise of the output.
    """

    like: str
    data: int
    weight: int
    scale: int = -1
    zero: int = -1
    bias: int = -1
    entry: tuple[int, int] | None = None
    exit: tuple[int, int] | None = None


@dataclass(frozen=True)
class OpFacts:
    """One operator.

    Attributes:
        op, domain: as in ONNX.
        weights: the weights a node takes; empty where they are computed by other nodes is for the caller to see.
        macs: multiply-accumulates of one run.
        moves_data: the first output holds values of the first input only, at other places: scales may be shared.
        elementwise: each output element depends on the input elements at its place, after broadcasting.
        random: two runs may differ.
        quantization_ports: ports that hold scales and zero points, which are no parameters.
        integers: how it takes its operands as integers; None where they are float.
        packed: number of weight elements that a port of packed or integer weights holds, by port; asked with the
            value there, wherever it stands (an initializer, a Constant node).
        shape_ports: ports whose values steer shapes and are no parameters either.
        vector_ports: ports of learned vectors that are no weights or biases of a product: scale and shift of a
            normalization, slope of a PRelu.
        statistics_ports: ports of running statistics, which training updates without a gradient.
        shape: types of the outputs where ONNX's own inference knows none; a None among them where this one does not.
        coupling: how indices of the outputs' axes depend on those of the inputs (onnxcomp.graph.coupling.flow).
        attention: whether it multiplies activations with each other inside, whatever its operands are.
        zeros: which units are zero in the first output, given those that are zero in the inputs; units never are where
            there is no rule. Products with weights need none.
        sums: what it adds up, so that a zero brings nothing: `zeros` along axes, `products` of its inputs, or a `norm`
            that divides all the rest.
        noop: when it hands on a tensor unchanged (onnxcomp.graph.noops).
        half: of an operator that ONNX does not describe, the inputs and the outputs that share one float type, which
            may be half precision; of others ONNX says it.
        half_kernel: whether ONNX Runtime computes this node in half precision: some kernels open with it and fail in
            the first run, as their attributes ask.
        gradient: the form with a right gradient (onnxcomp.graph.rewriting).
        known: False for the record of an operator that no table holds.
    """

    op: str
    domain: str = ""
    weights: Weights = no_weights
    macs: Macs = no_macs
    moves_data: bool = False
    elementwise: bool = False
    random: bool = False
    quantization_ports: tuple[int, ...] = ()
    integers: IntegerForm | None = None
    packed: Mapping[int, Callable[[Node, Constant], int]] = field(default_factory=dict)
    shape_ports: tuple[int, ...] = ()
    vector_ports: tuple[int, ...] = ()
    statistics_ports: tuple[int, ...] = ()
    shape: OutputTypes | None = None
    coupling: flow.Rule | None = None
    attention: bool = False
    zeros: Zeros | None = None
    sums: Literal["", "zeros", "products", "norm"] = ""
    noop: noops.Rule | None = None
    half: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    half_kernel: Callable[[Node], bool] = every
    gradient: Rewrite | None = None
    known: bool = True


def volume(shape: tuple[int, ...] | None) -> int:
    """Number of elements; 0 when the shape is unknown."""
    return 0 if shape is None else prod(shape)
