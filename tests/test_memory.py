"""One budget bounds what statistics, stages and runs hold; a run over the data takes as few samples as fit it."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from feeds import Feeds

from onnxcomp import optimize
from onnxcomp.distill import teacher
from onnxcomp.distill.teacher import Rows, ask, rows_a_run
from onnxcomp.graph.codec import decode
from onnxcomp.graph.shapes import infer
from onnxcomp.passes.qdq import refine
from onnxcomp.passes.training.trainer import piece_of
from onnxcomp.runtime import taps
from onnxcomp.runtime.memory import LEAST_BYTES, Memory
from onnxcomp.runtime.progress import SILENT
from onnxcomp.runtime.stages import peak_bytes, trained_bytes
from onnxcomp.verify.opening import Opener

GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "machine", "total", "cut"),
    [
        (None, 64 * GIB, 2 * GIB, False), (None, None, 2 * GIB, False), (None, 2 * GIB, 1 * GIB, True),
        (8 * GIB, 64 * GIB, 8 * GIB, False), (40 * GIB, 64 * GIB, 32 * GIB, True), (1, 64 * GIB, LEAST_BYTES, False),
    ],
)  # fmt: skip
def test_the_budget_is_two_gibibytes_and_never_more_than_half_of_the_machine(asked, machine, total, cut) -> None:
    found = Memory.of(asked, machine)
    assert found.total == total and bool(found.cut) is cut


def test_tensors_of_all_layers_are_read_in_one_run_of_few_samples() -> None:
    graph = decode(builders.residual_cnn(batch_norm=False))
    name = graph.inputs[0].name
    samples = Feeds({name: builders.normal(builders.rng(), 24, 3, 16, 16, scale=1.0)})
    names = [t.name for node in graph.nodes for t in node.outputs]
    shapes = infer(graph, {name: (1, 3, 16, 16)})
    one = sum(int(np.prod(shapes.static(graph.tensors()[n]))) * 4 for n in names)
    assert taps.fitting(graph, names, samples, 8, 3 * one) == 3
    assert taps.fitting(graph, names, samples, 8, 100 * one) == 8
    seen = [set(values) for values in taps.stream(graph, names, samples, budget_bytes=3 * one)]
    assert len(seen) == 8 and all(found == set(names) for found in seen)


def test_a_sample_that_fills_the_memory_is_run_alone(tmp_path: Path) -> None:
    path = builders.save(builders.residual_cnn(), tmp_path / "m.onnx")
    graph = decode(builders.residual_cnn())
    name = graph.inputs[0].name
    data = {name: builders.normal(builders.rng(), 40, 3, 16, 16, scale=1.0)}
    peak = peak_bytes(graph, infer(graph, {name: (1, 3, 16, 16)}))
    small = Opener(path, memory=Memory(int(8 * 3.5 * peak))).open(data)
    assert small.most == 3
    assert {len(feed[name]) for feed in small.samples().batches(32)} == {3, 1}
    assert small.samples().step(32) == 3 and small.samples().step(2) == 2


def test_a_run_within_little_memory_gives_the_same_model_up_to_rounding(tmp_path: Path) -> None:
    path = builders.save(builders.residual_cnn(batch_norm=False), tmp_path / "m.onnx")
    name = decode(builders.residual_cnn()).inputs[0].name
    data = {name: builders.normal(builders.rng(), 60, 3, 16, 16, scale=1.0)}
    results = {}
    for label, memory in (("ample", None), ("tight", LEAST_BYTES)):
        out = tmp_path / f"{label}.onnx"
        spec = "prune-weights{ratio=0.5}"
        report = optimize(path, data=data, passes=spec, output=out, bench=False, memory=memory)
        results[label] = report.fidelity.worst_sqnr_db
    assert abs(results["ample"] - results["tight"]) < 1.0


# -- what trains, and what is tried ------------------------------------------------------------------------------------


def rows_of(count: int, name: str) -> Rows:
    return Rows(Path(), {name: builders.normal(builders.rng(), count, 3, 16, 16, scale=1.0)}, plain=count)


def test_a_teacher_is_asked_for_as_many_rows_as_fit_whatever_the_threads(tmp_path: Path, monkeypatch) -> None:
    graph = decode(builders.residual_cnn())
    name, output = graph.inputs[0].name, graph.outputs[0].name
    peak = peak_bytes(graph, infer(graph, {name: (1, 3, 16, 16)}))
    tight = Memory(int(8 * 5.5 * peak))
    assert (
        rows_a_run(graph, rows_of(12, name), tight)[0] == 5 and rows_a_run(graph, rows_of(12, name), Memory())[0] == 64
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[int] = []
    monkeypatch.setattr(teacher, "ask", lambda s, part, *rest: asked.append(len(part[name])) or ask(s, part, *rest))
    found, _ = teacher.answers(graph, [output], rows_of(12, name), threads=2, progress=SILENT, memory=tight)
    assert sorted(asked) == [2, 5, 5] and len(found[output]) == 12


def test_a_batch_trains_in_pieces_that_fit() -> None:
    assert [piece_of(64, most) for most in (1 << 40, 16, 15, 3, 0)] == [16, 16, 8, 2, 1]
    assert piece_of(7, 5) == 1 and piece_of(20) == 20


def test_a_step_holds_every_activation_and_its_gradient() -> None:
    graph = decode(builders.mlp((16, 32, 10)))
    shapes = infer(graph, {"x": (3, 16)})
    assert trained_bytes(graph, shapes) == 2 * 3 * 4 * (32 + 32 + 10)


def test_answers_that_are_kept_count_where_placements_are_judged() -> None:
    samples = Feeds({"x": np.zeros((64, 256), np.float32)})
    assert len(refine.judged(samples, 8, 1000)) == 4
    few = refine.judged(samples, 8, 10_000, budget_bytes=200_000)
    assert sum(len(feed["x"]) * (10_000 + 1024) for feed in few) <= 200_000 and len(few) == 2
    assert len(refine.judged(samples, 8, 10**9, budget_bytes=200_000)) == 1
