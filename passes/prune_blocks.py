"""prune-blocks: whole residual branches leave the graph, and the rest makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxcomp.errors import UsageError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.branches import Branch, branches, innermost
from onnxcomp.graph.cost import parameter_elements
from onnxcomp.graph.ir import Constant, Graph, Node
from onnxcomp.layers.layer import add_biases, drop_zero_biases
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, Range, option
from onnxcomp.passes.structure.allocate import EXPONENT
from onnxcomp.passes.structure.blocks import branch_errors, drop_all, without
from onnxcomp.passes.structure.solving import solve_again, to_solve, whole
from onnxcomp.passes.structure.timing import Clock


@dataclass(frozen=True)
class PruneBlocks(Pass):
    """Residual branches whose removal costs least are gone, their streams run through.

    A branch is whatever becomes dead where one of two equally shaped summands takes the place of their sum. What its
    removal costs is measured: the error of the sum as a share of its energy, after the layer that makes the stream has
    been solved again to come as near to it as it can. Branches leave by error against saving; then that layer and all
    behind are solved again in graph order, each against the original's values.

    Give one of count, macs, params and latency.
    """

    name: ClassVar[str] = "prune-blocks"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    count: int | None = option(None, "branches to remove", minimum=1, search=Range(1, 3), one_of="target")
    macs: float | None = option(
        None,
        "share of multiply-accumulates kept at most",
        above=0.0,
        below=1.0,
        search=Range(0.6, 0.95),
        one_of="target",
    )
    params: float | None = option(None, "share of parameters kept at most", above=0.0, below=1.0)
    latency: float | None = option(None, "share of the time kept at most, measured here", above=0.0, below=1.0)
    max_error: float = option(
        0.5, "branches that would cost more of their sum's energy than this stay", above=0.0, maximum=1.0
    )
    compensate: bool = option(True, "solve the remaining weights again")
    damping: float = option(1e-3, "ridge of the refit, as a share of the mean diagonal of E[x x^T]", above=0.0)

    def validate(self) -> None:
        """Exactly one target."""
        given = [t for t in (self.count, self.macs, self.params, self.latency) if t is not None]
        if len(given) != 1:
            raise UsageError(
                f"{self.name}: give one of count, macs, params and latency",
                where=f"pass {self.name}",
                do="for example prune-blocks{count=1}",
            )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Measure, choose, drop, make good."""
        outcome = Outcome()
        added = add_biases(graph, context.operators) if self.compensate else []
        found = self._selected(graph, context, outcome)
        errors = branch_errors(graph, found, context, self.damping) if found else {}
        for branch in found:
            if errors[branch.name] > self.max_error:
                outcome.skip(branch.name, f"its removal would cost {errors[branch.name]:.0%} of its sum")
        found = [branch for branch in found if errors[branch.name] <= self.max_error]
        chosen = self._choose(graph, found, errors, context, outcome)
        if not chosen:
            drop_zero_biases(added)
            outcome.summary = "no branch leaves: none is cheap enough, or the target is met already"
            return outcome
        for branch in chosen:
            outcome.change(
                branch.name, f"{len(branch.nodes)} nodes left; they gave {errors[branch.name]:.2%} of its sum"
            )
        reference = graph.clone()
        touched, aims = drop_all(graph, chosen)
        if self.compensate:
            uses = {use: whole(use) for use in to_solve(graph, touched, context)}
            solve_again(graph, reference, uses, context, self.damping, aims).report(outcome)
        drop_zero_biases(added)
        outcome.summary = f"{len(chosen)} of {len(found)} branches left"
        return outcome

    def _selected(self, graph: Graph, context: PassContext, outcome: Outcome) -> list[Branch]:
        wanted = self.selects(graph)
        found = []
        for branch in innermost(branches(graph, context.operators, context.sample_shapes)):
            held = [node for node in branch.nodes if context.operators.weights(node)]
            if all(wanted(node) for node in (held if self.include else [branch.add, *held])):
                found.append(branch)
            else:
                outcome.skip(branch.name, "not selected by include and exclude")
        return found

    def _choose(
        self, graph: Graph, found: Sequence[Branch], errors: dict[str, float], context: PassContext, outcome: Outcome
    ) -> list[Branch]:
        """The branches that leave, the cheapest for what they save first."""
        if self.count is not None:
            return sorted(found, key=lambda branch: errors[branch.name])[: self.count]
        clock = Clock(graph, context) if self.latency is not None else None
        cost = self._costs(graph, context, clock)
        most = next(t for t in (self.macs, self.params, self.latency) if t is not None) * cost(graph.nodes)
        saving = {branch.name: cost([branch.add, *branch.nodes]) for branch in found}
        cheap = [branch for branch in found if saving[branch.name] > 0]
        cheap.sort(key=lambda one: errors[one.name] ** EXPONENT / saving[one.name])
        chosen: list[Branch] = []
        left = cost(graph.nodes)
        for branch in cheap:
            if left <= most:
                break
            chosen.append(branch)
            left -= saving[branch.name]
            if clock is not None:  # node times only say which; whether it is enough is measured
                left = clock.share(without(graph, [b.name for b in chosen], context)) * cost(graph.nodes)
        if left > most:
            share = f"{left / cost(graph.nodes):.2f}" if chosen else ""
            outcome.missed = f"{self._target_words()} was not reached: {share or 'the model'} " + (
                "is the least without branches that cost too much" if chosen else "stays as it is"
            )
        return chosen

    def _target_words(self) -> str:
        name = next(name for name in ("macs", "params", "latency") if getattr(self, name) is not None)
        return f"{name}={getattr(self, name):g}"

    def _costs(self, graph: Graph, context: PassContext, clock: Clock | None) -> Callable[[Sequence[Node]], float]:
        """What some nodes cost, in the unit of the target."""
        if clock is not None:
            times = clock.nodes(graph)
            return lambda nodes: sum(times.get(node.name, 0.0) for node in nodes)
        if self.macs is not None:
            shapes = shape_tools.infer(graph, shape_tools.one_sample(graph, context.sample_shapes))
            return lambda nodes: sum(context.operators.facts(node).macs(node, shapes) for node in nodes)
        return lambda nodes: _parameters(nodes, context)


def _parameters(nodes: Sequence[Node], context: PassContext) -> float:
    """Weight elements that only these nodes hold."""
    inside = set(nodes)
    counts: dict[Constant, int] = {}
    for node in nodes:
        for port, tensor in enumerate(node.inputs):
            if isinstance(tensor, Constant) and inside.issuperset(tensor.consumers):
                counts[tensor] = parameter_elements(node, port, tensor, context.operators)
    return sum(counts.values())
