"""Shapes and types behind ai.onnx.ml's operators are those that ONNX Runtime gives."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxcomp.graph.codec import decode
from onnxcomp.graph.shapes import infer

TREES: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [0, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_values": [0.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
}
REGRESSOR = {f"target_{k}": v for k, v in {"treeids": [0, 0], "nodeids": [1, 2], "ids": [0, 2]}.items()}
CLASSIFIER = {f"class_{k}": v for k, v in {"treeids": [0, 0], "nodeids": [1, 2], "ids": [0, 2]}.items()}
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING

CASES: list[tuple[str, int, list[int], dict[str, Any]]] = [
    ("Scaler", FLOAT, [5, 4], {"offset": [0.1] * 4, "scale": [2.0] * 4}),
    ("Scaler", INT64, [5, 4], {"offset": [0.1] * 4, "scale": [2.0] * 4}),
    ("Normalizer", FLOAT, [5, 4], {"norm": "L2"}),
    ("Imputer", FLOAT, [5, 4], {"imputed_value_floats": [0.0] * 4, "replaced_value_float": 9.0}),
    ("Imputer", INT64, [5, 4], {"imputed_value_int64s": [0] * 4, "replaced_value_int64": 9}),
    ("Binarizer", FLOAT, [5, 4], {"threshold": 0.5}),
    ("LabelEncoder", INT64, [5, 4], {"keys_int64s": [0, 1], "values_floats": [0.5, 1.5]}),
    ("LabelEncoder", INT64, [5], {"keys_int64s": [0, 1], "values_strings": ["a", "b"]}),
    ("LabelEncoder", FLOAT, [5, 2], {"keys_floats": [0.0, 1.0], "values_int64s": [3, 4]}),
    ("OneHotEncoder", INT64, [5, 1], {"cats_int64s": [0, 1, 2]}),
    ("FeatureVectorizer", FLOAT, [5, 4], {"inputdimensions": [4]}),
    ("LinearRegressor", FLOAT, [5, 4], {"coefficients": [1.0] * 8, "intercepts": [0.0] * 2, "targets": 2}),
    ("TreeEnsembleRegressor", FLOAT, [5, 4], {**TREES, **REGRESSOR, "target_weights": [1.0, 2.0], "n_targets": 3}),
    (
        "TreeEnsembleClassifier", FLOAT, [5, 4],
        {**TREES, **CLASSIFIER, "class_weights": [1.0, 2.0], "classlabels_int64s": [4, 5, 6]},
    ),
    (
        "LinearClassifier", FLOAT, [5, 4],
        {"coefficients": [1.0] * 12, "intercepts": [0.0] * 3, "classlabels_strings": ["a", "b", "c"]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("op", "kind", "shape", "attrs"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_types_are_those_that_the_runtime_gives(op: str, kind: int, shape: list[int], attrs: dict[str, Any]) -> None:
    outputs = ["y", "z"] if op.endswith("Classifier") else ["y"]
    node = helper.make_node(op, ["x"], outputs, "node", domain="ai.onnx.ml", **attrs)
    values = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "g", [builders.value("x", kind, ["N", *shape[1:]])], values)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2 if op == "LabelEncoder" else 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    feed = np.ones(shape, np.int64 if kind == INT64 else np.float32)
    given = ort.InferenceSession(proto.SerializeToString()).run(outputs, {"x": feed})
    ours = decode(proto)
    for bind, rows in (({"x": tuple(shape)}, shape[0]), (None, "N")):
        found = infer(ours, bind)
        for name, array in zip(outputs, given, strict=True):
            known = found.types[name]
            assert known.dtype == np.asarray(array).dtype
            assert known.shape == (rows, *np.asarray(array).shape[1:])


def test_picked_features_and_what_follows_them_are_known() -> None:
    nodes = [
        helper.make_node("ArrayFeatureExtractor", ["x", "which"], ["s"], "pick", domain="ai.onnx.ml"),
        helper.make_node("Gemm", ["s", "W"], ["y"], "gemm"),
    ]
    weights = {"which": np.array([[1, 3]]), "W": np.ones((2, 7), np.float32)}
    proto = builders.model(
        nodes[1:], [builders.value("s", FLOAT, ["N", 2])], [builders.value("y", FLOAT, ["N", None])], weights
    )
    proto.graph.node.insert(0, nodes[0])
    proto.graph.input[0].CopyFrom(builders.value("x", FLOAT, ["N", 5]))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    assert infer(decode(proto), {"x": (3, 5)}).types["y"].shape == (3, 7)
    assert infer(decode(proto)).types["s"].shape == ("N", 2)
