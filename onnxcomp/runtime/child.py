"""How is something done in a process of its own? JSON orders in, JSON answers out, and errors as they are here.

A process for what may crash, holds memory for as long as it lives, or must not share it with what came before. One that
is asked once gets its order whole (`ask`, `serve`); one that goes on gets a line an order, and ends when its parent
does (`orders`, `Answers`). The training worker speaks for itself: it runs where onnxcomp is not installed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from onnxcomp import errors
from onnxcomp.errors import ModelError, OnnxcompError

INTERRUPTED = 130


def ask(module: str, order: dict[str, Any], *, where: str, doing: str) -> dict[str, Any]:
    """Run `python -m module`, which calls `serve`; its answer.

    Args:
        where: what an error is about, such as the model's file.
        doing: what the process does, for a message: "loads the model".

    Raises:
        OnnxcompError: the one that was raised there; ModelError where the process died.
    """
    command = [sys.executable, "-P", "-m", module]
    done = subprocess.run(command, input=json.dumps(order).encode(), stdout=subprocess.PIPE, check=False)
    answer: dict[str, Any] = {}
    with suppress(ValueError):
        answer = json.loads(done.stdout)
    if error := answer.pop("error", None):
        kind: type[OnnxcompError] = getattr(errors, error["kind"], OnnxcompError)
        raise kind(error["what"], where=error["where"], do=error["do"])
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode or not answer:
        raise ModelError(f"the process that {doing} ended with {ending(done.returncode)}", where=where, do=hint(done))
    return answer


def death(module: str, order: dict[str, Any]) -> str:
    """Run `python -m module`, which calls `serve`, and say how it ended, such as `SIGABRT`; empty where it answered."""
    command = [sys.executable, "-P", "-m", module]
    done = subprocess.run(
        command, input=json.dumps(order).encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return ending(done.returncode) if done.returncode else ""


class Answers:
    """What was standard output: from now on what a user's function or a library prints goes to standard error."""

    def __init__(self) -> None:
        self._channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, answer: dict[str, Any]) -> None:
        """Write one answer, a line."""
        self._channel.write(json.dumps(answer) + "\n")
        self._channel.flush()


def orders() -> Iterator[dict[str, Any]]:
    """Orders from standard input, one a line.

    Standard input ends when the parent does, however that came; nobody waits for an answer then, and the process ends.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        yield json.loads(lines.get())


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    rest = b""
    # not through sys.stdin, whose lock a thread that waits would hold when the interpreter ends
    while part := os.read(0, 1 << 16):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(INTERRUPTED)


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """The child's side of `ask`."""
    answers = Answers()
    try:
        answer = work(json.loads(sys.stdin.buffer.read()))
    except OnnxcompError as error:
        kind = type(error).__name__
        answer = {"error": {"kind": kind, "what": error.what, "where": error.where, "do": error.do}}
    except KeyboardInterrupt:
        return INTERRUPTED
    answers.send(answer)
    return 0


def ending(code: int) -> str:
    """How a process ended, in words."""
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"


def hint(done: subprocess.CompletedProcess[bytes]) -> str:
    """What to do about a process that died."""
    return "it may have run out of memory" if ending(done.returncode) == "SIGKILL" else "see what it printed above"
