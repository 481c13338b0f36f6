"""How do two models answer to the same samples? Both are opened once and fed batch by batch; nothing piles up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxcomp.data.axes import Axes
from onnxcomp.data.dataset import Samples as Stored
from onnxcomp.data.states import Carry
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.acceleration import PLAIN, Acceleration, reference
from onnxcomp.runtime.closeness import is_float
from onnxcomp.runtime.machine import usable_cores
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.providers import full_name
from onnxcomp.runtime.session import Array, Port, Session
from onnxcomp.verify.opened import Given, OpenedModel, Recording

# a batch is as large as these allow; more does not run faster and takes memory
BATCH_ROWS = 32
BATCH_BYTES = 4 << 20
# two models of which the files are larger than this together are run one after the other
LARGE_BYTES = 512 << 20


class Samples(Protocol):
    """What is asked of data: how many samples there are, their labels, and feeds of some of them, in order."""

    @property
    def labels(self) -> Array | None:
        """What a metric compares the outputs with; None when there are none."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples along the first axis, or of as many as the model fixes; the last may hold fewer."""
        ...


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of one model; `where` names its file."""

    where: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Answer:
    """Outputs of one batch: `rows` samples, the outputs of each model by name, and what went in.

    `step`: of a stateful model's sequence, None elsewhere; `carried` names the outputs that are states.
    """

    rows: int
    outputs: tuple[dict[str, Array], ...]
    inputs: dict[str, Array] = field(default_factory=dict)
    step: int | None = None
    carried: frozenset[str] = frozenset()


def check_runs(model: Path | OpenedModel) -> None:
    """Find out before long work whether a model can be run and judged at all; nothing is computed.

    Raises:
        ModelError: the runtime refuses it, or an output is no tensor.
    """
    session = OpenedModel.of(model).plain()
    for port in session.inputs:
        if port.dtype is None:
            raise ModelError(
                f"the input {port.name!r} is a {port.type}, which no data can be given for",
                where=session.where,
                do="export the model with tensor inputs",
            )
    _check_outputs(Interface(session.where, session.inputs, session.outputs))


class Runner:
    """One or two models with the same inputs and outputs, run on the same samples.

    Models above `LARGE_BYTES` are never in memory together: the outputs of the first are spooled, to disk when they
    are large, and the samples are read once more for the second.

    `acceleration` is for the second model; the first is the reference, and runs as exactly as the provider can.

    Raises:
        ModelError: a model does not load, or the second differs from the first in inputs or outputs.
        EnvironmentLacksError: the provider does not run on this machine.
    """

    def __init__(
        self,
        *models: Path | OpenedModel,
        provider: str = "cpu",
        threads: int = 0,
        acceleration: Acceleration = PLAIN,
    ) -> None:
        self._models = [OpenedModel.of(model) for model in models]
        self.large = sum(model.bytes for model in self._models) > LARGE_BYTES
        full = full_name(provider)
        options = [reference(full), *[acceleration] * (len(models) - 1)] if len(models) > 1 else [acceleration]
        self._how = [(full, threads or usable_cores(), asked) for asked in options]
        self._sessions: list[Session | None] = [None for _ in models]
        self._axes = Axes()
        self.interfaces = [self._interface(index) for index in range(len(models))]
        _check_outputs(self.interfaces[0])
        for interface in self.interfaces[1:]:
            _check_same(self.interfaces[0], interface)

    @property
    def varying(self) -> frozenset[str]:
        """Outputs of which the first axis is free and no input's: their number of rows may depend on the values."""
        rows = {port.shape[0] for port in self.interfaces[0].inputs if port.shape}
        return frozenset(
            port.name
            for port in self.interfaces[0].outputs
            if not port.shape or not (isinstance(port.shape[0], int) or port.shape[0] in rows - {None})
        )

    def answers(
        self, samples: Samples, *, rows: int = BATCH_ROWS, progress: Progress = SILENT, text: str = "verifying"
    ) -> Iterator[Answer]:
        """Run every sample once through each model, at most `rows` of them at a time.

        Raises:
            DataError: there are no samples, or one does not fit.
            ModelError: a model fails while it runs.
        """
        if not len(samples):
            raise DataError("there are no samples to verify on", where="--data", do="give at least one sample")
        self._axes = samples.axes if isinstance(samples, Stored) else Axes()
        size = self._batch_size(samples, min(rows, BATCH_ROWS))
        total = math.ceil(len(samples) / size) if size else None
        size = size or 1
        before = [self._known(index, samples, size, progress, text) for index in range(len(self._models) - 1)]
        known = [None if recording is None else recording.replay() for recording in before] + [None]
        runs = [self._runs(index, samples) for index in range(len(self._models))]
        first = self._models[0].record() if known[0] is None and len(self._models) > 1 else None
        for feed in progress.track(samples.batches(size), total, text):
            given = [run(feed) if past is None else next(past) for run, past in zip(runs, known, strict=True)]
            if first is not None:
                first.add(given[0])
                first = first if self._models[0].room(first) else None
            yield Answer(self._rows(feed), tuple(one.outputs for one in given), feed, given[0].step, given[0].carried)
        if first is not None:
            self._models[0].keep(samples, (size, *self._how[0]), first)

    def _known(self, index: int, samples: Samples, size: int, progress: Progress, text: str) -> Recording | None:
        """What a model gave for the samples, where that is known, or where it must not be in memory with the next."""
        model, how = self._models[index], (size, *self._how[index])
        found = model.recorded(samples, how)
        if found is not None or not self.large:
            return found
        recording, run = Recording(model.folder), self._runs(index, samples)
        total = math.ceil(len(samples) / size)
        for feed in progress.track(samples.batches(size), total, text):
            recording.add(run(feed))
        self._sessions[index] = None
        model.keep(samples, how, recording)
        return recording

    def _runs(self, index: int, samples: Samples) -> Callable[[dict[str, Array]], Given]:
        """Runs a model on the samples' feeds in order; a stateful one is given its own states."""
        carry = samples.carry() if isinstance(samples, Stored) else Carry()

        def run(feed: dict[str, Array]) -> Given:
            return Given(carry.keep(self._run(index, carry.into(feed))), carry.step, carry.carried)

        return run

    def _session(self, index: int) -> Session:
        session = self._sessions[index]
        if session is None:
            provider, threads, acceleration = self._how[index]
            session = self._models[index].session(provider, threads, lean=self.large, acceleration=acceleration)
            self._sessions[index] = session
        return session

    def _interface(self, index: int) -> Interface:
        session = self._session(index)
        self._let_go(index)
        return Interface(session.where, session.inputs, session.outputs)

    def _let_go(self, index: int) -> None:
        if self.large:
            self._sessions[index] = None

    def _batch_size(self, samples: Samples, rows: int) -> int:
        """As many samples as fit `BATCH_BYTES` and as every model takes at a time; 0 when model or source fix it."""
        one = next(samples.batches(1))
        most = BATCH_BYTES // max(1, sum(array.nbytes for array in one.values()))
        size = max(1, min(rows, len(samples), most))
        if self._rows(one) > 1:
            return 0
        some = next(samples.batches(min(size, 2)))
        if self._rows(some) == 1:
            return 1
        # exporters often leave the batch free at the input and fix it in a Reshape: then only one at a time works
        return size if all(self._takes(index, samples, some) for index in range(len(self._models))) else 1

    def _takes(self, index: int, samples: Samples, some: dict[str, Array]) -> bool:
        """Whether a model runs on several samples at a time; asked once for each data set."""
        asked = self._models[index].batches
        key = (id(samples.dataset), self._how[index]) if isinstance(samples, Stored) else None
        if key is None or key not in asked:
            try:
                self._run(index, some)
            except (ModelError, DataError):
                found = False
            else:
                found = True
            finally:
                self._let_go(index)
            if key is None:
                return found
            asked[key] = found
        return asked[key]

    def _rows(self, feed: dict[str, Array]) -> int:
        """Samples in a feed: along an input's axis of the batch where that is free, else of the first that has one."""
        placed = {port: self._axes.input(port.name) for port in self.interfaces[0].inputs if port.name in feed}
        counted = {port: axis for port, axis in placed.items() if axis is not None and feed[port.name].ndim > axis}
        free = [p for p, axis in counted.items() if len(p.shape) > axis and not isinstance(p.shape[axis], int)]
        return next((int(feed[port.name].shape[counted[port]]) for port in (*free, *counted)), 1)

    def _run(self, index: int, feed: dict[str, Array]) -> dict[str, Array]:
        dtypes = {port.name: port.dtype for port in self.interfaces[index].inputs}
        return self._session(index).run({name: _cast(array, dtypes.get(name)) for name, array in feed.items()})


def _check_outputs(interface: Interface) -> None:
    for port in interface.outputs:
        if port.dtype is None:
            raise ModelError(
                f"the output {port.name!r} is a {port.type}, which cannot be compared element by element",
                where=interface.where,
                do="export the model with tensor outputs (for a classifier of scikit-learn: zipmap off)",
            )


def _check_same(first: Interface, second: Interface) -> None:
    for kind, ours, theirs in (("input", first.inputs, second.inputs), ("output", first.outputs, second.outputs)):
        mine, other = {port.name: port for port in ours}, {port.name: port for port in theirs}
        if mine.keys() != other.keys():
            raise ModelError(
                f"the models have different {kind}s: {', '.join(mine)} before, {', '.join(other)} after",
                where=second.where,
                do=f"only models with the same {kind} names can be compared",
            )
        for name, port in mine.items():
            if not _same_kind(port, other[name]):
                raise ModelError(
                    f"the {kind} {name!r} is {port.type} before and {other[name].type} after",
                    where=second.where,
                    do="only values of the same kind can be compared",
                )
            if kind == "input" and not port.agrees_in_shape(other[name]):
                raise ModelError(
                    f"the input {name!r} has the shape {port.shape_text} before and {other[name].shape_text} after",
                    where=second.where,
                    do="only models that take the same data can be compared",
                )


def _same_kind(first: Port, second: Port) -> bool:
    """Equal types, or both floating point: a half-precision copy of a model is compared with its original."""
    if first.type == second.type:
        return True
    return first.dtype is not None and second.dtype is not None and is_float(first.dtype) and is_float(second.dtype)


def _cast(array: Array, dtype: np.dtype[np.generic] | None) -> Array:
    if dtype is None or array.dtype == dtype or not (is_float(array.dtype) and is_float(dtype)):
        return array
    return array.astype(dtype)


def joined(parts: list[Array]) -> Array:
    """One output of all batches along the first axis; a scalar per batch becomes a vector."""
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise ModelError(
            "an output changes its shape from batch to batch: "
            + ", ".join(str(list(shape)) for shape in itertools.islice(sorted(shapes), 3)),
            do="a metric needs one array of all samples: fix the free sizes with --shape",
        )
    return np.concatenate([np.atleast_1d(part) for part in parts])
