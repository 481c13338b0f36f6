"""Which layers can be refitted, in which order, and what should they give?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from onnxcomp.graph.clone import needed
from onnxcomp.graph.ir import Graph, Node, reads
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.layer import Layer, UnfitError, layer_of, residual_of
from onnxcomp.layers.use import WeightUse
from onnxcomp.runtime.gram import Target, moment_bytes, why_not

MOST_STAGES = 40  # passes over the calibration samples


def refittable(graph: Graph, use: WeightUse) -> Layer | str:
    """The layer of a weight, or why its survivors cannot be refitted."""
    if use.shared and use.weight.reads:
        return f"{len(use.constant.outputs)} nodes share it"
    try:
        layer = layer_of(graph, use)
    except UnfitError as error:
        return str(error)
    return why_not(graph, use) or layer


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
    behind = residual_of(graph, layer.output, shapes)
    if behind is None or not needed([behind.other]).isdisjoint(pending):
        return Target(layer.output.name)
    return Target(behind.total.name, minus=behind.other.name)


def _depths(graph: Graph, layers: dict[Node, Layer]) -> dict[Node, int]:
    """How many layers lie on the longest way from the inputs to each node, itself counted."""
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        before = max((depth.get(p, 0) for t in reads(node) for p in t.inputs), default=0)
        depth[node] = before + (node in layers)
    return depth
