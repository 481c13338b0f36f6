"""bench, verify and doctor as a person or a script calls them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest

from onnxcomp.cli.main import main
from onnxcomp.verify.provenance import stamp


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code if isinstance(stopped.value.code, int) else 1


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model and a copy whose last layer is turned round."""
    proto = builders.mlp((16, 32, 10))
    before = builders.save(proto, tmp_path / "before.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("fc2"):
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(-array, tensor.name))
    return before, builders.save(proto, tmp_path / "after.onnx")


@pytest.fixture
def data(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    """Samples whose labels are the first model's answers."""
    x = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    labels = builders.run(pair[0], {"x": x})[0].argmax(axis=1)
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    return tmp_path / "data.npz"


# -- verify --


def test_verify_prints_one_screen_and_writes_json(
    pair: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("verify", *pair, "--data", data, "--json", tmp_path / "v.json") == 0
    out = capsys.readouterr().out
    assert "top1" in out and "SQNR" in out and "60 samples" in out
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["exit_code"] == 0
    low, high = found["accuracy"].pop("interval")
    assert 0.9 < low < high == 1.0  # no drop is larger than that
    assert found["accuracy"] == {"metric": "top1", "samples": 60, "before": 1.0, "after": 0.0, "drop": 1.0}
    assert found["fidelity"]["source"] == "data"
    assert found["before"]["bytes"] == pair[0].stat().st_size
    assert found["benchmarks"] == []


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        (("--max-size", "200%"), 0),
        (("--max-drop", "0.5"), 10),
        (("--max-size", "50%"), 11),
        (("--max-size", "1MB", "--min-sqnr", "20"), 14),
        (("--min-sqnr", "20", "--max-size", "101"), 11),
        (("--min-sqnr", "20", "--max-size", "101", "--max-drop", "0"), 10),
        (("--max-size", "lots"), 2),
        (("--min-speedup", "1000"), 12),
    ],
)
def test_verify_exits_by_budget(pair: tuple[Path, Path], data: Path, budget: tuple[str, ...], code: int):
    assert call("verify", *pair, "--data", data, "-q", *budget) == code


def test_a_model_against_itself_is_identical(
    pair: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--min-sqnr", "900", "--max-drop", "0", "--json", tmp_path / "v.json")
    assert call("verify", pair[0], pair[0], "--data", data, *arguments) == 0
    assert "identical" in capsys.readouterr().out
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["fidelity"]["outputs"]["y"]["sqnr_db"] is None
    assert {line["name"]: line["value"] for line in found["budget"]} == {"max_drop": 0.0, "min_sqnr": None}


def test_verify_asks_for_data_before_any_work(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("verify", *pair) == 4
    assert "--allow-random" in capsys.readouterr().err
    np.savez(tmp_path / "plain.npz", x=np.ones((4, 16), np.float32))
    assert call("verify", *pair, "--data", tmp_path / "plain.npz", "--max-drop", "0.1") == 4
    assert "--max-drop needs a task metric" in capsys.readouterr().err
    assert call("verify", *pair, "--allow-random", "--max-drop", "0.1") == 4


def test_made_up_samples_are_called_so(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assert call("verify", *pair, "--allow-random") == 0
    assert "made-up samples" in capsys.readouterr().out


def test_verify_refuses_what_cannot_be_compared(pair: tuple[Path, Path], data: Path, tmp_path: Path):
    other = builders.save(builders.residual_cnn(), tmp_path / "other.onnx")
    assert call("verify", pair[0], other, "--data", data) == 3
    assert call("verify", pair[0], tmp_path / "absent.onnx", "--data", data) == 3
    assert call("verify", *pair, "--data", tmp_path / "absent.npz") == 4
    assert call("verify", *pair, pair[0], "--data", data) == 2
    assert call("verify") == 2


def test_verify_takes_a_metric_of_the_user(pair: tuple[Path, Path], data: Path, tmp_path: Path):
    script = tmp_path / "metrics.py"
    script.write_text("def size(outputs, labels):\n    return float(abs(outputs['y']).mean())\n")
    arguments = ("--metric", f"{script}:size:min", "--json", tmp_path / "v.json", "-q")
    assert call("verify", *pair, "--data", data, *arguments) == 0
    found = json.loads((tmp_path / "v.json").read_text())["accuracy"]
    assert found["metric"] == "size" or found["metric"].endswith(":size")
    assert found["drop"] == pytest.approx(0, abs=1e-6)


def test_verify_of_an_artifact_prints_its_provenance(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    proto = builders.mlp()
    onnx.helper.set_model_props(proto, stamp(version="9.9", source_sha256="ab" * 32, spec="cleanup"))
    path = builders.save(proto, tmp_path / "m.opt.onnx")
    assert call("verify", path, "--json", tmp_path / "p.json") == 0
    out = capsys.readouterr().out
    assert "version 9.9" in out and "spec cleanup" in out and "no report beside it" in out
    assert json.loads((tmp_path / "p.json").read_text())["recorded"]["onnxcomp.spec"] == "cleanup"
    assert call("verify", builders.save(builders.mlp(), tmp_path / "plain.onnx")) == 3


# -- bench --


def test_bench_prints_a_table_and_writes_json(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("bench", *pair, "--seconds", "0.3", "--batch", "4", "--json", tmp_path / "b.json") == 0
    out = capsys.readouterr().out
    assert "before.onnx" in out and "after.onnx" in out and "made-up data" in out and "x [4, 16]" in out
    found = json.loads((tmp_path / "b.json").read_text())
    (bench,) = found["benchmarks"]
    assert found["synthetic"] is True
    assert (bench["provider"], bench["batch"], bench["threads"]) == ("CPUExecutionProvider", 4, 1)
    assert bench["nodes_on_provider"] > 0 and bench["nodes_elsewhere"] == 0
    assert bench["outcome"] in ("faster", "slower", "no change")
    low, high = bench["speedup_interval"]
    assert low < bench["speedup"] < high


def test_bench_of_one_model_shows_the_noise(pair: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str]):
    assert call("bench", pair[0], "--seconds", "0.3", "--data", data, "--provider", "CPUExecutionProvider") == 0
    out = capsys.readouterr().out
    assert "the same again" in out and "made-up" not in out and "data.npz" in out


def test_bench_takes_batches_beside_sizes(tmp_path: Path):
    """--shape names every size, the free batch among them: --batch goes first."""
    path = builders.save(builders.transformer(), tmp_path / "t.onnx")
    sizes = ("--shape", "input_ids=1x7", "--shape", "attention_mask=1x7")
    arguments = ("--seconds", "0.1", "--batch", "1,4", "--json", tmp_path / "b.json")
    assert call("bench", path, *sizes, *arguments) == 0
    found = json.loads((tmp_path / "b.json").read_text())["benchmarks"]
    assert [(one["batch"], one["shapes"]["input_ids"]) for one in found] == [(1, [1, 7]), (4, [4, 7])]
    assert call("bench", path, "--shape", "input_ids=3x7", "--shape", "attention_mask=3x7", *arguments[:2]) == 0


def test_bench_of_a_dynamic_model_says_what_it_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = builders.save(builders.transformer(), tmp_path / "t.onnx")
    assert call("bench", path, "--seconds", "0.2") == 0
    assert "--shape" in capsys.readouterr().out
    shapes = ("--shape", "input_ids=1x5", "--shape", "attention_mask=1x5")
    assert call("bench", path, "--seconds", "0.2", *shapes) == 0
    assert "input_ids [1, 5]" in capsys.readouterr().out


def test_bench_refuses_a_provider_that_is_not_there(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--seconds", "0.2", "--json", tmp_path / "b.json")
    assert (
        call(
            "bench",
            *pair,
            "--provider",
            "cpu",
            "--provider",
            "coreml" if sys.platform != "darwin" else "dml",
            *arguments,
        )
        == 5
    )
    captured = capsys.readouterr()
    assert captured.out == ""  # found out before anything is measured
    assert not (tmp_path / "b.json").exists()
    assert call("bench", *pair, "--provider", "gpu", *arguments) == 2


def test_bench_refuses_what_it_cannot_time(pair: tuple[Path, Path], data: Path, tmp_path: Path):
    other = builders.save(builders.residual_cnn(), tmp_path / "other.onnx")
    assert call("bench", pair[0], other, "--seconds", "0.2") == 3
    assert call("bench", pair[0], "--data", data, "--batch", "61") == 4
    assert call("bench", pair[0], "--seconds", "0") == 2
    assert call("bench") == 2
    assert call("bench", pair[0], "--seconds", "0.2", "--json", pair[0] / "b.json") == 6


# -- doctor and the rest --


def test_doctor_says_what_runs_here(capsys: pytest.CaptureFixture[str]):
    assert call("doctor") == 0
    out = capsys.readouterr().out
    assert "provider cpu" in out and "provider cuda" in out and "provider tensorrt" in out
    assert "exact" in out or "saturating" in out
    assert np.__version__ in out


@pytest.mark.parametrize("command", ["bench", "verify", "doctor"])
def test_help_does_not_import_the_runtime(command: str):
    code = (
        "import sys; from onnxcomp.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'onnxruntime', 'rich', 'onnx', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_is_drawn_on_a_terminal_and_nested(tmp_path: Path):
    code = (
        "from onnxcomp.cli.progress import Bar\n"
        "bar = Bar()\n"
        "for _ in bar.track(range(3), 3, 'outer work'):\n"
        "    assert list(bar.track(range(2), None, 'inner work')) == [0, 1]\n"
        "print('done')\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, env=environment, check=True)
    os.close(follower)
    drawn = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert ran.stdout == b"done\n"
    assert "outer work" in drawn
    silent = subprocess.run(command, capture_output=True, check=True)
    assert silent.stderr == b""
