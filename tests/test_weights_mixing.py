"""Do the weights that cost the outputs most take 8 bits where the rest takes few, within the bytes allowed?"""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from nets import Net
from onnx import ModelProto
from test_pass_quantize_weights import quantized

from onnxcomp.graph.clone import clone
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Constant, Graph
from onnxcomp.passes.weights.trials import Trials, costly_first
from onnxcomp.runtime.closeness import noise_share
from onnxcomp.runtime.session import Session, open_graph
from onnxcomp.runtime.taps import Sessions


def uneven() -> tuple[ModelProto, list[str]]:
    """Two products whose results are added: what the second gives is a hundred times as large."""
    net = Net(seed=3)
    x = net.input("N", 128)
    small, large = net.weight(128, 64, scale=0.01), net.weight(128, 64)
    out = net.op("Add", net.op("MatMul", x, small), net.op("MatMul", x, large))
    return onnx.shape_inference.infer_shapes(net.model(out)), [small, large]


def bits_of(after: ModelProto) -> list[int]:
    """Of the products, in the order of their weights' names."""
    nodes = sorted((n for n in after.graph.node if n.op_type == "MatMulNBits"), key=lambda n: n.input[1])
    return [a.i for n in nodes for a in n.attribute if a.name == "bits"]


def test_the_weight_that_costs_the_outputs_most_takes_eight_bits() -> None:
    before, _ = uneven()
    feeds = {"x0": np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)}
    after, record = quantized(before, "bits=4,least_sqnr=30,average=6.5,accuracy_level=1", feeds=feeds)
    assert bits_of(after) == [4, 8]
    assert any("1 of 2 weights take 8 bits" in note for note in record.notes)
    exact = builders.run(before, feeds)[0]
    narrow, _ = quantized(before, "bits=4,least_sqnr=0,accuracy_level=1", feeds=feeds)
    assert bits_of(narrow) == [4, 4]
    gained = builders.sqnr_db(exact, builders.run(after, feeds)[0])
    assert gained > builders.sqnr_db(exact, builders.run(narrow, feeds)[0]) + 6


@pytest.mark.parametrize("options", ["least_sqnr=5", "average=4.5", "average=0"])
def test_no_weight_takes_more_bits_than_are_needed_or_allowed(options: str) -> None:
    before, _ = uneven()
    feeds = {"x0": np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)}
    assert bits_of(quantized(before, f"bits=4,{options}", feeds=feeds)[0]) == [4, 4]


def test_without_samples_all_weights_have_the_bits_asked_for_and_it_is_said() -> None:
    after, record = quantized(uneven()[0], "bits=4,least_sqnr=60,average=8")
    assert bits_of(after) == [4, 4]
    assert any("no samples to run on" in note for note in record.notes)


def chained() -> tuple[Graph, list[Constant]]:
    """Twelve products one after the other, and their weights."""
    graph = decode(builders.mlp((16,) * 13))
    return graph, [node.inputs[1] for node in graph.nodes if node.op == "Gemm"]


def test_a_trial_gives_what_the_graph_with_these_weights_gives() -> None:
    graph, weights = chained()
    feed = {graph.inputs[0].name: np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)}
    trials = Trials(graph, weights, [feed], Sessions(1))
    exact = open_graph(graph).run(feed)
    for changed in ([0], [5], [11], [3, 7], range(12)):
        values = {weights[i]: (weights[i].values * 1.1).astype(np.float32) for i in changed}
        other = clone(graph)
        for weight, new in values.items():
            other.graph.replace_uses(other.tensors[weight], other.graph.add_constant("new", new))
        found = trials.noise(values, 1)
        wanted = noise_share([exact], [open_graph(other.graph).run(feed)], [8])
        assert found == pytest.approx(wanted, rel=1e-3)
    assert trials.noise({}, 1) == 0.0


def test_what_stands_before_a_changed_weight_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = chained()
    feed = {graph.inputs[0].name: np.ones((1, 16), np.float32)}
    trials = Trials(graph, weights, [feed], Sessions(1))
    runs: list[int] = []
    plain = Session.run
    monkeypatch.setattr(Session, "run", lambda self, *given: runs.append(1) or plain(self, *given))
    last, first = ({weights[i]: weights[i].values * np.float32(2)} for i in (-1, 0))
    trials.noise(last, 1)
    assert len(runs) == 1
    trials.noise(first, 1)
    assert len(runs) > 4


def test_items_are_looked_at_one_by_one_where_there_are_no_more_than_looks() -> None:
    cost = {"a": 1.0, "b": 9.0, "c": 4.0}
    asked: list[list[str]] = []

    def noise(items: list[str]) -> float:
        asked.append(items)
        return sum(cost[item] for item in items)

    found = costly_first(list(cost), noise, lambda item: 1, looks=3)
    assert [group.items for group in found] == [["b"], ["c"], ["a"]] and [len(items) for items in asked] == [1, 1, 1]
    asked.clear()
    assert costly_first(list(cost), noise, lambda item: 1, looks=2)[0].items == ["b", "c"]
