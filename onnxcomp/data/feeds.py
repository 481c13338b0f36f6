"""Does a feed fit the model? Names, types, shapes and finite values; and sources that come as whole feeds."""

from __future__ import annotations

import io
import itertools
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from onnxcomp.data.functions import calling
from onnxcomp.data.inputs import InputSpec
from onnxcomp.errors import DataError

Array = npt.NDArray[Any]
Feed = dict[str, Array]

LABELS = "labels"  # the key under which a feed, or an .npz, carries its labels
SPOOL_BYTES, MOST_FEEDS = 16 << 30, 1 << 18  # of an iterator: more than anybody judges on, so it may never end
READY = "store pictures as uint8 `images`, and every other array in the type and rank of the model's input"


def convert(array: Array, spec: InputSpec, where: str) -> Array:
    """The array in the input's type, if each value survives: int32 -> int64, float64 -> float32 (rounded), bool -> int.

    Raises:
        DataError: the types do not go together, or an integer does not fit the narrower type.
    """
    source, target = array.dtype, spec.dtype
    if source == target:
        return array
    check_type(source, spec, where)
    if target == np.dtype(object):
        return array.astype(object)
    with np.errstate(over="ignore"):
        changed = array.astype(target)
    if source.kind in "iu" and not np.can_cast(source, target, "safe") and not (changed == array).all():
        raise DataError(f"a value does not fit {target}", where=where, do=READY)
    return changed


def check_type(source: np.dtype[Any], spec: InputSpec, where: str) -> None:
    """Check that a type can stand for the input's.

    Raises:
        DataError: it cannot.
    """
    if not types_fit(source, spec.dtype):
        raise DataError(f"{source} data for the input {spec}", where=where, do=READY)


def types_fit(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether arrays of one type can stand for another: integers for integers, floats for floats, bool for integers."""
    if source == target:
        return True
    if source.kind == "b" and target.kind in "iu":
        return True
    if target == np.dtype(object):
        return source.kind in "US"
    if source.kind in "iu" and target.kind in "iu":
        return True
    # bfloat16 and the like have kind "V" in numpy; floats round to them
    return source.kind == "f" and (target.kind == "f" or target.name.startswith(("bfloat16", "float8")))


def check_shape(shape: Sequence[int], spec: InputSpec, where: str, *, rows: int | None = None) -> None:
    """Check rank and fixed sizes; the axis `rows` counts samples and may differ.

    Raises:
        DataError: they differ.
    """
    if not shape_fits(shape, spec, rows):
        raise DataError(
            f"data of shape {list(shape)} for the input {spec}",
            where=where,
            do="give the model's rank and the sizes that it fixes"
            + (f", samples along axis {rows}" if rows is not None else ""),
        )


def shape_fits(shape: Sequence[int], spec: InputSpec, rows: int | None = None) -> bool:
    """Whether rank and fixed sizes are the input's; the axis `rows` may differ."""
    if spec.shape is None:
        return True
    return len(shape) == len(spec.shape) and all(
        not isinstance(own, int) or own == size or axis == rows
        for axis, (own, size) in enumerate(zip(spec.shape, shape, strict=True))
    )


class NotFiniteError(DataError):
    """A sample holds NaN or infinity. Some models take such samples: masks of -inf, NaN for a missing value."""

    def __init__(self, value: str, where: str, name: str) -> None:
        super().__init__(f"the data hold {value}", where=where, do="remove or mend the sample")
        self.value, self.input = value, name


def check_finite(
    array: Array, spec: InputSpec, where: str, samples: npt.NDArray[np.intp] | None = None, axis: int = 0
) -> None:
    """Check that no value is NaN or infinite; `samples` are the indices of the samples along the axis.

    Raises:
        NotFiniteError: one is; it is named by sample and input.
    """
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return
    bad = np.argwhere(~np.isfinite(array))[0]
    value = "NaN" if np.isnan(array[tuple(bad)]) else "infinity"
    row = f"sample {samples[bad[axis]]}, " if samples is not None and len(bad) else ""
    raise NotFiniteError(value, f"{where}, {row}input {spec.name}", spec.name)


def conform(feed: Mapping[str, Any], inputs: Sequence[InputSpec], where: str, *, finite: bool = True) -> Feed:
    """A whole feed in the model's names, types and shapes, in the order of its inputs.

    Args:
        finite: refuse NaN and infinity.

    Raises:
        DataError: an input is missing or unknown, or an array does not fit.
    """
    names = [spec.name for spec in inputs]
    missing = [name for name in names if name not in feed]
    unknown = [name for name in feed if name not in names and name != LABELS]
    if missing or unknown:
        what = [f"no array for {', '.join(missing)}"] * bool(missing)
        what += [f"unknown {', '.join(map(str, unknown))}"] * bool(unknown)
        raise DataError("; ".join(what), where=where, do=f"the model's inputs are {', '.join(names)}")
    result: Feed = {}
    for spec in inputs:
        array = np.asarray(feed[spec.name])
        place = f"{where}, input {spec.name}"
        check_shape(array.shape, spec, place)
        array = convert(array, spec, place)
        if finite:
            check_finite(array, spec, where)
        result[spec.name] = np.ascontiguousarray(array).reshape(array.shape)
    return result


def as_feed(item: Any, inputs: Sequence[InputSpec], where: str) -> Mapping[str, Any]:
    """One item of a user's sequence or iterator as a feed: a dict, an array, or a tuple as data loaders give it.

    A tuple holds an array for each input in the model's order, and may end with the labels; an array stands for the
    only input. Arrays of one dimension less than their inputs are single samples.

    Raises:
        DataError: it is none of these.
    """
    feed: dict[str, Any] | None = None
    if isinstance(item, Mapping):
        feed = {str(name): value for name, value in item.items()}
    elif (
        isinstance(item, tuple | list) and len(item) in (len(inputs), len(inputs) + 1) and _arrays(item[: len(inputs)])
    ):
        feed = dict(zip([*(spec.name for spec in inputs), LABELS], item, strict=False))
    elif len(inputs) == 1 and _arrays([item]):
        feed = {inputs[0].name: item}
    if feed is None:
        raise DataError(
            f"it is of type {type(item).__name__}, not a dict or arrays",
            where=where,
            do="give {input name: array}, or an array for each input in the model's order",
        )
    given = [spec for spec in inputs if spec.name in feed]
    ranks = {spec.name: np.ndim(feed[spec.name]) for spec in given}
    if given and all(spec.axis == 0 and ranks[spec.name] + 1 == (spec.rank or 0) for spec in given):
        feed |= {spec.name: np.asarray(feed[spec.name])[None] for spec in given}
    return feed


def _arrays(items: Sequence[Any]) -> bool:
    """Whether all are arrays or tensors, whoever's."""
    return all(hasattr(item, "__array__") for item in items)


class Units(Protocol):
    """Feeds that can be read one by one, again and again."""

    def __len__(self) -> int:
        """How many feeds."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """One feed as it was given."""


class TestSets:
    """Folders `test_data_set_N` with `input_N.pb` (serialized TensorProto), as ONNX's own tests have them."""

    def __init__(self, folders: Sequence[Path], inputs: Sequence[InputSpec]) -> None:
        self._folders = list(folders)
        self._names = [spec.name for spec in inputs]

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> dict[str, Array]:
        folder = self._folders[index]
        tensors = [_tensor(path) for path in _files(folder)]
        names = [name for name, _ in tensors]
        if not set(self._names) <= set(names):
            # many files carry no names, or other ones: the number in the file name is the input's place
            if len(tensors) != len(self._names):
                raise DataError(
                    f"{len(tensors)} input files for {len(self._names)} inputs",
                    where=str(folder),
                    do=f"give input_0.pb ... for {', '.join(self._names)}",
                )
            names = self._names
        return {name: array for name, (_, array) in zip(names, tensors, strict=True) if name in self._names}


class Spooled:
    """Feeds of an iterator, kept in a temporary file: reading again gives the same values, and memory stays small."""

    def __init__(self, feeds: Iterable[Any], inputs: Sequence[InputSpec], where: str) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the data set
        self._places: list[dict[str, tuple[int, np.dtype[Any]]]] = []
        iterator = iter(feeds)
        for count in itertools.count():
            if count > MOST_FEEDS:
                raise self._endless(f"the function gave more than {MOST_FEEDS:,} feeds, or never ends", where)
            with calling(where, "mend the function; what it yields are dicts: input name -> array"):
                item = next(iterator, None)
            if item is None:
                return
            feed = as_feed(item, inputs, f"{where}, item {count}")
            self._places.append({str(name): self._put(value, where) for name, value in feed.items()})

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Array]:
        return {name: self._get(*place) for name, place in self._places[index].items()}

    def _put(self, value: Any, where: str) -> tuple[int, np.dtype[Any]]:
        array = np.asarray(value)
        if array.dtype.hasobject:
            array = array.astype(str)
        place = self._file.seek(0, io.SEEK_END)
        if place + array.nbytes > SPOOL_BYTES:
            raise self._endless(f"the feeds take more than {SPOOL_BYTES >> 30} GiB, or never end", where)
        try:
            np.save(self._file, array, allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"cannot keep the feeds: {error.strerror or error}",
                where="the temporary folder (TMPDIR)",
                do="free space there, or return a sequence (with len() and [index])",
            ) from error
        return place, array.dtype

    @staticmethod
    def _endless(what: str, where: str) -> DataError:
        do = "return a sequence (with len() and [index]): its feeds are read one by one, when needed"
        return DataError(what, where=where, do=do)

    def _get(self, place: int, dtype: np.dtype[Any]) -> Array:
        self._file.seek(place)
        # bfloat16 and the like come back as raw bytes: the view gives them their type again
        return np.asarray(np.load(self._file, allow_pickle=False)).view(dtype)


def test_sets_in(folder: Path) -> list[Path]:
    """The `test_data_set_*` folders of a folder in order of their numbers, or the folder itself if it is one."""
    if _files(folder):
        return [folder]
    return [f for f in _numbered(folder, "test_data_set_*") if f.is_dir() and _files(f)]


def _files(folder: Path) -> list[Path]:
    """The inputs of a folder; a pipe or a device of such a name is none, since reading it may never end."""
    return [path for path in _numbered(folder, "input_*.pb") if path.is_file()]


def _numbered(folder: Path, pattern: str) -> list[Path]:
    def number(path: Path) -> tuple[int, str]:
        found = re.search(r"(\d+)(?:\.pb)?$", path.name)
        return (int(found.group(1)) if found else -1), path.name

    return sorted(folder.glob(pattern), key=number)


def _tensor(path: Path) -> tuple[str, Array]:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("its values lie in another file")
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (OSError, DecodeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path.name} is not a serialized tensor: {error}", where=str(path), do="write it as TensorProto"
        ) from error
