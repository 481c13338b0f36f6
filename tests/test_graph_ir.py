"""Do edits of a graph keep it whole: links, names, bodies, copies?"""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcomp.errors import ModelError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.inline import inline_branch
from onnxcomp.graph.ir import Constant, Graph, Node, Variable, stored_bytes
from onnxcomp.graph.shapes import check_structure

FLOAT = builders.FLOAT


def linked(graph: Graph) -> None:
    """Every link has its counterpart, and every tensor one producer at most."""
    nodes = set(graph.walk())
    for node in nodes:
        for port, tensor in enumerate(node.inputs):
            assert sum(n is node for n in tensor.outputs) == sum(t is tensor for t in node.inputs), port
        for tensor in node.outputs:
            assert not tensor.name or tensor.inputs == [node]
    for tensor in graph.tensors().values():
        assert set(tensor.consumers) <= nodes


@given(seed=st.integers(0, 10_000))
def test_random_models_come_back_byte_for_byte_and_copies_are_apart(seed: int) -> None:
    proto = random_models.random_model(seed)
    graph = decode(proto)
    linked(graph)
    first = io.to_bytes(graph)
    copy = graph.clone()
    linked(copy)
    assert io.to_bytes(copy) == first == io.to_bytes(decode(onnx.load_from_string(first)))
    for node in list(copy.walk()):
        node.name = f"renamed {node.name}"
        node.attrs.clear()
    for constant in copy.constants():
        constant.values = np.zeros(3, np.int8)
        constant.name = f"renamed {constant.name}"
    assert io.to_bytes(graph) == first
    assert [n.name for n in encode(graph).graph.node] == [n.name for n in proto.graph.node]


@given(seed=st.integers(0, 10_000), order=st.randoms(use_true_random=False))
def test_sorting_a_shuffled_graph_gives_an_order_that_runs(seed: int, order: object) -> None:
    graph = decode(random_models.random_model(seed))
    before = io.to_bytes(graph)
    graph.sort()
    assert io.to_bytes(graph) == before, "a sorted graph stays as it is"
    order.shuffle(graph.nodes)  # type: ignore[attr-defined]
    graph.sort()
    made = set(graph.inputs)
    for node in graph.nodes:
        assert all(not t.name or isinstance(t, Constant) or t in made for t in node.inputs)
        made.update(node.outputs)


def test_nodes_that_bodies_need_stand_before_the_body() -> None:
    graph = decode(builders.if_model())
    graph.nodes.reverse()
    graph.sort()
    assert [node.name for node in graph.nodes] == ["outer_mm", "if"]


def test_a_cycle_through_a_body_is_found() -> None:
    graph = decode(builders.if_model())
    step = graph.nodes[1]
    graph.nodes[0].inputs[0] = step.outputs[0]
    with pytest.raises(ModelError, match="cycle"):
        graph.sort()


def test_values_are_read_only_and_shared_between_copies() -> None:
    graph = decode(builders.mlp())
    (weight,) = (c for c in graph.constants() if c.name == "fc1.weight")
    with pytest.raises(ValueError, match="read-only"):
        weight.values[0] = 1
    weight.values = weight.values * 2
    with pytest.raises(ValueError, match="read-only"):
        weight.values[0] = 1
    (twin,) = (c for c in graph.clone().constants() if c.name == "fc1.weight")
    assert np.shares_memory(twin.values, weight.values)


def test_own_constant_copies_only_what_is_shared() -> None:
    graph = decode(builders.shared_weight())
    first, _, second = graph.nodes
    shared = first.constant(1)
    assert shared is not None
    mine = graph.own_constant(first, 1)
    assert mine is not None and mine is not shared
    assert second.constant(1) is shared
    assert graph.own_constant(first, 1) is mine
    assert graph.own_constant(second, 1) is shared, "its last reader owns it"
    assert graph.own_constant(first, 0) is None
    assert mine.name not in (shared.name, second.name)
    linked(graph)


def test_a_port_read_twice_by_one_node_is_copied_for_one_port() -> None:
    node = helper.make_node("Add", ["w", "w"], ["y"], "add")
    proto = builders.model([node], [], [builders.value("y", FLOAT, [2])], {"w": np.float32([1, 2])})
    graph = decode(proto)
    mine = graph.own_constant(graph.nodes[0], 1)
    assert mine is not None
    mine.values = mine.values * 10
    assert [t.values.tolist() for t in graph.nodes[0].inputs] == [[1, 2], [10, 20]]


def test_unique_names_avoid_tensors_and_nodes_of_bodies_too() -> None:
    graph = decode(builders.if_model())
    assert graph.unique_name("then_m") == "then_m_1"
    assert graph.unique_name("then_mm") == "then_mm_1"
    assert graph.unique_name("new") == "new"
    assert graph.unique_name("new") == "new_1"
    assert graph.clone().unique_name("new") == "new_2"
    body = graph.nodes[1].bodies[0]
    assert body.unique_name("new") == "new_2", "bodies draw from the same names"


def test_replacing_uses_reaches_bodies_and_leaves_outputs() -> None:
    graph = decode(builders.if_model())
    (weight,) = (c for c in graph.constants() if c.name == "w")
    other = graph.add_constant("other", weight.values)
    graph.replace_uses(weight, other, only=[graph.nodes[0]])
    assert len(weight.consumers) == 2
    graph.replace_uses(weight, other)
    assert weight.consumers == []
    assert len(other.consumers) == 3
    output = graph.outputs[0]
    graph.replace_uses(output, other)
    assert graph.outputs[0] is output
    check_structure(graph)


def test_removing_a_node_unlinks_what_its_bodies_captured() -> None:
    graph = decode(builders.if_model())
    (weight,) = (c for c in graph.constants() if c.name == "w")
    branch = graph.nodes[1]
    graph.outputs[0] = branch.inputs[0]
    graph.remove_nodes([branch])
    assert len(weight.consumers) == 1
    assert [node.name for node in graph.nodes] == ["outer_mm"]
    assert {c.name for c in graph.constants()} == {"w"}
    linked(graph)


def test_a_node_inside_a_body_is_removed_from_its_body() -> None:
    graph = decode(builders.loop_model())
    body = graph.nodes[0].bodies[0]
    (tanh,) = (n for n in body.nodes if n.op == "Tanh")
    source, output = tanh.inputs[0], tanh.outputs[0]
    graph.remove_nodes([tanh])
    body.outputs = [source if t is output else t for t in body.outputs]
    check_structure(graph)
    assert graph.owners()[body.nodes[0]] is body


def test_new_nodes_and_constants_are_saved() -> None:
    graph = decode(builders.mlp())
    output = graph.outputs[0]
    last = output.inputs[0]
    middle = Variable(graph.unique_name("middle"))
    last.outputs[0] = middle
    two = graph.add_constant("two", np.float32(2))
    graph.add_node("Mul", [middle, two], outputs=[output], name=last.name)
    feeds = builders.feeds_of(builders.mlp())
    wanted = builders.run(builders.mlp(), feeds)[0] * 2
    np.testing.assert_array_equal(builders.run(io.to_bytes(graph), feeds)[0], wanted)
    assert graph.nodes[-1].name != last.name


def test_ports_can_be_omitted_and_filled() -> None:
    node = Node("Clip", "clip", {}, [Variable("x")], [Variable("y")])
    high = Constant("high", np.float32(1))
    node.set_input(2, high)
    assert [t.name for t in node.inputs] == ["x", "", "high"]
    assert node.input(1) is None
    assert node.constant(2) is high
    assert node.input(7) is None
    assert node.output(3) is None


def test_inlining_by_hand_keeps_weights_of_the_branch() -> None:
    graph = decode(builders.if_model())
    branch = graph.nodes[1]
    inline_branch(graph, graph, branch, branch.attrs["else_branch"])
    linked(graph)
    check_structure(graph)
    proto = builders.if_model()
    feeds = builders.feeds_of(proto) | {"flag": np.array(False)}
    np.testing.assert_array_equal(builders.run(io.to_bytes(graph), feeds)[0], builders.run(proto, feeds)[0])
    assert {c.name for c in graph.constants()} == {"w", "else_w"}


def test_bytes_count_packed_types() -> None:
    import ml_dtypes

    assert stored_bytes(5, np.dtype(ml_dtypes.int4)) == 3
    assert stored_bytes(5, np.dtype(ml_dtypes.uint2)) == 2
    assert stored_bytes(5, np.dtype(np.float32)) == 20
    assert stored_bytes(0, np.dtype(np.int8)) == 0
    assert stored_bytes(3, np.dtype(object)) == 0
