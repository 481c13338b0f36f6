"""What is known of a search's trials? One row each, which of them may be taken, the best, and the front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxcomp.report.tables import metric_text
from onnxcomp.search.space import Point
from onnxcomp.verify.budget import ROUNDING, Budget
from onnxcomp.work.trial import Measured

Objective = Literal["latency", "size", "macs"]
State = Literal["running", "measured", "stopped", "failed"]


@dataclass(frozen=True)
class Source:
    """What trials are compared with: bytes and multiply-accumulates of the model, milliseconds where it was timed.

    `metric`, `higher_is_better`: what the metric is called, and its direction.
    """

    bytes: int
    macs: int
    latency_ms: float | None = None
    metric: str = "metric"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        state: running; measured in full; stopped after a cheap look; failed.
        measured: its figures; those of a cheap look where it was stopped.
        why: why it is not measured in full, or not sound, in words.
        seconds: that it took.
    """

    number: int
    spec: str
    point: Point
    state: State = "running"
    measured: Measured | None = None
    why: str = ""
    seconds: float = 0.0
    owner: str = field(default="", compare=False)

    @property
    def sound(self) -> bool:
        """Whether it was measured in full and keeps the budget."""
        return self.state == "measured" and self.measured is not None and self.measured.sound

    @property
    def told(self) -> bool:
        """Whether it was measured in full, sound or not."""
        return self.state == "measured" and self.measured is not None and self.measured.bytes > 0


@dataclass(frozen=True)
class Judge:
    """How rows stand to each other: by one objective, under one budget, against one source."""

    objective: Objective
    budget: Budget
    source: Source

    def score(self, found: Measured) -> float:
        """Share of the source's size, work or time; lower is better."""
        if self.objective == "latency" and found.latency_ratio is not None:
            return found.latency_ratio
        if self.objective == "macs":
            return found.macs / max(1, self.source.macs)
        return found.bytes / max(1, self.source.bytes)

    def loss(self, found: Measured) -> float:
        """How much worse it is: the drop of the metric; without one the noise's share of the signal's amplitude."""
        if found.drop is not None:
            return found.drop
        if found.accuracy is not None or found.sqnr_db is None:
            return 0.0
        return 10 ** (-found.sqnr_db / 20)

    def metric_words(self, drop: float) -> str:
        """What became of the metric of a trial that is so much worse."""
        return metric_text(self.source.metric, drop, higher_is_better=self.source.higher_is_better)

    def violation(self, found: Measured) -> float:
        """By how much it misses the budget; 0 where it is sound."""
        if found.sound:
            return 0.0
        if self.loses(found) and found.drop is not None and self.budget.max_drop is not None:
            return found.drop - self.budget.max_drop
        return max(self.loss(found), 1e-3)

    def loses(self, found: Measured) -> bool:
        """Whether the metric falls by more than the budget allows."""
        limit = self.budget.max_drop
        return limit is not None and found.drop is not None and found.drop > limit + ROUNDING

    def order(self, row: Row) -> tuple[float, ...]:
        """What rows are sorted by, the best first: sound ones by the objective, others by what they miss."""
        found = row.measured
        if found is None or found.bytes == 0:
            return (2.0, 0.0, 0.0, 0.0, row.number)
        missed = self.violation(found) if row.state == "measured" else math.inf
        return (float(not row.sound), missed, self.score(found), self.loss(found), row.number)

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The best sound row; None where there is none."""
        return min((row for row in rows if row.sound), key=self.order, default=None)

    def nearest(self, rows: Iterable[Row]) -> Row | None:
        """The row that misses the budget by least; None where nothing was measured."""
        return min((row for row in rows if row.told), key=self.order, default=None)

    def front(self, rows: Iterable[Row], objective: Objective | None = None) -> list[Row]:
        """The rows that no other beats in both loss and objective, smallest score first; of equal ones the first."""
        judge = self if objective is None else Judge(objective, self.budget, self.source)
        measured = [row for row in rows if row.told]
        keys = {row.number: (judge.score(row.measured), judge.loss(row.measured)) for row in measured if row.measured}
        front: list[Row] = []
        least = math.inf
        for row in sorted(measured, key=lambda row: (*keys[row.number], row.number)):
            if keys[row.number][1] < least:
                least = keys[row.number][1]
                front.append(row)
        return front

    def latency_ms(self, found: Measured) -> float | None:
        """Milliseconds on the scale of one source: times of other moments are told by their ratio to it."""
        if found.latency_ratio is None or self.source.latency_ms is None:
            return found.latency_ms
        return found.latency_ratio * self.source.latency_ms


def to_json(rows: Sequence[Row], judge: Judge) -> dict[str, Any]:
    """What `--json` writes."""
    best = judge.best(rows)
    return {
        "trials": [_trial(row, judge) for row in rows if row.state != "running"],
        "front": [row.number for row in judge.front(rows)],
        "best": None if best is None else best.number,
    }


def _trial(row: Row, judge: Judge) -> dict[str, Any]:
    found = row.measured
    known = found is not None and found.bytes > 0
    latency = judge.latency_ms(found) if found is not None and known else None
    return {
        "number": row.number,
        "spec": row.spec,
        "sound": row.sound,
        "bytes": found.bytes if found is not None and known else None,
        "macs": found.macs if found is not None and known else None,
        "latency_ms": None if latency is None else round(latency, 6),
        "accuracy": found.accuracy if found is not None and known else None,
        "sqnr_db": found.sqnr_db if found is not None and known else None,
        "seconds": round(row.seconds, 3),
    }
