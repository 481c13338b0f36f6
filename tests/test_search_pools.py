"""Do trials run in processes and on a cluster, is none lost when one dies, and do bad clusters say what is wrong?"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import search_fakes as fakes
from click.testing import CliRunner

from onnxcomp.cli.main import group
from onnxcomp.errors import DataError, EnvironmentLacksError
from onnxcomp.graph.io import load
from onnxcomp.job import Job
from onnxcomp.manager import registry
from onnxcomp.search import cluster as clusters
from onnxcomp.search.cluster import Cluster, found_table, order_of
from onnxcomp.search.keys import SearchKeys
from onnxcomp.search.pool import DIED, Processes
from onnxcomp.search.run import Found, _Run, search, table_of
from onnxcomp.search.show import lines
from onnxcomp.search.strategies import strategy
from onnxcomp.verify.budget import Budget
from onnxcomp.work import judging

distributed = pytest.importorskip("distributed")

CLEAN, SMALL = "fold-constants,fuse-batchnorm", "fold-constants,fuse-batchnorm,quantize-weights{error=round}"


@pytest.fixture
def job(digits: Path, digits_data: tuple[Path, Path], tmp_path: Path) -> Job:
    """A small job of trials on the digits: few samples, no timing."""
    with np.load(digits_data[0]) as arrays:
        np.savez(tmp_path / "few.npz", images=arrays["images"][:240], labels=arrays["labels"][:240])
    return Job(
        digits,
        data=str(tmp_path / "few.npz"),
        output=tmp_path / "out.onnx",
        objective="size",
        budget=Budget(max_drop=0.05),
        calib_samples=32,
        bench=False,
        threads=1,
    )


def answers(pool: Any, count: int, seconds: float = 240.0) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        if (ended := pool.answer(1.0)) is not None:
            found[ended[0]] = ended[1]
    return found


def test_a_process_that_dies_takes_one_trial_with_it_and_another_takes_its_place(job: Job, tmp_path: Path) -> None:
    pool = Processes(table_of(job), Path(), 1)
    try:
        assert pool.source()["bytes"] == job.model.stat().st_size
        pool.submit(0, {"spec": SMALL, "best": None})
        pool._workers[0].process.send_signal(signal.SIGKILL)
        assert answers(pool, 1)[0]["state"] == DIED
        pool.submit(0, {"spec": SMALL, "best": None})
        answer = answers(pool, 1)[0]
        assert answer["state"] == "measured"
        assert answer["measured"]["bytes"] < 0.4 * job.model.stat().st_size
        pool.write(0, SMALL, tmp_path / "best.onnx")
        assert load(tmp_path / "best.onnx").opset
        assert (tmp_path / "best.onnx").stat().st_size == pytest.approx(answer["measured"]["bytes"], rel=0.02)
    finally:
        pool.close()
    assert all(worker.process.returncode is not None for worker in pool._workers)


def test_what_cannot_be_used_is_said_by_the_process_as_here(job: Job, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    pool = Processes(table_of(replace(job, data=str(tmp_path / "bad.npz"))), Path(), 1)
    try:
        with pytest.raises(DataError):
            pool.source()
    finally:
        pool.close()


# -- a cluster ---------------------------------------------------------------------------------------------------------


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """A scheduler and workers, each a process."""
    with distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        memory_limit=0,
        local_directory=os.environ.get("TMPDIR", "/tmp"),
        silence_logs=50,
    ) as found:
        yield found


def test_a_cluster_loses_no_trial_when_a_worker_dies(job: Job, tmp_path: Path) -> None:
    """The real thing: a scheduler and two workers, one killed in the middle of its trial."""
    with cluster(2) as dask:
        pool = Cluster(dask.scheduler_address, job)
        try:
            ledger = fakes.ledger(tmp_path / "s.db")
            run = _Run(job, ledger.space, ledger, pool, strategy("random"), 4, None, lambda text: None)
            killed = []
            submit = pool.submit

            def and_kill(number: int, order: dict[str, Any]) -> None:
                submit(number, order | {"spec": SMALL.replace("round", ("round", "mse")[number % 2])})
                if number == 1:
                    pids = pool._client.run(os.getpid)
                    killed.append(next(iter(pids.values())))
                    os.kill(killed[0], signal.SIGKILL)

            pool.submit = and_kill  # type: ignore[method-assign]
            run.all(fakes.SILENT)
            assert killed
            assert [row.number for row in ledger.finished] == sorted({row.number for row in ledger.finished})
            assert len(ledger.finished) == 4
            assert all(row.state == "measured" for row in ledger.finished)
            assert not ledger.running and not ledger.waiting
            last = ledger.finished[-1]
            pool.write(last.number, last.spec, tmp_path / "near.onnx")
            assert pool._here._opened is None, "a worker of this machine has the graph at hand"
            pool._near.clear()  # as if it had been tried elsewhere
            pool.write(last.number, last.spec, tmp_path / "here.onnx")
            assert (tmp_path / "near.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()
        finally:
            pool.close()


def test_workers_of_other_versions_and_empty_clusters_are_refused_by_name(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters.versions_there, "installed", lambda names: dict.fromkeys(names, "0.0.1"))
    with pytest.raises(EnvironmentLacksError, match=r"tcp://w1 has other packages: .*onnxcomp 9 \(here 0.0.1\)"):
        clusters._same_versions(FakeClient({"tcp://w1": {"onnxcomp": "9"}}), "tcp://s")
    with pytest.raises(EnvironmentLacksError, match="onnx missing"):
        clusters._same_versions(FakeClient({"tcp://w1": {"onnxcomp": "0.0.1"}}), "tcp://s")
    with pytest.raises(EnvironmentLacksError, match="no worker"):
        clusters._same_versions(FakeClient({}), "tcp://s")


class FakeClient:
    """Workers that say what they are told to."""

    def __init__(self, told: dict[str, dict[str, str]]) -> None:
        self.told = told

    def run(self, function: Any, names: list[str]) -> dict[str, dict[str, str]]:
        return self.told


def test_a_scheduler_that_cannot_be_reached_is_an_error_of_three_lines(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", "1s")
    with pytest.raises(EnvironmentLacksError) as caught:
        Cluster("tcp://127.0.0.1:9", job)
    assert len(str(caught.value).splitlines()) == 3


def test_files_are_found_by_their_hashes_wherever_they_lie(job: Job, tmp_path: Path) -> None:
    order = order_of(job, "key") | {"folder": str(tmp_path / "nowhere")}
    order["files"] = {Path(path).name: sha for path, sha in order["files"].items()}
    order["table"]["path"], order["table"]["data"] = job.model.name, "few.npz"
    table = found_table(order, [job.model.parent, tmp_path])
    assert table["path"] == str(job.model) and table["data"] == str(tmp_path / "few.npz")
    (tmp_path / "few.npz").write_bytes(b"others")
    with pytest.raises(DataError, match=r"no few.npz of hash"):
        found_table(order, [job.model.parent, tmp_path])
    assert len(json.dumps(order)) < 4096, "an order travels, not the files"


# -- the whole command -------------------------------------------------------------------------------------------------


def command(job: Job, *more: str) -> Any:
    words = ["search", str(job.model), "--data", str(job.data), "--objective", "size", "-o", str(job.output)]
    words += ["--calib-samples", "32", "--no-bench", "--without", "distill", "--without", "mixed-precision", *more]
    return CliRunner().invoke(group, words)


def test_the_command_writes_the_best_its_proof_its_settings_and_the_front(job: Job, tmp_path: Path) -> None:
    places = ["--json", str(tmp_path / "s.json"), "--html", str(tmp_path / "s.html")]
    done = command(job, "--max-drop", "0.05", "--trials", "2", *places)
    assert done.exit_code == 0 or done.return_value == 0, done.output
    told = json.loads((tmp_path / "s.json").read_text())
    assert len(told["trials"]) == 2 and told["best"] in told["front"]
    assert (tmp_path / "out.onnx").stat().st_size < 0.5 * job.model.stat().st_size
    for name in ("out.json", "out.toml", "out.search.db", "s.html"):
        assert (tmp_path / name).is_file(), name
    again = command(job, "--max-drop", "0.05", "--trials", "2", *places)
    assert json.loads((tmp_path / "s.json").read_text()) == told, again.output


def test_the_same_seed_and_recorded_times_find_the_same_model_interrupted_or_not(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "TRIAL_SECONDS", 0.02)
    timed = replace(job, objective="latency", bench=True, bench_seconds=0.05, cost_table=tmp_path / "times.json")
    kept = ("quantize-weights", "store-weights", "clip-weights")
    keys = SearchKeys(workers=0, without=tuple(name for name in registry.BUILTIN if name not in kept))

    def searched(name: str, *trials: int) -> Found:
        (tmp_path / name).mkdir()
        there = replace(timed, output=tmp_path / name / "out.onnx")
        return [search(there, replace(keys, trials=count)) for count in trials][-1]

    first = searched("first", 6)
    table = json.loads((tmp_path / "times.json").read_text())["entries"]
    assert any(key.startswith("comparison") for key in table)
    again = searched("again", 4, 6)
    assert [row.spec for row in again.rows] == [row.spec for row in first.rows]
    assert [row.measured and row.measured.latency_ratio for row in again.rows] == [
        row.measured and row.measured.latency_ratio for row in first.rows
    ]
    assert again.taken is not None and first.taken is not None and again.taken.spec == first.taken.spec
    assert again.job.out.read_bytes() == first.job.out.read_bytes()
    assert json.loads((tmp_path / "times.json").read_text())["entries"].keys() == table.keys(), "nothing was timed anew"


def test_another_budget_leaves_the_model_of_the_study_before_until_its_own_end(job: Job) -> None:
    keys = SearchKeys(trials=1, workers=0, without=("distill", "mixed-precision"))
    first = search(job, keys)
    assert first.taken is not None and first.taken.measured is not None and first.report is not None
    assert first.taken.measured.bytes == first.report.after.bytes == job.out.stat().st_size, "one size of one model"
    (told,) = (line for line in lines(first) if line.startswith("best: "))
    assert f"{first.report.accuracy.metric} " in told if first.report.accuracy is not None else False
    before, said = job.out.read_bytes(), []

    def tell(line: str) -> None:
        said.append(line)
        assert job.out.read_bytes() == before

    second = search(replace(job, budget=Budget(max_drop=0.06)), keys, tell=tell)
    assert "not one of those kept there before (size within max_drop 0.05)" in said[0]
    assert said[1].startswith(f"warning: {job.out} (") and said[2].startswith("trial ")
    assert any("was replaced" in note for note in second.notes)
    assert job.out.read_bytes() != before  # it says which budget it keeps
    again = list[str]()
    search(replace(job, budget=Budget(max_drop=0.06)), keys, tell=again.append)
    assert len(again) == 1 and again[0].startswith("resuming: 1 trial done; size within max_drop 0.06")


def test_a_budget_that_nothing_meets_ends_in_exit_10_with_the_nearest_beside(job: Job) -> None:
    found = search(
        replace(job, budget=Budget(max_drop=-0.5)), SearchKeys(trials=1, without=("distill", "mixed-precision"))
    )
    assert found.exit_code == 10
    assert found.best is None and found.taken is not None
    assert job.rejected.is_file() and not job.out.exists()


def test_a_budget_without_labels_is_refused_before_any_work(job: Job, tmp_path: Path) -> None:
    with np.load(str(job.data)) as arrays:
        np.savez(tmp_path / "bare.npz", images=arrays["images"])
    with pytest.raises(DataError, match="max-drop"):
        search(replace(job, data=str(tmp_path / "bare.npz")), SearchKeys(trials=1))
