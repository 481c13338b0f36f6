"""What did a trial measure to? Plain figures of one spec string, that travel between processes as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnxcomp.results import finite


@dataclass(frozen=True)
class Measured:
    """What one spec string comes to on a study's selection samples.

    Attributes:
        spec: the passes.
        sound: whether the result keeps the budget, or where none is given the default run's own limits.
        better: whether it is an improvement by the study's objective.
        why: why it is not sound or not better, in words; empty where it is both.
        bytes: of the file and its external data; 0 where nothing could be measured.
        macs: multiply-accumulates of one sample.
        latency_ms: median of one sample; None where it was not timed.
        latency_ratio: time after/before, measured interleaved; None where it was not timed.
        accuracy: the metric; None where there is none that can be taken on a part of the data.
        drop: how much worse than the source's, absolute.
        sqnr_db: worst signal-to-noise ratio of an output; None where outputs are equal or cannot be compared.
        agreement: lowest share of equal decisions, 0 to 1; None where nothing can be told.
        decided: samples that share was taken of; None where it is not known.
        changes: how many things the passes changed; 0 is the source under another name.
        seconds: that the trial took.
    """

    spec: str
    sound: bool
    better: bool
    why: str = ""
    bytes: int = 0
    macs: int = 0
    latency_ms: float | None = None
    latency_ratio: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    decided: int | None = None
    changes: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; NaN and infinities become null."""
        found: dict[str, Any] = finite(asdict(self))
        return found

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Measured:
        """From what `to_json` gave; unknown keys are passed over.

        Raises:
            TypeError: keys without a default are missing.
        """
        return cls(**{key: value for key, value in data.items() if key in cls.__dataclass_fields__})
