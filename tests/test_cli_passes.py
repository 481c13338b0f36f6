"""Does `onnxcomp passes` show every pass and option whole, in terminals of any width?"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from onnxcomp.cli.passes import command
from onnxcomp.errors import UsageError
from onnxcomp.manager import registry
from onnxcomp.manager.options import describe
from onnxcomp.manager.spec import parse_passes
from onnxcomp.report.passes import show_all, show_one


def shown(width: int, name: str = "") -> str:
    """What a terminal of `width` columns shows."""
    console = Console(file=io.StringIO(), width=width, soft_wrap=True, highlight=False)
    if name:
        show_one(registry.find(name), console)
    else:
        show_all([registry.find(known) for known in registry.names()], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [72, 80, 140, 200])
def test_every_pass_is_listed_with_its_whole_name(width: int) -> None:
    lines = shown(width).splitlines()
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" " * 3)] == registry.names()
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_every_option_stands_with_its_whole_name_and_default(name: str) -> None:
    words = shown(80, name).split()
    assert {item.name for item in describe(registry.find(name))} <= set(words)


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_the_example_is_a_spec_of_that_pass(name: str) -> None:
    example = shown(200, name).rsplit("--passes ", 1)[1].strip().strip("'")
    assert "..." not in example
    assert parse_passes(example)[0].name == name


def test_an_unknown_name_gets_the_nearest_one() -> None:
    result = CliRunner().invoke(command, ["quantise-qdq"])
    assert isinstance(result.exception, UsageError)
    assert "did you mean quantize-qdq?" in str(result.exception)


def test_a_pipe_gets_whole_names_too() -> None:
    assert all(name in CliRunner().invoke(command, []).output for name in registry.names())


def test_quiet_prints_nothing_and_writes_what_is_asked_for(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["-q", "--json", str(tmp_path / "passes.json")])
    assert (done.exit_code, done.output) == (0, "")
    assert json.loads((tmp_path / "passes.json").read_text())["passes"]
    assert CliRunner().invoke(command, ["-q"]).output == ""
