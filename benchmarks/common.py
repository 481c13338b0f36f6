"""Where do the benchmarks find models, data and the outside judge, and how do they write tables?"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ASSETS = Path(os.environ.get("ONNXCOMP_TEST_ASSETS", ROOT.parent / "shared")).resolve()


def need_assets() -> Path:
    """The folder with models, data, meter.py and baseline.py; its modules become importable."""
    if not (ASSETS / "meter.py").is_file():
        sys.exit(f"no meter.py in {ASSETS}: name the folder of models and data in ONNXCOMP_TEST_ASSETS")
    sys.path.insert(0, str(ASSETS))
    return ASSETS


def load_onnxcomp() -> None:
    """Import once what forked processes need; no session is made here, so that a fork is safe."""
    package = importlib.import_module("onnxcomp")
    for found in pkgutil.walk_packages(package.__path__, "onnxcomp."):
        if not found.name.startswith(("onnxcomp.distill.worker", "onnxcomp.search", "onnxcomp.__main__")):
            importlib.import_module(found.name)


def onnxcomp(*arguments: str | Path, cwd: Path, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a folder of its own.

    Raises:
        subprocess.TimeoutExpired: it took longer than allowed, and was ended.
    """
    command = [sys.executable, "-m", "onnxcomp", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
    )


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import onnxruntime

    flags, name = set(), platform.processor()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, text = line.partition(":")
            if key.strip() == "model name":
                name = text.strip()
            elif key.strip() == "flags":
                flags |= set(text.split())
    isa = "AVX-512 VNNI" if "avx512_vnni" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return {
        "cpu": f"{name}, {isa}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def keep(name: str, rows: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Merge rows into results/NAME.json, replacing those with the same key; returns all of them."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else []
    merged = {row[key]: row for row in known} | {row[key]: row for row in rows}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(merged.values()), indent=1) + "\n")
    return list(merged.values())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def write_page(path: Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- MARKER:begin -->` and `<!-- MARKER:end -->` on a page."""
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    page = path.read_text(encoding="utf-8")
    head, rest = page.split(begin)
    path.write_text(f"{head}{begin}{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
