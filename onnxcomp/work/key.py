"""Which runs measure the same? One hash of everything that decides what a spec string measures to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp._version import __version__
from onnxcomp.files import sha256_of
from onnxcomp.job import Job
from onnxcomp.places import reads_of
from onnxcomp.runtime.machine import versions

# options that decide no trial's figures
BESIDE = frozenset({"passes", "recipe", "plan", "threads", "bench", "bench_seconds"})


def key_of(job: Job) -> str:
    """SHA-256 over the bytes of source, data, labels and the metric's file, the options, the seed and versions.

    What only a program can give (a function, a data set of its own) has no bytes to hash: no other run is like it then.
    """
    options = {name: value for name, value in job.options().items() if name not in BESIDE}
    files = {path.as_posix(): _hash_of(path) for path in reads_of(job) if path != job.cost_table}
    given = {name: _hash_of_value(getattr(job, name)) for name in ("data", "labels", "eval_data", "eval_labels")}
    parts = {"options": options, "files": files, "given": given, "versions": versions(), "onnxcomp": __version__}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _hash_of_value(value: Any) -> str:
    if value is None or isinstance(value, str | Path):
        return ""
    if isinstance(value, np.ndarray):
        value = {"": value}
    if not (isinstance(value, Mapping) and all(isinstance(part, np.ndarray) for part in value.values())):
        return os.urandom(16).hex()
    digest = hashlib.sha256()
    for name, array in value.items():
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _hash_of(path: Path) -> str:
    """Of a file's bytes; of a folder's files by name; empty where there is none."""
    if not path.is_dir():
        return sha256_of(path) if path.is_file() else ""
    digest = hashlib.sha256()
    for file in sorted(_files_below(path)):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names if Path(where, name).is_file())
