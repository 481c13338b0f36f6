"""Does a raised opset keep names, objects, weights and results?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.errors import ModelError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.shapes import check_structure


def old_model() -> onnx.ModelProto:
    """Opset 11: Softmax over flattened axes, axes as attributes, the same in both branches of an If."""

    def branch(name: str, op: str, **attributes: object) -> onnx.GraphProto:
        node = helper.make_node(op, ["h"], [name], f"{name}_node", **attributes)
        return helper.make_graph([node], name, [], [builders.value(name, builders.FLOAT, None)])

    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], "softmax", doc_string="kept"),
        helper.make_node("Mul", ["s", "w"], ["m"], "mul"),
        helper.make_node("ReduceSum", ["m"], ["h"], axes=[0], keepdims=1),
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            "if",
            then_branch=branch("t", "Softmax"),
            else_branch=branch("e", "Squeeze", axes=[0]),
        ),
        helper.make_node("Squeeze", ["s"], ["z"], "squeeze", axes=[0]),
    ]
    inputs = [builders.value("flag", TensorProto.BOOL, []), builders.value("x", builders.FLOAT, [1, 4, 600])]
    outputs = [builders.value("y", builders.FLOAT, None), builders.value("z", builders.FLOAT, [4, 600])]
    weights = {"w": builders.normal(builders.rng(), 1, 4, 600)}
    model = builders.model(nodes, inputs, outputs, weights, opset=11, ir_version=6, check=False)
    model.graph.node[0].metadata_props.add(key="origin", value="trainer")
    return model


def check_same(before: onnx.ModelProto, graph: Graph) -> None:
    check_structure(graph)
    after = encode(graph)
    for flag in (True, False):
        feeds = builders.feeds_of(before) | ({"flag": np.array(flag)} if "flag" in before.graph.input[0].name else {})
        wanted, got = (builders.run(m, feeds, optimized=False) for m in (before, after))
        for a, b in zip(wanted, got, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_old_model_computes_the_same_with_names_and_objects_kept() -> None:
    proto = old_model()
    graph = decode(proto)
    nodes = {node.name: node for node in graph.walk()}
    weight = next(c for c in graph.constants() if c.name == "w")
    notes = raise_opset(graph, 17)
    assert graph.opset == 17
    assert graph.model.ir_version == 8
    assert notes == ["opset raised from 11 to 17"]
    check_same(proto, graph)
    after = {node.name: node for node in graph.walk()}
    assert set(nodes) <= set(after)
    assert all(after[name] is node for name, node in nodes.items())
    assert weight in graph.constants()
    assert weight.stored is not None, "the weight was not touched"
    assert "Constant" not in graph.operators(), "axes became initializers"
    names = [n.name for n in graph.walk()]
    assert len(set(names)) == len(names)
    saved = next(n for n in encode(graph).graph.node if n.name == "softmax")
    assert (saved.doc_string, saved.metadata_props[0].value) == ("kept", "trainer")
    written = [n.name for n in encode(graph).graph.node if n.op_type == "ReduceSum"]
    assert written == [""], "a node without a name got none"


def test_nothing_happens_where_the_opset_is_new_enough() -> None:
    graph = decode(builders.mlp(opset=17))
    before = io.to_bytes(graph)
    assert raise_opset(graph, 13) == []
    assert raise_opset(graph, 17) == []
    assert io.to_bytes(graph) == before


@pytest.mark.parametrize("version", [18, 19, 21, 22])
@pytest.mark.parametrize("name", ["if_model", "loop_model", "transformer", "indirect_weights", "function_model"])
def test_builders_compute_the_same_at_any_newer_opset(name: str, version: int) -> None:
    proto = getattr(builders, name)()
    graph = decode(proto)
    if name == "function_model":
        before = io.to_bytes(graph)
        try:
            raise_opset(graph, version)
        except ModelError as error:
            assert "not valid" in error.what
            assert io.to_bytes(graph) == before
            return
    raise_opset(graph, version)
    check_same(proto, graph)


def test_upsample_becomes_resize_under_its_own_name() -> None:
    node = helper.make_node("Upsample", ["x", "scales"], ["y"], "up", mode="nearest")
    io_types = [builders.value("x", builders.FLOAT, [1, 2, 3, 3])], [builders.value("y", builders.FLOAT, [1, 2, 6, 6])]
    proto = builders.model([node], *io_types, {"scales": np.float32([1, 1, 2, 2])}, opset=9, ir_version=4)
    graph = decode(proto)
    raise_opset(graph, 13)
    assert [(n.op, n.name) for n in graph.nodes] == [("Resize", "up")]
    check_same(proto, graph)


def test_unconvertible_model_is_refused_and_left_as_it_was() -> None:
    node = helper.make_node("Scan", ["x", "x"], ["a", "y"], "scan", num_scan_inputs=1)
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "body",
        [builders.value("s", builders.FLOAT, [2]), builders.value("e", builders.FLOAT, [2])],
        [builders.value("t", builders.FLOAT, [2]), builders.value("o", builders.FLOAT, [2])],
    )
    node.input[:] = ["", "x", "x"]
    node.attribute.append(helper.make_attribute("body", body))
    ports = [builders.value(n, builders.FLOAT, None) for n in ("a", "y")]
    proto = builders.model(
        [node], [builders.value("x", builders.FLOAT, [1, 3, 2])], ports, opset=8, ir_version=3, check=False
    )
    graph = decode(proto)
    before = io.to_bytes(graph)
    with pytest.raises(ModelError) as caught:
        raise_opset(graph, 13)
    assert "opset" in caught.value.what and caught.value.do
    assert io.to_bytes(graph) == before


def test_yolox_keeps_its_weights_and_names(assets: Path) -> None:
    graph = io.load(assets / "models" / "yolox-nano.onnx")
    names = [n.name for n in graph.nodes]
    weights = {c.name: c for c in graph.constants()}
    assert raise_opset(graph, 13) == ["opset raised from 11 to 13"]
    assert [n.name for n in graph.nodes] == names
    after = {c.name: c for c in graph.constants()}
    assert all(after[name] is c for name, c in weights.items() if c.size > 64)
    check_structure(graph)
