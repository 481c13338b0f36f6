"""Judging ends before the samples do, and only where every limit is decided: right, repeatable and told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcomp
from onnxcomp.data.dataset import Samples
from onnxcomp.data.metric import parse_metric
from onnxcomp.results import Fidelity, OutputFidelity
from onnxcomp.runtime.quantiles import student
from onnxcomp.verify.accuracy import interval
from onnxcomp.verify.enough import CONFIDENCE, SECTIONS, Limits, certainty, looks
from onnxcomp.verify.judge import judge
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.opening import Opener

WIDTH, CLASSES = 16, 6


def classifier(path: Path, noise: float = 0.0) -> Path:
    """x [N, 16] -> scores of six classes; `noise`: how far the weights are off."""
    weights = np.random.default_rng(1).normal(size=(WIDTH, CLASSES))
    weights += noise * np.random.default_rng(2).normal(size=weights.shape)
    proto = builders.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [builders.value("x", TensorProto.FLOAT, ["N", WIDTH])],
        [builders.value("y", TensorProto.FLOAT, ["N", CLASSES])],
        {"w": weights.astype(np.float32)},
    )
    return builders.save(proto, path)


def inputs(count: int, *, sorted_by_class: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Samples and what the exact classifier says of them, in any order or class by class."""
    x = np.random.default_rng(3).normal(size=(count, WIDTH)).astype(np.float32)
    labels = (x @ np.random.default_rng(1).normal(size=(WIDTH, CLASSES))).argmax(axis=1)
    order = np.argsort(labels, kind="stable") if sorted_by_class else np.arange(count)
    return x[order], labels[order]


def samples_of(model: Path, count: int, **how: bool) -> Samples:
    x, labels = inputs(count, **how)
    return Opener(OpenedModel(model)).open({"x": x, "labels": labels}).samples()


def judged(tmp_path: Path, noise: float, limits: Limits | None, count: int = 2000, **how: bool):
    exact = classifier(tmp_path / "exact.onnx")
    other = classifier(tmp_path / "other.onnx", noise)
    samples = samples_of(exact, count, **how)
    return samples, judge(exact, other, samples, parse_metric(None), until=limits, threads=1)


@pytest.mark.parametrize(
    ("level", "freedom", "value"), [(0.05, 7, 2.3646), (0.02, 15, 2.6025), (0.01, 31, 2.744), (0.05, 63, 1.9983)]
)
def test_quantiles_are_those_of_the_tables(level: float, freedom: int, value: float):
    assert student(level, freedom) == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("count", [200, 897, 2000, 10_000])
def test_looks_share_out_the_samples_and_the_chance_of_error(tmp_path: Path, count: int):
    samples = samples_of(classifier(tmp_path / "m.onnx"), count)
    found = looks(samples, 0)
    assert len(found) > 1
    indices = np.concatenate([look.samples.indices for look in found])
    assert sorted(indices.tolist()) == samples.indices.tolist()
    assert sum(look.level for look in found) == pytest.approx(1 - CONFIDENCE)
    assert found[0].sections == SECTIONS and len(found[0].samples) >= 96
    assert [look.samples.indices.tolist() for look in looks(samples, 0)] == [
        look.samples.indices.tolist() for look in found
    ]
    assert looks(samples, 1)[0].samples.indices.tolist() != found[0].samples.indices.tolist()


def test_few_samples_are_all_seen(tmp_path: Path):
    (look,) = looks(samples_of(classifier(tmp_path / "m.onnx"), 180), 0)
    assert len(look.samples) == 180


def test_what_is_far_from_every_limit_is_judged_on_some_of_the_samples(tmp_path: Path):
    limits = Limits(sqnr_db=(10.0,), agreement=(0.5,), drop=(0.5,))
    _, (fidelity, accuracy) = judged(tmp_path, 0.05, limits)
    assert accuracy is not None and fidelity.certainty is not None
    assert fidelity.samples == accuracy.samples == 250
    sure = fidelity.certainty
    assert (sure.available, sure.confidence, sure.looks) == (2000, 0.95, 1)
    assert sure.sqnr_db is not None and sure.agreement is not None and sure.drop is not None
    assert 10 < sure.sqnr_db[0] <= (fidelity.worst_db or 0) <= sure.sqnr_db[1]
    assert 0.5 < sure.agreement[0] <= (fidelity.agreement or 0) <= sure.agreement[1]
    assert sure.drop[0] <= accuracy.drop <= sure.drop[1] < 0.5
    _, (everything, _) = judged(tmp_path, 0.05, None)
    assert everything.samples == 2000 and everything.certainty is None
    assert sure.sqnr_db[0] <= (everything.worst_db or 0) <= sure.sqnr_db[1]
    assert sure.agreement[0] <= (everything.agreement or 0) <= sure.agreement[1]


@pytest.mark.parametrize("name", ["sqnr_db", "agreement", "drop"])
def test_a_limit_that_a_figure_stands_at_needs_all_samples(tmp_path: Path, name: str):
    _, (fidelity, accuracy) = judged(tmp_path, 0.05, None)
    assert accuracy is not None
    here = {"sqnr_db": fidelity.worst_db, "agreement": fidelity.agreement, "drop": accuracy.drop}[name]
    assert here is not None
    _, (near, _) = judged(tmp_path, 0.05, replace(Limits(), **{name: (here,)}))
    assert near.samples == 2000 and near.certainty is not None
    assert near.worst_db == pytest.approx(fidelity.worst_db) and near.agreement == pytest.approx(fidelity.agreement)


def test_data_that_lie_class_by_class_are_seen_in_a_drawn_order(tmp_path: Path):
    limits = Limits(drop=(0.5,))
    _, (fidelity, accuracy) = judged(tmp_path, 0.3, limits, sorted_by_class=True)
    assert accuracy is not None and accuracy.samples < 2000
    _, (_, everything) = judged(tmp_path, 0.3, None, sorted_by_class=True)
    assert everything is not None and fidelity.certainty is not None and fidelity.certainty.drop is not None
    assert fidelity.certainty.drop[0] <= everything.drop <= fidelity.certainty.drop[1]
    assert accuracy.before == 1.0  # labels went with their samples


def test_samples_that_changed_class_keep_their_numbers(tmp_path: Path):
    samples, (fidelity, _) = judged(tmp_path, 0.3, Limits(sqnr_db=(-100.0,)))
    flips = [flip for agreement in fidelity.agreements for flip in agreement.flips]
    assert fidelity.samples < 2000 and flips and flips == sorted(flips)
    labels = samples.labels
    assert labels is not None
    assert all(labels[number] == before != after for number, before, after in flips)


def test_a_metric_that_is_no_mean_over_samples_sees_all_of_them(tmp_path: Path):
    exact = classifier(tmp_path / "exact.onnx")
    metric = replace(parse_metric(None), each=None)
    fidelity, accuracy = judge(exact, exact, samples_of(exact, 2000), metric, until=Limits(), threads=1)
    assert accuracy is not None and accuracy.samples == fidelity.samples == 2000


def test_a_batch_that_the_model_fixes_goes_as_a_whole(tmp_path: Path):
    """Each run takes four samples, those that the data hold side by side."""
    paths = [classifier(tmp_path / f"{noise}.onnx", noise) for noise in (0.0, 0.3)]
    for path in paths:
        proto = onnx.load(path)
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(proto, path)
    samples = samples_of(paths[0], 2002)
    assert all((look.samples.indices.reshape(-1, 4)[:, 0] % 4 == 0).all() for look in looks(samples, 0))
    fidelity, accuracy = judge(*paths, samples, parse_metric(None), until=Limits(drop=(0.9,)), threads=1)
    assert accuracy is not None and accuracy.before == 1.0
    assert fidelity.samples == accuracy.samples == 252 and fidelity.certainty is not None
    assert fidelity.certainty.available == 2000 and fidelity.certainty.drop is not None


def test_rows_of_feeds_are_samples_like_others(tmp_path: Path):
    model, (x, _) = classifier(tmp_path / "m.onnx"), inputs(2400)
    report = onnxcomp.optimize(
        model,
        data=[{"x": rows} for rows in np.split(x, 800)],
        output=tmp_path / "o.onnx",
        passes="quantize-weights{bits=2}",
        html=tmp_path / "o.html",
        bench=False,
        threads=1,
    )
    assert report.fidelity is not None and report.fidelity.certainty is not None and report.flips
    assert report.fidelity.certainty.available == 2400 - 512 - 240
    assert all(flip.sample < 1648 for flip in report.flips)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """The noise of samples varies by a factor of ten or more; the truth is the ratio over very many of them."""
    draw = np.random.default_rng(0)
    truth = float(np.exp(0.5) * 0.02)  # mean noise over mean signal
    missed, level, runs = 0, 0.02, 400
    for _ in range(runs):
        noise = 0.02 * draw.lognormal(0.0, 1.0, (SECTIONS, 28))
        sections = [fidelity(float(part.mean()), 28) for part in noise]
        found = certainty(fidelity(float(noise.mean()), noise.size), sections, None, level, of=1000, look=1)
        assert found.sqnr_db is not None
        missed += not found.sqnr_db[0] <= -10 * math.log10(truth) <= found.sqnr_db[1]
    assert missed / runs < 0.06  # skewed noise costs a little of what small sections promise


def fidelity(noise: float, samples: int) -> Fidelity:
    return Fidelity(samples, "data", {"y": OutputFidelity(False, -10 * math.log10(noise), 1.0)})


def test_a_drop_is_told_at_the_level_asked_for():
    drops = np.r_[np.ones(5), np.zeros(195)]
    narrow, wide = interval(drops), interval(drops, 0.001)
    assert wide[0] < narrow[0] < 0.025 < narrow[1] < wide[1]


def test_a_run_judges_until_its_limits_are_decided_and_says_so(tmp_path: Path):
    model = classifier(tmp_path / "m.onnx")
    x, labels = inputs(4000)
    np.savez(tmp_path / "d.npz", x=x, labels=labels)
    given = {"data": tmp_path / "d.npz", "passes": "quantize-weights{bits=8}", "bench": False, "threads": 1}
    reports = [onnxcomp.optimize(model, output=tmp_path / f"{n}.onnx", **given) for n in "ab"]
    found = reports[0].fidelity
    assert found is not None and found.certainty is not None and reports[0].accuracy is not None
    assert found.samples == reports[0].accuracy.samples < found.certainty.available == 4000 - 512 - 400
    assert any("--eval-samples 3088 takes all" in note for note in reports[0].notes)
    assert reports[1].fidelity == found
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    told = json.loads(json.dumps(reports[0].to_json()))
    assert told["fidelity"]["certainty"]["available"] == 3088

    all_of_it = onnxcomp.optimize(model, output=tmp_path / "c.onnx", eval_samples=3088, **given)
    assert all_of_it.fidelity is not None and all_of_it.fidelity.samples == 3088
    assert all_of_it.fidelity.certainty is None
    more = inputs(1000)[0] + np.float32(0.5)
    np.savez(tmp_path / "e.npz", x=more, labels=np.zeros(1000, np.int64))
    apart = onnxcomp.optimize(model, output=tmp_path / "d.onnx", eval_data=tmp_path / "e.npz", **given)
    assert apart.fidelity is not None and apart.fidelity.samples == 1000
