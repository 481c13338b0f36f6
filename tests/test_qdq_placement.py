"""Does quantize-qdq place integers where they gain, by times and by error?"""

from __future__ import annotations

from collections.abc import Callable

import builders
import numpy as np
import pytest
from feeds import RuledCosts, on_integers
from nets import Net
from test_pass_quantize_qdq import concat_net, fidelity, model_of, quantized, weights_of, whys

from onnxcomp.graph.ir import Node

Q, DQ = "QuantizeLinear", "DequantizeLinear"


def ruled(integer: Callable[[Node], float], conversion: float = 0.1) -> RuledCosts:
    """Float products and pools take 10 us, integer ones what the rule says, conversions that no kernel takes up too."""

    def node_us(node: Node) -> float:
        if node.op == Q:
            maker = node.inputs[0].producer
            return 0.0 if maker is not None and on_integers(maker) else conversion
        if node.op == DQ:
            readers = node.outputs[0].outputs
            inside = node.constant(0) is not None or (readers and all(map(on_integers, readers)))
            return 0.0 if inside else conversion
        if node.op in ("Relu", "Clip", "Tanh", "Sum"):
            return 0.0
        return integer(node) if on_integers(node) else 10.0

    return RuledCosts(node_us)


def test_nodes_that_are_slower_on_integers_keep_float() -> None:
    before = builders.depthwise_cnn()
    costs = ruled(lambda node: 30.0 if node.name == "depthwise" else 3.0)
    after, record = quantized(before, costs=costs)
    assert set(weights_of(after)) == {"stem", "pointwise"}
    assert whys(record)["depthwise"] == "its integer kernel is slower here"
    assert fidelity(before, after) > 28


def test_nodes_whose_gain_does_not_pay_for_conversions_keep_float() -> None:
    net = Net()
    hidden = net.op("Tanh", net.conv(net.input("N", 4, 8, 8), 4, 8))
    before = model_of(net, net.conv(hidden, 8, 8))
    first, second = (node.name for node in before.graph.node if node.op_type == "Conv")
    costs = ruled(lambda node: 1.0 if node.name == first else 8.0, conversion=2.0)
    after, record = quantized(before, costs=costs)
    assert set(weights_of(after)) == {first}
    assert "conversions around it" in whys(record)[second]


def test_nothing_is_quantized_where_no_placement_is_faster() -> None:
    before = builders.depthwise_cnn()
    after, record = quantized(before, costs=ruled(lambda node: 11.0))
    assert (record.changes, builders.ops(after)) == (0, builders.ops(before))
    assert all("no placement of integers is faster" in why for why in whys(record).values())


def test_placement_by_the_table_asks_no_clock() -> None:
    costs = ruled(lambda node: 11.0)
    after, _ = quantized(builders.depthwise_cnn(), "quantize-qdq{placement=table}", costs=costs)
    assert len(weights_of(after)) == 3


def test_a_layer_behind_a_pool_that_stays_float_has_a_range_of_its_own() -> None:
    def integer(node: Node) -> float:
        return 50.0 if node.op in ("MaxPool", "Transpose", "Concat") else 1.0

    before = concat_net()
    after, _ = quantized(before, costs=ruled(integer, conversion=0.01))
    assert len(weights_of(after)) == 3
    assert fidelity(before, after) > 28


def test_a_floor_for_sqnr_keeps_the_layers_float_that_cost_most() -> None:
    before = builders.residual_cnn(batch_norm=False)
    plain = "rounding=nearest,bias_correction=false"  # what is made good afterwards hides what the floor is about
    loose, _ = quantized(before, f"quantize-qdq{{min_sqnr=0,{plain}}}")
    tight, record = quantized(before, f"quantize-qdq{{min_sqnr=43,{plain}}}")
    assert 0 < len(weights_of(tight)) < len(weights_of(loose))
    assert any("too much error for what it gains" in why for why in whys(record).values())
    assert fidelity(before, tight) > fidelity(before, loose)


@pytest.mark.parametrize(("shared_us", "wanted"), [(2.0, True), (4.9, False)])
def test_one_scale_for_all_outputs_where_that_is_clearly_faster(shared_us: float, wanted: bool) -> None:
    def integer(node: Node) -> float:
        if node.op != "Gemm":
            return 1.0
        source = node.inputs[1].producer
        return shared_us if source is not None and source.inputs[1].size == 1 else 5.0

    before = builders.mlp((16, 32, 10))
    after, _ = quantized(before, "quantize-qdq{isa=native}", costs=ruled(integer))
    assert {scale.ndim == 0 for _, scale in weights_of(after).values()} == {wanted}
    assert fidelity(before, after, literal=True) > 25


def uneven(net: Net, x: str) -> str:
    """Gemm and Relu whose 32 outputs differ sixfold in size."""
    hidden = net.gemm(x, 16, 32)
    name = net.nodes[-1].input[1]
    net.weights[name] = net.weights[name] * np.logspace(-0.8, 0, 32, dtype=np.float32)[:, None]
    return str(net.op("Relu", hidden))


def shared_is_fast(node: Node) -> float:
    source = node.inputs[1].producer if len(node.inputs) > 1 else None
    return 1.0 if source is not None and source.inputs[1].size == 1 else 5.0


def test_outputs_of_different_size_are_evened_out_before_they_share_a_scale() -> None:
    net = Net()
    before = model_of(net, net.gemm(uneven(net, net.input("N", 16)), 32, 10))
    feeds = builders.feeds_of(before, batch=64)
    after, record = quantized(before, "quantize-qdq{isa=native}", costs=ruled(shared_is_fast), feeds=feeds)
    plain, _ = quantized(before, "quantize-qdq{isa=native,placement=table}", feeds=feeds)
    first, second = (node.name for node in before.graph.node if node.op_type == "Gemm")
    integers, scale = weights_of(after)[first]
    assert scale.ndim == 0
    assert np.abs(integers).max(axis=1).min() > 60, "every row uses the range"
    assert any(first in note for note in record.notes)
    assert second in weights_of(after)
    assert fidelity(before, after, literal=True) > fidelity(before, plain, literal=True) - 4


def test_outputs_that_several_nodes_read_cannot_be_evened_out_and_keep_their_scales() -> None:
    net = Net()
    hidden = uneven(net, net.input("N", 16))
    before = model_of(net, net.op("Add", net.gemm(hidden, 32, 10), net.gemm(hidden, 32, 10)))
    after, _ = quantized(before, "quantize-qdq{isa=native}", costs=ruled(shared_is_fast))
    assert weights_of(after)["n1_Gemm"][1].shape == (32,)


def test_a_variant_that_is_not_taken_leaves_no_trace() -> None:
    net = Net()
    before = model_of(net, net.gemm(uneven(net, net.input("N", 16)), 32, 10))
    feeds = builders.feeds_of(before, batch=64)
    slow = ruled(lambda node: 5.0)
    tried, _ = quantized(before, costs=slow, feeds=feeds)
    never, _ = quantized(before, "quantize-qdq{placement=table}", feeds=feeds)
    assert tried.graph == never.graph
