"""Does a product with one-hot rows become a look-up, and give what it gave, out of range as well?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.gather_rows import GatherRows
from onnxcomp.testing import check_pass

FLOAT = builders.FLOAT
PLACES = 7


def by_operator(dtype: int, **attributes: Any) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[Any]]:
    nodes = [helper.make_node("OneHot", ["i", "depth", "values"], ["h"], "hot", **attributes)]
    depth = np.asarray(PLACES, helper.tensor_dtype_to_np_dtype(dtype))
    return nodes, {"depth": depth, "values": np.float32([0, 1])}, ["N", 5]


def by_comparison(dtype: int, swapped: bool = False) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[Any]]:
    places = np.arange(PLACES).astype(helper.tensor_dtype_to_np_dtype(dtype)).reshape(1, 1, PLACES)
    nodes = [
        helper.make_node("Equal", ["p", "i"] if swapped else ["i", "p"], ["e"], "equal"),
        helper.make_node("Cast", ["e"], ["h"], "cast", to=FLOAT),
    ]
    return nodes, {"p": places}, ["N", 5, 1]


def by_choice(dtype: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[Any]]:
    nodes, weights, shape = by_comparison(dtype)
    nodes[1] = helper.make_node("Where", ["e", "one", "zero"], ["h"], "where")
    return nodes, {**weights, "one": np.float32([1]), "zero": np.float32(0)}, shape


def product(
    spelling: tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[Any]],
    dtype: int = TensorProto.INT64,
    *,
    weight: np.ndarray | None = None,
    behind: tuple[onnx.NodeProto, ...] = (),
    opset: int = 17,
    **more: np.ndarray,
) -> onnx.ModelProto:
    """i -> one-hot rows -> MatMul -> t (-> more) -> y."""
    nodes, weights, shape = spelling
    w = builders.normal(builders.rng(), PLACES, 4) if weight is None else weight
    nodes = [*nodes, helper.make_node("MatMul", ["h", "w"], ["t" if behind else "y"], "product"), *behind]
    ports = [builders.value("i", dtype, shape)], [builders.value("y", FLOAT, None)]
    return builders.model(nodes, *ports, {**weights, "w": w, **more}, opset=opset, check=False)


def looked_up(proto: onnx.ModelProto, index: np.ndarray) -> Graph:
    result = PassManager(Pipeline.parse("gather-rows,cleanup")).run(decode(proto))
    wanted, got = (builders.run(m, {"i": index})[0] for m in (proto, io.to_bytes(result.graph)))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
    return result.graph


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("opset", [12, 13, 17, 21])
@pytest.mark.parametrize("spelling", [by_operator, by_comparison, by_choice])
def test_a_row_is_looked_up_and_out_of_range_is_no_row(spelling: Any, dtype: Any, opset: int) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = product(spelling(element), element, opset=opset)
    index = np.array([[0, 6, -1, 7, 3], [-7, -8, 100, -100, 5]], dtype).reshape(2, 5)
    graph = looked_up(proto, index if spelling is by_operator else index[..., None])
    assert "MatMul" not in graph.operators()
    assert not {"OneHot", "Equal"} & set(graph.operators())


def test_places_may_stand_first_in_the_comparison() -> None:
    graph = looked_up(product(by_comparison(TensorProto.INT64, swapped=True)), np.arange(10).reshape(2, 5, 1) - 1)
    assert graph.operators()["Gather"] == 1


def test_a_product_with_bias_and_factors() -> None:
    nodes, weights, _ = by_operator(TensorProto.INT64)
    weights |= {"w": builders.normal(builders.rng(), 4, PLACES), "b": np.float32([1, 2, 3, 4])}
    nodes.append(helper.make_node("Gemm", ["h", "w", "b"], ["y"], "product", transB=1, alpha=0.5, beta=2.0))
    ports = [builders.value("i", TensorProto.INT64, ["N"])], [builders.value("y", FLOAT, None)]
    graph = looked_up(builders.model(nodes, *ports, weights, check=False), np.arange(9) - 1)
    assert graph.operators()["Gather"] == 1


def test_functions_of_single_elements_and_of_columns_move_into_the_table() -> None:
    behind = (
        helper.make_node("Add", ["t", "bias"], ["a"], "add"),
        helper.make_node("Tanh", ["a"], ["b"], "tanh"),
        helper.make_node("Mul", ["b", "a"], ["c"], "mul"),
        helper.make_node("ReduceSum", ["c", "last"], ["y"], "sum"),
    )
    more = {"bias": np.float32([[[1, 2, 3, 4]]]), "last": np.int64([-1])}
    graph = looked_up(product(by_operator(TensorProto.INT64), behind=behind, **more), np.arange(10).reshape(2, 5))
    assert not {"Tanh", "Mul"} & set(graph.operators())
    assert graph.operators()["ReduceSum"] == 1


@pytest.mark.parametrize(
    ("operand", "moved"),
    [(np.float32([[2], [3]]).reshape(2, 1, 1), False), (np.float32(2), True), (np.zeros((1, 1, 1, 4), "f"), False)],
    ids=["differs from sample to sample", "one number", "adds an axis"],
)
def test_what_treats_rows_unlike_stays(operand: np.ndarray, moved: bool) -> None:
    behind = (helper.make_node("Add", ["t", "k"], ["y"], "add"),)
    graph = looked_up(product(by_operator(TensorProto.INT64), behind=behind, k=operand), np.arange(10).reshape(2, 5))
    found = next(node for node in graph.nodes if node.outputs[0].name == "y")
    assert (found.op == "Gather") is moved


def embedding(*, shared: bool = False) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["w", "i"], ["t"], "rows"),
        helper.make_node("Mul", ["t", "k"], ["y"], "scaled"),
    ]
    outputs = [builders.value("y", FLOAT, None)]
    if shared:
        nodes.append(helper.make_node("MatMul", ["y", "wt"], ["z"], "tied"))
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], "turned"))
        outputs.append(builders.value("z", FLOAT, None))
    weights = {"w": builders.normal(builders.rng(), PLACES, 4), "k": np.float32(3)}
    return builders.model(nodes, [builders.value("i", TensorProto.INT64, ["N"])], outputs, weights, check=False)


def test_a_table_of_an_embedding_takes_its_factor_unless_others_read_it() -> None:
    assert looked_up(embedding(), np.arange(5)).operators() == {"Gather": 1}
    outcome = GatherRows().run(decode(embedding(shared=True)), PassContext())
    assert not outcome.changes


def test_what_becomes_larger_does_not_move() -> None:
    nodes = [
        helper.make_node("Gather", ["w", "i"], ["t"], "rows"),
        helper.make_node("Cast", ["t"], ["y"], "wide", to=FLOAT),
    ]
    weights = {"w": builders.normal(builders.rng(), PLACES, 4).astype(np.float16)}
    ports = [builders.value("i", TensorProto.INT64, ["N"])], [builders.value("y", FLOAT, None)]
    outcome = GatherRows().run(decode(builders.model(nodes, *ports, weights, check=False)), PassContext())
    assert not outcome.changes


def not_from_zero() -> onnx.ModelProto:
    nodes, weights, shape = by_comparison(TensorProto.INT64)
    return product((nodes, {"p": weights["p"] + 1}, shape))


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (product(by_operator(TensorProto.INT64, axis=1)), "not certain"),
        (not_from_zero(), "not certain"),
        (product(by_operator(TensorProto.INT64), weight=np.full((PLACES, 4), np.inf, np.float32)), "infinity"),
        (product(by_operator(TensorProto.INT64), opset=11), "opset 12"),
    ],
    ids=["ones along another axis", "places from 1 on", "infinity times zero is no number", "old opset"],
)
def test_what_is_not_certain_stays_and_says_why(proto: onnx.ModelProto, words: str) -> None:
    outcome = GatherRows().run(decode(proto), PassContext())
    assert [(s.node, words in s.why) for s in outcome.skips] == [("product", True)]
    assert not outcome.changes


def test_the_contract() -> None:
    check_pass(GatherRows)
    check_pass(GatherRows, product(by_operator(TensorProto.INT64)))
