"""Which rule has an operator? One table; a record of `OpFacts` with a `coupling` rule of its own comes first."""

from __future__ import annotations

from onnxcomp.graph.coupling import elementwise, linear, movement, quantization, reshape
from onnxcomp.graph.coupling.flow import Rule
from onnxcomp.graph.ir import Node
from onnxcomp.ops.facts import Operators

MICROSOFT = "com.microsoft"

RULES: dict[tuple[str, str], Rule] = {
    **{
        ("", op): rule
        for family in (elementwise, linear, movement, reshape, quantization)
        for op, rule in family.RULES.items()
    },
    **{(MICROSOFT, op): rule for family in (elementwise, linear) for op, rule in family.MICROSOFT_RULES.items()},
    **{(MICROSOFT, op): rule for op, rule in quantization.RULES.items()},
}


def rule_of(node: Node, operators: Operators) -> Rule | None:
    """The rule of a node's operator; None where there is none."""
    facts = operators.facts(node)
    return facts.coupling or RULES.get((facts.domain, facts.op))
