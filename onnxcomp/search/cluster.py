"""How do trials run on a cluster of Dask? A worker opens the study once; then a key and a spec string reach it.

Models and data do not travel. A worker finds each file by its hash: at the path it has here, or under its name in one
of the folders that ONNXCOMP_FILES names there. A trial whose worker dies is given to another one by the scheduler.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from distributed import Client, WorkerPlugin, get_worker

from onnxcomp.errors import DataError, EnvironmentLacksError, OnnxcompError
from onnxcomp.files import sha256_of
from onnxcomp.job import Job
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.search import versions_there
from onnxcomp.search.evaluate import Trials, evaluate
from onnxcomp.search.pool import DIED, Answer, Inline, OneStudy, alone, raised, source_of
from onnxcomp.work.key import key_of
from onnxcomp.work.study import Study

PLUGIN, CONNECT_SECONDS, FOLDERS = "onnxcomp-search", "15s", "ONNXCOMP_FILES"
WRITE_SECONDS = 120.0  # that a worker of this machine may take to write a model, before it is made here
COMPARED = ("onnxcomp", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy")  # packages that decide what a trial gives


class Cluster:
    """Trials on the workers of a scheduler.

    Raises:
        EnvironmentLacksError: the scheduler cannot be reached, or a worker lacks what it needs.
    """

    def __init__(self, address: str, job: Job) -> None:
        self._here = Inline(job)
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._futures: dict[int, Any] = {}
        self._near: dict[int, str] = {}  # workers of this machine, by the trials that they ran
        self._client = _connected(address)
        self._key = key_of(job)
        _same_versions(self._client, address)
        self._client.register_plugin(StudyPlugin(order_of(job, self._key)), name=f"{PLUGIN}-{self._key[:16]}")

    @property
    def capacity(self) -> int:
        """One trial a worker, those that join later too."""
        return max(1, len(self._client.nthreads()))

    def source(self) -> dict[str, Any]:
        """As `Pool` says, from the first worker that answers."""
        found: dict[str, Any] = json.loads(self._client.submit(ask_source, self._key, pure=False).result())
        if error := found.get("error"):
            raise raised(error)
        return found

    def submit(self, number: int, order: dict[str, Any]) -> None:
        """As `Pool` says."""
        future = self._client.submit(ask_trial, self._key, json.dumps(order), pure=False)
        self._futures[number] = future
        future.add_done_callback(lambda done: self._answers.put((number, _answer_of(done))))

    def answer(self, seconds: float | None) -> tuple[int, Answer] | None:
        """As `Pool` says."""
        try:
            number, answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        self._futures.pop(number, None)
        host, worker = answer.pop("host", None), answer.pop("worker", None)
        if host == socket.gethostname():
            self._near[number] = worker
        return number, answer

    def write(self, number: int, spec: str, path: Path) -> None:
        """As `Pool` says: by the worker that tried it where that one is on this machine, which has the graph at hand.

        Elsewhere it is made here once more, since models do not travel.
        """
        worker = self._near.get(number)
        there = worker is not None and worker in self._client.nthreads()
        if worker is None or not there or not self._written_by(worker, spec, path):
            self._here.write(number, spec, path)

    def _written_by(self, worker: str, spec: str, path: Path) -> bool:
        """Whether a worker wrote a model that lies here; one of the same host may have another disk, or be gone."""
        order = json.dumps({"spec": spec, "path": str(path.absolute())})
        asked = self._client.submit(
            ask_write, self._key, order, pure=False, workers=[worker], priority=1, allow_other_workers=False
        )
        try:
            found: str = asked.result(timeout=WRITE_SECONDS)
        except Exception:  # of the worker, of the way to it: then it is made here, and what is wrong is said by that
            asked.cancel()
            return False
        return bool(found) and path.is_file() and sha256_of(path) == found

    def close(self) -> None:
        """As `Pool` says; the workers stay."""
        for future in self._futures.values():
            future.cancel()
        self._client.close()
        self._here.close()


def order_of(job: Job, key: str) -> dict[str, Any]:
    """What a worker needs to open the same study: the job, and the hash of each of its files."""
    from onnxcomp.places import reads_of
    from onnxcomp.search.run import table_of

    table = table_of(job)
    table.pop("cost_table", None)  # a worker's times are those of its machine
    files = {str(path): sha256_of(path) for path in reads_of(job) if path.is_file() and path != job.cost_table}
    return {"table": table, "folder": str(Path.cwd()), "files": files, "key": key}


def found_table(order: Mapping[str, Any], folders: list[Path]) -> dict[str, Any]:
    """The job's table with the paths at which this machine has the files.

    Raises:
        DataError: a file is nowhere, or its bytes are others.
    """
    there: dict[str, str] = {}
    for path, sha256 in order["files"].items():
        kept = (folder / name for folder in folders for name in (path, Path(path).name))
        places = [Path(order["folder"], path), *kept]
        place = next((place for place in places if place.is_file() and sha256_of(place) == sha256), None)
        if place is None:
            raise DataError(
                f"a worker has no {path} of hash {sha256[:12]}",
                where=f"worker on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}",
                do=f"put it at the same path there, or into a folder that {FOLDERS} names for the worker",
            )
        there[path] = str(place)
    return {name: _placed(value, there, Path(order["folder"])) for name, value in order["table"].items()}


def _placed(value: Any, there: Mapping[str, str], folder: Path) -> Any:
    """A value of the table with its path as it is here; of module.py:function the module's."""
    if not isinstance(value, str):
        return value
    if value in there:
        return there[value]
    module, colon, function = value.partition(".py:")
    if colon and f"{module}.py" in there:
        return f"{there[f'{module}.py']}:{function}"
    return str(folder / value) if (folder / value).exists() else value


class StudyPlugin(WorkerPlugin):
    """What a worker holds: the study, opened with its first trial. Dask calls `setup` and `teardown`."""

    name = PLUGIN

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self._study: Study | None = None

    def setup(self, worker: Any) -> None:
        """Nothing is opened yet: a worker that gets no trial does no work."""
        self.guard, self.stack = threading.Lock(), ExitStack()
        self.threads = max(1, usable_cores() // max(1, getattr(worker, "nthreads", 1)))

    def teardown(self, worker: Any) -> None:
        """Scratch files go."""
        del worker
        self.stack.close()

    def study(self) -> Study:
        """The study.

        Raises:
            OnnxcompError: it cannot be opened, or is another one than the search's.
        """
        if self._study is None:
            from onnxcomp.config import entry_of

            folders = [Path(folder) for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
            job = entry_of(found_table(self.order, folders)).job
            study = self.stack.enter_context(Study.open(replace(job, threads=self.threads), alone=alone))
            self._study = study
        return self._study

    def __getstate__(self) -> dict[str, Any]:
        """The order alone travels."""
        return {"order": self.order, "_study": None}


def ask_trial(key: str, order: str) -> str:
    """On a worker: run a trial; JSON in and out."""
    plugin = _plugin(key)
    with plugin.guard:
        try:
            trials: Trials = OneStudy(plugin.study())
        except OnnxcompError as error:
            return json.dumps({"state": "failed", "measured": None, "why": str(error), "seconds": 0.0})
        answer = evaluate(trials, json.loads(order))
    return json.dumps(answer | {"host": socket.gethostname(), "worker": get_worker().address})


def ask_write(key: str, order: str) -> str:
    """On a worker: write the model of a spec to a path of its machine; the hash of the .onnx file."""
    plugin, asked = _plugin(key), json.loads(order)
    with plugin.guard:
        plugin.study().write(asked["spec"], Path(asked["path"]))
    return sha256_of(Path(asked["path"]))


def ask_source(key: str) -> str:
    """On a worker: the figures of the source, or the error with which the study cannot be opened."""
    plugin = _plugin(key)
    with plugin.guard:
        try:
            return json.dumps(source_of(plugin.study()))
        except OnnxcompError as error:
            told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "do": error.do}
            return json.dumps({"error": told})


def _plugin(key: str) -> StudyPlugin:
    found: Any = get_worker().plugins[f"{PLUGIN}-{key[:16]}"]
    return cast(StudyPlugin, found)


def _answer_of(done: Any) -> Answer:
    if done.status == "finished":
        answer: Answer = json.loads(done.result())
        return answer
    why = str(done.exception()) if done.status == "error" else f"it was {done.status}"
    return {"state": DIED, "measured": None, "why": why, "seconds": 0.0}


def _connected(address: str) -> Any:
    try:
        connect: Any = Client
        return connect(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # of sockets, of TLS, of addresses that are none
        raise EnvironmentLacksError(
            f"the scheduler cannot be reached: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=f"--dask {address}",
            do="check the address, and that `dask scheduler` runs there",
        ) from error


def _same_versions(client: Any, address: str) -> None:
    """Refuse workers that would give other results.

    Raises:
        EnvironmentLacksError: there is no worker, or one lacks the package or has other versions.
    """
    ours = {name: found for name in COMPARED if (found := versions_there.installed([name]).get(name))}
    for worker, theirs in sorted(_told_versions(client, address)):
        other = [
            f"{name} {theirs.get(name) or 'missing'} (here {ours.get(name) or 'missing'})"
            for name in COMPARED
            if theirs.get(name) != ours.get(name)
        ]
        if other:
            raise EnvironmentLacksError(
                f"the worker {worker} has other packages: {', '.join(other)}",
                where=f"--dask {address}",
                do="install the same versions there, and start the worker again",
            )


def _told_versions(client: Any, address: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each worker's packages, asked by a function that travels whole: the package may not be there."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(versions_there)
    try:
        found = client.run(versions_there.installed, list(COMPARED))
    finally:
        cloudpickle.unregister_pickle_by_value(versions_there)
    if not found:
        raise EnvironmentLacksError(
            "the cluster has no worker", where=f"--dask {address}", do=f"start some: dask worker {address}"
        )
    yield from found.items()
