"""Are the commands that a page proposes ones that run, and answers to what was missed?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import onnxcomp
from onnxcomp.cli.main import main
from onnxcomp.manager.spec import parse_passes
from onnxcomp.report import html, html_index
from onnxcomp.report.advice import next_steps
from onnxcomp.results import BuildReport, BuiltModel

INT8 = "fold-constants,fuse-batchnorm,quantize-qdq{activations=mse}"


@pytest.fixture(scope="module")
def missed(digits: Path, digits_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> onnxcomp.Result:
    """An int8 model of which more was asked than it keeps."""
    out = tmp_path_factory.mktemp("missed") / "o.onnx"
    given: dict[str, Any] = {"data": digits_data[0], "passes": INT8, "bench": False, "output": out}
    return onnxcomp.optimize(digits, **given, min_sqnr=90.0, max_size="1%")


def code_of(command: str) -> int:
    name, *words = shlex.split(command)
    assert name == "onnxcomp"
    with pytest.raises(SystemExit) as stop:
        main([*words, "-q"])
    return int(stop.value.code or 0)


def test_a_missed_budget_is_answered_with_commands_that_run(
    missed: onnxcomp.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = {step.command.split()[1]: step.command for step in next_steps(missed)}
    assert missed.verdict == "over-budget" and set(steps) == {"explain", "optimize"}
    assert code_of(steps["explain"] + " --samples 4 --no-times") == 0
    kept = next(step.command for step in next_steps(missed) if "exclude" in step.command)
    words = shlex.split(kept)
    fused, quantize = parse_passes(words[words.index("--passes") + 1])
    worst = min(
        (layer for layer in missed.layers if layer.own_sqnr_db is not None), key=lambda layer: layer.own_sqnr_db or 0
    )
    assert worst.node in quantize.exclude and quantize.activations == "mse" and len(quantize.exclude) == 3  # type: ignore[attr-defined]
    assert fused.name == "fuse-batchnorm"  # what found nothing to do is left out
    assert words.count("--passes") == 1 and "--min-sqnr" in words
    smaller = next(step.command for step in next_steps(missed) if "quantize-weights" in step.command)
    assert parse_passes(shlex.split(smaller)[shlex.split(smaller).index("--passes") + 1])


def test_the_kept_command_makes_a_configuration(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = onnxcomp.optimize(digits, passes="fuse-batchnorm", bench=False, output="o.onnx")
    first, second = next_steps(report)
    assert "--data SAMPLES" in first.command and "--save-config" in second.command
    assert code_of(second.command) == 0 and onnxcomp.build().exit_code == 0


def test_a_page_says_what_judged_how_to_repeat_and_what_to_try(missed: onnxcomp.Result) -> None:
    missed.notes.append("tried, not used: recipe dynamic: no gain: 100% of the size")
    content = html.document(missed, "2026-01-02 03:04 UTC")
    order = [
        content.index(words) for words in (">over-budget<", "Judged on", 'id="budgets"', '"tiles"', "<nav", "<main")
    ]
    assert order == sorted(order)  # verdict and budgets before everything, on the narrowest screen
    for words in ("onnxcomp optimize", "that calibration did not see", "2026-01-02", "Tried, not used", "exclude="):
        assert words in content, words
    assert content.count("recipe dynamic: no gain") == 1 and "written" not in html.document(missed)


def test_rows_of_a_build_are_cards_on_a_narrow_screen(missed: onnxcomp.Result) -> None:
    model = BuiltModel("m", "built", missed.exit_code, "o.onnx", "o.json", report=missed)
    content = html_index.document(BuildReport("onnxcomp.toml", [model]), {})
    assert 'class="scroll cards"' in content and 'data-of="budgets"' in content
    assert content.index('data-of="result"') < content.index('data-of="budgets"') < content.index('data-of="size"')


def test_what_is_to_be_explained_sees_the_pictures_as_the_run_did(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data": digits_data[0], "passes": "fuse-batchnorm,quantize-weights", "bench": False}
    report = onnxcomp.optimize(digits, **given, output=tmp_path / "o.onnx", mean=0.25, std=0.5, resize="stretch")
    (words,) = [shlex.split(step.command) for step in next_steps(report) if " explain " in step.command]
    assert words[-6:] == ["--mean", "0.25", "--std", "0.5", "--resize", "stretch"]
