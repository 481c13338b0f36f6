"""What stands in for a study in tests of the search: a pool that answers at once, by a formula over the spec."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.runtime.progress import SILENT
from onnxcomp.search.ledger import Ledger, open_ledger
from onnxcomp.search.rows import Judge, Objective, Source
from onnxcomp.search.run import _Run
from onnxcomp.search.space import Space, space_of
from onnxcomp.search.strategies import strategy
from onnxcomp.verify.budget import Budget
from onnxcomp.work.trial import Measured

BYTES, MACS = 1_000_000, 5_000_000
LIMIT = 0.02


def measured(spec: str, limit: float = LIMIT) -> Measured:
    """Figures that follow from the spec alone: each pass makes smaller and costs, pruning more the more it takes."""
    size, time, macs, drop = 1.0, 1.0, 1.0, 0.0
    for item in Pipeline.parse(spec).passes:
        kept = next((k for n in ("macs", "params", "latency") if (k := getattr(item, n, None)) is not None), None)
        if item.name.startswith("prune") and kept is not None:
            size, time, macs, drop = size * kept, time * kept, macs * kept, drop + 0.03 * (1 - kept) ** 2
        elif item.name == "prune-blocks":
            count: int = item.count  # type: ignore[attr-defined]
            time, macs, drop = time * (1 - 0.1 * count), macs * (1 - 0.1 * count), drop + 0.004 * count**2
        elif item.name == "distill" and item.bits:  # type: ignore[attr-defined]
            size, drop = size * item.bits / 32, 0.5 * drop + 0.01 / item.bits  # type: ignore[attr-defined]
        elif item.name == "distill":
            drop *= 0.3
        elif item.name == "compact":
            size *= 0.9
        elif item.name == "quantize-weights":
            size, drop = size * item.bits / 32, drop + 0.04 / item.bits  # type: ignore[attr-defined]
        elif item.name == "quantize-qdq":
            size, time, drop = size * 0.26, time * 0.5, drop + 0.002
    noise = int(hashlib.sha256(spec.encode()).hexdigest()[:6], 16) / 0xFFFFFF * 1e-3
    drop += noise
    return Measured(
        spec,
        sound=drop <= limit,
        better=size < 0.99,
        bytes=round(BYTES * size),
        macs=round(MACS * macs),
        latency_ms=2.0 * time,
        latency_ratio=time,
        accuracy=0.9 - drop,
        drop=drop,
        sqnr_db=30.0,
        changes=1,
        seconds=0.1,
    )


class FakePool:
    """Answers in the order of asking; `dying`: specs whose process dies so many times."""

    def __init__(self, capacity: int = 1, *, limit: float = LIMIT, die_after: int | None = None) -> None:
        self.capacity, self.limit, self.die_after = capacity, limit, die_after
        self.dying: dict[str, int] = {}
        self.waiting: deque[tuple[int, str]] = deque()
        self.ran: list[str] = []
        self.written: list[tuple[str, Path]] = []

    def source(self) -> dict[str, Any]:
        return {"bytes": BYTES, "macs": MACS}

    def submit(self, number: int, order: dict[str, Any]) -> None:
        self.waiting.append((number, order["spec"]))

    def answer(self, seconds: float | None) -> tuple[int, dict[str, Any]] | None:
        if self.die_after is not None and len(self.ran) >= self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        number, spec = self.waiting.popleft()
        if self.dying.get(spec, 0):
            self.dying[spec] -= 1
            return number, {"state": "died", "measured": None, "why": "it died", "seconds": 0.0}
        self.ran.append(spec)
        found = measured(spec, self.limit)
        return number, {"state": "measured", "measured": found.to_json(), "why": "", "seconds": 0.1}

    def write(self, number: int, spec: str, path: Path) -> None:
        self.written.append((spec, path))

    def close(self) -> None:
        pass


def space() -> Space:
    return space_of(labels=True)


def ledger(file: Path, objective: Objective = "size", seed: int = 0) -> Ledger:
    judge = Judge(objective, Budget(max_drop=LIMIT), Source(BYTES, MACS, 2.0))
    return open_ledger(str(file), "test", space(), judge, seed)


def run(
    file: Path, pool: FakePool, trials: int, sampler: str = "climb", objective: Objective = "size", seed: int = 0
) -> Ledger:
    """A search on the formula; the ledger after it."""
    found = ledger(file, objective, seed)
    job = Job(Path("model.onnx"), output=file.with_name("out.onnx"), budget=Budget(max_drop=LIMIT), seed=seed)
    searching = _Run(job, found.space, found, pool, strategy(sampler), trials, None, lambda text: None)
    searching.all(SILENT)
    return found


if __name__ == "__main__":  # a process that a test kills: FILE TRIALS DIE_AFTER
    run(Path(sys.argv[1]), FakePool(2, die_after=int(sys.argv[3])), int(sys.argv[2]))
