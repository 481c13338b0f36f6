"""What comes of one trial? A cheap look first: fewer samples, no timing, no training; then the whole, if there is hope.

An order and its answer are JSON: they travel between processes and machines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from onnxcomp.errors import OnnxcompError
from onnxcomp.job import Job
from onnxcomp.manager.base import Need, Pass, Stage
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.work.trial import Measured

GLANCE, GLANCE_SHARE = 96, 0.5  # samples of a cheap look; none where they are not fewer than half
SURE = 3.0  # standard errors by which a loss on few samples must miss the budget
TRAINS = "distill"  # a job whose passes train sets samples aside for that


class Trials(Protocol):
    """What a search asks of a study."""

    @property
    def job(self) -> Job:
        """What was asked."""

    @property
    def selecting(self) -> int:
        """How many samples trials are judged by."""

    def trial(self, spec: str, *, samples: int | None = None, timed: bool = True) -> Measured:
        """What a spec comes to."""

    def write(self, spec: str, path: Path) -> list[Path]:
        """Write what a spec makes of the source."""


def job_of_trials(job: Job, *, trains: bool) -> Job:
    """The job that a study of trials is opened with."""
    return replace(job, passes=TRAINS if trains else None, recipe=None)


def evaluate(study: Trials, order: Mapping[str, Any]) -> dict[str, Any]:
    """Run one trial; the answer to an order.

    Args:
        order: `spec`; `best`: bytes, macs and loss of the best trial so far, or None.

    Returns:
        `state`, `measured`, `why` and `seconds`, as a row has them.
    """
    start = time.perf_counter()
    try:
        answer = _tried(study, str(order["spec"]), order.get("best"))
    except OnnxcompError as error:
        answer = {"state": "failed", "measured": None, "why": error.what}
    except Exception as error:  # whatever a metric, a plugin or a library does ends this trial only
        answer = {"state": "failed", "measured": None, "why": f"{type(error).__name__}: {error}"}
    return answer | {"seconds": round(time.perf_counter() - start, 3)}


def _tried(study: Trials, spec: str, best: Mapping[str, float] | None) -> dict[str, Any]:
    passes = Pipeline.parse(spec).passes
    quick = tuple(item for item in passes if Need.TRAINING not in item.required())
    trains = len(quick) < len(passes)
    if quick and (trains or study.selecting * GLANCE_SHARE >= GLANCE):
        glance = study.trial(str(Pipeline(quick)), samples=GLANCE, timed=False)
        if why := _hopeless(glance, study.job, passes if trains else (), best):
            return {"state": "stopped", "measured": replace(glance, spec=spec, sound=False).to_json(), "why": why}
    found = study.trial(spec)
    if not found.bytes:
        return {"state": "failed", "measured": None, "why": found.why}
    return {"state": "measured", "measured": found.to_json(), "why": found.why}


def _hopeless(glance: Measured, job: Job, trained: tuple[Pass, ...], best: Mapping[str, float] | None) -> str:
    """Why the whole trial would be for nothing; empty where it may not be.

    Args:
        trained: the passes of a trial that trains, whose loss a look without training tells little of.
        best: of the best trial so far.
    """
    if not glance.bytes:
        return glance.why
    writes = any(item.belongs() is Stage.INTEGER and Need.TRAINING in item.required() for item in trained)
    if best is not None and job.objective in ("size", "macs") and not writes:
        mine = glance.bytes if job.objective == "size" else glance.macs
        drop = glance.drop if glance.drop is not None and not trained else None
        if mine > best["bytes" if job.objective == "size" else "macs"] and (drop is None or drop >= best["loss"]):
            return "a cheap look: the best so far is better in every way"
    if trained or glance.drop is None or job.budget.max_drop is None:
        return ""
    differing = 1.0 if glance.agreement is None else max(1.0 - glance.agreement, 1.0 / GLANCE)
    error = (differing / GLANCE) ** 0.5
    if glance.drop - SURE * error > job.budget.max_drop:
        return f"a cheap look: falls by {glance.drop:.3f} on {GLANCE} samples"
    return ""
