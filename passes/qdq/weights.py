"""Which integers stand for a layer's weights?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.graph.ir import Array, Node
from onnxcomp.graph.rounding import (
    PAIR_LIMIT,
    Levels,
    Pairs,
    clipped_pair_scales,
    clipped_scales,
    clipped_shared_scale,
    round_compensated,
    round_descended,
    round_nearest,
    round_pairs,
)
from onnxcomp.layers.layer import Bias
from onnxcomp.layers.rows import LayerInputs
from onnxcomp.layers.use import WeightUse
from onnxcomp.ops.facts import Weight

Isa: TypeAlias = Literal["portable", "native"]

LEVELS = Levels.signed(8)
LARGEST_BIAS = 2**30  # integers of a bias stay below, with room for the products that are added to it


@dataclass
class Integers:
    """A layer's weight as integers.

    Attributes:
        node, weight: where it stands.
        integers: int8 [out, in] in the order of `Weight.to_matrix`.
        scales: float32 [out]; where all are equal they are written as one.
        bias: float32 [out]; None where the layer has none.
        exact: the float weight as [out, in].
        pairs: products that must not saturate.
        shape: of the weight tensor.
        rows: how the layer's input turns into rows that multiply the weight; None where there is no such rule.
        levels: that the integers may take.
    """

    node: Node
    weight: Weight
    integers: Array
    scales: Array
    bias: Array | None
    exact: Array
    pairs: Pairs | None
    shape: tuple[int, ...]
    rows: LayerInputs | None
    levels: Levels = LEVELS

    @property
    def shared(self) -> bool:
        """Whether one scale stands for all outputs."""
        return len(self.scales) > 1 and bool((self.scales == self.scales[0]).all())

    @property
    def rounded(self) -> Array:
        """The float weight that the integers stand for: [out, in]."""
        return self.integers * self.scales[:, None]

    @property
    def own_sqnr_db(self) -> float:
        """Signal to rounding noise of the weights in dB, at most 99."""
        power = float(np.square(self.exact, dtype=np.float64).sum())
        noise = float(np.square(self.exact - self.rounded, dtype=np.float64).sum())
        return min(99.0, 10 * float(np.log10(power / noise))) if power > 0 and noise > 0 else 99.0

    def give_bias(self) -> None:
        """A bias of zeros where the layer has none and the operator takes one."""
        if self.bias is None and self.weight.bias is not None:
            self.bias = np.zeros(len(self.scales), np.float32)

    def tensor(self) -> Array:
        """The integers in the weight's own shape."""
        return self.weight.from_matrix(self.integers, self.shape)

    def compensate(self, wanted: Array, moments: Array, damping: float) -> None:
        """Round again for inputs with these second moments, [group, in, in]; the scales stay.

        Args:
            wanted: the weight to come near to, float [out, in].
        """
        parts = zip(np.split(wanted, len(moments)), np.split(self.scales, len(moments)), moments, strict=True)
        self.integers = np.concatenate([self._rounded_for(*part, damping) for part in parts])

    def _rounded_for(self, wanted: Array, scales: Array, moments: Array, damping: float) -> Array:
        start = round_compensated(wanted, scales, moments, self.levels, pairs=self.pairs, damping=damping)
        return round_descended(wanted, scales, start, moments, self.levels, pairs=self.pairs, damping=damping)


def pairs_of(node: Node, weight: Weight, isa: Isa) -> Pairs | None:
    """Which products a kernel without VNNI adds up in 16 bits; None where none are, or nobody asked.

    The order of `to_matrix` (kernel positions first, channels last) is the kernel's own. With an odd number of
    channels the pairs' places depend on how each position is padded, so every neighbour counts. Depthwise kernels
    multiply in 32 bits.
    """
    shape = node.inputs[weight.port].shape
    if isa == "native":
        return None
    if node.op != "Conv":
        return Pairs()
    channels, positions = shape[1], int(np.prod(shape[2:]))
    if channels == 1 and weight.group > 1 and shape[0] == weight.group:
        return None
    return Pairs(every=channels % 2 == 1 and positions > 1)


def quantized(
    node: Node, weight: Weight, isa: Isa, input_scale: float, *, shared: bool = False, levels: Levels = LEVELS
) -> Integers:
    """Integers for one layer, each weight to the nearest level.

    Args:
        input_scale: scale of the activations, which with the weight's makes the bias's.
        shared: one scale for all outputs.
        levels: that the integers may take.
    """
    constant = node.constant(weight.port)
    assert constant is not None
    exact = weight.to_matrix(constant.values)
    pairs = pairs_of(node, weight, isa) if 2 * levels.high > PAIR_LIMIT else None
    bias = bias_of(node, weight)
    if shared:
        scales = clipped_shared_scale(exact, levels, pairs)
    else:
        scales = clipped_scales(exact, levels) if pairs is None else clipped_pair_scales(exact, levels, pairs)
    scales = _wide_enough(exact, scales, bias, input_scale)
    if shared:
        scales[:] = scales.max()
    integers = round_nearest(exact, scales, levels) if pairs is None else round_pairs(exact, scales, levels, pairs)
    rows = LayerInputs.of(WeightUse(node, weight, constant))
    rule = None if isinstance(rows, str) else rows
    return Integers(node, weight, integers, scales, bias, exact, pairs, constant.shape, rule, levels)


def bias_of(node: Node, weight: Weight) -> Array | None:
    """The bias as it acts, float32 [out]; None where the layer has none."""
    if weight.bias is None or node.constant(weight.bias) is None:
        return None
    return Bias(node, weight.bias, weight.beta).values().astype(np.float32)


def _wide_enough(exact: Array, scales: Array, bias: Array | None, input_scale: float) -> Array:
    """Scales of empty rows as those of the others, and none so small that the bias leaves 32 bits."""
    empty = ~exact.any(axis=1)
    if empty.any():
        scales = scales.copy()
        scales[empty] = scales[~empty].max() if not empty.all() else 1.0
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias) / (input_scale * LARGEST_BIAS))
    return scales.astype(np.float32)
