"""How do processes keep out of each other's way? A lock on a file, which the system lets go when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.05


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold the lock of a file, which is made where it does not exist and stays behind.

    A child that inherits the descriptor holds the lock as well, until it ends.

    Args:
        waiting: called once when another process holds it.

    Yields:
        The file's descriptor.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        told = False
        while not try_lock(descriptor):
            if not told and waiting is not None:
                waiting()
            told = True
            time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while files are written there that belong together.

    Nothing is left behind. Where the system has no lock of folders, or there is no such folder, none is held.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            while not try_lock(descriptor):
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def try_lock(descriptor: int) -> bool:
        """Take the lock of an open file if nobody holds it; it is let go when the file is closed."""
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:

    def try_lock(descriptor: int) -> bool:
        """Take the lock of an open file if nobody holds it; it is let go when the file is closed."""
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
