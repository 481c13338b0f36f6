"""Samples lie where the model has its batch, go together only where a run proves it; states go from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp import optimize
from onnxcomp.data.axes import axes_of
from onnxcomp.data.inputs import interface_of
from onnxcomp.data.open import open_data
from onnxcomp.data.split import split
from onnxcomp.data.states import State, states_of, windows
from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.shapes import infer
from onnxcomp.passes.qdq import refine
from onnxcomp.passes.structure.trials import Portion
from onnxcomp.runtime.taps import runs_over
from onnxcomp.verify.judge import judge
from onnxcomp.verify.opening import Opener

FLOAT = builders.FLOAT
HIDDEN, FEATURES, STEPS = 24, 16, 6


def recurrent(shape: list[int | str | None], out: list[int | str | None], *, first: bool = False, kind: str = "LSTM"):
    """x -> recurrent layer -> one product; `first`: the batch stands first, and two Transposes turn it."""
    generator = builders.rng()
    gates = {"LSTM": 4, "GRU": 3}[kind]
    weights = {
        "W": builders.normal(generator, 1, gates * HIDDEN, FEATURES, scale=0.3),
        "R": builders.normal(generator, 1, gates * HIDDEN, HIDDEN, scale=0.3),
        "Wo": builders.normal(generator, HIDDEN, 5),
        "one": np.array([1]),
    }
    nodes = [helper.make_node(kind, ["xt", "W", "R"], ["Y", "last"], "rnn", hidden_size=HIDDEN)]
    nodes += [helper.make_node("Squeeze", ["Y", "one"], ["h"], "squeeze")]
    nodes.insert(0, helper.make_node("Transpose", ["x"], ["xt"], "turn", perm=[1, 0, 2] if first else [0, 1, 2]))
    nodes.append(helper.make_node("MatMul", ["h", "Wo"], ["y"], "out"))
    return builders.model(nodes, [builders.value("x", FLOAT, shape)], [builders.value("y", FLOAT, out)], weights)


def stateful(batch: int | str = "batch") -> onnx.ModelProto:
    """One step: h' = tanh(x W + h R), y = h' Wo; the state has its layers first and the batch on axis 1."""
    generator = builders.rng()
    weights = {
        "W": builders.normal(generator, FEATURES, HIDDEN, scale=0.3),
        "R": builders.normal(generator, HIDDEN, HIDDEN, scale=0.25),
        "Wo": builders.normal(generator, HIDDEN, 5),
        "zero": np.array([0]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], "in"),
        helper.make_node("Squeeze", ["state", "zero"], ["s"], "squeeze"),
        helper.make_node("MatMul", ["s", "R"], ["b"], "back"),
        helper.make_node("Add", ["a", "b"], ["c"], "sum"),
        helper.make_node("Tanh", ["c"], ["cell"], "tanh"),
        helper.make_node("Unsqueeze", ["cell", "zero"], ["stateN"], "unsqueeze"),
        helper.make_node("MatMul", ["cell", "Wo"], ["y"], "out"),
    ]
    inputs = [builders.value("x", FLOAT, [batch, FEATURES]), builders.value("state", FLOAT, [1, batch, HIDDEN])]
    outputs = [builders.value("y", FLOAT, [batch, 5]), builders.value("stateN", FLOAT, [1, batch, HIDDEN])]
    return builders.model(nodes, inputs, outputs, weights)


def fixed_inside(size: int) -> onnx.ModelProto:
    """A free batch at the interface, and a Reshape inside that takes so many samples alone."""
    generator = builders.rng()
    weights = {"W": builders.normal(generator, 64, 48), "Wo": builders.normal(generator, 48, 5)}
    weights["to"] = np.array([size, 64])
    nodes = [
        helper.make_node("Reshape", ["x", "to"], ["flat"], "reshape"),
        helper.make_node("MatMul", ["flat", "W"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "Wo"], ["y"], "two"),
    ]
    inputs = [builders.value("x", FLOAT, ["batch", 4, 16])]
    return builders.model(nodes, inputs, [builders.value("y", FLOAT, ["batch", 5])], weights)


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def opened(proto: onnx.ModelProto, folder: Path, data: dict[str, np.ndarray], **options):
    return Opener(builders.save(proto, folder / "m.onnx"), **options).open(data)


# -- what the graph says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "out", "first", "axes"),
    [
        ([STEPS, "batch", FEATURES], [STEPS, "batch", 5], False, (1, 1)),
        (["seq", "batch", FEATURES], ["seq", "batch", 5], False, (1, 1)),
        ([None, None, FEATURES], [None, None, 5], False, (1, 1)),
        ([STEPS, 1, FEATURES], [STEPS, 1, 5], False, (1, 1)),
        (["batch", STEPS, FEATURES], [STEPS, "batch", 5], True, (0, 1)),
        ([None, None, FEATURES], [None, None, 5], True, (0, 1)),
    ],
)
def test_a_recurrent_layer_says_which_axis_is_the_batch(shape, out, first, axes) -> None:
    found = axes_of(decode(recurrent(shape, out, first=first)))
    assert (found.input("x"), found.output("y")) == axes


def test_without_any_sign_samples_lie_along_axis_0() -> None:
    found = axes_of(decode(builders.mlp()))
    assert found.input("x") == 0 and found.output("y") == 0


def test_a_state_that_is_read_by_no_recurrent_layer_has_its_free_axis_as_batch() -> None:
    inputs = {spec.name: spec for spec in interface_of(decode(stateful())).inputs}
    assert inputs["x"].axis == 0 and inputs["state"].axis == 1 and inputs["state"].batch is None


# -- reading along another axis ---------------------------------------------------------------------------------------


def test_time_major_arrays_are_read_by_sample_and_not_by_step(tmp_path: Path) -> None:
    data = random(STEPS, 40, FEATURES)
    dataset = opened(recurrent([STEPS, "batch", FEATURES], [STEPS, "batch", 5]), tmp_path, {"x": data})
    assert len(dataset) == 40 and dataset.axes.output("y") == 1
    feed = next(dataset.subset([3, 7]).batches(2))
    assert np.array_equal(feed["x"], data[:, [3, 7]])
    assert any("axis 1" in guess for guess in dataset.guesses)


def test_time_major_rows_of_a_file_are_read_by_sample(tmp_path: Path) -> None:
    data = random(STEPS, 40, FEATURES)
    np.savez(tmp_path / "d.npz", x=data)
    dataset = opened(recurrent([STEPS, "batch", FEATURES], [STEPS, "batch", 5]), tmp_path, tmp_path / "d.npz")
    assert np.array_equal(next(dataset.subset([5, 2]).batches(2))["x"], data[:, [5, 2]])


def test_states_of_two_layers_are_counted_along_the_axis_that_fits(tmp_path: Path) -> None:
    proto = stateful(1)
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    dataset = open_data({"x": random(9, FEATURES), "state": random(1, 9, HIDDEN)}, interface_of(decode(proto)).inputs)
    assert len(dataset) == 9
    assert next(dataset.subset([4]).batches(1))["state"].shape == (1, 1, HIDDEN)


# -- proven by running -------------------------------------------------------------------------------------------------


def test_a_batch_fixed_inside_is_run_one_sample_at_a_time(tmp_path: Path) -> None:
    dataset = opened(fixed_inside(1), tmp_path, {"x": random(60, 4, 16)})
    assert dataset.reader.batch == 1
    assert any("found by running" in guess for guess in dataset.guesses)
    samples = dataset.samples()
    assert [feed["x"].shape[0] for feed in samples.batches(8)] == [1] * 60
    assert runs_over(decode(fixed_inside(1)), samples, 8) == 60


def test_a_batch_of_four_fixed_inside_is_found(tmp_path: Path) -> None:
    dataset = opened(fixed_inside(4), tmp_path, {"x": random(61, 4, 16)})
    assert dataset.reader.batch == 4
    assert {feed["x"].shape[0] for feed in dataset.samples().batches(8)} == {4}


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    dataset = opened(builders.mlp(), tmp_path, {"x": random(60, 16)})
    assert dataset.reader.batch is None and not dataset.guesses


def test_samples_that_influence_each_other_are_run_alone_and_that_is_said(tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.graph.node.append(helper.make_node("ReduceMean", ["y"], ["mean"], "mean", axes=[0], keepdims=1))
    proto.graph.node.append(helper.make_node("Sub", ["y", "mean"], ["centred"], "sub"))
    proto.graph.output[0].name = "centred"
    dataset = opened(proto, tmp_path, {"x": random(60, 16)})
    assert dataset.reader.batch == 1
    assert any("depends on the samples beside it" in guess for guess in dataset.guesses)


@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_fixed_inside_becomes_int8(tmp_path: Path, size: int) -> None:
    path = builders.save(fixed_inside(size), tmp_path / "m.onnx")
    report = optimize(
        path,
        data={"x": random(96, 4, 16)},
        passes="quantize-qdq{placement=table}",
        output=tmp_path / "o.onnx",
        bench=False,
    )
    assert report.fidelity.worst_sqnr_db > 25
    assert sum(layer.precision[1] == "int8" for layer in report.layers) == 2


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("stateN", "state"), ("hn", "h"), ("h_n", "h0"), ("out_cache3", "in_cache3"), ("new_state", "state"),
        ("present.2.key", "past_key_values.2.key"), ("cache_out", "cache"), ("hidden_state_out", "hidden_state_in"),
    ],
)  # fmt: skip
def test_a_state_is_found_by_its_name(output: str, name: str) -> None:
    proto = stateful()
    for node in proto.graph.node:
        node.input[:] = [name if t == "state" else t for t in node.input]
        node.output[:] = [output if t == "stateN" else t for t in node.output]
    proto.graph.input[1].name, proto.graph.output[1].name = name, output
    interface = interface_of(decode(proto))
    assert states_of(interface.inputs, interface.outputs) == (State(output, name),)


def test_numbered_states_are_not_mixed_up_and_other_tensors_are_no_states() -> None:
    interface = interface_of(decode(stateful()))
    assert not states_of(interface.inputs[:1], interface.outputs)
    with pytest.raises(UsageError, match="no output"):
        states_of(interface.inputs, interface.outputs, {"none": "state"})
    with pytest.raises(UsageError, match="cannot be"):
        states_of(interface.inputs, interface.outputs, {"y": "state"})


def test_steps_have_the_state_that_the_model_reached_before_them(tmp_path: Path) -> None:
    data = random(5, 7, FEATURES)
    dataset = opened(stateful(), tmp_path, {"x": data})
    assert len(dataset) == 35 and dataset.states == (State("stateN", "state"),)
    state = np.zeros((1, 1, HIDDEN), np.float32)
    for step in range(7):
        feed = next(dataset.subset([14 + step]).batches(1))
        assert np.array_equal(feed["x"][0], data[2, step]) and np.allclose(feed["state"], state, atol=1e-6)
        _, state = builders.run(stateful(), {"x": data[2, step : step + 1], "state": state})


def test_a_stream_is_cut_into_sequences_and_they_stay_together(tmp_path: Path) -> None:
    dataset = opened(stateful(), tmp_path, {"x": random(320, FEATURES)})
    assert len(windows(320)) == 16 and any("cut into 16 sequences" in guess for guess in dataset.guesses)
    parts = split(dataset, calibrate=64, judge=None)
    for part in (parts.calibrate, parts.select, parts.judge):
        assert np.array_equal(np.flatnonzero(part.starts), np.arange(0, len(part), 20))


def test_states_in_the_data_make_samples_of_single_steps(tmp_path: Path) -> None:
    dataset = opened(stateful(), tmp_path, {"x": random(30, FEATURES), "state": random(1, 30, HIDDEN)})
    assert len(dataset) == 30 and not dataset.states
    assert next(dataset.samples().batches(4))["state"].shape == (1, 4, HIDDEN)


def test_a_stateful_model_is_judged_with_the_states_it_reached_itself(tmp_path: Path) -> None:
    """Errors add up over the steps: a free run is farther from the float model than single steps are."""
    path = builders.save(stateful(), tmp_path / "m.onnx")
    data = random(24, 16, FEATURES)
    report = optimize(
        path, data={"x": data}, passes="quantize-weights{bits=4}", output=tmp_path / "o.onnx", bench=False
    )
    state = np.zeros((1, 1, HIDDEN), np.float32)
    exact, given = [], []
    for proto, found in ((path, exact), (tmp_path / "o.onnx", given)):
        for sequence in data:
            state = np.zeros((1, 1, HIDDEN), np.float32)
            for step in sequence:
                y, state = builders.run(proto, {"x": step[None], "state": state})
                found.append(y)
    measured = builders.sqnr_db(np.concatenate(exact), np.concatenate(given))
    assert abs(report.fidelity.outputs["y"].sqnr_db - measured) < 1.5


def test_data_without_a_needed_input_still_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no array for the input"):
        opened(stateful(), tmp_path, {"a": random(4, FEATURES), "b": random(4, FEATURES)})


def test_errors_that_grow_from_step_to_step_are_told(tmp_path: Path) -> None:
    """The state decays slowly and is stored coarsely, so that its error piles up over a sequence."""
    generator = builders.rng()
    weights = {"d": np.full(HIDDEN, 0.99, np.float32), "W": builders.normal(generator, FEATURES, HIDDEN, scale=0.1)}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], "in"),
        helper.make_node("Mul", ["state", "d"], ["b"], "keep"),
        helper.make_node("Add", ["a", "b"], ["new_state"], "sum"),
        helper.make_node("Tanh", ["new_state"], ["y"], "out"),
    ]
    inputs = [builders.value("x", FLOAT, ["N", FEATURES]), builders.value("state", FLOAT, ["N", HIDDEN])]
    outputs = [builders.value(name, FLOAT, ["N", HIDDEN]) for name in ("y", "new_state")]
    before = builders.save(builders.model(nodes, inputs, outputs, weights), tmp_path / "a.onnx")
    weights["d"] = weights["d"] - np.float32(0.02)
    after = builders.save(builders.model(nodes, inputs, outputs, weights), tmp_path / "b.onnx")
    data = Opener(before).open({"x": np.abs(random(6, 40, FEATURES))}).samples()
    drift = judge(before, after, data)[0].drift
    assert drift is not None and (drift.output, drift.sequences, drift.steps) == ("y", 6, 40)
    assert drift.last_db < drift.first_db - 5
    alone = Opener(before).open({"x": random(30, FEATURES), "state": random(30, HIDDEN)}).samples()
    assert judge(before, after, alone)[0].drift is None


class _Sequences:
    """Whole sequences, time first: a feed is one sample, whatever its first axis says."""

    source = "sequences"

    def __len__(self) -> int:
        return 12

    def step(self, size: int | None = None) -> int:
        return 1

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        yield from ({"x": np.full((20, 1, 8), i, np.float32)} for i in range(12))


def test_passes_that_hold_a_few_samples_count_sequences_and_not_their_steps() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    shape = ["T", 1, 8]
    proto = builders.model(nodes, [builders.value("x", builders.FLOAT, shape)], [builders.value("y", 1, shape)])
    graph, samples = decode(proto), _Sequences()
    shapes = infer(graph, {"x": (20, 1, 8)})
    assert len(refine.few(graph, samples, shapes)) == 12
    assert len(refine.few(graph, samples, shapes, budget_bytes=1)) == refine.LEAST_SAMPLES
    assert len(refine.judged(samples)) == 12
    part = list(Portion(samples, 3, 5).batches(8))
    assert [int(feeds["x"].flat[0]) for feeds in part] == [3, 4, 5, 6, 7]


# -- feeds of several samples ------------------------------------------------------------------------------------------


def batches(data: np.ndarray, sizes: tuple[int, ...], axis: int = 0) -> list[dict[str, np.ndarray]]:
    return [{"x": part} for part in np.split(data, np.cumsum(sizes)[:-1], axis)]


@pytest.mark.parametrize("axis", [0, 1])
def test_each_row_of_a_feed_is_a_sample_and_that_is_said(tmp_path: Path, axis: int) -> None:
    shape = ["batch", STEPS, FEATURES] if axis == 0 else [STEPS, "batch", FEATURES]
    data = random(35, STEPS, FEATURES) if axis == 0 else random(STEPS, 35, FEATURES)
    proto = recurrent(shape, [STEPS, "batch", 5], first=axis == 0)
    dataset = opened(proto, tmp_path, iter(batches(data, (8, 8, 8, 8, 3), axis)))
    assert len(dataset) == 35 and dataset.reader.batch is None
    picked = [33, 2, 9, 8, 20]
    assert np.array_equal(next(dataset.subset(picked).batches(5))["x"], data.take(picked, axis))
    assert any("35 in all" in guess for guess in dataset.guesses)


def test_rows_of_a_feed_bring_their_labels_and_a_label_for_a_whole_feed_keeps_it_whole(tmp_path: Path) -> None:
    data, labels = random(12, 16), np.arange(12) % 4
    feeds = [
        feed | {"labels": part} for feed, part in zip(batches(data, (8, 4)), (labels[:8], labels[8:]), strict=True)
    ]
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    own = Opener(path).open(feeds)
    assert len(own) == 12 and np.array_equal(own.subset([9, 1]).labels, labels[[9, 1]])
    assert len(Opener(path).open(batches(data, (8, 4)), labels=np.arange(2))) == 2


def test_rows_of_unlike_shapes_are_samples_that_run_alone(tmp_path: Path) -> None:
    feeds = [{"x": random(4, steps, FEATURES)} for steps in (5, 9, 7)]
    dataset = opened(recurrent([None, None, FEATURES], [None, None, 5], first=True), tmp_path, feeds)
    assert len(dataset) == 12 and dataset.reader.batch == 1
    assert np.array_equal(next(dataset.subset([6]).batches())["x"], feeds[1]["x"][2:3])


def test_rows_that_depend_on_one_another_stay_one_sample_and_that_is_said(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], "over", axis=0)]
    ports = [builders.value(name, FLOAT, ["N", 6]) for name in ("x", "y")]
    dataset = opened(builders.model(nodes, ports[:1], ports[1:], {}), tmp_path, batches(random(12, 6), (4, 4, 4)))
    assert len(dataset) == 3 and next(dataset.subset([1]).batches())["x"].shape == (4, 6)
    assert any("depend on one another" in guess for guess in dataset.guesses)


def test_judged_samples_are_rows_of_feeds(tmp_path: Path) -> None:
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    result = optimize(path, data=lambda: iter(batches(random(64, 16), (16,) * 4)), passes="clip-weights", bench=False)
    assert result.fidelity is not None and result.fidelity.samples > 4


def test_what_a_convolution_reads_as_channels_is_no_batch() -> None:
    """A recurrent layer behind takes rows for steps, and channels for samples; the convolution fixes their number."""
    weights = {"K": builders.normal(builders.rng(), 4, 6, 3), "W": np.zeros((1, 3, 8), np.float32)}
    weights |= {"R": np.zeros((1, 3, 1), np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "K"], ["y"]),
        helper.make_node("GRU", ["a", "W", "R"], ["", "z"], hidden_size=1),
    ]
    ends = [builders.value("y", FLOAT, None), builders.value("z", FLOAT, None)]
    proto = builders.model(nodes, [builders.value("x", FLOAT, ["N", "c", 8])], ends, weights, check=False)
    found = axes_of(decode(proto))
    assert found.input("x") == 0 and not found.time


def test_a_guessed_axis_on_which_no_sample_runs_alone_gives_way_to_axis_0(tmp_path: Path) -> None:
    """A GRU takes axis 1 for its batch; a Split behind wants it even, as a sample along axis 0 has it."""
    weights = {"W": builders.normal(builders.rng(), 1, 9, 8), "R": builders.normal(builders.rng(), 1, 9, 3)}
    nodes = [
        helper.make_node("GRU", ["x", "W", "R"], ["", "last"], hidden_size=3),
        helper.make_node("Split", ["last"], ["y", "z"], axis=1),
    ]
    ends = [builders.value("y", FLOAT, None), builders.value("z", FLOAT, None)]
    proto = builders.model(nodes, [builders.value("x", FLOAT, ["N", "c", 8])], ends, weights, check=False)
    assert axes_of(decode(proto)).input("x") == 1
    found = opened(proto, tmp_path, {"x": random(5, 4, 8)})
    assert len(found) == 5
    assert any("axis 0, found by running the model" in guess for guess in found.guesses)
    turned = opened(recurrent(["T", "B", FEATURES], ["T", "B", 5]), tmp_path, {"x": random(STEPS, 3, FEATURES)})
    assert len(turned) == 3  # where a sample along the guessed axis runs, it stays
