"""Does `onnxcomp plan` show the trades, and does `optimize --plan` carry an edited plan out?"""

from __future__ import annotations

import json
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest

from onnxcomp.cli.main import group, main
from onnxcomp.manager.plan import Plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its data."""
    place = tmp_path_factory.mktemp("plan")
    proto = builders.residual_cnn(channels=32)
    builders.save(proto, place / "m.onnx")
    np.savez(place / "d.npz", **builders.feeds_of(proto, batch=64))
    return place


def run(*arguments: str) -> int:
    code: int = group.main(list(arguments), standalone_mode=False)
    return code


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(str(ended.value.code)), capsys.readouterr().err.splitlines()


def test_front_and_plan_are_told_as_json_and_the_plan_is_carried_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = str(folder / "m.onnx"), str(folder / "d.npz"), tmp_path / "plan.toml"
    asked = ("--data", data, "--no-bench", "--min-sqnr", "30", "--points", "5")
    assert run("plan", model, *asked, "--json", "-", "-o", str(out), "-q") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["front"]) >= 3
    assert set(told["front"][0]) == {"predicted_sqnr_db", "predicted_time", "predicted_bytes", "forms"}
    assert Plan.read(out).data() == told["plan"]
    assert not list(folder.glob("*.opt.*")) and not list(tmp_path.glob("*.onnx"))

    edited = out.read_text() + '\n[[layers]]\nnode = "stem"\nform = "float"\n'
    out.write_text(edited)
    result = tmp_path / "r.onnx"
    assert run("optimize", model, "--data", data, "--no-bench", "--plan", str(out), "-o", str(result), "-q") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert "plan followed" in next(p["summary"] for p in report["passes"] if p["name"] == "mixed-precision")
    weights = {t.name: t.data_type for t in onnx.load(result).graph.initializer}
    assert weights["stem.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.INT8 in weights.values()
    assert out.read_text() == edited and not (tmp_path / "r.plan.toml").exists()


def test_a_point_of_the_front_can_be_taken(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("plan", str(folder / "m.onnx"), "--data", str(folder / "d.npz"), "--no-bench")
    assert run(*arguments, "--point", "1", "-o", str(tmp_path / "p.toml")) == 0
    shown = capsys.readouterr().out
    assert "SQNR, predicted" in shown and "layers by form" in shown
    assert Plan.read(tmp_path / "p.toml").about.startswith("point 1 of")
    code, lines = refused(capsys, *arguments, "--point", "99", "-q")
    assert code == 2 and lines[0].startswith("error: there is no point 99") and len(lines) == 3


def test_a_budget_that_nothing_keeps_ends_with_thirteen(folder: Path, tmp_path: Path) -> None:
    asked = ("--data", str(folder / "d.npz"), "--no-bench", "--min-sqnr", "300", "--max-size", "5%")
    assert run("plan", str(folder / "m.onnx"), *asked, "-q", "-o", str(tmp_path / "p.toml")) == 13
    assert not (tmp_path / "p.toml").exists()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--plan", "none.toml"), "none.toml"),
        (("--plan", "bad.toml"), "the plan cannot be followed: it is no plan of schema 1"),
        (("--plan", "name.toml"), "no node of the model is called 'nowhere'"),
        (("--plan", "name.toml", "--passes", "cleanup"), "--passes and --plan exclude each other"),
    ],
)
def test_a_plan_that_cannot_be_followed_ends_in_three_lines_and_code_two(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], what: str
) -> None:
    (tmp_path / "bad.toml").write_text("schema = 7")
    (tmp_path / "name.toml").write_text('schema = 1\n[[layers]]\nnode = "nowhere"\nform = "half"')
    given = [str(tmp_path / word) if word.endswith(".toml") else word for word in flags]
    out = tmp_path / "o.onnx"
    asked = ("--data", str(folder / "d.npz"), "--no-bench", "-o", str(out), "-q")
    code, lines = refused(capsys, "optimize", str(folder / "m.onnx"), *asked, *given)
    assert code == 2 and len(lines) == 3 and what in "\n".join(lines)
    assert not out.exists()


def test_what_a_run_decides_is_written_beside_its_result(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    spec = "fuse-batchnorm,mixed-precision{min_sqnr=30}"
    arguments = ("--data", str(folder / "d.npz"), "--no-bench", "-o", str(out), "--passes", spec, "-q")
    assert run("optimize", str(folder / "m.onnx"), *arguments) == 0
    report = json.loads((tmp_path / "o.json").read_text())
    record = next(p for p in report["passes"] if p["name"] == "mixed-precision")
    assert Plan.read(tmp_path / "o.plan.toml").data() == record["documents"]["plan"]


@pytest.mark.parametrize("points", ["1", "1000000000"])
def test_points_of_the_front_are_bounded(
    folder: Path, points: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code, (error, *_) = refused(capsys, "plan", "m.onnx", "--data", "d.npz", "--points", points)
    assert code == 2
    assert "2<=x<=1000" in error
