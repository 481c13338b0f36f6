"""How does this process deal with the worker? It starts it, reads its events, and says in three lines how it ended."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from onnxcomp.distill.environment import Environment, clean_environment
from onnxcomp.errors import (
    DataError,
    EnvironmentLacksError,
    ModelError,
    OnnxcompError,
    TrainingError,
    UsageError,
)
from onnxcomp.runtime.progress import Progress

Events: TypeAlias = "queue.Queue[dict[str, Any] | None]"

PROTOCOL = 1
IDLE_SECONDS = 900.0  # without an event; one step of the largest model that fits a machine takes less
GRACE_SECONDS = 5.0  # for a worker that was told to end
START = Path(__file__).with_name("worker") / "start.py"

_ERRORS: dict[str, type[OnnxcompError]] = {
    "model": ModelError,
    "gradient": ModelError,
    "data": DataError,
    "diverged": UsageError,
    "memory": EnvironmentLacksError,
    "environment": EnvironmentLacksError,
}
_CHATTER = re.compile(r"\[[VIW]:onnxruntime:")
_SIGNALS = {
    "SIGKILL": "it may have run out of memory: train with a smaller batch",
    "SIGFPE": "a kernel divided by zero: check that no batch and no size in the graph is empty",
    "SIGSEGV": "the training runtime has a defect in one of these operators: freeze what is not needed, or report it",
}


class Work:
    """One job, done by a worker process.

    Args:
        folder: its scratch folder, where the job's files lie and where its own words go.
        job: what to do, see `onnxcomp/distill/worker/main.py`.
    """

    def __init__(
        self, runtime: Environment, folder: Path, job: dict[str, Any], *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._folder = folder
        self._idle = idle_seconds
        self._words = folder / "worker.txt"
        self._job = job | {"protocol": PROTOCOL, "provider": runtime.provider}
        self._runtime = runtime
        self._step = 0
        self._last: dict[str, Any] | None = None
        self._interrupted = False

    def run(self, progress: Progress, text: str, *, total: int, keep_on_interrupt: bool = False) -> dict[str, Any]:
        """The last event of the job.

        Raises:
            OnnxcompError: of the class that fits what went wrong.
            KeyboardInterrupt: Ctrl-C, after the worker has finished its step and written its checkpoint.
        """
        with self._words.open("wb") as words:
            process = self._start(words)
        events: Events = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, events), daemon=True)
        reader.start()
        try:
            with self._interruptible(process):
                done = self._follow(process, events, progress, text, total)
        finally:
            self._end(process)
            reader.join()
        if self._interrupted and not keep_on_interrupt:
            raise KeyboardInterrupt
        return done

    def _start(self, words: Any) -> subprocess.Popen[bytes]:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = subprocess.Popen(
            [str(self._runtime.python), "-E", "-s", str(START)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env=clean_environment() | single,
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we tell the worker
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(self._job).encode() + b"\n")
            process.stdin.flush()
        return process

    def _follow(
        self, process: subprocess.Popen[bytes], events: Events, progress: Progress, text: str, total: int
    ) -> dict[str, Any]:
        shown = _Shown(text)
        for step in progress.track(self._steps(events, shown), total or None, shown):
            self._step = step
        if self._last is None:
            process.wait()
            raise self._died(process.returncode)
        if self._last["event"] == "error":
            raise _error(self._last, self._where())
        return self._last

    def _steps(self, events: Events, shown: _Shown) -> Iterator[int]:
        """The number of every training step done, until the event that ends the job, or their end without one."""
        told = 0
        while (event := self._next(events)) is not None:
            shown.take(event)
            if event["event"] in ("step", "resumed"):
                yield from range(told + 1, event["step"] + 1)
                told = event["step"]
            elif event["event"] in ("done", "error"):
                self._last = event
                return

    def _next(self, events: Events) -> dict[str, Any] | None:
        deadline = time.monotonic() + self._idle
        while True:
            try:
                return events.get(timeout=min(1.0, max(0.01, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        f"the training worker has said nothing for {self._idle:.0f} s, and was ended",
                        where=self._where(),
                        do="train with a smaller batch or a smaller model, or report it",
                    ) from None

    @contextmanager
    def _interruptible(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Ctrl-C asks the worker to finish its step and write; a second one does not wait for that."""
        if threading.current_thread() is not threading.main_thread() or os.name == "nt":
            yield
            return

        def asked(number: int, frame: object) -> None:
            del number, frame
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            process.send_signal(signal.SIGINT)

        before = signal.signal(signal.SIGINT, asked)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Nothing of the worker stays behind: it ends by itself when its standard input closes, or is killed."""
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()

    def _died(self, code: int) -> OnnxcompError:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        words = _last_words(self._words.read_text(encoding="utf-8", errors="replace"))
        said = f"; its last words: {words}" if words else ""
        what = f"the training worker ended with {name}{said}"
        do = _SIGNALS.get(name, "report it; nothing was changed on disk")
        kind = EnvironmentLacksError if name == "SIGKILL" else TrainingError
        return kind(what, where=self._where(), do=do)

    def _where(self) -> str:
        return f"after step {self._step}" if self._step else "before the first step"


class _Shown:
    """The words beside the progress bar: what is done, the loss, how fast."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._loss = ""
        self._held_out = ""
        self._speed = ""
        self._at = (0, time.monotonic())

    def take(self, event: dict[str, Any]) -> None:
        """Look at an event."""
        if event["event"] == "step":
            self._loss = f", loss {event['loss']:.4g}"
            step, since = self._at
            passed = time.monotonic() - since
            if passed >= 1 and event["step"] > step:
                self._speed = f", {(event['step'] - step) / passed:.3g} steps/s"
                self._at = (event["step"], time.monotonic())
        elif event["event"] == "checking":
            self._speed = ", proving the gradient"
        elif event["event"] == "check":
            self._speed = ""
        elif event["event"] == "held_out":
            self._held_out = f", held-out {event['loss']:.4g}"

    def __call__(self) -> str:
        return self._text + self._loss + self._held_out + self._speed


def _read(process: subprocess.Popen[bytes], events: Events) -> None:
    """Events of the worker, and None at the end of them."""
    assert process.stdout is not None
    for line in process.stdout:
        with suppress(ValueError):
            events.put(json.loads(line))
    events.put(None)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _error(event: dict[str, Any], when: str) -> OnnxcompError:
    kind = _ERRORS.get(event["kind"], TrainingError)
    return kind(event["what"], where=event["where"] or f"training, {when}", do=event["do"])


def _last_words(text: str) -> str:
    """The last line that a process said, the training runtime's own chatter aside."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _CHATTER.search(line)]
    return lines[-1][:300] if lines else ""
