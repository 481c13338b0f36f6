"""Do channels that pruning left zero leave for nothing, and only those?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from coupling_checks import graph_of
from coupling_nets import CASES
from hypothesis import given
from nets import Net
from onnx import ModelProto, TensorProto, helper, numpy_helper
from test_coupling_random import nets
from test_pass_prune_channels import run, widths

import onnxcomp
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import to_bytes
from onnxcomp.manager.pipeline import PassManager, Pipeline


def zeroed(model: ModelProto, share: float, seed: int, *, biases: bool) -> ModelProto:
    """A copy whose weights have zero slices along their first or second axis, as pruning might leave them."""
    generator = builders.rng(seed)
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        values = np.array(numpy_helper.to_array(tensor))
        if values.dtype != np.float32 or tensor.name.startswith("k") or (values.ndim < 2 and not biases):
            continue
        axis = int(generator.integers(0, min(2, values.ndim))) if values.ndim else 0
        if values.ndim:
            chosen = np.flatnonzero(generator.random(values.shape[axis]) < share)
            values[(slice(None),) * axis + (chosen,)] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


def check(model: ModelProto) -> int:
    feeds = builders.feeds_of(model)
    before = builders.run(model, feeds)
    if not all(np.isfinite(y).all() for y in before):
        return 0
    result = run(graph_of(model), "drop-zero-channels")
    for old, new in zip(before, builders.run(to_bytes(result.graph), feeds), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-4 * max(1.0, float(np.abs(old).max())))
    return result.changes


@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_whatever_is_zero(name: str) -> None:
    for seed in range(3):
        check(zeroed(CASES[name](), 0.5, seed, biases=True))


@given(nets())
def test_outputs_of_random_nets_stay(model: ModelProto) -> None:
    check(zeroed(model, 0.4, 0, biases=True))


def test_channels_zero_at_the_maker_or_at_the_reader_leave() -> None:
    model = builders.mlp((8, 16, 4))
    first, bias = (np.array(numpy_helper.to_array(t)) for t in model.graph.initializer[:2])
    second = np.array(numpy_helper.to_array(model.graph.initializer[2]))
    first[:3] = bias[:3] = 0  # never active
    second[:, 5:9] = 0  # never read
    for tensor, values in zip(model.graph.initializer, (first, bias, second), strict=False):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    result = run(graph_of(model), "drop-zero-channels")
    assert widths(result.graph)["fc1"] == 9
    assert check(model) == 1


def test_a_bias_or_a_sigmoid_keeps_a_channel() -> None:
    net = Net()
    w = net.weight(8, 4)
    net.weights[w][:4] = 0
    h = net.op("Gemm", net.input("N", 4), w, transB=1)
    assert check(net.model(net.gemm(net.op("Sigmoid", h), 8, 3))) == 0
    assert check(net.model(net.gemm(net.op("Relu", h), 8, 3))) == 1


def test_nothing_zero_changes_nothing() -> None:
    result = run(graph_of(builders.residual_cnn()), "drop-zero-channels")
    assert result.changes == 0
    assert result.records[0].summary == "no unit is zero throughout"


@pytest.mark.parametrize("port", [1, 2, 3])
def test_hidden_units_leave_a_cell_with_a_computed_weight_only_where_that_follows(port: int) -> None:
    net = Net()
    weights = [net.weight(1, 6, 4), net.weight(1, 6, 2), net.weight(1, 12)]
    shapes = [(1, 6, 4), (1, 6, 2), (1, 12)]
    flat = net.weight(int(np.prod(shapes[port - 1])))
    weights[port - 1] = net.op("Reshape", flat, net.const(list(shapes[port - 1])))
    y = net.op("GRU", net.input(3, "N", 4), *weights, hidden_size=2)
    model = net.model(net.dense(y, 2, 3))
    for tensor in model.graph.initializer:
        values = np.array(numpy_helper.to_array(tensor))
        if values.dtype == np.float32:
            values.reshape(-1)[1::2] = 0  # the second unit's column of R, and its row in what reads it
            if values.shape == (2, 3):
                values[1] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    check(model)


@pytest.mark.parametrize("spec", ["drop-zero-channels", "prune-channels{ratio=0.4}"])
def test_statistics_that_training_mode_hands_out_carry_the_channels(spec: str, tmp_path: Path) -> None:
    scale, shift = np.array([1, 0, 2, 1, 1, 1], np.float32), np.array([0.5, 0, 1, 1, 0, 0], np.float32)
    weight = builders.normal(builders.rng(2), 6, 3, 3, 3)
    weight[1] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n", "rm", "rv"], "bn", training_mode=1),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], "head"),
        helper.make_node("Mul", ["rm", "rm"], ["power"], "power"),
    ]
    weights = {
        "w": weight, "s": scale, "b": shift, "m": np.zeros(6, np.float32), "v": np.ones(6, np.float32),
        "w2": builders.normal(builders.rng(3), 2, 6, 1, 1),
    }  # fmt: skip
    outputs = [builders.value("y", builders.FLOAT, ["N", 2, 6, 6]), builders.value("power", builders.FLOAT, [6])]
    proto = builders.model(nodes, [builders.value("x", builders.FLOAT, ["N", 3, 8, 8])], outputs, weights)
    path, out = builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx"
    x = builders.rng(4).standard_normal((16, 3, 8, 8)).astype(np.float32)
    onnxcomp.optimize(path, data={"x": x}, passes=spec, output=out, bench=False)
    if out.exists():
        for a, b in zip(builders.run(proto, {"x": x}), builders.run(out, {"x": x}), strict=True):
            assert a.shape == b.shape
        np.testing.assert_allclose(builders.run(out, {"x": x})[1], builders.run(proto, {"x": x})[1], atol=1e-6)


def test_a_number_that_a_reshape_asks_for_stays_beside_a_free_size() -> None:
    """[steps, 1, 4, 3] -> [2, -1, 3]: neither of the first two sizes is known before a run, and one may be free."""
    generator = builders.rng()
    weights = {
        "w": builders.normal(generator, 1, 3, 5),
        "r": builders.normal(generator, 1, 3, 3),
        "shape": np.int64([2, -1, 3]),
        "m": builders.normal(generator, 3, 4),
    }
    weights["r"][0, :, 1] = weights["m"][1] = 0  # what the second unit says, nothing reads
    nodes = [
        helper.make_node("RNN", ["x", "w", "r"], ["h"], "rnn", hidden_size=3),
        helper.make_node("Reshape", ["h", "shape"], ["f"], "reshape"),
        helper.make_node("MatMul", ["f", "m"], ["y"], "read"),
    ]
    ports = builders.value("x", builders.FLOAT, ["steps", 4, 5]), builders.value("y", builders.FLOAT, [2, "rows", 4])
    assert check(builders.model(nodes, ports[:1], ports[1:], weights)) == 1


def test_what_a_reshape_leaves_open_stays_open_whatever_one_sample_tells() -> None:
    """[steps, 2, 2, 2] -> [2, -1, 4]: of one step the open size seems to be the batch's, and is that of the steps."""
    generator = builders.rng()
    weights = {
        "w": builders.normal(generator, 2, 8, 5),
        "r": builders.normal(generator, 2, 8, 2),
        "shape": np.int64([2, -1, 4]),
        "m": builders.normal(generator, 4, 3),
    }
    weights["r"][:, :, 1] = weights["m"][1::2] = 0  # nothing reads the second unit, of either batch
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], "lstm", hidden_size=2, direction="bidirectional"),
        helper.make_node("Reshape", ["h", "shape"], ["f"], "reshape"),
        helper.make_node("MatMul", ["f", "m"], ["y"], "read"),
    ]
    ends = builders.value("x", builders.FLOAT, ["steps", 2, 5]), builders.value("y", builders.FLOAT, [2, "rows", 3])
    model = builders.model(nodes, ends[:1], ends[1:], weights)
    result = run(graph_of(model), "drop-zero-channels")
    for steps in (1, 2, 3):
        feeds = {"x": builders.normal(generator, steps, 2, 5)}
        before, after = builders.run(model, feeds), builders.run(to_bytes(result.graph), feeds)
        np.testing.assert_allclose(after[0], before[0], atol=1e-4)


@pytest.mark.parametrize("what", ["sizes", "looked up", "one size", "behind a branch"])
def test_channels_whose_number_is_an_output_stay(what: str) -> None:
    weights = {"w": builders.normal(builders.rng(), 8, 16), "table": builders.normal(builders.rng(1), 32, 3)}
    weights["w"][:, :5] = 0
    weights |= {"last": np.array(1), "v": builders.normal(builders.rng(2), 16, 4), "yes": np.array(True)}
    branch = helper.make_graph([helper.make_node("Identity", ["s"], ["b"])], "b", [], [builders.value("b", 7, None)])
    told = {
        "sizes": [helper.make_node("Identity", ["s"], ["z"])],
        "looked up": [helper.make_node("Gather", ["table", "s"], ["z"], axis=0)],
        "one size": [
            helper.make_node("Gather", ["s", "last"], ["one"]),
            helper.make_node("Cast", ["one"], ["z"], to=TensorProto.FLOAT),
        ],
        "behind a branch": [helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)],
    }[what]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
        helper.make_node("Shape", ["t"], ["s"]),
    ]
    ports = [builders.value("x", builders.FLOAT, ["N", 8]), builders.value("y", builders.FLOAT, ["N", 4])]
    kind = builders.FLOAT if what in ("looked up", "one size") else builders.INT64
    outs = [ports[1], builders.value("z", kind, None)]
    assert check(builders.model([*nodes, *told], ports[:1], outs, weights, check=False)) == 0
    assert check(builders.model(nodes, ports[:1], outs[:1], weights, check=False)) == 1
    direct = [ports[1], builders.value("s", builders.INT64, [2])]
    assert check(builders.model(nodes, ports[:1], direct, weights)) == 0


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_a_hidden_unit_that_only_the_next_step_reads_stays(kind: str) -> None:
    """Behind the layer nothing reads it; through the recurrent weight the others do."""
    gates, hidden = {"GRU": 3, "LSTM": 4, "RNN": 1}[kind], 4
    out = builders.normal(builders.rng(2), hidden, 5)
    out[1] = 0
    weights = {
        "W": builders.normal(builders.rng(0), 1, gates * hidden, 6),
        "R": builders.normal(builders.rng(1), 1, gates * hidden, hidden),
        "out": out,
    }
    nodes = [
        helper.make_node(kind, ["x", "W", "R"], ["h"], hidden_size=hidden),
        helper.make_node("MatMul", ["h", "out"], ["y"]),
    ]
    ends = [builders.value("x", builders.FLOAT, ["T", "N", 6])], [builders.value("y", builders.FLOAT, None)]
    before = builders.model(nodes, *ends, weights, check=False)
    assert not changed(before)[1]
    weights["R"][:, :, 1] = 0
    unread = builders.model(nodes, *ends, weights, check=False)
    after, changes = changed(unread)
    feeds = {"x": builders.normal(builders.rng(3), 5, 2, 6)}
    assert changes == 1
    np.testing.assert_allclose(builders.run(after, feeds)[0], builders.run(unread, feeds)[0], rtol=1e-4, atol=1e-5)


def changed(model: ModelProto) -> tuple[ModelProto, int]:
    """The model after the pass, and how many groups it cut."""
    result = PassManager(Pipeline.parse("drop-zero-channels")).run(decode(model))
    return encode(result.graph), result.changes
