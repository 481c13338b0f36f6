"""Which label belongs to which sample? From .npy, .csv or arrays, checked against the number of samples and classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.arrays import open_npy
from onnxcomp.errors import DataError

Labels = npt.NDArray[Any]
LabelSource = str | Path | Labels | Sequence[Any]


def read_labels(source: LabelSource, names: Sequence[str] | None = None) -> Labels:
    """Labels in the order of the samples, [n] or [n, ...]; int64 where they are whole numbers, else float64.

    Args:
        source: an array; a .npy; or a .csv with one label a line, or `file,label` lines (a header is allowed).
        names: file names of the samples, relative to their folder, for .csv files that name them.

    Raises:
        DataError: unreadable, no numbers, or a sample without a label.
    """
    if not isinstance(source, str | Path):
        return _clean(np.asarray(source), "the labels")
    path = Path(source)
    if not path.is_file():
        raise DataError(f"there is no file {path}", where=f"--labels {path}", do="check the path")
    if path.suffix.lower() == ".npy":
        return _clean(open_npy(path).whole(), path.name)
    if path.suffix.lower() in (".csv", ".txt"):
        return _from_csv(path, names)
    raise DataError(
        f"labels cannot be read from {path.name}",
        where=f"--labels {path}",
        do="give .npy, or .csv with one label a line",
    )


def check_labels(labels: Labels, classes: int) -> None:
    """Check that labels are class numbers of a model with this many classes.

    Raises:
        DataError: they are no whole numbers in one dimension, or one is out of range (the first such is named).
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels of shape {list(labels.shape)} and type {labels.dtype} are no class numbers",
            where="the labels",
            do="give one whole number a sample, or a metric of your own with --metric module.py:function",
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = int(wrong[0])
        shifted = labels.min() == 1 and labels.max() == classes
        raise DataError(
            f"{len(wrong)} of {len(labels)} labels are not among the model's {classes} classes (0..{classes - 1})",
            where=f"sample {first} has the label {int(labels[first])}",
            do="the labels seem to count from 1: subtract 1"
            if shifted
            else "check that labels and model belong together",
        )


def check_count(labels: Labels, samples: int, where: str) -> None:
    """Check that there is one label a sample.

    Raises:
        DataError: there is not.
    """
    if len(labels) != samples:
        raise DataError(
            f"{len(labels)} labels for {samples} samples",
            where=where,
            do="give one label for each sample, in the same order",
        )


def _from_csv(path: Path, names: Sequence[str] | None) -> Labels:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"cannot read {path.name}: {error}", where=str(path), do="give a plain .csv in UTF-8"
        ) from error
    header = int(bool(rows) and _number(rows[0][-1]) is None)
    rows = rows[header:]
    if not rows:
        raise DataError(f"{path.name} holds no labels", where=str(path), do="write one label a line")
    for line, row in enumerate(rows, 1 + header):
        if len(row) != len(rows[0]):
            raise DataError(
                f"row {line} of {path.name} is not {'file,label' if len(rows[0]) == 2 else 'a label'}: {','.join(row)}",
                where=str(path),
                do="write one number a line, or file,label",
            )
        if _number(row[-1]) is None:
            raise DataError(
                f"the label in row {line} of {path.name} is no number: {','.join(row)}",
                where=str(path),
                do="write a class as its place among the model's outputs, 0 for the first: one a line, or file,label",
            )
    if len(rows[0]) == 2 and _number(rows[0][0]) is None:
        return _by_name(path, {row[0].replace("\\", "/"): row[1] for row in rows}, names)
    return _clean(np.array([[_number(cell) for cell in row] for row in rows], np.float64), path.name)


def _by_name(path: Path, table: dict[str, str], names: Sequence[str] | None) -> Labels:
    if names is None:
        raise DataError(
            f"{path.name} names files, and the data are not a folder of images",
            where=str(path),
            do="write one label a line, in the order of the samples",
        )
    labels = [table.get(name, table.get(name.rsplit("/", 1)[-1])) for name in names]
    missing = [name for name, label in zip(names, labels, strict=True) if label is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images have no label, the first is {missing[0]}",
            where=str(path),
            do="add a line file,label for each image",
        )
    return _clean(np.array([_number(label or "") for label in labels], np.float64), path.name)


def _clean(labels: Labels, name: str) -> Labels:
    if labels.dtype.kind not in "biuf" or labels.ndim == 0:
        raise DataError(f"{name} are no numbers but {labels.dtype}", where=name, do="give class numbers")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(f"{name} hold NaN or infinity", where=name, do="give one number a sample")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole = labels.dtype.kind in "biu" or bool((labels == np.rint(labels)).all())
    return labels.astype(np.int64 if whole else np.float64)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
