"""Is the training environment made whole, or not at all? The commands are stand-ins; the real one has its own tests."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from onnxcomp.cli.main import main
from onnxcomp.cli.progress import Bar
from onnxcomp.distill import environment
from onnxcomp.distill.environment import CPU, CUDA
from onnxcomp.errors import EnvironmentLacksError, OutputError
from onnxcomp.manager import registry
from onnxcomp.runtime import providers


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache with nothing in it."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Commands:
    """Instead of venv and pip: makes the folder, notes the commands, fails where told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[str]] = []
        self.fails = ""
        monkeypatch.setattr(environment.subprocess, "run", self.run)
        monkeypatch.setattr(environment, "interpreter", lambda kind: "python3.11")

    def run(self, command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        del kwargs
        self.seen.append(command)
        if "venv" in command:
            python = environment._python_of(Path(command[-1]))
            python.parent.mkdir(parents=True)
            python.write_text("stands in for an interpreter")
        if "download" in command and self.fails not in command:
            name = re.match(r"[\w-]+", Path(command[command.index("--requirement") + 1]).read_text())
            assert name is not None
            (Path(command[command.index("--dest") + 1]) / f"{name[0]}.whl").write_text(name[0])
        failed = bool(self.fails) and self.fails in command
        return subprocess.CompletedProcess(command, int(failed), "some words\nERROR: no such wheel\n" if failed else "")


@pytest.fixture
def commands(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    del empty
    return Commands(monkeypatch)


@pytest.mark.parametrize("kind", [CPU, CUDA])
def test_lock_pins_and_hashes_every_package(kind: str) -> None:
    text = environment.LOCKS[kind].read_text()
    entries = re.split(r"\n(?=\w)", text.split("\n", 1)[1])
    names = [re.match(r"([\w-]+)==[\w.]+ ", entry) for entry in entries]
    assert all(names)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    runtime = {CPU: "onnxruntime-training-cpu", CUDA: "onnxruntime-training"}[kind]
    assert sorted(name[1] for name in names if name) == sorted(["flatbuffers", "numpy", "onnx", "protobuf", runtime])


@pytest.mark.parametrize(
    ("gpu", "system", "machine", "kind"),
    [
        (False, "linux", "x86_64", CPU),
        (True, "linux", "x86_64", CUDA),
        (True, "linux", "aarch64", CPU),
        (True, "win32", "AMD64", CPU),
        (True, "darwin", "arm64", CPU),
    ],
)
def test_package_follows_the_machine(gpu: bool, system: str, machine: str, kind: str) -> None:
    assert environment.choose(usable_gpu=gpu, system=system, machine=machine) == kind


def test_environment_is_made_once_and_found(commands: Commands) -> None:
    assert environment.find() is None
    said: list[str] = []
    made = environment.provide(CPU, say=said.append)
    count = len(commands.seen)
    assert environment.provide(CPU) == made == environment.find()
    assert len(commands.seen) == count
    assert made.size_bytes > 0
    assert "MB" in said[-1]
    install = next(command for command in commands.seen if "install" in command)
    assert {"--require-hashes", "--no-deps"} <= set(install)


def test_wheels_are_taken_without_a_network(commands: Commands, tmp_path: Path) -> None:
    environment.provide(CPU, wheels=tmp_path)
    install = next(command for command in commands.seen if "install" in command)
    assert install[install.index("--find-links") + 1] == str(tmp_path)
    assert "--no-index" in install


def test_failed_half_is_not_found_and_made_anew(commands: Commands) -> None:
    commands.fails = "install"
    with pytest.raises(EnvironmentLacksError, match="ERROR: no such wheel") as caught:
        environment.provide(CPU)
    assert "--wheels" in caught.value.do
    assert environment.find() is None
    half = next(environment._place(CPU).parent.glob("*.half"))
    (half / "junk").write_text("of the try that broke")
    commands.fails = ""
    made = environment.provide(CPU)
    assert not (Path(made.folder) / "junk").exists()
    assert not half.exists()


def test_wheels_that_an_interrupted_try_fetched_are_not_fetched_again(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["flatbuffers", "numpy", "onnx", "protobuf"]
    pins = [f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in names]
    lock = tmp_path / "a.lock"
    lock.write_text("\n".join(["# four packages", *pins]) + "\n")
    monkeypatch.setitem(environment.LOCKS, CPU, lock)
    commands.fails = "install"
    with pytest.raises(EnvironmentLacksError):
        environment.provide(CPU)
    assert sum("download" in command for command in commands.seen) == len(names)
    fetched = next(environment._place(CPU).parent.glob("*.wheels"))
    (fetched / "numpy.whl").write_text("half of it")
    commands.fails, commands.seen = "", []
    environment.provide(CPU)
    assert sum("download" in command for command in commands.seen) == 1, "the broken one alone"
    assert not fetched.exists()


def test_settings_of_pip_do_not_reach_past_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", "/corporate/constraints.txt")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror")
    found = environment.clean_environment()
    assert found["PIP_CONSTRAINT"] == os.devnull
    assert "PIP_TARGET" not in found
    assert found["PIP_INDEX_URL"] == "https://mirror"


def test_environment_whose_interpreter_is_gone_is_made_anew(commands: Commands) -> None:
    made = environment.provide(CPU)
    made.python.unlink()
    assert environment.find() is None
    assert environment.provide(CPU).python.exists()


def test_gpu_that_cannot_train_falls_back_and_is_not_tried_again(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "choose", lambda **kwargs: CUDA)
    commands.fails = environment._TRY_CUDA
    said: list[str] = []
    assert environment.provide(say=said.append).kind == CPU
    assert any("processor" in line for line in said)
    count = len(commands.seen)
    assert environment.provide().kind == CPU
    assert len(commands.seen) == count
    commands.fails = ""
    assert environment.provide(again=True).kind == CUDA


def test_no_interpreter_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_candidates", lambda versions: iter(["/nonexistent/python3.11"]))
    with pytest.raises(EnvironmentLacksError, match=r"Python 3\.11 or 3\.12") as caught:
        environment.interpreter()
    assert "uv" in caught.value.do
    assert caught.value.exit_code == 5


def test_newer_python_looks_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "version_info", (3, 14, 0))
    found = {"python3.11": "/usr/bin/python3.11", "uv": "/usr/bin/uv"}
    monkeypatch.setattr(environment.shutil, "which", found.get)
    answers = {"find": "/uv/python3.12", "install": ""}
    monkeypatch.setattr(environment, "_quiet", lambda command: answers[command[2]])
    assert list(environment._candidates(environment.PYTHONS[CPU])) == ["/usr/bin/python3.11", "/uv/python3.12"]


def test_interpreter_makes_environments() -> None:
    assert environment._version(environment.interpreter()) in environment.PYTHONS[CPU]


def test_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        environment.provide(CPU)


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


def test_a_download_is_told_where_there_is_no_terminal(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first training of a machine waits for it, in a build's log too."""
    del commands
    monkeypatch.setattr(providers, "usability", lambda provider: providers.Usability(provider, False))
    registry.find("distill")().provide(Bar())
    lines = capsys.readouterr().err.splitlines()
    assert "about 42 MB" in lines[0] and "stands" in lines[-1]
    assert len(lines) == 2 + len(re.findall(r"==", environment.LOCKS[CPU].read_text())), lines


def test_doctor_sets_up_and_tells(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    assert environment.find() is None
    assert call("doctor", "--setup-training") == 0
    assert "usable on the processor" in capsys.readouterr().out
    assert commands.seen


def test_doctor_without_a_wheel_exits_5(commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.fails = "install"
    assert call("doctor", "--setup-training", "--wheels", str(tmp_path)) == 5
    assert "no such wheel" in capsys.readouterr().err
    assert call("doctor", "--wheels", str(tmp_path)) == 2
