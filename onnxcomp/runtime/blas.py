"""How many threads do numpy's matrix products use? Fewer are faster for many small ones between runs of ONNX Runtime.

OpenBLAS wakes its threads for every product and lets them spin. On a 2-core machine that is shared with anything else,
twenty Cholesky factorizations of 576 x 576 took 0.5 s on one thread and 17 s on two.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

# OpenBLAS as numpy's wheels bundle it (64-bit integers), as older ones did, and as systems install it
_NAMES = (
    ("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
    ("openblas_get_num_threads64_", "openblas_set_num_threads64_"),
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
)


@contextmanager
def limited(threads: int = 1) -> Iterator[None]:
    """Let numpy's OpenBLAS use so many threads; nothing happens where numpy has another BLAS."""
    found = _openblas()
    if found is None:
        yield
        return
    get, set_ = found
    before = get()
    set_(threads)
    try:
        yield
    finally:
        set_(before)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's own functions that read and set its number of threads."""
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs", package / ".libs")
    for path in sorted(p for folder in folders for p in folder.glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for get, set_ in _NAMES:
            if hasattr(library, get) and hasattr(library, set_):
                read, write = getattr(library, get), getattr(library, set_)
                read.restype, read.argtypes = ctypes.c_int, []
                write.restype, write.argtypes = None, [ctypes.c_int]
                return read, write
    return None
