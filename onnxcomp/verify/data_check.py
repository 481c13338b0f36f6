"""What does a model really see of some data, and does it answer sensibly? So wrong preprocessing shows early."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.dataset import Dataset, Samples
from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.metric import Metric, Outputs, scores_of
from onnxcomp.data.pixels import Pixels
from onnxcomp.data.preprocess import Preprocess
from onnxcomp.data.sheet import Tile, contact_sheet, viewable
from onnxcomp.errors import DataError
from onnxcomp.files import atomic_write
from onnxcomp.runtime.progress import SILENT, Progress
from onnxcomp.verify.accuracy import predict
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Runner
from onnxcomp.verify.preprocessing import GOOD_ENOUGH, BoxCount, Reopen, doubts, other_classes
from onnxcomp.verify.tasks.boxes import THRESHOLDS

Array = npt.NDArray[Any]

TILES = 24
BOX_THRESHOLD = THRESHOLDS[0]


@dataclass(frozen=True)
class ChannelStats:
    """Values of one channel of one input after preprocessing; `channel` is empty for inputs that are no pictures."""

    input: str
    channel: str
    minimum: float
    mean: float
    maximum: float
    std: float


@dataclass(frozen=True)
class OutputRange:
    """Values of one output over all samples."""

    output: str
    minimum: float
    mean: float
    maximum: float


@dataclass(frozen=True)
class Answers:
    """What the model answers. `classes`: its commonest answers and their shares; `entropy`: in bits, of its scores."""

    outputs: tuple[OutputRange, ...]
    classes: tuple[tuple[int, float], ...] = ()
    different: int = 0
    of: int = 0
    entropy: float | None = None


@dataclass(frozen=True)
class DataCheck:
    """Everything `onnxcomp data check` finds out. `boxes`: what a detector is sure of, above `BOX_THRESHOLD`."""

    source: str
    samples: int
    total: int
    inputs: tuple[str, ...]
    preprocessing: tuple[str, ...]
    channels: tuple[ChannelStats, ...]
    answers: Answers
    metric: str = ""
    score: float | None = None
    boxes: int | None = None
    guesses: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    sheet: str = ""


def check_data(
    model: Path | OpenedModel,
    open_with: Reopen,
    preprocess: Preprocess,
    metric: Metric,
    *,
    samples: int | None = None,
    sheet: Path | None = None,
    threads: int = 0,
    progress: Progress = SILENT,
) -> DataCheck:
    """Look at data as the model sees it.

    Args:
        model: the float model, run on the CPU.
        open_with: opens the data with a preprocessing; called again where another one may fit better.
        preprocess: the one asked for.
        metric: scored if there are labels, or if it needs none.
        samples: look at so many, evenly spread; all for a metric that needs all.
        sheet: where the contact sheet goes, if the data are pictures.

    Raises:
        DataError: the data do not fit, hold NaN, or no sample is usable.
        ModelError: the model cannot be run.
        OutputError: the contact sheet cannot be written.
    """
    model = OpenedModel.of(model)
    dataset = open_with(preprocess)
    chosen = _spread(dataset, None if metric.needs_all else samples)
    channels = _statistics(chosen, progress)
    wanted = metric.needs_all or (chosen.labels is not None)
    seen = _run(model, chosen, metric if wanted else None, threads, progress)
    hints = [*_constant(dataset, channels), *seen.hints]
    if seen.score is None or seen.score < GOOD_ENOUGH:
        scored = metric if seen.score is not None else None
        hints += doubts(model, model.graph, open_with, preprocess, chosen, scored, threads=threads, progress=progress)
    drawn = sheet is not None and _draw(sheet, chosen, seen, model.path)
    return DataCheck(
        source=dataset.source,
        samples=len(chosen),
        total=len(dataset),
        inputs=tuple(str(spec) for spec in dataset.inputs),
        preprocessing=tuple(f"{name}: {pixels.describe()}" for name, pixels in dataset.pixels.items()),
        channels=channels,
        answers=seen.answers,
        metric=metric.name if wanted else "",
        score=seen.score,
        boxes=seen.boxes,
        guesses=dataset.guesses,
        problems=dataset.problems,
        hints=tuple(hints),
        sheet=str(sheet) if drawn else "",
    )


def _spread(dataset: Dataset, count: int | None) -> Samples:
    if count is None or count >= len(dataset):
        return dataset.samples()
    samples = dataset.subset(np.linspace(0, len(dataset) - 1, max(count, dataset.reader.batch or 1)).astype(np.intp))
    if not len(samples):
        raise dataset.nothing()
    return samples


# statistics of what goes in


@dataclass
class _Moments:
    """Running minimum, maximum, sum and sum of squares, each [channels], in double precision."""

    low: Array
    high: Array
    total: Array
    squares: Array
    count: int = 0

    def add(self, planes: Array) -> None:
        """[channels, values]."""
        values = planes.astype(np.float64)
        self.low = np.minimum(self.low, values.min(axis=1))
        self.high = np.maximum(self.high, values.max(axis=1))
        self.total = self.total + values.sum(axis=1)
        self.squares = self.squares + (values**2).sum(axis=1)
        self.count += values.shape[1]


def _statistics(samples: Samples, progress: Progress) -> tuple[ChannelStats, ...]:
    dataset = samples.dataset
    moments: dict[str, _Moments] = {}
    steps = None if dataset.reader.batch is None else len(samples) // dataset.reader.batch
    for feed in progress.track(samples.batches(), steps, "reading"):
        for spec in dataset.inputs:
            planes = _planes(feed[spec.name], spec, dataset.pixels.get(spec.name))
            if planes is None or not planes.size:
                continue
            if spec.name not in moments:
                n = len(planes)
                moments[spec.name] = _Moments(np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n), np.zeros(n))
            moments[spec.name].add(planes)
    found = []
    for name, m in moments.items():
        mean = m.total / m.count
        std = np.sqrt(np.maximum(m.squares / m.count - mean**2, 0))
        names = _channel_names(len(mean), dataset.pixels.get(name))
        for c, channel in enumerate(names):
            found.append(ChannelStats(name, channel, float(m.low[c]), float(mean[c]), float(m.high[c]), float(std[c])))
    return tuple(found)


def _planes(array: Array, spec: InputSpec, pixels: Pixels | None) -> Array | None:
    """[channels, values] of a batch; one row where there are no channels; None for strings."""
    if array.dtype.kind not in "biuf" and not array.dtype.name.startswith(("bfloat16", "float8")):
        return None
    axis = _channel_axis(array, spec, pixels)
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _channel_axis(array: Array, spec: InputSpec, pixels: Pixels | None) -> int | None:
    if pixels is not None:
        return {"nchw": 1, "nhwc": 3, "chw": 0, "hwc": 2}.get(pixels.layout)
    if array.ndim != 4 or spec.rank != 4:
        return None
    return 1 if spec.fixed(1) in (1, 3, 4) else 3 if spec.fixed(3) in (1, 3, 4) else None


def _channel_names(count: int, pixels: Pixels | None) -> list[str]:
    if count == 1:
        return [""]
    letters = {"rgb": "RGB", "bgr": "BGR"}.get(pixels.color, "") if pixels else ""
    return [f"{i} ({letters[i]})" if letters else str(i) for i in range(count)]


def _constant(dataset: Dataset, channels: tuple[ChannelStats, ...]) -> list[str]:
    real = {spec.name for spec in dataset.inputs if spec.dtype.kind == "f"}  # constant masks and segments are usual
    return [
        f"every value of {c.input}{f' channel {c.channel}' if c.channel else ''} is {c.mean:g}: is this the right data?"
        for c in channels
        if c.minimum == c.maximum and c.input in real
    ]


# what comes out


@dataclass
class _Seen:
    """Answers of the model; `best`: the class of each sample, if outputs are scores of classes."""

    answers: Answers
    best: Array | None = None
    score: float | None = None
    boxes: int | None = None
    hints: list[str] = field(default_factory=list)


def _run(model: OpenedModel, samples: Samples, metric: Metric | None, threads: int, progress: Progress) -> _Seen:
    if metric is not None and metric.needs_all:
        outputs = predict(model, samples, threads=threads, progress=progress)
        ranges = _Ranges()
        ranges.add(outputs)
        return _Seen(Answers(ranges.found()), score=metric.score(outputs, samples.labels))
    ranges, scores = _Ranges(), []
    classify = metric is not None or bool(samples.dataset.pixels)
    boxes = BoxCount(model)
    for answer in Runner(model, threads=threads).answers(samples, progress=progress, text="running the model"):
        outputs = answer.outputs[0]
        ranges.add(outputs)
        if samples.dataset.pixels:
            boxes.add(answer)
        if classify:
            kept = _scores(outputs, required=metric is not None)
            classify = kept is not None
            scores += [kept] if kept is not None else []
    if not classify:
        return _Seen(Answers(ranges.found()), boxes=boxes.found)
    joined = np.concatenate(scores)
    seen = _Seen(_classes(joined, ranges), joined.argmax(axis=1))
    if metric is not None and samples.labels is not None:
        seen.score = metric.score({"scores": joined}, samples.labels)
        if not other_classes(samples.dataset.class_folders, joined.shape[1]):
            seen.hints = _suspicions(seen.best, samples.labels, seen.score)
    return seen


def _scores(outputs: Outputs, *, required: bool) -> Array | None:
    try:
        return scores_of(outputs)
    except DataError:
        if required:
            raise
        return None  # an output of another kind: nothing to count


class _Ranges:
    """Smallest, mean and largest value of each output, batch by batch."""

    def __init__(self) -> None:
        self._moments: dict[str, _Moments] = {}

    def add(self, outputs: Outputs) -> None:
        for name, array in outputs.items():
            if array.size and array.dtype.kind in "biuf":
                start = _Moments(np.array([np.inf]), np.array([-np.inf]), np.zeros(1), np.zeros(1))
                self._moments.setdefault(name, start).add(array.reshape(1, -1))

    def found(self) -> tuple[OutputRange, ...]:
        return tuple(
            OutputRange(name, float(m.low[0]), float(m.total[0] / m.count), float(m.high[0]))
            for name, m in self._moments.items()
        )


def _classes(scores: Array, ranges: _Ranges) -> Answers:
    best = scores.argmax(axis=1)
    numbers, counts = np.unique(best, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    shares = tuple((int(numbers[i]), float(counts[i] / len(best))) for i in order)
    return Answers(ranges.found(), shares, len(numbers), scores.shape[1], _entropy(scores))


def _entropy(scores: Array) -> float:
    """Mean entropy in bits: of the rows themselves where they are probabilities, else of their softmax."""
    values = scores.astype(np.float64)
    if values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        shares = values
    else:
        shares = np.exp(values - values.max(axis=1, keepdims=True))
    shares = shares / shares.sum(axis=1, keepdims=True)
    return float(-(shares * np.log2(np.maximum(shares, 1e-300))).sum(axis=1).mean())


def _suspicions(best: Array | None, labels: Array, score: float) -> list[str]:
    assert best is not None
    hints = []
    for shift in (-1, 1):
        moved = float((best + shift == labels).mean())
        if moved > score + 0.2:
            hints.append(
                f"top-1 would be {moved:.4f} with labels {'lower' if shift > 0 else 'higher'} by 1: "
                "the model may count a background class, or labels may count from 1"
            )
    guess = float(np.bincount(labels).max() / len(labels))
    if score <= guess * 1.2 and not hints:
        hints.append(
            f"top-1 {score:.4f} is no better than always naming the commonest label ({guess:.4f}): "
            "preprocessing or the order of classes is wrong"
        )
    return hints


# the sheet


def _draw(path: Path, samples: Samples, seen: _Seen, model: Path) -> bool:
    """Write the contact sheet of the first input that holds pictures; whether there is one."""
    dataset = samples.dataset
    batch = dataset.reader.batch or 1
    places = np.linspace(0, len(samples) - 1, min(len(samples), -(-TILES // batch) * batch)).astype(np.intp)
    part = Samples(dataset, samples.indices[places])
    for spec in dataset.inputs:
        pixels = dataset.pixels.get(spec.name)
        pictures: list[Array] = []
        for feed in part.batches(1):
            shown = viewable(feed[spec.name], spec, pixels)
            if shown is None:
                break
            pictures += list(shown[:batch])  # the first picture of a feed of unknown size stands for it
        if pictures:
            tiles = [_tile(p, int(i), samples, seen.best) for p, i in zip(pictures[:TILES], places, strict=False)]
            title = [f"{dataset.source} as {model.name} sees it: {spec}"]
            title += [_legend(pixels)] + ([f"top-1 {seen.score:.4f}"] if seen.best is not None and seen.score else [])
            with atomic_write(path) as file:
                file.write(contact_sheet(tiles, title))
            return True
    return False


def _tile(picture: Array, place: int, samples: Samples, best: Array | None) -> Tile:
    name, labels = samples.dataset.name_of(int(samples.indices[place])), samples.labels
    if best is None or len(best) != len(samples):
        return Tile(picture, name)
    if labels is None or labels.ndim != 1:
        return Tile(picture, f"{name}: says {best[place]}")
    return Tile(picture, f"label {labels[place]}, says {best[place]}", bool(labels[place] != best[place]))


def _legend(pixels: Pixels | None) -> str:
    if pixels is None:
        return "model-ready values, each stretched to its own range; channels as stored"
    order = {"bgr": "; channels B G R, drawn as R G B", "rgb": "; channels R G B"}.get(pixels.color, "")
    return pixels.describe() + order
