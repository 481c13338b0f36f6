"""Does clip-weights bound exactly what it says, on the scale it says, and leave everything else alone?"""

from __future__ import annotations

from typing import Any

import builders as b
import coupling_nets
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import helper

from onnxcomp.errors import UsageError
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.manager.spec import parse_passes
from onnxcomp.passes.clip_weights import ClipWeights, best_clip, rounding_error
from onnxcomp.results import PassRecord


def clip(model: onnx.ModelProto, item: ClipWeights) -> tuple[Graph, PassRecord]:
    result = PassManager(Pipeline((item,))).run(decode(model))
    return result.graph, result.records[0]


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {c.name: c.values for c in graph.constants()}


def gemm(weight: np.ndarray, **attrs: Any) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "fc", **attrs)
    inputs = [b.value("x", kind, ["N", weight.shape[0]])]
    return b.model([node], inputs, [b.value("y", kind, ["N", weight.shape[1]])], {"w": weight}, opset=17)


FLOATS = st.floats(-100, 100, width=32)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=FLOATS)


@given(MATRICES, st.floats(0.01, 50))
def test_absolute_clamps_to_the_threshold(w: np.ndarray, t: float) -> None:
    graph, record = clip(gemm(w), ClipWeights(method="absolute", threshold=t))
    new = weights(graph)["w"]
    outside = np.abs(w.astype(np.float64)) > t
    assert (np.abs(new.astype(np.float64)) <= t).all()
    assert np.array_equal(new[~outside], w[~outside]) and np.allclose(np.abs(new[outside]), t, rtol=1e-6)
    assert record.changes == int(outside.any())
    if outside.any():
        assert record.metrics["clipped_share"] == pytest.approx(outside.mean())


@given(MATRICES, st.floats(0.01, 50))
def test_soft_is_the_proximal_step_of_an_l1_penalty(w: np.ndarray, t: float) -> None:
    new = weights(clip(gemm(w), ClipWeights(method="soft", threshold=t))[0])["w"]
    np.testing.assert_allclose(new, np.sign(w) * np.maximum(np.abs(w) - t, 0), rtol=1e-5, atol=1e-5)


@given(MATRICES, st.booleans())
def test_sigma_and_percentile_bounds_hold_per_channel_and_per_tensor(w: np.ndarray, per_channel: bool) -> None:
    axis = 0 if per_channel else None  # MatMul: output channels are the columns
    wide = w.astype(np.float64)
    new = weights(clip(gemm(w), ClipWeights(method="sigma", sigma=1.0, per_channel=per_channel))[0])["w"]
    mean, std = wide.mean(axis=axis, keepdims=True), wide.std(axis=axis, keepdims=True)
    slack = 1e-5 * (1 + np.abs(wide).max())
    assert (new <= mean + std + slack).all() and (new >= mean - std - slack).all()
    new = weights(clip(gemm(w), ClipWeights(method="percentile", percentile=80, per_channel=per_channel))[0])["w"]
    assert (np.abs(new) <= np.percentile(np.abs(wide), 80, axis=axis, keepdims=True) + slack).all()


@given(MATRICES, st.integers(2, 8))
def test_mse_never_rounds_worse_than_the_full_range(w: np.ndarray, bits: int) -> None:
    top = np.abs(w).max(axis=1).astype(np.float64)
    bound = best_clip(w, bits)
    assert (bound <= top).all()
    assert (rounding_error(w, bound, bits) <= rounding_error(w, top, bits)).all()


def test_mse_finds_the_best_clip_of_a_normal_distribution() -> None:
    w = b.rng(0).standard_normal((4, 20000)).astype(np.float32)
    best = best_clip(w, 4)
    assert np.allclose(best, 7 * 0.353, atol=0.06)  # Max 1960: 15 uniform levels lie 0.353 standard deviations apart
    grid = np.linspace(0.1, 1, 400)
    top = np.abs(w).max(axis=1).astype(np.float64)
    exact = np.min([rounding_error(w, top * g, 4) for g in grid], axis=0)
    assert (rounding_error(w, best, 4) <= 1.002 * exact).all()


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-60, 2.0**60, 2.0**110])
def test_mse_finds_the_same_clip_at_any_scale(scale: float) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 2000)).astype(np.float32)
    with np.errstate(over="raise"):
        found = best_clip(rows * np.float32(scale), 4)
    np.testing.assert_array_equal(found, best_clip(rows, 4) * scale)


def test_clipping_at_four_bits_raises_the_fidelity_of_rounded_weights() -> None:
    model = b.residual_cnn(batch_norm=False)
    before = weights(decode(model))
    graph, record = clip(model, ClipWeights(bits=3))
    after = weights(graph)
    conv = next(name for name, v in before.items() if v.ndim == 4)

    def rounded(v: np.ndarray) -> np.ndarray:
        rows = v.reshape(len(v), -1)
        scale = np.abs(rows).max(axis=1, keepdims=True) / 3
        return (np.rint(rows / scale) * scale).reshape(v.shape)

    assert b.sqnr_db(before[conv], rounded(after[conv])) > b.sqnr_db(before[conv], rounded(before[conv])) + 0.5
    assert record.metrics["worst_sqnr_db"] > 10 and "SQNR" in record.details[0].what


def test_biases_and_norms_are_left_alone() -> None:
    model = b.residual_cnn()
    before, after = weights(decode(model)), weights(clip(model, ClipWeights(method="absolute", threshold=0.01))[0])
    for name, values in before.items():
        changed = not np.array_equal(values, after[name])
        assert changed == (values.ndim >= 2), name


def test_a_shared_weight_is_clipped_once_for_all_its_readers() -> None:
    model = b.shared_weight()
    graph, record = clip(model, ClipWeights(method="absolute", threshold=0.1))
    assert len(weights(graph)) == len(weights(decode(model)))
    assert any("shared with" in change.what for change in record.details)
    assert all(np.abs(v).max() <= 0.1 for v in weights(graph).values() if v.ndim >= 2)


def test_a_weight_that_others_read_is_copied_before_clipping() -> None:
    w = b.normal(b.rng(0), 4, 4, scale=1.0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "fc"), helper.make_node("Add", ["h", "w"], ["y"], "add")]
    model = b.model(nodes, [b.value("x", b.FLOAT, [4, 4])], [b.value("y", b.FLOAT, [4, 4])], {"w": w})
    graph, record = clip(model, ClipWeights(method="absolute", threshold=0.2))
    x = b.normal(b.rng(1), 4, 4)
    (y,) = b.run(encode(graph), {"x": x})
    np.testing.assert_allclose(y, x @ np.clip(w, -0.2, 0.2) + w, rtol=1e-4, atol=1e-5)
    assert "copy" in record.details[0].what


def test_an_excluded_reader_of_a_shared_weight_keeps_the_original() -> None:
    model = b.shared_weight()
    graph = decode(model)
    readers = [n for n in graph.nodes if len(n.inputs) > 1 and n.constant(1) is not None]
    shared = readers[0].constant(1)
    assert shared is not None and len(shared.outputs) > 1
    pipeline = Pipeline((ClipWeights(method="absolute", threshold=0.1, exclude=(shared.outputs[0].name,)),))
    result = PassManager(pipeline).run(graph).graph
    by_name = {n.name: n for n in result.nodes}
    kept, clipped = (by_name[n.name].constant(1) for n in shared.outputs[:2])
    assert kept is not None and clipped is not None and kept is not clipped
    assert np.array_equal(kept.values, shared.values) and np.abs(clipped.values).max() <= 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_bounds_hold_in_the_weights_own_type(dtype: type) -> None:
    w = b.rng(0).standard_normal((8, 8)).astype(dtype)
    new = weights(clip(gemm(w), ClipWeights(method="absolute", threshold=0.3))[0])["w"]
    assert new.dtype == dtype and (np.abs(new.astype(np.float64)) <= 0.3).all()
    assert np.array_equal(new[np.abs(w) < 0.29], w[np.abs(w) < 0.29])


def test_bodies_are_clipped_too() -> None:
    graph, record = clip(b.if_model(), ClipWeights(method="absolute", threshold=0.05))
    assert record.changes
    inner = [c for n in graph.walk() if n not in graph.nodes for c in n.inputs if hasattr(c, "values")]
    assert all(np.abs(c.values).max() <= 0.05 for c in inner if len(c.shape) == 2)


def test_weights_with_nan_or_of_integers_are_skipped_with_the_reason() -> None:
    w = b.normal(b.rng(0), 4, 4)
    w[1, 2] = np.nan
    _, record = clip(gemm(w), ClipWeights(method="absolute", threshold=0.1))
    assert not record.changes and "NaN" in record.skips[0].why
    _, record = clip(gemm(np.ones((4, 4), np.int32)), ClipWeights(method="absolute", threshold=0.1))
    assert not record.changes and "int32" in record.skips[0].why


def test_nothing_beyond_the_bound_is_said() -> None:
    _, record = clip(gemm(0.01 * np.ones((4, 4), np.float32)), ClipWeights(method="absolute", threshold=1.0))
    assert not record.changes and "beyond 1" in record.skips[0].why


def test_all_zero_rows_are_no_trouble() -> None:
    w = b.normal(b.rng(0), 6, 4, scale=1.0)
    w[:, 2] = 0
    for item in (ClipWeights(), ClipWeights(method="sigma"), ClipWeights(method="percentile", percentile=50)):
        new = weights(clip(gemm(w), item)[0])["w"]
        assert np.isfinite(new).all() and (new[:, 2] == 0).all()


@pytest.mark.parametrize("options", [{"method": "absolute"}, {"method": "soft"}, {"method": "mse", "threshold": 1.0}])
def test_a_threshold_is_given_exactly_where_it_is_used(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="threshold"):
        ClipWeights(**options)


def test_spec_strings_round_trip_and_name_bad_options() -> None:
    text = 'clip-weights{method=absolute,threshold=0.5,per_channel=false,exclude=["head.*"]}'
    (item,) = parse_passes(text)
    assert parse_passes(str(item)) == (item,)
    with pytest.raises(UsageError):
        parse_passes("clip-weights{method=hard}")
    with pytest.raises(UsageError, match="matches no node"):
        clip(b.mlp(), ClipWeights(exclude=("nothing*",)))


def test_the_same_input_gives_the_same_bytes() -> None:
    model = b.residual_cnn(batch_norm=False)
    first, second = (encode(clip(model, ClipWeights(bits=4))[0]).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "item",
    [
        ClipWeights(),
        ClipWeights(method="percentile", percentile=90),
        ClipWeights(method="sigma", sigma=1.5, per_channel=False),
        ClipWeights(method="absolute", threshold=0.1),
    ],
    ids=lambda item: item.method,
)
def test_clipping_what_is_clipped_changes_nothing(item: ClipWeights) -> None:
    once, first = clip(b.residual_cnn(), item)
    twice, second = clip(encode(once), item)  # through a file's bytes
    assert first.changes and not second.changes
    assert all(np.array_equal(weights(twice)[name], value) for name, value in weights(once).items())
    _, third = clip(encode(once), ClipWeights(method="absolute", threshold=0.01))
    assert third.changes  # other options find their own bounds


@pytest.mark.parametrize(("method", "clipped"), [("mse", False), ("percentile", True)])
def test_rounding_bounds_are_not_asked_of_what_feeds_its_error_back(method: Any, clipped: bool) -> None:
    """What is lost in a recurrent matrix comes back at each step, which no error of the weights alone tells."""
    graph, _ = clip(coupling_nets.gru(), ClipWeights(method=method))
    before, after = weights(decode(coupling_nets.gru())), weights(graph)
    matrices = [name for name, value in before.items() if value.ndim == 3]
    assert len(matrices) == 2
    assert any(not np.array_equal(before[name], after[name]) for name in matrices) == clipped
