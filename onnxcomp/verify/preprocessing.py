"""Is there reason to doubt the preprocessing of pictures, and would one in wide use fit the model better?

With labels the float model's own score tells. Without them the first BatchNormalization does: its running mean and
variance are what training fed it, and data prepared in the same way give the same. A detector without one finds hardly
a box in pictures that it sees otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.dataset import Dataset, Samples
from onnxcomp.data.metric import Metric, classes_of
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.graph.ir import Constant, Graph, Node, Variable
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.runtime.taps import tapped
from onnxcomp.verify.accuracy import predict
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Answer, Runner
from onnxcomp.verify.tasks.base import Seen
from onnxcomp.verify.tasks.boxes import LEAST, THRESHOLDS, Boxes
from onnxcomp.verify.tasks.layouts import find_boxes

Array = npt.NDArray[Any]
Reopen = Callable[[Preprocess], Dataset]

TRIED_SAMPLES = 100  # other preprocessings are compared on so many
GOOD_ENOUGH = 0.9  # a score above it leaves no doubt
CLEAR_GAIN = 0.05
WORK = 2e10  # multiply-accumulates that all tries together may take
STATISTICS_SAMPLES = 16
ENOUGH = 16  # pictures tell whether a detector sees them as it should
CLEARLY_MORE = 4  # times as many boxes
FAR, CLEARLY_NEARER = 0.5, 4.0  # nats a channel from what training saw, and times nearer


def candidates(given: Preprocess) -> list[Preprocess]:
    """Preprocessings in wide use that differ from the given one only in what was not given."""
    found = [given]
    if given.mean is None and given.std is None:
        found += [replace(given, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]
        found += [replace(given, mean=(0.5,), std=(0.5,))]
        if given.scale is None:
            found += [replace(given, scale=1.0, mean=(0.0,), std=(1.0,))]
            found += [replace(given, scale=1.0, mean=(123.68, 116.779, 103.939), std=(1.0,))]
    elif given.scale is None:
        found += [replace(given, scale=1.0)]
    if given.color is None:
        found += [replace(one, color="bgr") for one in found]
    return found[1:]


def flags(option: Preprocess, given: Preprocess) -> str:
    """What to add to the command line to go from one preprocessing to the other."""
    names = [f for f in ("scale", "mean", "std", "color") if getattr(option, f) != getattr(given, f)]
    texts = {n: getattr(option, n) for n in names}
    shown = {n: ",".join(f"{x:g}" for x in v) if isinstance(v, tuple) else str(v) for n, v in texts.items()}
    return " ".join(f"--{n} {text.removesuffix('.0')}" for n, text in shown.items())


def doubts(
    model: Path | OpenedModel,
    graph: Graph,
    reopen: Reopen,
    given: Preprocess,
    samples: Samples,
    metric: Metric | None,
    *,
    macs: int = 0,
    threads: int = 0,
    progress: Progress = SILENT,
) -> list[str]:
    """A line where the float model does clearly better, or sees what it was trained on, under another preprocessing.

    Args:
        model, graph: the float model.
        reopen: opens the data with a preprocessing.
        given: the one asked for.
        samples: some of the data, opened with it.
        metric: the task metric; only top-1 is asked.
        macs: multiply-accumulates of one sample, which bound how many samples are tried.

    Raises:
        DataError: a sample cannot be read.
    """
    if not samples.dataset.pixels:
        return []
    three = all(pixels.channels == 3 for pixels in samples.dataset.pixels.values())
    options = [c for c in candidates(given) if three or (len(c.mean or ()) <= 1 and c.color is None)]
    most = int(max(16, min(TRIED_SAMPLES, WORK / max(macs * (len(options) + 1), 1))))
    labelled = metric is not None and metric.name == "top1" and samples.labels is not None
    try:
        if labelled and metric is not None:
            part = _spread(samples, most)
            return by_score(model, reopen, given, options, part, metric, threads=threads, progress=progress)
        told = by_statistics(graph, reopen, given, options, _spread(samples, STATISTICS_SAMPLES), threads=threads)
        return told or by_boxes(model, reopen, given, options, _spread(samples, ENOUGH), threads=threads)
    except (ModelError, UsageError):
        return []  # the question is asked on the side: what does not run says so where it has to run


def _spread(samples: Samples, count: int) -> Array:
    """Indices of so many samples, evenly spread."""
    at = np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.intp)
    indices: Array = samples.indices[np.unique(at)]
    return indices


def other_classes(folders: int, classes: int) -> str:
    """What to say where labels that folders were numbered by cannot be known for the model's; else nothing."""
    if not 0 < folders < classes:
        return ""
    return (
        f"{folders} class folders, the model has {classes} classes: which are they? Give --labels FILE; "
        "until then top-1 says nothing"
    )


def by_score(
    model: Path | OpenedModel,
    reopen: Reopen,
    given: Preprocess,
    options: Sequence[Preprocess],
    part: Array,
    metric: Metric,
    *,
    threads: int = 0,
    progress: Progress = SILENT,
) -> list[str]:
    """One line if a preprocessing in wide use scores clearly higher on the samples of these indices."""
    scores: list[float] = []
    for option in progress.track([given, *options], len(options) + 1, "trying other preprocessings"):
        samples = reopen(option).subset(part)
        outputs = predict(model, samples, threads=threads)
        scores.append(metric.score(outputs, samples.labels))
        if scores[0] >= GOOD_ENOUGH:
            return []
        folders, labels = samples.dataset.class_folders, samples.labels
        if folders and labels is not None and (told := other_classes(folders, classes_of(outputs, labels))):
            return [told]  # no score tells anything
    best = int(np.argmax(scores))
    if scores[best] < scores[0] + CLEAR_GAIN:
        return []
    better = flags(options[best - 1], given)
    return [f"with {better} top-1 is {scores[best]:.3f} on {len(part)} samples, not {scores[0]:.3f}"]


def by_boxes(
    model: Path | OpenedModel,
    reopen: Reopen,
    given: Preprocess,
    options: Sequence[Preprocess],
    part: Array,
    *,
    threads: int = 0,
) -> list[str]:
    """One line if the model is a detector that finds no box, or another preprocessing makes it find clearly more."""
    opened = OpenedModel.of(model)

    def count(option: Preprocess) -> int:
        return _boxes(opened, reopen(option).subset(part), threads) or 0

    here = _boxes(opened, reopen(given).subset(part), threads)
    if here is None or here >= LEAST:
        return []
    counts = {option: count(option) for option in options if option.color == given.color}
    best = max(counts, key=lambda option: counts[option], default=given)
    swapped = replace(best, color="bgr")
    if best != given and swapped in options:
        counts[swapped] = count(swapped)
        best = max(best, swapped, key=lambda option: counts[option])
    above = f"above {THRESHOLDS[0]:g} in {len(part)} picture{'s' * (len(part) != 1)}"
    shape = "" if given.resize else "; detectors mostly want --resize letterbox, too"
    if counts.get(best, 0) >= max(LEAST, CLEARLY_MORE * here):
        return [f"with {flags(best, given)} the detector finds {counts[best]} boxes {above}, not {here}{shape}"]
    if here:
        return []  # pictures may hold little
    other = "one that finds none mostly sees pixels otherwise than in training (--scale, --color, --mean, --std)"
    return [f"the detector finds no box {above}: {other}{shape}"]


@dataclass
class BoxCount:
    """Counts what a detector finds, batch by batch; `found` is None where the outputs are not known for boxes."""

    model: OpenedModel
    found: int | None = None
    kind: Boxes | None = None
    asked: bool = False

    def add(self, answer: Answer) -> None:
        """Take the answers to one batch."""
        if not self.asked:
            kinds = find_boxes(Seen(answer.inputs, answer.outputs[0], answer.rows, self.model.tails))
            self.kind, self.asked = (kinds[0] if kinds else None), True
        if self.kind is not None:
            sure = [sample.above(THRESHOLDS[0]) for sample in self.kind.decode(answer.outputs[0])]
            self.found = (self.found or 0) + sum(len(sample.scores) for sample in sure)


def _boxes(model: OpenedModel, samples: Samples, threads: int) -> int | None:
    """How many boxes a model finds; None where its outputs are not known for boxes."""
    count = BoxCount(model)
    for answer in Runner(model, threads=threads).answers(samples):
        count.add(answer)
    return count.found


# -- what the first BatchNormalization expects -------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What a BatchNormalization was trained on: its input's name, and mean and variance, [channels] each."""

    tensor: str
    mean: Array
    variance: Array


def by_statistics(
    graph: Graph,
    reopen: Reopen,
    given: Preprocess,
    options: Sequence[Preprocess],
    part: Array,
    *,
    threads: int = 0,
) -> list[str]:
    """One line if another preprocessing gives the first BatchNormalization clearly more of what it was trained on."""
    expected = first_normalization(graph)
    if expected is None:
        return []
    session = tapped(graph, [expected.tensor], threads or 1)

    def distance(option: Preprocess) -> float:
        values = [session.run(feed)[expected.tensor] for feed in reopen(option).subset(part).batches()]
        return _distance(np.concatenate([np.moveaxis(v, 1, 0).reshape(v.shape[1], -1) for v in values], 1), expected)

    here = distance(given)
    if here < FAR:
        return []
    found = [distance(option) for option in options]
    best = int(np.argmin(found)) if found else 0
    if not found or found[best] * CLEARLY_NEARER > here:
        return []
    return [
        f"with {flags(options[best], given)} the first BatchNormalization sees what it was trained on "
        f"({found[best]:.2g} nats a channel from it), and not now ({here:.2g})"
    ]


def first_normalization(graph: Graph) -> Expected | None:
    """The first BatchNormalization of the main graph that reads what a layer or the input gives."""
    for node in graph.nodes:
        if node.op == "BatchNormalization" and not node.domain and isinstance(node.inputs[0], Variable):
            statistics = _statistics(node)
            if statistics is not None:
                return Expected(node.inputs[0].name, *statistics)
    return None


def _statistics(node: Node) -> tuple[Array, Array] | None:
    parts = [node.constant(port) for port in (3, 4)]
    if node.attrs.get("training_mode") or not all(isinstance(p, Constant) for p in parts):
        return None
    mean, variance = (np.asarray(p.values, np.float64) for p in parts if p is not None)
    alive = np.isfinite(mean).all() and np.isfinite(variance).all() and (variance > 0).any()
    return (mean, variance) if alive else None


def _distance(values: Array, expected: Expected) -> float:
    """Mean over the channels of KL(seen | expected), both taken as normal distributions; [channels, values]."""
    floor = float(np.median(expected.variance)) * 1e-4  # channels that never fire tell nothing
    alive = expected.variance > floor
    if not alive.any():
        return 0.0
    x = values[alive].astype(np.float64)
    mean, variance = expected.mean[alive], expected.variance[alive]
    seen = np.maximum(x.var(axis=1), floor)
    shift = np.square(x.mean(axis=1) - mean) / variance
    each = 0.5 * (seen / variance + shift - 1 - np.log(seen / variance))
    return float(np.mean(np.minimum(each, 50.0))) if np.isfinite(each).all() else math.inf
