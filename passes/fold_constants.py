"""What can be computed before the model runs? Constant nodes, shape arithmetic and constant branches become values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.inline import inline_branch
from onnxcomp.graph.ir import (
    Array,
    Constant,
    Graph,
    Node,
    Stored,
    Tensor,
    Variable,
    is_onnx,
    stored_bytes,
)
from onnxcomp.graph.literals import constant_value
from onnxcomp.graph.noops import draws
from onnxcomp.graph.partial import certain_values
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import until_stable
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, option
from onnxcomp.passes.folding import Plan, independent

FEW_ELEMENTS = 64  # below, a widening Cast is arithmetic; above, it is how a weight is stored small


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Everything that does not depend on the inputs is computed once and stored as an initializer.

    Constant nodes become initializers. Nodes whose inputs are all known are run by ONNX Runtime, unoptimized, in one
    session, so results are bit-equal to what the model would compute. Shape, Size and the arithmetic on them are
    replaced where sizes follow from the inputs' fixed dimensions. An If whose condition is known becomes the nodes of
    its branch. What several nodes compute likewise, in branches of an If too, is stored once. Weights that are stored
    small on purpose (behind DequantizeLinear or a widening Cast) stay as they are.
    """

    name: ClassVar[str] = "fold-constants"
    guarantee: ClassVar[Guarantee] = Guarantee.EXACT

    max_bytes: int = option(65536, "bytes by which one folded group of nodes may make the file larger", minimum=0)
    unpack: bool = option(
        False,
        "take weights out of a smaller type behind a Cast, too: for passes that see floats only and store them small",
    )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Fold until nothing changes."""
        outcome = Outcome()
        folder = _Folder(self, graph, context, outcome)
        until_stable(folder.constant_nodes, folder.branches, folder.shape_arithmetic, folder.computed)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} nodes became initializers, or parts of the graph around them"
        still = set(graph.walk())
        for node, why in folder.kept.items():
            if node in still:
                outcome.skip(node, why)
        return outcome


class _Folder:
    """One run of the pass over one graph."""

    def __init__(self, item: FoldConstants, graph: Graph, context: PassContext, outcome: Outcome) -> None:
        self.item = item
        self.graph = graph
        self.context = context
        self.outcome = outcome
        self.wanted = item.selects(graph)
        self.kept: dict[Node, str] = {}
        self.replaceable = set(graph.kept_inputs)  # initializers that a caller may feed
        graph.sort()

    # -- Constant nodes ----------------------------------------------------------------------------------------

    def constant_nodes(self) -> int:
        """Constant nodes become initializers; one that makes an output of its graph stays."""
        gone = []
        outputs = self._outputs()
        for owner, node in self._nodes():
            if node.op != "Constant" or not is_onnx(node.domain) or not self.wanted(node):
                continue
            value = None if node.outputs[0] in outputs else constant_value(node)
            if value is not None:
                self._replace(owner, node.outputs[0], value, node)
                self.outcome.change(node, "became an initializer")
                gone.append(node)
        self.graph.remove_nodes(gone)
        return len(gone) + self._aliases()

    def _aliases(self) -> int:
        """Readers of an Identity of an initializer read the initializer."""
        outputs = self._outputs()
        gone = []
        for _, node in self._nodes():
            if node.op != "Identity" or not is_onnx(node.domain) or not self.wanted(node):
                continue
            source = node.constant(0)
            if source is not None and node.outputs[0] not in outputs and source not in self.replaceable:
                self.graph.replace_uses(node.outputs[0], source)
                self.outcome.change(node, f"another name of {source.name}")
                gone.append(node)
        self.graph.remove_nodes(gone)
        return len(gone)

    # -- If ----------------------------------------------------------------------------------------------------

    def branches(self) -> int:
        """An If with a constant condition becomes the nodes of its branch."""
        count = 0
        while (found := next(self._decided(), None)) is not None:
            owner, node, condition = found
            branch = node.attrs["then_branch" if condition else "else_branch"]
            self.outcome.change(node, f"its condition is always {condition}: replaced by the branch")
            inline_branch(self.graph, owner, node, branch)
            count += 1
        return count

    def _decided(self) -> Iterator[tuple[Graph, Node, bool]]:
        for owner, node in self._nodes():
            if node.op == "If" and is_onnx(node.domain) and self.wanted(node):
                condition = node.constant(0)
                if condition is not None and condition.size == 1 and condition not in self.replaceable:
                    yield owner, node, bool(condition.values.reshape(-1)[0])

    # -- shapes ------------------------------------------------------------------------------------------------

    def shape_arithmetic(self) -> int:
        """What follows from fixed dimensions alone."""
        operators = self.graph.operators()
        if "Shape" not in operators and "Size" not in operators:
            return 0
        values = certain_values(self.graph, infer(self.graph, declared=False))
        outputs = self._outputs()
        gone = []
        for owner, node in self._nodes():
            tensor = node.outputs[0] if node.outputs else None
            if tensor not in values or tensor in outputs or not self.wanted(node):
                continue
            if not any(isinstance(t, Variable) and t.name for t in node.inputs):
                continue  # ONNX Runtime computes it
            self._replace(owner, tensor, np.asarray(values[tensor]), node)
            self.outcome.change(node, f"always {values[tensor].tolist()}")
            gone.append(node)
        self.graph.remove_nodes(gone)
        return len(gone)

    # -- everything else ---------------------------------------------------------------------------------------

    def computed(self) -> int:
        """Run the nodes that depend on initializers only, and keep what others read of them."""
        candidates = self._candidates()
        if not candidates:
            return 0
        owners = {node: owner for owner, node in self._nodes() if node in candidates}
        plan = Plan(candidates, self._outputs(), self.graph, by_elements=self.item.unpack)
        chosen = plan.affordable(self.item.max_bytes, self.kept)
        values: dict[Tensor, Array] = {}
        done = self._run(plan, chosen, values)
        inside, made = set(done), dict[Tensor, Constant]()
        for node in done:
            left = {t: values[t] for t in node.outputs if t in values and plan.leaves(t, inside)}
            for tensor, value in left.items():
                same = made.get(plan.first(tensor), value)
                constant = self._replace(owners[node], tensor, same, node, keep_output=tensor in plan.outputs)
                made.setdefault(plan.first(tensor), constant)
            self.outcome.change(node, f"computed once ({_shown(left.values())})" if left else "computed once")
        self.graph.remove_nodes(done)
        return len(done)

    def _candidates(self) -> list[Node]:
        """Nodes all of whose inputs are known, or will be when earlier candidates have run; in graph order."""
        fixed: set[Tensor] = set()
        found = []
        outputs = self._outputs()
        for _, node in self._nodes():
            inputs = [t for t in node.inputs if t.name]
            if not all((isinstance(t, Constant) and t not in self.replaceable) or t in fixed for t in inputs):
                continue
            if not self.wanted(node) or node in self.kept:
                continue
            if node.op in ("Identity", "Constant") and any(t in outputs for t in node.outputs):
                continue
            why = self._barred(node)
            if why:
                self.kept[node] = why
                continue
            found.append(node)
            fixed.update(node.outputs)
        return found

    def _barred(self, node: Node) -> str:
        """Why a node with known inputs is left in the graph; empty where it may be computed."""
        if not is_onnx(node.domain):
            return f"of the domain {node.domain}: only standard operators are computed ahead"
        if draws(node, self.context.operators, self.graph.opset):
            return "draws random numbers"
        if node.bodies:
            return "has a body"
        if node.op == "DequantizeLinear":
            return "a weight stored as integers on purpose"
        if node.op.startswith(("Sequence", "Optional", "SplitToSequence")):
            return "makes a sequence or an optional, which no initializer can hold"
        if node.op == "Constant":
            return "its value has a form that no initializer can hold"
        if _unpacks(node) and not (self.item.unpack and node.op != "BitShift"):
            return "a weight stored in a smaller type on purpose"
        return ""

    def _run(self, plan: Plan, nodes: list[Node], values: dict[Tensor, Array]) -> list[Node]:
        """Compute nodes, add what others read of them to `values`, and return those that could be computed.

        When ONNX Runtime refuses, each half is tried alone, down to the nodes that it has no kernel for.
        """
        if not nodes:
            return []
        try:
            plan.compute(nodes, values, self.context.threads)
        except (ModelError, DataError) as error:
            if len(nodes) == 1:
                return self._run_fed(plan, nodes, values, error)
            half = len(nodes) // 2
            done = self._run(plan, nodes[:half], values)
            failed = {t for node in set(nodes[:half]) - set(done) for t in node.outputs}
            return done + self._run(plan, independent(nodes[half:], failed), values)
        return nodes

    def _run_fed(
        self, plan: Plan, nodes: list[Node], values: dict[Tensor, Array], error: ModelError | DataError
    ) -> list[Node]:
        """A last try, with every value fed: ONNX Runtime checks values that it knows ahead more strictly."""
        try:
            plan.compute(nodes, values, self.context.threads, inside=0)
        except (ModelError, DataError):
            self.kept[nodes[0]] = f"could not be computed ahead: {error.what}"
            return []
        return nodes

    # -- shared ------------------------------------------------------------------------------------------------

    def _nodes(self) -> Iterator[tuple[Graph, Node]]:
        """Every node with the graph or body that holds it, outer nodes before those in their bodies."""
        yield from _with_owner(self.graph)

    def _outputs(self) -> set[Tensor]:
        return {t for scope in self.graph.scopes() for t in scope.outputs}

    def _replace(
        self,
        owner: Graph,
        tensor: Variable,
        value: Array | Stored | Constant,
        node: Node,
        *,
        keep_output: bool = False,
    ) -> Constant:
        """Let the readers of a tensor read an initializer of the main graph; its maker is removed by the caller."""
        reuse = owner is self.graph and not keep_output
        name = tensor.name if reuse else self.graph.unique_name(f"{tensor.name}_folded" if keep_output else tensor.name)
        constant = value if isinstance(value, Constant) else Constant(name, value)
        self.graph.replace_uses(tensor, constant)
        if keep_output:
            node.outputs[list(node.outputs).index(tensor)] = Variable("")
            at = owner.nodes.index(node)
            owner.nodes.insert(
                at, Node("Identity", self.graph.unique_name(f"{node.name}_value"), {}, [constant], [tensor])
            )
        return constant


def _with_owner(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    for node in list(graph.nodes):
        yield graph, node
        for body in node.bodies:
            yield from _with_owner(body)


def _unpacks(node: Node) -> bool:
    """Whether a Cast or BitShift turns a stored tensor of more than a few elements into something larger."""
    source = node.constant(0) if node.op in ("Cast", "CastLike", "BitShift") else None
    if source is None or source.size <= FEW_ELEMENTS:
        return False
    if node.op == "BitShift":
        return True
    to = node.inputs[1].dtype if node.op == "CastLike" else tensor_dtype_to_np_dtype(int(node.attrs.get("to", 0)))
    return to is not None and stored_bytes(source.size, to) > source.nbytes


def _shown(values: Iterable[Array]) -> str:
    return ", ".join(f"{value.dtype}{list(value.shape)}" for value in values)
