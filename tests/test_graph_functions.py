"""Do local functions become part of the graph where a pass needs it, bounded, and stay where none does?"""

from __future__ import annotations

import broken_models
import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.errors import ModelError
from onnxcomp.graph import functions, io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.cost import layers as cost_layers
from onnxcomp.graph.cost import stats
from onnxcomp.graph.functions import check_expansion, inline_functions
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators


def layers() -> onnx.ModelProto:
    """x [N, 64] through two calls of a function, which calls another one; weights are arguments, large and small."""
    generator = builders.rng()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("pkg", 1)]
    product = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["o"])]
    leaky = helper.make_node("LeakyRelu", ["h"], ["o"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    block = [helper.make_node("Linear", ["a", "w", "b"], ["h"], domain="pkg"), leaky]
    made = [
        helper.make_function("pkg", "Linear", ["a", "w", "b"], ["o"], product, imports),
        helper.make_function("pkg", "Block", ["a", "w", "b"], ["o"], block, imports, ["slope"]),
    ]
    weights = {"w0": builders.normal(generator, 64, 64), "b0": builders.normal(generator, 64)}
    calls = [
        helper.make_node("Block", ["x", "w0", "b0"], ["h"], "first", domain="pkg", slope=0.2),
        helper.make_node("Block", ["h", "w0", "b0"], ["y"], "second", domain="pkg", slope=0.1),
    ]
    ports = [builders.value(n, TensorProto.FLOAT, ["N", 64]) for n in ("x", "y")]
    return builders.model(calls, ports[:1], ports[1:], weights, domains={"pkg": 1}, functions=made)


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    feeds = builders.feeds_of(before)
    for a, b in zip(builders.run(before, feeds), builders.run(after, feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_inlined_functions_compute_the_same_and_keep_weights_and_ports() -> None:
    proto = layers()
    graph = decode(proto)
    weights = {c.name: c for c in graph.constants()}
    assert inline_functions(graph) == ["2 local functions inlined (Linear, Block)"]
    assert not graph.functions and graph.operators() == {"Add": 2, "LeakyRelu": 2, "MatMul": 2}
    assert all(c is weights[c.name] for c in graph.constants()) and len(weights) == 2
    assert [t.name for t in (*graph.inputs, *graph.outputs)] == ["x", "y"]
    onnx.checker.check_model(encode(graph), full_check=True)
    same(proto, encode(graph))
    assert inline_functions(graph) == []


def test_a_call_that_leaves_an_attribute_out_gets_the_functions_default() -> None:
    proto = layers()
    block = next(function for function in proto.functions if function.name == "Block")
    block.attribute.remove("slope")
    block.attribute_proto.append(helper.make_attribute("slope", 0.5))
    del proto.graph.node[1].attribute[:]
    graph = decode(proto)
    inline_functions(graph)
    assert [node.attrs["alpha"] for node in graph.nodes if node.op == "LeakyRelu"] == pytest.approx([0.2, 0.5])
    same(proto, encode(graph))


def test_functions_in_bodies_are_inlined_too() -> None:
    proto = layers()
    body = helper.make_graph(
        [helper.make_node("Linear", ["h", "w0", "b0"], ["inner"], domain="pkg")],
        "body",
        [],
        [builders.value("inner", TensorProto.FLOAT, None)],
    )
    del proto.graph.node[1]
    proto.graph.node.append(helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    graph = decode(proto)
    inline_functions(graph)
    assert graph.operators()["MatMul"] == 3
    assert all(scope.root is graph for scope in graph.scopes())
    same(proto, encode(graph.clone()))


def test_lossy_passes_work_on_what_functions_hold_and_say_so() -> None:
    proto = layers()
    result = PassManager(Pipeline.parse("quantize-weights{bits=8}")).run(decode(proto))
    assert result.changes and not result.graph.functions
    assert "2 local functions inlined (Linear, Block)" in result.records[0].notes


@pytest.mark.parametrize("spec", ["cleanup", "fuse-batchnorm", 'prune-weights{ratio=0.5,exclude=["w0"]}'])
def test_functions_stay_where_nothing_needs_them_gone(spec: str) -> None:
    graph = decode(layers())
    assert io.to_bytes(PassManager(Pipeline.parse(spec)).run(graph).graph) == io.to_bytes(graph)


def test_the_size_is_known_before_anything_is_inlined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "MOST_NODES", 100)
    check_expansion(broken_models.doubling_functions(6))
    with pytest.raises(ModelError, match="128 nodes") as caught:
        check_expansion(broken_models.doubling_functions(7))
    assert caught.value.do


def test_a_few_lines_may_not_unfold_to_hours_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_expansion(broken_models.doubling_functions(12))  # 4,096 nodes, some seconds
    with pytest.raises(ModelError, match=r"come to 8,192 nodes .* at most 6,000 .* 27 that are"):
        check_expansion(broken_models.doubling_functions(13))
    monkeypatch.setattr(functions, "FEW_NODES", 10)
    check_expansion(broken_models.doubling_functions(11))  # 2,048 of 23: what is written long may be long


def test_functions_that_call_each_other_in_a_circle_are_refused() -> None:
    proto = broken_models.doubling_functions(3)
    proto.functions[0].node[0].op_type, proto.functions[0].node[0].domain = "F2", "two"
    with pytest.raises(ModelError, match="circle") as caught:
        check_expansion(proto)
    assert "function F" in caught.value.where


def test_a_function_of_another_opset_is_inlined_where_its_operators_are_the_same_in_both() -> None:
    proto = layers()
    for function in proto.functions:
        function.opset_import[0].version = 16
    graph = decode(proto)
    inline_functions(graph)
    same(layers(), encode(graph))


def test_a_function_written_for_other_operators_is_named() -> None:
    proto = layers()
    for function in proto.functions:
        function.opset_import[0].version = 12
    graph = decode(proto)
    with pytest.raises(ModelError, match="Linear is written with MatMul of opset 12"):
        inline_functions(graph)


def test_what_functions_multiply_is_counted_at_every_call() -> None:
    graph = decode(layers())
    counted = stats(graph, load_operators(), file_bytes=0)
    found = cost_layers(graph, load_operators())
    assert counted.macs == 2 * 64 * 64 and counted.nodes == 2 and counted.parameters == 64 * 64 + 64
    assert [layer.macs for layer in found if layer.op == "MatMul"] == [64 * 64] * 2
    assert len(graph.functions) == 2


def test_functions_that_cannot_be_inlined_are_counted_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "MOST_NODES", 2)
    assert stats(decode(layers()), load_operators(), file_bytes=0).macs == 0


def test_a_call_with_more_inputs_than_its_function_takes_is_the_models_fault() -> None:
    proto = layers()
    proto.graph.node[0].input.append("b0")
    with pytest.raises(ModelError, match=r"a call of a local function does not fit it: .*parameters"):
        inline_functions(decode(proto))


def test_an_attribute_of_a_function_outside_of_any_is_the_models_fault() -> None:
    proto = builders.mlp()
    place = onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    proto.graph.node[0].attribute.append(place)
    with pytest.raises(ModelError, match="stands in none"):
        decode(proto)
