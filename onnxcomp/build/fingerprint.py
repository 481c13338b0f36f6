"""What decides how a model's build comes out? Everything that does, by name, so that a change can be named as well."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from onnxcomp._version import __version__
from onnxcomp.build.hashes import Hashes
from onnxcomp.config import ModelEntry
from onnxcomp.places import external_files, reads_of
from onnxcomp.runtime.machine import instruction_sets, versions
from onnxcomp.sources import module_file

Parts = dict[str, str]
PLUGINS = "onnxcomp.passes"
ABSENT = "absent"


def parts_of(entry: ModelEntry, hashes: Hashes) -> Parts:
    """Everything that decides one build: contents of files, options, versions, the processor; by a name for people.

    A file that is missing counts as absent: the build itself says what is wrong with that.
    """
    parts = {f"option {name}": json.dumps(value, sort_keys=True) for name, value in _options(entry).items()}
    for path in _files(entry, hashes):
        parts[f"file {path}"] = _hash(hashes, Path(path))
    for text in _unknown_functions(entry, hashes.folder):
        parts[f"function {text}"] = os.urandom(16).hex()  # nobody can tell whether it changed: so it counts as changed
    return parts | _surroundings()


def growing(entry: ModelEntry) -> str:
    """The part that a build may itself add to, without a change to what it made: a cost table that lacked answers."""
    return "" if entry.job.cost_table is None else f"file {entry.job.cost_table}"


def changes(before: Parts, now: Parts) -> list[str]:
    """What differs, in words, contents first."""
    found = []
    for name in sorted(before.keys() | now.keys(), key=lambda name: (not name.startswith("file"), name)):
        if before.get(name) == now.get(name):
            continue
        kind, _, what = name.partition(" ")
        if kind == "function":
            found.append(f"{what} may have changed: its file was not found; name it in depends")
        elif kind == "file" and now.get(name, ABSENT) == ABSENT:
            found.append(f"{what} is missing")
        else:
            found.append(f"{what if kind in ('file', 'option') else name} changed")
    return found


def dependencies(entry: ModelEntry, hashes: Hashes) -> list[Path]:
    """Every file that decides one build, for the depfiles of build systems; folders as the files in them."""
    found: list[Path] = []
    for text in _files(entry, hashes):
        full = hashes.folder / text
        found += sorted(p for p in full.rglob("*") if p.is_file()) if full.is_dir() else [full]
    return [path for path in dict.fromkeys(found) if path.exists()]


def _options(entry: ModelEntry) -> dict[str, Any]:
    """The options, and the texts that name files: a report repeats them, so they decide how it looks."""
    job = entry.job
    places = {
        item.metadata.get("key") or item.name: str(value)
        for item in dataclasses.fields(job)
        if item.metadata["place"] and (value := getattr(job, item.name)) is not None
    }
    found = job.options()
    for group in ("budget", "preprocess"):
        found |= found.pop(group)
    return {**found, **places, "depends": list(entry.depends)}


def needed(entry: ModelEntry, hashes: Hashes) -> list[Path]:
    """The files and folders that one build reads; of the folders it depends on every file."""
    found = [Path(text) for text in _files(entry, hashes) if text not in entry.depends]
    for text in entry.depends:
        full = hashes.folder / text
        found += [path for path in full.rglob("*") if path.is_file()] if full.is_dir() else [Path(text)]
    return found


def _files(entry: ModelEntry, hashes: Hashes) -> Iterator[str]:
    read = reads_of(entry.job, hashes.folder, lambda model: map(Path, _external_files(model, hashes)))
    yield from dict.fromkeys(path.as_posix() for path in read)
    yield from entry.depends


def _external_files(model: Path, hashes: Hashes) -> list[str]:
    """The external data files that a model refers to, found anew only when the model's own bytes change."""
    try:
        names = hashes.derived(model, "external data", lambda: _beside(hashes.folder / model))
    except OSError:
        return []
    return [(model.parent / name).as_posix() for name in names]


def _beside(model: Path) -> list[str]:
    return [os.path.relpath(path, model.parent) for path in external_files(model)]


def _unknown_functions(entry: ModelEntry, folder: Path) -> Iterator[str]:
    """Functions whose code cannot be looked at; where `depends` is given the user vouches for that list."""
    job = entry.job
    if entry.depends:
        return
    for text in (job.data, job.eval_data, job.metric):
        if not isinstance(text, str) or ":" not in text or (folder / text).exists():
            continue
        if module_file(text, folder) is None:
            yield text


def _hash(hashes: Hashes, path: Path) -> str:
    try:
        return hashes.of(path)
    except OSError:
        return ABSENT


@cache
def _surroundings() -> Parts:
    """Versions of what takes part, the code of onnxcomp itself, and what the processor can do."""
    found = {f"version of {name}": version for name, version in versions().items()}
    for entry in importlib.metadata.entry_points(group=PLUGINS):
        found[f"version of pass {entry.name}"] = f"{entry.value} {entry.dist.version if entry.dist else ''}"
    found["version of onnxcomp"] = f"{__version__} {_own_code()}"
    found["version of Python"] = platform.python_version()
    found["processor"] = f"{platform.machine()} {' '.join(instruction_sets())}"
    return found


def _own_code() -> str:
    """A digest of onnxcomp's sources: between releases the version alone does not tell."""
    import hashlib

    folders = [Path(__file__).resolve().parent.parent]
    spec = importlib.util.find_spec("onnxcomp.passes")
    folders += [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
