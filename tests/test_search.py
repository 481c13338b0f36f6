"""Does a search find what is best under a budget, lose no trial, count none twice, and show what it found?"""

from __future__ import annotations

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import optuna
import pytest
import report_samples
import search_fakes as fakes
from sqlalchemy import event
from sqlalchemy.engine import Engine

from onnxcomp.errors import DataError, EnvironmentLacksError, ModelError, OutputError, UsageError
from onnxcomp.files import sha256_of
from onnxcomp.job import Job
from onnxcomp.report.record import write_json
from onnxcomp.report.tables import size_text, time_text
from onnxcomp.runtime.progress import SILENT
from onnxcomp.search import kept
from onnxcomp.search import ledger as ledgers
from onnxcomp.search.evaluate import GLANCE, evaluate
from onnxcomp.search.keys import DEFAULT, SAMPLERS, SearchKeys
from onnxcomp.search.output import BEGUN, Output
from onnxcomp.search.page import document
from onnxcomp.search.pool import Processes
from onnxcomp.search.rows import Judge, Row, Source, to_json
from onnxcomp.search.run import Found, _Run, closer, opening, parse_time, row_words, search
from onnxcomp.search.show import lines, picture
from onnxcomp.search.strategies import STRATEGIES, Told, drawn, first_points, grown, strategy
from onnxcomp.verify.budget import Budget, Size
from onnxcomp.work.trial import Measured

TESTS = Path(__file__).resolve().parent


def specs(ledger: ledgers.Ledger) -> list[str]:
    return [row.spec for row in ledger.finished]


# -- trials are kept ---------------------------------------------------------------------------------------------------


def test_a_search_goes_on_where_it_stopped_and_tries_what_it_would_have_tried(tmp_path: Path) -> None:
    whole = fakes.run(tmp_path / "whole.db", fakes.FakePool(), 14, "climb", seed=3)
    for trials in (5, 9, 14):
        pool = fakes.FakePool()
        parts = fakes.run(tmp_path / "parts.db", pool, trials, "climb", seed=3)
    assert specs(parts) == specs(whole)
    assert len(pool.ran) == 5, "trials of earlier runs are not run again"
    assert len(set(specs(whole))) == 14, "nothing is tried twice"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_same_seed_tries_the_same_whatever_the_sampler(tmp_path: Path, sampler: str) -> None:
    runs = [fakes.run(tmp_path / f"{i}.db", fakes.FakePool(), 9, sampler, seed=5) for i in range(2)]
    assert specs(runs[0]) == specs(runs[1])
    assert len(set(specs(runs[0]))) == 9
    best = runs[0].judge.best(runs[0].finished)
    assert best is not None and best.measured is not None and best.measured.drop is not None
    assert best.measured.drop <= fakes.LIMIT


def test_every_sampler_has_its_strategy() -> None:
    assert set(STRATEGIES) == set(SAMPLERS)
    assert DEFAULT in SAMPLERS


def test_the_default_gains_more_than_recipes(tmp_path: Path) -> None:
    found = fakes.run(tmp_path / "s.db", fakes.FakePool(), 25)
    best = found.judge.best(found.finished)
    recipes = found.judge.best(found.finished[:5])
    assert best is not None and recipes is not None and best.measured is not None and recipes.measured is not None
    assert best.measured.bytes < 0.8 * recipes.measured.bytes


def test_no_step_of_pruning_goes_further_than_one_that_loses_too_much(tmp_path: Path) -> None:
    ledger = fakes.ledger(tmp_path / "s.db")
    first = next(p for p in first_points(ledger.space, ledger.judge, "cpu") if p.get("quantize-qdq"))
    steps = [p for p in grown(ledger.space, first, ledger.judge) if p["prune-channels"]]
    specs = [ledger.space.spec(point) for point in steps]
    assert len(steps) == 3
    figures = (
        replace(fakes.measured(spec), drop=drop, sound=drop < 0.02)
        for spec, drop in ((specs[0], 0.01), (specs[1], 0.5))
    )
    base = ledger.space.spec(first)
    rows = [Row(0, base, first, "measured", replace(fakes.measured(base), bytes=1))]
    rows += [Row(i + 1, specs[i], steps[i], "measured", found) for i, found in enumerate(figures)]
    told = Told(ledger.space, ledger.judge, rows)
    proposed = {ledger.space.spec(p) for p in STRATEGIES["climb"]().propose(told, random.Random(0))}
    assert specs[1] in proposed and specs[2] not in proposed
    assert specs[2] in {
        ledger.space.spec(p) for p in STRATEGIES["climb"]().propose(replace(told, rows=rows[:2]), random.Random(0))
    }


def test_growth_counts_up_from_one_and_on_from_what_the_best_has(tmp_path: Path) -> None:
    ledger = fakes.ledger(tmp_path / "s.db")
    first = next(p for p in first_points(ledger.space, ledger.judge, "cpu") if p.get("quantize-qdq"))

    def counts(point: Any, *lost: str) -> list[Any]:
        there = grown(ledger.space, point, ledger.judge, lost)
        return [
            p["prune-blocks.count"] for p in there if p["prune-blocks"] and p["prune-blocks"] != point["prune-blocks"]
        ]

    one = next(p for p in grown(ledger.space, first, ledger.judge) if p["prune-blocks"])
    assert counts(first) == [1, 2, 3]
    assert counts(first, ledger.space.spec(one)) == [1]
    more = [p["prune-blocks.count"] for p in grown(ledger.space, one, ledger.judge)]
    assert more[:2] == [2, 3] and set(more[2:]) == {1}


def test_a_study_killed_again_and_again_loses_no_trial_and_counts_none_twice(tmp_path: Path) -> None:
    file = tmp_path / "killed.db"
    for after in (1, 3):
        done = subprocess.run([sys.executable, TESTS / "search_fakes.py", file, "9", str(after)], check=False)
        assert done.returncode == -signal.SIGKILL
    pool = fakes.FakePool(2)
    found = fakes.run(file, pool, 9)
    assert len(found.finished) == 9
    assert len(set(specs(found))) == 9
    assert not found.running and not found.waiting
    assert all(row.state == "measured" for row in found.finished)


def test_a_trial_under_way_at_each_of_several_kills_of_the_command_is_not_given_up(tmp_path: Path) -> None:
    file = tmp_path / "killed.db"
    for _ in range(4):
        done = subprocess.run([sys.executable, TESTS / "search_fakes.py", file, "4", "0"], check=False)
        assert done.returncode == -signal.SIGKILL
    found = fakes.run(file, fakes.FakePool(), 4)
    assert [row.state for row in found.finished] == ["measured"] * 4


def test_a_trial_whose_process_dies_is_run_again_and_given_up_the_third_time(tmp_path: Path) -> None:
    first = fakes.run(tmp_path / "plain.db", fakes.FakePool(), 3)
    pool = fakes.FakePool()
    pool.dying = {specs(first)[0]: 1, specs(first)[1]: 99}
    found = fakes.run(tmp_path / "dying.db", pool, 4)
    states = {row.spec: row.state for row in found.finished}
    assert states[specs(first)[0]] == "measured"
    assert states[specs(first)[1]] == "failed"
    assert len(found.finished) == 4


def test_others_trials_are_left_alone_while_their_process_lives(tmp_path: Path) -> None:
    other = fakes.ledger(tmp_path / "s.db")
    row = other.begin(STRATEGIES["random"]().sampler)
    mine = fakes.ledger(tmp_path / "s.db")
    mine.owner = f"{mine.owner}x"
    mine.load()
    assert not mine.rows and not mine.waiting
    other.tell(replace(row, state="measured", measured=fakes.measured(row.spec)))
    mine.load()
    assert specs(mine) == [row.spec]


def test_a_thousand_trials_are_read_at_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def opened(count: int) -> int:
        file = tmp_path / f"{count}.db"
        fakes.run(file, fakes.FakePool(), count)
        listener = lambda *args: asked.append(args[2])  # noqa: E731
        event.listen(Engine, "before_cursor_execute", listener)
        try:
            asked.clear()
            again = fakes.ledger(file)
        finally:
            event.remove(Engine, "before_cursor_execute", listener)
        assert len(again.finished) == count
        return len(asked)

    assert opened(4) == opened(12), "as many questions to the storage, whatever the number of trials"
    assert not any("FROM trial_params" in text for text in asked), "no row for each parameter of each trial is read"


def test_other_tools_of_optuna_see_what_was_tried_and_a_trial_costs_few_questions(tmp_path: Path) -> None:
    asked: list[str] = []
    listener = lambda *args: asked.append(args[2])  # noqa: E731
    kept_here = fakes.ledger(tmp_path / "s.db")
    event.listen(Engine, "before_cursor_execute", listener)
    try:
        point = max((drawn(kept_here.space, random.Random(i)) for i in range(9)), key=len)
        row = kept_here.begin(STRATEGIES["random"]().sampler, point)
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    found = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path / 's.db'}").trials[row.number]
    assert found.params == row.point
    assert len(row.point) > 5
    assert len(asked) < 2 * len(row.point), "no question for each parameter"


# -- what is said while it goes on -------------------------------------------------------------------------------------


class WritingPool(fakes.FakePool):
    """One that writes a model for each spec."""

    def write(self, number: int, spec: str, path: Path) -> None:
        super().write(number, spec, path)
        builders.save(builders.mlp(seed=len(spec)), path)


def told_by(file: Path, pool: fakes.FakePool, trials: int) -> tuple[_Run, list[str]]:
    """A search on the formula, and what it says."""
    said: list[str] = []
    ledger = fakes.ledger(file)
    job = Job(Path("model.onnx"), output=file.with_name("out.onnx"), objective="size", budget=Budget(max_drop=0.02))
    run = _Run(job, ledger.space, ledger, pool, strategy("climb"), trials, None, said.append)
    said += opening(job, ledger, run.output, "s.db")
    run.all(SILENT)
    return run, said


def test_a_search_says_first_which_study_it_is_and_how_far_it_is(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    assert told_by(file, fakes.FakePool(), 2)[1][0] == "new study: size within max_drop 0.02, kept in s.db"
    assert told_by(file, fakes.FakePool(), 3)[1][0].startswith("resuming: 2 trials done; size within max_drop 0.02")
    killed = subprocess.run([sys.executable, TESTS / "search_fakes.py", file, "9", "1"], check=False)
    assert killed.returncode == -signal.SIGKILL
    run, said = told_by(file, fakes.FakePool(), 7)
    done = len(run.ledger.finished) - sum(line.startswith("trial ") for line in said)
    assert said[0].startswith(f"resuming: {done} trials done, 2 were cut off and run again under new numbers; ")
    last = max(row.number for row in run.ledger.finished)
    assert last > 6, "numbers were used up"
    found = replace(found_of(run.ledger.finished), rows=run.ledger.finished)
    assert f"(numbered 0 to {last}; {last - 6} not told: " in lines(found)[0]
    assert "numbered" not in lines(found_of(rows_of((1, 0.0))))[0]


def test_another_study_of_the_same_file_is_said_to_be_another(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    told_by(file, fakes.FakePool(), 1)
    judge = Judge("macs", Budget(max_drop=0.5), Source(fakes.BYTES, fakes.MACS))
    other = ledgers.open_ledger(str(file), "other", fakes.space(), judge)
    job = Job(Path("m.onnx"), output=tmp_path / "o.onnx", objective="macs", budget=Budget(max_size=Size(share=0.3)))
    (line,) = opening(job, other, Output(job, other), "s.db")
    assert line == (
        "new study: macs within max_size 30%, kept in s.db; "
        "not one of those kept there before (size within max_drop 0.02)"
    )


def test_each_trial_tells_how_far_the_search_is(tmp_path: Path) -> None:
    trials = [line for line in told_by(tmp_path / "s.db", fakes.FakePool(), 3)[1] if line.startswith("trial ")]
    assert [bool(re.search(rf" \({n} of 3 trials, \d+ s(, about \d+ s left)?\)$", trials[n - 1])) for n in (1, 2, 3)]
    assert [time_text(seconds) for seconds in (0.2, 59.6, 130, 3900, 7200)] == [
        "0 s",
        "1 min",
        "2 min 10 s",
        "1 h 5 min",
        "2 h",
    ]


def test_the_best_so_far_stands_whole_with_its_configuration_and_no_report_of_another(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run, _ = told_by(tmp_path / "s.db", WritingPool(), 2)
    assert isinstance(run.pool, WritingPool) and run.best is not None
    assert run.ledger.written == {str(out): sha256_of(out)}
    assert tomllib.loads(out.with_suffix(".toml").read_text())["model"][0]["passes"] == run.best.spec
    write_json(report_samples.report(), out.with_suffix(".json"))
    again, said = told_by(tmp_path / "s.db", WritingPool(), 20)
    assert not any("was not made by this study" in line for line in said)
    assert isinstance(again.pool, WritingPool) and again.pool.written, "a better one took its place"
    assert not out.with_suffix(".json").exists()


def test_a_model_that_the_study_did_not_make_stays_until_the_end(tmp_path: Path) -> None:
    out = builders.save(builders.mlp(seed=99), tmp_path / "out.onnx")
    before = out.read_bytes()
    run, said = told_by(tmp_path / "s.db", WritingPool(), 3)
    assert f"{out} ({size_text(len(before))}) was not made by this study: it stays until" in said[1]
    assert out.read_bytes() == before and run.best is not None and not out.with_suffix(".toml").exists()
    out.unlink()
    again, said = told_by(tmp_path / "s.db", WritingPool(), 3)
    assert sha256_of(out) == again.ledger.written[str(out)] and len(said) == 1, "the best known is put there"
    builders.save(builders.mlp(seed=98), out)
    assert told_by(tmp_path / "s.db", WritingPool(), 3)[0].output.foreign, "somebody put another one there"


def test_a_model_that_was_being_written_when_the_search_was_killed_is_written_again(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run, _ = told_by(tmp_path / "s.db", WritingPool(), 2)
    whole = out.read_bytes()
    run.ledger.note_written(str(out), BEGUN)
    out.write_bytes(builders.mlp(seed=1).SerializeToString())
    again, _ = told_by(tmp_path / "s.db", WritingPool(), 2)
    assert out.read_bytes() == whole and again.ledger.written[str(out)] == sha256_of(out)


# -- storages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sqlite:////proc/nowhere/s.db", EnvironmentLacksError),
        ("oracle+nothing://user:secret@host/db", UsageError),
        ("://", UsageError),
    ],
)
def test_a_storage_that_cannot_be_reached_is_an_error_of_three_lines(url: str, kind: type[Exception]) -> None:
    judge = Judge("size", Budget(), Source(1, 1))
    with pytest.raises(kind) as caught:
        ledgers.open_ledger(url, "s", fakes.space(), judge)
    assert len(str(caught.value).splitlines()) == 3
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("words", ["database or disk is full", "disk I/O error"])
def test_a_study_that_finds_no_space_is_an_output_that_cannot_be_written(words: str) -> None:
    with pytest.raises(OutputError, match="the study cannot be written"), ledgers._reaching("sqlite:////tmp/s.db"):
        raise sqlite3.OperationalError(words)


def test_a_file_that_is_no_study_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, and longer than the header of one " * 10)
    with pytest.raises(EnvironmentLacksError, match="cannot be reached"):
        fakes.ledger(file)
    assert file.read_text().startswith("not a database")


@pytest.mark.parametrize("url", ["{}", "sqlite:///{}", "sqlite+pysqlite:///{}?timeout=5"])
@pytest.mark.parametrize("holds", ["tables", "text"])
def test_a_search_refuses_a_file_of_something_else_before_any_work(tmp_path: Path, url: str, holds: str) -> None:
    file = tmp_path / "mine.db"
    if holds == "tables":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE customers(name)")
            connection.commit()
    else:
        file.write_text("my notes")
    before = file.read_bytes()
    job = Job(builders.save(builders.mlp(), tmp_path / "m.onnx"), objective="size", bench=False, allow_random=True)
    with pytest.raises(OutputError, match="none of Optuna's"):
        search(job, SearchKeys(study=url.format(file), trials=1))
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"mine.db", "m.onnx"}


def test_a_file_of_a_study_or_an_empty_one_is_taken(tmp_path: Path) -> None:
    made, empty = tmp_path / "made.db", tmp_path / "empty.db"
    fakes.ledger(made)
    empty.touch()
    for file in (made, empty, tmp_path / "new.db"):
        kept.check(file)


def test_without_optuna_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnvironmentLacksError) as caught:
        ledgers.require()
    assert "onnxcomp[search]" in caught.value.do


# -- one trial ---------------------------------------------------------------------------------------------------------


class FakeStudy:
    """Says what it is told to, and what it was asked."""

    def __init__(self, glance: Measured, whole: Measured | Exception, objective: str = "size") -> None:
        self.job = Job(Path("m.onnx"), objective=objective, budget=Budget(max_drop=0.01))  # type: ignore[arg-type]
        self.selecting = 10 * GLANCE
        self.glance, self.whole = glance, whole
        self.asked: list[tuple[str, int | None, bool]] = []

    def trial(self, spec: str, *, samples: int | None = None, timed: bool = True) -> Measured:
        self.asked.append((spec, samples, timed))
        found = self.whole if samples is None else self.glance
        if isinstance(found, Exception):
            raise found
        return found

    def write(self, spec: str, path: Path) -> list[Path]:
        raise NotImplementedError


GOOD = Measured("clip-weights", True, True, bytes=100, macs=10, drop=0.0, agreement=1.0, accuracy=0.9)


def test_a_hopeless_trial_ends_with_a_cheap_look() -> None:
    study = FakeStudy(replace(GOOD, sound=False, drop=0.6, agreement=0.4), GOOD)
    answer = evaluate(study, {"spec": "clip-weights", "best": None})
    assert answer["state"] == "stopped" and "falls by 0.600" in answer["why"]
    assert study.asked == [("clip-weights", GLANCE, False)]


def test_what_is_larger_than_the_best_and_no_closer_is_not_looked_at_further() -> None:
    best = {"bytes": 50, "macs": 10, "loss": 0.0}
    assert evaluate(FakeStudy(GOOD, GOOD), {"spec": "clip-weights", "best": best})["state"] == "stopped"
    assert (
        evaluate(FakeStudy(GOOD, GOOD), {"spec": "clip-weights", "best": best | {"bytes": 200}})["state"] == "measured"
    )
    latency = FakeStudy(GOOD, GOOD, "latency")
    assert evaluate(latency, {"spec": "clip-weights", "best": best})["state"] == "measured"


def test_a_loss_that_training_may_mend_stops_nothing() -> None:
    study = FakeStudy(replace(GOOD, drop=0.6, agreement=0.4), GOOD)
    answer = evaluate(study, {"spec": "clip-weights,distill", "best": None})
    assert answer["state"] == "measured"
    assert [spec for spec, *_ in study.asked] == ["clip-weights", "clip-weights,distill"]


@pytest.mark.parametrize("error", [DataError("the metric fails: no number"), ZeroDivisionError("division")])
def test_a_metric_that_fails_in_one_trial_fails_that_trial_only(error: Exception) -> None:
    answer = evaluate(FakeStudy(GOOD, error), {"spec": "clip-weights", "best": None})
    assert answer["state"] == "failed" and answer["measured"] is None
    assert str(getattr(error, "what", error)) in answer["why"]


# -- what is shown -----------------------------------------------------------------------------------------------------


def found_of(rows: list[Row], name: str = "model.onnx") -> Found:
    judge = Judge("size", Budget(max_drop=fakes.LIMIT), Source(fakes.BYTES, fakes.MACS, 2.0))
    return Found(Job(Path(name)), judge, rows, judge.best(rows), left={"distill": "it is <b>not</b> here"})


def rows_of(*figures: tuple[int, float]) -> list[Row]:
    base = fakes.measured("clip-weights")
    return [
        Row(
            n,
            f"spec-{n}",
            {},
            "measured",
            replace(base, bytes=size, drop=drop, accuracy=0.9 - drop, sound=drop <= 0.02),
        )
        for n, (size, drop) in enumerate(figures)
    ]


def test_the_front_holds_what_nothing_beats_and_the_best_keeps_the_budget() -> None:
    rows = rows_of((500, 0.0), (400, 0.01), (450, 0.01), (300, 0.5), (400, 0.01), (600, 0.0))
    told = to_json([*rows, Row(6, "x", {}, "failed", None, "it fell"), Row(7, "y", {})], found_of(rows).judge)
    assert set(told) == {"trials", "front", "best"}
    assert told["front"] == [3, 1, 0]
    assert told["best"] == 1
    keys = ["number", "spec", "sound", "bytes", "macs", "latency_ms", "accuracy", "sqnr_db", "seconds"]
    assert [list(trial) for trial in told["trials"]] == [keys] * 7
    assert told["trials"][6]["bytes"] is None and told["trials"][6]["sound"] is False
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_trial_stopped_early_is_neither_best_nor_on_the_front() -> None:
    rows = rows_of((500, 0.0), (100, 0.0))
    rows[1] = replace(rows[1], state="stopped")
    told = to_json(rows, found_of(rows).judge)
    assert told["best"] == 0 and told["front"] == [0]


def test_the_picture_has_the_best_and_the_front_in_their_places() -> None:
    rows = rows_of((100, 0.01), (500, 0.0), (300, 0.02), (400, 0.005))
    drawn = picture(rows, found_of(rows).judge, width=41, height=5)
    assert drawn[2].endswith("|*") and drawn[0].endswith("o")
    assert sum(line.count("o") + line.count("*") + line.count(".") for line in drawn[:5]) >= 4
    assert picture([], found_of(rows).judge) == []


def test_figures_of_a_search_say_what_they_are() -> None:
    found = found_of(rows_of((100_000, 0.01), (500_000, 0.0)))
    assert "best: trial 0: 10.0% of the size, metric -0.0100" in lines(found)
    assert "metric ±0</text>" in document(found) and "metric -0.0240</text>" in document(found)  # ends of the scale
    falls = replace(found.judge, source=replace(found.judge.source, metric="wer", higher_is_better=False))
    assert row_words(found.rows[0], falls) == "trial 0: 10.0% of the size, wer +0.0100"
    plain = [replace(r, measured=replace(r.measured, drop=None)) for r in found.rows if r.measured is not None]
    assert row_words(plain[0], found.judge) == "trial 0: 10.0% of the size, SQNR 30.0 dB"
    flat = picture(rows_of((100, 0.0), (500, 0.0)), found.judge, width=20, height=4)
    assert [line[:2] for line in flat[:4]] == ["±0", "  ", "  ", "  "]  # one loss, one label


def test_the_trials_of_a_search_are_cards_on_a_narrow_screen() -> None:
    whole = document(found_of(rows_of((100, 0.01), (500, 0.0))))
    assert 'class="scroll cards"' in whole and 'data-of="spec"' in whole and 'class="wide fit"' in whole


def test_a_search_without_a_sound_trial_says_so() -> None:
    assert "no trial keeps the budget" in lines(found_of(rows_of((100, 0.5))))


def test_the_page_holds_no_script_loads_nothing_and_hostile_names_stay_text() -> None:
    rows = [replace(row, spec="<script>alert(1)</script>\"'&") for row in rows_of((100, 0.01), (500, 0.0))]
    whole = document(found_of(rows, "<img src=x onerror=alert(1)>.onnx"))
    assert "<script" not in whole and "<img" not in whole and "<b>not</b>" not in whole
    assert not re.search(r"""<[^>]*\b(?:src|href)\s*=\s*["']?[^"'#]""", whole)
    for number in (0, 1):
        assert f'href="#trial-{number}"' in whole and f'id="trial-{number}"' in whole


def test_after_one_that_fails_comes_one_that_keeps_clearly_more() -> None:
    failed, near, far, equal = (
        replace(row, measured=replace(fakes.measured("clip-weights"), sqnr_db=db))
        for row, db in zip(rows_of(*[(1, 0.0)] * 4), (20.0, 20.5, 22.0, None), strict=True)
    )
    assert not closer(near, failed)
    assert closer(far, failed) and closer(equal, failed)


# -- what it is told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("15m", 900), ("1h30m", 5400), ("2h", 7200), ("1.5s", 1.5)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-5m", "5 parsecs"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time"):
        parse_time(text)


@pytest.mark.parametrize(
    ("job", "keys", "words"),
    [
        ({"objective": "accuracy"}, {}, "smaller or faster"),
        ({"objective": "latency", "bench": False}, {}, "without a benchmark"),
        ({"verify": False}, {}, "needs verification"),
        ({}, {"dask": "tcp://127.0.0.1:1", "workers": 2}, "--workers"),
        ({}, {"time_limit": "never"}, "no time"),
    ],
)
def test_contradictions_are_refused_before_any_work(
    tmp_path: Path, digits: Path, job: dict[str, Any], keys: dict[str, Any], words: str
) -> None:
    given = {"objective": "size", "output": tmp_path / "out.onnx", **job}
    with pytest.raises(UsageError, match=words):
        search(Job(digits, **given), SearchKeys(**keys))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_or_data_that_is_broken_is_told_before_anything_is_started(
    tmp_path: Path, digits: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("begun although nothing can be tried")

    monkeypatch.setattr(ledgers, "_optuna", never)
    monkeypatch.setattr(Processes, "source", never)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    np.savez(tmp_path / "wrong.npz", image=np.zeros((4, 3), np.float32))
    given: dict[str, Any] = {"objective": "size", "output": tmp_path / "out.onnx"}
    with pytest.raises(ModelError):
        search(Job(tmp_path / "broken.onnx", **given), SearchKeys(workers=workers))
    with pytest.raises(DataError):
        search(Job(digits, data=str(tmp_path / "wrong.npz"), **given), SearchKeys(workers=workers))
    assert not list(tmp_path.glob("out*"))


def test_one_point_is_no_picture_and_every_trial_is_told() -> None:
    rows = rows_of((100, 0.0), (100, 0.0))
    assert picture(rows, found_of(rows).judge) == []
    assert not any("* best" in line for line in lines(found_of(rows)))
