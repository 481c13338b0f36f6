"""Which trades between time, size and error does a model offer? Points of one run, each with its plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from onnxcomp import recipes
from onnxcomp.errors import UsageError
from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.plan import Entry, Plan
from onnxcomp.manager.registry import find
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.work.study import Study

LEAST_DB = 20.0  # what the point that is measured keeps, where no budget says


@dataclass(frozen=True)
class Planned:
    """What a run found.

    Attributes:
        front: points as the pass tells them, the fastest first: predicted decibels, time, bytes, and the form of every
            layer.
        plan: the one that was written and measured; None where none keeps the budget.
        summary: in words.
        why: why there is no plan, or none that changes anything.
    """

    front: list[dict[str, Any]]
    plan: Plan | None
    summary: str
    why: str = ""

    def at(self, place: int) -> Plan:
        """The plan of one point of the front, counted from 1.

        Raises:
            UsageError: there is no such point.
        """
        if not 1 <= place <= len(self.front):
            raise UsageError(
                f"there is no point {place} on the front", where="--point", do=f"choose 1 to {len(self.front)}"
            )
        point = self.front[place - 1]
        entries = tuple(Entry(node, form, {}) for node, form in point["forms"].items())
        told = {key: value for key, value in point.items() if key != "forms" and value is not None}
        return Plan(entries, about=f"point {place} of {len(self.front)}", figures=told)

    def to_text(self) -> str:
        """As a file."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema": 1,
            "summary": self.summary,
            "why": self.why,
            "front": self.front,
            "plan": None if self.plan is None else self.plan.data(),
        }


def plan(job: Job, points: int, progress: Progress = SILENT) -> Planned:
    """Decide on precision layer by layer, and tell what else could have been had.

    Args:
        job: what is asked; its objective and budget hold for the plan that is measured.
        points: of the front, about.

    Raises:
        OnnxcompError: as `onnxcomp.optimize`.
    """
    budget = job.budget
    with Study.open(job, progress=progress) as study:
        size = study.stats.bytes
        options: dict[str, Any] = {
            "objective": job.objective,
            "min_sqnr": LEAST_DB if budget.min_sqnr is None else budget.min_sqnr,
            "max_size": 0.0 if budget.max_size is None else min(1.0, budget.max_size.of(size) / size),
            "min_speedup": budget.min_speedup or 0.0,
            "max_drop": budget.max_drop,
            "front": points,
        }
        item = find("mixed-precision")(**options)
        pipeline = Pipeline((*recipes.find("clean", job.target).pipeline.passes, item))
        record = study.run(pipeline, on_failure="raise").records[-1]
    documents = record.documents
    found = Plan.of(documents["plan"]) if "plan" in documents else None
    why = record.missed or ("" if found is not None else record.summary)
    return Planned(documents.get("front", []), found, record.summary, why)
