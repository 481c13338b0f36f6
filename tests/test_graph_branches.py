"""Is a residual branch found wherever it can leave, and nothing else; and does what is left run?"""

from __future__ import annotations

import builders
import numpy as np
import pytest
from coupling_checks import OPERATORS, graph_of
from nets import Net
from onnx import numpy_helper

from onnxcomp.graph.branches import branches, drop, innermost, stand_in
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.shapes import check_structure


def found(graph: Graph) -> list[str]:
    return [branch.name for branch in branches(graph, OPERATORS)]


def chain(relu: bool, blocks: int = 2) -> tuple[Net, str]:
    """A stem and some residual blocks, behind each sum a Relu or not."""
    net = Net()
    x = net.conv(net.input("N", 3, 8, 8), 3, 4)
    x = net.op("Relu", x) if relu else x
    for _ in range(blocks):
        x = net.op("Add", net.conv(net.op("Relu", net.conv(x, 4, 4)), 4, 4), x)
        x = net.op("Relu", x) if relu else x
    return net, x


@pytest.mark.parametrize("relu", [True, False])
def test_branches_that_give_zero_leave_without_a_trace(relu: bool) -> None:
    net, x = chain(relu)
    model = net.model(net.conv(x, 4, 2))
    convs = [node.input[1:] for node in model.graph.node if node.op_type == "Conv"]
    last = [name for inputs in convs[2:-1:2] for name in inputs]
    for tensor in model.graph.initializer:
        if tensor.name in last:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    graph = graph_of(model)
    for branch in innermost(branches(graph, OPERATORS)):
        assert stand_in(graph, branch) is not None
        drop(graph, branch)
    graph.sort()
    check_structure(graph)
    assert graph.operators() == ({"Conv": 2, "Relu": 1} if relu else {"Conv": 2})
    feed = {"x0": builders.rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(builders.run(to_bytes(graph), feed)[0], builders.run(model, feed)[0])


def test_a_branch_that_something_else_reads_stays() -> None:
    net = Net()
    x = net.conv(net.input(1, 3, 8, 8), 3, 4)
    branch = net.conv(x, 4, 4)
    total = net.op("Add", branch, x)
    model = net.model(net.op("Concat", net.conv(total, 4, 2), branch, axis=1))
    assert found(graph_of(model)) == []


def test_a_sum_that_spreads_one_summand_is_no_residual() -> None:
    net = Net()
    x = net.conv(net.input(1, 3, 8, 8), 3, 4)
    gate = net.conv(net.op("GlobalAveragePool", x), 4, 4, 1)
    assert found(graph_of(net.model(net.conv(net.op("Add", x, gate), 4, 2)))) == []


def test_two_independent_inputs_are_no_branch_of_each_other() -> None:
    net = Net()
    first, second = net.conv(net.input(1, 3, 8, 8), 3, 4), net.conv(net.input(1, 3, 8, 8), 3, 4)
    assert found(graph_of(net.model(net.conv(net.op("Add", first, second), 4, 2)))) == []


def test_the_sum_as_model_output_keeps_its_name() -> None:
    net, x = chain(relu=False, blocks=1)
    graph = graph_of(net.model(x))
    (branch,) = branches(graph, OPERATORS)
    name = graph.outputs[0].name
    drop(graph, branch)
    graph.sort()
    check_structure(graph)
    assert graph.outputs[0].name == name and "Add" not in graph.operators()


def test_of_nested_branches_the_inner_one_is_innermost() -> None:
    net = Net()
    x = net.conv(net.input(1, 3, 8, 8), 3, 4)
    y = net.conv(x, 4, 4)
    inner = net.op("Add", net.conv(net.op("Relu", y), 4, 4), y)
    total = net.op("Add", inner, x)
    graph = graph_of(net.model(net.conv(total, 4, 2)))
    everything = branches(graph, OPERATORS)
    assert len(everything) == 2
    assert [len(branch.nodes) for branch in innermost(everything)] == [2]


def test_transformer_branches_are_attention_and_feed_forward() -> None:
    graph = graph_of(builders.transformer(heads=4))
    kept = innermost(branches(graph, OPERATORS))
    assert len(kept) == 2
    for branch in kept:
        drop(graph, branch)
    graph.sort()
    check_structure(graph)
    builders.run(to_bytes(graph), builders.transformer_feed())
