"""What kind of answer is each output? Guessed from shapes, values and last operators; `--task` says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxcomp.errors import DataError, UsageError
from onnxcomp.runtime.closeness import is_float
from onnxcomp.runtime.session import Array
from onnxcomp.verify.tasks.base import KINDS, Measure, Seen
from onnxcomp.verify.tasks.boxes import Boxes
from onnxcomp.verify.tasks.ctc import Text, blank_of, comes_in_spikes
from onnxcomp.verify.tasks.decisions import Classes, Decisions, Equal, Together
from onnxcomp.verify.tasks.layouts import find_boxes
from onnxcomp.verify.tasks.vectors import Embeddings, Values

FLAG = "--task"
CLASSES = "scores of classes"
LETTERS = 10  # classes at least where text is read: the digits without a blank
FEW_CLASSES = 20  # so few numbers of a Gemm are classes, whatever they look like
ENOUGH = 16  # samples of which the same number is the largest
SLIGHT = 0.05  # of the largest: places may lie a little outside
UNSURE = 3.0  # times the share of chance: a classifier's softmax is surer of its first class
MAP_SHARE = 4  # a map of classes has at least a quarter of the picture's height
UNIT = (-1e-3, 1 + 1e-3)
SQUASHED = ("Sigmoid", "HardSigmoid")
NORMALISED = (
    "LayerNormalization",
    "LpNormalization",
    "BatchNormalization",
    "InstanceNormalization",
    "SimplifiedLayerNormalization",
)
FEATURES = ("Relu", "GlobalAveragePool", "ReduceMean", "Tanh", "Gelu", "PRelu")
RANKED = ("Softmax", "LogSoftmax")
FILLED = 1e8  # what is larger comes from a mask
INSIDE = ("If", "Loop", "Scan")  # what comes last stands inside


@dataclass(frozen=True)
class Tasks:
    """What to measure on each output.

    Attributes:
        guesses: one line for each guess, with the flag that overrides it.
    """

    make: Callable[[], list[Measure]]
    guesses: tuple[str, ...]


def parse_task(text: str | None) -> dict[str, str]:
    """`boxes`, for all outputs, or `OUTPUT=classes,OTHER=embeddings`; kinds by output, that of all under "".

    Raises:
        UsageError: a kind that does not exist.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(","):
        name, _, kind = part.strip().rpartition("=")
        if not kind and not name:
            continue
        if kind not in KINDS:
            raise UsageError(f"there is no task {kind!r}", where=f"{FLAG} {text}", do=f"give one of {', '.join(KINDS)}")
        found[name.strip()] = kind
    return found


def look(seen: Seen, asked: Mapping[str, str]) -> Tasks:
    """What each output is.

    Args:
        asked: kinds by output, that of all others under "".

    Raises:
        DataError: an output is not what the user says it is, or does not exist.
    """
    unknown = [name for name in asked if name and name not in seen.outputs]
    if unknown:
        raise DataError(f"there is no output {unknown[0]!r}", where=FLAG, do=f"the model has {', '.join(seen.outputs)}")
    makers: list[Callable[[], Measure]] = []
    guesses: list[str] = []
    left = dict(seen.outputs)
    wants_boxes = "boxes" in asked.values()
    if wants_boxes or not asked.get(""):
        for group in find_boxes(seen, asked=wants_boxes):
            named = [name for name in group.outputs if asked.get(name, "boxes") == "boxes"]
            if len(named) < len(group.outputs):
                continue
            outputs, layout = group.outputs, group.layout
            makers.append(partial(Boxes, outputs, group.decode, layout))
            left = {name: array for name, array in left.items() if name not in outputs}
            if not wants_boxes:
                guesses.append(_line(outputs, f"boxes ({layout})"))
    if wants_boxes and not makers:
        raise DataError(
            "no output is laid out as boxes",
            where=f"{FLAG} boxes; outputs " + ", ".join(f"{n} {list(a.shape)}" for n, a in seen.outputs.items()),
            do="give the task's own metric with --metric module.py:function",
        )
    characters: dict[int, list[str]] = {}
    for name, array in left.items():
        kind = asked.get(name) or asked.get("", "")
        given = kind and kind != "boxes"
        maker, words = _asked(kind, name, array, seen) if given else _guessed(name, array, seen)
        makers.append(maker)
        if not given:
            guesses.append(_line((name,), words))
            if words == CLASSES and array.ndim == 2 and array.shape[-1] >= LETTERS:
                characters.setdefault(array.shape[-1], []).append(name)
    for names in characters.values():
        if len(names) > 1:
            makers.append(partial(Together, tuple(names)))
            guesses = [line for line in guesses if line not in {_line((name,), CLASSES) for name in names}]
            guesses.append(
                _line(tuple(names), "characters of one text, each a class") + " classes if each is read alone"
            )
    return Tasks(lambda: [make() for make in makers], tuple(guesses))


def _line(outputs: tuple[str, ...], words: str) -> str:
    return f"output {', '.join(outputs)} taken for {words}: override with {FLAG}"


def _asked(kind: str, name: str, array: Array, seen: Seen) -> tuple[Callable[[], Measure], str]:
    """The measure that a user asks for.

    Raises:
        DataError: the output has not the axes that it needs.
    """
    floating = is_float(array.dtype)
    if kind in ("classes", "tokens", "pixels") and not floating:
        return lambda: Equal(name), kind
    if kind in ("classes", "tokens", "pixels") and array.ndim >= 2:
        axis = _class_axis(array, seen) if kind == "pixels" else 1 if kind == "classes" else array.ndim - 1
        return lambda: Classes(kind, name, axis), kind
    if kind == "ctc" and array.ndim == 3 and floating:
        return lambda: _text(name, array, seen, 0), kind
    if kind == "embeddings" and array.ndim >= 1 and floating:
        return lambda: Embeddings(name), kind
    if kind in ("regression", "state") and array.dtype.kind in "iufb":
        return lambda: Values(name, kind), kind
    if kind == "decisions" and array.dtype.kind in "iufb":
        return lambda: Decisions(name, _threshold(array)), kind
    raise DataError(
        f"output {name!r} of shape {list(array.shape)} and type {array.dtype} cannot be judged as {kind}",
        where=f"{FLAG} {kind}",
        do="name the output it holds for, NAME=KIND, or give another of " + ", ".join(KINDS),
    )


def _guessed(name: str, array: Array, seen: Seen) -> tuple[Callable[[], Measure], str]:
    """The measure that fits best, and in words what the output is taken for."""
    tail = seen.tails.get(name, ())
    if not is_float(array.dtype):
        words = "classes or decisions, compared one by one" if array.dtype.kind != "O" else "texts"
        return lambda: Equal(name), words
    if not array.size or np.isnan(array).all():
        return lambda: Values(name), "numbers"
    if _is_state(array, seen):
        return lambda: Values(name, "state"), "a state that goes back in"
    array = array.astype(np.promote_types(array.dtype, np.float32))  # sums and limits are beyond half precision
    unit = float(np.nanmin(array)) >= UNIT[0] and float(np.nanmax(array)) <= UNIT[1]
    if array.size == seen.rows:
        if unit and (tail[:1] and tail[0] in (*SQUASHED, *INSIDE)):
            return lambda: Decisions(name, 0.5), "one yes or no (probability)"
        return lambda: Values(name), "one number, a regression"
    if array.ndim == 3 and not _last_is_normalised(tail):
        found = _sequence(name, array, seen, tail)
        if found is not None:
            return found
    if tail[:1] and tail[0] in SQUASHED and unit:
        return lambda: Decisions(name, 0.5), "decisions (probabilities)"
    if array.ndim == 4 and seen.image is not None:
        return _map(name, array, seen, tail)
    flat = array.reshape(seen.rows, -1) if array.shape[:1] == (seen.rows,) else None
    if flat is not None and flat.shape[1] == max(array.shape[1:], default=0):
        return _vector(name, flat, array.shape.index(flat.shape[1], 1), tail, seen)
    if array.ndim == 3 and (_last_is_normalised(tail) or seen.text):
        return lambda: Embeddings(name), "vectors, one a place"
    return lambda: Values(name), "numbers, a regression"


def _sequence(name: str, array: Array, seen: Seen, tail: tuple[str, ...]) -> tuple[Callable[[], Measure], str] | None:
    """Classes at each place of [N, T, C] or [T, N, C]: text of CTC, tokens, or neither."""
    axis = 0 if array.shape[0] == seen.rows or array.shape[1] != seen.rows else 1
    names, classes = array.argmax(axis=-1), array.shape[-1]
    if not seen.text and classes >= LETTERS and _reads(names, classes, axis, seen):
        return lambda: _text(name, array, seen, axis), "text (CTC)"
    ranked = bool(tail[:1]) and tail[0] in RANKED
    if classes >= 2 and (ranked or (seen.text and _sure(array.reshape(-1, classes)))):
        return lambda: Classes("tokens", name), "a class at each place"
    return None


def _reads(names: Array, classes: int, axis: int, seen: Seen) -> bool:
    """Whether classes, of [N, T] or [T, N] with the samples on `axis`, are those of text."""
    blank, names = blank_of(names, classes), np.moveaxis(names, axis, 0)
    recordings = (array for array in seen.inputs.values() if array.ndim == 3 and is_float(array.dtype))
    frames = {size for array in recordings for size in np.delete(array.shape, axis).tolist()}
    return blank is not None and comes_in_spikes(names, blank, aligned=names.shape[1] in frames)


def _text(name: str, array: Array, seen: Seen, axis: int) -> Text:
    axis = axis or (0 if array.shape[0] == seen.rows or array.shape[1] != seen.rows else 1)
    blank = blank_of(array.argmax(axis=-1), array.shape[-1])
    return Text(name, axis, 0 if blank is None else blank)


def _map(name: str, array: Array, seen: Seen, tail: tuple[str, ...]) -> tuple[Callable[[], Measure], str]:
    """A map over a picture: classes of pixels, a mask, another picture, or features."""
    axis = _class_axis(array, seen)
    height = array.shape[2] if axis == 1 else array.shape[1]
    classes, image = array.shape[axis], seen.image or (height, height)
    if height * MAP_SHARE < image[0] or classes in (1, 3) or (tail[:1] and tail[0] in FEATURES):
        return lambda: Values(name), "a map of numbers"
    return lambda: Classes("pixels", name, axis), "a class for each pixel"


def _class_axis(array: Array, seen: Seen) -> int:
    """1 or the last one: whichever leaves two axes that stand to each other as the picture's do."""
    if array.ndim < 4:
        return 1 if array.ndim == 3 and array.shape[1] < array.shape[2] else array.ndim - 1
    image = seen.image or (1, 1)
    aspect = image[0] / image[1]
    first = abs(np.log(array.shape[2] / array.shape[3] / aspect))
    last = abs(np.log(array.shape[1] / array.shape[2] / aspect))
    return 1 if first <= last else array.ndim - 1


def _unmasked(flat: Array) -> Array:
    """Rows without what a mask fills in: -1e9, infinities and the like become each row's least other value."""
    large = ~(np.abs(flat) < FILLED)
    if not large.any():
        return flat
    least = np.where(large, np.inf, flat).min(axis=1, keepdims=True)
    return np.where(large, np.where(np.isfinite(least), least, 0.0), flat)


def _vector(name: str, flat: Array, axis: int, tail: tuple[str, ...], seen: Seen) -> tuple[Callable[[], Measure], str]:
    """One row a sample, along one axis: scores of classes, an embedding, or the numbers of a regression."""
    width, masked = flat.shape[1], bool((~(np.abs(flat) < FILLED)).any())
    flat = _unmasked(flat)
    lengths = np.linalg.norm(flat.astype(np.float64), axis=1)
    of_length_one = bool(np.allclose(lengths, 1.0, atol=1e-3)) and bool((flat < 0).any())
    probable = float(flat.min()) >= UNIT[0] and np.allclose(flat.sum(axis=1), 1.0, atol=1e-3)
    if (tail[:1] and tail[0] in RANKED) or probable:
        return lambda: Classes("classes", name, axis), CLASSES
    if of_length_one or _last_is_normalised(tail) or (tail[:1] and tail[0] in FEATURES):
        if width <= FEW_CLASSES // 2 and not of_length_one:
            return lambda: Values(name), "numbers, a regression"
        return lambda: Embeddings(name), "an embedding"
    if _along(width, seen) and not masked:
        return lambda: Values(name), "a number at each place of the input"
    if (_offset(flat) or _places(flat)) and not masked:
        return lambda: Values(name), "numbers, a regression"
    if masked or width <= FEW_CLASSES or _sure(flat):
        return lambda: Classes("classes", name, axis), CLASSES
    return lambda: Embeddings(name), "an embedding"


def _along(width: int, seen: Seen) -> bool:
    """Whether there is a number for each step of a recording, the longest axis of an input [N, C, T] or [N, T, C]."""
    recordings = (array for array in seen.inputs.values() if array.ndim == 3 and is_float(array.dtype))
    return width > FEW_CLASSES and any(width == max(array.shape[1:]) for array in recordings)


def _sure(rows: Array) -> bool:
    """Whether the softmax of rows is surer of its first class than chance would be."""
    values = rows[:4096].astype(np.float64)
    values = np.where(np.isfinite(values), values, np.nanmin(np.where(np.isfinite(values), values, np.nan)))
    shares = np.exp(values - values.max(axis=1, keepdims=True))
    first = float((1 / shares.sum(axis=1)).mean())
    return bool(first > min(0.5, UNSURE / rows.shape[1]))


def _offset(flat: Array) -> bool:
    """Whether numbers are measured quantities: each far from zero beside how much it varies, or of unlike scales."""
    values = flat.astype(np.float64)
    if len(values) < 4 or not np.isfinite(values).all():
        return False
    spread = values.std(axis=0)
    rms = np.sqrt(np.square(values).mean(axis=0))
    far = np.abs(values.mean(axis=0)) > 20 * spread
    unlike = float(rms.max()) > 30 * max(float(rms.min()), 1e-30)
    return bool(far.all() and (spread > 0).any()) or (unlike and flat.shape[1] <= FEW_CLASSES)


def _places(flat: Array) -> bool:
    """Whether numbers are places or amounts: none below zero, and always the same one the largest."""
    values = flat[np.isfinite(flat).all(axis=1)]
    return (
        len(values) >= ENOUGH
        and float(values.min()) >= -SLIGHT * float(values.max())
        and len(set(values.argmax(axis=1).tolist())) == 1
    )


def _threshold(array: Array) -> float:
    return 0.5 if array.dtype.kind in "b" or (float(array.min()) >= 0 and float(array.max()) <= 1) else 0.0


def _last_is_normalised(tail: tuple[str, ...]) -> bool:
    decomposed = len(tail) >= 3 and tail[0] in ("Add", "Mul") and "Div" in tail[:4] and "Sqrt" not in tail[:1]
    divided = tail[:1] == ("Div",)
    return (bool(tail) and tail[0] in NORMALISED) or decomposed or divided


def _is_state(array: Array, seen: Seen) -> bool:
    """Whether an output goes back in: as large as an input that is not the first, beside other outputs."""
    if len(seen.outputs) < 2 or len(seen.inputs) < 2 or array.ndim < 2:
        return False
    return any(i.shape == array.shape and i.dtype == array.dtype for i in list(seen.inputs.values()))
