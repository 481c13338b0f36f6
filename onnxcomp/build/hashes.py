"""What are the contents of files and folders? SHA-256, remembered by size and times, without reading them again.

A remembered hash counts only while the file's size, time of change (mtime), time of change of its record (ctime) and
inode are the same to the nanosecond. Two holes of that rule are closed: a tool that sets the mtime back (rsync, tar, cp
-p) cannot set the ctime back; and a file that was written within the clock's grain of being hashed may change again
without a trace, so hashes of files younger than `GRAIN_NS` when they were hashed are not remembered (git calls such
files racy, Documentation/technical/racy-git.txt). Where anything differs the file is read; equal contents then count as
unchanged, whatever their times.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError, OnnxcompError
from onnxcomp.files import atomic_write, json_of, sha256_of

GRAIN_NS = 2_000_000_000  # FAT keeps mtimes to two seconds, the coarsest of the file systems in use


@dataclass
class Hashes:
    """Hashes of files below a folder, kept in a file between runs.

    Attributes:
        folder: what relative paths are relative to.
        file: where they are kept; a missing or damaged one is an empty one.
        read_bytes: how much was read for hashing in this run.
    """

    folder: Path
    file: Path
    read_bytes: int = 0
    _known: dict[str, list[Any]] = field(default_factory=dict)
    _derived: dict[str, list[str]] = field(default_factory=dict)
    _changed: bool = False

    def __post_init__(self) -> None:
        with suppress(DataError):
            content = json_of(self.file, DataError, "build again")
            files, derived = (content.get(key) if isinstance(content, dict) else None for key in ("files", "derived"))
            if isinstance(files, dict) and isinstance(derived, dict):
                self._known = {name: marks for name, marks in files.items() if _sound(marks)}
                self._derived = {key: names for key, names in derived.items() if _names(names)}

    def of(self, path: Path) -> str:
        """SHA-256 of a file's bytes; of a folder's: of its files' names and hashes, in order of the names.

        Raises:
            FileNotFoundError, OSError: it is missing or cannot be read.
        """
        full = self.folder / path
        if not full.is_dir():
            return self._of_file(full)
        digest = hashlib.sha256()
        for name in sorted(_files_below(full)):
            digest.update(f"{name}\0{self._of_file(full / name)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def derived(self, path: Path, topic: str, find: Callable[[], list[str]]) -> list[str]:
        """What `find` reads out of a file, remembered for its contents.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        key = f"{self.of(path)} {topic}"
        if key not in self._derived:
            self._derived[key] = find()
            self._changed = True
        return self._derived[key]

    def save(self) -> None:
        """Keep what was found; a folder that cannot be written costs time at the next run, nothing else."""
        if self._changed:
            with suppress(OnnxcompError), atomic_write(self.file) as out:
                out.write(json.dumps({"files": self._known, "derived": self._derived}).encode())

    def _of_file(self, path: Path) -> str:
        name = str(path)
        before = _marks(path)
        known = self._known.get(name)
        if known is not None and known[0] == before:
            found: str = known[1]
            return found
        began_ns = time.time_ns()
        digest = sha256_of(path)
        self.read_bytes += before[0]
        settled = max(before[1], before[2]) < began_ns - GRAIN_NS
        if settled and _marks(path) == before:
            self._known[name] = [before, digest]
            self._changed = True
        elif self._known.pop(name, None) is not None:
            self._changed = True
        return digest


def _sound(value: Any) -> bool:
    """Whether an entry of the file is [[size, mtime, ctime, inode], SHA-256]."""
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and isinstance(value[1], str)):
        return False
    return len(value[0]) == 4 and all(isinstance(part, int) for part in value[0])


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _marks(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _files_below(folder: Path) -> list[str]:
    """Relative names of all files, through links to folders too, each real folder once."""
    names: list[str] = []
    seen: set[str] = set()
    for where, below, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        names += [(Path(where) / name).relative_to(folder).as_posix() for name in files]
    return names
