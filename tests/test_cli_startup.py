"""Do `onnxcomp --help` and `import onnxcomp` leave the slow packages alone? Counted by modules, never by time."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from onnxcomp.cli.main import main

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
# each takes from 30 ms to a second to import
HEAVY = ["onnx", "onnxruntime", "onnx_graphsurgeon", "google.protobuf", "PIL", "rich", "numpy", "importlib.metadata"]


def loaded_after(code: str) -> list[str]:
    """Names of heavy modules in sys.modules after running `code` in a fresh interpreter."""
    report = f"import sys; print('HEAVY', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def command_line(*arguments: str) -> str:
    """Code that runs the command line and demands exit code 0."""
    lines = (
        "from onnxcomp.cli.main import main",
        "try:",
        f"    main({list(arguments)!r})",
        "except SystemExit as end:",
        "    assert not end.code, end.code",
    )
    return "\n".join(lines)


def test_import_is_light() -> None:
    assert loaded_after("import onnxcomp; onnxcomp.__version__; dir(onnxcomp)") == []


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)], ids=" ".join)
def test_top_level_is_light(arguments: tuple[str, ...]) -> None:
    assert loaded_after(command_line(*arguments)) == []


def test_the_probe_sees_a_heavy_import() -> None:
    assert loaded_after("import numpy") == ["numpy"]


@pytest.mark.parametrize("command", ["optimize", "inspect", "verify", "bench", "data", "passes", "doctor"])
def test_help_of_a_command_loads_no_runtime(command: str) -> None:
    loaded = loaded_after(command_line(command, "--help"))
    assert not {"onnxruntime", "PIL"} & set(loaded), loaded


def test_runs_as_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxcomp", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "onnxcomp" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the shell's words")
@pytest.mark.parametrize("where", [">&-", "<&- >&-", pytest.param("> /dev/full", marks=FULL)])
@pytest.mark.parametrize("words", ["--version", "passes", "passes --json -"])
def test_standard_output_that_cannot_be_written_is_no_defect_of_ours(words: str, where: str) -> None:
    line = f'"{sys.executable}" -m onnxcomp {words} {where}'
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert done.stderr.endswith("files that were named are written\n")
    assert "error: standard output cannot be written: " in done.stderr


def test_a_closed_standard_error_changes_no_exit_code() -> None:
    line = f'"{sys.executable}" -m onnxcomp passes nothing-such 2>&-'
    assert subprocess.run(line, shell=True, stdout=subprocess.DEVNULL, check=False).returncode == 2


def test_console_script_points_at_main() -> None:
    (script,) = entry_points(group="console_scripts", name="onnxcomp")
    assert script.load() is main
