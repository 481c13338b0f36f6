"""Does every case of onnx's backend test suite survive load, exact and close passes, and save?

One test is a slice of the cases, so that workers share them; how the cases fared is counted and asserted, so that none
is skipped silently. `python tests/backend_cases.py docs/backend-suite.md` writes the counts into the docs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import backend_cases as suite
import onnx
import pytest

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.manager.pipeline import PassManager, Pipeline

SLICES = 16
FEWEST_OPERATORS = 1500  # the suite grows with onnx; fewer would mean that collection is broken
FEWEST_MODELS = 120


@pytest.mark.parametrize("part", range(SLICES))
def test_operator_cases(part: int, tmp_path: Path) -> None:
    cases = suite.node_cases()
    assert len(cases) >= FEWEST_OPERATORS
    mine = cases[part::SLICES]
    results = [suite.run_case(suite.node_case(case), tmp_path) for case in mine]
    check(results, len(mine))


def test_model_cases(tmp_path: Path) -> None:
    results = [suite.run_case(case, tmp_path) for case in suite.model_cases()]
    assert len(results) >= FEWEST_MODELS
    check(results, len(results))
    light = [r for r in results if r.kind == "light"]
    assert len(light) == 9
    assert {r.outcome for r in light} == {suite.IDENTICAL}


@pytest.mark.parametrize("name", ["densenet121", "inception_v2", "resnet50", "shufflenet"])
def test_norms_of_light_models_fuse_once_their_weights_are_computed(name: str, tmp_path: Path) -> None:
    (case,) = (c for c in suite.model_cases() if c.name == f"test_{name}")
    graph = decode(case.model)
    norms = graph.operators()["BatchNormalization"]
    pipeline = Pipeline.parse("fold-constants{max_bytes=1000000000},fuse-batchnorm,cleanup")
    result = PassManager(pipeline, verify=False).run(graph)
    left = result.graph.operators().get("BatchNormalization", 0)
    assert left <= (62 if name == "densenet121" else 0), "densenet normalizes before its activations"
    assert left < norms
    paths = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    io.save(graph, paths[0])
    io.save(result.graph, paths[1])
    ((inputs, _),) = case.sets
    before, after = (suite.outputs_of(path, case.model, inputs) for path in paths)
    assert suite.compare(before, after) <= suite.TOLERANCE


def check(results: list[suite.Result], count: int) -> None:
    """Every case ended in a known outcome, most were run, and those that were not say why."""
    outcomes = Counter(result.outcome for result in results)
    print(f"onnx {onnx.__version__}: {dict(outcomes)}")
    assert sum(outcomes[known] for known in suite.OUTCOMES) == count == len(results)
    assert not [r.name for r in results if r.outcome not in suite.RUN and not r.why]
    assert sum(outcomes[known] for known in suite.RUN) > count / 2
    assert outcomes[suite.REFUSED] == 0, [r for r in results if r.outcome == suite.REFUSED]
    assert outcomes[suite.KEPT] <= count // 20, [r for r in results if r.outcome == suite.KEPT]
    assert any(result.changes for result in results)
