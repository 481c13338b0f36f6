"""What do the layers that lost inputs become? Weights and biases solved again, on what now enters them.

Layers go in graph order. Each is measured on the activations of the graph as cut and refitted so far, against what the
original gives there (behind a residual Add: against the original's sum), so that a layer also repairs what the layers
before it lost. Where a Relu or Clip follows, errors in its flat stretches do not count: solved by majorization, a few
turns of least squares (the problem of Zhang et al., arXiv 1505.06798, without their auxiliary variables).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Outcome, PassContext
from onnxcomp.passes.pruning.layers import Layer, stages, target_of
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.passes.structure.readers import ridge
from onnxcomp.runtime.gram import GROUP_BYTES, Gram, Rows, Target, gram

BATCH = 32
HELD_BYTES = 1 << 28  # rows of the layers that are solved together
FLAT_TURNS = 3  # ResNet-20 at half its MACs, divergence of held-out outputs: 0 turns 0.293, 1 0.285, 3 0.282


@dataclass(frozen=True)
class Cut:
    """A layer that lost inputs.

    Attributes:
        layer: of the graph as cut.
        outputs: bool [outputs of the original]: which it still has.
    """

    layer: Layer
    outputs: Array


@dataclass
class Refit:
    """Errors by node name: share of the target's energy before and after the refit. `skipped`: reason by name."""

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def report(self, outcome: Outcome) -> None:
        """Say what became of each layer."""
        for name, after in self.after.items():
            outcome.change(name, f"solved again: error {self.before[name]:.2%} -> {after:.2%} of its output")
        for name, why in self.skipped.items():
            outcome.skip(name, f"not solved again: {why}")


def refit(
    graph: Graph,
    reference: Graph,
    cuts: Sequence[Cut],
    context: PassContext,
    damping: float,
    aims: Mapping[str, str] | None = None,
) -> Refit:
    """Solve the layers again, in place.

    Args:
        reference: the graph before the cut; its tensors bear the same names.
        damping: ridge as a share of the mean diagonal of E[x x^T]; it pulls towards the weights as they were.
        aims: tensors of the graph that stand in for others, and the names of those in the reference.

    Raises:
        ModelError: ONNX Runtime cannot run a graph.
    """
    found = Refit()
    others = aims or {}
    by_layer = {one.layer: one for one in cuts}
    pending = {one.layer.node for one in cuts}
    shapes = shape_tools.infer(graph)
    ordered = list(stages(graph, [one.layer for one in cuts], memory=GROUP_BYTES))
    assert context.calibration is not None
    for stage in context.progress.track(ordered, len(ordered), "compensating"):
        plain = {one.node.name: _target(graph, by_layer[one], pending, shapes) for one in stage}
        targets = {n: replace(t, reference=others.get(t.reference, t.reference)) for n, t in plain.items()}
        moments = gram(
            graph,
            [layer.use for layer in stage],
            context.calibration,
            targets=targets,
            reference=reference,
            batch=BATCH,
            threads=context.threads,
            seed=context.seed,
            hold_bytes=HELD_BYTES // len(stage),
        )
        for layer in stage:
            name = layer.node.name
            _solve(graph, by_layer[layer], plain[name].reference, moments.pop(name), damping, found)
            pending.discard(layer.node)
    return found


def _target(graph: Graph, cut: Cut, pending: Collection[Node], shapes: Shapes) -> Target:
    if not cut.outputs.all():
        return Target(cut.layer.output.name, left=tuple(cut.outputs.tolist()))
    return target_of(graph, cut.layer, pending, shapes)


def _solve(graph: Graph, one: Cut, at: str, moments: Gram, damping: float, found: Refit) -> None:
    layer, name = one.layer, one.layer.node.name
    if not moments.finite:
        found.skipped[name] = "its inputs overflow or hold NaN on the calibration data"
        return
    old = layer.weights()
    problem = Problem.of(moments, old, layer.bias_values(), ridge(moments, damping))
    mask = np.ones(old.shape, bool)
    w = problem.best(mask, problem.refit(mask, old))
    bias = problem.bias(w)
    found.before[name], found.after[name] = problem.relative_error(old), problem.relative_error(w)
    if moments.rows is not None and (stretch := flat_stretch(graph, graph.tensors()[at])) is not None:
        w, bias = past_the_flat(moments.rows, problem, w, bias, stretch)
    layer.write(graph, w, bias)


def flat_stretch(graph: Graph, tensor: Tensor) -> tuple[float, float] | None:
    """Below and above which values of a tensor nothing changes in all that reads it; None where all values count."""
    if graph.is_output(tensor) or not tensor.outputs:
        return None
    low, high = math.inf, -math.inf
    for node in tensor.outputs:
        found = _flat_of(node, tensor)
        if found is None:
            return None
        low, high = min(low, found[0]), max(high, found[1])
    return (low, high) if low < high and (low > -math.inf or high < math.inf) else None


def _flat_of(node: Node, tensor: Tensor) -> tuple[float, float] | None:
    if node.domain or node.input(0) is not tensor:
        return None
    if node.op == "Relu":
        return 0.0, math.inf
    if node.op != "Clip":
        return None
    bounds = []
    for port, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        given, constant = node.input(port), node.constant(port)
        if given is not None and constant is None:
            return None
        bounds.append(float(constant.values) if constant is not None else float(node.attrs.get(name, default)))
    return bounds[0], bounds[1]


def past_the_flat(
    rows: Rows, problem: Problem, w: Array, bias: Array | None, stretch: tuple[float, float]
) -> tuple[Array, Array | None]:
    """Weights and bias that bring the values behind the activation nearer to the target's, from least squares on.

    Where the target lies in a flat stretch, the aim of a turn is what the layer gives there now, brought into the
    stretch: a majorizer of the squared error behind the activation.

    Args:
        w, bias: [group, out, in] and [group, out], where the turns begin.
    """
    low, high = np.float32(stretch[0]), np.float32(stretch[1])
    held, aim = rows.z, rows.aim
    under, over = aim <= low, aim >= high
    inverse = np.linalg.inv(problem.a)
    for _ in range(FLAT_TURNS):
        whole = np.concatenate([w, np.zeros_like(w[..., :1]) if bias is None else bias[..., None]], axis=2)
        now = held @ whole.transpose(0, 2, 1).astype(np.float32)  # [group, rows, out]
        total = now if rows.minus is None else now + rows.minus
        lost = np.where(
            under, np.maximum(total, low) - low, np.where(over, np.minimum(total, high) - high, total - aim)
        )
        slope = -(lost.transpose(0, 2, 1) @ held).astype(np.float64) / held.shape[1]  # [group, out, in + 1]
        step, mean = slope[..., :-1], slope[..., -1]
        if bias is not None and problem.x_mean is not None:
            step = step - mean[..., None] * problem.x_mean[:, None, :]
        step = step @ inverse
        w = w + step
        if bias is not None and problem.x_mean is not None:
            bias = bias + mean - np.einsum("goi,gi->go", step, problem.x_mean)
    return w, bias
