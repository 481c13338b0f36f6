"""How does the worker speak? JSON lines, one event each, with step events thinned out."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTOCOL = 1
STEP_EVENTS_A_SECOND = 5.0

Array = NDArray[Any]


class RefusedError(Exception):
    """What was asked cannot be done, and that is no defect of the worker.

    Args:
        kind: `model`, `data`, `gradient`, `diverged` or `memory`; the client chooses its error class by it.
    """

    def __init__(self, kind: str, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.event = {"event": "error", "kind": kind, "what": what, "where": where, "do": do}


class Channel:
    """The pipe to the parent."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what the runtime prints does not mix with the events
        self._last = 0.0
        self._guard = threading.Lock()

    def send(self, event: str, **fields: Any) -> None:
        """One event; NaN and infinity become null."""
        line = json.dumps({"event": event, **fields}, allow_nan=False, default=_plain)
        with self._guard:
            self._pipe.write(line + "\n")
            self._pipe.flush()

    def send_step(self, *, last: bool, **fields: Any) -> None:
        """A step event, unless one was sent a moment ago; the last one is always sent."""
        now = time.monotonic()
        if last or now - self._last >= 1 / STEP_EVENTS_A_SECOND:
            self._last = now
            self.send("step", **fields)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value).__name__)


def opened(folder: str, described: dict[str, Any]) -> Array:
    """An array of the job: a .npy file in its folder, or a piece of any file, mapped either way."""
    if "npy" in described:
        found: Array = np.load(os.path.join(folder, described["npy"]), mmap_mode="r")  # noqa: PTH118
        return found
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    return np.memmap(described["file"], dtype, "r", described["offset"], shape)
