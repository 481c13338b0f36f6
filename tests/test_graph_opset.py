"""Does a raised opset keep names, objects, weights and results?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import opset_cases as cases
import pytest
from onnx import TensorProto, helper

from onnxcomp.errors import ModelError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.opset import upgrade
from onnxcomp.graph.opset_rules import RULES, Edit
from onnxcomp.graph.shapes import check_structure, infer
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.manager.raising import raise_opset


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
    raise_opset(graph, version)
    check_same(proto, graph)


def test_every_changed_operator_stands_in_the_table() -> None:
    missing = [pair for pair in cases.changed() if not cases.fitting(*pair) and pair not in cases.ELSEWHERE]
    assert not missing


PAIRS = [pair for pair in cases.changed() if pair not in cases.ELSEWHERE]


@pytest.mark.parametrize(("op", "version"), PAIRS, ids=[f"{op}-{version}" for op, version in PAIRS])
def test_every_changed_operator_computes_the_same_in_its_new_form(op: str, version: int) -> None:
    newest = 21 if op in cases.NO_KERNEL_22 else cases.NEWEST
    for case in cases.fitting(op, version):
        proto, feeds = cases.model(case, version - 1)
        for target in {min(version, newest), newest}:
            check_raised(proto, feeds, target, drawn=op in RANDOM)
        for wrap in (cases.in_if, cases.in_loop, cases.in_function):
            check_raised(wrap(proto), feeds, newest, drawn=op in RANDOM)


RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def check_raised(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], version: int, *, drawn: bool) -> None:
    wanted = builders.run(proto, feeds, optimized=False)
    graph = decode(proto)
    upgrade(graph, version)
    check_structure(graph, strict=False)
    got = builders.run(encode(graph), feeds, optimized=False)
    for a, b in zip(wanted, got, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not drawn:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_optionals_pass_a_raised_opset() -> None:
    nodes = [
        helper.make_node("Optional", ["x"], ["o"]),
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
        helper.make_node("OptionalGetElement", ["o"], ["y"]),
    ]
    outputs = [builders.value("has", TensorProto.BOOL, []), builders.value("y", builders.FLOAT, [2])]
    proto = builders.model(nodes, [builders.value("x", builders.FLOAT, [2])], outputs, opset=15)
    check_raised(proto, {"x": np.float32([1, 2])}, 22, drawn=False)


def chain(opset: int, *ops: tuple[str, dict[str, object]]) -> onnx.ModelProto:
    """x [2, 3, 4] through one-input nodes of the given names."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]], f"n{i}", **a) for i, (op, a) in enumerate(ops)]
    ports = [builders.value(n, builders.FLOAT, [2, 3, 4]) for n in ("x", "y")]
    return builders.model(nodes, ports[:1], ports[1:], opset=opset, ir_version=7)


@pytest.mark.parametrize(
    ("spoiled", "word"), [("a wrong rule", "gives something else"), ("a dropped input", "no longer runs")]
)
def test_a_raised_model_that_gives_something_else_is_refused(
    spoiled: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(edit: Edit) -> None:
        if spoiled == "a wrong rule":
            edit.node.attrs["axis"] = 1
        else:
            edit.node.inputs.clear()

    monkeypatch.setitem(RULES, ("Hardmax", 13), wrong)
    graph = decode(chain(11, ("Relu", {}), ("Hardmax", {"axis": 1})))
    before = io.to_bytes(graph)
    with pytest.raises(ModelError, match="opset") as caught:
        raise_opset(graph, 13)
    assert word in caught.value.what and "Hardmax" in caught.value.where
    assert io.to_bytes(graph) == before


def test_what_cannot_be_compared_is_said() -> None:
    unknown = helper.make_node("Strange", ["t"], ["y"], domain="com.example")
    proto = builders.model(
        [helper.make_node("Relu", ["x"], ["t"]), unknown],
        [builders.value("x", builders.FLOAT, [2])],
        [builders.value("y", builders.FLOAT, [2])],
        opset=12,
        domains={"com.example": 1},
        check=False,
    )
    graph = decode(proto)
    assert "not compared" in raise_opset(graph, 17)[-1]


def test_an_attribute_that_the_new_form_lacks_is_refused_by_name() -> None:
    norm = {f"bn.{k}": v for k, v in zip("sbmv", builders.norm_weights("n", 12, builders.rng()).values(), strict=True)}
    node = helper.make_node("BatchNormalization", ["x", *norm], ["y"], "bn", spatial=0)
    ports = [builders.value(n, builders.FLOAT, [2, 3, 4]) for n in ("x", "y")]
    weights = {name: v.reshape(3, 4) for name, v in norm.items()}
    graph = decode(builders.model([node], ports[:1], ports[1:], weights, opset=8, ir_version=4, check=False))
    with pytest.raises(ModelError, match="BatchNormalization") as caught:
        raise_opset(graph, 13)
    assert "bn" in caught.value.where


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


def test_group_norm_of_opset_18_is_checked_inferred_and_quantized() -> None:
    generator = builders.rng()
    nodes = [
        helper.make_node("GroupNormalization", ["x", "s", "b"], ["g"], "norm", num_groups=2),
        helper.make_node("Conv", ["g", "w"], ["y"], "conv"),
    ]
    weights = {"s": np.float32([1, 2]), "b": np.float32([0, 1]), "w": builders.normal(generator, 300, 4, 1, 1)}
    ports = builders.value("x", builders.FLOAT, [1, 4, 5, 5]), builders.value("y", builders.FLOAT, [1, 300, 5, 5])
    proto = builders.model(nodes, ports[:1], ports[1:], weights, opset=18, check=False)
    graph = decode(proto)
    check_structure(graph)
    assert infer(graph).shape(graph.nodes[0].outputs[0]) == (1, 4, 5, 5)
    result = PassManager(Pipeline.parse("quantize-weights{bits=8}")).run(graph)
    assert result.changes
    raise_opset(graph, 21)
    assert graph.nodes[0].inputs[1].shape == (4,)
    check_same(proto, graph)


def test_what_is_known_of_a_shape_goes_on_to_the_body_that_needs_it() -> None:
    """A Softmax over several axes ends in a Reshape to sizes that are computed: ONNX Runtime's Scan wants its rank."""
    body = helper.make_graph(
        [helper.make_node("Relu", ["row"], ["made"])],
        "body",
        [builders.value("row", builders.FLOAT, None)],
        [builders.value("made", builders.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], "softmax", axis=1),
        helper.make_node("Scan", ["s"], ["y"], "scan", body=body, num_scan_inputs=1),
    ]
    ports = [builders.value(name, builders.FLOAT, ["N", 3, 4]) for name in "xy"]
    before = builders.model(nodes, ports[:1], ports[1:], opset=9, check=False)
    graph = decode(before)
    upgrade(graph, 13)
    x = {"x": builders.normal(builders.rng(), 2, 3, 4)}
    np.testing.assert_allclose(builders.run(encode(graph), x)[0], builders.run(before, x)[0], rtol=1e-6)
