"""Is the noise foretold for one layer in one form what the model really shows with that layer alone in that form?"""

from __future__ import annotations

import builders
import numpy as np
import pytest
from feeds import Feeds
from onnx import helper, numpy_helper

from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.mixed_precision import MixedPrecision
from onnxcomp.passes.precision.decide import Decider, Known
from onnxcomp.passes.precision.noise import Yardstick
from onnxcomp.passes.qdq.sensitivity import worst
from onnxcomp.runtime.session import open_graph

LIKE_DB = 3.5  # layers that matter little are looked at on one batch only


def known_of(graph: Graph, samples: Feeds) -> tuple[Decider, Known]:
    decider = Decider(MixedPrecision(objective="size"), graph, PassContext(calibration=samples), samples)
    known = decider.look(("half", "stored8", "int8", "dynamic", "weights8", "weights4"))
    decider.price(known)
    return decider, known


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_noise_of_single_layers_is_that_of_the_model_with_one_layer_changed(kind: str) -> None:
    proto = builders.residual_cnn(channels=32) if kind == "cnn" else builders.transformer()
    feeds = builders.feeds_of(proto, batch=32) if kind == "cnn" else builders.transformer_feed(batch=32)
    graph = PassManager(Pipeline.parse("fold-constants,fuse-batchnorm")).run(decode(proto)).graph
    decider, known = known_of(graph, Feeds(feeds))
    given = decider.trials.feeds[:3] if decider.trials is not None else list(decider.learn.batches(1))[:3]
    session = open_graph(decider.base, threads=1)
    stick = Yardstick([session.run(dict(f)) for f in given], [len(next(iter(f.values()))) for f in given])
    checked = 0
    for layer in known.layers:
        for form, foretold in known.noise[layer.name].items():
            if form == "int8" or not 1e-6 < worst(foretold) < 0.05:
                continue  # a static layer's neighbours take over parts of its rounding
            forms = {other.name: "float" for other in known.layers} | {layer.name: form}
            changed = open_graph(decider.write(known, forms)[0], threads=1)
            shares = [stick.noise(place, changed.run(dict(feed))) for place, feed in enumerate(given)]
            real = np.mean([max(share.values()) for share in shares])
            if form == "weights4":
                assert real < 2 * worst(foretold)  # written with a look at the inputs, foretold without
            else:
                assert 10 * abs(np.log10(real / worst(foretold))) < LIKE_DB, (layer.name, form)
            checked += 1
    assert checked >= 4


def test_errors_are_held_against_all_samples_not_against_the_one_that_shows_nothing() -> None:
    rows = np.zeros((1, 200, 4), np.float32)
    loud = rows + np.arange(200, dtype=np.float32)[None, :, None] % 7 + 1
    stick = Yardstick([{"y": loud}, {"y": 1e-3 * loud}], [1, 1])
    error = 1e-3 * np.ones_like(loud)
    quiet = stick.noise(1, {"y": 1e-3 * loud + error})
    assert max(quiet.values()) < 1e-5
    assert max(stick.noise(0, {"y": loud + error}).values()) == pytest.approx(max(quiet.values()), rel=1e-3)


def test_an_error_that_is_not_finite_is_hopeless_and_decisions_count_by_their_share() -> None:
    exact = {"y": np.ones((1, 64), np.float32), "classes": np.arange(64)}
    stick = Yardstick([exact], [1])
    broken = {"y": np.full((1, 64), np.nan, np.float32), "classes": np.where(np.arange(64) < 32, 0, np.arange(64))}
    found = stick.noise(0, broken)
    assert max(share for (name, _), share in found.items() if name == "y") >= 1e6
    assert found["classes", ""] == pytest.approx((31 / 64) ** 2)


def test_a_large_channel_spoils_no_other_as_weights_have_a_scale_each() -> None:
    """ONNX Runtime rounds a float weight between Q and DQ by itself, with one scale for all channels."""
    proto = builders.residual_cnn(channels=32, batch_norm=False)
    first = next(n for n in proto.graph.node if n.op_type == "Conv")
    weight = next(t for t in proto.graph.initializer if t.name == first.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[0], values[0, 0] = 0, 60 * np.abs(values).max()  # reads a part of the picture that is black
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    feeds = builders.feeds_of(proto, batch=32)
    feeds["image"][:, 0] = 0
    graph = PassManager(Pipeline.parse("fold-constants")).run(decode(proto)).graph
    _, known = known_of(graph, Feeds(feeds))
    noise = known.noise[first.name]
    assert 10 * np.log10(worst(noise["int8"]) / worst(noise["stored8"])) < 12, noise


def test_a_scan_behind_a_layer_that_is_disturbed_still_knows_its_sizes() -> None:
    """ONNX Runtime runs no Scan whose state comes out in a shape that it cannot tell."""
    generator = builders.rng()
    ports = [builders.value(name, builders.FLOAT, None) for name in ("h", "e", "n", "o")]
    steps = [
        helper.make_node("Add", ["h", "e"], ["a"]),
        helper.make_node("Tanh", ["a"], ["n"]),
        helper.make_node("Identity", ["n"], ["o"]),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1]),
        helper.make_node("ReduceMean", ["c"], ["start"], "start", axes=[1], keepdims=0),
        helper.make_node(
            "Scan",
            ["start", "c"],
            ["last", "y"],
            "scan",
            body=helper.make_graph(steps, "body", ports[:2], ports[2:]),
            num_scan_inputs=1,
            scan_input_axes=[1],
            scan_output_axes=[1],
        ),
    ]
    weights = {"k": builders.normal(generator, 32, 8, 3)}
    ends = builders.value("x", builders.FLOAT, ["N", 8, 12]), builders.value("y", builders.FLOAT, ["N", 32, 12])
    proto = builders.model(nodes, ends[:1], ends[1:], weights, opset=16)
    _, known = known_of(decode(proto), Feeds({"x": builders.normal(generator, 8, 8, 12)}))
    assert known.noise["conv"]["stored8"]
