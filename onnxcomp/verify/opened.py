"""What is known of a model that much is asked about? The file is read, opened and run on the same samples once."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile as TemporarySpool
from typing import Any

from onnxcomp.data.dataset import Samples
from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.io import model_files, read
from onnxcomp.graph.ir import Graph
from onnxcomp.runtime.acceleration import PLAIN, Acceleration
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.session import Array, Session, open_session
from onnxcomp.verify.tasks.tails import tails_of

OPEN_BYTES = 128 << 20  # a larger model is not held open: opening it again costs less than its memory
SPOOL_BYTES = 64 << 20
KEPT_BYTES, FREE_SHARE = 1 << 30, 0.25  # answers kept: at most so many bytes, and so much of what the disk has free


@dataclass(frozen=True)
class Given:
    """What a model gave for one feed. `step`, `carried`: as in `Answer`, of a stateful model's sequence."""

    outputs: dict[str, Array]
    step: int | None = None
    carried: frozenset[str] = frozenset()


class Recording:
    """What a model gave, feed by feed, on disk where it is large."""

    def __init__(self, folder: Path | None = None) -> None:
        self._spool: Any = TemporarySpool(max_size=SPOOL_BYTES, dir=None if folder is None else str(folder))  # noqa: SIM115

    @property
    def bytes(self) -> int:
        """How much was written."""
        found: int = self._spool.tell()
        return found

    def add(self, given: Given) -> None:
        """Write what one feed gave."""
        pickle.dump(given, self._spool, protocol=pickle.HIGHEST_PROTOCOL)

    def replay(self) -> Iterator[Given]:
        """All of it again, in order; nothing is added meanwhile."""
        end = self.bytes
        try:
            self._spool.seek(0)
            while self._spool.tell() < end:
                yield pickle.load(self._spool)
        finally:
            if not self._spool.closed:  # whoever was interrupted closes it before the reader of it ends
                self._spool.seek(end)

    def close(self) -> None:
        """Give its memory and its file back."""
        self._spool.close()


class OpenedModel:
    """A model file, and what reading, opening and running it brought so far.

    Args:
        path: the .onnx file.
        graph: what is in it, where that is at hand.
        keep_initializer_inputs: as for `load`.
        folder: where answers to samples are kept on disk for whoever asks again; None to keep none.

    Raises:
        ModelError: by what is asked first, where the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        graph: Graph | None = None,
        keep_initializer_inputs: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.path, self.folder = path, folder
        self._keep_inputs = keep_initializer_inputs
        if graph is not None:
            self.graph = graph
        self._sessions: dict[Hashable, Session] = {}
        self._recordings: dict[Hashable, tuple[Any, Recording]] = {}
        self.batches: dict[Hashable, bool] = {}  # whether samples of a data set run together

    @classmethod
    def of(cls, model: Path | OpenedModel) -> OpenedModel:
        """A model that may be opened already."""
        return model if isinstance(model, OpenedModel) else cls(model)

    @cached_property
    def _read(self) -> tuple[Graph, list[Path]]:
        return read(self.path, keep_initializer_inputs=self._keep_inputs)

    def read(self) -> None:
        """Read all of the file now, where that is still to be done.

        Raises:
            ModelError: as `load`.
        """
        self._read  # noqa: B018 (kept)

    @cached_property
    def graph(self) -> Graph:
        """What is in the file; nobody changes it."""
        return self._read[0]

    @property
    def files(self) -> list[Path]:
        """The .onnx file and the external data files it refers to."""
        return self._read[1] if "_read" in self.__dict__ else self._files

    @cached_property
    def _files(self) -> list[Path]:
        return model_files(self.path)

    @cached_property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.files)

    @cached_property
    def tails(self) -> dict[str, tuple[str, ...]]:
        """Types of the last operators before each output; nothing where the file is not valid."""
        try:
            return tails_of(self.graph)
        except OnnxcompError:
            return {}

    def plain(self) -> Session:
        """A session that computes as the file says, in little memory; the same one until `let_go`.

        Raises:
            ModelError: as `open_session`.
        """
        if None not in self._sessions:
            self._sessions[None] = open_session(self.path, optimize=False, lean=True)
        return self._sessions[None]

    def session(
        self, provider: str = "cpu", threads: int = 0, *, lean: bool = False, acceleration: Acceleration = PLAIN
    ) -> Session:
        """A session that runs as fast as it can; the same one where the model is small enough to be held open.

        Raises:
            ModelError, EnvironmentLacksError: as `open_session`.
        """
        threads = threads or usable_cores()
        key = (provider, threads, lean, acceleration)
        if key in self._sessions:
            return self._sessions[key]
        found = open_session(self.path, provider=provider, threads=threads, lean=lean, acceleration=acceleration)
        if not lean and self.bytes <= OPEN_BYTES:
            self._sessions[key] = found
        return found

    def let_go(self) -> None:
        """Close the plain session, where one is open; what still holds it keeps it."""
        self._sessions.pop(None, None)

    def close(self) -> None:
        """Close all sessions, and forget all answers."""
        self._sessions.clear()
        for _, recording in self._recordings.values():
            recording.close()
        self._recordings.clear()

    # -- answers to samples --

    def recorded(self, samples: object, how: Hashable) -> Recording | None:
        """What the model gave for these samples, run in this way; None where that is not known."""
        found = self._recordings.get((*_mark(samples), how)) if isinstance(samples, Samples) else None
        return None if found is None else found[1]

    def record(self) -> Recording | None:
        """A new recording, where answers are kept and there is room for more."""
        return None if self.folder is None or not self.room() else Recording(self.folder)

    def room(self, recording: Recording | None = None) -> bool:
        """Whether there is room for more answers."""
        assert self.folder is not None
        kept = sum(found.bytes for _, found in self._recordings.values())
        kept += 0 if recording is None else recording.bytes
        return kept < min(KEPT_BYTES, FREE_SHARE * (shutil.disk_usage(self.folder).free + kept))

    def keep(self, samples: object, how: Hashable, recording: Recording) -> bool:
        """Keep what the model gave for all of these samples, if it may be kept; whether it was."""
        if self.folder is None or not isinstance(samples, Samples) or not self.room(recording):
            return False
        self._recordings[*_mark(samples), how] = (samples.dataset, recording)  # held, so that its id stays its own
        return True


def _mark(samples: Samples) -> tuple[int, bytes]:
    """What tells samples apart within one run."""
    return id(samples.dataset), samples.indices.tobytes()
