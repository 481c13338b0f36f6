"""Does every operator's rule couple the right slices? Zeroed units leave without a trace, and any cut still runs."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from coupling_checks import OPERATORS, check_cuts, graph_of, sample_of
from coupling_nets import CASES, subgraph_capture
from nets import Net
from onnx import ModelProto, helper, numpy_helper

from onnxcomp.graph.codec import decode
from onnxcomp.graph.coupling.analysis import Coupling, analyse
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.ops import attention as fused_attention
from onnxcomp.ops import lookup, sizes
from onnxcomp.ops.facts import OpFacts, load_operators
from onnxcomp.ops.tables import RECORDS


@pytest.mark.parametrize("name", CASES)
def test_cut_is_exact_for_zeroed_units_and_runs_for_others(name: str) -> None:
    check_cuts(CASES[name]())


def test_every_rule_has_a_net() -> None:
    """Operators that share a rule share a test."""
    used = {node.op_type for build in CASES.values() for node in build().graph.node}
    tested = {record.coupling for record in RECORDS if record.op in used}
    untested = {record.coupling for record in RECORDS if not record.domain and record.coupling} - tested
    fused = {fused_attention.standard, fused_attention.rotary}  # tests/test_ops_fused.py
    assert untested - fused == {lookup.one_axis_passes_not, sizes.fixed}


def groups_of(model: ModelProto) -> Coupling:
    return analyse(graph_of(model), OPERATORS, sample_of(model))


def test_heads_and_neurons_are_units() -> None:
    coupling = groups_of(builders.transformer(heads=4))
    assert [(g.kind, g.size) for g in coupling.groups] == [("heads", 4), ("neurons", 64)] or any(
        g.kind == "heads" and g.size == 4 for g in coupling.groups
    )
    assert any(g.kind == "neurons" and g.size == 64 for g in coupling.groups)


def test_operator_without_rule_closes_and_is_reported() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    kept = net.conv(x, 8, 6)
    y = net.op("Foo", kept, domain="my.domain")
    coupling = analyse(graph_of(net.model(y, domains={"my.domain": 1})), OPERATORS)
    assert [g.size for g in coupling.groups] == [8]
    assert coupling.without_rule == {"Foo": 1}
    assert "Foo" in coupling.kept["n3_Conv"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(("data", "kernel"), [((2, 3, 4, 4), (4,)), ((2, 3, 4, 4), (4, 3)), ((2, 3), (4, 3, 1, 1))])
def test_a_convolution_of_what_has_no_places_closes(op: str, data: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    weight = numpy_helper.from_array(np.ones(kernel, np.float32), "w")
    ports = [helper.make_tensor_value_info("x", 1, data), helper.make_tensor_value_info("y", 1, None)]
    body = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"], "c")], "broken", ports[:1], ports[1:], [weight])
    assert not analyse(decode(helper.make_model(body)), OPERATORS).groups


def test_a_product_of_vectors_that_its_operator_does_not_take_closes() -> None:
    """Behind an operator that onnx does not know only a runtime refuses it, and `inspect` reads such models, too."""
    nodes = [helper.make_node("Nothing", ["x"], ["h"]), helper.make_node("Gemm", ["h", "w"], ["y"], name="product")]
    ends = [builders.value(name, builders.FLOAT, None) for name in "xy"]
    proto = builders.model(nodes, ends[:1], ends[1:], {"w": np.ones((4, 6), np.float32)}, check=False)
    proto.graph.value_info.append(builders.value("h", builders.FLOAT, [4]))
    found = groups_of(proto)
    assert not found.groups and "ranks" in found.kept["product"]


def test_third_party_gives_a_rule_with_its_record() -> None:
    from onnxcomp.ops.broadcasting import unary

    operators = load_operators()
    operators.add(OpFacts("Foo", "my.domain", coupling=unary))
    net = Net()
    x = net.op("Foo", net.conv(net.input("N", 3, 4, 4), 3, 8), domain="my.domain")
    coupling = analyse(graph_of(net.model(net.conv(x, 8, 3), domains={"my.domain": 1})), operators)
    assert [g.size for g in coupling.groups] == [8]


def test_graph_outputs_and_captured_tensors_stay() -> None:
    coupling = groups_of(subgraph_capture())
    assert [g.size for g in coupling.groups] == [8]
    assert any("body" in why for why in coupling.kept.values())


def test_cut_refuses_to_empty_an_axis_or_take_what_must_stay() -> None:
    coupling = groups_of(builders.mlp((4, 6, 3)))
    with pytest.raises(ValueError, match="lose all"):
        cut(coupling, coupling.groups[0].units)
    closed = np.flatnonzero(~coupling.open_units)[:1]
    with pytest.raises(ValueError, match="must stay"):
        cut(coupling, closed)


def test_size_read_by_arithmetic_keeps_the_units() -> None:
    net = Net()
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    count = net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(1)), to=onnx.TensorProto.FLOAT)
    coupling = groups_of(net.model(net.conv(net.op("Div", x, net.op("Sqrt", count)), 8, 3)))
    assert not coupling.groups
    assert "depends on its size" in coupling.kept["n1_Conv"]


def test_integers_made_of_a_weight_on_the_way_change_with_it() -> None:
    """A weight that nodes compute, read by a product and rounded beside it: the shapes in the file stay right."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "a"),
        helper.make_node("Neg", ["second"], ["turned"], "neg"),
        helper.make_node("QuantizeLinear", ["turned", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["again"], "dq"),
        helper.make_node("MatMul", ["h", "turned"], ["b"], "b"),
        helper.make_node("MatMul", ["h", "again"], ["c"], "c"),
        helper.make_node("Add", ["b", "c"], ["y"], "sum"),
    ]
    weights = {
        "first": builders.normal(builders.rng(), 8, 16),
        "second": builders.normal(builders.rng(1), 16, 4),
        "scale": np.float32(0.01),
        "zero": np.int8(0),
    }
    ports = [builders.value("x", builders.FLOAT, ["N", 8]), builders.value("y", builders.FLOAT, ["N", 4])]
    proto = onnx.shape_inference.infer_shapes(builders.model(nodes, ports[:1], ports[1:], weights))
    check_cuts(proto)
    (group,) = groups_of(proto).groups
    assert group.size == 16
