"""What does a job that names its passes, a recipe or an aim come to, and which single steps does an aim take?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest

from onnxcomp import recipes
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Pipeline, RunResult
from onnxcomp.ops.facts import load_operators
from onnxcomp.results import ModelStats, PassRecord, Skip
from onnxcomp.verify.budget import Budget
from onnxcomp.work import escalation, strategies
from onnxcomp.work.escalation import Climb
from onnxcomp.work.strategies import escalate, propose, try_recipes
from onnxcomp.work.trial import Measured

SAFEST = recipes.AIMS["safest"]
START = Measured("cleanup", True, True, bytes=1000, latency_ratio=1.0, drop=0.0, agreement=1.0, sqnr_db=40.0)


@dataclass
class FakeStudy:
    """Pipelines change what `records` says, and measure to what `figures` says by the spec's first pass."""

    job: Job
    records: list[PassRecord] = field(default_factory=list)
    trainings: list[Any] = field(default_factory=list)
    figures: dict[str, Measured] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.original: Graph = decode(builders.mlp((4, 4)))
        self.stats = ModelStats(1000, 10, 10, 500, 5, 17)
        self.operators = load_operators()
        self.material = SimpleNamespace(calibrate=[1], sample_shapes={}, metric=None)

    def run(self, pipeline: Pipeline | str, *, on_failure: str = "rollback") -> RunResult:
        self.failures.append(on_failure)
        return RunResult(self.original, self.records, self.trainings)

    def weighed(self, spec: str, result: RunResult) -> Measured:
        return replace(START, spec=spec)

    def trial(self, spec: str) -> Measured:
        first = spec.partition("{")[0].partition(",")[0]
        return replace(self.figures.get(first, START), spec=spec)


def record(changes: int, guarantee: str = "lossy", name: str = "cleanup", **more: Any) -> PassRecord:
    return PassRecord(name, name, guarantee, 0.0, changes, **more)


def job(**asked: Any) -> Job:
    return Job(Path("m.onnx"), **asked)


# -- what a job names --


def test_passes_that_were_named_are_taken_where_they_changed_something() -> None:
    study = FakeStudy(job(passes="cleanup"), [record(0), record(2)])
    found = propose(study)  # type: ignore[arg-type]
    (candidate,) = found.candidates
    assert candidate.explicit and not candidate.searched and found.why == ""
    assert str(candidate.pipeline) == "cleanup" and found.records == study.records
    assert study.failures == ["raise"], "a broken promise of what was asked for is an error"


@pytest.mark.parametrize(
    ("records", "trainings", "why"),
    [
        ([record(0)], [], "the passes changed nothing"),
        ([record(0, missed="0.2 of the MACs was not reached")], [], "0.2 of the MACs was not reached"),
        ([record(0)], [1], "training brought nothing, the weights stay as they were: the passes changed nothing"),
    ],
)
def test_passes_that_changed_nothing_say_why(records: list[PassRecord], trainings: list[Any], why: str) -> None:
    study = FakeStudy(job(passes="cleanup"), records, trainings)
    found = propose(study)  # type: ignore[arg-type]
    assert not found.candidates and found.why == why and found.trainings == trainings


@pytest.mark.parametrize(
    ("records", "explicit"),
    [
        ([record(1, "exact"), record(1, "close")], True),
        ([record(0, "exact"), record(0, "close")], False),
        ([record(1, "exact"), record(0, "lossy")], False),
    ],
)
def test_a_named_recipe_is_written_without_a_gain_where_it_cleaned_and_lost_nothing(
    records: list[PassRecord], explicit: bool
) -> None:
    found = propose(FakeStudy(job(recipe="int8"), records))  # type: ignore[arg-type]
    (candidate,) = found.candidates
    assert candidate.explicit == explicit and not candidate.searched


def test_what_a_job_names_decides_how_it_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(strategies, "try_recipes", lambda study: asked.append("recipes"))
    monkeypatch.setattr(strategies, "escalate", lambda study, aim: asked.append(aim.name))
    plan: dict[str, Any] = {"plan": Path("plan.toml")}
    monkeypatch.setattr(strategies, "pipeline_of", lambda job: Pipeline())
    for given in ({}, {"recipe": "smallest"}, {"recipe": "int8"}, {"passes": ""}, plan):
        propose(FakeStudy(job(**given)))  # type: ignore[arg-type]
    assert asked == ["recipes", "smallest"]


def test_a_recipe_whose_own_passes_found_nothing_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    aimed = next(recipe for recipe in recipes.RECIPES.values() if recipe.aim)
    monkeypatch.setattr(strategies.recipes, "candidates", lambda *a, **k: [aimed])
    other = record(5, name="cleanup")
    for changes, taken in ((0, False), (1, True)):
        own = [record(changes, name=aimed.aim[0])]
        found = try_recipes(FakeStudy(job(), [other, *own]))  # type: ignore[arg-type]
        assert bool(found.candidates) == taken
        assert any("found nothing to do" in note for note in found.notes) != taken


def test_a_recipe_whose_passes_had_reasons_to_change_nothing_is_left_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    aimed = recipes.RECIPES["int8"]
    monkeypatch.setattr(strategies.recipes, "candidates", lambda *a, **k: [aimed])
    slow = "on this machine no placement of integers is faster: the best takes 1.02 of the time"
    lossy = [Skip(f"c{i}", f"too much error for what it gains: alone, it leaves {i} dB") for i in range(3)]
    for skips, told in (
        ([Skip("a", slow), Skip("b", slow)], slow),
        ([*lossy, Skip("a", slow)], "too much error for what it gains (3 of 4)"),
    ):
        records = [record(0, name="quantize-qdq", skips=tuple(skips)), record(0, name="quantize-dynamic")]
        (note,) = try_recipes(FakeStudy(job(), records)).notes  # type: ignore[arg-type]
        assert note == (
            f"recipe int8 not used: quantize-qdq left all as it was: {told}; quantize-dynamic found nothing to do"
        )


# -- what an aim comes to --


class FakeClimb:
    """A way that ends where a test says."""

    start, end, others = "cleanup", "cleanup,compact", ["cleanup,fuse-batchnorm"]
    notes = ("took it",)

    def __init__(self, study: object, aim: object) -> None: ...

    def reach(self) -> str:
        return self.end

    def spare(self) -> list[str]:
        return self.others


def test_an_aim_comes_to_the_end_of_its_way_and_steps_that_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "Climb", FakeClimb)
    study = FakeStudy(job(recipe="smallest"), [record(3)])
    found = escalate(study, SAFEST)  # type: ignore[arg-type]
    assert [str(one.pipeline) for one in found.candidates] == [FakeClimb.end, *FakeClimb.others]
    assert all(one.explicit and one.searched for one in found.candidates)
    assert found.notes == ["took it"] and found.records == study.records and not found.why


@pytest.mark.parametrize(("end", "changes"), [("cleanup", 3), ("cleanup,compact", 0)])
def test_an_aim_that_no_step_serves_says_so(end: str, changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "Climb", FakeClimb)
    monkeypatch.setattr(FakeClimb, "end", end)
    found = escalate(FakeStudy(job(recipe="smallest"), [record(changes)]), SAFEST)  # type: ignore[arg-type]
    assert not found.candidates and found.why.startswith("no step made the model better")


# -- which steps are taken --


def taken(monkeypatch: pytest.MonkeyPatch, aim: recipes.Aim, budget: Budget | None = None, **figures: Any) -> bool:
    """Whether an aim takes a step with these figures after a start that loses nothing."""
    step = replace(recipes.RECIPES["int8"], name="step", spec="quantize-qdq")
    monkeypatch.setattr(escalation.recipes, "candidates", lambda *a, **k: [step])
    found = replace(START, **{"bytes": 500, **figures})
    study = FakeStudy(job(budget=budget or Budget()), figures={"quantize-qdq": found})
    climb = Climb(study, replace(aim, prunes=""))  # type: ignore[arg-type]
    climb._form()
    return bool(climb.taken)


SIZE, TIME, BOTH = (replace(SAFEST, size=size, time=time) for size, time in ((0.9, 0.0), (0.0, 1.0), (0.5, 0.5)))


@pytest.mark.parametrize(
    ("aim", "figures", "wanted"),
    [
        (SIZE, {"bytes": 988}, True),  # 0.988 ** 0.9 = 0.9892
        (SIZE, {"bytes": 992}, False),
        (SIZE, {"bytes": 500, "latency_ratio": 9.0}, True),
        (TIME, {"bytes": 500}, False),
        (TIME, {"bytes": 5000, "latency_ratio": 0.98}, True),
        (TIME, {"latency_ratio": None}, False),
        (BOTH, {"bytes": 500, "latency_ratio": 1.9}, True),
        (BOTH, {"bytes": 500, "latency_ratio": 2.1}, False),
        (BOTH, {"bytes": 990, "latency_ratio": 0.99}, True),
        (BOTH, {"agreement": 0.995}, True),
        (BOTH, {"agreement": 0.9949}, False),
        (BOTH, {"agreement": None}, True),
        (BOTH, {"drop": 1e-10}, True),
        (BOTH, {"drop": 1e-4}, False),
        (BOTH, {"drop": -0.1}, True),
        (BOTH, {"drop": None}, True),
        (BOTH, {"sound": False, "why": "it falls too far"}, False),
        (replace(BOTH, drop=None), {"drop": 0.5}, True),  # the default run's own limit stands in `sound`
    ],
)
def test_a_step_is_taken_where_it_gains_and_keeps_what_the_aim_asks(
    aim: recipes.Aim, figures: dict[str, Any], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taken(monkeypatch, aim, **figures) == wanted


def test_a_budget_for_the_metric_stands_for_the_limit_of_the_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not taken(monkeypatch, SAFEST, drop=0.01)
    assert taken(monkeypatch, SAFEST, Budget(max_drop=0.02), drop=0.01)
