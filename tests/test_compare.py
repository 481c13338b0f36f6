"""Does compare tell variants apart by what they are, and refuse those that answer to other questions?"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcomp
from onnxcomp.cli.main import main
from onnxcomp.comparison import compare, labels_of
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.report.comparison import cells, markdown, page


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def variants(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The original, an exact copy of another name, and one whose last layer was turned around."""
    folder = tmp_path_factory.mktemp("variants")
    same, wrong = folder / "same.onnx", folder / "wrong.onnx"
    shutil.copy(digits, same)
    proto = onnx.load(digits)
    last = proto.graph.node[-1].input[1]
    for tensor in proto.graph.initializer:
        if tensor.name == last:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), last))
    onnx.save(proto, wrong)
    return [digits, same, wrong]


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_every_variant_is_held_against_the_first(variants: list[Path], digits_data: tuple[Path, Path]) -> None:
    found = compare(variants, digits_data[1], eval_samples=100, bench=False)
    first, same, wrong = found.variants
    assert found.samples == 100 and first.fidelity is None and first.benchmark is None
    assert same.fidelity is not None and same.fidelity.identical
    assert wrong.fidelity is not None and (wrong.fidelity.worst_sqnr_db or 0) < 0
    assert first.accuracy is not None and first.accuracy.drop == 0 and first.accuracy.after > 0.95
    assert wrong.accuracy is not None and wrong.accuracy.drop > 0.8
    assert first.stats.macs == same.stats.macs > 0 and first.sha256 == same.sha256 != wrong.sha256
    judged = onnxcomp.verify(variants[0], variants[2], digits_data[1], eval_samples=100)
    assert judged.accuracy is not None  # as the pair alone is judged, which tells an interval besides
    assert replace(judged.accuracy, interval=None) == wrong.accuracy
    assert judged.fidelity == wrong.fidelity


def test_one_table_in_every_form(
    variants: list[Path], digits_data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", digits_data[1], "--eval-samples", "40", "--bench-seconds", "0.05"]
    assert command("compare", *variants, *words, "--json", "c.json", "--markdown", "-", "--html", "c.html") == 0
    told = capsys.readouterr()
    table = [line for line in told.out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(variants) and "█" in told.err and "█" not in told.out
    content = json.loads(Path("c.json").read_text())
    assert [one["label"] for one in content["models"]] == ["digits-cnn.onnx", "same.onnx", "wrong.onnx"]
    assert content["models"][0]["speedup"] is None and content["models"][1]["speedup"] > 0
    assert all(one["latency_ms"]["p50"] > 0 for one in content["models"]) and content["metric"] == "top1"
    shown = Path("c.html").read_text()
    assert (
        shown.count("</text><circle") + shown.count("<circle") >= 2 * len(variants)
        and "wrong.onnx" in shown
        and "<script" not in shown
    )
    assert command("compare", *variants, "--json", "-", "--markdown", "-") == 6


def test_without_data_nothing_is_said_of_the_answers(variants: list[Path]) -> None:
    found = compare(variants[:2], bench=False)
    assert found.samples == 0 and found.variants[1].fidelity is None
    assert any("no --data" in note for note in found.notes)
    assert "SQNR" not in markdown(found.to_json())
    made_up = compare(variants[:2], bench=False, allow_random=True)
    assert made_up.variants[1].fidelity is not None and any("made-up" in line for line in made_up.doubts)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"models": [0]}, UsageError, "nothing to compare"),
        ({"labels": np.zeros(3)}, DataError, "need real data"),
        ({"metric": "m.py:f"}, DataError, "need real data"),
    ],
)
def test_what_cannot_be_compared_is_said(
    given: dict[str, Any], error: type[Exception], words: str, variants: list[Path]
) -> None:
    chosen = [variants[index] for index in given.pop("models", [0, 1])]
    with pytest.raises(error, match=words):
        compare(chosen, **given, bench=False)


def test_models_of_other_inputs_or_outputs_are_refused(variants: list[Path], tmp_path: Path) -> None:
    other = builders.save(builders.mlp(), tmp_path / "mlp.onnx")
    with pytest.raises(ModelError, match="different inputs"):
        compare([*variants, other], allow_random=True)
    proto = onnx.load(variants[0])
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "scores"
    renamed = builders.save(proto, tmp_path / "renamed.onnx")
    with pytest.raises(ModelError, match="different outputs"):
        compare([variants[0], renamed], allow_random=True)


def test_the_library_takes_models_in_memory(variants: list[Path], digits_data: tuple[Path, Path]) -> None:
    protos = [onnx.load(path) for path in variants]
    found = onnxcomp.compare(*protos, data=digits_data[1], eval_samples=20, bench=False)
    assert [one.label for one in found.variants] == ["model.onnx", "model-2.onnx", "model-3.onnx"]
    assert "3 models" in repr(found) and "<table>" in found._repr_html_()


def test_labels_are_unique() -> None:
    paths = [Path("a/m.onnx"), Path("b/m.onnx"), Path("n.onnx"), Path("b/m.onnx")]
    assert labels_of(paths) == ["a/m.onnx", "b/m.onnx (1)", "n.onnx", "b/m.onnx (2)"]


def test_names_break_no_table_and_no_page(variants: list[Path]) -> None:
    content = compare(variants[:2], bench=False, allow_random=True).to_json()
    content["models"][1]["label"] = "a|<b>\x1b"
    row = markdown(content).splitlines()[3]
    assert row.count(" | ") == markdown(content).splitlines()[0].count(" | ") and "<b>" not in row and "\x1b" not in row
    assert "<b>" not in page(content) and cells(content)[1][0] == "a|<b>\x1b"
