"""How does a scale and shift for each channel become part of a layer's weights?

After a layer, a (W x + c) + b = (a W) x + (a c + b); before it, W (a x + b) = (W a) x + W b where no zero padding sees
the shift. See Jacob et al., arXiv:1712.05877, section 3.2, for the first. All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
BATCH_NORM = "BatchNormalization"


class UnfitError(Exception):
    """The rewrite is not possible here; the message says why, for the user. Callers turn it into a skip."""


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
        axis: its channel axis, counted from the front, or -1 for the last.
        rank: its rank, where known.
        channels: its size along the axis.
        fed: initializers that a caller may replace.

    Raises:
        UnfitError: it does something else, or its constants are not known.
    """
    if node.op == BATCH_NORM:
        if axis not in (1, -1) or (axis == -1 and rank != 2):
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


@dataclass(frozen=True)
class Layer:
    """A node that multiplies its data input with a constant weight.

    Attributes:
        inputs, outputs: channels in and out.
        in_axis, out_axis: channel axis of the data input and of the output.
        rank: of input and output, where known.
    """

    node: Node
    weight: Constant
    inputs: int
    outputs: int
    in_axis: int
    out_axis: int
    rank: int | None

    @property
    def group(self) -> int:
        """Groups of a convolution; 1 elsewhere."""
        return int(self.node.attrs.get("group", 1)) if self.node.op.startswith("Conv") else 1

    @property
    def shared(self) -> bool:
        """Whether other nodes read the weight."""
        return len(self.weight.outputs) > 1


def layer_of(node: Node, shapes: Shapes, fed: Collection[Constant] = ()) -> Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight at port 1.

    Raises:
        UnfitError: it is none of them, or its weight is computed.
    """
    if node.op not in LINEAR or node.domain not in ("", "ai.onnx"):
        raise UnfitError(f"{node} is no convolution or matrix product")
    weight = node.constant(1)
    if weight is None:
        raise UnfitError(f"the weight of {node} is computed by other nodes")
    if weight in fed:
        raise UnfitError(f"the weight of {node} is listed as an input, so a caller may replace it")
    if not _is_float(weight):
        raise UnfitError(f"the weight of {node} is not of a floating-point type")
    shape = weight.shape
    group = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        return Layer(node, weight, shape[1] * group, shape[0], 1, 1, len(shape))
    if node.op == "ConvTranspose":
        return Layer(node, weight, shape[0], shape[1] * group, 1, 1, len(shape))
    if node.op == "Gemm":
        out, inner = shape if node.attrs.get("transB", 0) else shape[::-1]
        return Layer(node, weight, inner, out, 0 if node.attrs.get("transA", 0) else 1, 1, 2)
    if len(shape) < 2:
        raise UnfitError(f"the weight of {node} is a vector")
    rank = shapes.rank(node.outputs[0])
    return Layer(node, weight, shape[-2], shape[-1], -1, -1, rank)


def scaled_outputs(layer: Layer, scale: Array) -> Array:
    """The weight, float64, with every output channel multiplied by its scale [outputs]."""
    values = layer.weight.values.astype(np.float64)
    if layer.node.op == "ConvTranspose":  # [C, M/g, k...]: channel of the output = group, place in the group
        groups = values.reshape(layer.group, -1, *values.shape[1:])
        factors = scale.reshape(layer.group, 1, -1, *[1] * (values.ndim - 2))
        return np.asarray((groups * factors).reshape(values.shape))
    out = 0 if layer.node.op == "Conv" or layer.node.attrs.get("transB", 0) else values.ndim - 1
    return np.asarray(values * scale.reshape([-1 if a == out else 1 for a in range(values.ndim)]))


def scaled_inputs(layer: Layer, affine: Affine) -> tuple[Array, Array]:
    """The weight, float64, with every input channel scaled, and what the shift adds to each output [outputs]."""
    values = layer.weight.values.astype(np.float64)
    if layer.node.op == "Conv":  # [M, C/g, k...]
        groups = values.reshape(layer.group, -1, *values.shape[1:])
        shaped = [v.reshape(layer.group, 1, -1, *[1] * (values.ndim - 2)) for v in (affine.scale, affine.shift)]
        added = (groups * shaped[1]).sum(axis=tuple(range(2, groups.ndim))).reshape(-1)
        return (groups * shaped[0]).reshape(values.shape), added
    if layer.node.op == "ConvTranspose":  # only called without a shift: at the borders fewer inputs meet a kernel
        factors = affine.scale.reshape(-1, *[1] * (values.ndim - 1))
        return values * factors, np.zeros(layer.outputs)
    if layer.node.attrs.get("transB", 0):  # [N, K]
        return values * affine.scale, values @ affine.shift
    return values * affine.scale[:, None], affine.shift @ values  # [..., K, N]


def sees_padding(layer: Layer) -> bool:
    """Whether zeros that padding or stride put in may meet the kernel."""
    node = layer.node
    if node.op == "ConvTranspose":
        return True
    if node.op != "Conv":
        return False
    pointwise = all(k == 1 for k in layer.weight.shape[2:])
    same = str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME") and not pointwise
    return same or any(node.attrs.get("pads", []))


def fitted(layer: Layer, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """A new weight and bias in the layer's own dtype.

    Raises:
        UnfitError: a value does not fit.
    """
    dtype = layer.weight.dtype
    with np.errstate(over="ignore"):
        new = weight.astype(dtype), None if bias is None else bias.astype(dtype)
    whole = all(v is None or np.isfinite(v).all() for v in new)
    if not whole and np.isfinite(layer.weight.values).all():
        raise UnfitError(f"the result does not fit {dtype}")
    return new


def rewrite(graph: Graph, layer: Layer, weight: Array, bias: Array | None) -> None:
    """Give a layer a weight and, where not None, a bias of its own; other readers of the old ones keep those."""
    mine = graph.own_constant(layer.node, 1)
    assert mine is not None
    mine.values = weight
    if bias is None:
        return
    old = graph.own_constant(layer.node, 2)
    if old is not None:
        old.values = bias
    else:
        layer.node.set_input(2, graph.add_constant(f"{layer.node.name}_bias", bias))


def bias_of(layer: Layer, fed: Collection[Constant] = ()) -> Array:
    """What a Conv, ConvTranspose or Gemm adds, float64, with Gemm's beta in it; zero where it adds nothing.

    Raises:
        UnfitError: it is computed by other nodes.
    """
    if layer.node.input(2) is None:
        return np.zeros(1)
    bias = layer.node.constant(2)
    if bias is None or bias in fed:
        raise UnfitError(f"the bias of {layer.node} is computed by other nodes")
    beta = float(layer.node.attrs.get("beta", 1.0)) if layer.node.op == "Gemm" else 1.0
    return np.asarray(bias.values.astype(np.float64) * beta)
