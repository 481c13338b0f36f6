"""Do the commands of the pages that people read run, one after the other, as they are printed?

A block marked `elsewhere` needs what a test has not: another tool, a network, a compiler, a GPU. Where a page speaks of
"model.onnx" or "images/", the model that ships here and its data stand in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {"cpp", "java", "csharp", "js", "toml"}  # to be read
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("guide", "which-pass", "accuracy-dropped", "deploy", "coming-from", "searching")),
    *(f"docs/{name}.md" for name in ("mixed-precision", "distillation", "providers", "structural-pruning")),
]
# as printed, but with less of what takes time; a budget of time (12), or no gain (13), is this machine's own affair
SHELL = """set -eu
onnxcomp() {
  case "$1" in
    optimize) set -- "$@" --bench-seconds 0.05 --calib-samples 64 ;;
    compare) set -- "$@" --bench-seconds 0.05 ;;
    bench) set -- "$@" --seconds 0.2 ;;
    search) set -- "$@" --bench-seconds 0.05 --trials 4 ;;
  esac
  "$PYTHON" -m onnxcomp "$@" || case $? in 12 | 13) ;; *) return 1 ;; esac
}
"""


def steps(page: str) -> list[tuple[str, str, str]]:
    """(language, name of the file that it is, text) of the blocks that run, in order."""
    found = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    unknown = {kind for kind, _, _ in found} - SHOWN - {"sh", "python"}
    assert not unknown, f"{page} has blocks that nobody runs: {unknown}"
    return [(kind, mark, text) for kind, mark, text in found if kind not in SHOWN and mark != "elsewhere"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages speak of: the model that ships here under its usual names, its data in each form."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("*.py", "*.md"))
    model, train, test = (
        folder / "models" / name for name in ("digits-cnn.onnx", "digits-train.npz", "digits-test.npz")
    )
    for name in ("model", "original", "before", "after", "other", "other-tool", "large", "small", "student"):
        shutil.copy(model, folder / f"{name}.onnx")
    for name in ("train", "calibration", "d"):
        shutil.copy(train, folder / f"{name}.npz")
    shutil.copy(test, folder / "test.npz")
    with np.load(train) as arrays:
        for index in range(200):
            place = folder / "images" / str(arrays["labels"][index])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays["images"][index]).save(place / f"{index}.png")
    spec = ["--passes", "fuse-batchnorm,quantize-qdq", "--no-bench", "-q", "-o", "model.int8.onnx"]
    command = [sys.executable, "-m", "onnxcomp", "optimize", "model.onnx", "--data", "train.npz", *spec]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_after_the_one_before(page: str, stage: Path, tmp_path: Path) -> None:
    shutil.copytree(stage, tmp_path, dirs_exist_ok=True)
    todo = steps(page)
    assert todo
    for kind, name, text in todo:
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
        command = ["bash", "-c", SHELL + text] if kind == "sh" else [sys.executable, "-c", text]
        environment = os.environ | {"PYTHON": sys.executable}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_page_with_commands_is_run_by_a_test() -> None:
    """The rest: build.md in test_build_recipes, write-a-pass.md and api.md in test_docs."""
    by_others = {"docs/build.md", "docs/write-a-pass.md", "docs/api.md"}
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
    with_blocks = {p for p in pages if any(k in ("sh", "python") for k, _, _ in FENCE.findall((ROOT / p).read_text()))}
    assert with_blocks == set(PAGES) | by_others
