"""What kind of data is this? Any source that users have at hand becomes a Dataset for one model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onnxcomp.data import labels as labelling
from onnxcomp.data.arrays import Rows, Steps, open_npy, open_npz
from onnxcomp.data.dataset import (
    Column,
    ConstantColumn,
    Dataset,
    FeedReader,
    FileColumn,
    PixelColumn,
    Reader,
    ReadyColumn,
    RowReader,
    StepReader,
)
from onnxcomp.data.feeds import (
    LABELS,
    Spooled,
    TestSets,
    Units,
    as_feed,
    check_shape,
    check_type,
    conform,
    shape_fits,
    test_sets_in,
)
from onnxcomp.data.functions import calling, load_function, looks_like_function
from onnxcomp.data.guesses import CHANNELS, RawImages, resolve
from onnxcomp.data.images import SUFFIXES, ImageFiles, Listing, list_images, look_at
from onnxcomp.data.inputs import InputSpec, with_shapes
from onnxcomp.data.pixels import Pixels
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.data.states import State, Unrolled, windows, zeros_for
from onnxcomp.data.synthetic import random_data
from onnxcomp.errors import DataError

__all__ = ["Source", "open_data", "random_data"]

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]
Source = str | Path | Callable[[], Any] | Array | Mapping[str, Any] | Iterable[Any]

IMAGES = "images"  # the key of raw pictures, and of arrays that come without a name
PICTURES = "give [n, height, width] or [n, height, width, channels] of uint8, n pictures (1 for a single one)"
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
    states: Sequence[State] = (),
) -> Dataset:
    """Open data for a model; headers are read and checked, samples only when they are asked for.

    Args:
        source: an .npz, .npy, image or folder; `module.py:function`; a function; arrays; feeds.
        inputs: what the model takes.
        preprocess: how raw pictures become the input; model-ready arrays are not touched.
        labels: overrides the labels that the data carry.
        metadata: the model's, for what preprocessing does not say.
        shapes: sizes for the model's free dimensions, by input.
        states: outputs that are inputs of the next step; where the data hold no array for such an input, samples are
            the steps of sequences, and the float model gives their states (see `Dataset.give_session`).

    Raises:
        DataError: there is no such data, it cannot be read, or it does not fit the model.
        UsageError: options that contradict the model.
    """
    specs = with_shapes(inputs, shapes)
    return _Opener(specs, preprocess or Preprocess(), labels, metadata or {}, tuple(states)).open(source)


def is_stream(source: Source) -> bool:
    """Whether a source is an iterator or the like, that gives its feeds in one go and perhaps never again."""
    known = isinstance(source, str | Path | np.ndarray | Mapping) or callable(source)
    return not known and isinstance(source, Iterable) and not hasattr(source, "__getitem__")


@dataclass
class _Opener:
    """One call of `open_data`."""

    inputs: tuple[InputSpec, ...]
    preprocess: Preprocess
    given_labels: str | Path | Array | None
    metadata: Mapping[str, str]
    states: tuple[State, ...] = ()
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
            return self._from_units(_Checked(cast(Units, values), self.inputs, name), name)
        if isinstance(values, Iterable):
            return self._from_units(Spooled(values, self.inputs, name), name)
        raise DataError(f"{name} gave a value of type {type(values).__name__}", where=name, do=ACCEPTED)

    # whole feeds

    def _from_units(self, units: Units, name: str) -> Dataset:
        if not len(units):
            raise DataError("the data hold no feeds", where=name, do=ACCEPTED)
        first = units[0]
        carried = self._carried(first)
        fed = self._fed(carried)
        conform(first, fed, f"{name}, feed 0")
        self._unused_flags()
        labels = self._unit_labels(units, first, name)
        inner = FeedReader(units, fed, name)
        if not carried:
            return self._dataset(name, inner, labels=labels)
        self.guesses.append(f"feed after feed of {name} is a step of one stream, {self._cut(len(units))}")
        return self._dataset(name, self._stepped(inner, carried, windows(len(units))), labels=labels)

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
        if self.given_labels is None and labels is not None:
            dataset.class_folders = len(np.unique(labels))
        for start in range(0, len(files), 8):  # no readable image at all is an error now, not later
            if len(dataset.usable(np.arange(start, min(start + 8, len(files))))):
                return dataset
        raise dataset.nothing()

    # arrays

    def _from_arrays(self, table: dict[str, Rows], name: str) -> Dataset:
        carried = self._carried(table)
        specs = self._fed(carried)
        chosen = self._assign(table, name, specs)
        sequences = self._sequences(chosen, specs, name) if carried else []
        raw = {s.name: _is_raw(chosen[s.name], s, own_name=s.name in table) for s in specs}
        single = {s.name for s in specs if not raw[s.name] and _is_single(chosen[s.name], s)}
        count = max((rows.shape[0] for key, rows in chosen.items() if raw[key] or key in single), default=0)
        axes = _axes({s: chosen[s.name].shape for s in specs if not raw[s.name] and s.name not in single}, count)
        lead = self._leading(chosen, specs, axes, name)
        columns: dict[str, Column] = {}
        batches: set[int | None] = {1} if single else set()
        for spec in specs:
            rows = chosen[spec.name]
            if raw[spec.name]:
                columns[spec.name] = column = self._pixel_column(rows, spec)
                batches.add(self._batch(column.pixels))
            elif spec.name in lead.constants:
                columns[spec.name] = self._constant(rows, spec)
            else:
                axis = axes.get(spec.name) or 0
                check_type(rows.dtype, spec, rows.name)
                alone = spec.name in single
                check_shape(rows.shape[1:] if alone else rows.shape, spec, rows.name, rows=None if alone else axis)
                columns[spec.name] = ReadyColumn(rows, spec, axis=axis, single=alone)
                batches.add(1 if alone else spec.fixed(axis))
        fixed = {size for size in batches if size}
        if len(fixed) > 1:
            raise DataError(
                "the model's inputs fix different numbers of rows, so that rows are not samples",
                where=", ".join(str(spec) for spec in self.inputs),
                do="give whole feeds: test_data_set_0/input_0.pb, or module.py:function that yields them",
            )
        if single and not carried:
            self.guesses.append(f"each row of {name} is one whole feed, guessed from its rank")
        if not any(raw.values()):
            self._unused_flags()
        # a row that is a whole feed of more than one along the model's own axis is one sample all the same
        whole: dict[str, int | None] = {s.name: None for s in specs if s.name in single and s.batch != 1}
        self._place({**axes, **whole}, lead.constants)
        labels = self._array_labels(table)
        reader = RowReader(columns, lead.samples, max(fixed, default=None))
        if not carried:
            return self._dataset(name, reader, labels=labels)
        return self._dataset(name, self._stepped(reader, carried, sequences or windows(lead.samples)), labels=labels)

    def _place(self, axes: Mapping[str, int | None], constants: frozenset[str]) -> None:
        """Keep along which axis the arrays turned out to have their samples, and say so where that is not axis 0."""
        placed = {name: None if name in constants else axis for name, axis in axes.items()}
        self.inputs = tuple(replace(s, axis=placed[s.name]) if s.name in placed else s for s in self.inputs)
        for name, axis in placed.items():
            if axis:
                self.guesses.append(
                    f"samples of {name} lie along axis {axis}, guessed from the model: give [samples, ...] with one "
                    "dimension more for whole feeds"
                )

    # steps of a stateful model

    def _carried(self, given: Mapping[str, Any]) -> tuple[State, ...]:
        """The states that the data do not hold; all or none, for they go together."""
        return self.states if self.states and all(state.input not in given for state in self.states) else ()

    def _fed(self, carried: Sequence[State]) -> tuple[InputSpec, ...]:
        """The inputs that the data have to hold."""
        own = {state.input for state in carried}
        return tuple(spec for spec in self.inputs if spec.name not in own)

    def _stepped(self, inner: Reader, carried: Sequence[State], sequences: Sequence[Indices]) -> StepReader:
        own = {state.input for state in carried}
        first = {spec.name: zeros_for(spec) for spec in self.inputs if spec.name in own}

        def read(step: int) -> dict[str, Array]:
            return inner.read(np.array([step]))

        self.guesses += [f"{s.output} is {s.input} of the next step, from 0 on: override with --state" for s in carried]
        return StepReader(inner, Unrolled(read, carried, first, sequences))

    def _sequences(self, chosen: dict[str, Rows], specs: Sequence[InputSpec], name: str) -> list[Indices]:
        """The steps of each sequence, where arrays are [sequences, steps, ...], which are then read step by step."""
        found = {s.name for s in specs if _holds_sequences(chosen[s.name].shape, s)}
        sizes = {chosen[key].shape[:2] for key in found}
        if len(sizes) > 1:
            shapes = ", ".join(f"{key} {list(chosen[key].shape)}" for key in sorted(found))
            raise DataError("the arrays hold different numbers of steps", where=f"{name}: {shapes}", do=ACCEPTED)
        if not sizes:
            steps = max((rows.shape[0] for rows in chosen.values() if rows.shape), default=1)
            self.guesses.append(f"row after row of {name} is a step of one stream, {self._cut(steps)}")
            return []
        ((count, steps),) = sizes
        chosen.update({key: Steps(chosen[key]) for key in found})
        self.guesses.append(f"{name} holds {count} sequences of {steps} steps, guessed from its shape")
        return list(np.arange(count * steps).reshape(count, steps))

    def _cut(self, steps: int) -> str:
        cut = windows(steps)
        return f"cut into {len(cut)} sequences of {len(cut[0])} steps: give [sequences, steps, ...] for others"

    def _assign(self, table: dict[str, Rows], name: str, specs: Sequence[InputSpec]) -> dict[str, Rows]:
        """An array for each input: by its name, else `images`, else the only one that is left."""
        names = [spec.name for spec in specs]
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

    def _leading(
        self,
        chosen: dict[str, Rows],
        specs: Sequence[InputSpec],
        axes: Mapping[str, int | None],
        name: str,
    ) -> _Leading:
        """Number of samples, and the inputs that have no sample axis.

        Raises:
            DataError: the arrays have different numbers of samples, or none.
        """
        scalars = {key for key, axis in axes.items() if axis is None}
        counted = {s.name: chosen[s.name].shape[axes.get(s.name) or 0] for s in specs if s.name not in scalars}
        # an array of exactly the size that the model fixes may be the same for all samples
        whole = {s.name for s in specs if s.name in axes and _may_be_constant(chosen[s.name].shape, s, axes[s.name])}
        whole &= set(counted)
        varying = {count for key, count in counted.items() if key not in whole}
        if len(set(counted.values())) <= 1:
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
        if spec.rank == 0 and len(rows.shape) == 1 and rows.shape[0] == 1:
            return ConstantColumn(rows.whole().reshape(()), spec, rows.name)
        check_type(rows.dtype, spec, rows.name)
        check_shape(rows.shape, spec, rows.name)
        if rows.shape:
            self.guesses.append(f"{spec.name} is the same in every feed, guessed from its shape {list(rows.shape)}")
        return ConstantColumn(rows.whole(), spec, rows.name)

    def _pixel_column(self, rows: Rows, spec: InputSpec) -> PixelColumn:
        first, size, channels = _raw_form(rows, spec)
        if 0 in size:
            raise DataError(
                f"pictures of shape {list(rows.shape)} have no height or no width", where=rows.name, do=PICTURES
            )
        if len(rows.shape) == 4 and rows.shape[1] in CHANNELS and rows.shape[3] in CHANNELS:
            self.guesses.append(f"{rows.name} of shape {list(rows.shape)} read as [n, height, width, channels]")
        pixels = self._resolve(spec, RawImages(size, channels))
        if 1 in size and 1 not in (pixels.height, pixels.width):
            raise DataError(
                f"pictures of {size[0]} by {size[1]} pixels for a model that takes {pixels.height} by {pixels.width}",
                where=f"{rows.name} of shape {list(rows.shape)}, input {spec}",
                do=f"rows of numbers are not stretched to pictures: reshape them; {PICTURES}",
            )
        return PixelColumn(rows, pixels, channels_first=first)

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

    def _dataset(
        self, name: str, reader: RowReader | FeedReader | StepReader, labels: Array | list[Array] | None
    ) -> Dataset:
        if isinstance(labels, np.ndarray):
            labelling.check_count(labels, len(reader), name)
        stepped = isinstance(reader, StepReader)
        return Dataset(
            name,
            self.inputs,
            reader,
            labels=labels,
            guesses=self.guesses,
            problems=self.problems,
            states=self.states if stepped else (),
        )


def _is_single(rows: Rows, spec: InputSpec) -> bool:
    """Whether each row is the whole input of one feed."""
    return spec.rank is not None and len(rows.shape) == spec.rank + 1 and not (spec.rank == 0 and rows.shape[0] == 1)


def _axes(shapes: Mapping[InputSpec, tuple[int, ...]], count: int) -> dict[str, int | None]:
    """The axis of each array of its input's rank that counts samples: the model's, or another where only that fits.

    [2, n, 64] for an input [2, 1, 64] of two layers' states has its samples along axis 1, and so has [1, n, 64] for
    [1, 1, 64] beside an array of n samples.

    Args:
        count: samples that other arrays hold; 0 where there are none.
    """
    found = {
        spec.name: None if spec.axis is None or not shape else spec.axis if _fits(shape, spec) else _other(shape, spec)
        for spec, shape in shapes.items()
    }
    counts = [shape[axis] for spec, shape in shapes.items() if (axis := found[spec.name]) is not None]
    most = max((count, *counts))
    for spec, shape in shapes.items():
        axis = found[spec.name]
        if axis is not None and spec.batch == shape[axis] == 1 < most:
            others = [a for a in range(len(shape)) if shape[a] == most and spec.fixed(a) == 1]
            found[spec.name] = next((a for a in others if shape_fits(shape, spec, a)), axis)
    return found


def _fits(shape: tuple[int, ...], spec: InputSpec) -> bool:
    return spec.rank is None or shape_fits(shape, spec, spec.axis) or (spec.batch or 1) == 1


def _other(shape: tuple[int, ...], spec: InputSpec) -> int | None:
    others = [axis for axis in range(len(shape)) if spec.fixed(axis) == 1 and shape_fits(shape, spec, axis)]
    return others[0] if others else spec.axis


def _may_be_constant(shape: tuple[int, ...], spec: InputSpec, axis: int | None) -> bool:
    return axis is not None and spec.fixed(axis) == shape[axis]


def _holds_sequences(shape: tuple[int, ...], spec: InputSpec) -> bool:
    """Whether an array is [sequences, steps, ...] for a model that takes one step."""
    if spec.rank is None or spec.axis is None or len(shape) < 3:
        return False
    if len(shape) == spec.rank + 2:
        return True
    # one dimension more: [n, 1, ...] are whole feeds, and where the batch stands something else are the steps
    return len(shape) == spec.rank + 1 and shape[1] > 1 and shape_fits((shape[0], *shape[2:]), spec, spec.axis)


@dataclass(frozen=True)
class _Leading:
    samples: int
    constants: frozenset[str]


class _Checked:
    """A user's sequence of feeds, whose own errors are told as such."""

    def __init__(self, units: Units, inputs: Sequence[InputSpec], name: str) -> None:
        self._units, self._inputs, self._name = units, inputs, name

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        with calling(self._name, "the sequence has to give {input name: array} for each index"):
            item = self._units[index]
        return as_feed(item, self._inputs, f"{self._name}, item {index}")


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
        ends = {spec.fixed(1), spec.fixed(3)} - {None} if spec.rank == 4 else set()
        wanted = {count for count in ends if count in CHANNELS} or ends  # [N, 3, 32, 32] has 3 channels and not 32
        if shape[3] in CHANNELS or (shape[1] not in CHANNELS and shape[3] in wanted):
            return False, (shape[1], shape[2]), shape[3]
        if shape[1] in CHANNELS or shape[1] in wanted:
            return True, (shape[2], shape[3]), shape[1]
    raise DataError(
        f"pictures of shape {list(shape)} cannot be read",
        where=rows.name,
        do=PICTURES,
    )


def _unequal(counted: Mapping[str, int], name: str) -> DataError:
    return DataError(
        "the arrays hold different numbers of samples: " + ", ".join(f"{key} {n}" for key, n in counted.items()),
        where=name,
        do="give every input the same number of rows along axis 0",
    )
