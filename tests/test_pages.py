"""Do the commands of the pages that people look for run, one after the other, as they are printed?

A block marked `elsewhere` needs what a test has not: another tool, a network, a compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {"cpp", "java", "csharp", "js"}  # code of other languages, to be read
# as printed, but with less time for latencies, which nothing here is about
SHELL = """set -eu
onnxcomp() {
  case "$1" in
    optimize | compare) "$PYTHON" -m onnxcomp "$@" --bench-seconds 0.05 ;;
    *) "$PYTHON" -m onnxcomp "$@" ;;
  esac
}
"""


def steps(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks that run, in order."""
    found = FENCE.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    unknown = {kind for kind, _, _ in found} - SHOWN - {"sh", "python"}
    assert not unknown, f"{page} has blocks that nobody runs: {unknown}"
    return [(kind, text) for kind, mark, text in found if kind not in SHOWN and mark != "elsewhere"]


@pytest.mark.parametrize("page", ["which-pass.md", "accuracy-dropped.md", "deploy.md", "coming-from.md"])
def test_every_block_of_a_page_runs_after_the_one_before(page: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py", "*.md"))
    todo = steps(page)
    assert todo
    for kind, text in todo:
        command = ["bash", "-c", SHELL + text] if kind == "sh" else [sys.executable, "-c", text]
        environment = os.environ | {"PYTHON": sys.executable}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
