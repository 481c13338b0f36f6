"""What does a training read? Rows of samples, the teacher's answers to them, and the order of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcomp.distill.augment import Augment
from onnxcomp.distill.layout import Layout, Places
from onnxcomp.distill.losses import LABELS
from onnxcomp.distill.teacher import (
    ROWS_A_RUN,
    Rows,
    answers,
    ask,
    constants_of,
    differing,
    fixed_batch,
    rows_a_run,
    rows_in,
    write_rows,
)
from onnxcomp.errors import DataError
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.passes.training.objective import Pair
from onnxcomp.runtime.taps import Sessions

MOST_VIEW_BYTES = 16 << 30  # of augmented views on the disk; more epochs than fit see the first ones again


@dataclass
class Material:
    """Rows, and what the teacher says to them.

    Attributes:
        answers: by name of the teacher's tensor; empty without a teacher.
        labels: int64 [rows, ...]; None without, or where they are no whole numbers.
        notes: what the user should know.
    """

    rows: Rows
    answers: dict[str, Array]
    labels: Array | None
    notes: list[str]

    def arrays(self, pairs: list[Pair], inputs: set[str]) -> dict[str, Array]:
        """What a training graph with these inputs reads, by input name."""
        found: dict[str, Array] = {**self.rows.arrays, **{p.fed: self.answers[p.teacher] for p in pairs}}
        if self.labels is not None:
            found[LABELS] = self.labels
        return {name: array for name, array in found.items() if name in inputs}


def samples_of(context: PassContext) -> SampleSource:
    """What to train on.

    Raises:
        DataError: there are no samples.
    """
    found = context.training if context.training is not None else context.calibration
    if found is None or not len(found):
        raise DataError("training needs data", where="the samples", do="give real samples with --data")
    return found


def gather(
    context: PassContext,
    teacher: Graph | None,
    pairs: list[Pair],
    folder: Path,
    *,
    epochs: float,
    augment: Augment,
) -> Material:
    """Lay out samples and answers.

    Args:
        epochs: how often a sample is seen: so many views of it are made.

    Raises:
        DataError: there are no samples, or they fit no batch.
    """
    train = samples_of(context)
    views = math.ceil(epochs) if augment else 1
    notes = []
    first = next(iter(train.batches(1)))
    bytes_a_view = sum(np.asarray(a).nbytes for a in first.values()) * len(train)
    if views > (most := max(1, MOST_VIEW_BYTES // max(bytes_a_view, 1))):
        notes.append(f"{most} augmented views of each sample fit the disk; {views} epochs see them in turn")
        views = most
    rows = write_rows(
        train,
        context.held_out,
        folder,
        views=views,
        augment=augment,
        seed=context.seed,
        progress=context.progress,
    )
    labels = rows.labels if rows.labels is not None and rows.labels.dtype.kind in "iu" else None
    found: dict[str, Array] = {}
    if teacher is not None:
        names = [pair.teacher for pair in pairs]
        found, known = answers(
            teacher, names, rows, threads=context.threads, progress=context.progress, memory=context.memory
        )
        if known:
            notes.append(f"the teacher's answers to {len(rows):,} rows came from the cache")
    return Material(rows, found, None if labels is None else labels.astype(np.int64), notes)


@dataclass
class Few:
    """The first samples of a source, in memory; a source itself."""

    rows: Rows
    labels: Array | None
    source: str = "the first samples"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def axes(self) -> Places:
        """Where samples lie in the model's inputs and outputs."""
        return self.rows.layout.places

    @property
    def batch(self) -> int | None:
        """Samples a run where the model takes that many only."""
        return self.rows.layout.batch

    def batches(self, size: int | None = None) -> Iterator[dict[str, Array]]:
        """Feeds."""
        for part in self.rows.batches(self.batch or size):
            yield self.rows.layout.feeds(part)


def few(context: PassContext, count: int) -> Few:
    """About so many samples, laid out as rows.

    Raises:
        DataError: there are no samples, or they fit no batch.
    """
    train = samples_of(context)
    layout = Layout.of(train)
    parts: list[dict[str, Array]] = []
    constants: dict[str, Array] = {}
    at = 0
    for given in train.batches(min(count, ROWS_A_RUN)):
        feeds = layout.rows(given)
        own = rows_in(feeds, layout, len(train))
        constants |= constants_of(feeds, layout, own)
        parts.append({name: array for name, array in feeds.items() if name not in constants})
        at += own
        if at >= count:
            break
    for name in parts[0]:
        if len({part[name].shape[1:] for part in parts}) > 1:
            raise differing(name, *(part[name].shape[1:] for part in parts))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    labels = None if train.labels is None else np.asarray(train.labels)
    return Few(Rows(Path(), arrays, constants, plain=at, layout=layout), labels)


def rehearsal(context: PassContext, teacher: Graph | None, pairs: list[Pair], count: int) -> tuple[Material, Few]:
    """Material of a few samples and all labels, without a file written.

    Raises:
        ModelError: the teacher's tensors have no value for every sample.
        DataError: as `few`.
    """
    sample = few(context, count)
    rows, found = sample.rows, dict[str, Array]()
    if teacher is not None:
        session = Sessions(1).tapped(teacher, [pair.teacher for pair in pairs])
        fixed = fixed_batch(session, rows)
        size = fixed or rows_a_run(teacher, rows, context.memory)[0]
        parts = [ask(session, part, rows, fixed) for part in rows.batches(size)]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    labels = sample.labels if sample.labels is not None and sample.labels.dtype.kind in "iu" else None
    return Material(rows, found, None if labels is None else labels.astype(np.int64), []), sample


def order(rows: Rows, steps: int, batch: int, seed: int) -> Array:
    """Rows of each step, int64 [steps, batch]: one permutation of all samples an epoch, each epoch its own view."""
    generator = np.random.default_rng([seed, 1])
    parts: list[Array] = []
    for epoch in range(math.ceil(steps * batch / rows.plain)):
        parts.append(generator.permutation(rows.plain) + epoch % rows.views * rows.plain)
    found: Array = np.concatenate(parts)[: steps * batch].reshape(steps, batch).astype(np.int64)
    return found


def held_out(rows: Rows, batch: int) -> Array:
    """Held-out rows in batches, int64 [batches, batch]; what fills no batch is left out, a single small one filled."""
    first = rows.plain * rows.views
    indices = np.arange(first, first + rows.held_out, dtype=np.int64)
    if not len(indices):
        return indices.reshape(0, batch)
    if len(indices) < batch:
        return np.resize(indices, (1, batch))
    return indices[: len(indices) // batch * batch].reshape(-1, batch)


def shapes_of(material: Material, pairs: list[Pair], batch: int) -> Mapping[str, tuple[int, ...]]:
    """Static shapes of the teacher's tensors in one batch, under the names they are fed by."""
    return {pair.fed: (batch, *material.answers[pair.teacher].shape[1:]) for pair in pairs if material.answers}
