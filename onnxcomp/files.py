"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnxcomp.errors import OutputError

CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_write(path: Path, rename: Callable[[], Path] | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` only when the block ends well.

    The bytes go to a temporary file in the same folder, are flushed to disk and renamed. After an error, an
    interrupt included, the temporary file is removed and `path` is as it was.

    Args:
        rename: asked after the last write for the name to take instead of `path`; for names that hold a hash.

    Raises:
        OutputError: the folder is missing, read-only or full.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(rename() if rename else path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def user_cache() -> Path:
    """The folder for what can be made again: in the user's cache, where the system keeps that. It may not exist yet."""
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
