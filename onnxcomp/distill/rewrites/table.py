"""Which rule gives an operator its training form? One table; a record of `OpFacts` with a `gradient` comes first."""

from __future__ import annotations

from onnxcomp.distill.rewrites import (
    activations,
    attention,
    linear,
    microsoft,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reductions,
    resize,
)
from onnxcomp.graph.ir import Node
from onnxcomp.graph.rewriting import Rewrite
from onnxcomp.ops.facts import Operators

MICROSOFT = "com.microsoft"
STEPS = frozenset({"Ceil", "Floor", "Hardmax", "Sign"})  # their derivative is zero: nothing before them learns by them

RULES: dict[tuple[str, str], Rewrite] = {
    **{
        ("", op): rule
        for family in (activations, attention, linear, movement, normalization, pooling, recurrent, reductions, resize)
        for op, rule in family.RULES.items()
    },
    **{
        (MICROSOFT, op): rule
        for family in (attention, microsoft, quantization)
        for op, rule in family.MICROSOFT_RULES.items()
    },
}


def rule_of(node: Node, operators: Operators) -> Rewrite | None:
    """The rule of a node's operator; None where its gradient is neither known nor composed."""
    facts = operators.facts(node)
    return facts.gradient or RULES.get((facts.domain, facts.op))
