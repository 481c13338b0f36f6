"""Is what trains the model? The copy is held against the model by outputs, and the operator that differs is named."""

from __future__ import annotations

from dataclasses import replace

import builders
import numpy as np
import pytest
from nets import Net
from onnx import ModelProto, TensorProto, helper

from onnxcomp.distill import alike, engine, environment
from onnxcomp.distill.trainable import prepare
from onnxcomp.errors import EnvironmentLacksError, ModelError, OutputError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.rewriting import Site
from onnxcomp.ops.facts import Operators, load_operators
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.tables import RECORDS

OPERATORS = load_operators()
BATCH = 4


@pytest.fixture(scope="module")
def runtime() -> environment.Environment:
    try:
        return environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")


def pooled() -> ModelProto:
    net = Net(opset=19)
    h = net.op("Relu", net.conv(net.input("N", 3, 6, 6), 3, 4))
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    return net.model(net.conv(net.op("AveragePool", h, **attrs), 4, 2))


def with_rule(op: str, rule: object) -> Operators:
    """The operators' records with another training form for one of them."""
    records = [replace(r, gradient=rule) if (r.op, r.domain) == (op, "") else r for r in RECORDS]
    return Operators(records)


def test_the_copy_of_a_model_is_alike(runtime: environment.Environment) -> None:
    proto = pooled()
    graph = decode(proto)
    ready = prepare(graph, OPERATORS, {}, BATCH)
    assert alike.check(graph, ready, builders.feeds_of(proto, batch=BATCH), OPERATORS, runtime=runtime) == []


def test_a_kernel_of_the_training_runtime_that_computes_something_else_is_named(
    runtime: environment.Environment,
) -> None:
    proto = pooled()
    graph, operators = decode(proto), with_rule("AveragePool", keep)
    ready = prepare(graph, operators, {}, BATCH)
    with pytest.raises(ModelError, match="something else from AveragePool") as caught:
        alike.check(graph, ready, builders.feeds_of(proto, batch=BATCH), operators, runtime=runtime)
    assert "training runtime" in caught.value.what


def test_a_wrong_rewrite_is_named(runtime: environment.Environment) -> None:
    def doubled(site: Site) -> object:
        return site.op("Mul", site.op("Relu", site.x), 2.0)

    proto = pooled()
    graph, operators = decode(proto), with_rule("Relu", doubled)
    ready = prepare(graph, operators, {}, BATCH)
    with pytest.raises(ModelError, match=r"something else from Relu .* dB in ONNX Runtime"):
        alike.check(graph, ready, builders.feeds_of(proto, batch=BATCH), operators, runtime=runtime)


def branching(place: str) -> ModelProto:
    """Three products; an If whose condition follows from the input stands before the second, or beside it."""
    net = Net()
    x = net.input("N", 6)
    h = net.op("Relu", net.op("MatMul", x, net.weight(6, 6)))
    positive = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(0.0, np.float32))
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("then", "else")]
    then = helper.make_graph([helper.make_node("Neg", [h], ["then"])], "a", [], out[:1])
    other = helper.make_graph([helper.make_node("Abs", [h], ["else"])], "b", [], out[1:])
    chosen = net.op("If", positive, then_branch=then, else_branch=other)
    y = net.op("MatMul", chosen if place == "before" else h, net.weight(6, 6))
    y = y if place == "before" else net.op("Add", y, chosen)
    return net.model(net.op("MatMul", net.op("Relu", y), net.weight(6, 3)))


@pytest.mark.parametrize("place", ["before", "beside"])
def test_a_branch_only_stops_the_gradient(place: str, runtime: environment.Environment) -> None:
    graph = decode(branching(place))
    ready = prepare(graph, OPERATORS, {}, BATCH)
    assert ready.trainable == ("w2", "w3")
    assert [r.op for r in ready.refused] == ["If"]
    feeds = builders.feeds_of(branching(place), batch=BATCH)
    assert alike.check(graph, ready, feeds, OPERATORS, runtime=runtime) == []


def test_a_time_major_model_takes_rows(runtime: environment.Environment) -> None:
    from onnxcomp.distill.layout import Layout, take_rows

    class Places:
        def input(self, name: str) -> int | None:
            return 1

        def output(self, name: str) -> int | None:
            return 1

    net = Net()
    x = net.input(5, "N", 6)
    found = net.op("GRU", x, net.weight(1, 12, 6), net.weight(1, 12, 4), hidden_size=4, outputs=2)
    proto = net.model(net.op("MatMul", net.op("Squeeze", found[0], net.const([1])), net.weight(4, 3)))
    layout, graph = Layout(Places()), decode(proto)
    take_rows(graph, layout)
    assert graph.inputs[0].shape == ("N", 5, 6)
    rows = {"x0": builders.rng(1).standard_normal((BATCH, 5, 6)).astype(np.float32)}
    ready = prepare(graph, OPERATORS, {}, BATCH)
    assert len(ready.trainable) == 3
    assert alike.check(graph, ready, rows, OPERATORS, runtime=runtime) == []
    whole = builders.run(proto, layout.feeds(rows))[0]
    found_rows = engine.forward(ready.graph, rows, [proto.graph.output[0].name], runtime=runtime)
    np.testing.assert_allclose(found_rows[proto.graph.output[0].name], whole, rtol=1e-5, atol=1e-6)
    assert layout.outputs({proto.graph.output[0].name: whole}, BATCH)[proto.graph.output[0].name].shape == (4, 5, 3)
    assert to_bytes(graph)


def test_a_kernel_that_may_round_activations_is_held_to_what_the_operator_says(
    runtime: environment.Environment,
) -> None:
    net = Net()
    codes = net.const(builders.rng(1).integers(0, 256, (16, 2, 16)), np.uint8)
    scales = net.const(builders.rng(2).uniform(0.01, 0.02, (16, 2)), np.float32)
    attrs = {"K": 64, "N": 16, "bits": 4, "block_size": 32, "accuracy_level": 4, "domain": "com.microsoft"}
    proto = net.model(net.op("MatMulNBits", net.input("N", 64), codes, scales, **attrs), domains={"com.microsoft": 1})
    graph = decode(proto)
    ready = prepare(graph, OPERATORS, {}, BATCH)
    assert alike.check(graph, ready, builders.feeds_of(proto, batch=BATCH), OPERATORS, runtime=runtime) == []
