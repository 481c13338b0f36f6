"""Which products only pick rows of a weight, and what could be done to the rows before they are picked?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, elem_type, is_onnx
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import Here, sweep, unlink, until_stable
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.affine import added_by, fitted, linear
from onnxcomp.layers.layer import Layer, UnfitError, multiplies
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.ops.facts import Operators
from onnxcomp.passes.folding import Plan

CLIPS_INTEGERS = 12  # the opset since which Clip takes integers
INDEX = np.dtype(np.int64)


@dataclass(frozen=True)
class GatherRows(Pass):
    """No product multiplies one-hot rows with a weight: it looks the rows up; functions of a row stand in the table.

    A row with a single one times W [K, N] is a row of W. One-hot rows are the output of OneHot along the last axis, or
    of a comparison with 0, 1, ..., K-1, cast to a float or chosen from 1 and 0 by Where. The table gets a row of zeros
    on either side, which is what an index out of range stands for. What stands behind a look-up and treats every
    element alike, or every column, is done once to the table, where the table alone is read so and does not grow.
    """

    name: ClassVar[str] = "gather-rows"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Look up what can be, then move what follows a look-up into its table."""
        outcome = Outcome()
        wanted = self.selects(graph)
        products = [node for node in graph.walk() if multiplies(node, context.operators) and wanted(node)]
        if any(_picks(node) for node in products):
            shapes = infer(graph, declared=False)

            def look_up(node: Node, here: Here) -> Collection[Node]:
                if not (multiplies(node, context.operators) and wanted(node) and _picks(node)):
                    return ()
                try:
                    _look_up(graph, here.scope, node, shapes, context.operators)
                except UnfitError as error:
                    outcome.skip(node, str(error))
                    return ()
                outcome.change(node, "looks rows of its weight up")
                return [node]

            sweep(graph, look_up)
        mover = _Mover(self, graph, context, outcome)
        until_stable(mover.sweep)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} nodes became look-ups or part of a table"
        return outcome


# -- products --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneHot:
    """Rows of length `count` that are zero but for a one at an index.

    Attributes:
        index: where the one stands, integers.
        trailing: whether the index has the rows' axis too, of size 1.
        wraps: whether -1 stands for the last place, and so on.
    """

    index: Tensor
    count: int
    trailing: bool
    wraps: bool


def _picks(node: Node) -> bool:
    """Whether the data of a product may be one-hot, at first sight."""
    maker = node.inputs[0].producer if node.inputs else None
    return maker is not None and maker.op in ("OneHot", "Cast", "Where") and is_onnx(maker.domain)


def one_hot(tensor: Tensor, shapes: Shapes) -> OneHot | None:
    """How a tensor is one-hot along its last axis; None where that is not certain."""
    maker = tensor.producer
    if maker is None or not is_onnx(maker.domain):
        return None
    if maker.op == "OneHot":
        return _of_operator(maker, shapes)
    if maker.op == "Where":
        yes, no = maker.constant(1), maker.constant(2)
        if yes is None or no is None or yes.size != 1 or no.size != 1 or max(len(yes.shape), len(no.shape)) > 1:
            return None
        return _of_comparison(maker.inputs[0].producer, shapes) if (yes.values == 1 and no.values == 0) else None
    return _of_comparison(maker.inputs[0].producer, shapes) if maker.op == "Cast" else None


def _of_operator(node: Node, shapes: Shapes) -> OneHot | None:
    depth, values = node.constant(1), node.constant(2)
    rank = shapes.rank(node.inputs[0])
    if depth is None or values is None or rank is None or not _whole(node.inputs[0], shapes):
        return None
    if int(node.attrs.get("axis", -1)) not in (-1, rank) or values.values.reshape(-1).tolist() != [0, 1]:
        return None
    return OneHot(node.inputs[0], int(np.asarray(depth.values).reshape(-1)[0]), trailing=False, wraps=True)


def _of_comparison(node: Node | None, shapes: Shapes) -> OneHot | None:
    if node is None or node.op != "Equal" or not is_onnx(node.domain):
        return None
    for port in (0, 1):
        index, places = node.inputs[port], node.constant(1 - port)
        shape = shapes.shape(index)
        if places is None or not shape or shape[-1] != 1 or not _whole(index, shapes):
            continue
        count = places.shape[-1] if places.shape else 0
        fits = count > 1 and places.size == count and len(places.shape) <= len(shape)
        if fits and np.array_equal(places.values.reshape(-1), np.arange(count)):
            return OneHot(index, count, trailing=True, wraps=False)
    return None


def _whole(tensor: Tensor, shapes: Shapes) -> bool:
    dtype = shapes.dtype(tensor)
    return isinstance(tensor, Variable) and dtype is not None and dtype.kind in "iu" and dtype.name != "uint64"


def _look_up(graph: Graph, scope: Graph, node: Node, shapes: Shapes, operators: Operators) -> None:
    """Put a Gather in the place of a product.

    Raises:
        UnfitError: it is no product of one-hot rows with a constant weight, or cannot be written in this opset.
    """
    found = one_hot(node.inputs[0], shapes)
    if found is None:
        raise UnfitError("its input is not certain to be one-hot rows")
    layer = linear(graph, node, operators, graph.kept_inputs.keys())
    if layer.weight.reads != "rows" or layer.weight.data != 0 or len(layer.constant.shape) != 2:
        raise UnfitError("it is no product of rows with a matrix")
    if graph.opset < CLIPS_INTEGERS:
        raise UnfitError(f"Clip takes integers from opset {CLIPS_INTEGERS} on")
    table = graph.add_constant(f"{layer.constant.name}_rows", _table(graph, layer, found.count))
    index = _index(graph, scope, node, found, shapes)
    scope.add_node("Gather", [table, index], name=f"{node.name}_gather", outputs=[node.outputs[0]])
    unlink(node)


def _table(graph: Graph, layer: Layer, count: int) -> Array:
    """The rows [count + 2, N] that a product gives, those of no one first and last, bias and factors in them."""
    rows = layer.weights()[0].T  # [K, N]
    if rows.shape[0] != count:
        raise UnfitError(f"its rows have {count} places and its weight {rows.shape[0]}")
    if not np.isfinite(rows).all():
        raise UnfitError("its weight holds NaN or infinity")
    bias = added_by(layer, graph.kept_inputs.keys())
    if bias.size not in (1, rows.shape[1]) or (bias.ndim and bias.shape[-1] != bias.size):
        raise UnfitError("its bias differs from row to row")
    values, _ = fitted(layer, np.pad(rows, ((1, 1), (0, 0))) + bias.reshape(-1), None)
    return values


def _index(graph: Graph, scope: Graph, node: Node, found: OneHot, shapes: Shapes) -> Variable:
    """Rows of the table, int64, from places: those out of range become one of the two rows of zeros."""
    name, index = node.name, found.index
    if shapes.dtype(index) != INDEX:
        index = scope.add_node("Cast", [index], name=f"{name}_cast", attrs={"to": elem_type(INDEX)}).outputs[0]
    if found.trailing:
        index = _squeezed(graph, scope, index, f"{name}_squeeze")

    def number(value: int) -> Constant:
        return graph.add_constant(f"{name}_places", np.asarray(value, np.int64))

    if found.wraps:
        below = scope.add_node("Less", [index, number(0)], name=f"{name}_below").outputs[0]
        moved = scope.add_node("Add", [index, number(found.count)], name=f"{name}_wrapped").outputs[0]
        index = scope.add_node("Where", [below, moved, index], name=f"{name}_place").outputs[0]
    inside = scope.add_node("Clip", [index, number(-1), number(found.count)], name=f"{name}_inside").outputs[0]
    row: Variable = scope.add_node("Add", [inside, number(1)], name=f"{name}_row").outputs[0]
    return row


def _squeezed(graph: Graph, scope: Graph, index: Tensor, name: str) -> Variable:
    if graph.opset >= 13:
        axes = graph.add_constant(f"{name}_axes", np.asarray([-1], np.int64))
        squeezed: Variable = scope.add_node("Squeeze", [index, axes], name=name).outputs[0]
    else:
        squeezed = scope.add_node("Squeeze", [index], name=name, attrs={"axes": [-1]}).outputs[0]
    return squeezed


# -- what follows a look-up ------------------------------------------------------------------------------------


class _Mover:
    """Moves functions of single elements from behind a look-up into its table."""

    def __init__(self, item: GatherRows, graph: Graph, context: PassContext, outcome: Outcome) -> None:
        self.graph = graph
        self.context = context
        self.outcome = outcome
        self.wanted = item.selects(graph)
        self.outputs: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs}

    def sweep(self) -> int:
        """One pass over all nodes; how many became part of a table."""
        shapes = infer(self.graph, declared=False)

        def rule(node: Node, here: Here) -> Collection[Node]:
            return self._moved(node, here, shapes) if node.op == "Gather" and is_onnx(node.domain) else ()

        return sweep(self.graph, rule)

    def _moved(self, gather: Node, here: Here, shapes: Shapes) -> list[Node]:
        """Do to the table what is done to the rows that are looked up; the nodes that did it."""
        table, rank = gather.constant(0), shapes.rank(gather.outputs[0])
        if not self.wanted(gather) or table is None or rank is None or not self._fits(gather, table):
            return []
        cluster = self._cluster(gather, table, rank, here)
        inside = {gather, *cluster}
        read = [t for node in inside for t in node.outputs if t in self.outputs or not inside.issuperset(t.consumers)]
        if len(read) != 1 or not cluster:
            return []
        values = self._computed(cluster, gather, table, read[0])
        if values is None or values.nbytes > table.nbytes:
            return []
        own = self.graph.own_constant(gather, 0)
        assert own is not None
        own.values = values
        for node in cluster:
            self.outcome.change(node, f"part of the table {own.name}")
        unlink(*cluster)
        gather.outputs = [read[0]]
        return cluster

    def _fits(self, gather: Node, table: Constant) -> bool:
        """Whether a table of rows is the look-up's own."""
        return (
            int(gather.attrs.get("axis", 0)) == 0
            and len(table.shape) == 2
            and len(table.consumers) == 1
            and not self.graph.is_output(table)
            and table not in self.graph.kept_inputs
            and table.dtype.kind == "f"
            and gather.outputs[0] not in self.outputs
        )

    def _cluster(self, gather: Node, table: Constant, rank: int, here: Here) -> list[Node]:
        """The nodes behind a look-up that treat all of its rows alike, in order."""
        made: set[Tensor] = {gather.outputs[0]}
        cluster: list[Node] = []
        for node in here.scope.nodes:
            if node not in here.nodes or made.isdisjoint(node.inputs) or not self._alike(node):
                continue
            if all(not t.name or t in made or self._row_wise(t, table, rank) for t in node.inputs):
                cluster.append(node)
                made.add(node.outputs[0])
        return cluster

    def _alike(self, node: Node) -> bool:
        facts = self.context.operators.facts(node)
        return facts.elementwise and not facts.random and len(node.outputs) == 1 and self.wanted(node)

    def _row_wise(self, tensor: Tensor, table: Constant, rank: int) -> bool:
        """Whether an operand is one number, or one for each column."""
        if not isinstance(tensor, Constant) or tensor in self.graph.kept_inputs or len(tensor.shape) > rank:
            return False
        return tensor.size == 1 or (tensor.size == table.shape[1] and tensor.shape[-1] == tensor.size)

    def _computed(self, cluster: list[Node], gather: Node, table: Constant, wanted: Tensor) -> Array | None:
        """What the nodes make of the whole table; None where a row becomes something else than a row."""
        values: dict[Tensor, Array] = {gather.outputs[0]: table.values}
        Plan(cluster, self.outputs, self.graph).compute(cluster, values, self.context.threads)
        found = values.get(wanted)
        if found is None or found.size != table.size or found.shape[-2:] != table.shape:
            return None
        return found.reshape(table.shape)
