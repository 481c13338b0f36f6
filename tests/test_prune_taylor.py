"""Is Taylor importance the squared product of weight and gradient, and does a unit of no effect go first?"""

from __future__ import annotations

import numpy as np
import pytest
from builders import model, value
from onnx import helper

from onnxcomp.distill import environment
from onnxcomp.errors import DataError, EnvironmentLacksError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.structure.taylor import BATCH, taylor_moments

INPUTS, HIDDEN, CLASSES = 6, 8, 4
RNG = np.random.default_rng(3)
FIRST = RNG.standard_normal((INPUTS, HIDDEN)).astype(np.float32)
SECOND = RNG.standard_normal((HIDDEN, CLASSES)).astype(np.float32)
SECOND[5] = 0.7  # adds the same to every class: large, and of no effect on any probability


class Labelled:
    """Samples with labels, held in memory."""

    source = "test"

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(1)
        self.x = generator.standard_normal((count, INPUTS)).astype(np.float32)
        self.labels: np.ndarray | None = generator.integers(0, CLASSES, count)

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int | None = None):
        for start in range(0, len(self), size or BATCH):
            yield {"x": self.x[start : start + (size or BATCH)]}


def mlp() -> Graph:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "hidden"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "second"], ["y"], "out"),
    ]
    ends = [value("x", 1, ["n", INPUTS])], [value("y", 1, ["n", CLASSES])]
    return decode(model(nodes, *ends, {"first": FIRST, "second": SECOND}))


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    try:
        environment.provide()
    except EnvironmentLacksError as error:
        pytest.skip(f"no training runtime: {error.what}")


def test_moments_are_squared_products_of_weight_and_gradient() -> None:
    samples = Labelled(BATCH)
    found = taylor_moments(mlp(), PassContext(calibration=samples))
    x, labels = samples.x.astype(np.float64), samples.labels
    h = np.maximum(x @ FIRST, 0)
    logits = h @ SECOND
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(CLASSES)[labels]) / BATCH
    wanted = {
        "second": np.square(SECOND * (h.T @ error)),
        "first": np.square(FIRST * (x.T @ (error @ SECOND.T * (h > 0)))),
    }
    for name, moments in wanted.items():
        assert np.allclose(found[name], moments, rtol=1e-3, atol=1e-9)


def test_a_unit_without_effect_on_the_loss_goes_first_though_its_weights_are_large() -> None:
    graph = mlp()
    samples = Labelled(4 * BATCH)
    context = PassContext(calibration=samples, sample_shapes={"x": (1, INPUTS)})
    spec = f"prune-channels{{ratio={1 / HIDDEN},importance=taylor,compensate=false}}"
    pruned = PassManager(Pipeline.parse(spec), verify=False).run(graph, context).graph
    (left,) = [c.values for c in pruned.constants() if c.shape == (HIDDEN - 1, CLASSES)]
    assert not (left == SECOND[5]).all(axis=1).any()


def test_labels_are_asked_for_before_any_work() -> None:
    samples = Labelled(8)
    samples.labels = None
    with pytest.raises(DataError, match="labels"):
        PassManager(Pipeline.parse("prune-channels{ratio=0.3,importance=taylor}")).run(
            mlp(), PassContext(calibration=samples)
        )
