"""Which losses train a student: chosen from its outputs and its teacher's answers, or as asked for?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxcomp.distill.losses import Kind, Term, fits, logits_of
from onnxcomp.distill.teacher import mean_square
from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.graph.ir import Array, Graph, Tensor

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
        features: names of tensors to match, `student` or `student=teacher`.
        feature_weight: of each of them.
    """

    loss: Literal["auto", "kl", "mse", "cosine"]
    temperature: float
    alpha: float
    features: tuple[str, ...]
    feature_weight: float


@dataclass(frozen=True)
class Pair:
    """A tensor of the student and the teacher's that it should be like. `output`: it is one, and not a feature."""

    student: str
    teacher: str
    output: bool

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
        ours, theirs = logits_of(student, output), logits_of(teacher, twin)
        if (ours is output) != (theirs is twin):
            ours, theirs = output, twin
        found.append(Pair(ours.name, theirs.name, True))
    if not found:
        raise ModelError("no output holds floating-point numbers", where="the outputs", do="nothing can be distilled")
    return found + [_feature(entry, student, teacher) for entry in aim.features]


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
    for pair in found:
        ours, answer = shapes[pair.student], answers[pair.teacher]
        theirs = (ours[0], *answer.shape[1:])
        axis = class_axis(ours, labels)
        kind = _kind(pair, aim, ours, theirs, answer, axis is not None, len([p for p in found if p.output]))
        if pair.output and aim.loss == "auto":
            notes.append(f"loss of {pair.student}: {_WORDS[kind]} (loss= says otherwise)")
        weight = 1.0 if pair.output else aim.feature_weight
        energy = mean_square(answer) if kind == "mse" else 1.0
        if kind != "kl":
            result.append(Term(kind, pair.student, pair.fed, weight, energy=energy))
            continue
        use = axis is not None and aim.alpha < 1
        share = aim.alpha if use else 1.0
        if share > 0:
            result.append(Term("kl", pair.student, pair.fed, share, aim.temperature, axis=-1 if axis is None else axis))
        if use and axis is not None and labels is not None:
            check_labels(labels, ours[axis])
            result.append(Term("labels", pair.student, weight=1 - share, axis=axis))
    return result, notes


def label_terms(student: Graph, shapes: Mapping[str, tuple[int, ...]], labels: Array | None) -> list[Term]:
    """Without a teacher: cross-entropy of every output that labels fit.

    Raises:
        DataError: there are no labels, or they fit no output.
    """
    if labels is None:
        raise DataError("training without a teacher needs labels", where="--labels", do="give labels, or a teacher")
    result = []
    for output in student.outputs:
        logits = logits_of(student, output).name
        axis = class_axis(shapes[logits], labels)
        if axis is not None:
            check_labels(labels, shapes[logits][axis])
            result.append(Term("labels", logits, axis=axis))
    if not result:
        raise DataError(
            f"labels {list(labels.shape)} of {labels.dtype} are classes of no output",
            where=", ".join(f"{t.name} {list(shapes[t.name])}" for t in student.outputs),
            do="give one whole number a sample",
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


def _feature(entry: str, student: Graph, teacher: Graph) -> Pair:
    ours, _, theirs = entry.partition("=")
    theirs = theirs or ours
    for name, graph, whose in ((ours, student, "student"), (theirs, teacher, "teacher")):
        tensor: Tensor | None = graph.tensors().get(name)
        if tensor is None or tensor.producer is None:
            raise UsageError(
                f"the {whose} computes no tensor {name!r}", where=f"features {entry!r}", do="see onnxcomp inspect MODEL"
            )
    return Pair(ours, theirs, False)
