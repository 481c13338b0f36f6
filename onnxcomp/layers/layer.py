"""What does a layer with weights compute, and where do its weight, its bias and its result stand?

output = alpha W x + bias. How an operator takes its weight stands in its record (`onnxcomp.ops.record.Weight`); here it
meets a graph. Passes ask a Layer and never the operator's name or attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Variable, is_onnx
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.rows import LayerInputs
from onnxcomp.layers.use import WeightUse
from onnxcomp.ops.facts import Operators, Weight, no_macs, no_weights


class UnfitError(Exception):
    """A layer, or a rewrite of it, is not possible; the message says why, for the user. Callers turn it into a skip."""


@dataclass(frozen=True)
class Bias:
    """Where a layer's bias stands: an initializer of `node`, one value an output, that counts `scale` times."""

    node: Node
    port: int
    scale: float = 1.0

    @property
    def constant(self) -> Constant:
        """The initializer."""
        found = self.node.constant(self.port)
        assert found is not None
        return found

    def values(self) -> Array:
        """[outputs] float64, as they act."""
        return self.scale * np.asarray(self.constant.values, np.float64).reshape(-1)

    def write(self, graph: Graph, values: Array) -> None:
        """Store values given as they act; an initializer that others read is copied first."""
        own = graph.own_constant(self.node, self.port)
        assert own is not None
        own.values = (values / self.scale).reshape(own.shape).astype(own.dtype)


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight that is multiplied row by row with what enters its node: output = alpha W x + bias.

    Attributes:
        use: the weight.
        rows: how the layer's input turns into the rows x; None where it differs from output to output.
        bias: where the bias stands; None when there is none that is one constant value an output.
        output: the tensor that holds the layer's result, bias included.
    """

    use: WeightUse
    rows: LayerInputs | None
    bias: Bias | None
    output: Variable

    @property
    def node(self) -> Node:
        """The node that reads the weight."""
        return self.use.node

    @property
    def weight(self) -> Weight:
        """What the weight's axes mean."""
        return self.use.weight

    @property
    def constant(self) -> Constant:
        """The initializer of the weight."""
        return self.use.constant

    @property
    def group(self) -> int:
        """Convolution groups; 1 elsewhere."""
        return self.weight.group

    @property
    def inputs(self) -> int:
        """Channels in, of all groups."""
        return self.weight.channels(self.constant.shape)[0]

    @property
    def outputs(self) -> int:
        """Channels out, of all groups."""
        return self.weight.channels(self.constant.shape)[1]

    def rank(self, shapes: Shapes) -> int | None:
        """Of input and output, where known."""
        return self.weight.rank or shapes.rank(self.node.outputs[0])

    # -- values as they act ------------------------------------------------------------------------------------

    def weights(self) -> Array:
        """[group, out / group, in] float64, times alpha."""
        return self.weight.alpha * self.unfolded(np.asarray(self.constant.values, np.float64))

    def bias_values(self) -> Array | None:
        """[group, out / group] float64, as they act; None without a bias."""
        return None if self.bias is None else self.bias.values().reshape(self.group, -1)

    def folded(self, values: Array) -> Array:
        """[group, out, in] in the layout of the weight tensor."""
        return self.weight.from_matrix(values.reshape(-1, values.shape[2]), self.constant.shape)

    def unfolded(self, values: Array) -> Array:
        """A tensor laid out as the weight, as [group, out, in]."""
        matrix = self.weight.to_matrix(values)
        return matrix.reshape(self.group, -1, matrix.shape[1])

    def write(self, graph: Graph, w: Array, bias: Array | None) -> None:
        """Store weights [group, out, in] and bias given as they act."""
        self.constant.values = self.folded(w / self.weight.alpha).astype(self.constant.dtype)
        if bias is not None and self.bias is not None:
            self.bias.write(graph, bias)


def layer_of(graph: Graph, use: WeightUse) -> Layer:
    """The layer that a weight makes.

    Raises:
        UnfitError: it is no plain product of weights and inputs.
    """
    node, weight = use.node, use.weight
    if not weight.bare:
        raise UnfitError(f"{node.op} does more than multiply weights with inputs")
    if not weight.reads:
        raise UnfitError(f"{node.op} is no plain product of weights and inputs")
    output = node.output()
    if weight.alpha == 0 or output is None:
        raise UnfitError("its product is not used")
    bias, output = _bias(graph, use, output)
    rows = LayerInputs.of(use)
    return Layer(use, None if isinstance(rows, str) else rows, bias, output)


def multiplies(node: Node, operators: Operators) -> bool:
    """Whether a node's operator multiplies activations with weights, wherever these come from."""
    facts = operators.facts(node)
    return facts.weights is not no_weights and facts.macs is not no_macs


def bias_of(graph: Graph, use: WeightUse) -> Bias | None:
    """Where the bias of a weight stands: at its node, or in an Add behind a product that takes none."""
    output = use.node.output()
    return None if output is None else _bias(graph, use, output)[0]


def kernels(graph: Graph, operators: Operators) -> Iterator[WeightUse]:
    """The weights of the main graph's nodes that are multiplied with activations, in its order."""
    for node in graph.nodes:
        for weight, constant in operators.weights(node):
            if weight.role == "kernel":
                yield WeightUse(node, weight, constant)


def add_biases(graph: Graph, operators: Operators) -> list[Bias]:
    """Give layers without a bias, whose operator takes one, a bias of zeros, so that a refit can move it."""
    added = []
    for use in kernels(graph, operators):
        node, weight, port = use.node, use.weight, use.weight.bias
        if port is None or not weight.bare or not weight.reads or node.input(port) is not None:
            continue
        if use.constant.dtype.kind == "f":
            zeros = np.zeros(weight.channels(use.constant.shape)[1], use.constant.dtype)
            node.set_input(port, graph.add_constant(f"{node.name}_bias", zeros))
            added.append(Bias(node, port))
    return added


def drop_zero_biases(added: list[Bias]) -> None:
    """Take out again those that stayed zero."""
    for bias in added:
        inputs = bias.node.inputs
        if len(inputs) == bias.port + 1 and bias.node.constant(bias.port) and not np.any(bias.constant.values):
            del inputs[bias.port]


# -- what stands behind ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Residual:
    """A sum that alone reads a layer's output, and what else it adds.

    Attributes:
        port: of the Add, where the other summand comes in.
    """

    add: Node
    port: int
    other: Variable
    total: Variable


def residual_of(graph: Graph, output: Variable, shapes: Shapes) -> Residual | None:
    """The sum of a layer's output and something computed; None where its reader is anything else.

    Args:
        shapes: both summands must have the same: one that is spread over the other is no shortcut.
    """
    add = _reader(graph, output)
    total = add.output() if add is not None else None
    if add is None or total is None or add not in graph.nodes:
        return None
    port = 1 if add.inputs[0] is output else 0
    other = add.inputs[port]
    if isinstance(other, Constant) or other is output:
        return None
    shape = shapes.shape(output)
    if shape is None or None in shape or shapes.shape(other) != shape:
        return None
    return Residual(add, port, other, total)


def _reader(graph: Graph, output: Variable) -> Node | None:
    """The Add that alone reads a tensor, once."""
    if len(output.outputs) != 1 or graph.is_output(output):
        return None
    node: Node = output.outputs[0]
    return node if node.op == "Add" and is_onnx(node.domain) and len(node.inputs) == 2 else None


def _bias(graph: Graph, use: WeightUse, output: Variable) -> tuple[Bias | None, Variable]:
    """The bias of a layer and the tensor behind it."""
    node, weight = use.node, use.weight
    width = weight.channels(use.constant.shape)[1]
    if weight.bias is not None:
        fits = _is_vector(node.constant(weight.bias), width) and weight.beta != 0
        return (Bias(node, weight.bias, weight.beta) if fits else None), output
    add = _reader(graph, output) if weight.reads and weight.bare and weight.result_axis == -1 else None
    total = add.output() if add is not None else None
    if add is None or total is None or (node in graph.nodes) != (add in graph.nodes):
        return None, output
    port = 1 if add.inputs[0] is output else 0
    return (Bias(add, port), total) if _is_vector(add.constant(port), width) else (None, output)


def _is_vector(constant: Constant | None, length: int) -> bool:
    return constant is not None and constant.size == length and constant.shape[-1:] == (length,)
