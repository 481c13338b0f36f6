"""Which weights take 4 bits in the file, and how do 8-bit kernels come to read them?

The integers lie as packed codes in front of DequantizeLinear, decoded by nodes that have nothing but constants at their
inputs: ONNX Runtime computes them once, at load, and then fuses its 8-bit kernels as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.graph.coded import PACKING_OPSET, Coded, CodedWriter
from onnxcomp.graph.ir import Constant, Graph, Node
from onnxcomp.graph.rounding import Levels, clipped_scales, round_nearest
from onnxcomp.manager.base import PassContext
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.passes.weights.mixing import costliest
from onnxcomp.targets.base import Target

if TYPE_CHECKING:
    from onnxcomp.passes.quantize_qdq import QuantizeQdq

BITS = 4
LEVELS = Levels.signed(BITS, narrow=False)
LEAST_SAVED_BYTES = 1024  # the nodes that decode a weight take about half as much


def narrow(
    graph: Graph, accepted: Mapping[Node, Weight], context: PassContext, target: Target, options: QuantizeQdq
) -> tuple[set[Constant], str]:
    """The weights that take 4 bits, and what the user should know."""
    if not target.decodes_at_load:
        return set(), f"{target.name} does not decode weights at load: all keep 8 bits in the file"
    every = {node.constant(weight.port): weight for node, weight in accepted.items()}
    held = {constant: weight for constant, weight in every.items() if constant is not None}
    saved = {constant: constant.size * (8 - BITS) // 8 for constant in held}
    chosen = {constant: weight for constant, weight in held.items() if saved[constant] >= LEAST_SAVED_BYTES}
    total = sum(constant.size for constant in held)
    room = options.average * total / 8 - (total - sum(saved[constant] for constant in chosen))
    if not options.min_sqnr or room <= 0 or not chosen:
        return set(chosen), ""
    rounded = {}
    for constant, weight in chosen.items():
        exact = weight.to_matrix(constant.values)
        scales = clipped_scales(exact, LEVELS)
        near = round_nearest(exact, scales, LEVELS) * scales[:, None]
        rounded[constant] = weight.from_matrix(near.astype(np.float32), constant.shape)
    found = costliest(graph, rounded, saved, room, context, least_db=options.min_sqnr)
    wide = set(found.constants)
    told = f"{len(wide)} of {len(held)} weights keep 8 bits in the file: they cost the outputs most" if wide else ""
    return set(chosen) - wide, found.why_not or told


def pack(graph: Graph, layers: Mapping[Node, Integers]) -> None:
    """Store the integers of few levels in few bits."""
    writer, done = CodedWriter(graph), False
    for node, layer in layers.items():
        reader = node.inputs[layer.weight.port].producer
        stored = None if reader is None else reader.constant(0)
        if stored is None or layer.levels.high > LEVELS.high or graph.opset < PACKING_OPSET:
            continue
        codes = (np.asarray(stored.values).astype(np.int16) - LEVELS.low).astype(np.uint8)
        writer.write(stored, Coded(codes, BITS, float(-LEVELS.low)))
        done = True
    if done:
        graph.sort()
