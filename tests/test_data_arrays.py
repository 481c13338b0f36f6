"""Are .npy and .npz files read row by row, and hostile ones refused before they cost memory?"""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.data import arrays
from onnxcomp.data.arrays import open_npy, open_npz
from onnxcomp.errors import DataError

ROWS = np.arange(7 * 3 * 2, dtype=np.float32).reshape(7, 3, 2)


def header(shape: object, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz_with(path: Path, member: bytes, name: str = "images.npy", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, member)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "|u1", "|b1"])
@given(indices=st.lists(st.integers(0, 6)))
def test_rows_of_npz_equal_numpy_indexing(
    tmp_path_factory: pytest.TempPathFactory, save, order: str, dtype: str, indices: list[int]
) -> None:
    array = np.asarray(ROWS.astype(dtype), order=order)
    path = tmp_path_factory.mktemp("a") / "a.npz"
    save(path, first=array, second=array + array.dtype.type(1))
    rows = open_npz(path)
    found = rows["first"].read(np.array(indices, np.intp))
    np.testing.assert_array_equal(found, array[indices])
    assert found.dtype.isnative
    np.testing.assert_array_equal(rows["second"].whole(), array + array.dtype.type(1))


def test_large_compressed_member_goes_to_disk_and_reads_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 16)
    np.savez_compressed(tmp_path / "a.npz", a=ROWS)
    rows = open_npz(tmp_path / "a.npz")["a"]
    np.testing.assert_array_equal(rows.read(np.array([6, 0, 1, 2, 2])), ROWS[[6, 0, 1, 2, 2]])


def test_reading_a_few_rows_of_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (64, 1 << 20))
    big[63] = 7
    del big
    np.savez(tmp_path / "big.npz", a=np.load(tmp_path / "big.npy", mmap_mode="r"))
    tracemalloc.start()
    for rows in (open_npy(tmp_path / "big.npy"), open_npz(tmp_path / "big.npz")["a"]):
        assert rows.read(np.array([0, 63]))[1, 0] == 7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_scalar_is_read_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.float32(3))
    assert open_npz(tmp_path / "a.npz")["a"].whole() == 3


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(1 << 70,)", "(1000000, 1000000, 1000000)"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_header_that_claims_more_than_there_is_is_refused(tmp_path: Path, shape: str, compression: int) -> None:
    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(64))
    tracemalloc.start()
    with pytest.raises(DataError):
        open_npy(tmp_path / "a.npy")
    with pytest.raises(DataError):
        open_npz(npz_with(tmp_path / "a.npz", header(shape) + bytes(64), compression=compression))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_archive_bomb_is_refused_without_unpacking(tmp_path: Path) -> None:
    size = (1 << 30) + (1 << 27)
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(f"({size},)", "|u1"))
        for _ in range(size >> 24):
            member.write(bytes(1 << 24))
    tracemalloc.start()
    with pytest.raises(DataError, match="archive bomb") as caught:
        open_npz(tmp_path / "bomb.npz")
    assert "numpy.savez" in caught.value.do
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_zip_directory_that_lies_about_the_size_is_refused(tmp_path: Path) -> None:
    path = npz_with(tmp_path / "a.npz", header("(1000,)", "|u1") + bytes(1000))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24
    (declared,) = struct.unpack_from("<I", raw, at)
    struct.pack_into("<I", raw, at, declared - 500)
    path.write_bytes(raw)
    with pytest.raises(DataError):
        open_npz(path)["images"].whole()


def test_pickled_arrays_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "ran").touch, ())

    objects = np.empty(1, object)
    objects[0] = Evil()
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=objects)
    for opener, name in ((open_npy, "a.npy"), (open_npz, "a.npz")):
        with pytest.raises(DataError, match="pickled"):
            opener(tmp_path / name)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError):
        open_npy(tmp_path / "raw.npy")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 3, 40, 100, 300])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(400, np.uint8))
    np.save(tmp_path / "a.npy", np.ones(400, np.uint8))
    for name, opener in (("a.npz", open_npz), ("a.npy", open_npy)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError):
            opener(path)


def test_damaged_member_is_told_when_it_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.random.default_rng(0).integers(0, 255, 5000, np.uint8))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[2000:2040] = bytes(40)
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(DataError, match="not a whole NumPy file"):
        open_npz(tmp_path / "a.npz")["a"].whole()


def test_structured_and_complex_types_are_refused(tmp_path: Path) -> None:
    for array in (np.zeros(3, [("a", "f4")]), np.zeros(3, np.complex64)):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError, match="plain arrays"):
            open_npy(tmp_path / "a.npy")


def test_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    rows = open_npy(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:150])
    with pytest.raises(DataError, match="ends early"):
        rows.read(np.arange(7))


def test_saved_header_of_numpy_is_what_the_tests_make_up() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32))
    file.seek(0)
    assert np.load(io.BytesIO(header("(2, 3)") + bytes(24))).shape == np.load(file).shape
