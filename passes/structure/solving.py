"""Which layers are solved again after a cut, and what each should give then?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coupling import streams
from onnxcomp.graph.ir import Array, Graph, Node
from onnxcomp.layers.layer import Layer, kernels
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.pruning.layers import refittable
from onnxcomp.passes.structure.refit import Cut, Effort, Refit, refit, side_by_side

MOST_WORK = 4e12  # multiply-accumulates that running the model for all layers may take
MOST_REFITS = 160  # layers; of a deeper model only those that lost something are solved again


def to_solve(graph: Graph, touched: Collection[Node], context: PassContext) -> list[WeightUse]:
    """Layers that lose inputs, and in a model of moderate depth all behind them.

    Args:
        touched: nodes whose inputs are not what they were.
    """
    solvable = [
        use
        for use in kernels(graph, context.operators)
        if use.weight.group == 1 and isinstance(refittable(graph, use), Layer)
    ]
    assert context.calibration is not None
    shapes = shape_tools.infer(graph, shape_tools.one_sample(graph, context.sample_shapes))
    macs = sum(context.operators.facts(node).macs(node, shapes) for node in graph.nodes)
    samples = len(context.calibration)
    runs = 2 if side_by_side(graph, context, samples) else len(solvable)
    if len(solvable) > MOST_REFITS or macs * samples * runs > MOST_WORK:
        return [use for use in solvable if use.node in touched]
    behind = streams.behind(graph, touched)
    return [use for use in solvable if use.node in behind]


def solve_again(
    graph: Graph,
    reference: Graph,
    uses: Mapping[WeightUse, Array],
    context: PassContext,
    damping: float,
    aims: Mapping[str, str] | None = None,
    effort: Effort | None = None,
) -> Refit:
    """Refit the layers that are still there.

    Args:
        uses: with the outputs of the original that each still has, bool.
        aims: tensors that stand in for others, by name: what they should be in the original.
        effort: all calibration samples where none is given.
    """
    here = set(graph.nodes)
    cuts = []
    for use, outputs in uses.items():
        layer = refittable(graph, use) if use.node in here else ""
        if isinstance(layer, Layer):
            cuts.append(Cut(layer, outputs))
    assert context.calibration is not None
    return refit(graph, reference, cuts, context, damping, aims or {}, effort or Effort(context.calibration))


def whole(use: WeightUse) -> Array:
    """The outputs of a layer that loses none."""
    return np.ones(use.constant.shape[use.weight.out_axis], bool)
