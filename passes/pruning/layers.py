"""Which layers can be refitted, where their bias stands, in which order, and what they should give?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import WeightUse
from onnxcomp.runtime.gram import Target, moment_bytes, why_not
from onnxcomp.runtime.patches import LayerInputs

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_STAGES = 40  # passes over the calibration samples


@dataclass(frozen=True)
class Bias:
    """Where a layer's bias stands: an initializer of `node`, which enters the sum times `scale`."""

    node: Node
    port: int
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight whose inputs and outputs can be measured: output = scale * W x + bias.

    Attributes:
        use: the weight.
        group: convolution groups.
        output: the tensor that holds the layer's result, bias included.
        bias: where the bias stands; None when there is none that belongs to this layer alone.
        scale: Gemm's alpha.
    """

    use: WeightUse
    group: int
    output: Variable
    bias: Bias | None
    scale: float = 1.0

    @property
    def node(self) -> Node:
        """The node that reads the weight."""
        return self.use.node

    def weights(self) -> Array:
        """[group, out / group, in] float64, as they act (times alpha)."""
        matrix = self.use.weight.to_matrix(np.asarray(self.use.constant.values, np.float64))
        return self.scale * matrix.reshape(self.group, -1, matrix.shape[1])

    def bias_values(self) -> Array | None:
        """[group, out / group] float64, as they act; None without a bias."""
        if self.bias is None:
            return None
        constant = self.bias.node.constant(self.bias.port)
        assert constant is not None
        return self.bias.scale * np.asarray(constant.values, np.float64).reshape(self.group, -1)

    def folded(self, values: Array) -> Array:
        """[group, out, in] in the layout of the weight tensor."""
        return self.use.weight.from_matrix(values.reshape(-1, values.shape[2]), self.use.constant.shape)

    def unfolded(self, values: Array) -> Array:
        """A tensor laid out as the weight, as [group, out, in]."""
        matrix = self.use.weight.to_matrix(values)
        return matrix.reshape(self.group, -1, matrix.shape[1])

    def write(self, graph: Graph, w: Array, bias: Array | None) -> None:
        """Store weights and bias given as they act."""
        constant = self.use.constant
        matrix = (w / self.scale).reshape(-1, w.shape[2])
        constant.values = self.use.weight.from_matrix(matrix, constant.shape).astype(constant.dtype)
        if bias is not None and self.bias is not None:
            own = graph.own_constant(self.bias.node, self.bias.port)
            assert own is not None
            own.values = (bias / self.bias.scale).reshape(own.shape).astype(own.dtype)


def layer_of(graph: Graph, use: WeightUse) -> Layer | str:
    """The layer of a weight, or why its survivors cannot be refitted."""
    if use.node.op not in _LINEAR or use.node.domain not in ("", "ai.onnx", None):
        return f"{use.node.op} is no plain product of weights and inputs"
    if use.shared:
        return f"{len(use.constant.outputs)} nodes share it"
    reason = why_not(graph, use)
    rule = LayerInputs.of(use)
    if reason or isinstance(rule, str):
        return reason
    scale = float(use.node.attrs.get("alpha", 1.0)) if use.node.op == "Gemm" else 1.0
    output = use.node.output()
    if scale == 0 or output is None:
        return "its product is not used"
    bias, output = _bias(graph, use, output)
    return Layer(use, rule.group, output, bias, scale)


def stages(graph: Graph, layers: Sequence[Layer], *, most: int = MOST_STAGES, memory: int) -> Iterator[list[Layer]]:
    """Layers in the order in which they can be pruned on the activations of what was pruned before.

    Layers that do not feed each other share a stage; in a very deep graph neighbouring stages are merged so that no
    more than about `most` passes over the samples are needed, and a stage's moments are held below `memory` bytes.
    """
    depth = _depths(graph, {layer.node: layer for layer in layers})
    levels = sorted({depth[layer.node] for layer in layers})
    merged = -(-len(levels) // most) if levels else 1
    rank = {level: i // merged for i, level in enumerate(levels)}
    for stage in range(-(-len(levels) // merged)):
        batch: list[Layer] = []
        used = 0
        for layer in (one for one in layers if rank[depth[one.node]] == stage):
            size = 2 * moment_bytes(layer.use)
            if batch and used + size > memory:
                yield batch
                batch, used = [], 0
            batch.append(layer)
            used += size
        yield batch


def target_of(graph: Graph, layer: Layer, pending: Collection[Node], shapes: Shapes) -> Target:
    """What a layer should give: the original's output there, or behind a residual Add the original's sum.

    The second holds where the other summand is already final, so that this layer makes up for the error of both.

    Args:
        pending: nodes of layers that will still change, this one included.
    """
    output = layer.output
    plain = Target(output.name)
    if len(output.outputs) != 1 or graph.is_output(output) or output.outputs[0].op != "Add":
        return plain
    add: Node = output.outputs[0]
    others = [t for t in add.inputs if t is not output]
    total = add.output()
    if len(others) != 1 or total is None or isinstance(others[0], Constant) or add not in graph.nodes:
        return plain
    shape = shapes.shape(output)
    if shape is None or None in shape or shapes.shape(others[0]) != shape:
        return plain
    if not _ancestors(others[0]).isdisjoint(pending):
        return plain
    return Target(total.name, minus=others[0].name)


def _bias(graph: Graph, use: WeightUse, output: Variable) -> tuple[Bias | None, Variable]:
    """The bias of a layer and the tensor behind it; for MatMul the constant of an Add right behind."""
    node, port = use.node, use.weight.bias
    outs = use.constant.shape[use.weight.out_axis]
    if port is not None:
        scale = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
        fits = _is_vector(node.constant(port), outs) and scale != 0
        return (Bias(node, port, scale) if fits else None), output
    if len(output.outputs) != 1 or graph.is_output(output) or use.weight.port != 1:
        return None, output
    add: Node = output.outputs[0]
    total = add.output()
    if add.op != "Add" or total is None or add not in graph.nodes:
        return None, output
    for at, tensor in enumerate(add.inputs):
        if tensor is not output and _is_vector(add.constant(at), outs):
            return Bias(add, at), total
    return None, output


def _is_vector(constant: Constant | None, length: int) -> bool:
    return constant is not None and constant.size == length and constant.shape[-1:] == (length,)


def _depths(graph: Graph, layers: dict[Node, Layer]) -> dict[Node, int]:
    """How many layers lie on the longest way from the inputs to each node, itself counted."""
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        before = max((depth.get(p, 0) for t in _reads(node) for p in t.inputs), default=0)
        depth[node] = before + (node in layers)
    return depth


def _reads(node: Node) -> Iterator[Tensor]:
    yield from node.inputs
    for body in node.bodies:
        for inner in body.walk():
            yield from inner.inputs
        yield from body.outputs


def _ancestors(tensor: Tensor) -> set[Node]:
    """Every node that a tensor depends on."""
    found: set[Node] = set()
    waiting = [tensor]
    while waiting:
        node = waiting.pop().producer
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(_reads(node))
    return found
