"""Does a whole run keep its promises? Verdicts, exit codes, files and report.json, on the digits model."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp import driver
from onnxcomp.cli.main import main
from onnxcomp.errors import DataError, ModelError, OutputError, UsageError
from onnxcomp.files import sha256_of
from onnxcomp.lock import folder_lock, try_lock

FAST = {"bench": False, "eval_samples": 200, "calib_samples": 64}
INT8 = "fold-constants,cleanup,fuse-batchnorm,quantize-qdq"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_default_run_compresses_the_digits_model_and_proves_it(digits: Path, digits_data: tuple[Path, Path]) -> None:
    calibration, test = digits_data
    before = sha256_of(digits)
    code = command("optimize", digits, "--data", calibration, "--eval-data", test, "--max-drop", "0.01", "--no-bench")
    assert code == 0
    report = json.loads(Path("digits-cnn.opt.json").read_text())
    assert report["schema"] == 1
    assert (report["verdict"], report["exit_code"]) == ("accepted", 0)
    assert report["after"]["bytes"] < 0.35 * report["before"]["bytes"] == 0.35 * digits.stat().st_size
    assert report["after"]["bytes"] == Path("digits-cnn.opt.onnx").stat().st_size
    assert report["accuracy"]["metric"] == "top1"
    assert report["accuracy"]["samples"] == 797
    assert report["accuracy"]["drop"] <= 0.01
    assert report["output"]["sha256"] == sha256_of(Path("digits-cnn.opt.onnx"))
    assert report["source"]["sha256"] == before == sha256_of(digits)
    assert report["budget"] == [
        {"name": "max_drop", "limit": 0.01, "value": report["accuracy"]["drop"], "passed": True, "share": None}
    ]
    assert {layer["precision"][1] for layer in report["layers"] if layer["op"] == "Conv"} == {"int8"}
    assert any(layer["own_sqnr_db"] is not None for layer in report["layers"])


def test_the_same_run_twice_writes_the_same_bytes(digits: Path, digits_data: tuple[Path, Path]) -> None:
    for name in ("a.onnx", "b.onnx"):
        report = onnxcomp.optimize(digits, output=name, data=digits_data[0], passes=INT8, **FAST)
        assert report.exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_provenance_stands_in_the_model_and_verify_accepts_it(digits: Path, digits_data: tuple[Path, Path]) -> None:
    onnxcomp.optimize(digits, data=digits_data[0], passes=INT8, **FAST)
    props = {p.key: p.value for p in onnx.load("digits-cnn.opt.onnx").metadata_props}
    assert props["onnxcomp.source.sha256"] == sha256_of(digits)
    assert props["onnxcomp.spec"] == INT8
    assert command("verify", "digits-cnn.opt.onnx") == 0


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        ({"max_drop": -1.0}, 10),
        ({"max_size": "1%"}, 11),
        ({"min_sqnr": 300.0}, 14),
        ({"max_size": "1%", "min_sqnr": 300.0}, 11),
        ({"max_drop": -1.0, "max_size": "1%"}, 10),
    ],
)
def test_a_missed_budget_keeps_the_model_away_from_its_name(
    digits: Path, digits_data: tuple[Path, Path], budget: dict[str, float | str], code: int
) -> None:
    report = onnxcomp.optimize(digits, data=digits_data[0], passes=INT8, **budget, **FAST)
    assert (report.verdict, report.exit_code) == ("over-budget", code)
    assert not Path("digits-cnn.opt.onnx").exists()
    assert Path("digits-cnn.rejected.onnx").exists()
    assert json.loads(Path("digits-cnn.opt.json").read_text())["exit_code"] == code


def test_explicit_passes_that_change_nothing_end_with_13(digits: Path) -> None:
    onnxcomp.optimize(digits, output="clean.onnx", passes="fold-constants,cleanup", **FAST)
    source = Path("clean.onnx") if Path("clean.onnx").exists() else digits
    report = onnxcomp.optimize(source, output="again.onnx", passes="fold-constants,cleanup", **FAST)
    assert (report.verdict, report.exit_code, report.output) == ("unchanged", 13, None)
    assert not Path("again.onnx").exists()


def test_a_default_run_with_nothing_to_gain_says_so(tmp_path: Path) -> None:
    tiny = builders.save(builders.mlp((4, 3, 2)), tmp_path / "tiny.onnx")
    assert command("optimize", tiny, "--no-bench", "-q") == 13
    report = json.loads(Path("tiny.opt.json").read_text())
    assert (report["verdict"], report["output"]) == ("unchanged", None)
    assert not Path("tiny.opt.onnx").exists()


def test_without_data_the_report_says_what_data_would_add(digits: Path) -> None:
    report = onnxcomp.optimize(digits, bench=False)
    assert report.calibration is None
    assert report.fidelity is not None
    assert report.fidelity.source == "synthetic"
    assert any("--data" in note for note in report.notes)
    assert report.accuracy is None


def test_random_calibration_needs_the_flag(digits: Path) -> None:
    with pytest.raises(DataError, match="quantize-qdq needs calibration data"):
        onnxcomp.optimize(digits, passes=INT8, **FAST)
    report = onnxcomp.optimize(digits, passes=INT8, allow_random=True, **FAST)
    assert report.calibration is not None
    assert report.calibration.source == "random data"
    assert any("random" in note for note in report.notes)


@pytest.mark.parametrize(("form", "said"), [("integer", False), ("binary", True)])
def test_a_model_that_asked_for_passes_ruined_is_told_so(form: str, said: bool, digits: Path, tmp_path: Path) -> None:
    """No budget refuses it, and training may mend it: it is written, with a plain word."""
    report = onnxcomp.optimize(
        digits, output=tmp_path / "o.onnx", passes=f"quantize-weights{{form={form}}}", bench=False
    )
    assert report.verdict == "accepted"
    assert ("would not take this" in report.reason) is said


def test_json_holds_no_nan_or_infinity(digits: Path, digits_data: tuple[Path, Path]) -> None:
    onnxcomp.optimize(digits, data=digits_data[0], passes="cleanup,fold-constants,fuse-batchnorm", **FAST)

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} in report.json")

    json.loads(Path("digits-cnn.opt.json").read_text(), parse_constant=refuse)


def test_max_drop_without_labels_is_refused_before_any_work(digits: Path, tmp_path: Path) -> None:
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    assert command("optimize", digits, "--data", tmp_path / "x.npz", "--max-drop", "0.01") == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"passes": "cleanup", "recipe": "int8"}, UsageError),
        ({"passes": "clenup"}, UsageError),
        ({"recipe": "int7"}, UsageError),
        ({"verify": False, "max_drop": 0.1}, UsageError),
        ({"bench": False, "min_speedup": 1.1}, UsageError),
        ({"output": "/dev/null/x.onnx"}, OutputError),
        ({"colour": "rgb"}, UsageError),
    ],
)
def test_wrong_options_fail_before_any_work(digits: Path, options: dict[str, object], error: type[Exception]) -> None:
    start = set(Path().iterdir())
    with pytest.raises(error):
        onnxcomp.optimize(digits, **options)  # type: ignore[arg-type]
    assert set(Path().iterdir()) == start


def test_the_input_is_never_the_output(digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(digits.read_bytes())
    with pytest.raises(OutputError, match="overwrite the input"):
        onnxcomp.optimize(copy, output=copy, passes="cleanup")
    assert copy.read_bytes() == digits.read_bytes()


def test_a_report_cannot_take_the_place_of_the_model(digits: Path) -> None:
    with pytest.raises(OutputError, match="one name"):
        onnxcomp.optimize(digits, output="x.onnx", report="x.onnx", passes="cleanup")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12\x00"])
def test_a_file_that_is_no_model_ends_with_3(tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(content)
    assert command("optimize", bad) == 3
    with pytest.raises(ModelError):
        onnxcomp.load(bad)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_ends_with_6(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    assert command("optimize", digits, "-o", folder / "x.onnx") == 6


@pytest.mark.parametrize(("how", "after_s"), [(signal.SIGINT, 2.5), (signal.SIGKILL, 1.0), (signal.SIGKILL, 3.0)])
def test_an_interrupted_run_leaves_no_half_file(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path, how: signal.Signals, after_s: float
) -> None:
    """Whenever it comes: the output is whole or absent, and nothing else lies around."""
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxcomp", "optimize", str(digits), "--data", str(digits_data[0])],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    time.sleep(after_s)
    process.send_signal(how)
    process.communicate(timeout=60)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"digits-cnn.opt.onnx", "digits-cnn.opt.json"}
    for path in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(str(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("background", [False, True])
def test_a_terminated_run_ends_as_an_interrupted_one(
    digits: Path, digits_data: tuple[Path, Path], tmp_path, background: bool
) -> None:
    """Shells let what they start in the background ignore Ctrl-C; it ends all the same."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if background else []
    process = subprocess.Popen(
        [*shell, sys.executable, "-m", "onnxcomp", "optimize", str(digits), "--data", str(digits_data[0])],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(scratch)},
    )
    deadline = time.monotonic() + 60
    while not any(scratch.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"interrupted" in said
    assert not any(path.name.startswith("onnxcomp-") for path in scratch.iterdir())


def test_an_interrupt_within_executed_source_ends_with_the_documented_code(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path
) -> None:
    """CPython remembers such an interrupt beyond its handling: `python -m` would end by a signal."""
    (tmp_path / "own.py").write_text("def stops(outputs, labels):\n    exec('raise KeyboardInterrupt')\n")
    judged = ["verify", digits, digits, "--data", digits_data[0], "--metric", "own.py:stops"]
    ended = subprocess.run(
        [sys.executable, "-m", "onnxcomp", *map(str, judged)],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 130, ended.stderr
    assert "interrupted" in ended.stderr


def test_several_inputs_and_a_custom_metric(tmp_path: Path) -> None:
    model = builders.save(builders.transformer(), tmp_path / "t.onnx")
    for name, seed in (("a.npz", 1), ("b.npz", 2)):
        np.savez(tmp_path / name, **builders.transformer_feed(batch=24, seed=seed))
    (tmp_path / "m.py").write_text(
        "def spread(outputs, labels):\n    return float(next(iter(outputs.values())).std())\n"
    )
    report = onnxcomp.optimize(
        model,
        data=str(tmp_path / "a.npz"),
        eval_data=str(tmp_path / "b.npz"),
        metric=f"{tmp_path / 'm.py'}:spread:min",
        passes="cleanup,quantize-weights{bits=8}",
        bench=False,
    )
    assert report.accuracy is not None
    assert report.accuracy.samples == 24
    assert math.isclose(report.accuracy.drop, report.accuracy.after - report.accuracy.before, abs_tol=1e-6)


@pytest.mark.parametrize("spec", ["quantize-weights{bits=8}", "distill{steps=1}"])
def test_a_metric_that_cannot_be_taken_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    model = builders.save(builders.mlp((6, 5, 1)), tmp_path / "m.onnx")
    name = next(port.name for port in onnx.load(model).graph.input)
    np.savez(tmp_path / "d.npz", **{name: np.random.default_rng(0).random((60, 6), np.float32)})
    np.save(tmp_path / "y.npy", np.full(60, 2))
    (tmp_path / "own.py").write_text("def fails(outputs, labels):\n    raise ValueError('not these')\n")

    def work(*given: object) -> None:
        raise AssertionError("passes ran")

    monkeypatch.setattr("onnxcomp.manager.pipeline.PassManager.run", work)
    options = {"passes": spec, "data": str(tmp_path / "d.npz"), "labels": str(tmp_path / "y.npy"), "bench": False}
    with pytest.raises(DataError, match="top-1 needs an output"):
        onnxcomp.optimize(model, **options)
    if "distill" in spec:
        others = {name: np.random.default_rng(1).random((60, 6), np.float32)}
        options |= {"metric": f"{tmp_path / 'own.py'}:fails", "eval_data": others}
        with pytest.raises(DataError, match="not these"):
            onnxcomp.optimize(model, **options)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    proto = builders.mlp((64, 48, 32))
    weight = proto.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    model = builders.save(proto, tmp_path / "nan.onnx")
    report = onnxcomp.optimize(model, passes="quantize-weights{bits=8}", bench=False, verify=False)
    assert any(weight.name in note and "NaN" in note for note in report.notes)
    assert any("NaN" in skip.why for record in report.passes for skip in record.skips)


def test_a_refused_run_leaves_no_older_model_at_its_place(digits: Path) -> None:
    asked = ["optimize", digits, "--passes", "fuse-batchnorm", "--no-bench", "-o", "m.onnx", "-q"]
    assert command(*asked) == 0 and Path("m.onnx").exists()
    assert command(*asked, "--max-size", "10%") == 11
    assert not Path("m.onnx").exists() and Path("m.rejected.onnx").exists()
    notes = json.loads(Path("m.json").read_text())["notes"]
    assert any("m.onnx" in note and "earlier run" in note for note in notes)
    assert command(*asked) == 0
    assert Path("m.onnx").exists() and not Path("m.rejected.onnx").exists()


def test_a_model_that_is_not_ours_stays_at_the_output(digits: Path) -> None:
    own = builders.save(builders.mlp(), Path("m.onnx")).read_bytes()
    asked = ["optimize", digits, "--passes", "fuse-batchnorm", "--no-bench", "-o", "m.onnx", "-q", "--max-size", "10%"]
    assert command(*asked) == 11
    assert Path("m.onnx").read_bytes() == own
    assert any("before" in note for note in json.loads(Path("m.json").read_text())["notes"])


def test_what_a_recipe_without_loss_cleaned_is_written(tmp_path: Path) -> None:
    proto = builders.residual_cnn()
    output = proto.graph.output[0].name
    proto.graph.node.append(onnx.helper.make_node("Identity", [output], ["same"], "same"))
    proto.graph.output[0].name = "same"
    path = builders.save(proto, tmp_path / "m.onnx")
    assert command("optimize", path, "--recipe", "clean", "-q", "--no-bench") == 0
    assert Path("m.opt.onnx").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no lock of folders")
def test_a_run_waits_while_another_writes_a_model_and_its_report_there(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"passes": "quantize-weights{bits=8}", "output": tmp_path / "new" / "m.onnx", "bench": False}
    found = []

    def is_held() -> bool:
        folder = os.open(tmp_path / "new", os.O_RDONLY)
        try:
            return not try_lock(folder)
        finally:
            os.close(folder)

    for name in ("save", "write_json", "write_html"):
        written = getattr(driver, name)

        def spied(*arguments: object, name: str = name, written: Callable[..., object] = written) -> object:
            found.append((name, is_held()))
            return written(*arguments)

        monkeypatch.setattr(driver, name, spied)
    onnxcomp.optimize(digits, verify=False, html=tmp_path / "new" / "m.html", **wanted)
    assert found == [("save", True), ("write_json", True), ("write_html", True)]
    assert not is_held()
    decided, decide = threading.Event(), driver.decide
    monkeypatch.setattr(driver, "decide", lambda *given, **more: (decide(*given, **more), decided.set()))
    found.clear()
    with folder_lock(tmp_path / "new"):
        waiting = threading.Thread(target=lambda: onnxcomp.optimize(digits, verify=False, **wanted))
        waiting.start()
        assert decided.wait(60)
        waiting.join(0.5)
        assert not found
    waiting.join()
    assert found == [("save", True), ("write_json", True)]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["m.html", "m.json", "m.onnx"]
