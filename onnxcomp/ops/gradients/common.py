"""What do many rules share? Small compositions of operators whose gradients are right."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcomp.graph.ir import Tensor
from onnxcomp.graph.rewriting import Replacement, Site


def keep(site: Site) -> Replacement | None:
    """Its own gradient is right."""
    return None


def positive(axes: Iterable[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    return [int(a) % rank for a in axes]


def chain(site: Site, kind: str, operands: list[Tensor]) -> Tensor:
    """operands[0] kind operands[1] kind … ; broadcasting pairwise."""
    result = operands[0]
    for operand in operands[1:]:
        result = site.op(kind, result, operand)
    return result


def negative_part(site: Site, x: Tensor) -> Tensor:
    """min(x, 0), with gradient 1 below zero."""
    return site.op("Neg", site.op("Relu", site.op("Neg", x)))  # type: ignore[no-any-return]
