"""Is the cheapest of all choices found, and does a layer's noise tell what quantizing it alone costs?"""

from __future__ import annotations

from itertools import product

import builders
import numpy as np
import pytest
from feeds import Feeds
from hypothesis import given
from hypothesis import strategies as st
from nets import Net
from onnx import ModelProto, helper
from test_pass_quantize_qdq import model_of, quantized, weights_of, whys
from test_qdq_placement import ruled

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Node
from onnxcomp.ops.facts import load_operators
from onnxcomp.passes.assigning.cut import Choices
from onnxcomp.passes.qdq import regions, sensitivity, sharing, weights
from onnxcomp.passes.qdq.ranges import Rule
from onnxcomp.runtime.activations import collect
from onnxcomp.runtime.progress import SILENT
from onnxcomp.targets.cpu import TARGET as CPU

Costs = tuple[list[float], dict[tuple[int, int], float]]


@st.composite
def problems(draw: st.DrawFn) -> Costs:
    count = draw(st.integers(1, 7))
    numbers = st.integers(-20, 20).map(float)
    singles = draw(st.lists(numbers, min_size=count, max_size=count))
    items = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(items, items, st.sampled_from([0.0, 1.0, 3.0, 9.0, float("inf")])), max_size=14))
    return singles, {(a, b): cost for a, b, cost in pairs if a != b}


def cost_of(problem: Costs, chosen: set[int]) -> float:
    singles, pairs = problem
    return sum(singles[i] for i in chosen) + sum(c for (a, b), c in pairs.items() if a in chosen and b not in chosen)


@given(problems())
def test_a_minimum_cut_is_the_cheapest_of_all_choices(problem: Costs) -> None:
    singles, pairs = problem
    choices = Choices()
    for item, cost in enumerate(singles):
        choices.one(item, cost)
    for (a, b), cost in pairs.items():
        choices.unequal(a, b, cost)
    found = {int(str(item)) for item in choices.solve()}
    every = ({i for i, bit in enumerate(bits) if bit} for bits in product((0, 1), repeat=len(singles)))
    assert cost_of(problem, found) == pytest.approx(min(cost_of(problem, chosen) for chosen in every))


Noises = dict[Node, sensitivity.Noise]


def noises_of(proto: ModelProto, feeds: dict[str, np.ndarray]) -> Noises:
    """Of every layer that may be quantized, from one feed."""
    graph, operators = decode(proto), load_operators()
    shapes = shape_tools.infer(graph, {name: (1, *array.shape[1:]) for name, array in feeds.items()})
    accepted, _ = regions.eligible(graph, shapes, CPU, operators, lambda node: True)
    plan = regions.plan(graph, CPU, operators, shapes, accepted)
    seen = collect(graph, [t.name for t in plan.tensors], Feeds(feeds))
    grids, _ = sharing.grids(plan, CPU, Rule("mse", CPU.levels, False), seen, {})
    layers = {
        node: weights.quantized(node, weight, "portable", grids[node.inputs[0]].scale)
        for node, weight in plan.weighted.items()
    }
    return sensitivity.noises(graph, CPU, plan, grids, layers, [feeds], threads=1, progress=SILENT)


def test_the_noise_of_a_layer_is_what_quantizing_it_alone_costs() -> None:
    proto = builders.residual_cnn(batch_norm=False)
    feeds = builders.feeds_of(proto, batch=32)
    noises = noises_of(proto, feeds)
    exact = builders.run(proto, feeds)[0]
    for node, noise in noises.items():
        spec = f'quantize-qdq{{include=["{node.name}"],min_sqnr=0,rounding=nearest,bias_correction=false}}'
        alone, _ = quantized(proto, spec, feeds=feeds)
        measured = builders.sqnr_db(exact, builders.run(alone, feeds)[0])
        assert -10 * np.log10(sensitivity.worst(noise)) == pytest.approx(measured, abs=1.5)


@pytest.mark.parametrize(("depthwise_us", "wanted"), [(10.2, 3), (14.0, 2)])
def test_a_larger_file_must_be_clearly_faster(depthwise_us: float, wanted: int) -> None:
    costs = ruled(lambda node: depthwise_us if node.name == "depthwise" else 3.0, conversion=0.01)
    after, _ = quantized(builders.depthwise_cnn(), costs=costs)
    assert len(weights_of(after)) == wanted


@pytest.mark.parametrize(("stem_us", "width", "wanted"), [(9.8, 64, 2), (9.0, 64, 3), (9.8, 16, 3)])
def test_a_layer_that_saves_next_to_no_time_stays_float_where_that_costs_few_bytes(
    stem_us: float, width: int, wanted: int
) -> None:
    net = Net()
    hidden = net.op("Relu", net.conv(net.input("N", 4, 8, 8), 4, 8, kernel=1))
    stem = net.nodes[0].name
    hidden = net.op("Relu", net.conv(hidden, 8, width))
    before = model_of(net, net.conv(hidden, width, width))
    after, record = quantized(before, costs=ruled(lambda node: stem_us if node.name == stem else 3.0, conversion=0.01))
    assert len(weights_of(after)) == wanted
    assert (stem in whys(record)) == (wanted == 2)


def test_noise_is_told_for_each_part_of_an_output() -> None:
    exact = {"y": np.concatenate([np.full((4, 50, 4), 100.0), np.full((4, 50, 3), 0.5)], axis=2).astype(np.float32)}
    other = {"y": exact["y"] + np.float32([0.0, 0.0, 0.0, 0.0, 0.05, 0.05, 0.05])}
    noise = sensitivity.noise_of(exact, other, 4)
    assert sensitivity.worst(noise) == pytest.approx(0.01, rel=0.1)  # of the small part alone
    assert sensitivity.worst(sensitivity.together([noise, noise])) == pytest.approx(0.02, rel=0.1)
    assert sensitivity.mean([noise, noise]) == pytest.approx(noise)


def test_a_mask_in_the_output_changes_nothing_of_what_is_learned() -> None:
    exact = np.random.default_rng(0).normal(0, 1, (64, 8)).astype(np.float32)
    other = exact + np.float32(0.1)
    plain = sensitivity.worst(sensitivity.noise_of({"y": exact[:, :6]}, {"y": other[:, :6]}, 64))
    for filling in (-np.inf, -1e9, np.finfo(np.float32).min):
        masked = [np.concatenate([a[:, :6], np.full((64, 2), filling, np.float32)], axis=1) for a in (exact, other)]
        noise = sensitivity.noise_of({"y": masked[0]}, {"y": masked[1]}, 64)
        assert sensitivity.worst(noise) == pytest.approx(plain, rel=0.1)


def test_a_layer_that_nothing_reads_costs_nothing() -> None:
    """A branch that ends nowhere, as exporters leave them; cleanup is not among the passes."""
    generator = builders.rng()
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "read"),
        helper.make_node("MatMul", ["x", "v"], ["dead"], "unread"),
    ]
    weights = {"w": builders.normal(generator, 32, 16), "v": builders.normal(generator, 32, 16)}
    ports = builders.value("x", builders.FLOAT, ["N", 32]), builders.value("y", builders.FLOAT, ["N", 16])
    proto = builders.model(nodes, ports[:1], ports[1:], weights)
    feeds = builders.feeds_of(proto, batch=8)
    found = {node.name: sensitivity.worst(noise) for node, noise in noises_of(proto, feeds).items()}
    assert found["unread"] < 1e-90 < found["read"]


def test_biases_are_corrected_where_one_tensor_is_the_output_of_one_layer_and_the_shortcut_of_another() -> None:
    """Channels on axis 1 behind the Conv, and on the last axis behind the MatMul whose sum it enters."""
    generator = builders.rng()
    weights = {
        "k": builders.normal(generator, 4, 6, 3),
        "w": builders.normal(generator, 10, 16),
        "v": builders.normal(generator, 16, 10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1]),
        helper.make_node("MatMul", ["c", "w"], ["m"], "matmul"),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["n"], "back"),
        helper.make_node("Add", ["c", "n"], ["y"], "sum"),
    ]
    ports = builders.value("x", builders.FLOAT, ["N", 6, 10]), builders.value("y", builders.FLOAT, ["N", 4, 10])
    proto = builders.model(nodes, ports[:1], ports[1:], weights)
    after, record = quantized(proto, "quantize-qdq{placement=table}")
    assert record.changes
    feeds = builders.feeds_of(proto, batch=16)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(after, feeds)[0]) > 25
