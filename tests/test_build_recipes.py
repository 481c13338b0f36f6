"""Do the recipes of docs/build.md work? Run with the tools themselves where they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "build.md").read_text(encoding="utf-8")
OUTPUTS = ("dist/digits.onnx", "dist/digits-exact.onnx")
Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


def block(kind: str, name: str) -> str:
    (found,) = re.findall(rf"^```{kind} {re.escape(name)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def program(name: str) -> str:
    if found := shutil.which(name):
        return found
    pytest.skip(f"{name} is not installed")


CODE = (
    "from onnxcomp.build import fingerprint\n"
    "fingerprint._own_code = lambda: 'steady'\n"
    "from onnxcomp.cli.main import main\nmain()\n"
)


def shell_in(folder: Path, tools: Path) -> Shell:
    """Runs lines in a folder, `onnxcomp` being this one, whose sources count as one and the same meanwhile."""
    tools.mkdir()
    (tools / "run.py").write_text(CODE)
    (tools / "onnxcomp").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {tools / "run.py"} "$@"\n')
    (tools / "onnxcomp").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "GITHUB_STEP_SUMMARY": str(tools / "summary.md")}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", line]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


def make(folder: Path) -> Path:
    """The page's configuration with its models and data; latency is not measured."""
    (folder / "models").mkdir(parents=True)
    for file in (ROOT / "models").glob("digits-*"):
        shutil.copy(file, folder / "models" / file.name)
    (folder / "onnxcomp.toml").write_text("bench = false\n" + block("toml", "onnxcomp.toml"))
    return folder


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, built once."""
    folder = make(tmp_path_factory.mktemp("master") / "project")
    done = shell_in(folder, folder.parent / "bin")("onnxcomp build -q")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def project(master: Path, tmp_path: Path) -> Path:
    """A copy of the built project."""
    return shutil.copytree(master, tmp_path / "project")


@pytest.fixture
def shell(project: Path, tmp_path: Path) -> Shell:
    """Runs lines in the project."""
    return shell_in(project, tmp_path / "bin")


def touched(project: Path) -> None:
    """Change one model's bytes: an unknown field at the end, which readers pass over."""
    path = project / "models" / "digits-cnn.onnx"
    path.write_bytes(path.read_bytes() + b"\xf8\x07\x01")


def test_the_workflow_builds_and_writes_the_summary(project: Path, shell: Shell, tmp_path: Path) -> None:
    shutil.rmtree(project / ".onnxcomp")
    shutil.rmtree(project / "reports")
    lines = re.findall(r"^\s+(?:- )?run: (.*)$", block("yaml", "workflow"), re.MULTILINE)
    assert lines.pop(0).startswith("pip install")
    for line in lines:
        done = shell(line)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 models accepted" in (tmp_path / "bin" / "summary.md").read_text()
    paths = re.findall(r"^\s+(\.?\w+)$", block("yaml", "workflow"), re.MULTILINE)
    assert set(paths) == {".onnxcomp", "dist", "reports"}
    assert all((project / path).is_dir() for path in paths)


def test_a_restored_cache_builds_nothing(project: Path, shell: Shell) -> None:
    """As CI does it: outputs and state come from an archive, the rest from a fresh checkout elsewhere."""
    assert shell("tar czf ../cache.tgz .onnxcomp dist && mv ../project ../old").returncode == 0
    project.mkdir()
    again = "cp -r ../old/models ../old/onnxcomp.toml . && tar xzmf ../cache.tgz && onnxcomp build"
    done = shell(again)
    assert done.stdout.count("up to date") == 2, done.stdout + done.stderr


def test_the_gitlab_job_builds_and_hands_out_what_it_names(project: Path, shell: Shell) -> None:
    yaml = pytest.importorskip("yaml")
    (job,) = yaml.safe_load(block("yaml", "gitlab")).values()
    shutil.rmtree(project / ".onnxcomp")
    shutil.rmtree(project / "reports")
    assert job["before_script"][0].startswith("pip install")
    for line in job["script"]:
        done = shell(line)
        assert done.returncode == 0, done.stdout + done.stderr
    assert all((project / path).is_dir() for path in (*job["cache"]["paths"], *job["artifacts"]["paths"]))
    assert job["cache"]["when"] == job["artifacts"]["when"] == "always"
    suites = ET.parse(project / job["artifacts"]["reports"]["junit"]).getroot()
    assert suites.tag == "testsuites" and [suite.get("failures") for suite in suites] == ["0", "0"]


@pytest.mark.parametrize("kind", ["workflow", "gitlab", "precommit"])
def test_yaml_is_yaml(kind: str) -> None:
    yaml = pytest.importorskip("yaml")
    assert isinstance(yaml.safe_load(block("yaml", kind)), dict)


def test_the_pre_commit_hook_runs(project: Path, shell: Shell) -> None:
    text = block("yaml", "precommit")
    (entry,) = re.findall(r"^\s+entry: (.*)$", text, re.MULTILINE)
    (files,) = re.findall(r"^\s+files: (.*)$", text, re.MULTILINE)
    assert all(re.search(files, name) for name in ("models/a.onnx", "data/x.npz", "onnxcomp.toml"))
    if shutil.which("pre-commit") is None:
        assert shell(entry).returncode == 0
        return
    (project / ".pre-commit-config.yaml").write_text(text)
    done = shell("git init -q . && git add models onnxcomp.toml && pre-commit run --all-files")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout
    (project / "onnxcomp.toml").write_text((project / "onnxcomp.toml").read_text().replace('"30%"', '"1%"'))
    assert shell("pre-commit run --all-files").returncode == 1


def test_make_asks_only_when_something_changed(project: Path, shell: Shell) -> None:
    program("make")
    (project / "Makefile").write_text(block("make", "Makefile"))
    first = shell("make")
    assert first.returncode == 0, first.stdout + first.stderr
    assert all((project / name).exists() for name in OUTPUTS)
    assert "Nothing to be done" in shell("make").stdout
    touched(project)
    again = shell("make")
    assert again.stdout.count("digits-cnn.onnx changed") == 2, again.stdout + again.stderr
    assert "Nothing to be done" in shell("make").stdout


def test_cmake_follows_the_dependency_file(project: Path, shell: Shell) -> None:
    program("cmake")
    program("make")
    (project / "CMakeLists.txt").write_text(block("cmake", "CMakeLists.txt"))
    first = shell("cmake -S . -B build -G 'Unix Makefiles' && cmake --build build")
    assert first.returncode == 0, first.stdout + first.stderr
    assert all((project / name).exists() for name in OUTPUTS)
    assert "building" not in shell("cmake --build build").stdout
    touched(project)
    again = shell("cmake --build build")
    assert again.stdout.count("digits-cnn.onnx changed") == 2, again.stdout + again.stderr
