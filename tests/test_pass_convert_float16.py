"""Half precision: what becomes float16, what stays float32 and why, and that the model still gives what it gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from random_models import outputs, random_feeds, random_model

from onnxcomp.errors import UsageError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode
from onnxcomp.graph.port_types import ports
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.convert_float16 import ConvertFloat16, unfit
from onnxcomp.recipes import candidates
from onnxcomp.runtime import tensorrt
from onnxcomp.verify.tensorrt import ask_tensorrt

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


class Samples:
    """Feeds as a pass sees calibration data."""

    source = "test"
    labels = None

    def __init__(self, *feeds: dict[str, np.ndarray]) -> None:
        self.feeds = feeds

    def __len__(self) -> int:
        return len(self.feeds)

    def batches(self, size: int | None = None) -> Any:
        return iter(self.feeds)


def convert(
    proto: onnx.ModelProto, *feeds: dict[str, np.ndarray], **options: Any
) -> tuple[onnx.ModelProto, dict[str, str], Any]:
    """The converted model, the reasons by node, and the pass's record."""
    context = PassContext(calibration=Samples(*feeds) if feeds else None)
    result = PassManager(Pipeline((ConvertFloat16(**options),))).run(decode(proto), context)
    (record,) = result.records
    return onnx.load_from_string(io.to_bytes(result.graph)), {s.node: s.why for s in record.skips}, record


def chain(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None, size: int = 16) -> onnx.ModelProto:
    """x [N, size] -> … -> y, float32."""
    values = [builders.value(name, FLOAT, ["N", size]) for name in "xy"]
    return builders.model(list(nodes), values[:1], values[1:], weights or {}, check=False)


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by full inference."""
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    found = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    return found | {t.name: t.data_type for t in proto.graph.initializer}


def casts(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == "Cast"]


def no_two_casts_in_a_row(proto: onnx.ModelProto, before: onnx.ModelProto) -> bool:
    """Of the casts that were added; a model may bring some of its own that change nothing."""
    old = {node.name for node in casts(before)}
    added = [node for node in casts(proto) if node.name not in old]
    made = {output for node in added for output in node.output}
    return not any(node.input[0] in made for node in added)


def exact(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output, every node rounded to its own precision: ONNX Runtime's CPU kernels keep float32 inside."""
    found: np.ndarray = ReferenceEvaluator(proto).run(None, feeds)[0]
    return found


WEIGHT = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32) * 0.3


def matmul(a: str, b: str, name: str, weight: str = "w") -> onnx.NodeProto:
    return helper.make_node("MatMul", [a, weight], [b], name)


# -- the whole of a model --


@pytest.mark.parametrize(
    "proto",
    [builders.residual_cnn(), builders.mlp(), builders.depthwise_cnn(), builders.transformer(), builders.dynamic_cnn()],
    ids=["residual", "mlp", "depthwise", "transformer", "dynamic"],
)
def test_a_model_becomes_half_inside_and_stays_float_outside(proto: onnx.ModelProto) -> None:
    feeds = builders.feeds_of(proto)
    found, _, record = convert(proto, feeds)
    assert record.changes > 0
    for before, after in zip(
        (*proto.graph.input, *proto.graph.output), (*found.graph.input, *found.graph.output), strict=True
    ):
        assert before.name == after.name
        assert before.type.tensor_type.elem_type == after.type.tensor_type.elem_type
    kernels = {n.input[1] for n in found.graph.node if n.op_type in ("Conv", "Gemm")}
    assert {t.data_type for t in found.graph.initializer if t.name in kernels} <= {HALF}
    assert no_two_casts_in_a_row(found, proto)
    for wanted, got in zip(builders.run(proto, feeds), builders.run(found, feeds), strict=True):
        assert builders.sqnr_db(wanted, got) > 45


def test_one_cast_at_each_end_is_enough() -> None:
    proto = builders.residual_cnn()
    found, why, _ = convert(proto, builders.feeds_of(proto))
    assert why == {}
    assert sorted(node.attribute[0].i for node in casts(found)) == [FLOAT, HALF]


@pytest.mark.parametrize("seed", range(25))
def test_random_models_keep_their_interface_and_their_values(seed: int) -> None:
    proto, feeds = random_model(seed), random_feeds(seed)
    names = {value.name for value in proto.graph.input}
    feeds = {name: array for name, array in feeds.items() if name in names}
    found, _, _ = convert(proto, feeds)
    types_of(found)
    assert no_two_casts_in_a_row(found, proto)
    for wanted, got in zip(builders.run(proto, feeds), builders.run(found, feeds), strict=True):
        assert wanted.dtype == got.dtype
        scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1.0))
        np.testing.assert_allclose(got, wanted, atol=0.05 * scale, rtol=0.05)


# -- what does not fit --


def test_a_node_that_overflows_on_the_data_stays_float() -> None:
    proto = chain(
        matmul("x", "a", "first"),
        helper.make_node("Mul", ["a", "big"], ["b"], "loud"),
        helper.make_node("Mul", ["b", "small"], ["c"], "quiet"),
        matmul("c", "y", "last"),
        weights={"w": WEIGHT, "big": np.float32([4000]), "small": np.float32([1 / 4000])},
    )
    feeds = {"x": np.full((2, 16), 8, np.float32)}
    found, why, _ = convert(proto, feeds, headroom=1.0)
    assert set(why) == {"loud", "quiet"}
    assert "half precision ends at 65504" in why["loud"] and "output b reaches" in why["loud"]
    assert types_of(found)["b"] == FLOAT
    assert builders.sqnr_db(exact(proto, feeds), exact(found, feeds)) > 50
    assert len(casts(found)) == 4  # in, out, and around what stays float
    naive, _, record = convert(proto)  # without data nobody knows, and it is said
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(exact(naive, feeds)).all()
    assert any("no calibration data" in note for note in record.notes)


def test_headroom_keeps_a_distance_from_the_end() -> None:
    proto = chain(matmul("x", "a", "first"), matmul("a", "y", "last"), weights={"w": np.eye(16, dtype=np.float32)})
    feeds = {"x": np.full((1, 16), 20000, np.float32)}
    assert convert(proto, feeds, headroom=3.0)[1] == {}
    assert set(convert(proto, feeds, headroom=4.0)[1]) == {"first", "last"}


def test_tensors_too_low_for_the_digits_of_half_precision_stay_float() -> None:
    proto = chain(
        matmul("x", "a", "first"),
        helper.make_node("Mul", ["a", "tiny"], ["b"], "down"),
        helper.make_node("Mul", ["b", "huge"], ["c"], "up"),
        matmul("c", "y", "last"),
        weights={"w": WEIGHT, "tiny": np.float32([2e-4]), "huge": np.float32([5000])},
    )
    feeds = {"x": np.full((2, 16), 0.02, np.float32)}
    found, why, _ = convert(proto, feeds)
    assert set(why) == {"down", "up"}
    assert "no digits left" in why["up"]
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(found, feeds)[0]) > 50


def mask_model() -> onnx.ModelProto:
    """Scores, a mask of -3.4e38 added, softmax, and a product: how exporters write attention."""
    return chain(
        matmul("x", "s", "scores"),
        helper.make_node("Add", ["s", "mask"], ["m"], "masked"),
        helper.make_node("Softmax", ["m"], ["p"], "softmax", axis=-1),
        matmul("p", "y", "values"),
        weights={"w": WEIGHT, "mask": np.where(np.arange(16) < 9, 0, np.finfo(np.float32).min).astype(np.float32)},
    )


def test_a_mask_beyond_the_range_is_kept_float_and_never_clipped_in_silence() -> None:
    proto, feeds = mask_model(), {"x": np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)}
    found, why, record = convert(proto, feeds)
    assert set(why) == {"masked", "softmax"} and not any("saturated" in note for note in record.notes)
    (mask,) = [numpy_helper.to_array(t) for t in found.graph.initializer if t.name == "mask"]
    assert mask.dtype == np.float32 and mask.min() == np.finfo(np.float32).min
    saturated, why, record = convert(proto, feeds, constants="saturate")
    assert why == {}
    assert len(casts(saturated)) == 2
    assert any(note.startswith("mask: 7 of 16 values beyond 65504 saturated at") for note in record.notes)
    for model in (found, saturated):
        assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(model, feeds)[0]) > 50
        assert builders.sqnr_db(exact(proto, feeds), exact(model, feeds)) > 45


@pytest.mark.parametrize(
    ("values", "each", "fits"),
    [
        ([1.0, -65504.0], False, True),
        ([1.0, 65520.0], False, False),
        ([np.inf, -np.inf, np.nan, 0.0], False, True),
        ([1.0, 1e-7], False, True),  # lost beside the others
        ([1.0, 1e-7], True, False),  # but not as a scale
        ([1e-7, 2e-7], False, False),
        ([], False, True),
    ],
)
def test_which_constants_fit(values: list[float], each: bool, fits: bool) -> None:
    assert (unfit(np.array(values, np.float32), each=each) == "") == fits


# -- what stays float by its operator or place --


def test_scales_of_resize_stay_float_while_the_picture_becomes_half() -> None:
    proto = builders.model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Resize", ["a", "", "scales"], ["b"], "resize", mode="nearest"),
            helper.make_node("Conv", ["b", "w"], ["y"], "conv2", pads=[1, 1, 1, 1]),
        ],
        [builders.value("x", FLOAT, [1, 4, 6, 6])],
        [builders.value("y", FLOAT, [1, 4, 12, 12])],
        {
            "w": builders.normal(builders.rng(), 4, 4, 3, 3),
            "scales": np.float32([1, 1, 2, 2]),
        },
    )
    feeds = builders.feeds_of(proto)
    found, why, _ = convert(proto, feeds)
    assert why == {} and len(casts(found)) == 2
    types = types_of(found)
    assert (types["scales"], types["b"], types["w"]) == (FLOAT, HALF, HALF)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(found, feeds)[0]) > 50


def test_ports_of_a_schema_share_variables_or_have_none() -> None:
    (node,) = decode(
        builders.model(
            [helper.make_node("Resize", ["x", "", "s"], ["y"], "r")],
            [builders.value("x", FLOAT, [1, 1, 2, 2])],
            [builders.value("y", FLOAT, [1, 1, 4, 4])],
            {"s": np.float32([1, 1, 2, 2])},
        )
    ).nodes
    found = {(port.output, port.index): port.variable for port in ports(node, 17) or []}
    assert found[False, 0] == found[True, 0] != ""
    assert found[False, 2] == ""


def test_integers_are_made_from_float32() -> None:
    proto = builders.model(
        [
            matmul("x", "a", "product"),
            helper.make_node("Cast", ["a"], ["i"], "count", to=TensorProto.INT64),
            matmul("a", "y", "last"),
        ],
        [builders.value("x", FLOAT, [1, 16])],
        [builders.value("y", FLOAT, [1, 16]), builders.value("i", TensorProto.INT64, [1, 16])],
        {"w": np.eye(16, dtype=np.float32)},
    )
    found, why, _ = convert(proto, {"x": np.full((1, 16), 3, np.float32)})
    assert set(why) == {"count", "product"} and "2048" in why["product"]
    assert next(node for node in found.graph.node if node.name == "product").output[0] == "a"
    assert types_of(found)["a"] == FLOAT and len(casts(found)) == 3


def test_a_cast_to_float_gives_half_at_once() -> None:
    proto = builders.model(
        [helper.make_node("Cast", ["i"], ["f"], "cast", to=FLOAT), matmul("f", "y", "product")],
        [builders.value("i", TensorProto.INT64, [2, 16])],
        [builders.value("y", FLOAT, [2, 16])],
        {"w": WEIGHT},
    )
    feeds = {"i": np.arange(32).reshape(2, 16)}
    found, _, _ = convert(proto, feeds)
    assert [node.attribute[0].i for node in casts(found)] == [HALF, FLOAT]
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(found, feeds)[0]) > 50


@pytest.mark.parametrize("proto", [builders.if_model(), builders.loop_model()], ids=["if", "loop"])
def test_bodies_stay_float_with_the_reason(proto: onnx.ModelProto) -> None:
    feeds = builders.feeds_of(proto)
    found, why, _ = convert(proto, feeds)
    assert any("holds a body" in reason for reason in why.values())
    for wanted, got in zip(builders.run(proto, feeds), builders.run(found, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-2, atol=2e-2)


def test_operators_that_nobody_describes_stay_float() -> None:
    proto = builders.custom_operator()
    graph = decode(proto)
    result = PassManager(Pipeline((ConvertFloat16(),)), verify=False).run(graph, PassContext())
    assert any("does not describe" in skip.why for skip in result.records[0].skips)


def test_nodes_apart_from_every_product_stay_float() -> None:
    proto = chain(helper.make_node("Relu", ["x"], ["a"], "one"), helper.make_node("Neg", ["a"], ["y"], "two"))
    found, why, record = convert(proto, {"x": np.ones((1, 16), np.float32)})
    assert set(why) == {"one", "two"} and record.changes == 0
    assert casts(found) == []


def test_a_weight_that_float_and_half_nodes_share_is_there_twice() -> None:
    proto = chain(matmul("x", "a", "first"), matmul("a", "b", "kept"), matmul("b", "y", "last"), weights={"w": WEIGHT})
    feeds = {"x": np.ones((1, 16), np.float32)}
    found, why, _ = convert(proto, feeds, exclude=("kept",))
    assert why == {"kept": "not selected by include and exclude"}
    assert sorted(t.data_type for t in found.graph.initializer) == [FLOAT, HALF]
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(found, feeds)[0]) > 50
    with pytest.raises(UsageError, match="matches no node"):
        convert(proto, feeds, include=("nothing*",))


# -- quantized models, and the recipes --


def quantized() -> onnx.ModelProto:
    """Q and DQ around a Conv as TensorRT wants them, at opset 13."""
    rng = builders.rng()
    weights = {
        "s": np.float32(0.05),
        "z": np.int8(0),
        "w8": rng.integers(-127, 127, (32, 32, 3, 3)).astype(np.int8),
        "ws": np.full(32, 2e-3, np.float32),
        "wz": np.zeros(32, np.int8),
        "b": np.ones(32, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "f"], ["a"], "plain", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], "dqw", axis=0),
        helper.make_node("Conv", ["d", "w", "b"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    weights["f"] = builders.normal(rng, 32, 32, 3, 3)
    sizes = [2, 32, 6, 6]
    return builders.model(
        nodes, [builders.value("x", FLOAT, sizes)], [builders.value("y", FLOAT, sizes)], weights, opset=13
    )


def test_scales_of_a_half_network_are_half(tmp_path: Any) -> None:
    proto = quantized()
    feeds = builders.feeds_of(proto)
    found, why, record = convert(proto, feeds)
    assert why == {} and found.opset_import[0].version == 19
    assert any("opset" in note for note in record.notes)
    types = types_of(found)
    assert (types["s"], types["ws"], types["d"], types["w"]) == (HALF, HALF, HALF, HALF)
    assert builders.sqnr_db(builders.run(proto, feeds)[0], builders.run(found, feeds)[0]) > 40
    if tensorrt.installed():
        verdict = ask_tensorrt(builders.save(found, tmp_path / "half.onnx"))
        assert verdict.acceptance.accepted, verdict.acceptance.problems
        assert [product.node for product in verdict.acceptance.products if product.integer] == ["conv"]


def test_scales_too_small_for_half_keep_their_nodes_float() -> None:
    proto = quantized()
    for tensor in proto.graph.initializer:
        if tensor.name == "ws":
            tensor.CopyFrom(numpy_helper.from_array(np.full(32, 3e-7, np.float32), "ws"))
    _, why, _ = convert(proto, builders.feeds_of(proto))
    assert "no digits left" in why["dqw"]


def test_each_target_is_offered_what_it_runs_fast() -> None:
    graph = decode(builders.residual_cnn())

    def names(**options: Any) -> list[str]:
        return [recipe.name for recipe in candidates(graph, **{"has_data": True, "objective": "latency"} | options)]

    assert names(target="cuda") == ["half", "clean"]
    assert names(target="tensorrt") == ["int8", "clean"]
    assert names(target="tensorrt", has_data=False) == ["clean"]
    assert names(target="cuda", objective="size")[:1] == ["weights4"]
    assert "half" not in names() and names()[0] == "int8"


def test_types_behind_operators_of_onnx_runtime_are_known() -> None:
    generator = builders.rng()
    nodes = [
        helper.make_node("BiasGelu", ["x", "b"], ["g"], "gelu", domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "w"], ["y"], "product"),
    ]
    weights = {"b": builders.normal(generator, 16), "w": builders.normal(generator, 16, 64)}
    ports = builders.value("x", builders.FLOAT, ["N", 16]), builders.value("y", builders.FLOAT, ["N", 64])
    proto = builders.model(nodes, ports[:1], ports[1:], weights, domains={"com.microsoft": 1}, check=False)
    feeds = builders.feeds_of(proto, batch=8)
    after, skips, record = convert(proto)
    assert record.summary.startswith("2 of 2 float32 nodes")
    assert not skips
    assert {t.name: t.data_type for t in after.graph.initializer} == {"b": HALF, "w": HALF}
    (a,), (b,) = outputs(proto, feeds), outputs(after, feeds)
    assert b.dtype == np.float32
    np.testing.assert_allclose(b, a, atol=2e-3 * float(np.abs(a).max()))


def test_an_operator_whose_parts_mix_types_stays_float32() -> None:
    """MeanVarianceNormalization raises its input to a float32 power."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("MeanVarianceNormalization", ["c"], ["m"], "norm", axes=[0, 2, 3]),
        helper.make_node("Conv", ["m", "v"], ["y"], "last"),
    ]
    generator = builders.rng()
    weights = {"w": builders.normal(generator, 8, 3, 3, 3), "v": builders.normal(generator, 4, 8, 1, 1)}
    ports = builders.value("x", builders.FLOAT, [1, 3, 9, 9]), builders.value("y", builders.FLOAT, [1, 4, 7, 7])
    result = PassManager(Pipeline.parse("convert-float16")).run(
        decode(builders.model(nodes, ports[:1], ports[1:], weights))
    )
    assert [skip.node for skip in result.records[0].skips] == ["norm"]
    assert len(result.records[0].details) == 2


def test_what_onnxruntime_wrote_in_half_precision_becomes_half_again(tmp_path: Path) -> None:
    """Its CPU provider's own Casts have names that a second model of the kind may not have."""
    generator = builders.rng()
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["xh", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["yh"]),
        helper.make_node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = {k: builders.normal(generator, 8, 8).astype(np.float16) for k in "wv"}
    ports = builders.value("x", TensorProto.FLOAT, ["N", 8]), builders.value("y", TensorProto.FLOAT, ["N", 8])
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "written.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    proto = builders.model(nodes, ports[:1], ports[1:], weights)
    ort.InferenceSession(proto.SerializeToString(), options)
    written = onnx.load(tmp_path / "written.onnx")
    assert any(node.output[0].startswith("InsertedPrecisionFreeCast_") for node in written.graph.node)
    result = PassManager(Pipeline.parse("convert-float16")).run(decode(written))
    assert result.changes
    feeds = {"x": builders.normal(generator, 4, 8)}
    after = ort.InferenceSession(io.to_bytes(result.graph)).run(None, feeds)[0]
    np.testing.assert_allclose(after, builders.run(proto, feeds)[0], atol=2e-2)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_kernels_that_open_in_half_precision_and_do_not_run_stay_float(op: str, reduction: str) -> None:
    """ONNX Runtime registers both for every type, and computes some reductions of half precision only."""
    product = helper.make_node("MatMul", ["x", "w"], ["h"], name="product")
    scatter = helper.make_node(op, ["h", "at", "h"], ["s"], name="scatter", reduction=reduction)
    last = helper.make_node("MatMul", ["s", "w"], ["y"], name="last")
    at = np.zeros((16, 16) if op == "ScatterElements" else (16, 1), np.int64)
    ends = [builders.value(name, FLOAT, [16, 16]) for name in "xy"]
    proto = builders.model([product, scatter, last], ends[:1], ends[1:], {"w": WEIGHT, "at": at}, opset=18)
    feeds = {"x": np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)}
    before, (found, why, _) = outputs(proto, feeds), convert(proto, feeds)
    after = outputs(found, feeds)
    assert np.allclose(after[0], before[0], rtol=0.01, atol=0.05 * before[0].std())
    alone = helper.make_node(op, ["x", "at", "x"], ["y"], reduction=reduction)
    ends = [builders.value(name, HALF, [16, 16]) for name in "xy"]
    session = ort.InferenceSession(
        builders.model([alone], ends[:1], ends[1:], {"at": at}, opset=18).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    try:
        session.run(None, {"x": feeds["x"].astype(np.float16)})
    except ort.capi.onnxruntime_pybind11_state.RuntimeException:
        assert "no half-precision form" in why["scatter"]
    else:
        assert "scatter" not in why


def test_values_of_attention_go_where_queries_and_keys_go() -> None:
    """One type variable cannot go alone: the product of weights and values inside would mix both."""
    node = helper.make_node(
        "Attention", ["q", "k", "v"], ["y", "present_key", "present_value"], "a", q_num_heads=2, kv_num_heads=1
    )
    nodes = [helper.make_node("MatMul", ["x", f"w{name}"], [name], name) for name in "qkv"]
    weights = {f"w{name}": builders.normal(builders.rng(), 8, size) for name, size in (("q", 8), ("k", 4), ("v", 4))}
    ends = [builders.value("x", FLOAT, ["N", 6, 8])], [builders.value("y", FLOAT, ["N", 6, 8])]
    for last in ([], [helper.make_node("Identity", ["present_value"], ["kept"])]):
        proto = builders.model([*nodes, node, *last], *ends, weights, opset=23)
        converted, _, _ = convert(proto)
        ort.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
