"""What do figures over samples that are seen in an order tell, as plain data: drift over steps, certainty so far?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drift:
    """How the SQNR of an output of a stateful model falls over the steps of its sequences, each model having its own
    states: over the first quarter of the steps, and over the last."""

    output: str
    sequences: int
    steps: int
    first_db: float
    last_db: float


@dataclass(frozen=True)
class Certainty:
    """How sure figures of some of the samples alone are, which were seen in a seeded order until limits were decided.

    `available`: samples there were; `looks`: how often it was asked whether they decide; `sqnr_db`, `agreement` and
    `drop`: where each figure lies, with a `confidence` that holds at all looks together; None where none can tell.
    """

    available: int
    confidence: float
    looks: int
    sqnr_db: tuple[float, float] | None = None
    agreement: tuple[float, float] | None = None
    drop: tuple[float, float] | None = None
