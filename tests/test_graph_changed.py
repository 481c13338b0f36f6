"""What became of each layer's part of a graph, as people see it drawn?"""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest

from onnxcomp.drawn import ChangedPart, DrawnGraph
from onnxcomp.graph.changed import MOST_NODES, changed_parts, homes_of
from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators

OPERATORS = load_operators()


def parts_after(spec: str, proto: onnx.ModelProto) -> list[ChangedPart]:
    graph = decode(proto)
    after = PassManager(Pipeline.parse(spec), verify=False).run(graph, PassContext(operators=OPERATORS)).graph
    return changed_parts(graph, after, OPERATORS)


def states(side: DrawnGraph) -> dict[str, str]:
    return {node.op or node.name: node.state for node in side.nodes}


def test_a_fused_normalization_is_gone_and_its_layer_changed() -> None:
    first, *_ = found = parts_after("fuse-batchnorm", builders.residual_cnn())
    assert all("BatchNormalization" not in states(part.after) for part in found)
    assert states(first.before) | {"Relu": "kept"} == states(first.before)
    assert states(first.before)["BatchNormalization"] == "gone"
    assert states(first.before)["Conv"] == states(first.after)["Conv"] == "changed"  # it has a bias now
    assert any(node.name.startswith("from ") for node in first.before.nodes)


def test_arrows_go_between_nodes_that_are_there_and_along_the_graph() -> None:
    for part in parts_after("fuse-batchnorm,quantize-weights{bits=2}", builders.residual_cnn()):
        for side in (part.before, part.after):
            assert all(0 <= end < len(side.nodes) for edge in side.edges for end in edge)
            drawn = {end for edge in side.edges for end in edge}
            assert drawn == set(range(len(side.nodes)))  # nothing hangs in the air


def test_new_values_alone_are_no_change_of_the_graph() -> None:
    proto = builders.residual_cnn()
    other = builders.residual_cnn(seed=1)
    assert changed_parts(decode(proto), decode(other), OPERATORS) == []
    assert parts_after("prune-weights{ratio=0.5}", proto) == []


def test_a_layer_that_is_gone_has_a_side_without_nodes() -> None:
    small, large = builders.mlp((16, 32, 10)), builders.mlp((16, 32, 32, 10))
    found = changed_parts(decode(large), decode(small), OPERATORS)
    assert [part for part in found if not part.after.nodes and part.before.nodes]
    back = changed_parts(decode(small), decode(large), OPERATORS)
    assert [part for part in back if not part.before.nodes and part.after.nodes]


@pytest.mark.parametrize("make", [builders.transformer, builders.if_model, builders.loop_model, builders.dynamic_cnn])
def test_every_node_has_one_home(make: object) -> None:
    graph = decode(make())  # type: ignore[operator]
    assert set(homes_of(graph, OPERATORS)) == {node for node in graph.nodes if node.op != "Constant"}
    assert changed_parts(graph, graph.clone(), OPERATORS) == []


def test_a_long_part_is_cut_and_says_by_how_much() -> None:
    names = [f"t{index}" for index in range(60)]
    chain = [onnx.helper.make_node("Relu", [a], [b], b) for a, b in zip(["x", *names], names, strict=False)]
    weights = {"w": np.eye(4, dtype=np.float32)}
    last = onnx.helper.make_node("MatMul", [names[-1], "w"], ["y"], "last")
    ends = [builders.value(name, builders.FLOAT, [1, 4]) for name in ("x", "y")]
    long = decode(builders.model([*chain, last], ends[:1], ends[1:], weights))
    direct = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "last")
    short = decode(builders.model([direct], ends[:1], ends[1:], weights))
    (part,) = changed_parts(long, short, OPERATORS)
    assert sum(bool(node.op) for node in part.before.nodes) == MOST_NODES
    assert part.before.more == 61 - MOST_NODES
    assert part.after.more == 0
