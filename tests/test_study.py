"""Is a trial a pure function of its study and its spec? Equal figures, equal files, first passes that run once."""

from __future__ import annotations

import gc
import json
import pickle
import weakref
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcomp
from onnxcomp import driver
from onnxcomp.benchmark import bench
from onnxcomp.data.metric import parse_metric
from onnxcomp.errors import UsageError
from onnxcomp.files import sha256_of
from onnxcomp.job import Job
from onnxcomp.manager.base import Pass
from onnxcomp.manager.prefixes import Kept, Prefixes
from onnxcomp.manager.registry import find
from onnxcomp.runtime.closeness import Tally
from onnxcomp.runtime.session import Session
from onnxcomp.verify import opened as opened_module
from onnxcomp.verify import pair
from onnxcomp.verify.data_check import check_data
from onnxcomp.verify.judge import judge
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.opening import Opener
from onnxcomp.verify.verdict import verify_pair
from onnxcomp.work.study import Study
from onnxcomp.work.trial import Measured

CLEAN = "fold-constants,cleanup,fuse-batchnorm"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def job(digits: Path, digits_data: tuple[Path, Path]) -> Job:
    calibration, test = digits_data
    return Job(digits, data=calibration, eval_data=test, bench=False, calib_samples=64, eval_samples=100)


def test_a_trial_in_another_study_measures_the_same(job: Job) -> None:
    spec = f"{CLEAN},quantize-qdq"
    found: list[Measured] = []
    keys: list[str] = []
    for asked in (job, pickle.loads(pickle.dumps(job))):
        with Study.open(asked) as study:
            keys.append(study.key)
            found.append(study.trial(spec))
    assert keys[0] == keys[1]
    assert replace(found[0], seconds=0) == replace(found[1], seconds=0)
    first = found[0]
    assert first.sound and first.better and first.why == ""
    assert 0 < first.bytes < 0.5 * job.model.stat().st_size
    assert first.sqnr_db is not None and first.agreement is not None and first.accuracy is not None
    assert Measured.of_json(json.loads(json.dumps(first.to_json()))) == first


def test_a_trial_that_the_passes_before_it_prepared_is_no_other(job: Job) -> None:
    spec = f"{CLEAN},quantize-weights{{bits=8}}"
    with Study.open(job) as alone:
        expected = alone.trial(spec)
        alone.write(spec, Path("alone.onnx"))
    with Study.open(job) as study:
        study.trial(f"{CLEAN},quantize-qdq")
        study.trial(CLEAN)
        assert replace(study.trial(spec), seconds=0) == replace(expected, seconds=0)
        study.write(spec, Path("after.onnx"))
    assert sha256_of(Path("after.onnx")) == sha256_of(Path("alone.onnx"))


def test_what_a_study_writes_is_what_optimize_writes(job: Job) -> None:
    spec = f"{CLEAN},quantize-qdq"
    with Study.open(replace(job, passes=spec)) as study:
        study.write(spec, Path("study.onnx"))
        final = study.final(spec)
    report = onnxcomp.optimize(
        job.model,
        output="m.onnx",
        passes=spec,
        data=job.data,
        eval_data=job.eval_data,
        bench=False,
        calib_samples=64,
        eval_samples=100,
    )
    assert report.output is not None
    assert report.output.sha256 == sha256_of(Path("study.onnx"))
    assert report.accuracy is not None and report.accuracy.after == final.accuracy
    assert report.after.bytes == final.bytes


def test_passes_that_specs_begin_with_run_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in CLEAN.split(","):
        kind: type[Pass] = find(name)
        original = kind.run

        def run(self, graph, context, original=original):  # type: ignore[no-untyped-def]
            ran.append(str(self))
            return original(self, graph, context)

        monkeypatch.setattr(kind, "run", run)
    with Study.open(job) as study:
        results = [study.run(f"{CLEAN},{last}") for last in ("quantize-qdq", "quantize-weights{bits=8}")]
        study.run("cleanup")
    assert ran == [*CLEAN.split(","), "cleanup"]
    assert [record.name for record in results[1].records] == [*CLEAN.split(","), "quantize-weights"]


def test_local_functions_are_opened_only_for_pipelines_that_rewrite(tmp_path: Path) -> None:
    model = builders.save(builders.function_model(), tmp_path / "m.onnx")
    with Study.open(Job(model, bench=False, verify=False)) as study:
        rewritten = study.run("cleanup,prune-weights{ratio=0.5}").graph
        assert study.run("cleanup").graph.functions and not rewritten.functions


def test_fewer_samples_judge_where_that_is_asked_for(job: Job) -> None:
    with Study.open(job) as study:
        few = study.trial(CLEAN + ",quantize-qdq", samples=4)
        assert few.agreement in (0, 0.25, 0.5, 0.75, 1)
        assert few.bytes == study.trial(CLEAN + ",quantize-qdq").bytes


def test_what_cannot_be_run_is_a_trial_that_is_not_sound(job: Job) -> None:
    with Study.open(job) as study:
        with pytest.raises(UsageError):
            study.trial("no-such-pass")
        changed_nothing = study.trial("drop-zero-channels")
    assert changed_nothing.sound and not changed_nothing.better and changed_nothing.changes == 0
    assert "no gain" in changed_nothing.why


def test_the_key_holds_what_decides_and_no_more(job: Job, tmp_path: Path) -> None:
    def key(**changes: object) -> str:
        with Study.open(replace(job, **changes)) as study:  # type: ignore[arg-type]
            return study.key

    first = key()
    assert first == key(threads=1) == key(passes="cleanup")
    other = builders.save(builders.mlp(), tmp_path / "other.onnx")
    with np.load(job.data) as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "same.npz", **arrays)
    name = next(iter(arrays))
    np.savez(tmp_path / "data.npz", **{**arrays, name: arrays[name][::-1]})
    keys = [key(seed=1), key(calib_samples=32), key(data=str(tmp_path / "data.npz"))]
    with Study.open(Job(other, bench=False)) as study:
        keys.append(study.key)
    assert len({first, *keys}) == 5


def test_what_is_kept_is_bounded() -> None:
    graphs = [onnxcomp.load(builders.save(builders.mlp(seed=seed), Path(f"{seed}.onnx"))) for seed in range(4)]
    source, *others = graphs
    for graph in others:
        for constant in graph.constants():
            constant.values = np.array(constant.values)
    size = sum(constant.nbytes for constant in others[0].constants())
    prefixes = Prefixes(source, most_bytes=2 * size)
    for number, graph in enumerate(others):
        prefixes.keep("", ("a", str(number)), Kept(source, "", graph))
        prefixes.keep("", ("a", str(number), "same"), Kept(source, "", graph))
    assert prefixes.longest("", ("a", "0", "same")) is None
    assert prefixes.longest("", ("a", "1", "same")) is not None
    few = Prefixes(source, most_graphs=1)
    few.keep("", ("a",), Kept(source, "", source))
    few.keep("", ("a", "b"), Kept(source, "", source))
    assert few.longest("", ("a", "c")) is None and few.longest("", ("a", "b")) is not None


# -- the source is read once, opened once, run once --


@dataclass
class Counts:
    """How often the source was parsed, and its file opened as a session."""

    parsed: int = 0
    opened: int = 0


def counting(source: Path, monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Counts at the two doors through which every model comes: onnx's parser and the runtime's session."""
    counts = Counts()
    parse, start = onnx.load_model, ort.InferenceSession.__init__

    def load_model(file: Any, *args: Any, **options: Any) -> Any:
        counts.parsed += Path(file).resolve() == source.resolve()
        return parse(file, *args, **options)

    def session(self: Any, model: Any, *args: Any, **options: Any) -> None:
        counts.opened += isinstance(model, str | Path) and Path(model).resolve() == source.resolve()
        start(self, model, *args, **options)

    monkeypatch.setattr(onnx, "load_model", load_model)
    monkeypatch.setattr(ort.InferenceSession, "__init__", session)
    return counts


@pytest.mark.parametrize("objective", ["latency", "size"])
def test_a_run_parses_its_source_once_and_opens_it_three_times(
    job: Job, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written, to see what it takes; fast, however many recipes are tried; as written once more, to compare both."""
    counts = counting(job.model, monkeypatch)
    report = driver.run(replace(job, objective=objective, output=Path("m.onnx")))  # type: ignore[arg-type]
    assert report.verdict == "accepted" and counts == Counts(1, 3)
    report = driver.run(replace(job, objective=objective, output=Path("m.onnx")))  # type: ignore[arg-type]
    assert report.verdict == "accepted" and counts == Counts(2, 6)  # nor because an older output stands


def test_the_source_answers_each_sample_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with Study.open(job) as study:
        session = study.source.session("CPUExecutionProvider", study.context.threads)
        rows: list[int] = []
        run = session.run

        def counted(feeds: Any, outputs: Any = None) -> Any:
            rows.append(len(next(iter(feeds.values()))))
            return run(feeds, outputs)

        session.run = counted  # type: ignore[method-assign]
        for spec in (CLEAN, f"{CLEAN},quantize-qdq", f"{CLEAN},quantize-weights{{bits=8}}"):
            study.trial(spec)
        tried = len(study.material.select)
        assert tried <= sum(rows) <= tried + 2  # and two samples to see whether they go together


def test_a_candidate_answers_each_sample_once_where_decisions_are_counted_as_well(
    digits: Path, digits_data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(digits_data[0]) as held:
        np.savez("unlabelled.npz", images=held["images"][:200])
    rows: list[int] = []
    run = Session.run

    def counted(self: Session, feeds: Any, outputs: Any = None) -> Any:
        if self.where.endswith("candidate.onnx"):
            rows.append(len(next(iter(feeds.values()))))
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", counted)
    with Study.open(Job(digits, data=Path("unlabelled.npz"), bench=False)) as study:
        found = study.trial(f"{CLEAN},quantize-qdq{{agreement=0}}")
        assert len(study.material.select) < found.decided == study.judge.counted
        assert found.agreement == study.judge.agreement(study.run(found.spec).graph)
        assert found.decided <= sum(rows) <= found.decided + 2


def test_decisions_of_a_graph_are_counted_once_and_nothing_besides(
    digits: Path, digits_data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(digits_data[0]) as held:
        np.savez("unlabelled.npz", images=held["images"][:200])
    rows, tallied = list[int](), list[int]()
    run, add = Session.run, Tally.add

    def counted(self: Session, feeds: Any, outputs: Any = None) -> Any:
        if self.where.endswith("decides.onnx"):
            rows.append(len(next(iter(feeds.values()))))
        return run(self, feeds, outputs)

    def adding(self: Tally, *arrays: Any) -> None:
        tallied.append(1)
        add(self, *arrays)

    monkeypatch.setattr(Session, "run", counted)
    with Study.open(Job(digits, data=Path("unlabelled.npz"), bench=False)) as study:
        graph = study.run(f"{CLEAN},quantize-qdq{{agreement=0}}").graph
        with monkeypatch.context() as patch:
            patch.setattr(Tally, "add", adding)
            share = study.judge.agreement(graph)
            assert share is not None and share == study.judge.agreement(graph.clone())
        assert study.judge.counted <= sum(rows) <= study.judge.counted + 2
        assert not tallied, "how close the outputs are was not asked"


def test_the_session_that_data_were_tried_on_is_not_held(job: Job) -> None:
    """It maps all of a large model into memory."""
    opened: list[weakref.ref[Session]] = []
    plain = OpenedModel.plain

    def remembered(self: OpenedModel) -> Session:
        opened.append(weakref.ref(plain(self)))
        return plain(self)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(OpenedModel, "plain", remembered)
        stack.enter_context(Study.open(job))
        gc.collect()
        assert opened and not any(session() for session in opened)


def test_answers_kept_are_the_answers(tmp_path: Path) -> None:
    proto = builders.residual_cnn()
    before, after = (builders.save(proto, tmp_path / f"{name}.onnx") for name in ("a", "b"))
    name = proto.graph.input[0].name
    shape = (40, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]))
    data = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    with closing(OpenedModel(before, folder=tmp_path)) as opened:
        samples = Opener(opened).open(data).samples()
        plain = judge(before, after, samples)
        found = [judge(opened, after, part) for part in (samples, samples, samples.head(9), samples)]
        assert found[0] == found[1] == found[3] == plain
        assert found[2] == judge(before, after, samples.head(9)) != plain


def test_answers_without_room_are_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_module, "KEPT_BYTES", 0)
    proto = builders.mlp()
    before = builders.save(proto, tmp_path / "a.onnx")
    data = {proto.graph.input[0].name: np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)}
    with closing(OpenedModel(before, folder=tmp_path)) as opened:
        samples = Opener(opened).open(data).samples()
        assert judge(opened, before, samples) == judge(opened, before, samples) == judge(before, before, samples)


@pytest.mark.parametrize("kept", [True, False])
def test_models_too_large_to_be_open_together_are_run_one_after_the_other(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = builders.mlp()
    paths = [builders.save(builders.mlp(seed=seed), tmp_path / f"{seed}.onnx") for seed in (0, 1)]
    data = {proto.graph.input[0].name: np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)}
    samples = Opener(paths[0]).open(data).samples()
    expected = judge(*paths, samples)
    monkeypatch.setattr(pair, "LARGE_BYTES", 0)
    with closing(OpenedModel(paths[0], folder=tmp_path if kept else None)) as opened:
        for _ in range(2):
            assert judge(opened, paths[1], samples)[0].outputs["y"].sqnr_db == pytest.approx(
                expected[0].outputs["y"].sqnr_db
            )


def test_the_other_commands_read_each_model_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    after = Path("after.onnx")
    with Study.open(job) as study:
        study.write(CLEAN, after)
    counts, others = counting(job.model, monkeypatch), counting(after, monkeypatch)
    verify_pair(job.model, after, job.eval_data)
    assert (counts, others.parsed) == (Counts(1, 2), 1)
    bench([job.model], data=job.eval_data, seconds=0.01, footprints=False)
    assert counts.parsed == 2
    opened = OpenedModel(job.model)
    opener = Opener(opened)
    check_data(
        opened,
        lambda asked: opener.open(job.eval_data, preprocess=asked),
        job.preprocess,
        parse_metric(None),
        samples=9,
    )
    assert counts.parsed == 3
