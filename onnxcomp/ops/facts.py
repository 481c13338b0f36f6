"""The one look-up that finds what is known about an operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import ONNX_DOMAIN, Constant, Node, is_onnx
from onnxcomp.ops.record import OpFacts, Role, Weight, no_macs, no_weights, volume
from onnxcomp.ops.tables import RECORDS

__all__ = [
    "ENTRY_POINT_GROUP",
    "OpFacts",
    "Operators",
    "Role",
    "Weight",
    "installed",
    "load_operators",
    "no_macs",
    "no_weights",
    "volume",
]

ENTRY_POINT_GROUP = "onnxcomp.operators"


class Operators:
    """The table of operator facts; third parties add to it by entry point."""

    def __init__(self, records: Iterable[OpFacts]) -> None:
        self._table: dict[tuple[str, str], OpFacts] = {}
        for record in records:
            self.add(record)

    def add(self, record: OpFacts) -> None:
        """Add one record.

        Raises:
            UsageError: the table has one for this operator.
        """
        key = (record.domain, record.op)
        if key in self._table:
            raise UsageError(
                f"two records for operator {record.domain or 'ai.onnx'}:{record.op}",
                where=f"entry points of {ENTRY_POINT_GROUP}",
                do="uninstall one of the packages that define it",
            )
        self._table[key] = record

    def facts(self, node: Node) -> OpFacts:
        """The record of a node's operator; one with `known` False where there is none."""
        return self.of(ONNX_DOMAIN if is_onnx(node.domain) else node.domain, node.op)

    def of(self, domain: str, op: str) -> OpFacts:
        """The record of an operator; one with `known` False where there is none."""
        return self._table.get((domain, op)) or OpFacts(op, domain, known=False)

    def has(self, domain: str, op: str) -> bool:
        """Whether there is a record for an operator."""
        return (domain, op) in self._table

    def weights(self, node: Node) -> list[tuple[Weight, Constant]]:
        """The weights of a node that are initializers, with where they stand."""
        found = []
        for weight in self.facts(node).weights(node):
            constant = node.constant(weight.port)
            if constant is not None:
                found.append((weight, constant))
        return found

    def __iter__(self) -> Iterator[OpFacts]:
        return iter(self._table.values())


@cache
def installed() -> Operators:
    """The table of this process, for where no other is given."""
    return load_operators()


def load_operators() -> Operators:
    """The built-in records and those of installed packages."""
    operators = Operators(RECORDS)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        loaded: Any = entry.load()
        for record in loaded if isinstance(loaded, list | tuple) else [loaded]:
            operators.add(record)
    return operators
