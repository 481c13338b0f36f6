"""Training sees the batch first, whatever the model's layout, and leaves the interface as it was."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from test_batch_axes import FEATURES, STEPS, fixed_inside, random, recurrent, stateful

from onnxcomp import optimize
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import to_bytes
from onnxcomp.manager.base import PassContext
from onnxcomp.passes.training.turned import batch_first
from onnxcomp.verify.opening import Opener


def contexts(proto, folder: Path, data: dict[str, np.ndarray]) -> PassContext:
    samples = Opener(builders.save(proto, folder / "m.onnx")).open(data).samples()
    shapes = {name: array.shape for name, array in next(samples.batches(1)).items()}
    return PassContext(calibration=samples, training=samples, original=decode(proto), sample_shapes=shapes)


def test_a_time_major_model_is_trained_with_its_batch_first(tmp_path: Path) -> None:
    proto = recurrent([STEPS, "batch", FEATURES], [STEPS, "batch", 5])
    data = random(STEPS, 12, FEATURES)
    graph = decode(proto)
    before = to_bytes(graph)
    with batch_first(graph, contexts(proto, tmp_path, {"x": data})) as context:
        assert context.training is not None and context.sample_shapes == {"x": (1, STEPS, FEATURES)}
        assert graph.inputs[0].shape == ("batch", STEPS, FEATURES) and graph.outputs[0].shape == ("batch", STEPS, 5)
        feed = next(context.training.batches(4))
        (given,) = builders.run(to_bytes(graph), feed)
        (wanted,) = builders.run(proto, {"x": data[:, :4]})
        assert np.allclose(given, np.moveaxis(wanted, 1, 0), atol=1e-5)
        assert context.original is not None
        assert np.allclose(builders.run(to_bytes(context.original), feed)[0], given, atol=1e-5)
    assert to_bytes(graph) == before


def test_states_and_outputs_are_turned_each_by_its_own_axis(tmp_path: Path) -> None:
    proto, graph = stateful(), decode(stateful())
    before = to_bytes(graph)
    data = {"x": random(9, FEATURES), "state": random(1, 9, 24)}
    with batch_first(graph, contexts(proto, tmp_path, data)) as context:
        assert context.training is not None
        given = builders.run(to_bytes(graph), next(context.training.batches(9)))
        wanted = builders.run(proto, data)
        assert np.allclose(given[0], wanted[0], atol=1e-5)
        assert np.allclose(given[1], np.moveaxis(wanted[1], 1, 0), atol=1e-5)
    assert to_bytes(graph) == before


def test_a_batch_fixed_inside_is_fixed_at_the_interface_while_it_trains(tmp_path: Path) -> None:
    proto, graph = fixed_inside(1), decode(fixed_inside(1))
    with batch_first(graph, contexts(proto, tmp_path, {"x": random(20, 4, 16)})):
        assert graph.inputs[0].shape == (1, 4, 16)
    assert graph.inputs[0].shape == ("batch", 4, 16)


def test_an_ordinary_model_is_left_as_it_is(tmp_path: Path) -> None:
    proto = builders.mlp()
    given = contexts(proto, tmp_path, {"x": random(20, 16)})
    with batch_first(decode(proto), given) as context:
        assert context is given


@pytest.mark.parametrize("kind", ["time-major", "fixed-inside"])
def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path, kind: str) -> None:
    if kind == "time-major":
        proto = recurrent([STEPS, "batch", FEATURES], [STEPS, "batch", 5])
        data = random(STEPS, 96, FEATURES)
    else:
        proto, data = fixed_inside(1), random(96, 4, 16)
    teacher = builders.save(proto, tmp_path / "t.onnx")
    generator = np.random.default_rng(5)
    graph = decode(proto)
    for constant in graph.constants():
        if constant.dtype == np.float32:
            constant.values = constant.values + generator.normal(0, 0.05, constant.shape).astype(np.float32)
    (tmp_path / "s.onnx").write_bytes(to_bytes(graph))
    report = optimize(
        tmp_path / "s.onnx",
        teacher=teacher,
        data={"x": data},
        passes="distill{steps=60}",
        output=tmp_path / "o.onnx",
        bench=False,
    )
    assert (
        report.teacher is not None
        and report.teacher.fidelity_before is not None
        and report.teacher.fidelity is not None
    )
    before, after = (one.worst_sqnr_db for one in (report.teacher.fidelity_before, report.teacher.fidelity))
    assert before is not None and after is not None and after > before + 0.5
