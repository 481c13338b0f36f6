"""How does a killed run go on? One file with all that the next step depends on, replaced whole or not at all."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np

from .channel import Array


class Checkpoints:
    """Writes and reads the checkpoint of one job.

    Args:
        path: the file; empty for none.
        key: names the job; a file with another key is left alone until it is replaced.
        every_steps, every_seconds: how often `due` says yes; 0 turns either off.
    """

    def __init__(self, path: str, key: str, every_steps: int, every_seconds: float) -> None:
        self.path = path
        self._key = key
        self._steps = every_steps
        self._seconds = every_seconds
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to write after this many steps."""
        if not self.path:
            return False
        late = bool(self._seconds) and time.monotonic() - self._last >= self._seconds
        return late or bool(self._steps and step % self._steps == 0)

    def write(self, arrays: dict[str, Array], facts: dict[str, Any]) -> None:
        """Replace the file."""
        text = np.frombuffer(json.dumps({**facts, "key": self._key}).encode(), np.uint8)
        write_arrays(self.path, {**arrays, "facts": text})
        self._last = time.monotonic()

    def read(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """What an earlier run of this very job left; None where there is nothing, or something else."""
        if not self.path or not os.path.isfile(self.path):  # noqa: PTH113
            return None
        try:
            with np.load(self.path) as stored:
                arrays = {name: stored[name] for name in stored.files}
            facts: dict[str, Any] = json.loads(arrays.pop("facts").tobytes())
        except (OSError, ValueError, KeyError, EOFError):
            return None
        return (arrays, facts) if facts.get("key") == self._key else None


def write_arrays(path: str, arrays: dict[str, Array]) -> None:
    """An .npz file that appears whole or not at all."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:  # noqa: PTH123
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)  # noqa: PTH105
    finally:
        if os.path.exists(beside):  # noqa: PTH110
            os.unlink(beside)  # noqa: PTH108
