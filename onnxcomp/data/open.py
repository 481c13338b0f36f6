"""What kind of data is this? Any source that users have at hand becomes a Dataset for one model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onnxcomp.data import labels as labelling
from onnxcomp.data.arrays import Rows, open_npy, open_npz
from onnxcomp.data.dataset import (
    Column,
    ConstantColumn,
    Dataset,
    FeedReader,
    FileColumn,
    PixelColumn,
    ReadyColumn,
    RowReader,
)
from onnxcomp.data.feeds import (
    LABELS,
    Spooled,
    TestSets,
    Units,
    check_shape,
    check_type,
    conform,
    test_sets_in,
)
from onnxcomp.data.functions import calling, load_function, looks_like_function
from onnxcomp.data.guesses import CHANNELS, RawImages, resolve
from onnxcomp.data.images import SUFFIXES, ImageFiles, Listing, list_images, look_at
from onnxcomp.data.inputs import InputSpec, with_shapes
from onnxcomp.data.pixels import Pixels
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.data.synthetic import random_data
from onnxcomp.errors import DataError

__all__ = ["Source", "open_data", "random_data"]

Array = npt.NDArray[Any]
Source = str | Path | Callable[[], Any] | Array | Mapping[str, Any] | Iterable[Mapping[str, Any]]

IMAGES = "images"  # the key of raw pictures, and of arrays that come without a name
ACCEPTED = (
    "give .npz or .npy, a folder of images, a folder with test_data_set_0/input_0.pb, or module.py:function that "
    "yields {input name: array}"
)


def open_data(
    source: Source,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    labels: str | Path | Array | None = None,
    metadata: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Dataset:
    """Open data for a model; headers are read and checked, samples only when they are asked for.

    Args:
        source: an .npz, .npy, image or folder; `module.py:function`; a function; arrays; feeds.
        inputs: what the model takes.
        preprocess: how raw pictures become the input; model-ready arrays are not touched.
        labels: overrides the labels that the data carry.
        metadata: the model's, for what preprocessing does not say.
        shapes: sizes for the model's free dimensions, by input.

    Raises:
        DataError: there is no such data, it cannot be read, or it does not fit the model.
        UsageError: options that contradict the model.
    """
    return _Opener(with_shapes(inputs, shapes), preprocess or Preprocess(), labels, metadata or {}).open(source)


@dataclass
class _Opener:
    """One call of `open_data`."""

    inputs: tuple[InputSpec, ...]
    preprocess: Preprocess
    given_labels: str | Path | Array | None
    metadata: Mapping[str, str]
    guesses: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def open(self, source: Source) -> Dataset:
        if not self.inputs:
            raise DataError("the model has no inputs", where="the model's inputs", do="run it without --data")
        if isinstance(source, str | Path):
            try:
                return self._open_path(str(source))
            except OSError as error:
                raise DataError(
                    f"the data cannot be read: {error.strerror or error}", where=f"--data {source}", do="check the path"
                ) from error
        if isinstance(source, np.ndarray):
            return self._from_arrays({IMAGES: Rows("the given array", source)}, "the given array")
        if callable(source) and not isinstance(source, Mapping):
            return self._from_function(source, getattr(source, "__qualname__", "the given function"))
        return self._from_values(source, "the given data")

    def _open_path(self, source: str) -> Dataset:
        path = Path(source)
        if not path.exists():
            if looks_like_function(source):
                return self._from_function(load_function(source, "--data"), source)
            raise DataError(f"there is no file or folder {source}", where=f"--data {source}", do="check the path")
        if path.is_dir():
            if sets := test_sets_in(path):
                return self._from_units(TestSets(sets, self.inputs), source)
            return self._from_images(list_images(path), path, source)
        suffix = path.suffix.lower()
        if path.is_file() and suffix == ".npz":
            return self._from_arrays(open_npz(path), source)
        if path.is_file() and suffix == ".npy":
            return self._from_arrays({IMAGES: open_npy(path)}, source)
        if path.is_file() and suffix in SUFFIXES:
            return self._from_images(Listing((path,)), path.parent, source)
        raise DataError(f"{path.name} is no kind of data that is known", where=f"--data {source}", do=ACCEPTED)

    def _from_function(self, function: Callable[[], Any], name: str) -> Dataset:
        with calling(name, "the data function is called without arguments"):
            result = function()
        return self._from_values(result, name)

    def _from_values(self, values: Any, name: str) -> Dataset:
        if isinstance(values, Mapping):
            table = {str(key): Rows(f"{name}:{key}", np.asarray(value)) for key, value in values.items()}
            return self._from_arrays(table, name)
        if isinstance(values, np.ndarray):
            return self._from_arrays({IMAGES: Rows(name, values)}, name)
        if hasattr(values, "__len__") and hasattr(values, "__getitem__"):
            return self._from_units(_Checked(cast(Units, values), name), name)
        if isinstance(values, Iterable):
            return self._from_units(Spooled(values, name), name)
        raise DataError(f"{name} gave a {type(values).__name__}", where=name, do=ACCEPTED)

    # whole feeds

    def _from_units(self, units: Units, name: str) -> Dataset:
        if not len(units):
            raise DataError("the data hold no feeds", where=name, do=ACCEPTED)
        first = units[0]
        conform(first, self.inputs, f"{name}, feed 0")
        self._unused_flags()
        reader = FeedReader(units, self.inputs, name)
        return self._dataset(name, reader, labels=self._unit_labels(units, first, name))

    def _unit_labels(self, units: Units, first: Mapping[str, Any], name: str) -> list[Array] | None:
        own = LABELS in first and all(spec.name != LABELS for spec in self.inputs)
        if self.given_labels is None and not own:
            return None
        if self.given_labels is None:
            return [
                np.atleast_1d(labelling.read_labels(np.atleast_1d(_labels_in(u, i, name)))) for i, u in _walk(units)
            ]
        labels = labelling.read_labels(self.given_labels)
        if len(labels) == len(units):
            return list(labels[:, None])
        rows = [len(np.atleast_1d(unit[self.inputs[0].name])) for _, unit in _walk(units)]
        labelling.check_count(labels, sum(rows), name)
        return list(np.split(labels, np.cumsum(rows)[:-1]))

    # folders of images

    def _from_images(self, listing: Listing, folder: Path, name: str) -> Dataset:
        if len(self.inputs) > 1:
            raise DataError(
                f"a folder of images cannot feed a model with {len(self.inputs)} inputs",
                where=f"the inputs {', '.join(str(spec) for spec in self.inputs)}",
                do="give an .npz with an array under each input's name, or module.py:function",
            )
        (spec,) = self.inputs
        free = spec.shape is None or len(spec.shape) < 3 or not all(isinstance(d, int) for d in spec.shape[1:])
        size, channels = look_at(listing.files, len(listing.files) if free else 16)
        pixels = self._resolve(spec, RawImages(size, channels))
        files = ImageFiles(listing.files, pixels)
        names = [path.relative_to(folder).as_posix() for path in listing.files]
        labels = listing.labels if self.given_labels is None else labelling.read_labels(self.given_labels, names)
        if self.given_labels is None:
            self.guesses += listing.guesses
        self.problems += listing.problems
        reader = RowReader({spec.name: FileColumn(files)}, len(files), self._batch(pixels))
        dataset = self._dataset(name, reader, labels=labels)
        for start in range(0, len(files), 8):  # no readable image at all is an error now, not later
            if len(dataset.usable(np.arange(start, min(start + 8, len(files))))):
                return dataset
        raise dataset.nothing()

    # arrays

    def _from_arrays(self, table: dict[str, Rows], name: str) -> Dataset:
        chosen = self._assign(table, name)
        raw = {s.name: _is_raw(chosen[s.name], s, own_name=s.name in table) for s in self.inputs}
        single = any(
            not raw[spec.name] and spec.rank is not None and len(chosen[spec.name].shape) == spec.rank + 1
            for spec in self.inputs
        )
        lead = self._leading(chosen, raw, single, name)
        columns: dict[str, Column] = {}
        batches: set[int | None] = {1} if single else set()
        for spec in self.inputs:
            rows = chosen[spec.name]
            if raw[spec.name]:
                columns[spec.name] = column = self._pixel_column(rows, spec)
                batches.add(self._batch(column.pixels))
            elif spec.name in lead.constants:
                columns[spec.name] = self._constant(rows, spec)
            else:
                check_type(rows.dtype, spec, rows.name)
                check_shape(rows.shape[1:] if single else rows.shape, spec, rows.name, rows=not single)
                columns[spec.name] = ReadyColumn(rows, spec, single=single)
                batches.add(1 if single else spec.fixed(0))
        fixed = {size for size in batches if size}
        if len(fixed) > 1:
            raise DataError(
                "the model's inputs fix different numbers of rows, so that rows are not samples",
                where=", ".join(str(spec) for spec in self.inputs),
                do="give whole feeds: test_data_set_0/input_0.pb, or module.py:function that yields them",
            )
        if single:
            self.guesses.append(f"each row of {name} is one whole feed, guessed from its rank")
        if not any(raw.values()):
            self._unused_flags()
        reader = RowReader(columns, lead.samples, max(fixed, default=None))
        return self._dataset(name, reader, labels=self._array_labels(table))

    def _assign(self, table: dict[str, Rows], name: str) -> dict[str, Rows]:
        """An array for each input: by its name, else `images`, else the only one that is left."""
        names = [spec.name for spec in self.inputs]
        chosen = {key: table[key] for key in names if key in table}
        missing = [key for key in names if key not in chosen]
        spare = [key for key in table if key not in names and key != LABELS]
        if len(missing) == 1 and (IMAGES in spare or len(spare) == 1):
            key = IMAGES if IMAGES in spare else spare[0]
            chosen[missing[0]] = table[key]
            spare.remove(key)
            if key != IMAGES:
                self.guesses.append(f"{key} taken for the input {missing[0]}: override by naming the array so")
        elif missing:
            raise DataError(
                f"no array for the input{'s' * (len(missing) > 1)} {', '.join(missing)}",
                where=f"{name} holds {', '.join(table) or 'nothing'}",
                do="name the arrays like the model's inputs, or raw pictures of uint8 `images`",
            )
        self.problems += [f"{key} in {name} belongs to no input: left out" for key in spare]
        return chosen

    def _leading(self, chosen: dict[str, Rows], raw: dict[str, bool], single: bool, name: str) -> _Leading:
        """Number of samples, and the inputs that have no sample axis.

        Raises:
            DataError: the arrays have different numbers of samples, or none.
        """
        scalars = {s.name for s in self.inputs if not raw[s.name] and not chosen[s.name].shape}
        counted = {s.name: len(chosen[s.name]) for s in self.inputs if s.name not in scalars}
        # an array of exactly the size that the model fixes may be the same for all samples
        whole = {s.name for s in self.inputs if s.name in counted and s.fixed(0) == counted[s.name] and not raw[s.name]}
        varying = {count for key, count in counted.items() if key not in whole}
        if single or len(set(counted.values())) <= 1:
            constants = scalars
        elif len(varying) == 1:
            constants = scalars | {key for key in whole if counted[key] not in varying}
        elif not varying:
            largest = max(counted.values())
            constants = scalars | {key for key in whole if counted[key] != largest}
        else:
            raise _unequal(counted, name)
        lengths = {count for key, count in counted.items() if key not in constants}
        if len(lengths) > 1:
            raise _unequal(counted, name)
        samples = lengths.pop() if lengths else 1
        if not samples:
            raise DataError("the data hold no samples", where=name, do=ACCEPTED)
        return _Leading(samples, frozenset(constants))

    def _constant(self, rows: Rows, spec: InputSpec) -> ConstantColumn:
        check_type(rows.dtype, spec, rows.name)
        check_shape(rows.shape, spec, rows.name)
        if rows.shape:
            self.guesses.append(f"{spec.name} is the same in every feed, guessed from its shape {list(rows.shape)}")
        return ConstantColumn(rows.whole(), spec, rows.name)

    def _pixel_column(self, rows: Rows, spec: InputSpec) -> PixelColumn:
        first, size, channels = _raw_form(rows, spec)
        if len(rows.shape) == 4 and rows.shape[1] in CHANNELS and rows.shape[3] in CHANNELS:
            self.guesses.append(f"{rows.name} of shape {list(rows.shape)} read as [n, height, width, channels]")
        return PixelColumn(rows, self._resolve(spec, RawImages(size, channels)), channels_first=first)

    def _array_labels(self, table: Mapping[str, Rows]) -> Array | None:
        if self.given_labels is not None:
            return labelling.read_labels(self.given_labels)
        own = LABELS in table and all(spec.name != LABELS for spec in self.inputs)
        return labelling.read_labels(table[LABELS].whole()) if own else None

    # what all have in common

    def _resolve(self, spec: InputSpec, raw: RawImages) -> Pixels:
        pixels, guesses = resolve(self.preprocess, spec, raw, self.metadata)
        self.guesses += guesses
        return pixels

    def _batch(self, pixels: Pixels) -> int | None:
        return pixels.spec.fixed(0) if pixels.batched else 1

    def _unused_flags(self) -> None:
        if self.preprocess.given:
            flags = ", ".join(self.preprocess.given)
            self.problems.append(f"{flags} not used: the data are model-ready (float arrays of the input's rank)")

    def _dataset(self, name: str, reader: RowReader | FeedReader, labels: Array | list[Array] | None) -> Dataset:
        if isinstance(labels, np.ndarray):
            labelling.check_count(labels, len(reader), name)
        return Dataset(name, self.inputs, reader, labels=labels, guesses=self.guesses, problems=self.problems)


@dataclass(frozen=True)
class _Leading:
    samples: int
    constants: frozenset[str]


class _Checked:
    """A user's sequence of feeds, whose own errors are told as such."""

    def __init__(self, units: Units, name: str) -> None:
        self._units, self._name = units, name

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        with calling(self._name, "the sequence has to give {input name: array} for each index"):
            feed = self._units[index]
        if not isinstance(feed, Mapping):
            raise DataError(
                f"item {index} is a {type(feed).__name__}, not a dict", where=self._name, do="give {input name: array}"
            )
        return feed


def _walk(units: Units) -> Iterable[tuple[int, Mapping[str, Any]]]:
    return ((i, units[i]) for i in range(len(units)))


def _labels_in(unit: Mapping[str, Any], index: int, name: str) -> Array:
    if LABELS not in unit:
        raise DataError(f"feed {index} has no labels, feed 0 has", where=name, do="give labels with each feed or none")
    return np.atleast_1d(unit[LABELS])


def _is_raw(rows: Rows, spec: InputSpec, *, own_name: bool) -> bool:
    """Whether an array holds pictures that are to be preprocessed: unsigned 8 or 16 bits, for an input of pictures."""
    if rows.dtype.name not in ("uint8", "uint16") or len(rows.shape) < 2:
        return False
    if own_name and rows.dtype == spec.dtype and len(rows.shape) == spec.rank:
        return False
    if spec.dtype.kind in "iu" and spec.dtype.itemsize > 2:
        return False  # token numbers and indices, not pixels
    return spec.rank in (None, 3, 4) or (spec.rank == 2 and spec.dtype.kind == "f")


def _raw_form(rows: Rows, spec: InputSpec) -> tuple[bool, tuple[int, int], int]:
    """Whether channels come first, (height, width), and the number of channels of an array of pictures."""
    shape = rows.shape
    if len(shape) == 2:
        return False, (1, shape[1]), 1
    if len(shape) == 3 and shape[2] not in (3, 4):
        return False, (shape[1], shape[2]), 1
    if len(shape) == 4:
        wanted = {spec.fixed(axis) for axis in range(1, 4)} if spec.rank == 4 else set()
        if shape[3] in CHANNELS or (shape[1] not in CHANNELS and shape[3] in wanted):
            return False, (shape[1], shape[2]), shape[3]
        if shape[1] in CHANNELS or shape[1] in wanted:
            return True, (shape[2], shape[3]), shape[1]
    raise DataError(
        f"pictures of shape {list(shape)} cannot be read",
        where=rows.name,
        do="give [n, height, width] or [n, height, width, channels] of uint8, n pictures (1 for a single one)",
    )


def _unequal(counted: Mapping[str, int], name: str) -> DataError:
    return DataError(
        "the arrays hold different numbers of samples: " + ", ".join(f"{key} {n}" for key, n in counted.items()),
        where=name,
        do="give every input the same number of rows along axis 0",
    )
