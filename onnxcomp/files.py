"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnxcomp.errors import OutputError

CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_write(path: Path, rename: Callable[[], Path] | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` only when the block ends well.

    The bytes go to a file without a name (where the system knows none, to a temporary one) in the same folder, are
    flushed to disk, and take their name at once. After an error or an interrupt, and where there are nameless files
    after a kill too, nothing is left and `path` is as it was.

    Args:
        rename: asked after the last write for the name to take instead of `path`; for names that hold a hash.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        handle = _nameless(path.parent)
        named = handle is None
        if handle is None:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
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
        temporary.replace(rename() if rename else path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


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


def sha256_of(*paths: Path) -> str:
    """SHA-256 over the bytes of the files, one after another, read in chunks."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path.name}: {error.strerror or error}",
        where=f"folder {path.parent}",
        do="choose a folder that exists, is writable and has space, with -o",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
