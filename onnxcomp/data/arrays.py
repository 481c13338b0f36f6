"""How are rows of .npy and .npz files read without holding the file in memory, and hostile files refused in time?

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; sizes are checked before any byte of
data is read, objects (pickles) are never loaded.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import DataError

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]

MEMORY_BYTES = 16 << 20  # a decompressed member up to this size stays in memory; larger ones go to a temporary file
WHOLE_BYTES = 256 << 20  # labels and constants are read whole
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100  # more than both: nobody's data, an archive bomb
UNPACK_BYTES = 32 << 30
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # a zip member's local header: its last two fields are name and extra length


class Rows:
    """An array of which single rows (along axis 0) can be read; this one is held in memory."""

    def __init__(self, name: str, array: Array) -> None:
        self.name = name
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self._array: Array | None = array

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 1

    def read(self, indices: Indices, axis: int = 0) -> Array:
        """What stands at these indices of an axis, [len(indices), ...] for axis 0, in native byte order."""
        return _native(np.take(self._open(), indices, axis))

    def whole(self) -> Array:
        """The whole array; for labels and constants.

        Raises:
            DataError: it is larger than labels or constants can be.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > WHOLE_BYTES:
            raise DataError(
                f"{self.name} takes {size:,} bytes, too many for labels or a constant",
                where=self.name,
                do=f"keep it under {WHOLE_BYTES:,} bytes",
            )
        return _native(np.array(self._open()))

    def _open(self) -> Array:
        assert self._array is not None
        return self._array


class FileRows(Rows):
    """Rows at a place in an open file, read with seek: unlike a memory map they never count as process memory."""

    def __init__(self, name: str, file: IO[bytes], offset: int, header: _Header) -> None:
        self.name, self.shape, self.dtype = name, header.shape, header.dtype
        self._file, self._offset, self._fortran = file, offset, header.fortran
        self._array = None
        self._lock = threading.Lock()

    def read(self, indices: Indices, axis: int = 0) -> Array:
        """What stands at these indices; neighbours along axis 0 are read together."""
        if self._fortran or axis:
            return super().read(indices, axis)
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if not out.nbytes:
            return _native(out)
        view = memoryview(out.data).cast("B")
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        at = 0
        for run in np.split(np.asarray(indices), breaks):
            if len(run):
                size = len(run) * row_bytes
                self._read_into(view[at : at + size], self._offset + int(run[0]) * row_bytes)
                at += size
        return _native(out)

    def _read_into(self, view: memoryview, position: int) -> None:
        with self._lock:
            self._file.seek(position)
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise DataError(f"{self.name} ends early", where=self.name, do="copy or write the file again")
                done += count

    def _open(self) -> Array:
        # Fortran order keeps no row together, and a scalar has no rows: the rare cases that a map serves
        order = "F" if self._fortran else "C"
        return np.memmap(self._file, self.dtype, "r", self._offset, self.shape, order)  # type: ignore[call-overload,no-any-return]


class PackedRows(Rows):
    """A compressed member of an .npz, unpacked on first use: to memory when small, else to a temporary file."""

    def __init__(self, name: str, archive: Path, member: zipfile.ZipInfo, header: _Header) -> None:
        self.name, self.shape, self.dtype = name, header.shape, header.dtype
        self._archive, self._member, self._header = archive, member, header
        self._rows: Rows | None = None

    def read(self, indices: Indices, axis: int = 0) -> Array:
        """What stands at these indices of an axis."""
        return self._unpacked().read(indices, axis)

    def _open(self) -> Array:
        return self._unpacked()._open()

    def _unpacked(self) -> Rows:
        if self._rows is not None:
            return self._rows
        header = self._header
        file: IO[bytes] | None = None
        try:
            with zipfile.ZipFile(self._archive) as archive, archive.open(self._member) as stream:
                stream.read(header.length)
                if header.bytes <= MEMORY_BYTES:
                    array = np.frombuffer(bytearray(stream.read(header.bytes)), header.dtype)
                    self._rows = Rows(self.name, array.reshape(header.shape, order="F" if header.fortran else "C"))
                else:
                    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  its life is that of the rows
                    shutil.copyfileobj(stream, file, 1 << 20)
                    self._rows = FileRows(self.name, file, 0, header)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise _damaged(self.name, error) from error
        except OSError as error:
            raise DataError(
                f"cannot unpack {self.name}: {error.strerror or error}",
                where=self.name,
                do="free space in the temporary folder (TMPDIR), or store it uncompressed with numpy.savez",
            ) from error
        finally:
            if file is not None and self._rows is None:
                file.close()
        return self._rows


class Steps(Rows):
    """[n, steps, ...] read as [n * steps, ...]: every step of every sequence is a row."""

    def __init__(self, rows: Rows) -> None:
        self.name, self.dtype, self._rows = rows.name, rows.dtype, rows
        self.shape = (rows.shape[0] * rows.shape[1], *rows.shape[2:])

    def read(self, indices: Indices, axis: int = 0) -> Array:
        """The steps of these indices."""
        assert axis == 0
        sequence, step = np.divmod(indices, self._rows.shape[1])
        return np.stack([self._rows.read(np.array([i]))[0, j] for i, j in zip(sequence, step, strict=True)])

    def _open(self) -> Array:
        return self._rows._open().reshape(self.shape)


class _Header:
    """What the header of one .npy says, and how long it is."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        try:
            version = np.lib.format.read_magic(stream)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"format version {version} is not known")
            self.shape, self.fortran, self.dtype = readers[version](stream)
        except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError) as error:
            raise _damaged(name, error) from error
        self.length = stream.tell()
        if self.dtype.hasobject:
            raise DataError(
                f"{name} holds pickled Python objects, which can run any code when they are read",
                where=name,
                do="store plain arrays of numbers",
            )
        if self.dtype.kind not in "biufUS" or any(n < 0 for n in self.shape):
            raise DataError(f"{name} holds values of type {self.dtype}", where=name, do="store plain arrays of numbers")
        self.bytes = math.prod(int(n) for n in self.shape) * self.dtype.itemsize


def open_npy(path: Path) -> Rows:
    """The array of an .npy file; nothing of its data is read.

    Raises:
        DataError: no .npy file, cut short, or pickled.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or error}", where=str(path)) from error
    with ExitStack() as stack:  # closes the file unless all of it holds
        stack.enter_context(file)
        header = _Header(file, path.name)
        held = path.stat().st_size - header.length
        if held < header.bytes:
            raise _too_short(path.name, header.bytes, held)
        stack.pop_all()
    return FileRows(path.name, file, header.length, header)


def open_npz(path: Path) -> dict[str, Rows]:
    """The arrays of an .npz by their names; only the headers are read.

    Raises:
        DataError: no .npz file, damaged, encrypted, pickled, or an archive bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            return {m.filename.removesuffix(".npy"): _member(path, archive, m) for m in members}
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or error}", where=str(path)) from error
    # zipfile raises NotImplementedError for a method of compression that it does not know
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, struct.error) as error:
        raise _damaged(path.name, error) from error


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Rows:
    name = f"{path.name}:{member.filename}"
    if member.flag_bits & 0x1:
        raise DataError(f"{name} is encrypted", where=str(path), do="store it without a password")
    with archive.open(member) as stream:
        header = _Header(stream, name)
    held = member.file_size - header.length
    if held != header.bytes:
        raise _too_short(name, header.bytes, held)
    if member.compress_type == zipfile.ZIP_STORED:
        return _stored(path, name, member, header)
    bomb = header.bytes > BOMB_BYTES and header.bytes > BOMB_RATIO * max(member.compress_size, 1)
    if bomb or header.bytes > UNPACK_BYTES:
        raise DataError(
            f"{name} would unpack from {member.compress_size:,} to {header.bytes:,} bytes: refused as an archive bomb",
            where=str(path),
            do="if this is your data, store it uncompressed with numpy.savez: such files are read in place",
        )
    return PackedRows(name, path, member, header)


def _stored(path: Path, name: str, member: zipfile.ZipInfo, header: _Header) -> Rows:
    with ExitStack() as stack:  # closes the file unless all of it holds
        file = stack.enter_context(path.open("rb", buffering=0))
        file.seek(member.header_offset)
        fields = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        offset = member.header_offset + LOCAL_HEADER.size + fields[-2] + fields[-1] + header.length
        held = path.stat().st_size - offset
        if held < header.bytes:
            raise _too_short(name, header.bytes, held)
        stack.pop_all()
    return FileRows(name, file, offset, header)


def _native(array: Array) -> Array:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _damaged(name: str, error: BaseException) -> DataError:
    return DataError(f"{name} is not a whole NumPy file: {error}", where=name, do="write it again with numpy.savez")


def _too_short(name: str, declared: int, held: int) -> DataError:
    return DataError(
        f"{name} declares {declared:,} bytes of data and holds {max(held, 0):,}",
        where=name,
        do="the file is cut short or made up: write it again with numpy.savez or numpy.save",
    )
