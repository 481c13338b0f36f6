"""Which models can be trained besides the one at hand? A narrower one, and one with a new last layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp import places
from onnxcomp.errors import ModelError
from onnxcomp.files import scratch
from onnxcomp.graph.io import load, save
from onnxcomp.graph.ir import Constant, Graph, Node, Variable
from onnxcomp.job import Job
from onnxcomp.manager.base import Pass
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.spec import make_pass
from onnxcomp.manager.spelling import exactly
from onnxcomp.ops.facts import Operators, Weight, load_operators

PASSED = ("Softmax", "LogSoftmax", "Sigmoid", "Identity", "Add")  # between the last layer and the output


@contextmanager
def distillation(
    student: Path, options: Mapping[str, Any], *, width: float | None, classes: int | None, **given: Any
) -> Iterator[Job]:
    """The job that trains a student; what it needs beside lies in a folder that goes with the block.

    Args:
        options: of the pass `distill`; with neither teacher nor this saying otherwise, labels teach.
        width: first keep this share of all channels only.
        classes: first give the student a new last layer for so many classes.
        given: fields of `Job`.

    Raises:
        ModelError: there is no last layer to replace.
        OutputError: a file that is read would be written.
        UsageError: an option that cannot be.
    """
    options = dict(options)
    if given.get("teacher") is None:
        options["teacher"] = "none"
    with scratch() as folder:
        model = student
        if classes is not None:
            places.check_job(Job(model=student, **given))  # the job's own model is a file of ours
            model, new = with_classes(student, classes, folder, given.get("seed", 0))
            options["fresh"] = (*options.get("fresh", ()), *map(exactly, new))
        yield Job(model=model, passes=Pipeline((*narrower(width), make_pass("distill", options))), **given)


def narrower(width: float | None) -> tuple[Pass, ...]:
    """What keeps a share of the channels of every layer and of every residual stream, the most important ones.

    The student of a width-scaled architecture starts from the teacher's own weights then.
    """
    if width is None or width == 1:
        return ()
    return (make_pass("prune-channels", {"ratio": round(1 - width, 9), "scope": "layer", "streams": True}),)


def with_classes(source: Path, classes: int, folder: Path, seed: int = 0) -> tuple[Path, tuple[str, ...]]:
    """The model with a new last layer for so many classes, under its own name in another folder, and what is new in it.

    Raises:
        ModelError: no last layer is found.
    """
    graph = load(source)
    fresh = new_head(graph, classes, load_operators(), seed)
    save(graph, folder / source.name)
    return folder / source.name, fresh


def new_head(graph: Graph, classes: int, operators: Operators, seed: int = 0) -> tuple[str, ...]:
    """Replace the weights of the last layer of a classifier by small random ones, biases by zeros, in place.

    Weights are uniform within 1 / sqrt(inputs), as a fresh linear layer has them. Returns the names of what is new.

    Raises:
        ModelError: the first output does not come from a layer with weights of its own.
    """
    node, weight, constant, passed = _last(graph, operators)
    matrix = weight.to_matrix(constant.values)
    generator = np.random.default_rng(seed)
    fresh = generator.uniform(-1, 1, (classes, matrix.shape[1])).astype(np.float32) / np.sqrt(matrix.shape[1])
    axis = weight.out_axis % len(constant.shape)
    shape = tuple(classes if a == axis else size for a, size in enumerate(constant.shape))
    port = next(p for p, t in enumerate(node.inputs) if t is constant)
    made = [graph.add_constant(constant.name, weight.from_matrix(fresh.astype(constant.dtype), shape))]
    node.inputs[port] = made[0]
    if weight.bias is not None and (bias := node.constant(weight.bias)) is not None:
        made.append(graph.add_constant(bias.name, np.zeros(classes, bias.dtype)))
        node.inputs[weight.bias] = made[-1]
    for other in passed:
        for at, tensor in enumerate(other.inputs):
            if isinstance(tensor, Constant) and tensor.size > 1:
                made.append(graph.add_constant(tensor.name, np.zeros(classes, tensor.dtype)))
                other.inputs[at] = made[-1]
    for changed in (node, *passed):
        for tensor in changed.outputs:
            if tensor.shape:
                at = 1 if len(tensor.shape) > 1 and tensor.shape[1] == matrix.shape[0] else len(tensor.shape) - 1
                tensor.shape = tuple(classes if a == at else size for a, size in enumerate(tensor.shape))
    return tuple(constant.name for constant in made)


def _last(graph: Graph, operators: Operators) -> tuple[Node, Weight, Constant, list[Node]]:
    """The layer that makes the first output, and the nodes between it and the output."""
    tensor = graph.outputs[0]
    passed: list[Node] = []
    while isinstance(tensor, Variable) and tensor.producer is not None:
        node = tensor.producer
        for weight, constant in operators.weights(node):
            if weight.role == "kernel" and weight.group == 1 and len(constant.consumers) == 1:
                return node, weight, constant, passed
        computed = [t for t in node.inputs if isinstance(t, Variable) and t.name]
        if node.op not in PASSED or len(computed) != 1:
            break
        passed.append(node)
        tensor = computed[0]
    raise ModelError(
        f"no last layer makes the output {graph.outputs[0].name!r}",
        where=f"output {graph.outputs[0].name}",
        do="give a classifier that ends in Gemm, MatMul or Conv",
    )
