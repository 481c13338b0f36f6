"""How good are a model's outputs at its task? Top-1, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.functions import calling, load_function
from onnxcomp.data.labels import check_labels
from onnxcomp.errors import DataError, UsageError

Outputs = Mapping[str, npt.NDArray[Any]]
Score = Callable[[dict[str, npt.NDArray[Any]], npt.NDArray[Any] | None], Any]


@dataclass(frozen=True)
class Metric:
    """A task metric.

    Attributes:
        name: as reports print it.
        function: called with the outputs by name, [samples, ...] each, and the labels or None; gives a number.
        higher_is_better: its direction.
        needs_all: it sees the whole of the evaluation data at once, in order (pairs stay together).
        needs_labels: it cannot be computed without labels.
        each: of the same arguments, what each sample adds, [samples], where the metric is the mean of that; then how
            far chance may have moved it is told as well.
        share: it lies between 0 and 1.
    """

    name: str
    function: Score
    higher_is_better: bool = True
    needs_all: bool = True
    needs_labels: bool = False
    each: Callable[[dict[str, npt.NDArray[Any]], npt.NDArray[Any] | None], npt.NDArray[Any]] | None = None
    share: bool = False

    def score(self, outputs: Outputs, labels: npt.NDArray[Any] | None) -> float:
        """The metric of outputs [samples, ...] by name, and of the samples' labels.

        Raises:
            DataError: labels are missing or do not fit; the user's function raises, or gives no finite number.
        """
        if labels is None and self.needs_labels:
            raise DataError(
                f"{self.name} needs labels",
                where="the data",
                do="give --labels, or a metric that needs none with --metric module.py:function",
            )
        with calling(f"the metric {self.name}", "it is called with (outputs: dict of arrays, labels or None)"):
            result = self.function(dict(outputs), None if labels is None else _read_only(labels))
        plain = isinstance(result, int | float | np.number | np.ndarray) and np.asarray(result).dtype.kind in "biuf"
        if not plain or np.size(result) != 1:
            raise DataError(
                f"the metric gave a value of type {type(result).__name__}, not a number",
                where=self.name,
                do="return a float",
            )
        value = float(np.asarray(result).reshape(()))
        if not math.isfinite(value):
            raise DataError(f"the metric gave {value}", where=self.name, do="return a finite number")
        return value

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is, whichever way the metric points."""
        return before - after if self.higher_is_better else after - before


MetricSource = str | Score | Metric


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values in an array that a function cannot change for those that come after it."""
    view = array.view()
    view.flags.writeable = False
    return view


def parse_metric(given: MetricSource | None) -> Metric:
    """Top-1 for None or `top1`; else `module.py:function`, with `:min` at the end where lower is better.

    A function is a metric of which more is better; a `Metric` says itself which way it points.

    Raises:
        UsageError: no such file or function, or the file cannot be loaded.
    """
    if isinstance(given, Metric):
        return given
    if callable(given):
        return Metric(getattr(given, "__name__", type(given).__name__), given)
    if given is None or given in ("top1", "top-1"):
        return Metric("top1", top1, needs_all=False, needs_labels=True, each=right, share=True)
    text = given
    body, separator, direction = text.rpartition(":")
    lower = bool(separator) and direction == "min"
    reference = body if separator and direction in ("min", "max") else text
    if ":" not in reference:
        raise UsageError(
            f"there is no metric {text!r}",
            where=f"--metric {text}",
            do="leave it out for top-1, or write module.py:function[:min]",
        )
    function = load_function(reference, "--metric")
    return Metric(reference.rpartition(":")[2], function, higher_is_better=not lower)


def scores_of(outputs: Outputs, labels: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """The output that holds scores of classes, as [samples, classes]: two dimensions beside ones of size 1.

    Of several the one with the fewest columns that has one for each label: features are wider than scores. The first
    where that tells none apart.

    Raises:
        DataError: there is none.
    """
    found = _ranking(outputs)
    if found:
        name = _narrowest(found, labels)
        return found[name].reshape(found[name].shape[:2])
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
    raise DataError(
        "top-1 needs an output of [samples, classes]",
        where=f"the model's outputs: {shapes}",
        do="give the task's own metric with --metric module.py:function",
    )


def guesses_of(outputs: Outputs, labels: npt.NDArray[Any] | None) -> tuple[str, ...]:
    """What top-1 takes of a model's outputs where that is not plain, a line each."""
    if labels is None or (labels.ndim > 1 and labels[:1].size > 1):
        return ()
    name, single = next(iter(outputs)), next(iter(outputs.values()))
    if len(outputs) == 1 and single.size == len(single) and single.dtype.kind == "f" and single.ndim:
        level = "0.5" if single.size and single.min() >= 0 and single.max() <= 1 else "0"
        return (f"top1 takes output {name} for two classes told apart at {level}: override with --metric",)
    found = _ranking(outputs)
    if len(found) < 2:
        return ()
    chosen = _narrowest(found, labels)
    others = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in found.items() if name != chosen)
    return (f"top1 taken of output {chosen}, not of {others}: override with --metric",)


def _ranking(outputs: Outputs) -> dict[str, npt.NDArray[Any]]:
    """Outputs that may be scores of classes."""
    return {
        name: array
        for name, array in outputs.items()
        if array.ndim >= 2 and array.shape[1] >= 2 and math.prod(array.shape[2:]) == 1 and array.dtype.kind in "fiu"
    }


def _narrowest(found: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[Any] | None) -> str:
    if labels is None or not labels.size or labels.dtype.kind not in "iu":
        return next(iter(found))
    fitting = {name: array.shape[1] for name, array in found.items() if array.shape[1] > labels.max()}
    floating = {name: width for name, width in fitting.items() if found[name].dtype.kind == "f"} or fitting
    return min(floating, key=lambda name: floating[name]) if floating else next(iter(found))


def top1(outputs: Outputs, labels: npt.NDArray[Any] | None) -> float:
    """Share of samples whose highest score is that of their label (the first one among equals).

    Labels of [samples, places...], one for each token or pixel, count place by place. A model that gives one number a
    sample tells two classes apart: at 0.5 where all numbers are probabilities, else at 0.

    Raises:
        DataError: no output of [samples, classes], or labels that are not such classes, one a sample or place.
    """
    return float(right(outputs, labels).mean())


def right(outputs: Outputs, labels: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """As `top1`, for each sample, [samples]: 1 where it is right, else 0; the share of its places that are right.

    Raises:
        DataError: as `top1`.
    """
    assert labels is not None
    samples = len(labels)
    if labels.ndim > 1 and labels[:1].size > 1:
        scores, labels = _places_of(outputs, labels.shape), labels.reshape(-1)
    else:
        pair = _two_classes(outputs, labels)
        scores = scores_of(outputs, labels) if pair is None else pair
    if len(labels) != len(scores):
        raise DataError(
            f"{len(labels)} labels for {len(scores)} outputs", where="the labels", do="give one label for each sample"
        )
    check_labels(labels, scores.shape[1])
    hits = scores.argmax(axis=1) == labels
    return np.asarray(hits.reshape(samples, -1).mean(axis=1) if samples else hits, np.float64)


def classes_of(outputs: Outputs, labels: npt.NDArray[Any]) -> int:
    """How many classes `top1` tells apart, with one label a sample.

    Raises:
        DataError: as `top1`.
    """
    return 2 if _two_classes(outputs, labels) is not None else scores_of(outputs, labels).shape[1]


def _places_of(outputs: Outputs, wanted: tuple[int, ...]) -> npt.NDArray[Any]:
    """The first output that holds scores of classes for places of this shape, as [places of all samples, classes].

    Classes stand on the last axis, or for maps on axis 1.

    Raises:
        DataError: there is none.
    """
    for array in outputs.values():
        for axis in (array.ndim - 1, 1):
            moved = np.moveaxis(array, axis, -1) if array.ndim > 1 else array
            if moved.shape[:-1] == wanted and moved.shape[-1] >= 2 and array.dtype.kind in "fiu":
                return moved.reshape(-1, moved.shape[-1])
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
    raise DataError(
        f"no output scores classes where the labels are: {list(wanted)}",
        where=f"the model's outputs: {shapes}",
        do="give the task's own metric with --metric module.py:function",
    )


def _two_classes(outputs: Outputs, labels: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Scores of two classes from the only output, one number a sample; None where that or the labels are not so."""
    arrays = list(outputs.values())
    if len(arrays) != 1 or arrays[0].size != len(labels) or arrays[0].dtype.kind != "f":
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() > 1:
        return None
    number = arrays[0].reshape(-1)
    probable = number.min() >= 0 and number.max() <= 1
    return np.stack([np.full_like(number, 0.5 if probable else 0.0), number], axis=1)
