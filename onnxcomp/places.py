"""Which files does a run read, and may it write where it was told to? One rule for every command.

Nothing that a run reads is ever written, by whatever name or link; only regular files are replaced and only regular
files and folders are read, since a pipe or a device may never end.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError, ModelError, OnnxcompError, OutputError, UsageError
from onnxcomp.files import STANDARD_OUTPUT, check_replaceable, loaded_files, remove_halves, special
from onnxcomp.job import Job
from onnxcomp.sources import function_file, imported_files, module_file, named_files

SAMPLES = frozenset({".pb", ".npz", ".npy", ".csv", ".txt"})  # beside pictures, what a folder of data may hold
# which error a field of a job ends in where its file cannot be read
ERRORS: dict[str, type[OnnxcompError]] = {"model": ModelError, "teacher": ModelError, "plan": UsageError}


def check(reads: Iterable[Path], writes: Mapping[str, Path | None]) -> None:
    """Refuse places that must not be written, before any work.

    Args:
        reads: files and folders that the run reads; of a folder, the samples in it.
        writes: the files that it will write, by what a person calls them, such as `--report`.

    Raises:
        OutputError: one is an input, no regular file, in a folder that cannot be written, or two are one.
    """
    asked = {name: path for name, path in writes.items() if path is not None}
    printed = [name for name, path in asked.items() if path == STANDARD_OUTPUT]
    for name in printed:
        if name not in ("--json", "--report", "--markdown"):
            raise OutputError("only JSON goes to standard output", where=f"{name} -", do="give the name of a file")
        del asked[name]
    if len(printed) > 1:
        both = " and ".join(printed)
        raise OutputError("two things cannot go to standard output", where=both, do="give one of them a file")
    for name, path in asked.items():
        try:
            _check_writable(name, path)
        except OSError as error:
            raise OutputError(
                f"no file can have this name: {error.strerror}", where=f"{name} {path}", do="choose another one"
            ) from error
    _check_different(asked)
    standing = {_identity(path): (name, path) for name, path in asked.items() if path.exists()}
    if standing:
        for read in reads:
            for file in _standing_files(read):
                found = standing.get(_identity(file))
                if found is not None:
                    raise _would_overwrite(*found, read)
    for path in asked.values():
        remove_halves(path)


def _would_overwrite(name: str, path: Path, read: Path) -> OutputError:
    what = "the input model" if read.suffix == ".onnx" else f"{read.name}, which this run reads"
    return OutputError(f"the output would overwrite {what}", where=f"{name} {path}", do="choose another name for it")


def _check_writable(name: str, path: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # which the folder tells in better words
        path.lstat()
    check_replaceable(path)
    folder = path.resolve().parent
    while not folder.exists():  # it is made with the file
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("the output folder cannot be written", where=f"folder {folder}", do=f"choose another {name}")


def _check_different(asked: Mapping[str, Path]) -> None:
    taken: dict[Any, str] = {}
    for name, path in asked.items():
        for mark in {_identity(path), path.resolve()}:
            other = taken.setdefault(mark, name)
            if other != name:
                raise OutputError(
                    f"{other} and {name} have one name", where=f"file {path}", do=f"choose another {name}"
                )


def _identity(path: Path) -> tuple[int, int] | Path:
    """What two names of one file have in common, links and upper and lower case aside."""
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino


def _standing_files(read: Path) -> Iterator[Path]:
    if not read.is_dir():
        if read.exists():
            yield read
        return
    from onnxcomp.data.images import SUFFIXES  # only now: an unchanged build loads no numpy

    for folder, _, names in os.walk(read, followlinks=False):
        yield from (Path(folder, name) for name in names if Path(name).suffix.lower() in SAMPLES | SUFFIXES)


def check_job(
    job: Job, *, config: Path | None = None, external: Callable[[Path], Iterable[Path]] | None = None
) -> None:
    """Whether a job's inputs can be read and its outputs written, before any work.

    Args:
        config: the configuration that it comes from.
        external: the further files of a model; read from it by default.

    Raises:
        OutputError: as `check`.
        ModelError, DataError, UsageError: an input is a pipe or a device, which may never end.
    """
    check_inputs(job)
    if not job.out.name:
        raise OutputError("the output has no name", where=f"-o {str(job.out)!r}", do="give one, such as model.opt.onnx")
    reads = only_read(job, external)
    check(itertools.chain(reads, loaded_files(), [config] if config else []), writes_of(job))


def check_command(
    *,
    models: Iterable[Path],
    samples: Iterable[str | Path | None] = (),
    functions: Iterable[str | None] = (),
    writes: Mapping[str, Path | None],
) -> None:
    """As `check_job`, for a command that has no job.

    Args:
        models: what it reads, with the files of their weights.
        samples: files and folders; names of functions among them are passed over.
        functions: module.py:function, or what may be such a name.
        writes: as in `check`.
    """
    models = list(models)
    paths = [Path(value) for value in samples if value is not None]
    modules = [function_file(text) for text in functions if text is not None]
    modules += [path for module in modules for path in imported_files(module)]
    for found, kind in ((models, ModelError), (paths, DataError), (modules, UsageError)):
        for path in found:
            check_input(path, kind)
    weights = (file for model in models for file in external_files(model))
    check(itertools.chain(models, paths, modules, weights, loaded_files()), writes)


def check_inputs(job: Job) -> None:
    """Refuse inputs that are no files or folders.

    Raises:
        ModelError, DataError, UsageError: a pipe, a device or a socket was given.
    """
    for item in dataclasses.fields(job):
        value, place = getattr(job, item.name), item.metadata["place"]
        if place in ("input", "data", "function") and isinstance(value, str | Path):
            kind = ERRORS.get(item.name, UsageError if place == "function" else DataError)
            check_input(Path(value) if Path(value).exists() else function_file(str(value)), kind)


def check_input(path: Path, kind: type[OnnxcompError]) -> None:
    """Refuse what is no file or folder: reading it may never end.

    Raises:
        OnnxcompError: of this kind.
    """
    found = special(path)
    if found and found != "a folder":
        raise kind(
            f"this is {found}, and only files and folders are read", where=f"file {path}", do="save it to a file first"
        )


def reads_of(
    job: Job, folder: Path = Path(), external: Callable[[Path], Iterable[Path]] | None = None
) -> Iterator[Path]:
    """The files and folders that a job reads: also a function's module with its imports, and what a spec names.

    Args:
        folder: what the job's paths are relative to; the paths given back are so, too.
        external: the further files of a model; read from it by default.
    """
    external = external or (lambda model: external_files(folder / model))
    for item in dataclasses.fields(job):
        value, place = getattr(job, item.name), item.metadata["place"]
        if place not in ("input", "data", "function") or not isinstance(value, str | Path):
            continue
        if item.name in ("model", "teacher"):
            yield Path(value)
            yield from external(Path(value))
        elif place == "input" or (place == "data" and (folder / value).exists()):
            yield Path(value)
        elif (module := module_file(str(value), folder)) is not None:
            yield module
            yield from imported_files(module, folder)
        elif place == "data" and ":" not in str(value):
            yield Path(value)
    if job.passes is not None:
        yield from named_files(str(job.passes), folder)


def only_read(job: Job, external: Callable[[Path], Iterable[Path]] | None = None) -> Iterator[Path]:
    """As `reads_of`, but for the cost table, which is there to be added to."""
    return (path for path in reads_of(job, external=external) if path != job.cost_table)


def writes_of(job: Job) -> dict[str, Path | None]:
    """The files that a job may write, by the flag that names each."""
    return {
        "-o": job.out,
        "the model that misses its budget": job.rejected,
        "--report": job.report_path,
        "the plan beside the report": job.plan_path,
        "--html": job.html,
        "--cost-table": job.cost_table,
    }


def settle(job: Job, *, accepted: bool) -> list[str]:
    """Take an older model of ours from a place where it would pass for this run's; what was done, in words.

    Where this run's model was refused, the one at the output's place is of another run; where it was accepted, the one
    that an earlier run was refused for is out of date. What onnxcomp did not write stays.
    """
    from onnxcomp.verify.provenance import is_stamped  # only now: an unchanged build loads no onnx

    older = job.rejected if accepted else job.out
    if not older.is_file() or older.is_symlink():
        return []
    with suppress(ModelError, OSError):
        if is_stamped(older):
            older.unlink()
            return [] if accepted else [f"{older}, the model of an earlier run, was removed"]
    return [] if accepted else [f"{older} is no model of this run: it was there before"]


def external_files(model: Path) -> list[Path]:
    """The files beside a model that hold its weights; none where it cannot be read: that is said elsewhere."""
    from onnxcomp.graph.io import model_files  # only now: an unchanged build loads no onnx

    with suppress(ModelError, OSError):
        return model_files(model)[1:]
    return []
