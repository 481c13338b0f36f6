"""Operators of ai.onnx.ml: scalers, encoders, trees, linear models; onnx's own inference leaves their shapes open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops.record import OpFacts

DOMAIN = "ai.onnx.ml"
FLOAT, INT64, TEXT = np.dtype(np.float32), np.dtype(np.int64), np.dtype(object)

Types = list[TensorType]


def same_shape(dtype: np.dtype[Any] | None = None) -> Callable[[Node, Shapes], Types]:
    """The input's shape; of the input's type where none is given."""

    def rule(node: Node, shapes: Shapes) -> Types:
        source = node.inputs[0]
        return [TensorType(dtype or shapes.dtype(source), shapes.shape(source))]

    return rule


def encoded(node: Node, shapes: Shapes) -> Types:
    """LabelEncoder, CategoryMapper: the input's shape, and the type of the values it maps to."""
    source = node.inputs[0]
    given = shapes.dtype(source)
    kinds: dict[str, np.dtype[Any]] = {"values_int64s": INT64, "values_floats": FLOAT, "values_strings": TEXT}
    dtype: np.dtype[Any] | None = next((kind for name, kind in kinds.items() if node.attrs.get(name)), None)
    if node.op == "CategoryMapper":
        dtype = INT64 if given == TEXT else TEXT
    return [TensorType(dtype, shapes.shape(source))]


def one_hot(node: Node, shapes: Shapes) -> Types:
    """[..., ] -> [..., categories]."""
    shape = shapes.shape(node.inputs[0])
    count = len(node.attrs.get("cats_int64s") or node.attrs.get("cats_strings") or ())
    return [TensorType(FLOAT, None if shape is None else (*shape, count))]


def picked(node: Node, shapes: Shapes) -> Types:
    """ArrayFeatureExtractor: [..., features] and indices of any shape -> [..., indices]."""
    shape, indices = shapes.shape(node.inputs[0]), shapes.static(node.inputs[1])
    if shape is None or indices is None:
        return [TensorType(shapes.dtype(node.inputs[0]), None)]
    lead = shape[:-1] if len(shape) > 1 else (1,)
    return [TensorType(shapes.dtype(node.inputs[0]), (*lead, int(np.prod(indices, dtype=np.int64))))]


def joined(node: Node, shapes: Shapes) -> Types:
    """FeatureVectorizer: columns side by side."""
    first = shapes.shape(node.inputs[0])
    sizes = node.attrs.get("inputdimensions") or ()
    return [TensorType(FLOAT, None if first is None or not sizes else (first[0], int(sum(sizes))))]


def targets(*names: str, least: int = 1) -> Callable[[Node, Shapes], Types]:
    """Regressors: [samples, targets], the count taken from one of these attributes."""

    def rule(node: Node, shapes: Shapes) -> Types:
        shape = shapes.shape(node.inputs[0])
        count = next((int(node.attrs[name]) for name in names if node.attrs.get(name)), least)
        dtype = shapes.dtype(node.inputs[0]) if node.op == "TreeEnsemble" else FLOAT
        return [TensorType(dtype, None if shape is None else (_rows(shape), count))]

    return rule


def classes(node: Node, shapes: Shapes) -> Types:
    """Classifiers: labels [samples] and scores [samples, classes]."""
    shape = shapes.shape(node.inputs[0])
    numbers = _first(node, "classlabels_ints", "classlabels_int64s")
    words = _first(node, "classlabels_strings")
    rows = None if shape is None else _rows(shape)
    label = TensorType(TEXT if words and not numbers else INT64, None if shape is None else (rows,))
    count = len(numbers or words)
    return [label, TensorType(FLOAT, None if shape is None or count < 2 else (rows, count))]


def _rows(shape: Sequence[int | str | None]) -> int | str | None:
    """A vector is one sample."""
    return shape[0] if len(shape) > 1 else 1


def _first(node: Node, *names: str) -> Sequence[Any]:
    return next((node.attrs[name] for name in names if node.attrs.get(name)), ())


RECORDS = (
    *(OpFacts(op, DOMAIN, shape=same_shape(FLOAT)) for op in ("Scaler", "Normalizer")),
    *(OpFacts(op, DOMAIN, shape=same_shape()) for op in ("Imputer", "Binarizer")),
    *(OpFacts(op, DOMAIN, shape=encoded) for op in ("LabelEncoder", "CategoryMapper")),
    OpFacts("OneHotEncoder", DOMAIN, shape=one_hot),
    OpFacts("ArrayFeatureExtractor", DOMAIN, shape=picked),
    OpFacts("FeatureVectorizer", DOMAIN, shape=joined),
    OpFacts("LinearRegressor", DOMAIN, shape=targets("targets")),
    OpFacts("SVMRegressor", DOMAIN, shape=targets()),
    *(OpFacts(op, DOMAIN, shape=targets("n_targets")) for op in ("TreeEnsembleRegressor", "TreeEnsemble")),
    *(OpFacts(op, DOMAIN, shape=classes) for op in ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")),
)
