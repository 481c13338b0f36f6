"""Does every operator with a training form compute the same in it, pass the gradient self-check, and learn?"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnx import ModelProto
from training_cases import CASES, TRAINING_ONLY, feeds

from onnxcomp.distill import environment
from onnxcomp.distill.forms import rules
from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.errors import EnvironmentLacksError, OutputError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.ops.facts import load_operators

OPERATORS = load_operators()
BATCH = 2
STEPS = 4
LARGEST_ERROR = 0.01
# a product of two inputs read in the test above the operator: learned, but no weight by its facts
ALSO = ("w*", "p*")


@cache
def ready(case: str) -> tuple[Graph, Prepared]:
    graph = decode(CASES[case]())
    return graph, prepare(graph, OPERATORS, batch=BATCH, also=ALSO)


def with_loss(prepared: Prepared, target: list[np.ndarray]) -> Graph:
    """The mean over outputs of the mean squared distance to a target."""
    graph = prepared.graph.clone()
    terms = []
    for output, wanted in zip(graph.outputs, target, strict=True):
        away = graph.add_node("Sub", [output, graph.add_constant("target", wanted)]).outputs[0]
        flat = graph.add_node("Flatten", [graph.add_node("Mul", [away, away]).outputs[0]], attrs={"axis": 0}).outputs[0]
        terms.append(graph.add_node("ReduceMean", [flat], attrs={"keepdims": 0}).outputs[0])
    loss = Variable("loss", np.dtype(np.float32), ())
    graph.add_node("Sum" if len(terms) > 1 else "Identity", terms, outputs=[loss])
    graph.outputs = [loss]
    return graph


def original_outputs(case: str) -> list[np.ndarray]:
    proto = CASES[case]()
    return builders.run(proto, feeds(proto, BATCH))


def targets(case: str) -> list[np.ndarray]:
    generator = builders.rng(11)
    return [(y + generator.standard_normal(y.shape)).astype(np.float32) for y in original_outputs(case)]


def lay_out(folder: Path, case: str, proto: ModelProto, prepared: Prepared, wanted: list[np.ndarray]) -> None:
    """Write one case for `run_matrix`."""
    path = folder / f"{case}.onnx"
    path.write_bytes(to_bytes(with_loss(prepared, wanted)))
    np.savez(path.with_suffix(".npz"), **feeds(proto, BATCH))
    asked = {"trainable": prepared.trainable, "statistics": prepared.statistics, "lr": 0.02, "steps": STEPS}
    path.with_suffix(".json").write_text(json.dumps(asked))


def run_matrix(runtime: environment.Environment, folder: Path) -> dict[str, dict[str, Any]]:
    """What the training runtime makes of every case in a folder; under "" how it ended."""
    worker = Path(environment.__file__).parent
    script = Path(__file__).with_name("gradient_matrix.py")
    done = subprocess.run(
        [str(runtime.python), "-E", "-s", str(script), str(worker), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment.clean_environment(),
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("case"): line for line in lines} | {"": {"error": f"{done.returncode}: {done.stderr[-500:]}"}}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases in one process of the training environment."""
    try:
        runtime = environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")
    folder = tmp_path_factory.mktemp("cases")
    for case in CASES:
        _, prepared = ready(case)
        lay_out(folder, case, CASES[case](), prepared, targets(case))
    return run_matrix(runtime, folder)


@pytest.mark.parametrize("case", CASES)
def test_training_form_gives_the_outputs_of_the_original(case: str) -> None:
    graph, prepared = ready(case)
    assert not prepared.refused
    if set(prepared.graph.operators()) & TRAINING_ONLY:
        pytest.skip("its training form needs the training runtime; its loss is compared below")
    given = feeds(CASES[case](), BATCH)
    for want, got in zip(builders.run(encode(graph), given), builders.run(encode(prepared.graph), given), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_right_and_the_loss_falls(case: str, results: dict[str, dict[str, Any]]) -> None:
    assert case in results, f"the training runtime crashed: {results['']['error']}"
    found = results[case]
    assert "error" not in found, found.get("error")
    losses = [float(((y - t) ** 2).mean()) for y, t in zip(original_outputs(case), targets(case), strict=True)]
    assert found["loss"] == pytest.approx(sum(losses), rel=1e-4), "the training runtime computes something else"
    assert not found["wrong"]
    assert found["median"] < LARGEST_ERROR
    assert found["losses"][-1] < found["losses"][0]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_for_any_number_of_threads(case: str, results: dict[str, dict[str, Any]]) -> None:
    assert case in results, f"the training runtime crashed: {results['']['error']}"
    assert results[case]["same"]


def test_every_rule_has_a_case() -> None:
    named = {case.split(" ")[0].removeprefix("com.microsoft.") for case in CASES}
    missing = {op for _, op in rules(OPERATORS)} - named
    assert not missing, sorted(missing)


@pytest.mark.parametrize("case", CASES)
def test_everything_learned_is_trainable(case: str) -> None:
    graph, prepared = ready(case)
    learned = {c.name for c in graph.constants() if c.name[0] in "wp"}
    assert learned <= {*prepared.trainable, *prepared.statistics} or case == "Gemm without"
