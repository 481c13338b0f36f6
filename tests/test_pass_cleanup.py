"""Does everything that is dead, double or done for nothing go, and does every bit of every output stay?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import random_models
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

import onnxcomp
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.cleanup import Cleanup
from onnxcomp.testing import dump, hostile_models

FLOAT, INT64 = builders.FLOAT, builders.INT64
GOLDEN = Path(__file__).parent / "golden"


def clean(proto: onnx.ModelProto, **options: Any) -> tuple[Graph, Any]:
    result = PassManager(Pipeline((Cleanup(**options),))).run(decode(proto))
    return result.graph, result.records[0]


def model(
    nodes: list[NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    shape: list[int | str | None] | None = None,
    outputs: tuple[str, ...] = ("y",),
    **options: Any,
) -> onnx.ModelProto:
    inputs = [builders.value("x", FLOAT, shape or ["N", 3, 4])]
    made = [builders.value(name, FLOAT, None) for name in outputs]
    return builders.model(nodes, inputs, made, weights or {}, check=False, **options)


def node(op: str, *inputs: str, out: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [out], f"{op}_{out}", **attributes)


@given(seed=st.integers(0, 100_000), static=st.booleans())
def test_random_models_stay_bit_equal_and_clean_once(seed: int, static: bool) -> None:
    proto = random_models.random_model(seed, static=static, nodes=5 + seed % 20)
    feeds = random_models.random_feeds(seed)
    expected = random_models.outputs(proto, feeds)
    assume(expected is not None)
    graph, _ = clean(proto)
    actual = builders.run(io.to_bytes(graph), feeds, optimized=False)
    assert [v.tobytes() for v in actual] == [v.tobytes() for v in expected or []]
    again = PassManager(Pipeline((Cleanup(),)), verify=False).run(graph)
    assert again.changes == 0


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# what hands on its input unchanged: operator, its other inputs, attributes
NO_OPS: dict[str, tuple[str, list[np.ndarray], dict[str, Any]]] = {
    "identity": ("Identity", [], {}),
    "dropout": ("Dropout", [], {}),
    "dropout with a ratio": ("Dropout", [np.float32(0.7)], {}),
    "dropout told not to train": ("Dropout", [np.float32(0.7), np.array(False)], {}),
    "cast to itself": ("Cast", [], {"to": FLOAT}),
    "cast like itself": ("CastLike", [np.float32(0)], {}),
    "transpose": ("Transpose", [], {"perm": [0, 1, 2]}),
    "reshape copying all": ("Reshape", [ints(0, 0, 0)], {}),
    "reshape to the same": ("Reshape", [ints(-1, 3, 4)], {}),
    "reshape copying some": ("Reshape", [ints(0, 3, -1)], {}),
    "expand by ones": ("Expand", [ints(1, 1)], {}),
    "expand to the same": ("Expand", [ints(3, 4)], {}),
    "tile once": ("Tile", [ints(1, 1, 1)], {}),
    "slice of all": ("Slice", [ints(0, 0), ints(2**63 - 1, 3), ints(0, 1)], {}),
    "slice with steps": ("Slice", [ints(0), ints(2**31 - 1), ints(2), ints(1)], {}),
    "slice from the back": ("Slice", [ints(0), ints(4), ints(-1)], {}),
    "pad nothing": ("Pad", [ints(*[0] * 6)], {"mode": "reflect"}),
    "concat of one": ("Concat", [], {"axis": 1}),
    "sum of one": ("Sum", [], {}),
    "max of one": ("Max", [], {}),
    "times one": ("Mul", [np.float32(1)], {}),
    "by one": ("Div", [np.float32([[1]])], {}),
    "minus zero": ("Sub", [np.float32([0])], {}),
    "plus minus zero": ("Add", [np.float32(-0.0)], {}),
    "split into one": ("Split", [ints(4)], {"axis": 2}),
}
# what looks like it and is not: no bit of a special value may change, and no size may go unasked
CHANGES: dict[str, tuple[str, list[np.ndarray], dict[str, Any]]] = {
    "plus zero turns -0 into 0": ("Add", [np.float32(0)], {}),
    "one that widens": ("Mul", [np.ones((2, 1, 1, 1), np.float32)], {}),
    "one that repeats": ("Mul", [np.ones((2, 1, 3, 4), np.float32)], {}),
    "reshape that asserts the batch": ("Reshape", [ints(2, 3, 4)], {}),
    "reshape that moves": ("Reshape", [ints(-1, 4, 3)], {}),
    "expand of the batch": ("Expand", [ints(2, 3, 4)], {}),
    "expand that adds an axis": ("Expand", [ints(1, 1, 1, 1)], {}),
    "slice of some": ("Slice", [ints(0), ints(3), ints(2)], {}),
    "slice backwards": ("Slice", [ints(-1), ints(-(2**31)), ints(2), ints(-1)], {}),
    "negative padding": ("Pad", [ints(0, 0, 0, 0, 0, -1)], {}),
    "dropout in training": ("Dropout", [np.float32(0.0), np.array(True)], {}),
    "transpose of two": ("Transpose", [], {"perm": [0, 2, 1]}),
    "clip": ("Clip", [], {}),
    "minus a zero on the left": ("Sub", [], {}),
}


def one_step(op: str, operands: list[np.ndarray], attributes: dict[str, Any]) -> onnx.ModelProto:
    weights = {f"k{i}": value for i, value in enumerate(operands)}
    inputs = ["h", *weights]
    if op == "Sub" and not operands:
        weights, inputs = {"k0": np.float32(0)}, ["k0", "h"]
    nodes = [node("Relu", "x", out="h"), node(op, *inputs, out="z", **attributes), node("Neg", "z")]
    return model(nodes, weights)


@pytest.mark.parametrize("case", NO_OPS)
def test_no_op_goes(case: str) -> None:
    graph, record = clean(one_step(*NO_OPS[case]))
    assert graph.operators() == {"Neg": 1, "Relu": 1}
    assert record.details
    assert not [c for c in graph.constants() if c.name.startswith("k")]


@pytest.mark.parametrize("case", CHANGES)
def test_what_only_looks_like_a_no_op_stays(case: str) -> None:
    graph, _ = clean(one_step(*CHANGES[case]))
    assert len(graph.nodes) == 3


def test_shape_inference_makes_more_no_ops_certain() -> None:
    nodes = [
        node("Flatten", "x", out="a", axis=1),
        node("Squeeze", "a", "last", out="b"),
        node("Unsqueeze", "b", "last", out="c"),
        node("Neg", "c"),
    ]
    graph, _ = clean(model(nodes, {"last": ints(0)}, [1, 12]))
    assert graph.operators() == {"Neg": 1}


def test_outputs_keep_their_names_when_the_node_before_them_goes() -> None:
    nodes = [
        node("Relu", "x", out="r"),
        node("Identity", "r", out="y"),
        node("Identity", "x", out="z"),
        node("Neg", "r", out="n"),
    ]
    proto = model(nodes, outputs=("y", "z", "n"))
    graph, _ = clean(proto)
    after = encode(graph)
    assert [o.name for o in after.graph.output] == ["y", "z", "n"]
    assert builders.ops(after) == {"Identity": 1, "Neg": 1, "Relu": 1}, "from input to output an Identity must stay"
    (relu,) = (n for n in after.graph.node if n.op_type == "Relu")
    assert list(relu.output) == ["y"]


def test_two_outputs_of_one_value_stay_two() -> None:
    graph, record = clean(model([node("Relu", "x", out="y"), node("Identity", "y", out="z")], outputs=("y", "z")))
    assert record.changes == 0
    assert graph.operators() == {"Identity": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ([0, 2, 1], [0, 2, 1], 0),
        ([1, 2, 0], [2, 0, 1], 0),
        ([1, 2, 0], [1, 2, 0], 1),
        (None, None, 0),
        ([2, 1, 0], None, 0),
    ],
)
def test_transposes_join(first: list[int] | None, second: list[int] | None, left: int) -> None:
    perms = [{} if p is None else {"perm": p} for p in (first, second)]
    nodes = [
        node("Relu", "x", out="a"),
        node("Transpose", "a", out="b", **perms[0]),
        node("Transpose", "b", out="c", **perms[1]),
    ]
    graph, _ = clean(model([*nodes, node("Neg", "c")]))
    assert graph.operators().get("Transpose", 0) == left


def test_reshapes_join_to_one_with_at_most_one_free_size() -> None:
    weights = {"s1": ints(0, 12), "s2": ints(-1, 3, 2, 2), "axis": ints(1)}
    nodes = [
        node("Reshape", "x", "s1", out="a"),
        node("Unsqueeze", "a", "axis", out="b"),
        node("Reshape", "b", "s2", out="c"),
        node("Flatten", "c", out="d"),
        node("Neg", "d"),
    ]
    graph, _ = clean(model(nodes, weights))
    assert graph.operators() == {"Neg": 1, "Reshape": 1}
    target = graph.nodes[0].constant(1)
    assert target is not None and target.values.tolist() == [-1, 12]


def test_a_reshape_that_others_read_stays() -> None:
    nodes = [node("Reshape", "x", "s", out="a"), node("Flatten", "a", out="y"), node("Neg", "a", out="z")]
    graph, record = clean(model(nodes, {"s": ints(0, 4, 3)}, outputs=("y", "z")))
    assert record.changes == 0
    assert graph.operators() == {"Flatten": 1, "Neg": 1, "Reshape": 1}


def test_there_and_back_goes() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["a"], ["b"], to=FLOAT),
        node("Neg", "b", out="c"),
        node("Neg", "c", out="d"),
        node("Relu", "d", out="e"),
        node("Relu", "e", out="f"),
        node("Abs", "f"),
    ]
    graph, _ = clean(model(nodes))
    assert graph.operators() == {"Abs": 1, "Relu": 1}


@pytest.mark.parametrize("narrow", [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BFLOAT16])
def test_cast_through_a_narrower_type_stays(narrow: int) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=narrow), helper.make_node("Cast", ["a"], ["y"], to=FLOAT)]
    _, record = clean(model(nodes))
    assert record.changes == 0


def test_int64_through_double_is_not_exact() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=INT64),
        helper.make_node("Cast", ["i"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["d"], ["j"], to=INT64),
        helper.make_node("Cast", ["j"], ["y"], to=FLOAT),
    ]
    _, record = clean(model(nodes))
    assert record.changes == 0


def test_equal_nodes_are_computed_once() -> None:
    nodes = [
        node("Softmax", "x", out="a", axis=1),
        node("Softmax", "x", out="b", axis=1),
        node("Softmax", "x", out="c", axis=2),
        node("Exp", "a", out="d"),
        node("Exp", "b", out="e"),
        node("Sub", "d", "e", out="f"),
        node("Add", "f", "c"),
    ]
    graph, _ = clean(model(nodes))
    assert graph.operators() == {"Add": 1, "Exp": 1, "Softmax": 2, "Sub": 1}


def test_equal_node_that_makes_an_output_gives_its_name() -> None:
    nodes = [node("Exp", "x", out="a"), node("Neg", "a", out="z"), node("Exp", "x", out="y")]
    graph, _ = clean(model(nodes, outputs=("y", "z")))
    assert graph.operators() == {"Exp": 1, "Neg": 1}
    nodes = [node("Exp", "x", out="y"), node("Exp", "x", out="z")]
    graph, record = clean(model(nodes, outputs=("y", "z")))
    assert record.changes == 0, "both are outputs: neither name can go"


def test_draws_of_random_numbers_and_unknown_operators_are_not_equal() -> None:
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["a"], "draw1"),
        helper.make_node("RandomUniformLike", ["x"], ["b"], "draw2"),
        helper.make_node("Camera", ["x"], ["c"], "shot1", domain="my"),
        helper.make_node("Camera", ["x"], ["d"], "shot2", domain="my"),
        node("Sum", "a", "b", "c", "d"),
    ]
    _, record = clean(model(nodes, domains={"my": 1}))
    assert record.changes == 0


def test_quantizers_are_matched_one_by_one_and_so_stay() -> None:
    weights = {"s": np.float32(0.1), "z": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", "x", "s", "z", out="q"),
        node("DequantizeLinear", "q", "s", "z", out="a"),
        node("DequantizeLinear", "q", "s", "z", out="b"),
        node("Add", "a", "b"),
    ]
    _, record = clean(model(nodes, weights))
    assert record.changes == 0


def test_equal_initializers_become_one_and_nearly_equal_ones_stay() -> None:
    w = builders.normal(builders.rng(), 40, 40)
    late = w.copy()
    late[0, 1] += 1  # a place that a sample of the values may not touch
    zero = np.zeros(4, np.float32)
    weights = {
        "w1": w,
        "w2": w.copy(),
        "w3": late,
        "w4": w.astype(np.float64),
        "z": zero,
        "nz": -zero,
        "z2": zero,
        "unused": w,
    }
    nodes = [node("Sink", "x", *list(weights)[:-1], domain="my")]
    graph, _ = clean(model(nodes, weights, domains={"my": 1}))
    names = [t.name for t in graph.nodes[0].inputs]
    assert names == ["x", "w1", "w1", "w3", "w4", "z", "nz", "z"]
    assert {t.name for t in encode(graph).graph.initializer} == {"w1", "w3", "w4", "z", "nz"}


def test_equal_weights_of_two_branches_move_to_the_main_graph_once() -> None:
    inner = builders.normal(builders.rng(), 8, 8)

    def branch(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", "inner"], [name], f"{name}_mm")]
        output = [builders.value(name, FLOAT, None)]
        return helper.make_graph(nodes, name, [], output, [numpy_helper.from_array(inner, "inner")])

    step = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("t"), else_branch=branch("e"))
    inputs = [builders.value("x", FLOAT, ["N", 8]), builders.value("flag", TensorProto.BOOL, [])]
    proto = builders.model([step], inputs, [builders.value("y", FLOAT, None)], check=False)
    graph, _ = clean(proto)
    assert len(io.to_bytes(graph)) < len(proto.SerializeToString()) - inner.nbytes // 2
    feeds = builders.feeds_of(proto)
    np.testing.assert_array_equal(builders.run(proto, feeds)[0], builders.run(io.to_bytes(graph), feeds)[0])


def test_dead_nodes_go_also_in_bodies_and_before_dead_control_flow() -> None:
    proto = builders.if_model()
    (then,) = (a.g for a in proto.graph.node[1].attribute if a.name == "then_branch")
    then.node.append(helper.make_node("Exp", ["then_m"], ["nobody"], "dead_inside"))
    proto.graph.node.append(helper.make_node("Exp", ["h"], ["nobody2"], "dead"))
    dead_if = onnx.NodeProto()
    dead_if.CopyFrom(proto.graph.node[1])
    dead_if.name, dead_if.output[0] = "dead_if", "nobody3"
    proto.graph.node.append(dead_if)
    graph, record = clean(proto)
    assert {c.node for c in record.details} >= {"dead_inside", "dead", "dead_if"}
    assert graph.operators() == {"Add": 1, "If": 1, "MatMul": 4}


def test_optional_outputs_that_nobody_takes_are_not_computed() -> None:
    pool = helper.make_node("MaxPool", ["x"], ["p", "indices"], "pool", kernel_shape=[2])
    graph, _ = clean(model([pool, node("Neg", "p")]))
    assert [len(n.outputs) for n in graph.nodes] == [1, 1]
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y", "h", "c"], "lstm", hidden_size=2)
    weights = {"w": builders.normal(builders.rng(), 1, 8, 4), "r": builders.normal(builders.rng(1), 1, 8, 2)}
    graph, _ = clean(model([lstm], weights, outputs=("y", "c")))
    assert [t.name for t in graph.nodes[0].outputs] == ["y", "", "c"]


def test_outputs_of_a_training_norm_stay_because_they_say_that_it_trains() -> None:
    weights = builders.norm_weights("bn", 3, builders.rng())
    bn = helper.make_node("BatchNormalization", ["x", *weights], ["y", "a", "b", "c", "d"], "bn")
    _, record = clean(model([bn], weights, opset=9))
    assert record.changes == 0


def test_weights_that_a_caller_may_feed_are_neither_merged_nor_believed() -> None:
    nodes = [node("Mul", "x", "one", out="a"), node("Add", "a", "b1", out="b"), node("Add", "b", "b2")]
    proto = model(nodes, {"one": np.float32(1), "b1": np.float32([2]), "b2": np.float32([2])}, [2])
    listed = builders.weights_as_inputs(proto)
    result = PassManager(Pipeline((Cleanup(),))).run(decode(listed, keep_initializer_inputs=True))
    assert result.changes == 0
    _, record = clean(listed)
    assert record.changes == 2


def test_excluded_nodes_stay() -> None:
    nodes = [node("Identity", "x", out="a"), node("Identity", "a", out="b"), node("Neg", "b")]
    graph, _ = clean(model(nodes), exclude=("Identity_a",))
    assert graph.operators() == {"Identity": 1, "Neg": 1}


def test_yolox_and_minilm_lose_only_what_is_double(assets: Path) -> None:
    for name, gone in (("yolox-nano", {"Slice": 2}), ("minilm-l6", {})):
        graph = io.load(assets / "models" / f"{name}.onnx")
        before = graph.operators()
        result = PassManager(Pipeline((Cleanup(),))).run(graph)
        after = result.graph.operators()
        assert all(before[op] - after.get(op, 0) >= count for op, count in gone.items())
        assert io.total_bytes(result.graph) <= io.total_bytes(graph) + 1024, "the shape of a joined Reshape, at most"


@pytest.mark.parametrize("name", ["detours", "transformer", "if_model"])
def test_golden_graphs(name: str) -> None:
    """What fold-constants and cleanup make of a model, as text; delete a file to have it written anew."""
    proto = hostile_models()[name] if name == "detours" else getattr(builders, name)()
    text = dump(PassManager(Pipeline.parse("fold-constants,cleanup")).run(decode(proto)).graph)
    path = GOLDEN / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{path.name} was missing and has been written: read it and commit it")
    assert text == path.read_text(encoding="utf-8")


def test_statistics_that_training_writes_to_are_not_merged_with_their_equals() -> None:
    """Mean 0 and bias 0, variance 1 and scale 1: ONNX Runtime writes the running ones in place."""
    node = helper.make_node(
        "BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y", "rm", "rv"], "bn", training_mode=1
    )
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    weights = {"scale": ones, "bias": zeros, "mean": zeros.copy(), "var": ones.copy()}
    proto = builders.model(
        [node, helper.make_node("Mul", ["y", "again"], ["z"], "mul")],
        [builders.value("x", builders.FLOAT, [4, 3, 2, 2])],
        [builders.value("z", builders.FLOAT, [4, 3, 2, 2])],
        weights | {"again": np.ones((3, 1, 1), np.float32)},
        check=False,
    )
    graph = PassManager(Pipeline.parse("cleanup")).run(decode(proto)).graph
    names = [t.name for t in graph.nodes[0].inputs]
    assert names == ["x", "scale", "bias", "mean", "var"]


def test_what_onnxruntime_wrote_around_integers_opens_after_dead_code_is_gone() -> None:
    """It names the type of a Q twice, and refuses that where one DQ alone reads it."""
    ends = {"scale": np.float32(0.5), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *ends], ["q"], output_dtype=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["q", *ends], ["a"]),
        helper.make_node("DequantizeLinear", ["q", *ends], ["b"]),
        helper.make_node("Sigmoid", ["a"], ["y"]),
        helper.make_node("Tanh", ["b"], ["z"]),
    ]
    ports = [builders.value(name, FLOAT, ["N", 4]) for name in "xy"]  # z is read by nobody, and its DQ goes with it
    before = builders.model(nodes, ports[:1], ports[1:], ends, opset=21, ir_version=10)
    data = {"x": builders.normal(builders.rng(), 16, 4)}
    result = onnxcomp.optimize(before, data=data, passes="cleanup", bench=False)
    assert result.model is not None
    x = {"x": builders.normal(builders.rng(1), 3, 4)}
    for wanted, got in zip(builders.run(before, x), ort_run(result.model, x), strict=True):
        np.testing.assert_array_equal(got, wanted)


def ort_run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[Any]:
    return list(ort.InferenceSession(proto.SerializeToString()).run(None, feeds))
