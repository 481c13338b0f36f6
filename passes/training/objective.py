"""Which losses train a student: chosen from its outputs and its teacher's answers, or as asked for?"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxcomp.distill.losses import Kind, Term, fits, logit_of, logits_of, softmax_of
from onnxcomp.distill.teacher import mean_square
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.graph.ir import Array, Graph

TAUGHT = "teacher."  # names under which the teacher's tensors are fed
LOOKED_AT = 512  # rows of answers that a choice looks at
SURE = 0.25  # mean largest probability above which answers of unknown meaning are taken for a classifier's
ROUND_NORM = 1e-3  # relative spread of norms below which rows are taken for normalised embeddings


@dataclass(frozen=True)
class Aim:
    """What the user asked for.

    Attributes:
        loss: a kind for every output, or `auto`.
        alpha: share of the teacher in the loss of a classifier; labels have the rest.
        features: tensors to match: `name`, `student=teacher`, or a glob on names of tensors that both compute.
        feature_weight: of all of them together.
    """

    loss: Literal["auto", "kl", "mse", "cosine"]
    temperature: float
    alpha: float
    features: tuple[str, ...]
    feature_weight: float


@dataclass(frozen=True)
class Pair:
    """A tensor of the student and the teacher's that it should be like.

    Attributes:
        output: it is one, and not a feature.
        required: an error where the two do not fit; else left out, and said.
        classes: the axis of classes that a Softmax behind it names.
        place: the output whose layout the student's tensor has.
    """

    student: str
    teacher: str
    output: bool
    required: bool = True
    classes: int | None = None
    place: str = ""

    @property
    def fed(self) -> str:
        """The name under which the teacher's values are fed."""
        return TAUGHT + self.teacher


def pairs(student: Graph, teacher: Graph, aim: Aim) -> list[Pair]:
    """Outputs, before their Softmax where they have one, and features, as they belong together.

    Raises:
        UsageError: a feature exists in neither or one of the models only.
        ModelError: the teacher lacks an output of the student.
    """
    known = {t.name: t for t in teacher.outputs}
    found = []
    for output in student.outputs:
        twin = known.get(output.name)
        if twin is None:
            raise ModelError(
                f"the teacher has no output {output.name!r}",
                where=f"its outputs: {', '.join(known)}",
                do="give a teacher with the same outputs",
            )
        if output.dtype is not None and output.dtype.kind != "f":
            continue
        mine, other = softmax_of(student, output), softmax_of(teacher, twin)
        if mine is not None and other is not None:
            found.append(Pair(mine[0].name, other[0].name, True, classes=mine[1], place=output.name))
        else:
            found.append(Pair(output.name, twin.name, True, place=output.name))
    if not found:
        raise ModelError("no output holds floating-point numbers", where="the outputs", do="nothing can be distilled")
    named = [pair for entry in aim.features for pair in _features(entry, student, teacher)]
    return found + list(dict.fromkeys(named))


def terms(
    found: list[Pair],
    aim: Aim,
    shapes: Mapping[str, tuple[int, ...]],
    answers: Mapping[str, Array],
    labels: Array | None,
) -> tuple[list[Term], list[str]]:
    """The summands of the loss, and in words what was guessed.

    Args:
        shapes: static shapes of the student's tensors, by name.
        answers: the teacher's tensors by name, [rows, ...].
        labels: [rows, ...], integers; None without.

    Raises:
        UsageError: the loss asked for does not fit.
        DataError: a label is no class.
    """
    result: list[Term] = []
    notes: list[str] = []
    inside = len([pair for pair in found if not pair.output])
    for pair in found:
        ours, answer = shapes[pair.student], answers[pair.teacher]
        theirs = (ours[0], *answer.shape[1:])
        axis = class_axis(ours, labels)
        if not pair.required and not (ours == theirs or fits("attention", ours, theirs)):
            notes.append(f"{pair.student} is not matched: {list(ours)} against the teacher's {list(theirs)}")
            continue
        classes = pair.classes if axis is None else axis
        kind = _kind(pair, aim, ours, theirs, answer, classes is not None, len([p for p in found if p.output]))
        if pair.output and aim.loss == "auto":
            notes.append(f"loss of {pair.student}: {_WORDS[kind]} (loss= says otherwise)")
        weight = 1.0 if pair.output else aim.feature_weight / inside
        energy = mean_square(answer) if kind == "mse" else 1.0
        if kind != "kl":
            result.append(Term(kind, pair.student, pair.fed, weight, energy=energy))
            continue
        use = axis is not None and aim.alpha < 1
        share = aim.alpha if use else 1.0
        if share > 0:
            result.append(
                Term("kl", pair.student, pair.fed, share, aim.temperature, axis=-1 if classes is None else classes)
            )
        if use and axis is not None and labels is not None:
            check_labels(labels, ours[axis])
            result.append(Term("labels", pair.student, weight=1 - share, axis=axis))
    return result, notes


def label_terms(
    student: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    labels: Array | None,
    rows: Callable[[str, str], str] = lambda tensor, output: tensor,
) -> list[Term]:
    """Without a teacher: cross-entropy of every output that labels fit.

    Args:
        rows: the name of a tensor with its samples along axis 0, laid as an output is; `shapes` then has it.

    Raises:
        DataError: there are no labels, or they fit no output.
    """
    if labels is None:
        raise DataError("training without a teacher needs labels", where="--labels", do="give labels, or a teacher")
    result = []
    for output in student.outputs:
        logits = rows(logits_of(student, output).name, output.name)
        axis = class_axis(shapes[logits], labels)
        if axis is None and labels.ndim == 1 and shapes[logits][1:] == (1,) and set(np.unique(labels)) <= {0, 1}:
            result.append(Term("labels", rows(logit_of(student, output).name, output.name), axis=-1))
        elif axis is not None:
            check_labels(labels, shapes[logits][axis])
            result.append(Term("labels", logits, axis=axis))
    if not result:
        raise DataError(
            f"labels {list(labels.shape)} of {labels.dtype} are classes of no output",
            where=", ".join(f"{t.name} {list(shapes[t.name])}" for t in student.outputs),
            do="give one whole number a sample, and a model of [samples, classes], or of one number for two classes",
        )
    return result


def class_axis(shape: tuple[int, ...], labels: Array | None) -> int | None:
    """The axis of an output along which labels count; None where they are no classes of it."""
    if labels is None or labels.dtype.kind not in "iu" or len(shape) < 2:
        return None
    places = tuple(labels.shape[1:])
    if places == shape[1:-1] and shape[-1] > 1:
        return len(shape) - 1
    return 1 if places == shape[2:] and shape[1] > 1 else None


def check_labels(labels: Array, classes: int) -> None:
    """Every label is a class.

    Raises:
        DataError: one is not.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"a label is {low if low < 0 else high}, and the model tells {classes} classes apart",
            where="--labels",
            do="number the classes from 0",
        )


_WORDS = {"kl": "soft targets, for it looks like a classifier's", "cosine": "cosine, for it looks like an embedding",
          "mse": "mean squared error over energy", "attention": "attention maps"}  # fmt: skip


def _kind(
    pair: Pair,
    aim: Aim,
    ours: tuple[int, ...],
    theirs: tuple[int, ...],
    answer: Array,
    labelled: bool,
    outputs: int,
) -> Kind:
    wanted: Kind
    if not pair.output:
        wanted = "mse" if ours == theirs or not fits("attention", ours, theirs) else "attention"
    elif aim.loss != "auto":
        wanted = aim.loss
    elif labelled or _classifies(answer):
        wanted = "kl"
    else:
        wanted = "cosine" if outputs == 1 and len(ours) == 2 and ours[1] > 1 else "mse"
    if not fits(wanted, ours, theirs):
        raise UsageError(
            f"{pair.student} {list(ours)} cannot learn from {pair.teacher} {list(theirs)} by {wanted}",
            where=f"tensor {pair.student}",
            do="match tensors of one shape; features may differ in channels",
        )
    return wanted


def _classifies(answer: Array) -> bool:
    """Whether rows look like logits: two axes, and a Softmax that is sure of something."""
    if answer.ndim != 2 or answer.shape[1] < 2:
        return False
    rows = np.asarray(answer[:LOOKED_AT], np.float64)
    norms = np.linalg.norm(rows, axis=1)
    if norms.std() <= ROUND_NORM * norms.mean():
        return False
    shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    return bool((1.0 / shifted.sum(axis=1)).mean() > max(SURE, 1.5 / answer.shape[1]))


def _features(entry: str, student: Graph, teacher: Graph) -> list[Pair]:
    """The tensors that one entry names: two names, or a glob on tensors that both models compute."""
    ours, mine, theirs = entry.partition("=")
    computed = [{name for name, t in graph.tensors().items() if t.producer is not None} for graph in (student, teacher)]
    if any(mark in entry for mark in "*?["):
        outputs = {t.name for t in student.outputs}
        order = [t.name for node in student.nodes for t in node.outputs if t.name in computed[0] & computed[1]]
        names = [name for name in order if fnmatch.fnmatchcase(name, entry) and name not in outputs]
        if not names:
            raise UsageError(
                f"no tensor that both models compute matches {entry!r}",
                where=f"features {entry!r}",
                do="see onnxcomp inspect MODEL",
            )
        return [Pair(name, name, False, required=False) for name in names]
    for name, known, whose in ((ours, computed[0], "student"), (theirs if mine else ours, computed[1], "teacher")):
        if name not in known:
            raise UsageError(
                f"the {whose} computes no tensor {name!r}", where=f"features {entry!r}", do="see onnxcomp inspect MODEL"
            )
    return [Pair(ours, theirs if mine else ours, False)]
