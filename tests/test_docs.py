"""Is what README and docs/ show true? Their code runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from onnxcomp.cli.main import COMMANDS, group
from onnxcomp.manager import registry
from onnxcomp.manager.spec import parse_passes
from onnxcomp.results import LayerRecord, Report

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*) ?([\w.]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(file name or empty, text) of the fenced blocks in one language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(name, text) for kind, name, text in found if kind == language]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every onnxcomp call in a shell block: (page, arguments)."""
    for page in PAGES:
        for _, text in blocks(page, "sh"):
            for line in text.splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words and Path(words[0]).name == "onnxcomp":
                        yield str(page.relative_to(ROOT)), words[1:]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def walkthrough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of docs/write-a-pass.md, written out under the names that the page gives them."""
    folder = tmp_path_factory.mktemp("write-a-pass")
    page = ROOT / "docs" / "write-a-pass.md"
    for name, text in blocks(page, "python") + blocks(page, "toml"):
        (folder / name).write_text(text)
    return folder


def test_the_pass_of_the_page_does_what_the_page_says(walkthrough: Path) -> None:
    done = python("try_fold_scale.py", cwd=walkthrough)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^print\(.*\)  # (.*)$", (walkthrough / "try_fold_scale.py").read_text(), re.MULTILINE)
    assert done.stdout.splitlines() == printed
    assert len(printed) == 2


def test_the_test_of_the_page_passes(walkthrough: Path) -> None:
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_fold_scale.py", cwd=walkthrough)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_of_the_page_installs_and_its_pass_is_found(walkthrough: Path, tmp_path: Path) -> None:
    """`pip install .` as the page has it; offline, so with what is installed already."""
    copy = shutil.copytree(walkthrough, tmp_path / "copy", ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    install = [
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(tmp_path / "site"),
    ]
    done = python("-m", "pip", *install, ".", cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = python("-m", "onnxcomp", "passes", "fold-scale", cwd=tmp_path / "site")
    assert shown.returncode == 0 and "largest" in shown.stdout, shown.stderr


def test_the_entry_point_of_the_page_names_the_pass_of_the_page(walkthrough: Path) -> None:
    project = tomllib.loads((walkthrough / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["onnxcomp.passes"].items()
    module, attribute = target.split(":")
    done = python("-c", f"import {module} as m; print(m.{attribute}.name)", cwd=walkthrough)
    assert done.stdout.strip() == name, done.stderr


def test_library_example_of_the_readme_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py", "*.md"))
    ((_, code),) = blocks(ROOT / "README.md", "python")
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("accepted ")
    assert (tmp_path / "fused.onnx").stat().st_size > 0


@pytest.mark.parametrize(("page", "arguments"), list(command_lines()))
def test_every_command_shown_exists_with_its_flags(page: str, arguments: list[str]) -> None:
    if arguments == ["--help"]:
        return
    assert arguments[0] in COMMANDS, f"{page} shows an unknown command"
    command = group.get_command(click.Context(group), arguments[0])
    assert command is not None
    words = arguments[1:]
    if isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None, f"{page}: {arguments}"
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= flags
    if "--passes" in words:
        spec = words[words.index("--passes") + 1]
        built_in = re.sub(r"fold-scale(\{[^}]*\})?,?", "", spec)  # the example of a third party's pass
        assert parse_passes(built_in)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert not missing, f"{page.name}: {missing}"


def test_flags_in_tables_and_text_exist() -> None:
    """Words like `--max-drop` outside of shell blocks belong to some command, too."""
    known = {"--help", "--import-mode=importlib"}
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        parts = list(command.commands.values()) if isinstance(command, click.Group) else [command]
        known |= {flag for part in parts for p in part.params for flag in (*p.opts, *p.secondary_opts)}
    unknown = {
        f"{page.name}: {flag}"
        for page in PAGES
        for flag in re.findall(r"`(--[a-z0-9-]+(?:=\w+)?)", page.read_text(encoding="utf-8"))
        if flag not in known
    }
    assert not unknown, sorted(unknown)


def test_the_guide_says_what_every_key_of_a_report_is() -> None:
    tables = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / "guide.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {re.split(r"[.\[]", word)[0] for cell in tables for word in re.findall(r"`([^`]+)`", cell)}
    for kind in (Report, LayerRecord):
        assert {field.name for field in fields(kind)} <= named


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(p.name for p in folder.glob("[0-9]*.md"))


def test_readme_lists_every_pass_with_its_guarantee() -> None:
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| .* \| (\w+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert listed == [(name, registry.find(name).guarantee.value) for name in registry.BUILTIN]


def test_page_of_operators_that_can_be_trained_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_trainable_page.py"))
    assert (ROOT / "docs" / "trainable.md").read_text(encoding="utf-8") == script["page"](), (
        "run python docs/make_trainable_page.py"
    )


def test_page_of_the_library_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_api_page.py"))
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == script["page"](), (
        "run python docs/make_api_page.py"
    )


def test_example_of_the_librarys_page_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py", "*.md"))
    ((_, code),) = blocks(ROOT / "docs" / "api.md", "python")
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout == "accepted errors True\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["models"]  # a model in memory leaves no file


def test_page_of_passes_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_passes_page.py"))
    assert (ROOT / "docs" / "passes.md").read_text(encoding="utf-8") == script["page"](), (
        "run python docs/make_passes_page.py"
    )
