"""Does a recipe that climbs take what pays, roll back what does not, and leave a configuration that repeats it?"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import search_fakes as fakes

from onnxcomp import recipes
from onnxcomp.build.first import save_result
from onnxcomp.errors import DataError, UsageError
from onnxcomp.job import Job
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.verify.budget import Budget
from onnxcomp.work import escalation
from onnxcomp.work.asked import check_options, pipeline_of
from onnxcomp.work.escalation import Climb
from onnxcomp.work.trial import Measured

FORMS = [recipes.RECIPES[name] for name in ("weights4", "int8", "stored", "clean")]


@dataclass
class FakeStudy:
    """Figures by the formula of the searches' tests; `broken`: the pass that raises."""

    job: Job
    limit: float = 0.02
    broken: str = ""
    branches: int = 0
    pictures: bool = False

    def __post_init__(self) -> None:
        self.material = SimpleNamespace(calibrate=object(), metric=None)
        self.stats = SimpleNamespace(bytes=fakes.BYTES)
        self.original: Any = None
        self.asked: list[str] = []

    def trial(self, spec: str) -> Measured:
        self.asked.append(spec)
        if self.broken and self.broken in spec:
            raise DataError("it is broken")
        found = fakes.measured(spec, self.limit)
        return replace(found, why="" if found.sound else "it falls too far", agreement=1 - (found.drop or 0.0))


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> FakeStudy:
    monkeypatch.setattr(escalation.recipes, "candidates", lambda *a, **k: FORMS)
    monkeypatch.setattr(escalation, "trains", lambda job: False)
    return FakeStudy(Job(Path("m.onnx"), budget=Budget(max_drop=0.02)))


def climbed(study: FakeStudy, aim: str) -> tuple[Climb, str]:
    climb = Climb(study, recipes.AIMS[aim])  # type: ignore[arg-type]
    return climb, climb.reach()


def test_the_smallest_prunes_until_the_budget_ends_and_rolls_that_step_back(study: FakeStudy) -> None:
    climb, spec = climbed(study, "smallest")
    assert fakes.measured(spec).sound
    assert fakes.measured(spec).bytes < fakes.measured(recipes.RECIPES["weights4"].spec).bytes
    shares = [item.params for item in Pipeline.parse(spec).passes if item.name == "prune-channels"]  # type: ignore[attr-defined]
    tried = [float(text.split("params=")[1].split("}")[0]) for text in study.asked if "params=" in text]
    assert shares and shares[0] > min(tried), "the last step was tried and rolled back"
    words = [note for note in climb.notes if "left prune-channels" in note]
    assert "it falls too far" in words[0]


def test_the_fastest_counts_time_and_the_smallest_bytes(study: FakeStudy) -> None:
    fast, small = climbed(study, "fastest")[1], climbed(study, "smallest")[1]
    assert fakes.measured(fast).latency_ratio < fakes.measured(small).latency_ratio  # type: ignore[operator]
    assert fakes.measured(small).bytes < fakes.measured(fast).bytes


def test_training_is_tried_where_a_step_does_not_hold_without(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = climbed(study, "smallest")[1]
    monkeypatch.setattr(escalation, "trains", lambda job: True)
    trained = climbed(study, "smallest")[1]
    assert "distill" in trained and "distill" not in without
    assert fakes.measured(trained).bytes < fakes.measured(without).bytes


def blocks(spec: str) -> int:
    """How many blocks a spec takes out."""
    counts = [item.count for item in Pipeline.parse(spec).passes if item.name == "prune-blocks"]  # type: ignore[attr-defined]
    return sum(counts)


def test_where_time_counts_blocks_leave_before_channels_and_more_of_them_with_training(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.branches = 8
    without = climbed(study, "fastest")[1]
    assert blocks(without) == 2 and without.index("prune-blocks") < without.index("prune-channels")
    assert not blocks(climbed(study, "smallest")[1]), "its channels take branches with them where that saves bytes"
    monkeypatch.setattr(escalation, "trains", lambda job: True)
    study.asked.clear()
    trained = climbed(study, "fastest")[1]
    assert fakes.measured(trained).sound
    assert blocks(trained) == 3 and trained.count("distill") == 1, "what is left is trained once, after all cuts"
    assert trained.index("prune-channels") < trained.index("distill") < trained.index("quantize-qdq")
    assert all("distill" in spec for spec in study.asked if "prune-channels" in spec), "blocks do not hold without"


def test_pictures_are_trained_on_in_other_views_too(study: FakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escalation, "trains", lambda job: True)
    for study.pictures in (True, False):
        spec = climbed(study, "smallest")[1]
        assert spec.count("augment=[crop]") == (spec.count("distill") if study.pictures else 0)


def test_the_smallest_trains_on_few_bits_and_is_written_compactly(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(escalation, "trains", lambda job: True)
    spec = climbed(study, "smallest")[1]
    names = [item.name for item in Pipeline.parse(spec).passes]
    assert names[-1] == "compact" and "quantize-weights" not in names
    low = next(item for item in Pipeline.parse(spec).passes if getattr(item, "bits", 0))
    assert low.name == "distill" and low.bits == 2  # type: ignore[attr-defined]
    assert fakes.measured(spec).sound
    assert "compact" not in climbed(study, "fastest")[1] and "bits" not in climbed(study, "fastest")[1]


def test_few_bits_go_with_the_width_before_where_the_narrowest_does_not_hold_so(study: FakeStudy) -> None:
    climb = Climb(study, recipes.AIMS["smallest"])  # type: ignore[arg-type]
    widths = [
        study.trial(f"cleanup,prune-channels{{params={share}}},distill,store-weights") for share in (0.9, 0.5, 0.3)
    ]
    assert "params=0.3" in climb._few_bits(widths[-1], widths).spec
    study.broken = "params=0.3"
    taken = climb._few_bits(widths[-1], widths).spec
    assert "params=0.5" in taken and "bits=2" in taken and "store-weights{least_sqnr=20.0}" in taken


def test_steps_that_keep_clearly_more_stand_in_where_the_last_does_not_hold(study: FakeStudy) -> None:
    climb = Climb(study, recipes.AIMS["smallest"])  # type: ignore[arg-type]
    decibels = (40.0, 30.0, 29.5, 20.0, 15.0, 14.8, 14.0)
    climb.taken = [replace(study.trial("cleanup"), spec=str(db), sqnr_db=db) for db in decibels]
    assert climb.spare() == ["15.0", "20.0"], "the nearest of those that keep at least 1 dB more, each"
    climb.taken = climb.taken[:1]
    assert climb.spare() == []


def test_the_safest_prunes_nothing_and_keeps_decisions(study: FakeStudy) -> None:
    climb, spec = climbed(study, "safest")
    assert "prune" not in spec
    assert 1 - (fakes.measured(spec).drop or 0.0) >= 0.995
    assert any("left quantize-weights" in note and "decides otherwise" in note for note in climb.notes)


def test_a_step_that_raises_is_left_and_said(study: FakeStudy) -> None:
    study.broken = "quantize-qdq"
    climb, spec = climbed(study, "fastest")
    assert "quantize-qdq" not in spec
    assert any("it is broken" in note for note in climb.notes)


def test_aims_are_recipes_for_a_job() -> None:
    for name in recipes.AIMS:
        job = Job(Path("m.onnx"), recipe=name)
        check_options(job)
        assert pipeline_of(job) == Pipeline()
    with pytest.raises(UsageError, match="no recipe") as caught:
        check_options(Job(Path("m.onnx"), recipe="tiniest"))
    assert "smallest" in caught.value.do
    check_options(Job(Path("m.onnx"), recipe="balanced", bench=False))
    with pytest.raises(UsageError, match="decides by times"):
        check_options(Job(Path("m.onnx"), recipe="fastest", bench=False))


def test_the_configuration_names_the_passes_that_were_chosen(tmp_path: Path, digits: Path) -> None:
    job = Job(digits, recipe="smallest", output=tmp_path / "small.opt.onnx", budget=Budget(max_drop=0.01))
    path = save_result(job, "cleanup,quantize-weights{bits=4,block=32}")
    (table,) = tomllib.loads(path.read_text())["model"]
    assert path.name == "small.opt.toml"
    assert table["passes"] == "cleanup,quantize-weights{bits=4,block=32}" and "recipe" not in table
    assert table["max_drop"] == 0.01
