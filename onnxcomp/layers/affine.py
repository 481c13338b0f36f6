"""How does a scale and shift for each channel become part of a layer's weights?

After a layer, a (W x + c) + b = (a W) x + (a c + b); before it, W (a x + b) = (W a) x + W b where no zero padding sees
the shift. See Jacob et al., arXiv:1712.05877, section 3.2, for the first. All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.layers.hidden import hidden_weight, how_to_plain
from onnxcomp.layers.layer import Layer, UnfitError, layer_of
from onnxcomp.layers.use import WeightUse
from onnxcomp.ops.facts import Operators

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
BATCH_NORM = "BatchNormalization"


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift: float64 vectors of one value for each channel, or of one for all."""

    scale: Array
    shift: Array

    def then(self, later: Affine) -> Affine:
        """This one first, `later` on its result."""
        return Affine(self.scale * later.scale, self.shift * later.scale + later.shift)

    def over(self, channels: int) -> Affine:
        """The same with one value for each channel."""
        return Affine(np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels))

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


# -- reading nodes ---------------------------------------------------------------------------------------------


def affine_of(
    node: Node, data: Tensor, *, axis: int, rank: int | None, channels: int, opset: int, fed: Collection[Constant] = ()
) -> Affine:
    """What a BatchNormalization, Add, Sub, Mul or Div with constants does to a tensor, channel by channel.

    Args:
        data: the tensor, one of the node's inputs.
        axis: its channel axis, counted from the front or from the back.
        rank: its rank, where known.
        channels: its size along the axis.
        fed: initializers that a caller may replace.

    Raises:
        UnfitError: it does something else, or its constants are not known.
    """
    if node.op == BATCH_NORM:
        if (axis if rank is None else axis % rank) != 1:
            raise UnfitError("its channels are not those of the layer before it")
        if node.inputs[0] is not data:
            raise UnfitError(f"{node} reads it as a parameter")
        return _norm(node, opset, fed)
    if node.op not in ELEMENTWISE or len(node.inputs) != 2 or opset < 7:
        raise UnfitError(f"{node} is not a scale or shift")
    port = 1 if node.inputs[0] is data else 0
    constant = node.constant(port)
    if constant is None or constant in fed or not _is_float(constant):
        raise UnfitError(f"{node} has no constant operand")
    value = _per_channel(constant.values, axis, rank, channels)
    one, zero = np.ones(1), np.zeros(1)
    if node.op == "Add":
        return Affine(one, value)
    if node.op == "Mul":
        return Affine(value, zero)
    if node.op == "Sub":
        return Affine(one, -value) if port == 1 else Affine(-one, value)
    if port == 0 or not value.all():
        raise UnfitError(f"{node} divides by the data or by zero")
    return Affine(1 / value, zero)


def _is_float(constant: Constant) -> bool:
    return constant.dtype.name in ("float16", "bfloat16", "float32", "float64")


def _norm(node: Node, opset: int, fed: Collection[Constant]) -> Affine:
    if node.attrs.get("training_mode", 0) or (opset < 7 and not node.attrs.get("is_test", 0)):
        raise UnfitError("it is in training mode")
    if any(t.name for t in node.outputs[1:]):
        raise UnfitError("it has several outputs, as in training")
    if not node.attrs.get("spatial", 1):
        raise UnfitError("it normalizes every position by its own statistics (spatial=0)")
    parts = [node.constant(port) for port in range(1, 5)]
    if any(p is None or p in fed for p in parts):
        raise UnfitError("its scale, shift, mean or variance is computed")
    scale, bias, mean, variance = (p.values.astype(np.float64) for p in parts if p is not None)
    deviation = variance + float(node.attrs.get("epsilon", 1e-5))
    if not (deviation > 0).all():
        raise UnfitError("its variance is not positive, or not a number")
    factor = scale / np.sqrt(deviation)
    affine = Affine(factor, bias - mean * factor)
    if not affine.finite:
        raise UnfitError("its parameters are not finite")
    return affine


def _per_channel(values: Array, axis: int, rank: int | None, channels: int) -> Array:
    """A constant operand as a vector [channels] or [1]; it may vary along the channel axis only."""
    shape = values.shape
    if rank is None and axis == -1 and values.ndim <= 1:
        rank = 2  # a vector meets the last axis whatever the rank
    if values.ndim and (rank is None or values.ndim > rank):
        raise UnfitError("its operand may widen the result")
    wide = (1,) * ((rank or 0) - values.ndim) + shape
    at = axis % len(wide) if wide else 0
    if any(d != 1 for i, d in enumerate(wide) if i != at) or (wide and wide[at] not in (1, channels)):
        raise UnfitError("its operand varies along other axes than the channels")
    return values.astype(np.float64).reshape(-1)


# -- layers ----------------------------------------------------------------------------------------------------


def linear(graph: Graph, node: Node, operators: Operators, fed: Collection[Constant] = ()) -> Layer:
    """The layer of a node that multiplies with one constant weight and does nothing else.

    Raises:
        UnfitError: it does something else, or its weight is computed.
    """
    found = operators.facts(node).weights(node)
    constant = node.constant(found[0].port) if found else None
    if constant is None:
        maker = hidden_weight(node)
        why = "is computed by other nodes" if maker is None else how_to_plain(maker)
        raise UnfitError(f"the weight of {node} {why}")
    if constant in fed:
        raise UnfitError(f"the weight of {node} is listed as an input, so a caller may replace it")
    if not _is_float(constant):
        raise UnfitError(f"the weight of {node} is not of a floating-point type")
    return layer_of(graph, WeightUse(node, found[0], constant))


def scaled_outputs(layer: Layer, scale: Array) -> Array:
    """The weight, float64, with every output channel multiplied by its scale [outputs]."""
    values = _apart(layer)
    return np.asarray((values * _along(layer, scale, layer.weight.out_axis)).reshape(layer.constant.shape))


def scaled_inputs(layer: Layer, affine: Affine) -> tuple[Array, Array]:
    """The weight, float64, with every input channel scaled, and what the shift adds to each output [outputs].

    The second holds where every output sees the same inputs: not at the borders of an image (see `sees_padding`).
    """
    weight, values = layer.weight, _apart(layer)
    axis, out = weight.in_axes[-1], weight.out_axis
    scaled = (values * _along(layer, affine.scale, axis)).reshape(layer.constant.shape)
    if not affine.shift.any():
        return scaled, np.zeros(layer.outputs)
    if len(layer.constant.shape) == 2:
        return scaled, weight.to_matrix(layer.constant.values.astype(np.float64)) @ affine.shift
    others = tuple(a for a in range(1, values.ndim) if a != out % (values.ndim - 1) + 1)
    return scaled, (values * _along(layer, affine.shift, axis)).sum(axis=others).reshape(-1)


def _apart(layer: Layer) -> Array:
    """The weight, float64, its groups along an axis of their own in front: of Conv [g, M/g, C/g, k...]."""
    values = layer.constant.values.astype(np.float64)
    return values.reshape(layer.group, -1, *values.shape[1:])


def _along(layer: Layer, channels: Array, axis: int) -> Array:
    """One value for each channel, those of all groups, to be met with `_apart` along an axis of the weight."""
    rank = len(layer.constant.shape)
    sizes = [1] * rank
    sizes[axis] = -1
    return channels.reshape(layer.group, *sizes)


def sees_padding(layer: Layer) -> bool:
    """Whether zeros that padding or stride put in may meet the kernel."""
    reads, rows = layer.weight.reads, layer.rows
    if reads != "patches" or rows is None:
        return reads == "spread"
    return any(rows.pads) or (rows.auto_pad.startswith("SAME") and any(k > 1 for k in rows.kernel))


def fitted(layer: Layer, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """A new weight and bias in the layer's own dtype.

    Raises:
        UnfitError: a value does not fit.
    """
    dtype = layer.constant.dtype
    with np.errstate(over="ignore"):
        new = weight.astype(dtype), None if bias is None else bias.astype(dtype)
    whole = all(v is None or np.isfinite(v).all() for v in new)
    if not whole and np.isfinite(layer.constant.values).all():
        raise UnfitError(f"the result does not fit {dtype}")
    return new


def rewrite(graph: Graph, layer: Layer, weight: Array, bias: Array | None) -> None:
    """Give a node a weight and, where not None, a bias of its own; other readers of the old ones keep those.

    The new bias counts once, whatever the node's beta was.
    """
    node, port = layer.node, layer.weight.bias
    mine = graph.own_constant(node, layer.weight.port)
    assert mine is not None
    mine.values = weight
    if bias is None:
        return
    assert port is not None
    node.attrs.pop("beta", None)
    old = graph.own_constant(node, port)
    if old is not None:
        old.values = bias
    else:
        node.set_input(port, graph.add_constant(f"{node.name}_bias", bias))


def added_by(layer: Layer, fed: Collection[Constant] = ()) -> Array:
    """What a node adds to its product, float64, beta in it, in any shape that broadcasts; zero where nothing.

    Raises:
        UnfitError: it is computed by other nodes, or does not fit the outputs, which no runtime would run.
    """
    node, port = layer.node, layer.weight.bias
    if port is None or node.input(port) is None:
        return np.zeros(1)
    bias = node.constant(port)
    if bias is None or bias in fed:
        raise UnfitError(f"the bias of {node} is computed by other nodes")
    if bias.shape and bias.shape[-1] not in (1, layer.outputs):
        raise UnfitError(f"the bias of {node} has {bias.shape[-1]} values for {layer.outputs} outputs")
    return np.asarray(bias.values.astype(np.float64) * layer.weight.beta)
