"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from onnxcomp.errors import OnnxcompError, OutputError
from onnxcomp.lock import try_lock

CHUNK_BYTES = 1 << 20
STANDARD_OUTPUT = Path("-")
# where what goes to standard output is written, if not there: user code prints as well
RESULTS: ContextVar[TextIO | None] = ContextVar("RESULTS", default=None)
SCRATCH = "onnxcomp-"
SCRATCH_MARK = ".onnxcomp-scratch"


@contextmanager
def atomic_write(path: Path, rename: Callable[[], Path] | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` only when the block ends well.

    The bytes go to a file without a name (where the system knows none, to a temporary one) in the same folder, which is
    made where it does not exist; they are flushed to disk, and take their name at once. After an error or an interrupt
    nothing is left and `path` is as it was. What a killed run left lying is removed by the next one that writes there.

    Args:
        rename: asked after the last write for the name to take instead of `path`; for names that hold a hash.

    Raises:
        OutputError: the folder is read-only or full, or something that is no regular file, or source that this process
            has loaded, has the name.
    """
    check_not_loaded(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_halves(path)
        handle = _nameless(path.parent)
        named = handle is None
        if handle is None:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with suppress(OSError):  # a file system without locks keeps what a kill left
            try_lock(handle)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not named:
                _give_name(file, temporary)
            temporary.chmod(0o666 & ~_umask())
            final = rename() if rename else path
            check_replaceable(final)
            if sys.platform != "win32":  # there only a closed file can be renamed
                temporary.replace(final)
        if sys.platform == "win32":
            temporary.replace(final)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_replaceable(path: Path) -> None:
    """Refuse a name that something other than a regular file has: only regular files and new names are written.

    Raises:
        OutputError: it is a folder, a link, a device, a pipe or a socket.
    """
    kind = special(path, follow=False)
    if kind:
        raise OutputError(
            f"the output is {kind}, and only regular files are replaced",
            where=f"file {path}",
            do="give the name of a file, or a new one",
        )


def check_not_loaded(path: Path) -> None:
    """Refuse to write what this process runs: the source of a metric, of a plugin, and of what these imported.

    Raises:
        OutputError: a module that was loaded comes from there.
    """
    if path.exists() and any(file.exists() and path.samefile(file) for file in loaded_files()):
        raise OutputError(
            f"the output would overwrite {path.name}, which this run reads",
            where=f"file {path}",
            do="choose another name for it",
        )


def loaded_files() -> list[Path]:
    """The source files that this process has loaded: a plugin's, a metric's and what these import, onnxcomp's own."""
    names = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return [_as_path(name) for name in names if name]


_as_path = functools.cache(Path)  # a thousand names, asked for several times a run


def special(path: Path, *, follow: bool = True) -> str:
    """What has this name that is no regular file, in words; empty for a file, and where there is nothing.

    Args:
        follow: look at what a link leads to, not at the link.
    """
    try:
        mode = (path.stat() if follow else path.lstat()).st_mode
    except OSError:
        return ""
    kinds = (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    )
    return next((words for is_kind, words in kinds if is_kind(mode)), "")


def remove_halves(path: Path) -> None:
    """Remove what killed runs left of this file: temporary files under its name that no process holds any more."""
    pattern = re.compile(re.escape(f".{path.name[:100]}.") + r"[0-9a-f]{8}\.tmp")
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_unheld(Path(entry.path))


def _remove_unheld(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        if try_lock(handle):
            path.unlink()
    finally:
        os.close(handle)


@contextmanager
def scratch(purpose: str = "") -> Iterator[Path]:
    """A temporary folder that goes away with its block, or, after a kill, at the start of the next run.

    Args:
        purpose: a word for its name.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{purpose}{'-' if purpose else ''}"))
    try:
        with _marked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Hold a file in the folder that says whose it is."""
    if sys.platform == "win32":  # which renames no file that is open
        yield
        return
    unseen = folder / f"{SCRATCH_MARK}.new"
    held = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):
            try_lock(held)
        os.write(held, f"{SCRATCH}\n".encode())
        unseen.rename(folder / SCRATCH_MARK)  # a mark that can be seen is held
        yield
    finally:
        os.close(held)


def remove_abandoned_scratch() -> None:
    """Remove temporary folders of runs that were killed: those with our mark, of this user, that no process holds."""
    with suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(SCRATCH) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_scratch(Path(entry.path))


def _remove_scratch(folder: Path) -> None:
    if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
        return
    handle = os.open(folder / SCRATCH_MARK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        if os.read(handle, 100) == f"{SCRATCH}\n".encode() and try_lock(handle):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _nameless(folder: Path) -> int | None:
    """An open file that has no name yet and goes away with its process; None where the system has no such thing."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:  # the file system cannot, or the folder does not let: the ordinary way tells which
        return None


def _give_name(file: BinaryIO, name: Path) -> None:
    folder = os.open(name.parent, os.O_RDONLY)
    try:  # with a descriptor given, Python asks the kernel to follow /proc's link to the file itself
        os.link(f"/proc/self/fd/{file.fileno()}", name.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    except OSError:  # a file system that has nameless files and cannot name them
        file.seek(0)
        with name.open("xb") as copy:
            shutil.copyfileobj(file, copy, CHUNK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
    finally:
        os.close(folder)


def user_cache() -> Path:
    """The folder for what can be made again: in the user's cache, where the system keeps that. It may not exist yet.

    Raises:
        RuntimeError: nobody knows where the user's home is.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onnxcomp"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as such."""
    if path.is_dir():
        return sum(file.lstat().st_size for file in path.rglob("*"))
    return path.lstat().st_size


def sha256_of(*paths: Path) -> str:
    """SHA-256 over the bytes of the files, one after another, read in chunks."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def json_of(path: Path, kind: type[OnnxcompError], do: str, name: str = "file") -> Any:
    """What a JSON file, of this name for people, holds.

    Raises:
        OnnxcompError: of this kind, where it cannot be read, is no JSON, or is nested without measure.
    """
    if found := special(path):
        raise kind(f"this is {found}, and no JSON file", where=f"file {path}", do=do)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise kind(f"the {name} cannot be read: {what}", where=f"file {path}", do=do) from error


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path.name}: {error.strerror or error}",
        where=f"folder {path.parent}",
        do="choose a folder that is writable and has space, with -o",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
