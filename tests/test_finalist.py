"""Is what is written as good as it was when it was chosen? What does not hold on the samples that judge gives way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_samples import report as report_of

from onnxcomp.results import Accuracy, Agreement, Fidelity, OutputFidelity
from onnxcomp.verify.budget import Budget
from onnxcomp.work import finalist as module
from onnxcomp.work.choice import better
from onnxcomp.work.finalist import finalist
from onnxcomp.work.judging import Measurements
from onnxcomp.work.trial import Measured

BEFORE = replace(report_of(name=str).before, bytes=1000)


@dataclass(frozen=True)
class Result:
    """What a pipeline comes to: on the samples that it is chosen by, and on those that judge."""

    chosen: float | None
    judged: float | None
    time: float = 0.5
    size: int = 300
    drop: float | None = None
    samples: int = 500


def written(results: dict[str, Result], *, proposed: int = 99, budget: Budget | None = None) -> tuple[str, list[str]]:
    """The pipeline that is taken and the notes, where a search proposed the first of these results alone."""

    def measured(name: str) -> Measurements:
        it = results[name]
        told = () if it.judged is None else (Agreement("classes", ("y",), "same class", it.judged, it.samples),)
        fidelity = Fidelity(it.samples, "data", {"y": OutputFidelity(False, 30.0, 0.1)}, told)
        accuracy = None if it.drop is None else Accuracy("top1", it.samples, 0.9, 0.9 - it.drop, it.drop)
        return Measurements(replace(BEFORE, bytes=it.size), "", fidelity, accuracy, None)

    def figures(spec: str, found: Measurements, changes: int) -> Measured:
        told = None if found.fidelity is None else found.fidelity.agreement
        it = results[spec]
        return Measured(
            spec, True, True, bytes=it.size, latency_ratio=it.time, sqnr_db=30.0, agreement=told, drop=it.drop
        )

    study: Any = SimpleNamespace(
        stamped=lambda graph, _: graph,
        judge=SimpleNamespace(final=lambda graph, _: measured(graph)),
        figures=figures,
        job=SimpleNamespace(out=Path("o.onnx"), budget=budget or Budget(), objective="latency"),
        stats=BEFORE,
    )
    candidates: list[Any] = [
        SimpleNamespace(
            graph=name,
            pipeline=name,
            called=f"recipe {name}",
            searched=True,
            result=SimpleNamespace(changes=1),
            chosen=Measured(name, True, True, agreement=it.chosen, drop=it.drop, decided=128),
        )
        for name, it in results.items()
    ]
    notes = [f"tried, not used: recipe {name}: another is better for latency" for name in list(results)[1:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "untried", lambda *_: iter(candidates[proposed:]))
        taken, *_ = finalist(study, candidates[:proposed], notes)
    return str(taken.pipeline), notes


def test_a_candidate_whose_gain_does_not_hold_gives_way_to_the_next() -> None:
    assert not better(BEFORE, BEFORE, None, "latency")
    taken, notes = written({"large": Result(1.0, 1.0, size=1000), "small": Result(1.0, 1.0)})
    assert taken == "small"
    assert notes == ["tried, not used: recipe large: on the samples that judge, it is neither smaller nor faster"]


def test_a_candidate_that_keeps_fewer_decisions_than_it_was_chosen_for_gives_way() -> None:
    results = {"luck": Result(0.992, 0.96), "keeps": Result(1.0, 0.996, time=0.7)}
    for proposed in (1, 2):  # the search may have ended before one that keeps them was tried
        taken, notes = written(results, proposed=proposed)
        assert taken == "keeps"
        assert [note for note in notes if "judge" in note] == [
            "tried, not used: recipe luck: on the samples that judge, 96.00% of the decisions are kept, fewer than 99%"
        ]


def test_what_comes_after_has_to_keep_what_the_first_promised() -> None:
    results = {
        "luck": Result(0.992, 0.96),
        "like it": Result(0.97, 0.965, time=0.4),
        "keeps": Result(1.0, 1.0, time=0.9),
    }
    assert written(results)[0] == "keeps"


def test_a_point_less_is_taken_all_the_same_where_it_is_clearly_faster() -> None:
    less = Result(0.992, 0.981, time=0.5, samples=2000)
    taken, notes = written({"less": less, "keeps": Result(1.0, 1.0, time=0.9)})
    assert taken == "less" and not [note for note in notes if "judge" in note]
    assert written({"less": less, "keeps": Result(1.0, 1.0, time=0.55)})[0] == "keeps"


def test_what_chance_explains_is_no_broken_promise() -> None:
    assert written({"first": Result(0.992, 0.984, samples=128), "second": Result(1.0, 1.0)})[0] == "first"
    two = {"luck": Result(0.992, 0.96, time=0.4), "chance": Result(1.0, 0.9885, time=0.6)}
    assert written(two)[0] == "chance", "what is short of a point by chance goes before what is not"


def test_the_best_is_taken_where_none_keeps_its_promise() -> None:
    taken, _ = written({"worse": Result(1.0, 0.93), "better": Result(1.0, 0.96, time=0.8)})
    assert taken == "better"


@pytest.mark.parametrize(("more", "budget"), [({"drop": 0.001}, None), ({}, Budget(min_agreement=0.9))])
def test_a_metric_or_a_budget_says_itself_what_is_enough(more: dict[str, Any], budget: Budget | None) -> None:
    results = {"first": Result(0.992, 0.96, **more), "second": Result(1.0, 1.0, **more)}
    assert written(results, budget=budget)[0] == "first"
