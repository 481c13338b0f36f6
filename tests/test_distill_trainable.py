"""Does a graph come to training form with the same outputs, and do trained weights return to the original graph?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper
from onnx_ir.testing import assert_onnx_proto_equal
from training_cases import write_back

from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph
from onnxcomp.ops.facts import load_operators

OPERATORS = load_operators()


def prepared(proto: ModelProto, **options: object) -> tuple[Graph, Prepared]:
    graph = decode(proto)
    return graph, prepare(graph, OPERATORS, **options)  # type: ignore[arg-type]


def assert_same_outputs(graph: Graph, ready: Prepared, *, tolerance: float = 1e-5, seed: int = 0) -> None:
    feeds = builders.feeds_of(encode(ready.graph), seed=seed)
    before, after = builders.run(encode(graph), feeds), builders.run(encode(ready.graph), feeds)
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(a).max(initial=0))))


def neutral(proto: ModelProto, names: set[str]) -> ModelProto:
    """A copy in which the values of the named tensors are gone; everything else stands."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    tensors = list(copy.graph.initializer)
    for node in copy.graph.node:
        if node.output[0] in names:
            tensors += [a.t for a in node.attribute if a.type == AttributeProto.TENSOR]
    for tensor in tensors:
        if tensor.name in names or tensor not in copy.graph.initializer:
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)
    return copy


def trained(ready: Prepared, graph: Graph) -> dict[str, np.ndarray]:
    constants = {c.name: c.values for c in ready.graph.constants()}
    return {name: constants[name] + np.float32(0.25) for name in (*ready.trainable, *ready.statistics)}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(
    "build", [builders.mlp, builders.residual_cnn, builders.transformer, builders.indirect_weights]
)
def test_training_form_computes_the_same(build: object, batch: int) -> None:
    proto = build()  # type: ignore[operator]
    samples = {v.name: (1, 7) for v in proto.graph.input} if build is builders.transformer else {}
    graph, ready = prepared(proto, sample_shapes=samples, batch=batch)
    assert not ready.refused
    assert ready.batch == batch
    assert_same_outputs(graph, ready)


def test_every_weight_bias_and_norm_of_a_cnn_is_trainable() -> None:
    graph, ready = prepared(builders.residual_cnn(), batch=4)
    names = {c.name for c in graph.constants()}
    statistics = {n for n in names if n.endswith((".mean", ".var"))}
    assert set(ready.trainable) == names - statistics
    assert set(ready.statistics) == statistics


def test_frozen_statistics_leave_scale_and_bias_trainable() -> None:
    graph, ready = prepared(builders.residual_cnn(), batch=4, statistics="frozen")
    assert ready.statistics == ()
    assert "BatchNormalization" not in ready.graph.operators()
    assert "stem.bn.scale" in ready.trainable
    assert_same_outputs(graph, ready)


def test_frozen_norms_keep_their_statistics_while_others_learn_theirs() -> None:
    _, ready = prepared(builders.residual_cnn(), batch=4, freeze=["stem*"])
    assert ready.graph.operators()["BatchNormalization"] == 2
    assert not [n for n in (*ready.trainable, *ready.statistics) if n.startswith("stem")]
    assert ready.frozen["stem.weight"] == "asked for"


def test_a_node_is_frozen_with_the_weight_that_it_reads_through_a_view() -> None:
    _, ready = prepared(builders.indirect_weights(), batch=2, freeze=["mm1", "mm3"])
    assert set(ready.trainable) == {"w2", "w4"}


def test_weights_behind_views_and_constant_nodes_keep_their_names() -> None:
    graph, ready = prepared(builders.indirect_weights(), batch=2)
    assert set(ready.trainable) == {"w1", "w2", "w3", "w4"}
    assert {c.name: c.shape for c in ready.graph.constants()}["w2"] == (72,)
    assert "Identity" not in ready.graph.operators()
    assert graph.operators()["Identity"] == 1, "the original is left as it was"


@pytest.mark.parametrize(
    "build", [builders.residual_cnn, builders.indirect_weights, builders.shared_weight, builders.if_model]
)
def test_only_values_change_in_the_original(build: object) -> None:
    proto = build()  # type: ignore[operator]
    graph, ready = prepared(proto, batch=2)
    values = trained(ready, graph)
    result = encode(write_back(graph, ready, values))
    assert_onnx_proto_equal(neutral(result, set(values)), neutral(proto, set(values)))
    assert_onnx_proto_equal(encode(graph), encode(decode(proto)))
    back = {c.name: c.values for c in decode(result).constants()}
    for name, value in values.items():
        if name in back:
            np.testing.assert_array_equal(back[name], value)


def test_written_back_model_computes_what_the_training_form_computes() -> None:
    graph, ready = prepared(builders.indirect_weights(), batch=2)
    values = trained(ready, graph)
    form = ready.graph.clone()
    for constant in form.constants():
        if constant.name in values:
            constant.values = values[constant.name]
    feeds = builders.feeds_of(encode(ready.graph))
    want = builders.run(encode(form), feeds)[0]
    np.testing.assert_allclose(builders.run(encode(write_back(graph, ready, values)), feeds)[0], want, rtol=1e-5)


def test_values_that_fit_nothing_are_refused() -> None:
    graph, ready = prepared(builders.mlp(), batch=2)
    weight = {c.name: c.values for c in graph.constants()}["fc1.weight"]
    for values in ({"nobody": weight}, {"fc1.weight": weight.T}, {"fc1.weight": weight * np.nan}):
        with pytest.raises(ModelError):
            write_back(graph, ready, values)


def test_an_operator_without_gradient_is_named_with_what_it_blocks() -> None:
    generator = builders.rng()
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "before"),
        helper.make_node("Det", ["m"], ["d"], "det"),
        helper.make_node("Reshape", ["h", "shape"], ["m"], "square"),
        helper.make_node("Reshape", ["d", "column"], ["c"], "column"),
        helper.make_node("Gemm", ["c", "w2"], ["y"], "after"),
    ]
    weights = {
        "w1": builders.normal(generator, 8, 9),
        "shape": np.array([-1, 3, 3]),
        "column": np.array([-1, 1]),
        "w2": builders.normal(generator, 1, 4),
    }
    order = [nodes[0], nodes[2], nodes[1], *nodes[3:]]
    proto = builders.model(
        order,
        [builders.value("x", builders.FLOAT, ["N", 8])],
        [builders.value("y", builders.FLOAT, ["N", 4])],
        weights,
    )
    _, ready = prepared(proto, batch=2)
    assert [(r.node, r.op, r.parameters) for r in ready.refused] == [("det", "Det", ("w1",))]
    assert ready.trainable == ("w2",)
    assert "Det det" in ready.frozen["w1"]


def test_nothing_trainable_is_an_error_that_names_the_node() -> None:
    _, ready = prepared(builders.custom_operator(), batch=2)
    with pytest.raises(ModelError, match=r"my\.domain\.Dense dense|nothing in this model"):
        ready.require()


def test_a_size_that_nobody_gave_is_asked_for() -> None:
    with pytest.raises(ModelError, match="--shape x="):
        prepared(builders.dynamic_cnn(), batch=2)


@pytest.mark.parametrize(
    ("name", "parameters", "batch"),
    [("lenet5-mnist", 8, 8), ("lenet300-100-mnist", 6, 8), ("resnet20-cifar10", 40, 4), ("minilm-l6", 101, 2)],
)
def test_shared_models_are_trainable_in_full(assets: Path, name: str, parameters: int, batch: int) -> None:
    graph = load(assets / "models" / f"{name}.onnx")
    samples = {t.name: (1, *(d if isinstance(d, int) else 12 for d in (t.shape or ())[1:])) for t in graph.inputs}
    ready = prepare(graph, OPERATORS, samples, batch)
    assert not ready.refused
    assert len(ready.trainable) == parameters
    assert_same_outputs(graph, ready)


def test_a_model_that_reads_texts_is_refused_before_anything_is_trained() -> None:
    nodes = [
        helper.make_node("LabelEncoder", ["word"], ["i"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0]),
        helper.make_node("MatMul", ["i", "w"], ["y"]),
    ]
    ends = [builders.value("word", TensorProto.STRING, ["N", 1])], [builders.value("y", builders.FLOAT, ["N", 4])]
    proto = builders.model(nodes, *ends, {"w": np.ones((1, 4), np.float32)}, check=False)
    with pytest.raises(ModelError, match="reads texts") as caught:
        prepared(proto)
    assert caught.value.where == "input word"
