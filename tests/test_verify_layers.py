"""Is each layer's own error measured where it arises, whatever the size of the model?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.open import random_data
from onnxcomp.graph import io
from onnxcomp.graph.coupling.analysis import analyse
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators
from onnxcomp.runtime import session
from onnxcomp.verify import layers


def samples(graph: Graph) -> object:
    return random_data([InputSpec(t.name, t.dtype, t.shape) for t in graph.inputs], 4).samples()


def noisy(graph: Graph, noise: dict[str, float]) -> Graph:
    """A copy whose named weights carry noise of this share of their own energy."""
    copy = graph.clone()
    generator = builders.rng(1)
    for constant in copy.constants():
        if constant.name in noise:
            values = np.asarray(constant.values)
            error = generator.standard_normal(values.shape) * values.std() * noise[constant.name]
            constant.values = (values + error).astype(np.float32)
    return copy


def test_an_error_counts_in_its_own_layer_only(tmp_path: Path) -> None:
    graph = io.load(builders.save(builders.mlp((16, 32, 32, 10)), tmp_path / "m.onnx"))
    found = layers.own_sqnr_db(graph, noisy(graph, {"fc2.weight": 0.1}), samples(graph), load_operators())
    assert set(found) == {"fc2"}
    assert found["fc2"] == pytest.approx(20, abs=2)


def test_behind_pruning_a_layer_is_judged_by_what_is_left(tmp_path: Path) -> None:
    """Channels left between the first two layers, in two goes; the third has an error of its own."""
    graph = io.load(builders.save(builders.mlp((16, 32, 32, 32, 10)), tmp_path / "m.onnx"))
    after = noisy(graph, {"fc3.weight": 0.1})
    operators = load_operators()
    for units in (slice(0, 8), slice(4, 6)):
        coupling = analyse(after, operators)
        group = next(group for group in coupling.groups if group.name == "fc1")
        cut(coupling, group.units[units])
    found = layers.own_sqnr_db(graph, after.clone(), samples(graph), operators)
    weights = {c.name: np.asarray(c.values, np.float64) for c in graph.constants()}
    x = next(iter(samples(graph).batches(4)))["x"]
    hidden = np.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
    gone = hidden[:, [*range(8), 12, 13]] @ weights["fc2.weight"].T[[*range(8), 12, 13]]
    whole = hidden @ weights["fc2.weight"].T + weights["fc2.bias"]
    assert found == pytest.approx(
        {"fc2": 10 * np.log10(np.square(whole).sum() / np.square(gone).sum()), "fc3": 20}, abs=2
    )
    assert found["fc2"] == pytest.approx(10 * np.log10(np.square(whole).sum() / np.square(gone).sum()), abs=0.01)


@pytest.mark.parametrize("build", [builders.residual_cnn, builders.depthwise_cnn, builders.transformer])
def test_after_pruning_alone_every_pruned_layer_has_a_figure(build: Callable[[], ModelProto], tmp_path: Path) -> None:
    graph = io.load(builders.save(build(), tmp_path / "m.onnx"))
    operators = load_operators()
    result = PassManager(Pipeline.parse("prune-channels{ratio=0.3}")).run(graph)
    found = layers.own_sqnr_db(graph, result.graph, samples(graph), operators)
    before, after = ({c.name: c.shape for c in g.constants()} for g in (graph, result.graph))
    narrower = {
        node.name
        for node in graph.nodes
        for weight, constant in operators.weights(node)
        if weight.role == "kernel"
        and constant.name in after
        and any(before[constant.name][axis] != after[constant.name][axis] for axis in weight.in_axes)
    }
    assert narrower and narrower <= set(found)


def test_samples_together_and_one_by_one_give_the_same_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = io.load(builders.save(builders.residual_cnn(), tmp_path / "m.onnx"))
    weights = [c.name for c in graph.constants() if len(c.shape) == 4]
    after = noisy(graph, dict.fromkeys(weights, 0.05))
    together = layers.own_sqnr_db(graph, after, samples(graph), load_operators())
    monkeypatch.setattr(layers, "BUDGET_BYTES", 1)
    apart = layers.own_sqnr_db(graph, after, samples(graph), load_operators())
    assert len(together) == len(weights) and apart == pytest.approx(together, abs=1e-3)


def test_layers_are_measured_in_groups_that_fit_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that came with external data, above every limit: the same figures as in one go."""
    path = builders.save_external(builders.mlp((16, 32, 32, 10)), tmp_path / "m.onnx")
    graph = io.load(path)
    after = noisy(graph, {"fc1.weight": 0.1, "fc3.weight": 0.01})
    wanted = layers.own_sqnr_db(graph, after, samples(graph), load_operators())
    monkeypatch.setattr(layers, "WEIGHT_BYTES", 1)
    monkeypatch.setattr(session, "LARGE_BYTES", 64)
    assert layers.own_sqnr_db(graph, after, samples(graph), load_operators()) == pytest.approx(wanted, abs=0.01)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "weights.bin"]


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("touched", [True, False])
def test_a_large_graph_runs_like_a_small_one(
    external: bool, touched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are mapped from the model's own file where they lie untouched, under their new names."""
    proto = builders.residual_cnn()
    save = builders.save_external if external else builders.save
    graph = io.load(save(proto, tmp_path / "m.onnx")).clone()
    for constant in graph.constants():
        constant.name = f"renamed.{constant.name}"
        if touched:
            constant.values = constant.values * np.float32(2)
    feed = builders.feeds_of(proto)
    wanted = session.open_graph(graph).run(feed)["logits"]
    monkeypatch.setattr(session, "LARGE_BYTES", 64)
    found = session.open_graph(graph).run(feed)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_layers_of_a_half_precision_model_are_measured_in_one_that_computes_in_float32(tmp_path: Path) -> None:
    """The new model takes inner tensors in its own type."""
    half = builders.mlp((16, 32, 32, 10))
    for weight in half.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    graph = io.load(builders.save(half, tmp_path / "m.onnx"))
    pipeline = Pipeline.parse("compute-float32,quantize-weights{bits=8}")
    after = PassManager(pipeline).run(graph).graph
    found = layers.own_sqnr_db(graph, after, samples(graph), load_operators())
    assert set(found) == {"fc1", "fc2", "fc3"}
    assert min(found.values()) > 25
