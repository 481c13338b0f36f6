"""What is minimised? Builds the scalar loss behind a student's outputs, out of operators that have gradients.

Every loss is a mean over the rows of a batch, and what is a difference is divided by the energy of the teacher's own
values, so that no output dominates another and a learning rate means the same for every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Node, Tensor, Variable

Kind = Literal["kl", "mse", "cosine", "attention", "labels"]
LABELS = "distill.labels"
LOSS = "loss"
SMALLEST = 1e-12  # below this an energy counts as none
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    kl: T^2 times the Kullback-Leibler divergence of the softened class probabilities, teacher from student (Hinton,
        Vinyals and Dean 2015).
    labels: cross-entropy with integer labels; of one logit, and labels 0 and 1, the binary one.
    mse: mean squared difference over the teacher's mean square.
    cosine: 1 - cosine of the angle between the last axes.
    attention: mean squared difference of the normalised maps of channel energy, for feature maps that agree in all but
        the number of channels (Zagoruyko and Komodakis 2017).

    Attributes:
        student: name of the tensor in the student's graph.
        teacher: name under which the teacher's tensor is fed; empty for labels.
        weight: factor in the sum.
        temperature: of kl.
        energy: mean square of the teacher's tensor, for mse.
        axis: of the classes, for kl and labels.
    """

    kind: Kind
    student: str
    teacher: str = ""
    weight: float = 1.0
    temperature: float = 1.0
    energy: float = 1.0
    axis: int = -1

    @property
    def words(self) -> str:
        """The term for people."""
        share = "" if self.weight == 1 else f"{self.weight:g} x "
        names = {
            "kl": f"KL at temperature {self.temperature:g} on {self.student}",
            "labels": f"cross-entropy of {self.student} with the labels",
            "mse": f"MSE over energy on {self.student}",
            "cosine": f"cosine distance on {self.student}",
            "attention": f"attention maps of {self.student}",
        }
        return share + names[self.kind]


def append_loss(
    graph: Graph, terms: Sequence[Term], shapes: Mapping[str, tuple[int, ...]], labels: tuple[int, ...] | None = None
) -> Variable:
    """Put the loss behind a graph of static batch; it becomes the graph's only output, named `LOSS` or alike.

    Every teacher's tensor becomes an input of its name, float32; labels an input `LABELS`, int64.

    Args:
        shapes: static shapes of the student's tensors and, under the fed names, of the teacher's.
        labels: shape of the labels of one batch.

    Raises:
        ValueError: a term is of a kind that its shapes do not allow; `fits` tells beforehand.
    """
    builder = _Builder(graph, shapes, labels)
    parts = [builder.times(builder.term(term), term.weight) for term in terms]
    total = parts[0]
    for part in parts[1:]:
        total = builder.op("Add", total, part)
    total.name = graph.unique_name(LOSS)
    total.dtype, total.shape = _FLOAT32, ()
    graph.outputs = [total]
    graph.sort()
    return total


def fits(kind: Kind, student: tuple[int, ...], teacher: tuple[int, ...]) -> bool:
    """Whether two tensors of these static shapes can be compared so."""
    if kind == "attention":
        return len(student) == len(teacher) > 2 and student[:1] + student[2:] == teacher[:1] + teacher[2:]
    if kind in ("kl", "cosine"):
        return student == teacher and len(student) >= 2
    return student == teacher


def logits_of(graph: Graph, output: Tensor) -> Tensor:
    """What enters the Softmax that makes an output; the output itself where none does."""
    found = softmax_of(graph, output)
    return output if found is None else found[0]


def logit_of(graph: Graph, output: Tensor) -> Tensor:
    """What enters the Sigmoid that makes an output; the output itself where none does."""
    node = output.producer
    source = node.input(0) if node is not None and node.op == "Sigmoid" and not node.domain else None
    return output if source is None else source


def softmax_of(graph: Graph, output: Tensor) -> tuple[Tensor, int] | None:
    """What enters the Softmax that makes an output, and the axis of its classes: -1 the last, or 1; None without one.

    Nodes that only pass it on may stand between.
    """
    node = output.producer
    while node is not None and not node.domain and node.op in ("Identity", "Dropout"):
        source = node.input(0)
        node = source.producer if source is not None else None
    if node is None or node.domain or node.op not in ("Softmax", "LogSoftmax") or (source := node.input(0)) is None:
        return None
    axis = int(node.attrs.get("axis", -1 if graph.opset >= 13 else 1))
    if output.shape is None:
        return (source, -1) if axis == -1 else None
    rank = len(output.shape)
    if axis % rank == rank - 1:
        return source, -1
    alone = graph.opset >= 13 or all(size == 1 for size in output.shape[2:])  # before, all axes behind were one
    return (source, 1) if axis % rank == 1 and alone else None


class _Builder:
    """Writes small expressions into a graph; full reductions only, whose form no opset changed."""

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]], labels: tuple[int, ...] | None) -> None:
        self.graph, self.shapes, self.labels = graph, shapes, labels
        self.tensors = graph.tensors()
        self._numbers: dict[tuple[Any, ...], Tensor] = {}

    def term(self, term: Term) -> Variable:
        """The value of one term without its weight."""
        student = self.tensors[term.student]
        shape = self.shapes[term.student]
        if term.kind == "labels":
            return self._cross_entropy(student, shape, term.axis)
        teacher, wanted = self._fed(term.teacher), self.shapes[term.teacher]
        if not fits(term.kind, shape, wanted):
            raise ValueError(f"{term.kind} does not fit {list(shape)} and {list(wanted)}")
        if term.kind == "kl":
            return self._divergence(student, teacher, shape, term)
        if term.kind == "cosine":
            return self._angle(student, teacher, shape)
        if term.kind == "attention":
            return self._attention(student, teacher, shape, wanted)
        squared = self.op("ReduceMean", self._square(self.op("Sub", student, teacher)), keepdims=0)
        return self.times(squared, 1.0 / max(term.energy, SMALLEST))

    # -- the kinds ---------------------------------------------------------------------------------------------

    def _divergence(self, student: Tensor, teacher: Tensor, shape: tuple[int, ...], term: Term) -> Variable:
        # T^2 / rows * sum of p (log p - log q), p and q softened by T
        cooled = 1.0 / term.temperature
        ours = self._log_softmax(self.times(student, cooled), shape, term.axis)
        theirs = self._log_softmax(self.times(teacher, cooled), shape, term.axis)
        probable = self.op("Exp", theirs)
        summed = self.op("ReduceSum", self.op("Mul", probable, self.op("Sub", theirs, ours)), keepdims=0)
        return self.times(summed, term.temperature**2 * shape[term.axis] / prod(shape))

    def _cross_entropy(self, student: Tensor, shape: tuple[int, ...], axis: int) -> Variable:
        if self.labels is None:
            raise ValueError("there are no labels")
        if shape[axis] == 1:  # one logit tells two classes apart: that of the other is 0
            student = self.op("Concat", self.number(np.zeros(shape, np.float32)), student, axis=axis)
            shape = (*shape[:-1], 2)
        labels = self._input(LABELS, np.dtype(np.int64), self.labels)
        ends = self.number(np.asarray([0.0, 1.0], np.float32))
        # [rows] -> [rows, classes], in the order that _log_softmax leaves behind
        chosen = self.op("OneHot", labels, self.number(np.asarray(shape[axis], np.int64)), ends, axis=-1)
        ours = self._log_softmax(student, shape, axis)
        summed = self.op("ReduceSum", self.op("Mul", chosen, ours), keepdims=0)
        return self.times(summed, -float(shape[axis]) / prod(shape))

    def _angle(self, student: Tensor, teacher: Tensor, shape: tuple[int, ...]) -> Variable:
        # 1 - mean of x.y / sqrt(x.x y.y + tiny)
        ones = self.number(np.ones((shape[-1], 1), np.float32))
        along = {
            key: self.op("MatMul", self.op("Mul", a, b), ones)  # sums along the last axis: [..., n] -> [..., 1]
            for key, (a, b) in {"xy": (student, teacher), "xx": (student,) * 2, "yy": (teacher,) * 2}.items()
        }
        power = self.op("Add", self.op("Mul", along["xx"], along["yy"]), self.number(np.float32(SMALLEST)))
        cosine = self.op("Div", along["xy"], self.op("Sqrt", power))
        return self.op("Sub", self.number(np.float32(1.0)), self.op("ReduceMean", cosine, keepdims=0))

    def _attention(self, student: Tensor, teacher: Tensor, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Variable:
        # [n, c, ...] -> energy over c -> [n, 1, places], each row of length 1
        maps = []
        for tensor, size in ((student, shape), (teacher, wanted)):
            places = prod(size[2:])
            flat = self._reshape(tensor, (size[0], size[1], places))
            summed = self.op("MatMul", self.number(np.ones((1, size[1]), np.float32)), self._square(flat))
            power = self.op("MatMul", self._square(summed), self.number(np.ones((places, 1), np.float32)))
            power = self.op("Add", power, self.number(np.float32(SMALLEST)))
            maps.append(self.op("Div", summed, self.op("Sqrt", power)))
        squared = self.op("ReduceSum", self._square(self.op("Sub", maps[0], maps[1])), keepdims=0)
        return self.times(squared, 1.0 / shape[0])

    # -- small expressions -------------------------------------------------------------------------------------

    def _log_softmax(self, tensor: Tensor, shape: tuple[int, ...], axis: int) -> Variable:
        """Log-probabilities as [rows, classes], or the tensor's own rank where classes stand last."""
        rank = len(shape)
        axis %= rank
        if axis != rank - 1:
            order = [a for a in range(rank) if a != axis] + [axis]
            tensor = self.op("Transpose", tensor, perm=order)
        return self.op("LogSoftmax", tensor, axis=rank - 1)

    def _square(self, tensor: Tensor) -> Variable:
        return self.op("Mul", tensor, tensor)

    def _reshape(self, tensor: Tensor, shape: tuple[int, ...]) -> Variable:
        return self.op("Reshape", tensor, self.number(np.asarray(shape, np.int64)))

    def times(self, tensor: Tensor, factor: float) -> Variable:
        """The product with a number; the tensor itself for 1."""
        if factor == 1 and isinstance(tensor, Variable):
            return tensor
        return self.op("Mul", tensor, self.number(np.float32(factor)))

    def number(self, value: Any) -> Tensor:
        """A constant, each value once."""
        array: Array = np.asarray(value)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._numbers:
            self._numbers[key] = self.graph.add_constant("distill.c", array)
        return self._numbers[key]

    def op(self, op: str, *inputs: Tensor, **attrs: Any) -> Variable:
        """A new node's output."""
        node: Node = self.graph.add_node(op, inputs, name=f"distill.{op}", attrs=attrs)
        result: Variable = node.outputs[0]
        return result

    def _fed(self, name: str) -> Variable:
        return self._input(name, _FLOAT32, self.shapes[name])

    def _input(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Variable:
        known = next((t for t in self.graph.inputs if t.name == name), None)
        if known is None:
            known = Variable(name, dtype, shape)
            self.graph.inputs.append(known)
        return known
