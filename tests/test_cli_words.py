"""Are the first words right: help, nearest names, standard output, closed pipes, control characters, ceilings?"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import builders
import numpy as np
import pytest

from onnxcomp import toml
from onnxcomp.cli import main as entry
from onnxcomp.cli.main import main
from onnxcomp.cli.screen import screen
from onnxcomp.data.sheet import Tile, contact_sheet
from onnxcomp.errors import plain

HOSTILE = "evil\x1b]0;owned\x07\u202ename"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def process(*arguments: str, **options: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "onnxcomp", *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Commands:"),
        (("data",), "check"),
        (("help",), "Commands:"),
        (("help", "optimize"), "What matters first:"),
        (("help", "data", "check"), "contact sheet"),
        (("cache",), "cache clear"),
        (("-V",), "version"),
    ],
)
def test_help_is_no_error(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == 0
    told = capsys.readouterr()
    assert words in told.out and not told.err


@pytest.mark.parametrize(
    ("arguments", "near"), [(("optimise", "x"), "optimize"), (("help", "bnech"), "bench"), (("data", "chekc"), "check")]
)
def test_the_nearest_command_is_named(
    arguments: tuple[str, ...], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    assert near in capsys.readouterr().err


def test_what_a_metric_and_its_processes_print_is_no_part_of_the_json(
    digits: Path, digits_data: tuple[Path, Path]
) -> None:
    Path("metric.py").write_text(
        "import os\n\ndef loud(outputs, labels):\n    print('loud')\n    os.system('echo child')\n    return 1.0\n"
    )
    data = ("--data", str(digits_data[1]), "--eval-samples", "20", "--no-bench")
    running = process("compare", str(digits), str(digits), *data, "--metric", "metric.py:loud", "--json", "-")
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert json.loads(out)
    assert "loud\n" in err and "child\n" in err


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_an_output_without_a_name_is_refused(digits: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("optimize", digits, "--passes", "cleanup", "-o", output) == 6
    assert "has no name" in capsys.readouterr().err


def test_json_to_standard_output_is_alone_there(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", digits, "--json", "-") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["stats"] and "conv1" in told.err
    assert command("passes", "clip-weights", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["passes"][0]["name"] == "clip-weights"
    assert command("optimize", digits, "--passes", "fuse-batchnorm", "--no-bench", "--report", "-") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["verdict"] == "accepted" and "fuse-batchnorm" in told.err
    assert not Path("-").exists()
    assert command("optimize", digits, "--passes", "fuse-batchnorm", "--no-bench", "--html", "-") == 6


@pytest.mark.parametrize("words", [["explain", "--no-times"], ["plan", "--no-bench"], ["compare", "--no-bench"]])
def test_json_of_what_was_measured_is_alone_there_too(
    words: list[str], digits: Path, digits_data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    models = [digits, digits] if words[0] == "compare" else [digits]
    assert command(words[0], *models, "--data", digits_data[0], *words[1:], "--json", "-") in (0, 13)
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert told.err  # what is for people
    assert not Path("-").exists()


def test_quiet_says_which_budget_of_which_model_was_missed(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-size", "10%", "--passes", "fuse-batchnorm", "--no-bench"]
    assert command("optimize", digits, *limits, "-q") == 11
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert not told.out and "digits-cnn.onnx" in line and "max_size" in line


@pytest.mark.parametrize("flags", [["-vv"], ["-v", "-v"], ["--verbose", "-qv"]], ids=" ".join)
def test_flags_of_printing_stand_before_the_command_or_behind_it(
    flags: list[str], digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([*flags, "inspect", "nothing.onnx"], ["inspect", "nothing.onnx", *flags], [*flags, "nothing"]):
        command(*words)
        assert "Traceback" in capsys.readouterr().err, words
    command(flags[0][:2] if flags[0] != "--verbose" else "-v", "inspect", "nothing.onnx")
    assert "Traceback" not in capsys.readouterr().err
    spec = ["optimize", digits, "--passes", "fold-constants,fuse-batchnorm", "--no-bench", "--no-verify"]
    assert command("-q", *spec) == 0
    assert not capsys.readouterr().out
    assert command("-q", "data", "check", digits, "--data", digits.with_name("digits-test.npz")) == 0
    assert not capsys.readouterr().out
    assert command(*spec) == 0
    short = capsys.readouterr().out
    assert command("-v", *spec) == 0
    assert len(capsys.readouterr().out) > len(short)


def test_two_builds_of_the_runtime_are_named_by_every_command_that_runs_on_them(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnxcomp.verify.verdict", "onnxcomp.benchmark", "onnxcomp.comparison", "onnxcomp.diagnosis"):
        monkeypatch.setattr(importlib.import_module(module), "conflict", lambda: "two builds side by side")
    pair = [digits, digits]
    for words in (
        ["verify", *pair, "--allow-random", "--eval-samples", "4"],
        ["bench", *pair, "--seconds", "0.01", "--no-load"],
        ["compare", *pair, "--no-bench"],
        ["doctor"],
    ):
        assert command(*words) == 0
        assert "two builds side by side" in capsys.readouterr().out, words[0]


def test_what_is_here_is_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("doctor", "--json", "-") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["providers"][0] == {"name": "cpu", "usable": True, "reason": "", "remedy": ""}
    assert found["int8"] in ("exact", "saturating") and "processor" in told.err
    assert all(one["usable"] or (one["reason"] and one["remedy"]) for one in found["providers"])
    assert command("cache", "--json", "c.json", "-q") == 0
    assert not capsys.readouterr().out
    content = json.loads(Path("c.json").read_text())
    assert all(set(entry) == {"name", "bytes", "what"} for entry in content["entries"])


def test_a_reader_that_goes_away_changes_no_exit_code(digits: Path) -> None:
    for arguments in (["--help"], ["inspect", str(digits)], ["inspect", str(digits), "--json", "-"]):
        running = process(*arguments)
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert (running.wait(), running.stderr.read().count("Broken")) == (0, 0)


def test_control_characters_of_names_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(HOSTILE) == "evil\\x1b]0;owned\\x07\\u202ename"
    proto = builders.mlp()
    for node in proto.graph.node:
        node.name = f"{node.name}{HOSTILE}"
    path = builders.save(proto, tmp_path / "m.onnx")
    assert command("inspect", path) == 0
    assert (
        command("optimize", path, "--no-bench", "--passes", f'prune-weights{{ratio=0.5,include=["x{HOSTILE}"]}}') == 2
    )
    told = capsys.readouterr()
    for character in "\x1b\x07\u202e":
        assert character not in told.out + told.err
    console = screen()
    with console.capture() as shown:
        console.print(HOSTILE, markup=False)
    assert "\x1b" not in shown.get()


FORGED = "a[/b]\naccepted  1.0% of the size\n\nwrote  all.onnx"


def test_a_name_with_line_breaks_stays_within_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = builders.mlp()
    (first,) = proto.graph.input
    for node in proto.graph.node:
        node.name = f"{node.name}{FORGED}"
        node.input[:] = [FORGED if name == first.name else name for name in node.input]
    first.name = FORGED
    path = builders.save(proto, tmp_path / "m.onnx")
    x = builders.feeds_of(proto)[FORGED]
    np.savez(tmp_path / "d.npz", **{FORGED: np.repeat(x, 20, axis=0)})
    np.savez(tmp_path / "bad.npz", **{FORGED: np.repeat(x[..., :1], 20, axis=0)})
    data = ["--data", tmp_path / "d.npz"]
    codes = [
        command("inspect", path, "--groups"),
        command("inspect", path),
        command("data", "check", path, *data, "-o", tmp_path / "sheet.png"),
        command("explain", path, *data, "--no-times"),
        command("optimize", path, *data, "--no-bench", "-v", "--passes", "quantize-weights{bits=8}"),
        command("optimize", path, "--no-bench", "--data", tmp_path / "bad.npz"),
    ]
    told = capsys.readouterr()
    assert codes == [0, 0, 0, 0, 0, 4]
    assert "a[/b]\\naccepted" in told.out and "a[/b]\\naccepted" in told.err
    lines = [line.strip() for line in (told.out + told.err).splitlines()]
    assert not [line for line in lines if line.startswith(("accepted  1.0%", "wrote  all"))]


def test_pictures_under_a_title_with_line_breaks(tmp_path: Path) -> None:
    tile = Tile(np.zeros((8, 8, 3), np.uint8), FORGED)
    assert contact_sheet([tile], [FORGED]).startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform != "linux", reason="a lock that a signal does not end")
def test_an_end_from_outside_is_heard_while_the_runtime_works(tmp_path: Path) -> None:
    """A call that never comes back to Python stands for a long one into the runtime."""
    code = (
        "import ctypes\n"
        "from onnxcomp.cli import main as entry\n"
        "entry.HEARD_SECONDS = 0.5\n"
        "def stuck(arguments):\n"
        "    print('busy', flush=True)\n"
        "    mutex = ctypes.create_string_buffer(256)\n"
        "    for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(mutex)\n"
        "entry._code = stuck\n"
        "entry.main([])\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "busy\n"
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == entry.TOLD_TO_END


def test_the_cache_is_listed_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    folder = tmp_path / "onnxcomp"
    (folder / "costs").mkdir(parents=True)
    (folder / "costs" / "a.json").write_bytes(bytes(2000))
    (folder / "teacher").mkdir()
    assert command("cache") == 0
    assert "2 kB" in capsys.readouterr().out
    assert command("cache", "clear", "cots") == 2
    assert command("cache", "clear", "costs") == 0
    assert sorted(p.name for p in folder.iterdir()) == ["teacher"]
    assert command("cache", "clear") == 0 and not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--threads", "100000"], 2),
        (["--threads", "-1"], 2),
        (["--seed", "-1"], 2),
        (["--seed", str(2**70)], 2),
        (["--allow-random", "--calib-samples", str(10**13)], 2),
        (["--bench-seconds", "1e9"], 2),
        (["--passes", "distill{steps=1000000000000}"], 2),
    ],
)
def test_counts_have_ceilings(digits: Path, arguments: list[str], code: int) -> None:
    assert command("optimize", digits, "-q", *arguments) == code


@pytest.mark.parametrize("name", ["bench", "verify", "data"])
def test_every_command_bounds_its_threads(digits: Path, name: str) -> None:
    np.savez("d.npz", images=np.zeros((4, 8, 8, 1), np.uint8))
    words = {"bench": ["bench", digits], "verify": ["verify", digits, digits], "data": ["data", "check", digits]}[name]
    assert command(*words, "--data", "d.npz", "--threads", "100000") == 2


def test_a_metric_of_complex_numbers_is_the_users(digits: Path, digits_data: tuple[Path, Path]) -> None:
    Path("metric.py").write_text("def score(outputs, labels):\n    return 1 + 2j\n")
    data = ["--data", digits_data[0], "--eval-data", digits_data[1], "--metric", "metric.py:score"]
    assert command("optimize", digits, *data, "--no-bench", "-q", "--passes", "fuse-batchnorm") == 4


DAMAGED = ["", "[]", "7", '"x"', "[" * 200_000, '{"schema": 1, "tool": 5}', "\x00"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_cost_table_is_the_users(digits: Path, text: str) -> None:
    Path("t.json").write_text(text)
    assert command("optimize", digits, "--cost-table", "t.json", "-q", "--passes", "fuse-batchnorm") == 4


@pytest.mark.parametrize(
    "entries", [{"latency_ms:x": "fast"}, {"node_times_us:x": [1]}, {"comparison with y:x": {"speedup": 1}}]
)
def test_an_entry_that_is_no_time_is_named(digits: Path, entries: dict[str, object]) -> None:
    Path("t.json").write_text(json.dumps({"schema": 1, "origin": {}, "entries": entries}))
    assert command("optimize", digits, "--cost-table", "t.json", "-q", "--passes", "fuse-batchnorm") == 4


def test_a_damaged_report_is_the_users(digits: Path) -> None:
    assert command("optimize", digits, "--passes", "fuse-batchnorm", "--no-bench", "-o", "m.onnx", "-q") == 0
    whole = json.loads(Path("m.json").read_text())
    changes = [{"output": 5}, {"source": []}, {"benchmarks": 3}, {"exit_code": "x"}, {"verdict": []}, {"output": "x"}]
    texts = [*DAMAGED, *(json.dumps(whole | change) for change in changes)]
    for text in texts:
        Path("r.json").write_text(text)
        assert command("verify", "m.onnx", "--report", "r.json", "-q") in (3, 4), text[:80]


def test_a_configuration_nested_without_measure_is_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = f"x{'.x' * 300} = 1"
    for text in (f"x = {'[' * 100_000}", keys, f"x = {{ {keys} }}", f"[x{'.x' * 300}]"):
        Path("onnxcomp.toml").write_text(text)
        assert command("build", "-q") == 2
        assert "nested too deep" in capsys.readouterr().err
    Path("onnxcomp.toml").write_text(f"x = {'9' * 5000}")
    assert command("build", "-q") == 2
    assert toml.parse(f"x = [{'0.5, ' * 300}]")["x"] == [0.5] * 300  # points of numbers are no parts of keys


def test_telemetry_of_the_runtime_is_off_unless_the_user_has_said_otherwise() -> None:
    told = "import os, onnxcomp.runtime.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, wanted in ((None, "1"), ("0", "0")):
        environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        environment |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == wanted


def test_nothing_is_written_but_what_is_named_and_the_own_cache(
    digits: Path, digits_data: tuple[Path, Path], tmp_path: Path
) -> None:
    home, scratch, inputs, work = (tmp_path / name for name in ("home", "scratch", "inputs", "work"))
    for folder in (home, scratch, inputs, work):
        folder.mkdir()
    model, data = (Path(shutil.copy(path, inputs)) for path in (digits, digits_data[0]))
    before = {path: path.read_bytes() for path in inputs.iterdir()}
    environment = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "LOCALAPPDATA")}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(scratch), "TEMP": str(scratch)}
    for words in (
        ["optimize", model, "--data", data, "--passes", "fuse-batchnorm,quantize-qdq", "--html", "page.html"],
        ["compare", model, "digits-cnn.opt.onnx", "--data", data, "--json", "table.json", "--no-bench"],
        ["explain", model, "digits-cnn.opt.onnx", "--data", data, "--json", "why.json", "--no-times"],
        ["plan", model, "--data", data, "-o", "plan.toml", "--no-bench"],
        ["data", "check", model, "--data", data],
        ["ranges", "digits-cnn.opt.onnx", "-o", "model.encodings"],
    ):
        command = [sys.executable, "-m", "onnxcomp", *map(str, words), "-q"]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 13), done.stderr
    assert {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()} <= {(".cache", "onnxcomp")}
    assert not list(scratch.iterdir())
    assert {path: path.read_bytes() for path in inputs.iterdir()} == before
    told = {"digits-cnn.opt.onnx", "digits-cnn.opt.json", "page.html", "table.json", "why.json"}
    assert {path.name for path in work.iterdir()} - {"plan.toml"} == told | {"digits-cnn.data.png", "model.encodings"}


def test_the_training_worker_hears_of_telemetry_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp.distill.environment import clean_environment

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert clean_environment()["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert clean_environment()["ORT_DISABLE_TELEMETRY"] == "0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "m.onnx"], "trials that had ended are kept"),
        (["-q", "build"], "models that were done stand"),
        (["optimize", "m.onnx"], "nothing was written"),
    ],
)
def test_an_interrupt_says_what_is_kept(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_given: object, **_options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.group, "main", stopped)
    assert command(*arguments) == 130
    assert f"interrupted: {words}" in " ".join(capsys.readouterr().err.split())
