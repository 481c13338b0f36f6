"""Does the test suite pass at the lowest versions that pyproject.toml allows, and at the newest? docs/versions.md says.

python benchmarks/versions.py [--only lowest] [--all] [--keep FOLDER] [--write]

Each environment is a fresh venv with a Python of its own, pinned packages and onnxcomp without its dependencies, so
that no other onnxruntime comes in. The lowest bounds are read from pyproject.toml; "newest" is what the registry holds,
the CPU build of onnxruntime. Without --all a telling selection of the tests runs: what reads and writes models, raises
opsets, asks ONNX Runtime for its kernels, and every pass that depends on what it fuses.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "versions.md"
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
SELECTION = (
    "test_graph_io.py",
    "test_graph_opset.py",
    "test_ops_table.py",
    "test_qdq_proof.py",
    "test_report_layers.py",
    "test_runtime_profile.py",
    "test_runtime_session.py",
    "test_pass_quantize_dynamic.py",
    "test_pass_convert_float16.py",
    "test_front.py",
)
TOOLS = ("pytest>=8", "hypothesis>=6.100", "onnx-ir>=0.1", "pyyaml>=6", "setuptools>=77")
SHOWN = ("onnx", "onnxruntime", "numpy", "onnx-graphsurgeon", "click", "rich", "pillow", "ml_dtypes", "protobuf")


@dataclass
class Found:
    """What came of one environment."""

    name: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0
    tests: str = ""
    seconds: float = 0.0


def bounds() -> dict[str, str]:
    """Lowest version of each dependency; the two builds of onnxruntime have one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for line in project["dependencies"]:
        name, version = re.match(r"([\w-]+)\s*>=\s*([\d.]+)", line).groups()  # type: ignore[union-attr]
        found["onnxruntime" if name.startswith("onnxruntime") else name] = version
    return found | {"python": project["requires-python"].removeprefix(">=")}


def environments() -> dict[str, tuple[str, list[str]]]:
    """Python and requirements of each environment, by name."""
    low = bounds()
    python = low.pop("python")
    newest = sorted(low)
    return {
        "lowest": (python, [f"{name}~={_whole(version)}" for name, version in sorted(low.items())]),
        "newest, lowest Python": (python, newest),
        "newest": ("3.13", newest),
    }


def _whole(version: str) -> str:
    """A version that `~=` holds to its minor release: 1.19 means any 1.19.x."""
    return version if version.count(".") > 1 else f"{version}.0"


@contextmanager
def interpreter(version: str, folder: Path) -> Iterator[Path]:
    """A fresh environment of this Python.

    Raises:
        LookupError: this machine has no such Python.
    """
    names = [f"python{version}", *(str(p) for p in Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    names += [str(p) for p in Path("/").glob(f"*/.pyenv/versions/{version}.*/bin/python")]
    for name in (n for n in names if shutil.which(n)):
        if subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0:
            subprocess.run([name, "-m", "venv", folder / "env"], check=True)
            yield folder / "env" / "bin" / "python"
            return
    raise LookupError(f"no Python {version} here")


def run(name: str, python: str, requirements: list[str], folder: Path, tests: list[str]) -> Found:
    """Make an environment and run tests in it."""
    found, start = Found(name, python, tests=f"{len(tests)} test files"), time.monotonic()
    with interpreter(python, folder) as own:
        install = [own, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, *requirements, *TOOLS], check=True)
        subprocess.run([*install, "--no-deps", "-e", ROOT], check=True)
        listed = subprocess.run([own, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
        installed = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
        found.versions = {shown: installed[shown] for shown in SHOWN if shown in installed}
        found.python = subprocess.run(
            [own, "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True, check=True
        ).stdout.strip()
        words = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    found.passed, found.skipped = counts.get("passed", 0), counts.get("skipped", 0)
    found.failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    found.seconds = round(time.monotonic() - start)
    if not counts:
        found.failed.append(f"no test ran: {last}")
    print(done.stdout[-3000:] if found.failed else last, flush=True)
    return found


HEAD = """# Versions that the tests pass with

Made by `python benchmarks/versions.py --write`: fresh environments at the lowest minor releases that pyproject.toml
allows and at the newest of the registry, with the CPU build of onnxruntime. {tests} ran in each: reading
and writing models, raising opsets, every operator's record, what ONNX Runtime fuses and runs on integers, half
precision, dynamic quantization, models that end in unknown operators. `--all` runs the whole suite.

| environment | Python | onnxruntime | onnx | numpy | others | passed | failed | skipped |
|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
Why the least versions are what they are: with onnx 1.19 and onnxruntime 1.24.4, 16 of the 776 tests failed. onnx 1.19
has no 2-bit types, and its operators are not those of [the page of operators](operators.md), which fits onnx 1.23;
AveragePool with ceil_mode comes out otherwise up to onnxruntime 1.28, and half-precision scales lose digits up to 1.29.
With onnxruntime 1.30 those tests pass. A row that is missing above was not run in full.
Which of the two builds of ONNX Runtime a plain install brings, and why:
[decision 0004](decisions/0004-onnxruntime-package.md).
"""


def page(results: list[Found]) -> str:
    """docs/versions.md."""
    rows = []
    for found in results:
        versions = dict(found.versions)
        main = " | ".join(versions.pop(name, "") for name in ("onnxruntime", "onnx", "numpy"))
        others = ", ".join(f"{name} {version}" for name, version in versions.items())
        failed = ", ".join(f"`{name}`" for name in found.failed) or "0"
        cells = (found.name, found.python, main, others, str(found.passed), failed, str(found.skipped))
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD.format(tests=results[0].tests) + "".join(rows) + FOOT


def main() -> int:
    """Run the environments; exit 1 where a test fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="an environment's name; several are allowed")
    parser.add_argument("--all", action="store_true", help="the whole suite")
    parser.add_argument("--keep", type=Path, help="make the environments in this folder, and leave them there")
    parser.add_argument("--write", action="store_true", help="write docs/versions.md and the results")
    given = parser.parse_args()
    tests = ["tests"] if given.all else [f"tests/{name}" for name in SELECTION]
    known = {r["name"]: Found(**r) for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    failed = False
    for name, (python, requirements) in environments().items():
        if given.only and name not in given.only:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) if given.keep is None else given.keep / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found = run(name, python, requirements, folder, tests)
            except LookupError as error:
                print(f"{name}: {error}")
                continue
        known[name] = found
        failed |= bool(found.failed)
        print(f"{name}: {found.passed} passed, {len(found.failed)} failed, {found.seconds:.0f} s", flush=True)
    if given.write:
        ordered = [known[name] for name in environments() if name in known]
        RESULTS.write_text(json.dumps([vars(found) for found in ordered], indent=1) + "\n")
        PAGE.write_text(page(ordered))
    return failed


if __name__ == "__main__":
    sys.exit(main())
