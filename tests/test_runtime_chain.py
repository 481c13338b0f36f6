"""A graph in parts gives what it gives whole; other values of one part reach the outputs through those behind it."""

from __future__ import annotations

from itertools import pairwise

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.graph.codec import decode
from onnxcomp.runtime import chain as module
from onnxcomp.runtime.chain import Chain, cut
from onnxcomp.runtime.session import open_session


def spans(graph):
    return [(node, node) for node in graph.nodes if node.op in ("Conv", "Gemm", "MatMul")]


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_parts_give_what_the_whole_gives(parts: int) -> None:
    proto = builders.residual_cnn()
    graph, feed = decode(proto), builders.feeds_of(proto)
    chain = Chain(graph, cut(graph.nodes, spans(graph), parts), threads=1)
    assert sum(map(len, chain.parts)) == len(graph.nodes)
    values = chain.run(feed)
    for name, wanted in zip(chain.outputs, builders.run(proto, feed), strict=True):
        np.testing.assert_allclose(values[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_no_part_keeps_memory_between_its_runs(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen sessions that each keep what their largest layer took held twice the budget on a U-Net."""
    proto = builders.residual_cnn()
    graph, feed = decode(proto), builders.feeds_of(proto)
    kept: list[bool] = []

    def seen(name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, **given: kept.append(given.get("arena", True)) or original(*a, **given)
        )

    seen("open_session")
    seen("open_graph")
    chain = Chain(graph, cut(graph.nodes, spans(graph), parts), threads=1)
    values = chain.run(feed)
    chain.other_form(0, graph, chain.parts[0], values)
    assert len(kept) == len(chain.parts) + 1 and not any(kept)


def test_a_part_that_gives_other_values_changes_the_outputs_and_nothing_that_is_kept() -> None:
    proto = builders.residual_cnn()
    graph, feed = decode(proto), builders.feeds_of(proto)
    parts = cut(graph.nodes, spans(graph), 4)
    chain = Chain(graph, parts, threads=1)
    values = chain.run(feed)
    before = {name: array.copy() for name, array in values.items()}
    tensor = next(t for node in parts[1] for t in node.outputs if t.name in values)
    changed = values[tensor.name] * np.float32(1.5)
    found = chain.follow(values, 1, {tensor.name: changed})
    model = onnx.ModelProto.FromString(proto.SerializeToString())
    for node in model.graph.node:  # the same by hand: everything behind the tensor reads it from an input
        for port, name in enumerate(node.input):
            if name == tensor.name:
                node.input[port] = "given"
    model.graph.input.append(helper.make_tensor_value_info("given", 1, list(changed.shape)))
    wanted = open_session(model.SerializeToString(), threads=1).run({**feed, "given": changed})
    for name in chain.outputs:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
        assert not np.allclose(found[name], before[name], rtol=1e-3)
    assert all(np.array_equal(values[name], before[name]) for name in before)


def test_what_belongs_together_is_not_cut() -> None:
    graph = decode(builders.mlp((8, 8, 8, 8, 8, 8)))
    nodes = graph.nodes
    pairs = [(a, b) for a, b in pairwise(nodes) if a.op == "Gemm" and b.op == "Relu"]
    for parts in range(1, 7):
        found = cut(nodes, pairs, parts)
        assert [n for part in found for n in part] == list(nodes) and len(found) <= max(parts, 1)
        assert all(any(a in part and b in part for part in found) for a, b in pairs)


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_body_reads_from_outside_is_handed_on_only_between_parts(parts: int) -> None:
    weights = {name: builders.normal(builders.rng(i), 4, 4) for i, name in enumerate("abc")}
    bodies = {
        key: helper.make_graph(
            [helper.make_node("MatMul", ["hidden", weight], [f"{key}_y"])],
            key,
            [],
            [builders.value(f"{key}_y", 1, None)],
        )
        for key, weight in (("then_branch", "b"), ("else_branch", "c"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["hidden"], "first"),
        helper.make_node("If", ["flag"], ["chosen"], "choose", **bodies),
        helper.make_node("MatMul", ["chosen", "a"], ["y"], "last"),
    ]
    ends = [builders.value("x", 1, ["N", 4]), builders.value("flag", 9, [])], [builders.value("y", 1, ["N", 4])]
    proto = builders.model(nodes, *ends, weights, check=False)
    graph = decode(proto)
    feed = {"x": builders.normal(builders.rng(5), 3, 4), "flag": np.array(True)}
    chain = Chain(graph, cut(graph.nodes, spans(graph), parts), threads=1)
    assert len(chain.parts) == parts
    np.testing.assert_allclose(chain.run(feed)["y"], builders.run(proto, feed)[0], rtol=1e-5)
