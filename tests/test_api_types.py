"""What do type checkers make of the library's functions? mypy's verdicts on callers, right and wrong ones."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RIGHT = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxcomp


def feeds() -> Iterator[dict[str, Any]]:
    yield {"image": np.zeros((1, 1, 8, 8), np.float32)}


def mine(outputs: dict[str, np.ndarray[Any, Any]], labels: np.ndarray[Any, Any] | None) -> float:
    return float(sum(array.mean() for array in outputs.values()))


def run(proto: onnx.ModelProto, passes: list[onnxcomp.Pass]) -> onnx.ModelProto:
    onnxcomp.optimize("m.onnx", data="d.npz", labels="l.npy", max_drop=0.01, max_size="30%", metric="m.py:f:min")
    onnxcomp.optimize(Path("m.onnx"), data=feeds, metric=mine, objective="size", shapes={"x": [1, 3, 8, 8]})
    onnxcomp.optimize(b"", data=feeds(), labels=[1, 2], mean=(0.5, 0.5, 0.5), passes=["cleanup", *passes])
    onnxcomp.optimize(proto, data=np.zeros(3), metric=onnxcomp.Metric("loss", mine, higher_is_better=False))
    onnxcomp.distill(proto, teacher=proto, data={"x": np.zeros(3)}, epochs=2, bits=4, freeze=["conv*"])
    verdict: onnxcomp.Verdict = onnxcomp.verify("a.onnx", proto, "d.npz", min_sqnr=20.0)
    table: onnxcomp.BenchTable = onnxcomp.bench("a.onnx", proto, batches=[1, 8], fp16=True)
    found: onnxcomp.Inspection = onnxcomp.inspect(proto, groups=True)
    why: onnxcomp.Explanation = onnxcomp.explain("a.onnx", None, feeds(), threads=1)
    several: onnxcomp.Comparison = onnxcomp.compare("a.onnx", proto, b"", data=np.zeros(3), labels=[1], bench=False)
    print(several.variants[1].stats.bytes)
    built: onnxcomp.Built = onnxcomp.build("onnxcomp.toml", only=["a*"])
    print(verdict.exit_code, table.rows, found.stats.macs, why.layers, built.exit_code)
    result = onnxcomp.optimize(proto)
    number: int = result.exit_code
    return result.model if not number else proto
"""
WRONG = {
    'onnxcomp.optimize("m.onnx", nonsense=1)': "nonsense",
    "onnxcomp.optimize(3)": "arg-type",
    'onnxcomp.optimize("m.onnx", max_drop="little")': "arg-type",
    'onnxcomp.optimize("m.onnx", objective="speed")': "arg-type",
    'onnxcomp.optimise("m.onnx")': "attr-defined",
    'onnxcomp.distill("m.onnx", epoch=3)': "epoch",
    'onnxcomp.verify("a.onnx")': "call-arg",
    'onnxcomp.bench("a.onnx", batches=3)': "arg-type",
    'onnxcomp.inspect("a.onnx", data="d.npz")': "data",
    'onnxcomp.explain("a.onnx", "b.onnx", 3)': "arg-type",
    'onnxcomp.compare("a.onnx", "b.onnx", min_sqnr=3)': "min_sqnr",
    "onnxcomp.build(jobs=None)": "arg-type",
    'onnxcomp.optimize("m.onnx").verdikt': "attr-defined",
    'onnxcomp.inspect("m.onnx").stats.macs + "x"': "operator",
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy says of each line of WRONG, and under "" of the right calls; one run for all."""
    folder = tmp_path_factory.mktemp("callers")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text("\n".join(["import onnxcomp", *WRONG]) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(folder / "cache")]
    command += ["--config-file=", "--follow-imports=silent", "right.py", "wrong.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}  # an editable install is seen by the interpreter alone
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = dict.fromkeys(["", *WRONG], "")
    for line in done.stdout.splitlines():
        file, number, text = line.split(":", 2)
        if file == "right.py":
            found[""] += f"{line}\n"
        elif file == "wrong.py" and int(number) > 1:
            found[list(WRONG)[int(number) - 2]] += text
    assert not done.stderr, done.stderr
    return found


def test_right_calls_are_accepted(verdicts: dict[str, str]) -> None:
    assert not verdicts[""], verdicts[""]


@pytest.mark.parametrize("call", WRONG)
def test_wrong_calls_are_refused(call: str, verdicts: dict[str, str]) -> None:
    assert WRONG[call] in verdicts[call], verdicts[call] or "accepted"


def test_keywords_are_those_of_the_settings() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_keywords.py"))
    assert script["MODULE"].read_text(encoding="utf-8") == script["module"](), "run python docs/make_keywords.py"
