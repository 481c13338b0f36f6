"""Is what depends on no input computed once, bit for bit, and is everything else left as it was?"""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
import random_models
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.fold_constants import FoldConstants

FLOAT, INT64 = builders.FLOAT, builders.INT64


def fold(proto: onnx.ModelProto, **options: Any) -> tuple[Graph, Any]:
    result = PassManager(Pipeline((FoldConstants(**options),))).run(decode(proto))
    return result.graph, result.records[0]


def model(
    nodes: list[NodeProto], weights: dict[str, np.ndarray], shape: list[int | str | None], **options: Any
) -> onnx.ModelProto:
    inputs = [builders.value("x", FLOAT, shape)]
    return builders.model(nodes, inputs, [builders.value("y", FLOAT, None)], weights, check=False, **options)


def constant(name: str, array: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], f"{name}_node", value=numpy_helper.from_array(array))


@given(seed=st.integers(0, 100_000), static=st.booleans())
def test_random_models_stay_bit_equal_and_fold_once(seed: int, static: bool) -> None:
    proto = random_models.random_model(seed, static=static)
    feeds = random_models.random_feeds(seed)
    expected = random_models.outputs(proto, feeds)
    assume(expected is not None)
    graph, _ = fold(proto)
    actual = builders.run(io.to_bytes(graph), feeds, optimized=False)
    assert [v.tobytes() for v in actual] == [v.tobytes() for v in expected or []]
    again = PassManager(Pipeline((FoldConstants(),)), verify=False).run(graph)
    assert again.changes == 0


def test_constant_nodes_of_every_form_become_initializers() -> None:
    forms: dict[str, Any] = {
        "value": numpy_helper.from_array(np.float32([1, 2])), "value_float": 1.5, "value_floats": [1.0, 2.0],
        "value_int": 3, "value_ints": [4, 5], "value_string": "a", "value_strings": ["b", "c"],
    }  # fmt: skip
    nodes = [helper.make_node("Constant", [], [key], f"n_{key}", **{key: value}) for key, value in forms.items()]
    nodes.append(helper.make_node("Sink", ["x", *forms], ["y"], "sink", domain="my"))
    proto = model(nodes, {}, [2], domains={"my": 1})
    graph, record = fold(proto)
    assert graph.operators() == {"Sink": 1}
    assert record.changes == len(forms)
    values = {c.name: c.values for c in graph.constants()}
    assert values["value"].tolist() == [1, 2]
    assert (values["value_float"].dtype, values["value_float"].shape) == (np.float32, ())
    assert values["value_floats"].tolist() == [1, 2]
    assert (values["value_int"].dtype, values["value_int"].item()) == (np.int64, 3)
    assert values["value_ints"].tolist() == [4, 5]
    assert values["value_string"].item() in ("a", b"a")
    assert len(values["value_strings"]) == 2


def test_constant_that_is_an_output_stays_and_computed_outputs_keep_their_names() -> None:
    nodes = [
        constant("y", np.float32([1, 2])),
        helper.make_node("Exp", ["w"], ["z"], "exp"),
        helper.make_node("Relu", ["z"], ["u"], "relu"),
    ]
    proto = builders.model(
        nodes,
        [builders.value("x", FLOAT, [1])],
        [builders.value(n, FLOAT, [2]) for n in ("y", "z", "u")],
        {"w": np.float32([0, 1])},
    )
    graph, _ = fold(proto)
    assert graph.operators() == {"Constant": 1, "Identity": 2}
    after = encode(graph)
    assert [o.name for o in after.graph.output] == ["y", "z", "u"]
    for a, b in zip(
        builders.run(proto, {"x": np.zeros(1, np.float32)}),
        builders.run(after, {"x": np.zeros(1, np.float32)}),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_weights_reach_their_nodes_directly() -> None:
    proto = builders.indirect_weights()
    graph, _ = fold(proto)
    assert graph.operators() == {"MatMul": 4}
    assert all(node.constant(1) is not None for node in graph.nodes)


def test_fixed_sizes_of_a_dynamic_shape_are_certain() -> None:
    """[N, 3, 4, 4] -> Reshape to [N, 3 * 4 * 4] by arithmetic on Shape: all but N is known."""
    weights = {
        "zero": np.int64([0]),
        "one": np.int64([1]),
        "two": np.int64([2]),
        "four": np.int64([4]),
        "w": builders.normal(builders.rng(), 48, 2),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Slice", ["s", "one", "four"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["flat"], keepdims=1),
        helper.make_node("Concat", ["n", "flat"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    graph, _ = fold(model(nodes, weights, ["N", 3, 4, 4]))
    assert graph.operators() == {"Concat": 1, "Gather": 1, "MatMul": 1, "Reshape": 1, "Shape": 1}
    (join,) = (node for node in graph.nodes if node.op == "Concat")
    flat = join.constant(1)
    assert flat is not None and flat.values.tolist() == [48]


def test_declared_shape_of_an_inner_tensor_is_not_believed() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Shape", ["found"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=FLOAT),
    ]
    proto = model(nodes, {}, [4])
    proto.graph.value_info.append(builders.value("found", INT64, [1, 3]))
    graph, record = fold(proto)
    assert record.changes == 0
    assert "Shape" in graph.operators()


@pytest.mark.parametrize(("inside", "folds"), [("x", True), ("state", False)])
def test_shape_inside_a_loop_is_certain_only_for_outer_tensors(inside: str, folds: bool) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Concat", ["state", "state"], ["next"], "grow", axis=0),
            helper.make_node("Shape", [inside], ["s"], "shape"),
            helper.make_node("Cast", ["s"], ["sizes"], "cast", to=FLOAT),
            helper.make_node("Identity", ["go"], ["still"], "go_on"),
        ],
        "body",
        [
            builders.value("i", INT64, []),
            builders.value("go", TensorProto.BOOL, []),
            builders.value("state", FLOAT, [2]),
        ],
        [
            builders.value("still", TensorProto.BOOL, []),
            builders.value("next", FLOAT, None),
            builders.value("sizes", FLOAT, None),
        ],
    )
    weights = {"trips": np.array(3, np.int64), "start": np.array(True)}
    nodes = [helper.make_node("Loop", ["trips", "start", "x"], ["end", "y"], "loop", body=body)]
    proto = model(nodes, weights, [2])
    graph, _ = fold(proto)
    assert ("Shape" in graph.operators()) != folds
    feeds = {"x": np.float32([1, 2])}
    wanted, got = (builders.run(m, feeds)[0] for m in (proto, io.to_bytes(graph)))
    np.testing.assert_array_equal(wanted, got)


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_a_known_condition_becomes_its_branch(condition: bool) -> None:
    proto = builders.if_model()
    flag = proto.graph.input[0]
    proto.graph.input.remove(flag)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(condition), "flag"))
    graph, record = fold(proto)
    assert "If" not in graph.operators()
    assert record.details[0].node == "if"
    feeds = {"x": builders.feeds_of(builders.if_model())["x"]}
    np.testing.assert_array_equal(builders.run(proto, feeds)[0], builders.run(io.to_bytes(graph), feeds)[0])
    names = [node.name for node in graph.walk()]
    assert len(set(names)) == len(names)


def test_names_that_both_branches_bear_stay_apart_when_one_is_inlined() -> None:
    def branch(value: float) -> onnx.GraphProto:
        nodes = [helper.make_node("Mul", ["x", "k"], ["m"], "scale"), helper.make_node("Neg", ["m"], ["t"], "negate")]
        return helper.make_graph(
            nodes, "b", [], [builders.value("t", FLOAT, [2])], [numpy_helper.from_array(np.float32(value), "k")]
        )

    nodes = [
        helper.make_node("If", ["yes"], ["p"], "if1", then_branch=branch(1), else_branch=branch(2)),
        helper.make_node("If", ["no"], ["q"], "if2", then_branch=branch(3), else_branch=branch(4)),
        helper.make_node("Sub", ["p", "q"], ["y"], "sub"),
    ]
    proto = model(nodes, {"yes": np.array(True), "no": np.array(False)}, [2])
    graph, _ = fold(proto)
    assert graph.operators() == {"Identity": 2, "Mul": 2, "Neg": 2, "Sub": 1}
    x = {"x": np.float32([1, -2])}
    np.testing.assert_array_equal(builders.run(io.to_bytes(graph), x)[0], builders.run(proto, x)[0])


def test_growth_is_limited_and_said() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"], "fill", value=numpy_helper.from_array(np.float32([1]))),
        helper.make_node("Add", ["x", "c"], ["y"], "add"),
    ]
    proto = model(nodes, {"shape": np.int64([300, 300])}, ["N", 300, 300])
    graph, record = fold(proto)
    assert "ConstantOfShape" in graph.operators()
    assert [s.node for s in record.skips] == ["fill"]
    assert "larger" in record.skips[0].why
    graph, record = fold(proto, max_bytes=400_000)
    assert graph.operators() == {"Add": 1}


def test_no_memory_is_taken_for_an_absurd_size() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"], "fill"),
        helper.make_node("ReduceSum", ["c"], ["total"], "sum", keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"], "add"),
    ]
    proto = model(nodes, {"shape": np.int64([1 << 20, 1 << 20])}, [2])
    outcome = FoldConstants().run(decode(proto), PassContext())
    assert [s.node for s in outcome.skips] == ["fill"]


def test_tied_weight_is_not_written_twice() -> None:
    generator = builders.rng()
    weights = {"table": builders.normal(generator, 600, 64)}
    nodes = [
        helper.make_node("Transpose", ["table"], ["t"], "transpose"),
        helper.make_node("MatMul", ["x", "t"], ["h"], "logits"),
        helper.make_node("MatMul", ["h", "table"], ["y"], "back"),
    ]
    graph, record = fold(model(nodes, weights, ["N", 64]))
    assert "Transpose" in graph.operators()
    assert "larger" in record.skips[0].why
    nodes[2].input[1] = "t2"
    nodes.insert(0, constant("t2", builders.normal(generator, 600, 64)))
    graph, _ = fold(model(nodes, weights, ["N", 64]))
    assert graph.operators() == {"MatMul": 2}, "used only transposed, it is stored transposed"


@pytest.mark.parametrize("kind", ["dequantize", "cast", "half"])
def test_weights_that_are_stored_small_stay_small(kind: str) -> None:
    generator = builders.rng()
    stored = generator.integers(-100, 100, (32, 16)).astype(np.int8)
    weights: dict[str, np.ndarray] = {"q": stored, "scale": np.float32(0.01)}
    if kind == "dequantize":
        nodes = [helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], "stored")]
    else:
        weights["q"] = stored.astype(np.float16) if kind == "half" else stored
        nodes = [
            helper.make_node("Cast", ["q"], ["f"], "stored", to=FLOAT),
            helper.make_node("Mul", ["f", "scale"], ["w"], "mul"),
        ]
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"], "mm"))
    graph, record = fold(model(nodes, weights, ["N", 32]))
    assert record.changes == 0
    assert [s.node for s in record.skips] == ["stored"]
    assert "on purpose" in record.skips[0].why
    assert io.total_bytes(graph) <= 32 * 16 * 2 + 4


@pytest.mark.parametrize("kind", ["cast", "half"])
def test_weights_stored_small_are_unpacked_on_request(kind: str) -> None:
    generator = builders.rng()
    stored = generator.integers(-100, 100, (256, 128)).astype(np.float16 if kind == "half" else np.int8)
    nodes = [
        helper.make_node("Cast", ["q"], ["f"], "stored", to=FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["w"], "mul"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "mm"),
    ]
    graph, _ = fold(model(nodes, {"q": stored, "scale": np.float32(0.01)}, ["N", 256]), unpack=True)
    assert graph.operators() == {"MatMul": 1}
    weight = graph.nodes[0].constant(1)
    assert weight is not None
    np.testing.assert_array_equal(weight.values, stored.astype(np.float32) * np.float32(0.01))


def test_what_both_branches_compute_likewise_is_stored_once() -> None:
    weight = builders.normal(builders.rng(), 256, 128)

    def branch(mark: str, last: str) -> onnx.GraphProto:
        bounds = {f"{mark}{i}": np.int64([i * 128]) for i in range(3)}
        nodes = [constant(name, bound) for name, bound in bounds.items()]
        nodes += [helper.make_node("Slice", ["w", f"{mark}{i}", f"{mark}{i + 1}"], [f"{mark}s{i}"]) for i in (0, 1)]
        nodes.append(helper.make_node("Concat", [f"{mark}s1", f"{mark}s0"], [f"{mark}c"], axis=0))
        nodes.append(helper.make_node("MatMul", ["x", f"{mark}c"], [f"{mark}m"], f"{mark}mm"))
        nodes.append(helper.make_node(last, [f"{mark}m"], [f"{mark}y"]))
        return helper.make_graph(nodes, mark, [], [builders.value(f"{mark}y", FLOAT, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("t", "Relu"), else_branch=branch("e", "Tanh")),
    ]
    proto = model(nodes, {"w": weight}, ["N", 256])
    graph, _ = fold(proto)
    readers = [node.constant(1) for node in graph.walk() if node.op == "MatMul"]
    assert len(readers) == 2
    assert readers[0] is readers[1], "one copy, though each branch reordered its own"
    assert io.total_bytes(graph) < 1.01 * weight.nbytes
    x = {"x": builders.normal(builders.rng(1), 3, 256)}
    for feeds in (x, {"x": np.zeros((3, 256), np.float32)}):
        np.testing.assert_array_equal(builders.run(io.to_bytes(graph), feeds)[0], builders.run(proto, feeds)[0])


def test_random_numbers_are_never_folded() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], "noise", shape=[2]),
        helper.make_node("Add", ["x", "r"], ["y"], "add"),
    ]
    graph, record = fold(model(nodes, {}, [2]))
    assert graph.operators() == {"Add": 1, "RandomNormal": 1}
    assert "random" in record.skips[0].why


def test_custom_operators_and_local_functions_are_left_alone() -> None:
    proto = builders.function_model()
    proto.graph.node[0].input[0] = "w2"  # all of its inputs are known now
    graph, record = fold(proto)
    assert graph.operators() == {"Dense": 2}
    assert [s.node for s in record.skips] == ["dense1"]


def test_operator_without_a_kernel_is_named_and_the_rest_folds() -> None:
    """ONNX Runtime has no kernel for a Tan of float64, but for the nodes around it."""
    nodes = [
        helper.make_node("Exp", ["w"], ["e"], "exp"),
        helper.make_node("Cast", ["e"], ["h"], "cast", to=TensorProto.DOUBLE),
        helper.make_node("Tan", ["h"], ["d"], "tan"),
        helper.make_node("Cast", ["d"], ["f"], "back", to=FLOAT),
        helper.make_node("Sqrt", ["w"], ["s"], "sqrt"),
        helper.make_node("Mul", ["x", "f"], ["m"], "mul"),
        helper.make_node("MatMul", ["m", "s"], ["y"], "mm"),
    ]
    proto = model(nodes, {"w": np.float32([[1, 0], [0, 2]])}, [2])
    outcome = FoldConstants().run(graph := decode(proto), PassContext())
    assert graph.operators() == {"Cast": 1, "MatMul": 1, "Mul": 1, "Tan": 1}
    assert [s.node for s in outcome.skips] == ["tan"]
    assert "kernel" in outcome.skips[0].why


def test_weights_that_a_caller_may_feed_are_not_computed_with() -> None:
    proto = builders.weights_as_inputs(builders.indirect_weights())
    outcome = FoldConstants().run(graph := decode(proto, keep_initializer_inputs=True), PassContext())
    assert [c.node for c in outcome.changes] == ["constant"]
    assert graph.operators()["Transpose"] == 1


def test_value_found_in_a_body_serves_the_body() -> None:
    def branch(name: str) -> onnx.GraphProto:
        value = numpy_helper.from_array(np.float32([2, 3 if name == "t" else 4]))
        nodes = [
            helper.make_node("Constant", [], ["c"], f"{name}_c", value=value),
            helper.make_node("Exp", ["c"], ["e"], f"{name}_e"),
            helper.make_node("Mul", ["x", "e"], [name], f"{name}_m"),
        ]
        return helper.make_graph(nodes, name, [], [builders.value(name, FLOAT, [2])])

    node = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("t"), else_branch=branch("e_out"))
    inputs = [builders.value("flag", TensorProto.BOOL, []), builders.value("x", FLOAT, [2])]
    proto = builders.model([node], inputs, [builders.value("y", FLOAT, [2])], check=False)
    graph, _ = fold(proto)
    assert graph.operators() == {"If": 1, "Mul": 2}
    names = [t.name for t in encode(graph).graph.initializer]
    assert len(set(names)) == 2, "equal names of both branches did not collide"


def test_excluded_nodes_stay() -> None:
    proto = builders.indirect_weights()
    graph, _ = fold(proto, exclude=("transpose", "const*"))
    assert graph.operators() == {"Constant": 1, "MatMul": 4, "Transpose": 1}


def test_five_thousand_nodes_are_quick_work() -> None:
    """One session computes a long chain; nothing here is quadratic, or the test would take minutes."""
    weights = {"w": builders.normal(builders.rng(), 4, 4)}
    nodes, current = [], "w"
    for i in range(5000):
        nodes.append(helper.make_node("Tanh" if i % 2 else "Neg", [current], [f"t{i}"], f"n{i}"))
        current = f"t{i}"
    nodes.append(helper.make_node("MatMul", ["x", current], ["y"], "mm"))
    graph, record = fold(model(nodes, weights, ["N", 4]))
    assert graph.operators() == {"MatMul": 1}
    assert record.changes == 5000


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_stored_as_codes_are_not_decoded(bits: int) -> None:
    pipeline = Pipeline.parse(f"quantize-weights{{bits={bits}}},fold-constants,cleanup")
    result = PassManager(pipeline).run(decode(builders.mlp((64, 128, 64, 10))))
    small, *later = (record.bytes_after for record in result.records)
    assert small < result.records[0].bytes_before / 2
    assert all(size <= small for size in later)


def test_a_value_far_larger_than_what_it_is_made_from_is_never_held() -> None:
    """A byte that becomes gigabytes and then one number again: the file would hardly grow, the memory would."""
    nodes = [
        helper.make_node("Expand", ["one", "size"], ["large"], "grow"),
        helper.make_node("ReduceMax", ["large"], ["back"], "shrink", keepdims=0),
        helper.make_node("Add", ["x", "back"], ["y"], "add"),
    ]
    weights = {"one": np.float32([1.0]), "size": np.int64([40000, 40000])}
    graph = decode(model(nodes, weights, [2]))
    outcome = FoldConstants().run(graph, PassContext())
    assert [node.op for node in graph.nodes] == ["Expand", "ReduceMax", "Add"]
    assert any("6.4 GB of memory" in skip.why for skip in outcome.skips)
