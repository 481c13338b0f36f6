"""How does an exported graph become trainable, which of its initializers move, and what stands in the way?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from onnxcomp.distill import codes, settle
from onnxcomp.distill.codes import Grid
from onnxcomp.distill.forms import STEPS, rule_of
from onnxcomp.distill.parameters import LEARNED, STATISTICS, is_float, roles, roots_of
from onnxcomp.distill.rebatch import is_fixed, rebatched
from onnxcomp.errors import ModelError
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, is_onnx, reads
from onnxcomp.graph.rewriting import CannotRewriteError, Pool, Rewrite, rewrite
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators
from onnxcomp.ops.gradients.normalization import frozen_batch_norm
from onnxcomp.ops.gradients.quantization import straighten

INTEGER_PRODUCTS = frozenset({"ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger"})
INTEGER_PRODUCTS |= {"MatMulIntegerToFloat", "QLinearConv", "QLinearMatMul"}
Statistics = Literal["trained", "frozen"]


@dataclass(frozen=True)
class Refusal:
    """A node through which no gradient flows, and what cannot be trained because of it.

    Attributes:
        node: its name; `op` its operator, with the domain where it is not ONNX's.
        why: no gradient and no composed form, or what of this node no form fits.
        parameters: initializers that would be trained but lie behind it.
    """

    node: str
    op: str
    why: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A graph in training form, and what it says of the original's initializers. Names are those of the original.

    Attributes:
        graph: computes what the original computes (BatchNormalization by its stored statistics), inputs and outputs
            under their own names, every shape static, opset and IR version as the training runtime takes them.
            Planners add a loss to it, or to a clone.
        shapes: static input shapes by name.
        batch: samples a step, their first axis; 1 where the model takes one sample only, whatever was asked for.
        trainable: initializers that can move, in file order.
        statistics: running means and variances that training updates in place.
        frozen: why each other float initializer stays, by name; single numbers aside.
        refused: nodes without a gradient on the way from a parameter to an output.
        notes: what else was changed, one sentence each.
        grids: of trainable initializers that hold integers, the grid that they are trained and written back on.
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    batch: int
    trainable: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def require(self) -> None:
        """Raise where nothing is left to train.

        Raises:
            ModelError: names the nodes that stand in the way.
        """
        if self.trainable:
            return
        integer = [node for node in self.graph.nodes if node.op in INTEGER_PRODUCTS]
        if integer and not self.refused:
            raise ModelError(
                f"the products of this model run on integers, which carry no gradient: {integer[0].op}",
                where=f"{len(integer)} nodes, {integer[0]} first",
                do="train the float model with distill, then run quantize-dynamic on the result",
            )
        names = ", ".join(f"{r.op} {r.node}" for r in self.refused[:5])
        raise ModelError(
            "nothing in this model can be trained" + (f": no gradient through {names}" if names else ""),
            where=self.refused[0].why if self.refused else "no float weight leads to an output",
            do="cut the model so that these nodes stand before all weights that should be trained"
            if self.refused
            else "give a model whose weights are float, or integers that DequantizeLinear decodes",
        )


def prepare(
    graph: Graph,
    operators: Operators,
    sample_shapes: Mapping[str, tuple[int, ...]] | None = None,
    batch: int = 1,
    *,
    statistics: Statistics = "trained",
    freeze: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Prepared:
    """A copy of a graph in training form; the graph itself is left as it is.

    Args:
        sample_shapes: shape of one sample by input name, first axis 1; for inputs whose sizes the model leaves open.
        batch: samples a step; replaces a first axis that is open or 1.
        statistics: BatchNormalization uses and updates batch statistics, or keeps its stored ones.
        freeze: globs on names of initializers, or of nodes that read them, that do not move.
        also: globs on initializers that move although they look like constants.

    Raises:
        ModelError: the model cannot be brought to a fitting opset, or an input size is unknown.
    """
    for tensor in graph.inputs:
        if tensor.dtype == np.dtype(object):
            raise ModelError(
                "the model reads texts, which cannot be trained on",
                where=f"input {tensor.name}",
                do="cut the model behind what makes numbers of them, and train the rest",
            )
    work, notes = settle.modern(graph)
    settle.lift_constants(work)
    notes += settle.single_precision(work)
    grids = codes.unfold(work, lambda names: settle.computed(work, names))
    bind = settle.input_shapes(work, sample_shapes or {}, batch)
    if is_fixed(work, batch):
        work, bind = _for_batch(work, operators, bind, settle.input_shapes(work, sample_shapes or {}, 1), notes)
    shapes, misjudged = settle.fix_shapes(work, bind)
    theirs = set(work.constants())
    notes += straighten(work, shapes)
    settle.drop_unread(work)
    found = {c: role for c, role in roles(work, operators, shapes).items() if c in theirs}
    chosen, frozen = _choose(work, found, freeze, also)
    codes.round_where_read(work, grids, chosen, shapes)
    notes += settle.fold(work, set(chosen))
    search = _Search(work, operators, shapes, frozenset(chosen), statistics, freeze, frozenset(misjudged))
    refused = search.rewrite()
    trainable = search.trainable()
    for constant in chosen:
        if constant not in trainable:
            frozen[constant.name] = search.why(constant)
    still = search.freeze_idle_statistics(trainable)
    work.sort()
    settle.drop_unread(work)
    settle.restamp(work)
    settle.write_types(work, bind, shapes)
    return Prepared(
        work,
        bind,
        next((shape[0] for shape in bind.values() if shape), batch),
        tuple(c.name for c in trainable),
        tuple(still),
        frozen,
        tuple(refused),
        tuple(notes),
        {name: grid for name, grid in grids.items() if any(c.name == name for c in trainable)},
    )


def _for_batch(
    graph: Graph,
    operators: Operators,
    wanted: dict[str, tuple[int, ...]],
    one: dict[str, tuple[int, ...]],
    notes: list[str],
) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """A model of one sample a call made to take a batch; where that cannot be, it trains on one sample a step."""
    shapes, _ = settle.fix_shapes(graph, one)
    copy = rebatched(graph, operators, shapes, wanted)
    if copy is not None:
        return copy, wanted
    notes.append("the model takes one sample a call, and mixes samples where it is given more: it trains on one a step")
    return graph, one


def _choose(
    graph: Graph, found: Mapping[Constant, str], freeze: Sequence[str], also: Sequence[str]
) -> tuple[list[Constant], dict[str, str]]:
    """The initializers that should move, in file order, and why the others do not."""
    chosen, frozen = [], {}
    readers = _readers(graph)
    for constant in graph.constants():
        role = found.get(constant)
        if role is None:
            continue
        names = [constant.name, *readers.get(constant, ())]
        if _matches(names, freeze):
            frozen[constant.name] = "asked for"
        elif constant.dtype != np.float32:
            frozen[constant.name] = f"it is {constant.dtype.name}, and only float32 is trained"
        elif role == LEARNED or (_matches([constant.name], also) and not role.startswith(STATISTICS)):
            chosen.append(constant)
        elif constant.size > 1:
            frozen[constant.name] = role
    return chosen, frozen


def _readers(graph: Graph) -> dict[Constant, list[str]]:
    """Names of the nodes that read each initializer, itself or a view of it."""
    found: dict[Constant, list[str]] = {}
    for tensor, root in roots_of(graph).items():
        found.setdefault(root, []).extend(node.name for node in tensor.consumers)
    return found


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


class _Search:
    """Walks from the outputs back to the parameters and brings what lies between into training form."""

    def __init__(
        self,
        graph: Graph,
        operators: Operators,
        shapes: Shapes,
        chosen: frozenset[Constant],
        statistics: Statistics,
        freeze: Sequence[str],
        misjudged: frozenset[Node] = frozenset(),
    ) -> None:
        self.misjudged = misjudged
        self.graph, self.operators, self.shapes, self.chosen = graph, operators, shapes, chosen
        self.statistics, self.freeze = statistics, freeze
        self.pool = Pool(graph)
        self.blocked: dict[Tensor, Refusal] = {}
        self.wanted: set[Tensor] = set()

    def rewrite(self) -> list[Refusal]:
        """Rewrite all nodes that a gradient must pass; gives those that it cannot pass."""
        moving = self.moving(self.chosen)
        self.wanted = {t for t in self.graph.outputs if t in moving}
        refused: list[Refusal] = []
        for node in list(reversed(self.graph.nodes)):
            inputs = [t for t in reads(node) if t in moving]
            if inputs and not node.domain and node.op in STEPS:
                self._bring(node)  # what reads it gets no gradient, and the runtime must see that
                continue
            if not inputs or (not node.bodies and not any(t in moving for t in node.outputs)):
                if node in self.misjudged:
                    self._bring(node)  # the training runtime believes in the sizes that it infers
                continue
            blocked = next((self.blocked[t] for t in node.outputs if t in self.blocked), None)
            if blocked is None and not node.bodies and self.wanted.isdisjoint(node.outputs):
                continue
            reason = self._bring(node) if blocked is None else None
            if reason is not None:
                blocked = self._refuse(node, reason, moving)
                refused.append(blocked)
            if blocked is None:
                self.wanted.update(inputs)
            else:
                self.blocked.update((t, blocked) for t in inputs if t not in self.blocked)
        return refused[::-1]

    def moving(self, sources: frozenset[Constant]) -> set[Tensor]:
        """Float tensors that change when the sources do: integers and booleans carry no gradient."""
        found: set[Tensor] = set(sources)
        for node in self.graph.nodes:
            if any(t in found for t in reads(node)) and (node.domain or node.op not in STEPS):
                found.update(t for t in node.outputs if t.name and is_float(self.shapes.dtype(t)))
        return found

    def trainable(self) -> list[Constant]:
        """The parameters that a whole gradient reaches, in file order."""
        return [c for c in self.graph.constants() if c in self.chosen and c in self.wanted and c not in self.blocked]

    def why(self, constant: Constant) -> str:
        """Why a parameter gets no gradient."""
        refusal = self.blocked.get(constant)
        if refusal is None:
            return "no gradient leads from an output to it"
        return f"it lies behind {refusal.op} {refusal.node}, which has no gradient"

    def freeze_idle_statistics(self, trainable: Sequence[Constant]) -> list[str]:
        """Let BatchNormalization that is not trained use its stored statistics; names the others' statistics."""
        moving = self.moving(frozenset(trainable))
        live: list[str] = []
        for node in list(self.graph.nodes):
            if node.op != "BatchNormalization" or node.domain:
                continue
            vectors = [node.constant(port) for port in (3, 4)]
            names = [c.name for c in vectors if c is not None]
            asked = _matches([node.name, *names], self.freeze)
            if self.statistics == "trained" and not asked and len(names) == 2 and moving.intersection(node.inputs):
                live.extend(names)
            else:
                rewrite(self.graph, node, frozen_batch_norm, self.shapes, self.pool)
        return list(dict.fromkeys(live))

    def _bring(self, node: Node) -> str | None:
        """Rewrite one node; a reason where that is not possible."""
        if node.bodies:
            return "no gradient flows through branches and loops"
        rule = self._rule(node)
        if rule is None:
            return "it has no gradient in the training runtime, and no form composed of operators that have one"
        try:
            rewrite(self.graph, node, rule, self.shapes, self.pool, frozenset(self.chosen))
        except CannotRewriteError as error:
            return str(error)
        return None

    def _rule(self, node: Node) -> Rewrite | None:
        if node.bodies or self.graph.is_function(node):
            return None
        return rule_of(node, self.operators)

    def _refuse(self, node: Node, reason: str, moving: set[Tensor]) -> Refusal:
        behind: set[Tensor] = {t for t in reads(node) if t in moving}
        for other in reversed(self.graph.nodes):
            if not behind.isdisjoint(other.outputs):
                behind.update(t for t in reads(other) if t in moving)
        names = tuple(c.name for c in self.graph.constants() if c in self.chosen and c in behind)
        op = node.op if is_onnx(node.domain) else f"{node.domain}.{node.op}"
        return Refusal(node.name, op, reason, names)
