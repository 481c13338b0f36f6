"""Does every architecture lose a third of its channels, heads and neurons, and still check and run?

The files in models/architectures are what PyTorch's exporter writes, with random weights; see models/README.md.
"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest

from onnxcomp.graph import cost
from onnxcomp.graph.io import load, save
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators

OPERATORS = load_operators()
FOLDER = Path(__file__).resolve().parent.parent / "models" / "architectures"
MODELS = sorted(path.stem for path in FOLDER.glob("*.onnx"))
RATIO = 0.3


def test_the_architectures_are_there() -> None:
    assert len(MODELS) >= 6


@pytest.mark.parametrize("scope", ["global", "layer"])  # by layer, attention loses heads
@pytest.mark.parametrize("name", MODELS)
def test_pruned_architecture_is_smaller_and_runs(name: str, scope: str, tmp_path: Path) -> None:
    source = FOLDER / f"{name}.onnx"
    graph = load(source)
    feeds = builders.feeds_of(onnx.load(source))
    result = PassManager(Pipeline.parse(f"prune-channels{{ratio={RATIO},streams=true,scope={scope}}}")).run(
        graph, PassContext(operators=OPERATORS)
    )
    (record,) = result.records
    assert record.metrics["prunable_macs_share"] > 0.9, record.skips
    save(result.graph, tmp_path / "pruned.onnx")
    onnx.checker.check_model(str(tmp_path / "pruned.onnx"), full_check=True)
    before, after = (cost.stats(g, OPERATORS, file_bytes=0) for g in (graph, result.graph))
    assert after.macs < 0.85 * before.macs
    assert after.parameters < 0.9 * before.parameters
    wanted, given = (builders.run(path, feeds) for path in (source, tmp_path / "pruned.onnx"))
    assert [a.shape for a in given] == [a.shape for a in wanted]
    assert all(np.isfinite(a).all() for a in given)
    alone = builders.run(tmp_path / "pruned.onnx", {k: v[:1] for k, v in feeds.items()})
    many = builders.run(tmp_path / "pruned.onnx", {k: np.repeat(v[:1], 5, axis=0) for k, v in feeds.items()})
    for one, five in zip(alone, many, strict=True):
        np.testing.assert_allclose(five, np.repeat(one, 5, axis=0), rtol=1e-3, atol=1e-4)
