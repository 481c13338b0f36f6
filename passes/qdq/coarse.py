"""May one scale serve all outputs of a product? Kernels that lose time on a scale for each, and what makes up for it.

A weight whose outputs differ much in size loses by one scale. Where the next layer alone reads them, output i may be
multiplied by f_i > 0 and the next weight's column i divided by it: relu(f x) = f relu(x), so that the model computes
the same, and with f_i = s / s_i all rows fit one scale s (M. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Variable
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.targets.base import Target

Grids = Mapping[Variable, Grid]
Undo = Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """A plan's layers with one scale a weight in some of them.

    Attributes:
        coarse: those layers.
        undo: puts the graph back as it was.
    """

    grids: dict[Variable, Grid]
    layers: dict[Node, Integers]
    coarse: Sequence[Node]
    undo: Undo


@dataclass(frozen=True)
class Coarsener:
    """Makes variants of a plan.

    Attributes:
        layer: a node's weight as integers on these grids, with one scale if so asked.
        grids: the plan's grids after the values of some tensors changed, and how to take that back.
    """

    graph: Graph
    target: Target
    layer: Callable[[Node, Grids, bool], Integers]
    grids: Callable[[Plan, Sequence[Variable]], tuple[dict[Variable, Grid], Undo]]

    def variants(self, plan: Plan, grids: Grids, layers: Mapping[Node, Integers]) -> Iterator[Variant]:
        """The coarsest first; between two of them the graph is as it was."""
        costly = [node for node in plan.weighted if self.target.kernels[node.op].scale_costs]
        if not costly:
            return
        shared = {node: self.layer(node, grids, True) for node in costly}
        yield Variant(dict(grids), {**layers, **shared}, costly, lambda: None)
        links = {node: reader for node in costly if (reader := self._reader(node, plan, costly)) is not None}
        for coarse in dict.fromkeys((tuple(costly), tuple(links), tuple(links)[:1])) if links else ():
            evened = [node for node in coarse if node in links]
            restored = _restorer([*evened, *links.values()], [t for n in evened for t in _between(n, plan)])
            for node in evened:
                even(layers[node], plan.weighted[links[node]], links[node])
                for tensor in _between(node, plan):
                    tensor.name = self.graph.unique_name(f"{tensor.name}_evened")  # it holds other values now
            moved, again = self.grids(plan, [plan.output(node) for node in evened])
            made = {node: self.layer(node, moved, node in coarse) for node in plan.weighted}

            def undo(steps: tuple[Undo, ...] = (restored, again)) -> None:
                for step in steps:
                    step()

            yield Variant(moved, made, coarse, undo)

    def _reader(self, node: Node, plan: Plan, costly: Sequence[Node]) -> Node | None:
        """The product that alone reads what a layer gives, behind nothing but a Relu; None where there is none.

        Products with alpha, beta or transA have no such kernel.
        """
        fold = plan.folded.get(node)
        output = plan.output(node)
        if (fold is not None and fold.op != "Relu") or len(output.outputs) != 1 or self.graph.is_output(output):
            return None
        reader: Node = output.outputs[0]
        if reader not in costly or reader.inputs[0] is not output:
            return None
        return reader if all(_alone(n, port) for n in (node, reader) for port in _ports(n, plan)) else None


def even(layer: Integers, columns: Weight, reader: Node) -> None:
    """Multiply a layer's outputs so that its scales come out equal, and divide the reader's columns, in place."""
    factors = (np.exp(np.log(layer.scales.astype(np.float64)).mean()) / layer.scales).astype(np.float32)
    node, weight = layer.node, layer.weight
    stored = node.constant(weight.port)
    assert stored is not None
    stored.values = stored.values * _along(factors, weight.out_axis, len(stored.shape))
    bias = node.constant(weight.bias) if weight.bias is not None else None
    if bias is not None:
        bias.values = (bias.values * factors.reshape((1,) * (len(bias.shape) - 1) + (-1,))).astype(np.float32)
    after = reader.constant(columns.port)
    assert after is not None
    after.values = after.values / _along(factors, columns.in_axes[-1], len(after.shape))


def _along(factors: Array, axis: int, rank: int) -> Array:
    return factors.reshape([-1 if a == axis % rank else 1 for a in range(rank)])


def _ports(node: Node, plan: Plan) -> tuple[int, ...]:
    weight = plan.weighted[node]
    return (weight.port,) if weight.bias is None or node.input(weight.bias) is None else (weight.port, weight.bias)


def _alone(node: Node, port: int) -> bool:
    """Whether a port holds a constant that no other node reads."""
    constant = node.constant(port)
    return constant is not None and len(constant.outputs) == 1


def _between(node: Node, plan: Plan) -> list[Variable]:
    """The tensors between a layer and its reader."""
    return list(dict.fromkeys((node.outputs[0], plan.output(node))))


def _restorer(nodes: Sequence[Node], tensors: Sequence[Variable]) -> Undo:
    """Keeps the nodes' constants and the tensors' names; what it returns puts them back."""
    values = {t: t.values for node in nodes for t in node.inputs if isinstance(t, Constant)}
    names = {t: t.name for t in tensors}

    def restore() -> None:
        for constant, array in values.items():
            constant.values = array
        for tensor, name in names.items():
            tensor.name = name

    return restore
