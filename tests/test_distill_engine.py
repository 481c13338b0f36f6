"""Does the engine train? On small graphs, in the real worker, with numpy as oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import pytest

from onnxcomp.distill import engine, environment
from onnxcomp.distill.task import Constraint, Feeding, Optimizer, Slice, Sparsity, TrainingTask
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.passes.training.trainer import piece_of
from onnxcomp.runtime.progress import Text

T = TypeVar("T")
F32 = np.dtype(np.float32)
BATCH, WIDTH, HIDDEN, CLASSES = 16, 6, 8, 3


def classifier(seed: int = 0, *, rounded: bool = False) -> Graph:
    """x -> Gemm -> Tanh -> Gemm -> mean cross-entropy with labels."""
    rng = np.random.default_rng(seed)
    graph = Graph()
    graph.import_domain("", 17)
    graph.model.ir_version = 8
    x, labels = Variable("x", F32, (BATCH, WIDTH)), Variable("labels", np.dtype(np.int64), (BATCH,))
    graph.inputs = [x, labels]
    sizes = {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, CLASSES), "b2": (CLASSES,)}
    p = {
        name: graph.add_constant(name, (rng.standard_normal(size) * 0.5).astype(np.float32))
        for name, size in sizes.items()
    }
    h = graph.add_node("Tanh", [graph.add_node("Gemm", [x, p["w1"], p["b1"]]).outputs[0]]).outputs[0]
    if rounded:
        step = graph.add_constant("step", np.float32(0.25))
        scaled = graph.add_node("Round", [graph.add_node("Div", [h, step]).outputs[0]]).outputs[0]
        h = graph.add_node("Mul", [scaled, step]).outputs[0]
    logits = graph.add_node("Gemm", [h, p["w2"], p["b2"]]).outputs[0]
    loss = Variable("loss", F32, ())
    graph.add_node("SoftmaxCrossEntropyLoss", [logits, labels], outputs=[loss, Variable("logs", F32)])
    graph.outputs = [loss]
    graph.sort()
    return graph


def task(graph: Graph | None = None, *, steps: int = 60, **changes: object) -> TrainingTask:
    """A task that a small network learns at once: the class is the largest of three inputs."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, WIDTH)).astype(np.float32)
    feeding = Feeding(
        {"x": x, "labels": x[:, :CLASSES].argmax(1)},
        rng.integers(80, 400, (steps, BATCH)),
        np.arange(80).reshape(-1, BATCH),
    )
    made = TrainingTask(
        graph or classifier(), feeding, ("w1", "b1", "w2", "b2"), optimizer=Optimizer(lr=0.02), evaluate_every=20
    )
    return replace(made, **changes)


def test_training_lowers_the_held_out_loss(runtime: environment.Environment) -> None:
    asked = task()
    result = engine.train(asked, runtime=runtime)
    assert result.ended == "done"
    assert len(result.losses) == len(result.rates) == 60
    assert [step for step, _ in result.held_out] == [0, 20, 40, 60]
    assert result.held_out[-1][1] < 0.6 * result.held_out[0][1]
    assert result.gradient_error is not None
    assert result.gradient_error < 0.01
    assert {name: value.shape for name, value in result.parameters.items()} == {
        c.name: c.shape for c in asked.graph.constants()
    }


@pytest.mark.parametrize("steepness", [30.0, 300.0])
def test_right_gradient_of_a_saturated_softmax_is_not_refused(
    runtime: environment.Environment, steepness: float
) -> None:
    """Its slope is next to nothing, and a step that is not small makes it jump to another class."""
    graph = classifier()
    logits = next(node for node in graph.nodes if node.op == "SoftmaxCrossEntropyLoss").inputs[0]
    steep = graph.add_node("Mul", [logits, graph.add_constant("steepness", np.float32(steepness))]).outputs[0]
    shares = graph.add_node("Softmax", [steep], attrs={"axis": -1}).outputs[0]
    away = graph.add_node("Sub", [shares, graph.add_constant("wanted", np.float32(0.4))]).outputs[0]
    flat = graph.add_node("Flatten", [graph.add_node("Mul", [away, away]).outputs[0]], attrs={"axis": 0}).outputs[0]
    loss = Variable("loss", F32, ())
    graph.add_node("ReduceMean", [flat], attrs={"keepdims": 0}, outputs=[loss])
    graph.remove_nodes([node for node in graph.nodes if node.op == "SoftmaxCrossEntropyLoss"])
    graph.outputs, graph.inputs = [loss], graph.inputs[:1]
    graph.sort()
    asked = task(graph, steps=1)
    feeding = replace(asked.feeding, arrays={"x": asked.feeding.arrays["x"]})
    assert engine.check_gradients(replace(asked, feeding=feeding), runtime=runtime) < 0.01


def test_two_runs_give_the_same_bytes(runtime: environment.Environment) -> None:
    one, two = (engine.train(task(steps=20), runtime=runtime) for _ in range(2))
    assert all(np.array_equal(one.parameters[name], two.parameters[name]) for name in one.parameters)
    assert one.losses == two.losses


def test_any_number_of_threads_gives_the_same_bytes(runtime: environment.Environment) -> None:
    found = []
    for threads in (1, 2, 4):
        asked = task(steps=4, threads=threads)
        order = np.random.default_rng(5).integers(80, 400, (4, 4 * BATCH))
        result = engine.train(replace(asked, feeding=replace(asked.feeding, order=order)), runtime=runtime)
        found.append((result.losses, *(result.parameters[name].tobytes() for name in sorted(result.parameters))))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("batch", "piece"), [(128, 16), (64, 16), (50, 25), (20, 20), (7, 7)])
def test_batch_is_shared_evenly_and_not_too_thinly(batch: int, piece: int) -> None:
    assert piece_of(batch) == piece


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_pieces_of_a_batch_give_the_gradient_of_the_whole(runtime: environment.Environment, threads: int) -> None:
    asked = task(steps=1, threads=threads)
    rows = np.arange(3 * BATCH)
    whole = engine.gradient_moments(
        replace(asked, feeding=replace(asked.feeding, order=rows[None])), 1, runtime=runtime
    )
    apart = engine.gradient_moments(
        replace(asked, feeding=replace(asked.feeding, order=rows.reshape(3, BATCH))), 3, runtime=runtime
    )
    assert all(np.allclose(whole.mean[name], apart.mean[name], atol=1e-7) for name in whole.mean)


def test_masks_bounds_and_groups_are_kept(runtime: environment.Environment) -> None:
    mask = np.random.default_rng(2).random((WIDTH, HIDDEN)) < 0.5
    graph = classifier()
    asked = task(
        graph,
        constraints={"w1": Constraint(mask=mask), "b2": Constraint(low=np.float32(-0.1), high=np.float32(0.1))},
        sparsity=Sparsity(
            groups=tuple((Slice("w2", 0, (i,)), Slice("b1", 0, (i,))) for i in range(HIDDEN)), group_strength=2.0
        ),
        keep_best=False,
    )
    found = engine.train(asked, runtime=runtime).parameters
    assert (found["w1"][~mask] == 0).all()
    assert (found["w1"][mask] != 0).all()
    assert np.abs(found["b2"]).max() <= np.float32(0.1)
    dead = (found["w2"] == 0).all(axis=1)
    assert dead.any()
    assert np.array_equal(dead, found["b1"] == 0)


def test_rounding_passes_its_gradient_straight_through(runtime: environment.Environment) -> None:
    result = engine.train(task(classifier(rounded=True)), runtime=runtime)
    assert result.held_out[-1][1] < 0.7 * result.held_out[0][1]
    assert result.gradient_error is not None
    assert result.gradient_error < 0.01


def test_moments_are_those_of_numpy(runtime: environment.Environment) -> None:
    asked = task()
    weights = {c.name: c.values for c in asked.graph.constants()}
    found = engine.gradient_moments(asked, 3, runtime=runtime)
    grads = []
    for rows in asked.feeding.order[:3]:
        x, labels = (asked.feeding.arrays[name][rows] for name in ("x", "labels"))
        h = np.tanh(x @ weights["w1"] + weights["b1"])
        logits = h @ weights["w2"] + weights["b2"]
        exps = np.exp(logits - logits.max(1, keepdims=True))
        delta = (exps / exps.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) / BATCH
        grads.append(h.T @ delta)
    assert np.allclose(found.mean["w2"], np.mean(grads, 0), atol=1e-6)
    assert np.allclose(found.square["w2"], np.mean(np.square(grads), 0), atol=1e-7)
    assert np.allclose(found.taylor["w2"], np.mean(np.square(weights["w2"] * grads), 0), atol=1e-7)


def test_what_cannot_be_trained_is_named(runtime: environment.Environment) -> None:
    graph = classifier()
    tanh = next(node for node in graph.nodes if node.op == "Tanh")
    tanh.op = "Selu"
    with pytest.raises(ModelError, match="Selu has no gradient") as caught:
        engine.train(task(graph), runtime=runtime)
    assert tanh.name in caught.value.where


def convolutions(kind: str) -> TrainingTask:
    """Conv, Relu, Conv and a mean square, with one thing in it whose gradient the training runtime gets wrong."""
    rng = np.random.default_rng(0)
    graph = Graph()
    graph.import_domain("", 17)
    graph.model.ir_version = 8
    x = Variable("x", F32, (8, 2, 7, 7))
    graph.inputs = [x]
    first = graph.add_constant("first", (rng.standard_normal((4, 2, 3, 3)) * 0.3).astype(np.float32))
    odd = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    y = graph.add_node("Conv", [x, first], name="early", attrs=odd if kind == "auto_pad" else {}).outputs[0]
    y = graph.add_node("Relu", [y], name="relu").outputs[0]
    if kind == "split":
        halves = graph.add_constant("halves", np.array([2, 2]))
        y = graph.add_node("Split", [y, halves], name="split", attrs={"axis": 1}, outputs=2).outputs[1]
    shape = (4, 2 if kind == "split" else 4, 3, 3)
    second = graph.add_constant("second", (rng.standard_normal(shape) * 0.3).astype(np.float32))
    y = graph.add_node("Conv", [y, second], name="late").outputs[0]
    loss = graph.add_node("ReduceMean", [graph.add_node("Mul", [y, y]).outputs[0]], attrs={"keepdims": 0}).outputs[0]
    if kind == "faint":  # as a divergence is whose terms of order 1 cancel
        one, tiny = (graph.add_constant(name, np.float32(size)) for name, size in (("one", 1.0), ("tiny", 1e-5)))
        loss = graph.add_node("Add", [graph.add_node("Mul", [loss, tiny]).outputs[0], one]).outputs[0]
        loss = graph.add_node("Sub", [loss, one]).outputs[0]
    loss.name, loss.dtype, loss.shape = "loss", F32, ()
    graph.outputs = [loss]
    graph.sort()
    feeding = Feeding(
        {"x": rng.standard_normal((16, 2, 7, 7)).astype(np.float32)},
        np.arange(16).reshape(2, 8),
        np.zeros((0, 8), np.int64),
    )
    return TrainingTask(graph, feeding, ("first", "second"))


@pytest.mark.parametrize(("kind", "blamed"), [("auto_pad", "Conv early"), ("split", "Split split")])
def test_wrong_gradient_is_refused_before_training(runtime: environment.Environment, kind: str, blamed: str) -> None:
    with pytest.raises(ModelError, match="gradient of 'first' is wrong") as caught:
        engine.train(convolutions(kind), runtime=runtime)
    assert blamed in caught.value.where
    assert "ReduceMean" not in caught.value.where


def test_right_gradient_passes(runtime: environment.Environment) -> None:
    assert engine.check_gradients(convolutions("none"), runtime=runtime) < 0.003


def test_a_loss_that_is_float_noise_refutes_no_gradient(runtime: environment.Environment) -> None:
    assert engine.check_gradients(convolutions("faint"), runtime=runtime) < 0.01


def test_parameter_without_a_gradient_is_named(runtime: environment.Environment) -> None:
    graph = classifier()
    tanh = next(node for node in graph.nodes if node.op == "Tanh")
    bound = graph.add_constant("bound", np.float32(0.5))
    clip = graph.add_node("Clip", [tanh.outputs[0], graph.add_constant("low", np.float32(-1)), bound]).outputs[0]
    reader = next(node for node in tanh.outputs[0].consumers if node.op == "Gemm")
    graph.replace_uses(tanh.outputs[0], clip, only=[reader])
    graph.sort()
    with pytest.raises(ModelError, match="reaches the parameter 'bound'"):
        engine.train(replace(task(graph), trainable=("w1", "bound")), runtime=runtime)


def test_statistics_follow_the_batches(runtime: environment.Environment) -> None:
    graph = classifier()
    tanh = next(node for node in graph.nodes if node.op == "Tanh")
    kinds = {"gamma": np.ones, "beta": np.zeros, "mean": np.zeros, "var": np.ones}
    extra = {name: graph.add_constant(name, make(HIDDEN, np.float32)) for name, make in kinds.items()}
    reader = tanh.outputs[0].consumers[0]
    normal = graph.add_node("BatchNormalization", [tanh.outputs[0], *extra.values()]).outputs[0]
    graph.replace_uses(tanh.outputs[0], normal, only=[reader])
    graph.sort()
    asked = task(graph, steps=1, keep_best=False)
    asked = replace(asked, trainable=("w1", "w2", "gamma"), statistics=("mean", "var"))
    weights = {c.name: c.values for c in graph.constants()}
    found = engine.train(asked, runtime=runtime)
    h = np.tanh(asked.feeding.arrays["x"][asked.feeding.order[0]] @ weights["w1"] + weights["b1"])
    assert np.allclose(found.parameters["mean"], 0.1 * h.mean(0), atol=1e-6)
    assert np.allclose(found.parameters["var"], 0.9 + 0.1 * h.var(0), atol=1e-6)
    assert found.gradient_error is not None
    assert found.gradient_error < 0.01


def test_unused_parameter_is_refused(runtime: environment.Environment) -> None:
    graph = classifier()
    graph.unused.append(graph.add_constant("idle", np.ones(3, np.float32)))
    with pytest.raises(ModelError, match="'idle' takes no part"):
        engine.train(replace(task(graph), trainable=("w1", "idle")), runtime=runtime)


def test_divergence_is_said_with_its_step(runtime: environment.Environment) -> None:
    asked = task(optimizer=Optimizer(kind="sgd", lr=3e38, momentum=0.0, schedule="constant"))
    with pytest.raises(UsageError, match="diverged") as caught:
        engine.train(asked, runtime=runtime)
    assert "learning rate" in caught.value.do


def test_data_of_another_shape_is_refused(runtime: environment.Environment) -> None:
    asked = task()
    feeding = replace(asked.feeding, arrays={**asked.feeding.arrays, "x": np.zeros((400, WIDTH + 1), np.float32)})
    with pytest.raises(DataError, match="'x' takes float32"):
        engine.train(replace(asked, feeding=feeding), runtime=runtime)


def test_best_parameters_are_kept_and_patience_ends_early(runtime: environment.Environment) -> None:
    harmful = task(optimizer=Optimizer(kind="sgd", lr=300.0, schedule="constant"), evaluate_every=5, patience=2)
    before = {c.name: c.values for c in harmful.graph.constants()}
    result = engine.train(harmful, runtime=runtime)
    assert (result.ended, result.best_step, len(result.losses)) == ("early", 0, 10)
    assert all(np.array_equal(before[name], value) for name, value in result.parameters.items())
    last = engine.train(replace(harmful, keep_best=False), runtime=runtime)
    assert last.best_step == 10
    assert not np.array_equal(before["w1"], last.parameters["w1"])


def test_soft_thresholds_give_exact_zeros(runtime: environment.Environment) -> None:
    found = engine.train(task(sparsity=Sparsity(l1={"w1": 0.5}), keep_best=False), runtime=runtime).parameters
    assert (found["w1"] == 0).mean() > 0.2
    assert (found["w2"] != 0).all()


def test_rate_scales_and_frozen_parameters(runtime: environment.Environment) -> None:
    asked = task(steps=5, optimizer=Optimizer(lr=0.01, lr_scale={"w2": 0.0}), trainable=("w1", "w2"))
    before = {c.name: c.values for c in asked.graph.constants()}
    found = engine.train(asked, runtime=runtime).parameters
    assert set(found) == {"w1", "w2"}
    assert np.array_equal(found["w2"], before["w2"])
    assert not np.array_equal(found["w1"], before["w1"])


def test_rows_are_read_where_they_lie(runtime: environment.Environment, tmp_path: Path) -> None:
    asked = task(steps=8)
    plain = engine.train(asked, runtime=runtime)
    arrays = dict(asked.feeding.arrays)
    np.save(tmp_path / "x.npy", np.concatenate([arrays["x"][:3], arrays["x"]]))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert engine._mapped(mapped) is not None
    assert engine._mapped(mapped[3:]) is None  # its place in the file is not told: copied
    for array in (mapped[3:], np.memmap(tmp_path / "x.npy", np.float32, "r", mapped.offset + 12 * WIDTH, (400, WIDTH))):
        feeding = replace(asked.feeding, arrays={**arrays, "x": array})
        assert engine.train(replace(asked, feeding=feeding), runtime=runtime).losses == plain.losses


@pytest.mark.parametrize(("opset", "ir"), [(9, 4), (17, 8), (23, 11)])
def test_graphs_of_other_opsets_are_restamped(opset: int, ir: int) -> None:
    graph = Graph()
    graph.import_domain("", opset)
    graph.model.ir_version = ir
    x = Variable("x", F32, (2, 3))
    graph.inputs, graph.outputs = [x], graph.add_node("Relu", [x]).outputs
    model = onnx.load_model_from_string(engine.training_bytes(graph))
    assert 11 <= model.opset_import[0].version <= 21
    assert model.ir_version <= 10
    assert (graph.opset, graph.model.ir_version) == (opset, ir)


def test_operator_newer_than_the_runtime_is_named() -> None:
    graph = Graph()
    graph.import_domain("", 23)
    x, scale = Variable("x", F32, (2, 3)), graph.add_constant("scale", np.ones(3, np.float32))
    graph.inputs, graph.outputs = [x], graph.add_node("RMSNormalization", [x, scale], name="norm").outputs
    with pytest.raises(ModelError, match="RMSNormalization of opset 23") as caught:
        engine.training_bytes(graph)
    assert "norm" in caught.value.where


def test_progress_shows_loss_and_held_out_loss(runtime: environment.Environment) -> None:
    class Bar:
        def __init__(self) -> None:
            self.words: list[str] = []
            self.items = 0

        def say(self, text: str) -> None:
            pass

        def track(self, items: Iterable[T], total: int | None, text: Text) -> Iterator[T]:
            assert total == 60
            for item in items:
                self.items += 1
                self.words.append(text if isinstance(text, str) else text())
                yield item

    bar = Bar()
    result = engine.train(task(), runtime=runtime, progress=bar)
    assert bar.items == 60
    assert f"held-out {result.held_out[0][1]:.4g}" in bar.words[0]
    assert f"loss {result.losses[-1]:.4g}" in bar.words[-1]
