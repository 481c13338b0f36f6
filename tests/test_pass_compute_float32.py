"""Models of half precision, bfloat16 or double: float32 inside, and what other passes then make of them."""

from __future__ import annotations

import warnings
from typing import Any

import builders
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import Net
from onnx import TensorProto, helper, numpy_helper

import onnxcomp
from onnxcomp.distill.trainable import prepare
from onnxcomp.distill.writeback import put_back
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators
from onnxcomp.recipes import find
from onnxcomp.verify.tasks.base import Seen
from onnxcomp.verify.tasks.guess import look

FLOAT, HALF, BFLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
TYPES = {HALF: np.float16, BFLOAT: ml_dtypes.bfloat16, DOUBLE: np.float64}


def retyped(proto: onnx.ModelProto, to: int, *, stored: bool = False, interface: bool = True) -> onnx.ModelProto:
    """The model in another floating type, as exporters write it.

    Args:
        stored: only the weights, each behind a Cast to float32.
        interface: inputs and outputs too; else Casts stand behind the ones and before the others.
    """
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    graph, casts, last = proto.graph, [], []
    for weight in graph.initializer:
        if weight.data_type == FLOAT:
            name = weight.name
            values = numpy_helper.to_array(weight).astype(TYPES[to])
            weight.CopyFrom(numpy_helper.from_array(values, f"{name}_stored" if stored else name))
            if stored:
                casts.append(helper.make_node("Cast", [weight.name], [name], f"{name}_cast", to=FLOAT))
    for place, values in enumerate((graph.input, graph.output)) if not stored else ():
        for value in values:
            if value.type.tensor_type.elem_type != FLOAT:
                continue
            if interface:
                value.type.tensor_type.elem_type = to
                continue
            inner = f"{value.name}_inner"
            for node in graph.node:
                node.input[:] = [inner if name == value.name else name for name in node.input]
                node.output[:] = [inner if name == value.name else name for name in node.output]
            if place:
                last.append(helper.make_node("Cast", [inner], [value.name], inner, to=FLOAT))
            else:
                casts.append(helper.make_node("Cast", [value.name], [inner], inner, to=to))
    nodes = [*casts, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def cnn() -> onnx.ModelProto:
    """Pictures [N, 3, 16, 16] to ten classes, with a residual branch and normalization."""
    net = Net(seed=5)
    x = net.op("Relu", net.batch_norm(net.conv(net.input("N", 3, 16, 16), 3, 32), 32))
    y = net.batch_norm(net.conv(net.op("Relu", net.batch_norm(net.conv(x, 32, 32), 32)), 32, 32), 32)
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.op("Add", x, y))))
    return net.model(net.op("Gemm", pooled, net.weight(10, 32), net.weight(10), transB=1))


def widened(proto: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, dict[str, str], Any]:
    """The model after the pass and clean-up, the reasons by node, and the pass's record."""
    from onnxcomp.passes.cleanup import Cleanup
    from onnxcomp.passes.compute_float32 import ComputeFloat32

    result = PassManager(Pipeline((ComputeFloat32(**options), Cleanup()))).run(decode(proto), PassContext())
    record = result.records[0]
    made = onnx.load_from_string(io.to_bytes(result.graph))
    return made, {skip.node: skip.why for skip in record.skips}, record


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds))


def kinds(proto: onnx.ModelProto) -> set[str]:
    """Element types of everything inside, what Casts make at the interface left out."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    ends = {value.name for value in inferred.graph.output}
    types = {v.type.tensor_type.elem_type for v in inferred.graph.value_info if v.name not in ends}
    types |= {weight.data_type for weight in proto.graph.initializer}
    return {TensorProto.DataType.Name(kind) for kind in types}


@pytest.mark.parametrize("interface", [True, False])
def test_half_model_computes_in_float32_and_keeps_its_interface(interface: bool) -> None:
    before = retyped(cnn(), HALF, interface=interface)
    after, skips, record = widened(before)
    x = builders.normal(builders.rng(1), 4, 3, 16, 16).astype(np.float16 if interface else np.float32)
    (wanted,), (got,) = run(before, x0=x), run(after, x0=x)
    assert "FLOAT16" not in kinds(after)
    assert not skips
    assert "float16" in record.summary
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), atol=2e-2 * np.abs(wanted).max())
    assert sum(node.op_type == "Cast" for node in after.graph.node) == (2 if interface else 0)


def test_double_model_computes_in_float32_and_keeps_its_interface() -> None:
    net = Net(seed=6)
    x = net.op("Relu", net.op("Gemm", net.input("N", 8), net.weight(8, 16), net.weight(16)))
    before = retyped(net.model(net.op("Gemm", x, net.weight(16, 4), net.weight(4))), DOUBLE)
    after, _, _ = widened(before)
    x0 = builders.normal(builders.rng(2), 5, 8).astype(np.float64)
    np.testing.assert_allclose(run(after, x0=x0)[0], run(before, x0=x0)[0], rtol=1e-4, atol=1e-5)
    assert "DOUBLE" not in kinds(after)


def test_a_double_weight_that_is_an_output_too_computes_in_a_copy() -> None:
    net = Net(seed=6)
    w = net.weight(8, 8)
    before = retyped(net.model(net.op("Relu", net.op("MatMul", net.input("N", 8), w))), DOUBLE)
    before.graph.output.append(builders.value(w, DOUBLE, [8, 8]))
    after, _, _ = widened(before)
    x0 = builders.normal(builders.rng(2), 5, 8).astype(np.float64)
    for got, wanted in zip(run(after, x0=x0), run(before, x0=x0), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert run(after, x0=x0)[1].dtype == np.float64


def test_what_spells_numbers_keeps_their_type() -> None:
    """The digits of a double as text are not those of a float32."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"], "mul"),
        helper.make_node("Cast", ["a"], ["text"], "spell", to=TensorProto.STRING),
        helper.make_node("Add", ["a", "w"], ["y"], "add"),
    ]
    values = (
        [builders.value("x", DOUBLE, ["N", 4])],
        [
            builders.value("text", TensorProto.STRING, ["N", 4]),
            builders.value("y", DOUBLE, ["N", 4]),
        ],
    )
    proto = builders.model(nodes, *values, {"w": np.array([0.25, 0.5, 2.0, 4.0])}, check=False)
    after, skips, _ = widened(proto)
    assert skips == {"spell": "the digits that it writes would be others"}
    x = np.arange(8.0).reshape(2, 4)
    wanted, got = run(proto, x=x), run(after, x=x)
    assert wanted[0].tolist() == got[0].tolist()
    np.testing.assert_array_equal(wanted[1], got[1])


def test_bodies_and_what_they_read_from_outside_change_together() -> None:
    """A Loop with a state in half precision, an outer tensor and a constant that its body reads."""
    half = np.float16
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "outer"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Identity", ["next"], ["row"]),
        ],
        "body",
        [
            builders.value("step", TensorProto.INT64, []),
            builders.value("going", TensorProto.BOOL, []),
            builders.value("state", HALF, [3]),
        ],
        [
            builders.value("still", TensorProto.BOOL, []),
            builders.value("next", HALF, [3]),
            builders.value("row", HALF, [3]),
        ],
    )
    nodes = [
        helper.make_node("Add", ["x", "scale"], ["outer"], "first"),
        helper.make_node("Loop", ["count", "", "outer"], ["last", "rows"], "loop", body=body),
    ]
    weights = {"scale": np.array([0.5, 0.25, 1], half), "count": np.array(3)}
    outs = [builders.value("last", HALF, [3]), builders.value("rows", HALF, [3, 3])]
    proto = builders.model(nodes, [builders.value("x", HALF, [3])], outs, weights, check=False)
    after, skips, _ = widened(proto)
    assert not skips
    inner = next(a.g for n in after.graph.node if n.op_type == "Loop" for a in n.attribute if a.name == "body")
    assert {v.type.tensor_type.elem_type for v in inner.input} == {TensorProto.INT64, TensorProto.BOOL, FLOAT}
    x = np.array([1, 2, -1], half)
    for wanted, got in zip(run(proto, x=x), run(after, x=x), strict=True):
        assert got.dtype == half
        np.testing.assert_allclose(got, wanted, rtol=4e-3)


def test_excluded_nodes_keep_their_type_between_casts() -> None:
    before = retyped(cnn(), HALF)
    name = next(node.name for node in before.graph.node if node.op_type == "Gemm")
    after, skips, _ = widened(before, exclude=(name,))
    x = builders.normal(builders.rng(3), 2, 3, 16, 16).astype(np.float16)
    assert skips == {name: "not selected by include and exclude"}
    np.testing.assert_allclose(run(after, x0=x)[0], run(before, x0=x)[0], rtol=0, atol=0.05)


def test_an_output_of_an_excluded_node_is_read_in_float32() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "left"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "right"),
    ]
    outs = [builders.value(name, DOUBLE, ["N", 4]) for name in "ay"]
    weights = {"w": builders.normal(builders.rng(), 4, 4).astype(np.float64)}
    before = builders.model(nodes, [builders.value("x", DOUBLE, ["N", 4])], outs, weights)
    after, skips, _ = widened(before, exclude=("left",))
    x = builders.normal(builders.rng(2), 3, 4).astype(np.float64)
    assert set(skips) == {"left"}
    for got, wanted in zip(run(after, x=x), run(before, x=x), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [HALF, BFLOAT])
def test_weights_that_are_only_stored_in_fewer_bits_stay_so(kind: int) -> None:
    before = retyped(cnn(), kind, stored=True)
    result = onnxcomp.optimize(before, passes="compute-float32", verify=False, bench=False)
    assert result.exit_code == 13


def test_integers_run_where_half_precision_was(tmp_path: Any) -> None:
    """The int8 recipe makes integer layers of a half-precision model, which ONNX Runtime's CPU computes in float."""
    assert "compute-float32" in find("int8").spec
    before = retyped(cnn(), HALF)
    x = builders.normal(builders.rng(4), 64, 3, 16, 16).astype(np.float16)
    spec = "compute-float32,fuse-batchnorm,quantize-qdq{placement=table}"
    result = onnxcomp.optimize(before, data={"x0": x}, passes=spec, bench=False)
    assert result.model is not None
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "ran.onnx")
    ort.InferenceSession(result.model.SerializeToString(), options)
    assert sum(node.op_type == "QLinearConv" for node in onnx.load(tmp_path / "ran.onnx").graph.node) == 3


@pytest.mark.parametrize("name", ["quantize-qdq", "quantize-dynamic", "mixed-precision"])
def test_what_takes_float32_says_what_goes_before(name: str) -> None:
    x = builders.normal(builders.rng(4), 32, 3, 16, 16).astype(np.float16)
    result = onnxcomp.optimize(retyped(cnn(), HALF), data={"x0": x}, passes=name, verify=False, bench=False)
    assert any("compute-float32 goes before" in skip.why for skip in result.passes[0].skips)


@pytest.mark.parametrize("name", ["quantize-qdq", "fuse-batchnorm", "prune-channels{ratio=0.3}"])
def test_what_takes_plain_weights_says_how_stored_ones_become_plain(name: str) -> None:
    x = builders.normal(builders.rng(4), 32, 3, 16, 16)
    stored = retyped(cnn(), HALF, stored=True)
    result = onnxcomp.optimize(stored, data={"x0": x}, passes=name, verify=False, bench=False)
    assert any("fold-constants{unpack=true}" in skip.why for skip in result.passes[0].skips)


@pytest.mark.parametrize("kind", [HALF, BFLOAT, DOUBLE])
def test_stored_weights_and_statistics_train_under_the_names_that_they_are_stored_by(kind: int) -> None:
    graph = decode(retyped(cnn(), kind, stored=True))
    ready = prepare(graph, load_operators(), batch=4)
    stored = {constant.name: constant for constant in graph.constants()}
    assert ready.statistics
    assert {*ready.trainable, *ready.statistics} <= set(stored)
    values = {name: stored[name].values.astype(np.float32) * 1.5 for name in (*ready.trainable, *ready.statistics)}
    put_back(graph, ready, values)
    assert {c.dtype.name for c in graph.constants() if c.name in values} == {np.dtype(TYPES[kind]).name}


def test_a_double_model_can_be_trained() -> None:
    net = Net(seed=6)
    proto = retyped(net.model(net.op("Gemm", net.input("N", 8), net.weight(8, 4), net.weight(4))), DOUBLE)
    assert len(prepare(decode(proto), load_operators(), batch=4).trainable) == 2


def test_answers_in_half_precision_are_guessed_like_any_others() -> None:
    scores = builders.normal(builders.rng(7), 64, 5).astype(np.float16) * 4
    x = np.zeros((64, 3, 8, 8), np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = [
            look(Seen({"x": x}, {"y": scores.astype(kind)}, 64, {"y": ("Gemm",)}), {}).guesses
            for kind in (np.float16, np.float32)
        ]
    assert lines[0] == lines[1]


def in_containers(kind: str) -> list[onnx.NodeProto]:
    """From `a` to `b`, through what holds tensors."""
    twice = helper.make_graph(
        [helper.make_node("Add", ["item", "item"], ["sum"]), helper.make_node("Mul", ["sum", "a"], ["more"])],
        "twice",
        [builders.value("item", DOUBLE, None)],
        [builders.value("more", DOUBLE, None)],
    )
    grow = helper.make_graph(
        [
            helper.make_node("Mul", ["a", "a"], ["square"]),
            helper.make_node("SequenceInsert", ["held", "square"], ["grown"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "grow",
        [
            builders.value("step", TensorProto.INT64, []),
            builders.value("going", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("held", DOUBLE, None),
        ],
        [builders.value("still", TensorProto.BOOL, []), helper.make_tensor_sequence_value_info("grown", DOUBLE, None)],
    )
    pair = helper.make_node("SequenceConstruct", ["a", "again"], ["pair"])
    last = helper.make_node("ConcatFromSequence", ["grown"], ["b"], axis=0)
    return {
        "sequence": [
            pair,
            helper.make_node("SequenceErase", ["pair", "zero"], ["grown"]),
            last,
        ],
        "empty": [
            helper.make_node("SequenceEmpty", [], ["none"], dtype=DOUBLE),
            helper.make_node("SequenceInsert", ["none", "again"], ["one"]),
            helper.make_node("SequenceAt", ["one", "zero"], ["b"]),
        ],
        "optional": [
            helper.make_node("Optional", ["again"], ["maybe"]),
            helper.make_node("OptionalGetElement", ["maybe"], ["b"]),
        ],
        "map": [pair, helper.make_node("SequenceMap", ["pair"], ["grown"], body=twice), last],
        "loop": [pair, helper.make_node("Loop", ["count", "", "pair"], ["grown"], body=grow), last],
    }[kind]


@pytest.mark.parametrize("kind", ["sequence", "empty", "optional", "map", "loop"])
def test_what_sequences_and_optional_values_hold_keeps_its_type(kind: str) -> None:
    """`a` is an output, too, and so keeps its type as well: what reads it there needs no second Cast."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Neg", ["a"], ["again"], "neg"),
        *in_containers(kind),
        helper.make_node("MatMul", ["b", "w"], ["y"], "last"),
    ]
    names = ("y", "a")
    weights = {"w": builders.normal(builders.rng(), 4, 4).astype(np.float64), "zero": np.array(0), "count": np.array(2)}
    outs = [builders.value(name, DOUBLE, None) for name in names]
    before = builders.model(nodes, [builders.value("x", DOUBLE, ["N", 4])], outs, weights, opset=18, check=False)
    after, skips, record = widened(before)
    x = builders.normal(builders.rng(2), 3, 4).astype(np.float64)
    for got, wanted in zip(run(after, x=x), run(before, x=x), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert {detail.node for detail in record.details} >= {"first", "last"}
    assert any("holds keeps its type" in why for why in skips.values())
    casts = [node for node in after.graph.node if node.op_type == "Cast"]
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)
