"""Which form of an operator does the training runtime train? That of its record; Resize's asks the runtime itself."""

from __future__ import annotations

from onnxcomp.distill.resize import resize
from onnxcomp.graph.ir import Node
from onnxcomp.graph.rewriting import Rewrite
from onnxcomp.ops.facts import Operators

STEPS = frozenset({"Ceil", "Floor", "Hardmax", "Sign"})  # their derivative is zero: nothing before them learns by them
ABOVE: dict[tuple[str, str], Rewrite] = {("", "Resize"): resize}  # forms that need more than the graph


def rule_of(node: Node, operators: Operators) -> Rewrite | None:
    """The rule of a node's operator; None where its gradient is neither known nor composed."""
    facts = operators.facts(node)
    return facts.gradient or ABOVE.get((facts.domain, facts.op))


def rules(operators: Operators) -> dict[tuple[str, str], Rewrite]:
    """All forms by domain and operator."""
    found = {(facts.domain, facts.op): facts.gradient for facts in operators if facts.gradient is not None}
    return {**found, **ABOVE}
