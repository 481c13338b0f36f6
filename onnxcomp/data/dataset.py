"""What are the samples of a data source, and how are they read again and again as batches of feeds, lazily?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxcomp.data.arrays import Rows
from onnxcomp.data.axes import Axes
from onnxcomp.data.feeds import LABELS, Array, Feed, NotFiniteError, Units, check_finite, conform, convert
from onnxcomp.data.images import ImageFiles, narrow
from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.pixels import Pixels
from onnxcomp.data.states import Carry, Run, State, Unrolled
from onnxcomp.errors import DataError

Indices = npt.NDArray[np.intp]

BATCH_BYTES, BATCH_SAMPLES = 4 << 20, 64  # a batch by default: large enough for speed, small beside any model
NAMED = 10  # so many unreadable files are named, the rest counted


class Column(Protocol):
    """One input's part of every sample."""

    def read(self, indices: Indices, *, finite: bool = True) -> Array:
        """The model's input for these samples; with `finite` NaN and infinity are refused."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""


class ReadyColumn:
    """An array that is model-ready but for its exact number type.

    `axis` counts the samples; `single`: along axis 0, and each row is the whole input of one feed.
    """

    def __init__(self, rows: Rows, spec: InputSpec, *, axis: int = 0, single: bool = False) -> None:
        self._rows, self._spec, self._axis, self._single = rows, spec, axis, single

    def read(self, indices: Indices, *, finite: bool = True) -> Array:
        """The samples, converted."""
        array = convert(self._rows.read(indices, self._axis), self._spec, self._rows.name)
        if finite:
            check_finite(array, self._spec, self._rows.name, indices, self._axis)
        return np.asarray(array[0]) if self._single else array

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        count = max(self._rows.shape[self._axis], 1)
        return int(np.prod(self._rows.shape, dtype=np.int64)) // count * self._spec.dtype.itemsize


class ConstantColumn:
    """An input that is the same in every feed."""

    def __init__(self, array: Array, spec: InputSpec, name: str) -> None:
        self._array, self._spec, self._name = convert(array, spec, name), spec, name

    def read(self, indices: Indices, *, finite: bool = True) -> Array:
        """The constant."""
        if finite:
            check_finite(self._array, self._spec, self._name)
        return self._array

    @property
    def row_bytes(self) -> int:
        """A constant adds nothing to a sample."""
        return 0


class PixelColumn:
    """An array of raw pictures: [n, h, w], [n, h, w, c] or (`channels_first`) [n, c, h, w]; flat rows [n, length]."""

    def __init__(self, rows: Rows, pixels: Pixels, *, channels_first: bool) -> None:
        self._rows, self.pixels, self._first = rows, pixels, channels_first

    def read(self, indices: Indices, *, finite: bool = True) -> Array:
        """The pictures, preprocessed."""
        raw = self._rows.read(indices)
        if raw.dtype != np.uint8:
            raw = narrow(raw)
        if raw.ndim == 2:
            raw = raw[:, None]  # [n, length] -> [n, 1, length]
        if raw.ndim == 3:
            raw = raw[..., None]
        elif self._first:
            raw = raw.transpose(0, 2, 3, 1)
        return self.pixels.tensor(self.pixels.canvases(raw))

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return _tensor_bytes(self.pixels)


class FileColumn:
    """A folder of images."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.pixels = files.pixels

    def read(self, indices: Indices, *, finite: bool = True) -> Array:
        """The pictures, preprocessed."""
        return self.files.read(indices)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return _tensor_bytes(self.pixels)


class Reader(Protocol):
    """Where a Dataset has its feeds from. `batch`: samples that the model fixes for every feed, or None."""

    batch: int | None

    def __len__(self) -> int:
        """How many samples."""

    def read(self, indices: Indices, *, finite: bool = True) -> Feed:
        """One feed of these samples; with `finite` NaN and infinity are refused."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""


class RowReader:
    """Feeds put together from columns; a sample is one row of each."""

    def __init__(self, columns: Mapping[str, Column], samples: int, batch: int | None) -> None:
        self.columns, self.batch, self._samples = dict(columns), batch, samples

    def __len__(self) -> int:
        return self._samples

    def read(self, indices: Indices, *, finite: bool = True) -> Feed:
        """One feed of these samples."""
        return {name: column.read(indices, finite=finite) for name, column in self.columns.items()}

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return sum(column.row_bytes for column in self.columns.values())


class FeedReader:
    """Sources that come as whole feeds: a sample is one feed, whatever its batch size.

    Where a run proves that the rows of a feed are samples, `RowsOfFeeds` takes its place.
    """

    batch: int | None = 1
    sample_bytes = 0

    def __init__(self, units: Units, inputs: Sequence[InputSpec], where: str) -> None:
        self.units, self._inputs, self._where = units, inputs, where

    def __len__(self) -> int:
        return len(self.units)

    def read(self, indices: Indices, *, finite: bool = True) -> Feed:
        """The feed of the one index."""
        (index,) = indices
        return conform(self.units[int(index)], self._inputs, f"{self._where}, feed {index}", finite=finite)

    def rows_of(self, index: int) -> int:
        """Rows of a feed along the axes that the model leaves free for samples; 1 where its inputs disagree."""
        unit = self.units[index]
        sizes = {np.shape(unit[s.name])[s.axis] for s in self._divided() if s.axis is not None and s.name in unit}
        return sizes.pop() if len(sizes) == 1 else 1

    def divided(self) -> RowsOfFeeds:
        """The same source with a row of each feed as a sample."""
        counts = [self.rows_of(i) for i in range(len(self))]
        return RowsOfFeeds(self, counts, {s.name: s.axis for s in self._divided() if s.axis is not None})

    def _divided(self) -> list[InputSpec]:
        return [s for s in self._inputs if s.axis is not None and s.rank and s.batch is None]


class RowsOfFeeds:
    """Feeds of several samples each: a sample is one row, along the axis that counts samples in each input.

    Rows of one shape go together in one feed; inputs without such an axis are those of the first row's feed.
    """

    def __init__(self, feeds: FeedReader, counts: Sequence[int], axes: Mapping[str, int]) -> None:
        self._feeds, self._axes, self.counts = feeds, dict(axes), list(counts)
        self._feed_of = np.repeat(np.arange(len(counts)), counts)
        self._row_of = np.concatenate([np.arange(n) for n in counts])
        self._last: tuple[int, bool, Feed] | None = None
        shapes = {self._shapes(feeds.units[i]) for i in range(len(counts))}
        self.batch: int | None = None if len(shapes) == 1 else 1
        first = self.read(np.array([0]), finite=False)
        self.sample_bytes = sum(first[name].nbytes for name in self._axes)

    def __len__(self) -> int:
        return len(self._feed_of)

    def read(self, indices: Indices, *, finite: bool = True) -> Feed:
        """One feed of these rows."""
        parts: list[Feed] = []
        for index in np.unique(self._feed_of[indices]):
            feed, rows = self._feed(int(index), finite=finite), self._row_of[indices[self._feed_of[indices] == index]]
            parts.append({name: np.take(feed[name], rows, axis) for name, axis in self._axes.items()})
        place = np.argsort(np.argsort(self._feed_of[indices], kind="stable"), kind="stable")  # as they were asked for
        joined = {n: np.take(np.concatenate([p[n] for p in parts], a), place, a) for n, a in self._axes.items()}
        whole = self._feed(int(self._feed_of[indices[0]]), finite=finite)
        return {name: joined.get(name, array) for name, array in whole.items()}

    def _feed(self, index: int, *, finite: bool) -> Feed:
        """A feed, kept until another is read: its rows are asked for one after the other."""
        if self._last is None or self._last[:2] != (index, finite):
            self._last = index, finite, self._feeds.read(np.array([index]), finite=finite)
        return self._last[2]

    def _shapes(self, unit: Mapping[str, Any]) -> tuple[Any, ...]:
        """Shapes of a row, and the values of what all rows of a feed share: only where both are equal do rows mix."""
        own = [(n, tuple(np.delete(np.shape(unit[n]), axis))) for n, axis in self._axes.items()]
        shared = [(n, np.asarray(v).tobytes()) for n, v in unit.items() if n not in self._axes and n != LABELS]
        return (*own, *shared)


class StepReader:
    """Steps of a stateful model: what the source gives of one, and the state that the float model has before it."""

    batch: int | None = 1

    def __init__(self, inner: Reader, unrolled: Unrolled) -> None:
        self.inner, self.unrolled = inner, unrolled

    def __len__(self) -> int:
        return len(self.unrolled.sequence_of)

    def read(self, indices: Indices, *, finite: bool = True) -> Feed:
        """The feed of the one step."""
        (index,) = indices
        return {**self.inner.read(indices, finite=finite), **self.unrolled.before(int(index))}

    @property
    def sample_bytes(self) -> int:
        """Bytes of one step."""
        return self.inner.sample_bytes


class Dataset:
    """Samples of any source, read lazily.

    Attributes:
        source: where they come from, in words for reports.
        inputs: what the model takes.
        guesses: one line for each guess, with the flag that overrides it.
        labels: [n, ...] for all samples; None if there are none. For whole feeds: one label a feed, or a row.
        pixels: input name -> how pictures become that input; empty for model-ready data.
        synthetic: whether the values are made up.
        axes: along which axis of each input and output samples lie.
        most: samples that one run of the model may hold at a time; None where nothing is known.
        class_folders: how many folders the labels are the numbers of; 0 where they come from elsewhere.
        states: for a stateful model whose samples are steps: which output is which input of the next step.
    """

    def __init__(
        self,
        source: str,
        inputs: Sequence[InputSpec],
        reader: Reader,
        *,
        labels: Array | Sequence[Array] | None = None,
        guesses: Sequence[str] = (),
        problems: Sequence[str] = (),
        synthetic: bool = False,
        states: Sequence[State] = (),
    ) -> None:
        self.source = source
        self.inputs = tuple(inputs)
        self.reader = reader
        self.synthetic = synthetic
        self.states = tuple(states)
        self.most: int | None = None
        self.class_folders = 0
        self.axes = Axes({spec.name: spec.axis for spec in inputs})
        self._labels = labels
        self._guesses = tuple(guesses)
        self._problems = tuple(problems)
        inner = reader.inner if isinstance(reader, StepReader) else reader
        columns = inner.columns if isinstance(inner, RowReader) else {}
        self.pixels = {n: c.pixels for n, c in columns.items() if isinstance(c, PixelColumn | FileColumn)}
        self._files = next((c.files for c in columns.values() if isinstance(c, FileColumn)), None)
        self._run: Run | None = None
        self._borne: set[int] = set()  # samples with NaN or infinity that the model takes
        self._odd: set[str] = set()

    def __len__(self) -> int:
        """Samples that the source lists, images that turn out unreadable included."""
        return len(self.reader)

    def settle(self, axes: Axes, batch: int | None, remarks: Sequence[str] = (), most: int | None = None) -> None:
        """Keep what runs of the model have proven.

        Args:
            axes: where samples lie.
            batch: how many one run takes; None for any number.
            remarks: what to say of it, with the guesses.
            most: how many one run may hold, for want of memory; None for any number.
        """
        self.axes, self.reader.batch, self.most = axes, batch, most
        self._guesses = (*self._guesses, *remarks)

    def remark(self, text: str) -> None:
        """Say something of the samples, with the guesses."""
        self._guesses = (*self._guesses, text)

    def divide(self) -> bool:
        """Count the rows of whole feeds as samples; False where the labels tell that a feed is one."""
        assert isinstance(self.reader, FeedReader)
        reader = self.reader.divided()
        if self._labels is not None:
            labels = [np.asarray(label) for label in self._labels]
            if [len(np.atleast_1d(label)) for label in labels] != reader.counts:
                return False
            self._labels = np.concatenate(labels)
        self.reader = reader
        return True

    def give_session(self, run: Run) -> None:
        """Let the float original say which states a stateful model has, and whether it takes NaN or infinity."""
        self._run = run
        if isinstance(self.reader, StepReader):
            self.reader.unrolled.run = run

    def read(self, indices: Indices) -> Feed:
        """One feed of these samples. NaN and infinity are taken where what the model makes of them is finite.

        Raises:
            DataError: a sample does not fit, or holds NaN or infinity that come out of the model again.
        """
        if self._borne.issuperset(indices.tolist()):
            return self.reader.read(indices, finite=False)
        try:
            return self.reader.read(indices)
        except NotFiniteError as error:
            feed = self.reader.read(indices, finite=False)
            if not self._takes(feed):
                if self.reader.batch in (None, 1):
                    for index in indices if len(indices) > 1 else ():
                        self.read(np.asarray([index], np.intp))  # names the one that it does not take
                raise
            self._borne.update(indices.tolist())
            self._odd.add(f"the data hold {error.value} in input {error.input}: what the model makes of it is finite")
            return feed

    def _takes(self, feed: Feed) -> bool:
        if self._run is None:
            return False
        outputs = [np.asarray(value) for value in self._run(feed).values()]
        return all(not np.isnan(v).any() and not np.isposinf(v).any() for v in outputs if v.dtype.kind == "f")

    @property
    def sequence_of(self) -> Indices | None:
        """The number of the sequence that each sample is a step of, in order; None where samples stand alone."""
        return self.reader.unrolled.sequence_of if isinstance(self.reader, StepReader) else None

    @property
    def labels(self) -> Array | None:
        """Labels of all samples."""
        return self.labels_of(np.arange(len(self)))

    @property
    def guesses(self) -> tuple[str, ...]:
        """What was guessed, and what was done to images that are not plain 8-bit ones; grows while images are read."""
        remarks = self._files.remarks if self._files else {}
        return (*self._guesses, *(f"{n} image{'s' * (n > 1)} {what}" for what, n in sorted(remarks.items())))

    @property
    def problems(self) -> tuple[str, ...]:
        """What was left out: unreadable images, counted and named, unused arrays; grows while images are read."""
        bad = self._files.bad if self._files else {}
        if not bad or not self._files:
            return (*self._problems, *sorted(self._odd))
        verb = "image is unreadable and left" if len(bad) == 1 else "images are unreadable and left"
        named = [f"{self._files.files[i]}: {bad[i]}" for i in sorted(bad)[:NAMED]]
        more = [f"and {len(bad) - NAMED} more"] * (len(bad) > NAMED)
        return (*self._problems, f"{len(bad)} {verb} out, of {len(self)}", *named, *more)

    def labels_of(self, indices: Indices) -> Array | None:
        """Labels of some samples, in their order."""
        if self._labels is None:
            return None
        if isinstance(self._labels, np.ndarray):
            return self._labels[indices]
        return np.concatenate([self._labels[int(i)] for i in indices])

    def name_of(self, index: int) -> str:
        """A short name of one sample, for people."""
        return self._files.files[index].name if self._files else f"sample {index}"

    def usable(self, indices: Indices) -> Indices:
        """Those of the indices whose samples can be read; images are decoded for that, once."""
        indices = np.asarray(indices, np.intp)
        return indices[self._files.usable(indices)] if self._files else indices

    def subset(self, indices: npt.ArrayLike) -> Samples:
        """The samples of these indices, in this order, without those that are unreadable."""
        return Samples(self, self.usable(np.asarray(indices, np.intp)))

    def samples(self) -> Samples:
        """All samples, in the order of the source, without those that are unreadable.

        Raises:
            DataError: none is left.
        """
        samples = self.subset(np.arange(len(self)))
        if not len(samples):
            raise self.nothing()
        return samples

    def nothing(self) -> DataError:
        """The error that says that no sample can be used."""
        few = self.reader.batch and 0 < len(self) < self.reader.batch
        what = f"{len(self)} samples, and the model takes {self.reader.batch} at a time" if few else "no usable sample"
        return DataError(what, where="; ".join([self.source, *self.problems[:3]]), do="give more, or other data")


class Samples:
    """A part of a Dataset. Can be iterated again and again; holds indices, and in memory never more than one batch.

    Where the model fixes its batch above 1, the samples that fill no batch at the end are left out, and not counted.
    """

    def __init__(self, dataset: Dataset, indices: Indices) -> None:
        self.dataset = dataset
        batch = dataset.reader.batch or 1
        self.indices = indices[: len(indices) // batch * batch]

    @property
    def source(self) -> str:
        """Where they come from."""
        return self.dataset.source

    @property
    def labels(self) -> Array | None:
        """Labels in the order of the samples, or None."""
        return self.dataset.labels_of(self.indices)

    @property
    def axes(self) -> Axes:
        """Along which axis of each input and output samples lie."""
        return self.dataset.axes

    @property
    def batch(self) -> int | None:
        """How many samples one run takes; None for any number."""
        return self.dataset.reader.batch

    @property
    def starts(self) -> npt.NDArray[np.bool_] | None:
        """Which samples begin a sequence of a stateful model; None where samples stand alone."""
        sequences = self.dataset.sequence_of
        if sequences is None:
            return None
        own = sequences[self.indices]
        return np.concatenate([[True], own[1:] != own[:-1]])

    def carry(self) -> Carry:
        """What gives a model its own states back while it is run on these samples one by one, in order."""
        starts = self.starts
        return Carry() if starts is None else Carry(self.dataset.states, starts)

    def __len__(self) -> int:
        return len(self.indices)

    def step(self, size: int | None = None) -> int:
        """How many samples a feed of `batches(size)` holds: the model's fixed batch, or as many as memory allows."""
        reader = self.dataset.reader
        fitting = max(1, min(BATCH_SAMPLES, BATCH_BYTES // max(reader.sample_bytes, 1)))
        return reader.batch or max(1, min(size or fitting, self.dataset.most or size or fitting))

    def batches(self, size: int | None = None) -> Iterator[dict[str, Any]]:
        """Feeds in the model's types and rank, in order; `size` samples each, or as many as `step` says.

        Raises:
            DataError: a sample holds NaN or infinity, or does not fit; it is named.
        """
        step = self.step(size)
        for start in range(0, len(self.indices), step):
            yield self.dataset.read(self.indices[start : start + step])

    def head(self, n: int) -> Samples:
        """The first n; at least one batch where the model fixes its batch."""
        return Samples(self.dataset, self.indices[: max(n, self.dataset.reader.batch or 1)])


def _tensor_bytes(pixels: Pixels) -> int:
    return int(np.prod(pixels.canvas_shape)) * pixels.spec.dtype.itemsize
