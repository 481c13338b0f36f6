"""Do whole architectures come to training form, take a batch where they were exported for one sample, and learn?

The files in models/architectures are what the exporter of PyTorch writes, with random weights (make_architectures.py).
"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from nets import Net
from onnx import ModelProto

from onnxcomp.distill import engine, environment
from onnxcomp.distill.task import Feeding, Optimizer, TrainingTask
from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.errors import EnvironmentLacksError, OutputError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.ops.facts import load_operators
from onnxcomp.ops.gradients.recurrent import MICROSOFT

OPERATORS = load_operators()
FOLDER = Path(__file__).resolve().parent.parent / "models" / "architectures"
MODELS = sorted(path.stem for path in FOLDER.glob("*.onnx"))
# kept as constants because nothing tells them from fixed grids: position embeddings, a class token, window biases
CONSTANT_SHARE = 0.1


def ready(name: str, batch: int) -> tuple[Graph, Prepared]:
    graph = load(FOLDER / f"{name}.onnx")
    return graph, prepare(graph, OPERATORS, batch=batch)


def distance(prepared: Prepared, target: np.ndarray) -> Graph:
    """The mean squared distance of the first output to a target."""
    graph = prepared.graph.clone()
    away = graph.add_node("Sub", [graph.outputs[0], graph.add_constant("target", target)]).outputs[0]
    flat = graph.add_node("Flatten", [graph.add_node("Mul", [away, away]).outputs[0]], attrs={"axis": 0}).outputs[0]
    loss = Variable("loss", np.dtype(np.float32), ())
    graph.add_node("ReduceMean", [flat], attrs={"keepdims": 0}, outputs=[loss])
    graph.outputs = [loss]
    return graph


def fixed(proto: ModelProto) -> ModelProto:
    """The model as an exporter with a fixed batch of one leaves it: its sizes worked out and written down."""
    graph = prepare(decode(proto), OPERATORS, batch=1).graph
    return encode(graph)


@pytest.mark.parametrize("name", MODELS)
def test_architecture_computes_the_same_in_training_form(name: str) -> None:
    graph, prepared = ready(name, 3)
    assert not prepared.refused
    floats = [c for c in graph.constants() if c.dtype == np.float32 and c.size > 1]
    left = [c for c in floats if c.name not in {*prepared.trainable, *prepared.statistics}]
    assert sum(c.size for c in left) < CONSTANT_SHARE * sum(c.size for c in floats)
    if prepared.graph.opset_of(MICROSOFT):
        return  # runs in the training runtime only, see below
    feeds = builders.feeds_of(encode(prepared.graph))
    before, after = builders.run(encode(graph), feeds), builders.run(encode(prepared.graph), feeds)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_architecture_learns(name: str) -> None:
    try:
        runtime = environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")
    graph, prepared = ready(name, 4)
    feeds = builders.feeds_of(encode(prepared.graph))
    outputs = builders.run(encode(graph), feeds)[0]
    noise = builders.rng(1).standard_normal(outputs.shape) * outputs.std()
    task = TrainingTask(
        distance(prepared, (outputs + noise).astype(np.float32)),
        Feeding(feeds, np.tile(np.arange(4), (5, 1)), np.arange(4)[None]),
        prepared.trainable,
        statistics=prepared.statistics,
        optimizer=Optimizer(lr=3e-4, schedule="constant"),
        evaluate_every=1,
    )
    result = engine.train(task, runtime=runtime)
    assert result.gradient_error is not None
    assert result.gradient_error < 0.01
    assert result.held_out[0][1] == pytest.approx(float(noise.astype(np.float32).__pow__(2).mean()), rel=1e-2)
    assert result.held_out[-1][1] < 0.98 * result.held_out[0][1]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("lstm-tagger", "bert")])
def test_architecture_of_one_sample_a_call_takes_a_batch(name: str) -> None:
    proto = encode(load(FOLDER / f"{name}.onnx"))
    prepared = prepare(decode(fixed(proto)), OPERATORS, batch=3)
    assert prepared.batch == 3
    feeds = builders.feeds_of(encode(prepared.graph))
    want, got = builders.run(proto, feeds)[0], builders.run(encode(prepared.graph), feeds)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_number_of_the_sample_written_into_the_model_is_not_taken_for_a_batch() -> None:
    """BERT's attention mask is looked up by the sample's number, which is 0 in a model of one sample."""
    prepared = prepare(decode(fixed(encode(load(FOLDER / "bert.onnx")))), OPERATORS, batch=3)
    assert prepared.batch == 1
    assert prepared.trainable


def test_a_model_that_moves_its_single_sample_trains_on_one_a_step() -> None:
    net = Net()
    x = net.input(1, 6)
    h = net.dense(x, 6, 4)
    turned = net.op("Reshape", h, net.const([4, 1]))
    y = net.op("ReduceSum", net.op("Mul", turned, net.op("Transpose", turned, perm=[1, 0])), net.const([0]))
    prepared = prepare(decode(net.model(y)), OPERATORS, batch=5)
    assert prepared.batch == 1
    assert "one sample a call" in prepared.notes[-1]
    assert set(prepared.trainable) == {"w0", "w1"}


def test_one_sample_models_of_several_inputs_and_constants_take_a_batch() -> None:
    net = Net()
    a, b = net.input(1, 3, 6), net.input(1, 6)
    token = net.weight(1, 1, 6)
    sequence = net.op("Concat", token, net.dense(a, 6, 6), net.op("Reshape", b, net.const([1, 1, 6])), axis=1)
    y = net.op("Reshape", net.dense(sequence, 6, 4), net.const([1, -1]))
    proto = net.model(y)
    prepared = prepare(decode(proto), OPERATORS, batch=4)
    assert prepared.batch == 4
    feeds = builders.feeds_of(encode(prepared.graph))
    got = builders.run(encode(prepared.graph), feeds)[0]
    for i in range(4):
        alone = builders.run(proto, {k: v[i : i + 1] for k, v in feeds.items()})[0]
        np.testing.assert_allclose(got[i : i + 1], alone, rtol=1e-5, atol=1e-5)
