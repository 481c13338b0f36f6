"""Where do trials run? In this process, or in processes of their own that live as long as the search.

What travels is a job and the spec strings of trials, as lines of JSON; a graph never does. A process that dies takes
one trial with it, and another one takes its place.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from onnxcomp import errors
from onnxcomp.errors import EnvironmentLacksError, OnnxcompError
from onnxcomp.job import Job
from onnxcomp.lock import file_lock
from onnxcomp.runtime.child import ending
from onnxcomp.runtime.progress import SILENT
from onnxcomp.search.evaluate import Trials, evaluate
from onnxcomp.work.study import Study

DIED = "died"
Answer = dict[str, Any]


class Pool(Protocol):
    """Runs trials."""

    @property
    def capacity(self) -> int:
        """How many trials may be under way at a time."""

    def source(self) -> dict[str, Any]:
        """Bytes and macs of the source, and what is doubtful about the data.

        Raises:
            OnnxcompError: the study cannot be opened.
        """

    def submit(self, number: int, order: dict[str, Any]) -> None:
        """Begin a trial."""

    def answer(self, seconds: float | None) -> tuple[int, Answer] | None:
        """The next trial that ended; None where none did in that time."""

    def write(self, number: int, spec: str, path: Path) -> None:
        """Write what a spec makes of the source, whole or not at all.

        Args:
            number: of the trial that tried it.

        Raises:
            OnnxcompError: it cannot be written.
        """

    def close(self) -> None:
        """End what runs."""


def timing_lock() -> Path:
    """The file whose lock is held while something is timed on this machine, whichever search that is of."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    return Path(tempfile.gettempdir()) / f"onnxcomp-timing-{user}.lock"


def alone() -> AbstractContextManager[object]:
    """To be entered around a timing."""
    return file_lock(timing_lock())


class OneStudy:
    """An open study as a search asks it."""

    def __init__(self, study: Study) -> None:
        self.study, self.job = study, study.job
        self.selecting = len(study.material.select)
        self.trial, self.write = study.trial, study.write


def source_of(study: Study) -> dict[str, Any]:
    """The figures that trials are compared with, and what is doubtful about the data that they rest on."""
    found: dict[str, Any] = {"bytes": study.stats.bytes, "macs": study.stats.macs}
    if (metric := study.material.metric) is not None:
        found |= {"metric": metric.name, "higher_is_better": metric.higher_is_better}
    return found | {"doubts": list(study.material.doubts)}


class Inline:
    """Trials in this process, one at a time."""

    capacity = 1

    def __init__(self, job: Job) -> None:
        self._job, self._stack = job, ExitStack()
        self._opened: Study | None = None
        self._orders: list[tuple[int, dict[str, Any]]] = []

    @property
    def _study(self) -> Study:
        if self._opened is None:
            self._opened = self._stack.enter_context(Study.open(self._job, progress=SILENT, alone=alone))
        return self._opened

    def source(self) -> dict[str, Any]:
        """As `Pool` says."""
        return source_of(self._study)

    def submit(self, number: int, order: dict[str, Any]) -> None:
        """As `Pool` says; it runs when the answer is asked for."""
        self._orders.append((number, order))

    def answer(self, seconds: float | None) -> tuple[int, Answer] | None:
        """As `Pool` says; a trial that is begun is waited for."""
        del seconds
        if not self._orders:
            return None
        number, order = self._orders.pop(0)
        study: Trials = OneStudy(self._study)
        return number, evaluate(study, order)

    def write(self, number: int, spec: str, path: Path) -> None:
        """As `Pool` says."""
        del number
        self._study.write(spec, path)

    def close(self) -> None:
        """As `Pool` says."""
        self._stack.close()


@dataclass
class _Worker:
    """A process, and the trial that it is at. `wrote`: answers to what is no trial."""

    process: subprocess.Popen[bytes]
    number: int | None = None
    last: int | None = None
    other: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)


class Processes:
    """Trials in processes of their own.

    Args:
        table: the job, as the table of a model in a configuration.
        folder: what its paths are relative to.
    """

    def __init__(self, table: dict[str, Any], folder: Path, count: int) -> None:
        self.capacity = count
        self._table, self._folder = table, folder
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._closed = False
        self._workers = [self._start() for _ in range(count)]

    def source(self) -> dict[str, Any]:
        """As `Pool` says."""
        return self._asked(self._workers[0], {"op": "source"})

    def submit(self, number: int, order: dict[str, Any]) -> None:
        """As `Pool` says."""
        worker = next(worker for worker in self._workers if worker.number is None)
        worker.number = worker.last = number
        self._send(worker, {"op": "trial", "number": number, **order})

    def answer(self, seconds: float | None) -> tuple[int, Answer] | None:
        """As `Pool` says."""
        try:
            number, answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return None
        for index, worker in enumerate(self._workers):
            if worker.number == number:
                worker.number = None
                if answer["state"] == DIED:
                    self._workers[index] = self._start()
        if error := answer.get("error"):
            raise raised(error)
        return number, answer

    def write(self, number: int, spec: str, path: Path) -> None:
        """As `Pool` says; by the process that tried it, which has the graph at hand, if it is idle."""
        idle = [worker for worker in self._workers if worker.number is None]
        worker = next((worker for worker in idle if worker.last == number), idle[0])
        self._asked(worker, {"op": "write", "spec": spec, "path": str(path)})

    def close(self) -> None:
        """As `Pool` says."""
        self._closed = True
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "onnxcomp.search.worker"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        worker = _Worker(process)
        threading.Thread(target=self._read, args=(worker,), daemon=True).start()
        self._send(worker, {"table": self._table})
        return worker

    def _read(self, worker: _Worker) -> None:
        """Hand on what a process says, until it ends."""
        assert worker.process.stdout is not None
        with suppress(ValueError, OSError):  # closed by `close`
            for line in worker.process.stdout:
                answer = json.loads(line)
                if "number" in answer:
                    self._answers.put((answer.pop("number"), answer))
                else:
                    worker.other.put(answer)
        code = worker.process.wait()
        if self._closed:
            return
        why = f"its process ended with {ending(code)}"
        if worker.number is not None:
            self._answers.put((worker.number, {"state": DIED, "measured": None, "why": why, "seconds": 0.0}))
        worker.other.put({"error": {"kind": "EnvironmentLacksError", "what": why, "where": "a worker", "do": _LOOK}})

    def _asked(self, worker: _Worker, order: dict[str, Any]) -> dict[str, Any]:
        self._send(worker, order)
        answer = worker.other.get()
        if error := answer.get("error"):
            raise raised(error)
        return answer

    @staticmethod
    def _send(worker: _Worker, order: dict[str, Any]) -> None:
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # that it died is said by the one who reads
            worker.process.stdin.write(json.dumps(order).encode() + b"\n")
            worker.process.stdin.flush()


_LOOK = "see what it printed above; it may have run out of memory"


def raised(error: dict[str, str]) -> OnnxcompError:
    """The error that another process told."""
    kind: type[OnnxcompError] = getattr(errors, error["kind"], EnvironmentLacksError)
    return kind(error["what"], where=error["where"], do=error["do"])


# -- the other side ----------------------------------------------------------------------------------------------------


def serve(orders: Iterator[dict[str, Any]], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer orders on one study, which is opened with the first that needs it.

    Args:
        orders: the first tells the job.
    """
    from onnxcomp.config import entry_of

    first = next(orders, None)
    if first is None:
        return
    with ExitStack() as stack:
        study: Study | None = None
        for order in itertools.chain(orders):
            number = {"number": order["number"]} if "number" in order else {}
            try:
                if study is None:
                    study = stack.enter_context(Study.open(entry_of(first["table"]).job, alone=alone))
                answer(_done(study, order) | number)
            except OnnxcompError as error:
                told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "do": error.do}
                answer({"state": "failed", "error": told} | number)


def _done(study: Study, order: dict[str, Any]) -> dict[str, Any]:
    if order["op"] == "source":
        return source_of(study)
    if order["op"] == "write":
        study.write(order["spec"], Path(order["path"]))
        return {"written": order["path"]}
    trials: Trials = OneStudy(study)
    return evaluate(trials, order)
