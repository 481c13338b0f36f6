"""Are shapes inferred as ONNX and the records say, and never guessed?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_graph_io import FLOAT

from onnxcomp.errors import ModelError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.evaluate import propagate
from onnxcomp.graph.shapes import check_structure, infer
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.manager.pipeline import PassManager, Pipeline


def test_names_that_two_bodies_share_are_known_only_where_both_agree() -> None:
    def branch(op: str, out: str, **attributes: Any) -> onnx.GraphProto:
        nodes = [
            helper.make_node(op, ["x"], ["inner"], f"{out}_1", **attributes),
            helper.make_node("ReduceSum", ["inner"], [out], f"{out}_2", keepdims=0),
        ]
        return helper.make_graph(nodes, out, [], [builders.value(out, FLOAT, [])])

    node = helper.make_node(
        "If", ["flag"], ["y"], "if", then_branch=branch("Flatten", "t", axis=0), else_branch=branch("Relu", "e")
    )
    inputs = [builders.value("flag", TensorProto.BOOL, []), builders.value("x", FLOAT, [2, 3])]
    graph = decode(builders.model([node], inputs, [builders.value("y", FLOAT, [])], check=False))
    assert infer(graph).types["inner"].shape is None
    assert infer(graph).types["inner"].dtype == np.float32


@pytest.mark.parametrize(
    "build", [builders.transformer, builders.dynamic_cnn, builders.residual_cnn], ids=lambda b: b.__name__
)
def test_bound_shapes_are_those_of_a_run(build: Callable[[], onnx.ModelProto]) -> None:
    proto = build()
    feeds = builders.transformer_feed() if "input_ids" in proto.graph.input[0].name else builders.feeds_of(proto)
    wanted = builders.run(proto, feeds)
    graph = decode(proto)
    shapes = infer(graph, {name: value.shape for name, value in feeds.items()})
    assert [shapes.static(t) for t in graph.outputs] == [v.shape for v in wanted]


def sparse_model() -> onnx.ModelProto:
    """x [N, 40] @ w [40, 40], one value in ten, stored as a sparse tensor."""
    generator = builders.rng()
    dense = np.where(generator.random((40, 40)) < 0.1, builders.normal(generator, 40, 40), 0).astype(np.float32)
    at = np.flatnonzero(dense)
    ports = [builders.value(n, builders.FLOAT, ["N", 40]) for n in ("x", "y")]
    proto = builders.model([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], ports[:1], ports[1:], check=False)
    values = helper.make_tensor("w", TensorProto.FLOAT, [len(at)], dense.reshape(-1)[at])
    indices = helper.make_tensor("w_at", TensorProto.INT64, [len(at)], at)
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [40, 40]))
    return proto


@pytest.mark.parametrize("spec", ["prune-weights{ratio=0.95}", "clip-weights{method=sigma}"])
def test_a_sparse_weight_stays_sparse_when_its_values_change(spec: str) -> None:
    proto = sparse_model()
    result = PassManager(Pipeline.parse(spec)).run(decode(proto))
    assert result.changes
    assert len(io.to_bytes(result.graph)) <= len(proto.SerializeToString()) + 200
    after = onnx.load_from_string(io.to_bytes(result.graph.clone()))
    assert [s.values.name for s in after.graph.sparse_initializer] == ["w"]
    x = builders.feeds_of(proto)
    assert np.isfinite(builders.run(after, x)[0]).all()


def test_a_sparse_weight_that_fills_up_is_written_dense() -> None:
    graph = decode(sparse_model())
    (weight,) = graph.constants()
    weight.values = np.ones((40, 40), np.float32)
    after = encode(graph)
    assert not after.graph.sparse_initializer and len(after.graph.initializer) == 1


def test_a_small_sparse_weight_out_of_a_constant_node_leaves_a_graph_that_inference_reads() -> None:
    generator = builders.rng()
    at = np.arange(0, 32, 7)
    values = helper.make_tensor("", TensorProto.FLOAT, [len(at)], generator.standard_normal(len(at)))
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [len(at)], at), [8, 4])
    ports = [builders.value("x", FLOAT, ["N", 8]), builders.value("y", FLOAT, ["N", 4])]
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=sparse),
        helper.make_node("MatMul", ["x", "w"], ["h"], "m"),
        helper.make_node("Relu", ["h"], ["y"], "r"),
    ]
    result = PassManager(Pipeline.parse("fold-constants")).run(decode(builders.model(nodes, ports[:1], ports[1:])))
    assert result.changes
    assert infer(result.graph).types["h"].shape == ("N", 4)


@pytest.mark.parametrize("location", ["a" * 5000, "x/" * 3000, "a" * 300 + "/b"])
def test_a_path_that_no_file_system_has_is_refused(location: str, tmp_path: Path) -> None:
    proto = builders.mlp()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(ModelError, match="malformed"):
        io.load(builders.save(proto, tmp_path / "model.onnx"))


def test_a_tensor_whose_data_do_not_fit_its_shape_is_refused_on_reading(tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.graph.initializer[0].dims[0] += 1
    with pytest.raises(ModelError, match="do not fit its shape") as caught:
        io.load(builders.save(proto, tmp_path / "model.onnx"))
    assert "fc1.weight" in caught.value.where


def test_a_model_whose_weights_became_small_needs_no_data_file(tmp_path: Path) -> None:
    """Tensors below the least size of external data lie in the model; a data file of nothing would be left."""
    path = builders.save_external(builders.mlp((16, 20, 10)), tmp_path / "m.onnx")
    graph = io.load(path)
    assert graph.external
    for constant in graph.constants():
        constant.values = np.asarray(constant.values).astype(np.int8) if constant.nbytes >= 600 else constant.values
    files = io.save(graph, tmp_path / "o.onnx")
    assert files == [tmp_path / "o.onnx"] and not list(tmp_path.glob("o.*.data"))
    for a, b in zip(io.load(files[0]).constants(), graph.constants(), strict=True):
        np.testing.assert_array_equal(a.values, b.values)


def test_an_answer_is_that_of_the_graph_as_it_is_now() -> None:
    """Answers are kept; what may change one is part of the question: values of sizes, rules, what is believed."""
    table = np.zeros(2000, np.int64)
    table[7] = 4
    nodes = [
        helper.make_node("Gather", ["table", "at"], ["size"]),
        helper.make_node("Reshape", ["x", "size"], ["y"]),
    ]
    proto = builders.model(
        nodes,
        [builders.value("x", FLOAT, ["n", 8])],
        [builders.value("y", FLOAT, None)],
        {"table": table, "at": np.array([7, 8], np.int64)},
        check=False,
    )
    graph, sample = decode(proto), {"x": (2, 8)}
    for first, second in ((4, 4), (2, 8), (8, 2), (4, 4)):
        changed = table.copy()
        changed[7:9] = first, second
        next(c for c in graph.constants() if c.name == "table").values = changed
        assert infer(graph, sample).types["y"].shape == (first, second)
    assert infer(graph, {"x": (4, 8)}).types["x"].shape == (4, 8)
    assert infer(graph).types["x"].shape == ("n", 8)


def test_what_a_caller_writes_into_an_answer_is_not_kept() -> None:
    graph = decode(builders.residual_cnn())
    found = infer(graph)
    name = graph.nodes[0].outputs[0].name
    right = found.types[name]
    found.types[name] = infer(graph).types[graph.outputs[0].name]
    assert infer(graph).types[name] == right


@pytest.mark.parametrize("axes", [None, [0, 2]])
@pytest.mark.parametrize("rows", ["N", 2, None])
def test_strict_checks_take_every_mean_variance_normalization(axes: list[int] | None, rows: int | str | None) -> None:
    given = {} if axes is None else {"axes": axes}
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], **given)
    shape = None if rows is None else [rows, 3, 4, 5] if axes is None else [rows, 3, 4]
    ports = builders.value("x", FLOAT, shape), builders.value("y", FLOAT, None)
    graph = decode(builders.model([node], ports[:1], ports[1:], {}, opset=13, check=False))
    check_structure(graph, strict=True)
    assert infer(graph).shape(graph.outputs[0]) == graph.inputs[0].shape


def test_external_data_of_more_bytes_than_64_bits_count_is_refused(tmp_path: Path) -> None:
    proto = builders.mlp()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    tensor.dims[:] = [8, 1 << 62]  # 2**67 bytes
    (tmp_path / "data").write_bytes(bytes(64))
    with pytest.raises(ModelError, match="truncated"):
        io.load(builders.save(proto, tmp_path / "model.onnx"))


def test_a_model_without_outputs_is_refused(tmp_path: Path) -> None:
    proto = builders.mlp()
    del proto.graph.output[:]
    with pytest.raises(ModelError, match="no outputs"):
        io.load(builders.save(proto, tmp_path / "model.onnx"))


def test_values_of_long_vectors_are_not_followed_and_their_sizes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    inner = onnx.shape_inference.infer_shapes

    def spied(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        shown.append([v.type.tensor_type.shape.dim[0].dim_param for v in model.graph.input])
        return inner(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", spied)
    nodes = [
        helper.make_node("Neg", ["wave"], ["n"]),
        helper.make_node("Add", ["n", "short"], ["s"]),
        helper.make_node("Unsqueeze", ["s", "axis"], ["y"]),
    ]
    ends = [builders.value("wave", FLOAT, [100_000]), builders.value("short", FLOAT, [1])]
    proto = builders.model(nodes, ends, [builders.value("y", FLOAT, None)], {"axis": np.int64([0])}, check=False)
    graph = decode(proto)
    shapes = infer(graph)
    assert [shapes.types[name].shape for name in ("wave", "n", "s", "y")] == [(100_000,)] * 3 + [(1, 100_000)]
    assert [bool(name) for name in shown[-1]] == [True, False]


def test_a_long_vector_that_the_file_declares_inside_is_not_followed() -> None:
    length = 1 << 40  # one entry an element fits no memory
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Mul", ["n", "two"], ["y"])]
    ends = [builders.value("x", FLOAT, None)], [builders.value("y", FLOAT, None)]
    proto = builders.model(nodes, *ends, {"two": np.float32([2])}, check=False)
    proto.graph.value_info.append(builders.value("n", FLOAT, [length]))
    shapes = infer(decode(proto))
    assert [shapes.types[name].shape for name in ("n", "y")] == [(length,)] * 2


@pytest.mark.parametrize(
    ("wrap", "unwrap", "weights"),
    [
        ("Optional", "OptionalGetElement", {}),
        ("SequenceConstruct", "SequenceAt", {"at": np.asarray(0)}),
    ],
)
def test_a_sequence_or_optional_of_constants_is_no_tensor(
    wrap: str, unwrap: str, weights: dict[str, np.ndarray]
) -> None:
    nodes = [
        helper.make_node(wrap, ["w"], ["held"], "wrap"),
        helper.make_node(unwrap, ["held", *weights], ["again"], "unwrap"),
        helper.make_node("MatMul", ["x", "again"], ["y"], "m"),
    ]
    ports = [builders.value(n, FLOAT, ["N", 8]) for n in ("x", "y")]
    weights = {"w": builders.normal(builders.rng(), 8, 8), **weights}
    graph = decode(builders.model(nodes, ports[:1], ports[1:], weights))
    shapes = infer(graph, {"x": (1, 8)})
    propagate(graph, shapes)
    held, again = (graph.tensors()[name] for name in ("held", "again"))
    assert shapes.dtype(held) is None
    assert shapes.shape(held) is None
    assert shapes.dtype(again) == np.float32
    half = PassManager(Pipeline.parse("convert-float16")).run(graph)
    builders.run(onnx.load_from_string(io.to_bytes(half.graph)), {"x": np.ones((2, 8), np.float32)})


@pytest.mark.parametrize("stored", ["initializer", "Constant"])
def test_what_is_empty_does_not_tell_the_sizes_of_what_it_is_joined_with(stored: str) -> None:
    """ONNX Runtime skips it and runs the model with any number of rows, though its optimizer folds a wrong one."""
    empty = np.zeros((2, 0), np.float32)
    weights = {"none": empty, "w": builders.normal(builders.rng(), 4, 4)}
    nodes = [
        helper.make_node("Concat", ["x", "none"], ["joined"], "join", axis=1),
        helper.make_node("MatMul", ["joined", "w"], ["y"], "m"),
        helper.make_node("Shape", ["y"], ["sizes"], "s"),
    ]
    if stored == "Constant":
        held = numpy_helper.from_array(weights.pop("none"))
        nodes.insert(0, helper.make_node("Constant", [], ["none"], value=held))
    ports = [builders.value("x", FLOAT, ["N", 4]), builders.value("y", FLOAT, ["N", 4])]
    ports.append(builders.value("sizes", TensorProto.INT64, [2]))
    graph = decode(builders.model(nodes, ports[:1], ports[1:], weights, check=False))
    joined = graph.tensors()["joined"]
    assert infer(graph).shape(joined) == ("N", 4)
    assert infer(graph, {"x": (3, 4)}).shape(joined) == (3, 4)
    shapes = Shapes({"x": TensorType(np.dtype(np.float32), (3, 4))})
    propagate(graph, shapes)
    assert shapes.shape(joined) == (3, 4)
    folded = PassManager(Pipeline.parse("fold-constants")).run(graph).graph
    assert [node.op for node in folded.nodes] == ["Concat", "MatMul", "Shape"]
