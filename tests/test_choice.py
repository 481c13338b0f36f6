"""Is the right result taken? Every rule of the choice between results, and the search over recipes as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import builders
import numpy as np
import pytest
from onnx import helper

import onnxcomp
from onnxcomp import recipes
from onnxcomp.errors import GuaranteeError, ModelError
from onnxcomp.graph.cost import integer_share, parameters
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph
from onnxcomp.job import Job
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, option
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.ops.facts import load_operators
from onnxcomp.results import Accuracy, Agreement, Benchmark, Fidelity, ModelStats, OutputFidelity, PassRecord
from onnxcomp.targets import table as targets
from onnxcomp.verify.budget import Budget
from onnxcomp.verify.enough import Limits
from onnxcomp.work.choice import (
    agrees,
    better,
    broken,
    disagreeing,
    ends_search,
    enough,
    keeps,
    limits_of,
    preferred,
    promised,
    score,
    unsound,
)
from onnxcomp.work.strategies import Proposed, try_recipes, untried
from onnxcomp.work.trial import Measured

NOTHING = Budget()
BASE = Measured("a", True, True, bytes=1000, macs=500, latency_ratio=0.5, sqnr_db=30.0, agreement=1.0)


def fidelity(sqnr_db: float | None = None, agreement: float | None = None, **output: Any) -> Fidelity:
    told = () if agreement is None else (Agreement("classes", ("y",), "same first class", agreement, 100),)
    return Fidelity(100, "data", {"y": OutputFidelity(False, sqnr_db, 0.1, **output)}, told)


def drop(value: float) -> Accuracy:
    return Accuracy("top1", 100, 0.9, 0.9 - value, value)


# -- what is sound --


@pytest.mark.parametrize(
    ("found", "accuracy", "budget", "words"),
    [
        (fidelity(10.5, 1.0), None, NOTHING, ""),
        (fidelity(10.0, 1.0), None, NOTHING, ""),
        (fidelity(9.5, 1.0), None, NOTHING, "SQNR 9.5 dB is below 10 dB"),
        (fidelity(9.5, 1.0), None, Budget(min_sqnr=5.0), ""),
        (fidelity(25.0, 1.0), None, Budget(min_sqnr=30.0), "below 30 dB"),
        (fidelity(25.0, 1.0), drop(0.019), NOTHING, ""),
        (fidelity(25.0, 1.0), drop(0.021), NOTHING, "top1 falls by 0.0210 on 100 samples, more than 0.02"),
        (fidelity(25.0, 1.0), drop(0.021), Budget(max_drop=0.03), ""),
        (fidelity(25.0, 1.0), drop(0.011), Budget(max_drop=0.01), "more than 0.01"),
        (fidelity(25.0, 1.0), drop(0.01 + 1e-12), Budget(max_drop=0.01), ""),
        (fidelity(25.0, 0.5), None, NOTHING, ""),
        (fidelity(25.0, 0.97), None, Budget(min_agreement=0.98), "less than 98%"),
        (fidelity(25.0, 0.99), None, Budget(min_agreement=0.98), ""),
        (fidelity(25.0, 0.98), None, Budget(min_agreement=0.98), ""),
        (fidelity(None, 0.96), None, NOTHING, ""),
        (fidelity(None, 0.94), None, NOTHING, "less than 95%"),
        (fidelity(None, 0.5), None, Budget(min_agreement=0.4), ""),
        (fidelity(None, None), None, NOTHING, "beyond comparison"),
        (fidelity(None, None, comparable=False), None, NOTHING, "depend on the values"),
        (Fidelity(1, "data", {"y": OutputFidelity(True, None, 0.0)}), None, NOTHING, ""),
        (None, None, NOTHING, ""),
    ],
)
def test_limits_of_soundness(found: Fidelity | None, accuracy: Accuracy | None, budget: Budget, words: str) -> None:
    why = unsound(found, accuracy, budget)
    assert words in why and bool(words) == bool(why)


def test_the_worst_output_is_named_where_there_are_several() -> None:
    outputs = {"good": OutputFidelity(False, 30.0, 0.1), "bad": OutputFidelity(False, 3.0, 0.1)}
    assert unsound(Fidelity(10, "data", outputs), None, NOTHING).endswith("is below 10 dB (output bad)")
    parted = {"only": OutputFidelity(False, 3.0, 0.1, worst_part="axis 1: 4-9")}
    assert unsound(Fidelity(10, "data", parted), None, NOTHING).endswith("(output only, axis 1: 4-9)")
    plain = {"only": OutputFidelity(False, 3.0, 0.1)}
    assert unsound(Fidelity(10, "data", plain), None, NOTHING).endswith("is below 10 dB")


def test_what_a_verdict_depends_on_are_the_budget_and_the_own_limits() -> None:
    assert limits_of(NOTHING, 3) == Limits(sqnr_db=(10.0,), agreement=(0.95,), drop=(0.02,), seed=3)
    asked = Budget(max_drop=0.01, min_sqnr=20.0, min_agreement=0.98)
    assert limits_of(asked, 0) == Limits(sqnr_db=(10.0, 20.0), agreement=(0.95, 0.98), drop=(0.02, 0.01))


@pytest.mark.parametrize(
    ("agreement", "words"), [(None, ""), (0.951, ""), (0.95, ""), (0.949, "same first class: 94.90%")]
)
def test_the_first_line_needs_decisions_that_are_nearly_always_the_same(agreement: float | None, words: str) -> None:
    assert disagreeing(fidelity(20.0, agreement)) == words
    assert disagreeing(None) == ""


# -- what is better --

STATS = ModelStats(1000, 10, 10, 500, 5, 17)


def timed(low: float, high: float) -> Benchmark:
    return Benchmark("CPU", 1, 0, 1, 1, {"p50": 1.0}, {"p50": 1.0}, (low + high) / 2, (low, high))


FASTER, SLOWER, SAME = timed(1.2, 1.3), timed(0.7, 0.8), timed(0.95, 1.05)


@pytest.mark.parametrize(
    ("objective", "changes", "bench", "expected"),
    [
        ("latency", {"bytes": 500}, FASTER, True),
        ("latency", {}, FASTER, True),
        ("latency", {"bytes": 500}, SAME, True),
        ("latency", {"bytes": 500}, SLOWER, False),
        ("latency", {"bytes": 500}, None, True),
        ("latency", {"bytes": 995}, SAME, False),
        ("latency", {"macs": 100}, SAME, False),
        ("accuracy", {"bytes": 500}, SAME, True),
        ("accuracy", {}, SAME, False),
        ("size", {"bytes": 500}, SLOWER, True),
        ("size", {"bytes": 995}, FASTER, False),
        ("size", {"bytes": 990}, SLOWER, True),
        ("macs", {"macs": 499, "bytes": 2000}, SLOWER, True),
        ("macs", {"bytes": 1}, FASTER, False),
    ],
)
def test_what_counts_as_an_improvement(
    objective: str, changes: dict[str, int], bench: Benchmark | None, expected: bool
) -> None:
    assert better(STATS, replace(STATS, **changes), bench, objective) is expected


# -- what goes before what --


@pytest.mark.parametrize(
    ("objective", "good", "bad"),
    [
        ("size", {"bytes": 900, "macs": 9999, "latency_ratio": 2.0, "sqnr_db": 11.0}, {}),
        ("macs", {"macs": 499, "bytes": 9999, "latency_ratio": 2.0, "sqnr_db": 11.0}, {}),
        ("accuracy", {"sqnr_db": 30.1, "bytes": 9999, "macs": 9999, "latency_ratio": 2.0}, {}),
        ("accuracy", {"sqnr_db": None}, {"bytes": 1}),
        ("latency", {"latency_ratio": 0.45, "bytes": 9999, "sqnr_db": 11.0}, {}),
        ("latency", {"bytes": 900}, {"latency_ratio": 0.48}),  # the same time: what is smaller
        ("latency", {"bytes": 1200, "sqnr_db": 37.0}, {}),  # and before that, what keeps clearly more at a like size
        ("latency", {}, {"bytes": 1200, "sqnr_db": 35.0}),
        ("latency", {}, {"bytes": 1400, "sqnr_db": 60.0}),
        ("latency", {"latency_ratio": None, "bytes": 500}, {"latency_ratio": None}),
    ],
)
def test_the_objective_decides(objective: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    first, second = replace(BASE, **good), replace(BASE, **bad)
    assert preferred(first, second, objective, NOTHING)
    assert not preferred(second, first, objective, NOTHING)


def test_what_comes_first_stays_first_where_all_is_the_same() -> None:
    for objective in ("latency", "size", "accuracy", "macs"):
        assert not preferred(BASE, BASE, objective, NOTHING)


def test_scores_are_of_the_objective() -> None:
    assert [score(BASE, objective) for objective in ("size", "macs", "accuracy", "latency")] == [1000, 500, -30, 0.5]
    assert score(replace(BASE, latency_ratio=None), "latency") == 1000
    assert score(replace(BASE, sqnr_db=None), "accuracy") == -np.inf


def test_what_decides_as_the_original_goes_first() -> None:
    fast, true = replace(BASE, latency_ratio=0.1, agreement=0.94), replace(BASE, agreement=0.96)
    for objective in ("latency", "size", "accuracy", "macs"):
        assert preferred(true, fast, objective, NOTHING) and not preferred(fast, true, objective, NOTHING)
    assert preferred(fast, true, "latency", Budget(min_agreement=0.9))
    point = replace(BASE, agreement=0.99)
    for objective in ("latency", "size", "accuracy", "macs"):
        nearly = replace(true, latency_ratio=0.41, bytes=10, macs=10, sqnr_db=99.0)
        assert preferred(point, nearly, objective, NOTHING) and not preferred(nearly, point, objective, NOTHING)
    shares = (None, 0.99, 0.989, 0.95, 0.949)
    assert [agrees(replace(BASE, agreement=value), NOTHING) for value in shares] == [2, 2, 1, 1, 0]
    assert [agrees(replace(BASE, agreement=value, drop=0.0), NOTHING) for value in shares] == [2, 2, 2, 2, 0]
    assert [agrees(replace(BASE, agreement=value, decided=24), NOTHING) for value in shares] == [2, 2, 2, 2, 0]
    assert [agrees(replace(BASE, agreement=value, decided=128), NOTHING) for value in shares] == [2, 2, 1, 1, 0]
    assert keeps(replace(BASE, agreement=0.5), Budget(min_agreement=0.4))


def test_a_point_of_the_decisions_is_given_for_what_is_clearly_faster() -> None:
    point = replace(BASE, agreement=0.99)
    fast = replace(BASE, agreement=0.98, latency_ratio=0.4)
    assert preferred(fast, point, "latency", NOTHING) and not preferred(point, fast, "latency", NOTHING)
    assert preferred(point, fast, "size", NOTHING)
    for share in (0.979, 0.94):
        assert preferred(point, replace(fast, agreement=share, latency_ratio=0.1), "latency", NOTHING)
        assert not preferred(replace(fast, agreement=share, latency_ratio=0.1), point, "latency", NOTHING)
    slow = replace(point, latency_ratio=1.0)
    assert preferred(slow, replace(fast, latency_ratio=0.81), "latency", NOTHING)
    assert not preferred(slow, replace(fast, latency_ratio=0.8), "latency", NOTHING)


def test_times_that_are_alike_leave_the_choice_to_decibels_at_a_like_size_and_then_to_size() -> None:
    closer = replace(BASE, sqnr_db=36.0, bytes=1300)
    assert preferred(closer, BASE, "latency", NOTHING) and not preferred(BASE, closer, "latency", NOTHING)
    for other in (replace(closer, sqnr_db=35.9), replace(closer, bytes=1301), replace(closer, latency_ratio=0.55)):
        assert preferred(BASE, other, "latency", NOTHING) and not preferred(other, BASE, "latency", NOTHING)


# -- when the search ends --


def test_a_result_promises_what_it_was_chosen_for() -> None:
    shares = {0.995: 0.99, 0.99: 0.99, 0.985: 0.98, 0.98: 0.98, 0.96: 0.95, 0.95: 0.95, 0.9: 0.0}
    assert {share: promised(replace(BASE, agreement=share), NOTHING) for share in shares} == shares
    for other in ({"drop": 0.01}, {"agreement": None}):
        assert promised(replace(BASE, **other), NOTHING) == 0  # a metric says what counts
    assert promised(BASE, Budget(min_agreement=0.9)) == 0


def test_a_promise_is_broken_where_chance_does_not_explain_it() -> None:
    def seen(kept: int, of: int) -> bool:
        return broken(replace(BASE, agreement=kept / of, decided=of), 0.99)

    assert seen(476, 496) and seen(118, 128)
    assert not seen(490, 496) and not seen(125, 128) and not seen(19, 20)
    assert seen(96, 100) and not seen(97, 100)  # chances of 0.018 and 0.079
    assert seen(88, 92)  # 4 have changed, though 92 * (1 - 88 / 92) is a little less
    assert not broken(replace(BASE, agreement=None, decided=100), 0.99)
    for decided in (None, 0):
        assert not broken(replace(BASE, agreement=0.5, decided=decided), 0.99)


def test_integers_that_cover_nearly_all_work_end_the_search_for_latency() -> None:
    int8, half = recipes.RECIPES["int8"], recipes.RECIPES["half"]
    assert ends_search(BASE, int8, 0.9, "latency", NOTHING)
    assert not ends_search(BASE, int8, 0.89, "latency", NOTHING)
    assert not ends_search(BASE, half, 1.0, "latency", NOTHING)
    assert not ends_search(BASE, int8, 1.0, "size", NOTHING)
    for share in (0.9, 0.98):
        assert not ends_search(replace(BASE, agreement=share), int8, 1.0, "latency", NOTHING)


def test_what_computes_in_float_is_not_tried_after_what_is_fast_and_small() -> None:
    good = replace(BASE, latency_ratio=0.8, bytes=400)
    weights8, dynamic, clean = (recipes.RECIPES[name] for name in ("weights8", "dynamic", "clean"))
    assert enough(good, weights8, 1000)
    assert not enough(good, dynamic, 1000)
    assert not enough(replace(good, latency_ratio=0.81), weights8, 1000)
    assert not enough(replace(good, bytes=401), weights8, 1000)
    assert enough(replace(good, bytes=900), clean, 1000)  # a last resort


@dataclass
class FakeStudy:
    """A study whose recipes measure to what a test says; the graphs and the order of recipes are real."""

    job: Job
    original: Graph
    figures: dict[str, Measured]
    results: dict[str, Graph] = field(default_factory=dict)
    has_data: bool = True
    tried: list[str] = field(default_factory=list)
    tiled: bool = False

    def __post_init__(self) -> None:
        self.operators = load_operators()
        self.stats = STATS
        self.material = SimpleNamespace(calibrate=[1] if self.has_data else None, sample_shapes={})

    def run(self, pipeline: Pipeline | str) -> RunResult:
        if pipeline in (recipes.PLAIN, recipes.CLEAN):
            return RunResult(self.original, [])
        here, asked = targets.find(self.job.target), (self.job.budget, self.job.objective, self.stats.bytes)
        specs = {str(r.on(here).within(*asked).pipeline): name for name, r in recipes.RECIPES.items()}
        if str(pipeline) not in specs:  # the first passes of a recipe
            assert isinstance(pipeline, Pipeline)
            name = pipeline.passes[-1].name
            return RunResult(self.original, [PassRecord(name, name, "close", 0.0, int(self.tiled))])
        name = specs[str(pipeline)]
        self.tried.append(name)
        if name not in self.figures:
            raise ModelError("no kernel")
        aim = recipes.RECIPES[name].aim
        records = [PassRecord(part, part, "lossy", 0.0, 1) for part in aim]
        return RunResult(self.results.get(name, self.original), records)

    def weighed(self, spec: str, result: RunResult) -> Measured:
        del result
        return replace(self.figures[self.tried[-1]], spec=spec)


@pytest.fixture
def graphs(tmp_path: Path) -> dict[str, Graph]:
    """A CNN, a transformer, and the CNN in int8 throughout."""
    made = {"cnn": builders.residual_cnn(), "transformer": builders.transformer()}
    found = {name: load(builders.save(proto, tmp_path / f"{name}.onnx")) for name, proto in made.items()}
    rng = np.random.default_rng(0)
    weights = {"w": rng.integers(-9, 9, (4, 4), np.int8), "s": np.array(0.1, np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    proto = builders.model(nodes, [builders.value("x", 1, [1, 4])], [builders.value("y", 1, [1, 4])], weights)
    found["integer"] = load(builders.save(proto, tmp_path / "integer.onnx"))
    assert integer_share(found["integer"], load_operators()) == 1 and integer_share(found["cnn"], load_operators()) == 0
    return found


def search(study: FakeStudy) -> Proposed:
    return try_recipes(study)  # type: ignore[arg-type]


ALL = dict.fromkeys(recipes.RECIPES, BASE)
SLOW = replace(BASE, latency_ratio=0.95)  # better, and no reason to stop


def job(objective: str = "latency", **changes: Any) -> Job:
    return Job(Path("m.onnx"), objective=objective, **changes)  # type: ignore[arg-type]


def test_the_search_for_latency_ends_with_integers_that_cover_the_work(graphs: dict[str, Graph]) -> None:
    study = FakeStudy(job(), graphs["cnn"], ALL, {"int8": graphs["integer"]})
    found = search(study)
    assert study.tried == ["int8"] and len(found.candidates) == 1 and found.candidates[0].searched
    partly = FakeStudy(job(), graphs["cnn"], dict.fromkeys(recipes.RECIPES, SLOW))
    search(partly)
    assert partly.tried == ["int8", "dynamic", "weights8"]  # integers cover nothing, and the last resorts are left


def test_convolutions_in_tiles_beside_integers_are_tried_where_there_are_any(graphs: dict[str, Graph]) -> None:
    for tiled in (False, True):
        study = FakeStudy(
            job(), graphs["cnn"], {**ALL, "int8": replace(BASE, latency_ratio=0.5, bytes=300)}, tiled=tiled
        )
        found = search(study)
        assert study.tried == ["int8", "dynamic", *["tiles"] * tiled]
        assert not any("tiles" in note for note in found.notes) or tiled


def test_floats_are_not_tried_where_integers_are_fast_and_small(graphs: dict[str, Graph]) -> None:
    fast = replace(BASE, latency_ratio=0.5, bytes=300)
    study = FakeStudy(job(), graphs["cnn"], {**ALL, "int8": fast})
    assert search(study).candidates and study.tried == ["int8", "dynamic"]
    disagreeing = FakeStudy(job(), graphs["cnn"], {name: replace(fast, agreement=0.5) for name in recipes.RECIPES})
    search(disagreeing)
    assert disagreeing.tried == ["int8", "dynamic", "weights8", "stored", "clean"]


def test_attention_is_quantized_at_run_time_first(graphs: dict[str, Graph]) -> None:
    tried = {}
    for name in ("cnn", "transformer"):
        study = FakeStudy(job(), graphs[name], dict.fromkeys(recipes.RECIPES, SLOW))
        search(study)
        tried[name] = study.tried[:2]
    assert tried == {"cnn": ["int8", "dynamic"], "transformer": ["dynamic", "int8"]}


@pytest.mark.parametrize(
    ("objective", "winner"), [("size", "weights4"), ("macs", "stored"), ("accuracy", "clean"), ("latency", "dynamic")]
)
def test_each_objective_takes_its_own_winner(graphs: dict[str, Graph], objective: str, winner: str) -> None:
    figures = {
        "int8": replace(SLOW, bytes=2000, macs=2000),
        "dynamic": replace(SLOW, latency_ratio=0.5, bytes=2000, macs=2000, sqnr_db=20.0),
        "weights4": replace(SLOW, bytes=100, macs=2000, sqnr_db=15.0),
        "weights8": replace(SLOW, bytes=200, macs=2000),
        "stored": replace(SLOW, bytes=900, macs=100),
        "clean": replace(SLOW, bytes=950, macs=2000, sqnr_db=None),
    }
    study = FakeStudy(job(objective), graphs["cnn"], figures)
    found = search(study)
    assert str(found.candidates[0].pipeline) == recipes.RECIPES[winner].spec
    if objective in ("macs", "accuracy"):
        assert set(study.tried) >= set(figures) - {"weights4"}  # no early end
    assert any(f"another is better for {objective}" in note for note in found.notes) or study.tried == [winner]


def test_for_size_what_cannot_become_smaller_is_left_for_where_the_best_does_not_hold(graphs: dict[str, Graph]) -> None:
    weights = parameters(graphs["cnn"], load_operators()).total
    bytewise = {"int8", "dynamic", "weights8", "stored"}
    for share, left in ((0.55, {*bytewise, "clean"}), (1.1, {"clean"}), (4.5, set[str]())):
        figures = dict.fromkeys(recipes.RECIPES, replace(SLOW, bytes=round(10 * weights)))
        study = FakeStudy(
            job("size"), graphs["cnn"], {**figures, "weights4": replace(SLOW, bytes=round(share * weights))}
        )
        proposed = search(study)
        assert set(study.tried) == {"weights4", "clean", *bytewise} - left
        found = {str(other.pipeline) for other in untried(study, proposed.candidates, [])}  # type: ignore[arg-type]
        assert {str(recipes.RECIPES[name].pipeline) for name in left} <= found
    fewer = replace(SLOW, bytes=round(0.55 * weights), agreement=0.97)
    doubtful = FakeStudy(job("size"), graphs["cnn"], {**figures, "weights4": fewer})
    search(doubtful)
    assert "int8" in doubtful.tried  # what decides as the original does goes before what does not, whatever the bytes


def test_what_is_not_sound_or_no_gain_is_left_and_said(graphs: dict[str, Graph]) -> None:
    figures = {
        "int8": replace(BASE, sound=False, why="SQNR 3.0 dB is below 10 dB"),
        "dynamic": replace(BASE, better=False, why="no gain: 100% of the size"),
    }
    study = FakeStudy(job(), graphs["cnn"], figures)
    found = search(study)
    assert not found.candidates and "nothing that was tried" in found.why
    fallbacks = {name for name in study.tried if recipes.RECIPES[name].fallback}
    assert fallbacks  # they are tried only where nothing held before them
    held = FakeStudy(job(), graphs["cnn"], dict.fromkeys(recipes.RECIPES, SLOW))
    assert search(held).candidates and not fallbacks & set(held.tried)
    assert "tried, not used: recipe int8: SQNR 3.0 dB is below 10 dB" in found.notes
    assert "tried, not used: recipe dynamic: no gain: 100% of the size" in found.notes
    assert "recipe weights8 does not fit this model: no kernel" in found.notes


def test_recipes_that_need_data_are_not_tried_without(graphs: dict[str, Graph]) -> None:
    study = FakeStudy(job(), graphs["cnn"], dict.fromkeys(recipes.RECIPES, SLOW), has_data=False)
    search(study)
    assert study.tried == ["weights8"]


def test_last_resorts_are_left_for_where_nothing_holds_in_the_end(graphs: dict[str, Graph]) -> None:
    figures = {**dict.fromkeys(recipes.RECIPES, SLOW), "clean": replace(SLOW, better=False, why="no gain")}
    study, notes = FakeStudy(job(), graphs["cnn"], figures, has_data=False), list[str]()
    proposed = search(study)
    (left,) = untried(study, proposed.candidates, notes)  # type: ignore[arg-type]
    assert str(left.pipeline) == recipes.RECIPES["stored"].spec and left.chosen is not None
    assert notes == ["tried, not used: recipe clean: no gain"]
    asked = [replace(candidate, explicit=True) for candidate in proposed.candidates]
    assert not list(untried(study, asked, notes))  # type: ignore[arg-type]


# -- real runs --


@pytest.mark.parametrize("objective", ["size", "accuracy", "macs"])
def test_a_run_takes_what_its_objective_asks_for(
    objective: str, digits: Path, digits_data: tuple[Path, Path], tmp_path: Path
) -> None:
    report = onnxcomp.optimize(
        digits,
        data=digits_data[0],
        eval_data=digits_data[1],
        objective=objective,
        bench=False,
        calib_samples=32,
        eval_samples=64,
        output=tmp_path / "m.onnx",
    )
    assert report.fidelity is not None or objective == "macs"
    if objective == "size":
        assert report.after.bytes < 0.2 * report.before.bytes  # 4 bits
    if objective == "accuracy":  # all are tried
        assert report.fidelity is not None and report.fidelity.worst_sqnr_db is not None
        assert report.fidelity.worst_sqnr_db > 40
        assert sum("another is better for accuracy" in note for note in report.notes) == 2
    if objective == "macs":  # quantization saves none
        assert report.verdict == "unchanged" and report.exit_code == 13
        assert sum("not used" in note and "no gain for macs" in note for note in report.notes) >= 3


# -- what an equal computation may differ by --


@dataclass(frozen=True)
class Nudge(Pass):
    """Scales the first weight of a half-precision model by some of its rounding steps, and promises equal outputs."""

    name: ClassVar[str] = "nudge"
    guarantee: ClassVar[Guarantee] = Guarantee.EXACT
    steps: int = option(1, "how many")

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        outcome = Outcome()
        weight = next(c for c in graph.constants() if c.dtype == np.float16)
        weight.values = (weight.values.astype(np.float32) * (1 + self.steps * 2.0**-10)).astype(np.float16)
        outcome.change(graph.nodes[0], "nudged")
        return outcome


@pytest.mark.parametrize(("steps", "held"), [(4, True), (12, True), (24, False), (200, False)])
def test_half_precision_is_allowed_a_few_rounding_steps_and_no_more(steps: int, held: bool, tmp_path: Path) -> None:
    weights = {"w": np.full((4, 4), 0.5, np.float16)}
    proto = builders.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [builders.value("x", 10, [1, 4])],
        [builders.value("y", 10, [1, 4])],
        weights,
    )
    graph = load(builders.save(proto, tmp_path / "half.onnx"))
    run: Callable[[], RunResult] = lambda: PassManager(Pipeline((Nudge(steps=steps),))).run(graph)  # noqa: E731
    if held:
        assert run().changes == 1
    else:
        with pytest.raises(GuaranteeError, match="relative error"):
            run()
