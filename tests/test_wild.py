"""Do random valid models pass every pass, and broken files every command? A few of each; the scripts run thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import wild_models

ROOT = Path(__file__).resolve().parent.parent


def script(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("first", [0, 1000])
def test_random_valid_models_pass_every_pass_and_chains_of_two(first: int) -> None:
    assert "0 findings" in script("random_graphs.py", f"--first={first}", "--count=14", "--singles=4", "--chains=2")


def test_broken_files_get_an_answer_from_every_command() -> None:
    assert "0 bad" in script("broken_files.py", "--count=30")


def test_a_seed_gives_the_same_model_and_seeds_differ() -> None:
    a, b, c = (wild_models.wild(seed).proto.SerializeToString(deterministic=True) for seed in (3, 3, 4))
    assert a == b != c


def test_the_models_are_of_many_kinds() -> None:
    protos = [wild_models.wild(seed).proto for seed in range(60)]
    operators = {(n.domain, n.op_type) for p in protos for n in p.graph.node}
    assert len(operators) > 60
    assert {"ai.onnx.ml", "com.microsoft", "wild"} <= {domain for domain, _ in operators}
    assert {"If", "Loop", "Scan", "LSTM"} <= {op for _, op in operators}
    assert len({p.opset_import[0].version for p in protos}) > 10
    assert any(len(p.graph.output) > 2 for p in protos)
