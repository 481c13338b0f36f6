"""Which values do a layer's weights have, and which range is left of them in the new model?"""

from __future__ import annotations

from itertools import count, takewhile

import numpy as np

from onnxcomp.drawn import WeightHistogram
from onnxcomp.graph.cost import part_name
from onnxcomp.graph.evaluate import evaluate
from onnxcomp.graph.ir import Array, Graph, Node, is_onnx
from onnxcomp.ops.facts import Operators

BINS = 32
LARGEST_ELEMENTS = 1 << 24  # of a weight that is looked at; a larger one would cost more than it tells
SAMPLED_ELEMENTS = 1 << 20
MOST_HOPS = 12
# operators that decode stored weights: their inputs are constant, and so is what they give
DECODERS = {
    "BitShift", "Cast", "DequantizeLinear", "Gather", "Identity", "Mod", "Mul", "Reshape", "Slice", "Squeeze", "Sub",
    "Transpose", "Unsqueeze",
}  # fmt: skip


def histograms(before: Graph, after: Graph, operators: Operators) -> dict[str, WeightHistogram]:
    """For each layer of `before` with float weights: how they are spread, and their range in `after`, by node name."""
    new = {node.name: node for node in after.walk()}
    found = {}
    for node in before.walk():
        for weight, constant in operators.weights(node):
            if weight.role != "kernel" or constant.dtype.kind != "f" or not 0 < constant.size <= LARGEST_ELEMENTS:
                continue
            values = np.asarray(constant.values).reshape(-1)
            if not np.isfinite(values).all():
                continue
            found[node.name] = _histogram(values, _later(node, weight.port, new, after.opset))
    return found


def _later(node: Node, port: int, new: dict[str, Node], opset: int) -> Array | None:
    """The weight that a node has afterwards, or that of its parts one after the other; None where it is not known."""
    parts = takewhile(new.__contains__, (part_name(node.name, index) for index in count()))
    heirs = [new[name] for name in ([node.name] if node.name in new else parts)]
    values = [_decoded(heir, port, opset) if heir.op == node.op else None for heir in heirs]
    known = [value.reshape(-1) for value in values if value is not None]
    return np.concatenate(known) if known and len(known) == len(values) else None


def _histogram(values: Array, later: Array | None) -> WeightHistogram:
    if later is not None and not (later.size and np.isfinite(later).all()):
        later = None
    both = [values] if later is None else [values, later.reshape(-1)]
    ranges = [(float(v.min()), float(v.max())) for v in both]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    shares = [_shares(v, low, high if high > low else low + 1.0) for v in both]
    return WeightHistogram(
        low=low,
        high=high,
        before=shares[0],
        after=shares[1] if later is not None else None,
        range=(ranges[0], ranges[1] if later is not None else None),
        zeros=(_zeros(values), _zeros(later) if later is not None else None),
    )


def _shares(values: Array, low: float, high: float) -> tuple[float, ...]:
    part = values[:: max(1, values.size // SAMPLED_ELEMENTS)].astype(np.float64)
    counts, _ = np.histogram(part, bins=BINS, range=(low, high))
    return tuple(round(int(count) / part.size, 5) for count in counts)


def _zeros(values: Array) -> float:
    return round(1.0 - np.count_nonzero(values) / values.size, 6)


def _decoded(node: Node, port: int, opset: int, hops: int = MOST_HOPS) -> Array | None:
    """The numbers that a port is fed when they do not depend on the model's inputs; None when they do."""
    constant = node.constant(port)
    if constant is not None:
        return np.asarray(constant.values) if constant.size <= LARGEST_ELEMENTS else None
    tensor = node.input(port)
    source = tensor.producer if tensor is not None else None
    if source is None or source.op not in DECODERS or not is_onnx(source.domain) or not hops:
        return None
    inputs: list[Array | None] = []
    for index in range(len(source.inputs)):
        value = _decoded(source, index, opset, hops - 1)
        if value is None and source.input(index) is not None:
            return None
        inputs.append(value)
    try:
        return _dequantized(source, inputs) if source.op == "DequantizeLinear" else evaluate(source, inputs, opset)[0]
    except Exception:  # the reference implementation has gaps; the layer is then shown without its new range
        return None


def _dequantized(node: Node, inputs: list[Array | None]) -> Array:
    """(x - zero) * scale by the operator's definition, per tensor, per axis or in blocks, in any opset."""
    codes, scale, *rest = inputs
    assert codes is not None
    assert scale is not None
    zero = rest[0] if rest and rest[0] is not None else np.zeros(scale.shape, np.float32)
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    parts = []
    for part in (np.asarray(zero).astype(np.float32), np.asarray(scale).astype(np.float32)):
        if block:
            parts.append(np.repeat(part, block, axis).take(np.arange(codes.shape[axis]), axis))
        elif part.size == 1:
            parts.append(part.reshape(()))
        else:
            parts.append(part.reshape([-1 if a == axis % codes.ndim else 1 for a in range(codes.ndim)]))
    found: Array = (codes.astype(np.float32) - parts[0]) * parts[1]
    return found
