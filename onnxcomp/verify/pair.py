"""How do two models answer to the same samples? Both are opened once and fed batch by batch; nothing piles up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.session import Array, Port, Session, open_session

# a batch is as large as these allow; more does not run faster and takes memory
BATCH_ROWS = 32
BATCH_BYTES = 4 << 20


class Samples(Protocol):
    """What is asked of data: how many samples there are, and feeds of up to `size` of them, in order."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples along the first axis; the last may hold fewer."""
        ...


@dataclass(frozen=True)
class Answer:
    """Outputs of one batch: `rows` samples, the outputs of each model by name."""

    rows: int
    outputs: tuple[dict[str, Array], ...]


class Runner:
    """One or two models with the same inputs and outputs, run on the same samples.

    Raises:
        ModelError: a model does not load, or the second differs from the first in inputs or outputs.
        EnvironmentLacksError: the provider does not run on this machine.
    """

    def __init__(self, *models: Path, provider: str = "cpu", threads: int = 0) -> None:
        self.sessions = tuple(open_session(model, provider=provider, threads=threads) for model in models)
        first = self.sessions[0]
        for port in first.outputs:
            if port.dtype is None:
                raise ModelError(
                    f"the output {port.name!r} is a {port.type}, which cannot be compared element by element",
                    where=first.where,
                    do="export the model with tensor outputs (for a classifier of scikit-learn: zipmap off)",
                )
        for session in self.sessions[1:]:
            _same_interface(first, session)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs of the first model."""
        return self.sessions[0].outputs

    def answers(self, samples: Samples, *, progress: Progress = SILENT, text: str = "verifying") -> Iterator[Answer]:
        """Run every sample once through each model.

        A model that fixes its batch size gets batches of that size: the last one is filled up by repeating its last
        sample, and what that adds is cut off the outputs again.

        Raises:
            DataError: there are no samples, or one does not fit.
            ModelError: a model fails while it runs.
        """
        if not len(samples):
            raise DataError("there are no samples to verify on", where="--data", do="give at least one sample")
        size = self._batch_size(samples)
        total = math.ceil(len(samples) / size)
        for feed in progress.track(samples.batches(size), total, text):
            rows = _rows(feed)
            filled = _filled(feed, size) if self._fixed_batch() else feed
            outputs = tuple(self._run(session, filled) for session in self.sessions)
            added = _rows(filled) - rows
            yield Answer(rows, tuple(_cut(found, rows, rows + added) for found in outputs) if added else outputs)

    def _batch_size(self, samples: Samples) -> int:
        fixed = self._fixed_batch()
        if fixed:
            return fixed
        one = next(samples.batches(1))
        size = max(1, min(BATCH_ROWS, len(samples), BATCH_BYTES // max(1, sum(array.nbytes for array in one.values()))))
        if size == 1:
            return 1
        # exporters often leave the batch free at the input and fix it in a Reshape: then only one at a time works
        some = next(samples.batches(size))
        try:
            for session in self.sessions:
                self._run(session, some)
        except (ModelError, DataError):
            return 1
        return size

    def _fixed_batch(self) -> int:
        """The batch size that one of the models fixes; 0 when it is free."""
        sizes = {port.shape[0] for session in self.sessions for port in session.inputs if port.shape}
        fixed = {size for size in sizes if isinstance(size, int)}
        if len(fixed) > 1 and len(self.sessions) > 1:
            each = [{port.shape[0] for port in session.inputs if port.shape} for session in self.sessions]
            if all(len(own) == 1 for own in each):
                raise ModelError(
                    f"the models take batches of different sizes: {', '.join(map(str, sorted(fixed)))}",
                    where=self.sessions[1].where,
                    do="export both with the same batch size, or with a free one",
                )
        return min(fixed, default=0)

    def _run(self, session: Session, feed: dict[str, Array]) -> dict[str, Array]:
        ports = {port.name: port.dtype for port in session.inputs}
        return session.run({name: _cast(array, ports.get(name)) for name, array in feed.items()})


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether the dtype is a floating-point one, those of ml_dtypes included."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _same_interface(first: Session, second: Session) -> None:
    for kind, ours, theirs in (
        ("input", first.inputs, second.inputs),
        ("output", first.outputs, second.outputs),
    ):
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


def _same_kind(first: Port, second: Port) -> bool:
    """Equal types, or both floating point: a half-precision copy of a model is compared with its original."""
    if first.type == second.type:
        return True
    return first.dtype is not None and second.dtype is not None and is_float(first.dtype) and is_float(second.dtype)


def _cast(array: Array, dtype: np.dtype[np.generic] | None) -> Array:
    if dtype is None or array.dtype == dtype or not (is_float(array.dtype) and is_float(dtype)):
        return array
    return array.astype(dtype)


def _rows(feed: dict[str, Array]) -> int:
    return next((int(array.shape[0]) for array in feed.values() if array.ndim), 1)


def _filled(feed: dict[str, Array], size: int) -> dict[str, Array]:
    rows = _rows(feed)
    if not 0 < rows < size:
        return feed
    spread = np.minimum(np.arange(size), rows - 1)
    return {name: array[spread] if array.ndim and array.shape[0] == rows else array for name, array in feed.items()}


def _cut(outputs: dict[str, Array], rows: int, filled: int) -> dict[str, Array]:
    return {name: a[:rows] if a.ndim and a.shape[0] == filled else a for name, a in outputs.items()}


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
