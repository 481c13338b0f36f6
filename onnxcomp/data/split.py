"""Which samples calibrate, which select, which judge? Drawn once from a seed, and never shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxcomp.data.dataset import Dataset, Samples
from onnxcomp.errors import DataError

SELECT_SHARE, SELECT_MOST = 0.1, 512  # what a search or an early stop looks at
CALIBRATE_SHARE = 0.5  # calibration and training leave at least half of small data to judge by


@dataclass(frozen=True)
class Split:
    """Disjoint samples, each part in the order of its source; `notes` say where a share is smaller than asked for.

    `train` holds the samples that calibrate and more; None where nothing trains.
    """

    calibrate: Samples
    select: Samples
    judge: Samples
    notes: tuple[str, ...] = ()
    train: Samples | None = None


def split(
    dataset: Dataset,
    *,
    calibrate: int,
    judge: int | None,
    seed: int = 0,
    eval_data: Dataset | None = None,
    train: bool = False,
) -> Split:
    """Share out the samples.

    A tenth (at most 512) goes to `select`; calibration gets what it asks for, at most half; the rest judges, up to
    `judge`. With `eval_data` its samples judge, all or the first `judge`, in order, and `dataset` serves the rest.

    Args:
        train: something will train: it gets the half that calibration draws from, or with `eval_data` all of
            `dataset` but what selects; what calibrates and selects is the same as without.

    Raises:
        DataError: fewer samples than parts, or `eval_data` is the same source as `dataset`.
    """
    if eval_data is not None and _same(dataset, eval_data):
        raise DataError(
            "the same data cannot calibrate and judge",
            where=f"--data and --eval-data are both {dataset.source}",
            do="give other samples to --eval-data, or leave it out: --data is split then",
        )
    batch = _unit(dataset)
    total = len(dataset) // batch * batch
    parts = 3 if eval_data is None else 2
    if total < parts * batch:
        raise DataError(
            f"{len(dataset)} sample{'s' * (len(dataset) != 1)} cannot be shared out to {parts} parts"
            + (f" of at least {batch}, {_called(dataset)}" if batch > 1 else ""),
            where="; ".join([dataset.source, *dataset.guesses]),  # how they were read may be why they are so few
            do="give more samples to --data" + (", or others that judge with --eval-data" if parts == 3 else ""),
        )
    select = _whole(min(SELECT_MOST, total * SELECT_SHARE), batch)
    most = total - select if eval_data is not None else _whole(total * CALIBRATE_SHARE, batch)
    wanted = _whole(calibrate, batch)
    draw = _Draw(dataset, seed)
    chosen, selected = draw.take(min(wanted, most)), draw.take(select)
    trained = _joined(chosen, draw.take(most - len(chosen))) if train else None
    if eval_data is not None:
        judged = _judge(eval_data, judge)
    else:
        judged = draw.take(total if judge is None else _whole(judge, batch))
    found = Split(chosen, selected, judged, _notes(chosen, calibrate, selected, judged, judge), trained)
    for name, part in (("calibrate", found.calibrate), ("select", found.select), ("judge", found.judge)):
        if not len(part):
            raise DataError(
                f"no usable sample is left to {name}", where=dataset.source, do="give more samples, or mend them"
            )
    return found


class _Draw:
    """Takes samples from a seeded permutation; unreadable ones are passed over."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        generator, unit = np.random.default_rng(seed), _unit(dataset)
        if dataset.sequence_of is None:
            self._order: npt.NDArray[np.intp] = generator.permutation(len(dataset))
        else:  # the steps of a sequence stay together
            sequences = generator.permutation(len(dataset) // unit)
            self._order = (sequences[:, None] * unit + np.arange(unit)).reshape(-1)
        self._at = 0

    def take(self, count: int) -> Samples:
        """The next `count` usable samples, fewer at the end, in the order of the source."""
        taken: list[npt.NDArray[np.intp]] = []
        missing = count
        while missing > 0 and self._at < len(self._order):
            part = self._order[self._at : self._at + missing]
            self._at += len(part)
            taken.append(self._dataset.usable(part))
            missing -= len(taken[-1])
        indices = np.concatenate(taken) if taken else np.empty(0, np.intp)
        return Samples(self._dataset, np.sort(indices))


def _unit(dataset: Dataset) -> int:
    """How many samples go together: a batch that the model fixes, or the steps of a sequence, the same for each."""
    sequences = dataset.sequence_of
    return (dataset.reader.batch or 1) if sequences is None else max(1, int((sequences == 0).sum()))


def _called(dataset: Dataset) -> str:
    return "the model's batch" if dataset.sequence_of is None else "the steps of a sequence"


def _joined(first: Samples, second: Samples) -> Samples:
    return Samples(first.dataset, np.sort(np.concatenate([first.indices, second.indices])))


def _judge(eval_data: Dataset, judge: int | None) -> Samples:
    if judge is None:
        return eval_data.samples()
    indices, at = np.empty(0, np.intp), 0
    while len(indices) < judge and at < len(eval_data):
        part = np.arange(at, min(at + judge - len(indices), len(eval_data)))
        at += len(part)
        indices = np.concatenate([indices, eval_data.usable(part)])
    return Samples(eval_data, indices)


def _notes(chosen: Samples, calibrate: int, selected: Samples, judged: Samples, judge: int | None) -> tuple[str, ...]:
    notes = []
    if len(chosen) < calibrate:
        same = judged.dataset is chosen.dataset
        shared = f"{len(selected)} choose between what is tried" + (f", {len(judged)} may judge" if same else "")
        notes.append(f"{len(chosen)} samples calibrate, fewer than {calibrate}: of {len(chosen.dataset)}, {shared}")
    if judge is not None and len(judged) < judge:
        notes.append(f"{len(judged)} samples judge, fewer than the {judge} of --eval-samples: there are no more")
    return tuple(notes)


def _whole(count: float, batch: int) -> int:
    """At least one batch, and whole ones."""
    return max(1, int(count) // batch) * batch


def _same(one: Dataset, other: Dataset) -> bool:
    first, second = Path(one.source), Path(other.source)
    return one is other or (first.exists() and second.exists() and first.samefile(second))
