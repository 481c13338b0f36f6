"""Does prune-weights remove exactly what was asked for, and does the refit make up for it as least squares can?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders as b
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from test_prune_least_squares import problem_of

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.shapes import infer
from onnxcomp.layers.layer import Layer
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.manager.spec import parse_passes
from onnxcomp.ops.facts import load_operators
from onnxcomp.passes.prune_weights import PruneWeights
from onnxcomp.passes.pruning.allocate import Curve, allocate, magnitude_curve
from onnxcomp.passes.pruning.layers import refittable, stages, target_of
from onnxcomp.passes.pruning.select import Pattern, removed_count, smallest
from onnxcomp.results import PassRecord
from onnxcomp.runtime.gram import Target

OPERATORS = load_operators()


class Feeds:
    """Samples held in memory."""

    labels = None
    source = "memory"

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return max(len(v) for v in self.arrays.values() if v.ndim)

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        for i in range(0, len(self), size or 8):
            yield {k: v[i : i + (size or 8)] if v.ndim else v for k, v in self.arrays.items()}


def samples_for(model: onnx.ModelProto, count: int = 96, seed: int = 1) -> Feeds:
    return Feeds(**b.feeds_of(model, batch=count, seed=seed))


def prune(
    model: onnx.ModelProto | Graph, item: PruneWeights | str, data: Feeds | None = None, **context: Any
) -> tuple[Graph, PassRecord]:
    graph = model if isinstance(model, Graph) else decode(model)
    pipeline = Pipeline.parse(item) if isinstance(item, str) else Pipeline((item,))
    result = PassManager(pipeline).run(graph, PassContext(operators=OPERATORS, calibration=data, **context))
    return result.graph, result.records[0]


def kernels(graph: Graph) -> dict[str, np.ndarray]:
    """Weights with two or more dimensions, each once."""
    return {c.name: c.values for n in graph.walk() for _, c in OPERATORS.weights(n) if len(c.shape) >= 2}


def zeros(graph: Graph) -> int:
    return sum(int((v == 0).sum()) for v in kernels(graph).values())


def total(graph: Graph) -> int:
    return sum(v.size for v in kernels(graph).values())


def uses_of(graph: Graph) -> list[WeightUse]:
    return [WeightUse(n, w, c) for n in graph.walk() for w, c in OPERATORS.weights(n)]


# -- counting ----------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 1.0), st.sampled_from(["global", "layer"]), st.integers(0, 5))
@settings(max_examples=25)
def test_a_ratio_removes_exactly_its_share(ratio: float, scope: str, seed: int) -> None:
    before = decode(b.mlp((7, 11, 5), seed=seed))
    graph, record = prune(before, PruneWeights(ratio=ratio, scope=scope))  # type: ignore[arg-type]
    if scope == "global":
        assert zeros(graph) == removed_count(ratio, total(graph)) == int(record.metrics["zeros"])
    else:
        assert all((v == 0).sum() == removed_count(ratio, v.size) for v in kernels(graph).values())
    assert zeros(graph) >= ratio * total(graph) - 1e-6
    for name, values in kernels(before).items():
        new = kernels(graph)[name]
        assert np.array_equal(new[new != 0], values[new != 0])


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_share_is_never_missed_nor_exceeded_by_one(size: int, per_mille: int) -> None:
    count = removed_count(per_mille / 1000, size)
    assert per_mille * size <= 1000 * count < per_mille * size + 1000


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1e-30, 0.25, 0.5, 1.0, 3.5, 1e30]), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 40),
)
def test_the_smallest_of_all_tensors_go_and_ties_go_in_order(rows: list[list[float]], count: int) -> None:
    arrays = [np.asarray(row, np.float32) for row in rows]
    flat = np.concatenate(arrays)
    count = min(count, len(flat))
    wanted = np.ones(len(flat), bool)
    wanted[np.argsort(flat, kind="stable")[:count]] = False
    masks = smallest([lambda a=a: a for a in arrays], count)  # type: ignore[misc]
    assert np.array_equal(np.concatenate(list(masks)), wanted)


def test_global_magnitude_compares_all_tensors() -> None:
    before = decode(b.mlp((20, 30, 10)))
    graph, _ = prune(before, PruneWeights(ratio=0.6, importance="magnitude"))
    values = np.concatenate([np.abs(v).ravel() for v in kernels(before).values()])
    bound = np.sort(values)[removed_count(0.6, values.size)]
    for name, old in kernels(before).items():
        assert np.array_equal(kernels(graph)[name] != 0, np.abs(old) >= bound)


@pytest.mark.parametrize("data", [False, True])
def test_keep_leaves_that_many(data: bool) -> None:
    model = b.mlp((12, 16, 6))
    samples = samples_for(model) if data else None
    graph, _ = prune(model, PruneWeights(keep=50), samples)
    assert total(graph) - zeros(graph) == 50
    graph, _ = prune(model, PruneWeights(keep=20, scope="layer"), samples)
    assert all((v != 0).sum() == 20 for v in kernels(graph).values())
    graph, _ = prune(model, PruneWeights(keep=0), samples)
    assert zeros(graph) == total(graph)


def test_threshold_mean_scale_and_min_norm_follow_the_weights() -> None:
    before = decode(b.mlp((12, 16, 6)))
    graph, _ = prune(before, PruneWeights(threshold=0.2))
    for name, old in kernels(before).items():
        assert np.array_equal(kernels(graph)[name], np.where(np.abs(old) < 0.2, 0, old))
    graph, _ = prune(before, PruneWeights(mean_scale=0.8))
    for name, old in kernels(before).items():
        bound = 0.8 * np.abs(old.astype(np.float64)).mean()
        assert np.array_equal(kernels(graph)[name], np.where(np.abs(old) < bound, 0, old))
    norms = {name: float(np.linalg.norm(v)) for name, v in kernels(before).items()}
    between = sum(sorted(norms.values())[:2]) / 2
    graph, record = prune(before, PruneWeights(min_norm=between))
    assert {name for name, v in kernels(graph).items() if not v.any()} == {n for n, v in norms.items() if v < between}
    assert "removes none" in record.skips[0].why


def test_zeros_that_were_there_count_and_stay() -> None:
    model = b.mlp((16, 24, 8))
    sparse, _ = prune(model, PruneWeights(ratio=0.7))
    known = {name: v == 0 for name, v in kernels(sparse).items()}
    again, record = prune(sparse, PruneWeights(ratio=0.75), samples_for(model))
    assert zeros(again) == removed_count(0.75, total(again))
    assert all((v[known[name]] == 0).all() for name, v in kernels(again).items())
    assert record.metrics["zero_share_before"] == pytest.approx(0.7, abs=0.01)
    less, _ = prune(sparse, PruneWeights(ratio=0.2), samples_for(model))
    assert zeros(less) == zeros(sparse)


def test_random_is_repeatable_and_knows_nothing_of_the_weights() -> None:
    model = b.mlp((16, 24, 8))
    item = PruneWeights(ratio=0.5, importance="random", compensate=False)
    first, second, other = (kernels(prune(model, item, seed=s)[0]) for s in (0, 0, 1))
    assert all(np.array_equal(first[n], second[n]) for n in first)
    assert any(not np.array_equal(first[n], other[n]) for n in first)
    refitted, record = prune(model, PruneWeights(ratio=0.5, importance="random"), samples_for(model))
    assert zeros(refitted) == removed_count(0.5, total(refitted)) and "refitted" in record.details[0].what


# -- patterns ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 20))
@settings(max_examples=20)
def test_every_block_of_a_pattern_keeps_the_largest(keep: int, of: int, seed: int) -> None:
    keep = min(keep, of - 1)
    scores = b.rng(seed).random((3, 4 * of))
    mask = Pattern(keep, of).mask(scores)
    blocks, kept = scores.reshape(-1, of), mask.reshape(-1, of)
    assert (kept.sum(axis=1) == keep).all()
    assert (np.where(kept, blocks, np.inf).min(axis=1) >= np.where(kept, -np.inf, blocks).max(axis=1)).all()


@pytest.mark.parametrize("data", [False, True])
def test_two_of_four_run_along_the_input_channels_of_every_tap(data: bool) -> None:
    model = b.residual_cnn(batch_norm=False)
    graph, record = prune(model, "prune-weights{pattern=2:4}", samples_for(model, 32) if data else None)
    for node in graph.nodes:
        for _, constant in OPERATORS.weights(node):
            values = constant.values
            if node.op == "Conv" and values.shape[1] % 4 == 0:  # [out, in, kh, kw]
                blocks = np.moveaxis(values, 1, -1).reshape(-1, 4)
                assert ((blocks != 0).sum(axis=1) == 2).all()
            elif node.op == "Gemm":
                rows = values if node.attrs.get("transB") else values.T
                assert ((rows.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
            else:
                assert values.all()
    assert any("no multiple of 4" in skip.why for skip in record.skips)  # three colours


@pytest.mark.parametrize("pattern", ["1:2", "1:4", "4:8", "3:4"])
def test_other_patterns_hold_with_refit(pattern: str) -> None:
    keep, of = (int(p) for p in pattern.split(":"))
    model = b.mlp((16, 24, 8))
    graph, _ = prune(model, PruneWeights(pattern=pattern), samples_for(model))
    assert all(((v.reshape(-1, of) != 0).sum(axis=1) == keep).all() for v in kernels(graph).values())


def test_a_pattern_on_matmul_runs_along_k_and_leaves_tables_alone() -> None:
    model = b.transformer()
    graph, record = prune(model, PruneWeights(pattern="2:4"))
    matrices = [n.constant(1) for n in graph.nodes if n.op == "MatMul" and n.constant(1) is not None]
    assert matrices
    assert all(((c.values.T.reshape(-1, 4) != 0).sum(axis=1) <= 2).all() for c in matrices if c is not None)
    assert any("table" in skip.why for skip in record.skips)


# -- allocation --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.2, 4.0)), min_size=1, max_size=6),
    st.floats(0.0, 1.0),
)
@settings(max_examples=40)
def test_allocation_hands_out_exactly_the_budget(layers: list[tuple[int, float]], share: float) -> None:
    points = [0.6**i for i in range(1, 12)]
    curves = [Curve(size, points, [(1 - p) ** k for p in points]) for size, k in layers]
    keep = round(share * sum(c.size for c in curves))
    counts = allocate(curves, keep)
    assert sum(counts) == keep
    assert all(0 <= n <= c.size for n, c in zip(counts, curves, strict=True))


def test_allocation_spares_the_sensitive_layer() -> None:
    points = [0.6**i for i in range(1, 12)]
    tough = Curve(1000, points, [0.1 * (1 - p) ** 2 for p in points])
    tender = Curve(1000, points, [(1 - p) ** 0.5 for p in points])
    strong, weak = allocate([tender, tough], 800)
    assert strong > 2 * weak


def test_a_magnitude_curve_is_the_energy_that_goes() -> None:
    values = b.rng(0).standard_normal(1000)
    curve = magnitude_curve(values, [0.5, 0.1])
    ordered = np.sort(np.square(values))
    np.testing.assert_allclose(curve.errors, [ordered[:500].sum() / ordered.sum(), ordered[:900].sum() / ordered.sum()])


# -- refit on graphs ---------------------------------------------------------------------------------------------------


def outputs_db(model: onnx.ModelProto, graph: Graph, feeds: dict[str, np.ndarray]) -> float:
    wanted, got = b.run(model, feeds), b.run(encode(graph), feeds)
    return min(b.sqnr_db(w, g) for w, g in zip(wanted, got, strict=True))


@pytest.mark.parametrize(
    "model",
    [b.mlp((24, 32, 10)), b.mlp((24, 32, 10), trans_b=0), b.residual_cnn(batch_norm=False), b.depthwise_cnn()],
    ids=["mlp", "mlp-untransposed", "residual", "depthwise"],
)
def test_refit_keeps_more_on_samples_it_did_not_see(model: onnx.ModelProto) -> None:
    data, unseen = samples_for(model, 256), b.feeds_of(model, batch=64, seed=7)
    refitted, record = prune(model, PruneWeights(ratio=0.5, scope="layer"), data)
    plain, _ = prune(model, PruneWeights(ratio=0.5, scope="layer", compensate=False), data)
    assert zeros(refitted) == zeros(plain)
    assert outputs_db(model, refitted, unseen) > outputs_db(model, plain, unseen) + 1
    assert "refitted" in record.summary and record.metrics["worst_relative_error"] < 1


@pytest.mark.parametrize("importance", ["magnitude", "wanda", "obs"])
def test_rankings_that_look_at_the_data_beat_chance(importance: str) -> None:
    model = b.mlp((32, 40, 10))
    data = samples_for(model, 256)
    data.arrays["x"] = data.arrays["x"] * np.linspace(0.05, 2, 32, dtype=np.float32)  # inputs of unequal weight
    unseen = {"x": b.feeds_of(model, batch=64, seed=9)["x"] * np.linspace(0.05, 2, 32, dtype=np.float32)}

    def quality(importance: str) -> float:
        spec = f"prune-weights{{ratio=0.6,importance={importance},compensate=false}}"
        return outputs_db(model, prune(model, spec, data)[0], unseen)

    assert quality(importance) > quality("random") + 1
    if importance != "magnitude":
        assert quality(importance) > quality("magnitude") + 1


def test_wanda_ranks_by_weight_times_input_norm() -> None:
    model = b.mlp((10, 6))
    data = samples_for(model, 64)
    graph, _ = prune(model, PruneWeights(ratio=0.5, importance="wanda", compensate=False), data)
    (w,) = kernels(decode(model)).values()  # transB: [out, in]
    x = data.arrays["x"].astype(np.float64)
    x -= x.mean(axis=0)  # the bias takes the mean
    power = np.square(x @ w.T).mean(axis=0)[:, None]
    scores = np.square(w) * (np.square(x).mean(axis=0) + 1e-3 * np.square(x).mean()) / (power + 4 * np.median(power))
    (new,) = kernels(graph).values()
    assert scores[new == 0].max() <= scores[new != 0].min() * (1 + 1e-4)


def test_one_output_of_huge_power_does_not_hide_the_others() -> None:
    problem = problem_of(8, outs=6)
    loud = replace(problem, power=problem.power * np.array([1e6, 1, 1, 1, 1, 1]))
    weights = loud.row_weights[0]
    assert weights[0] < 1e-4 * weights[1:].min() and weights[1:].max() < 2 * weights[1:].min()


def test_alpha_and_beta_of_gemm_are_honoured() -> None:
    g = b.rng(0)
    w, c = b.normal(g, 20, 8, scale=0.5), b.normal(g, 1, 8, scale=0.5)
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], "fc", alpha=0.5, beta=2.0)
    model = b.model([node], [b.value("x", b.FLOAT, ["N", 20])], [b.value("y", b.FLOAT, ["N", 8])], {"w": w, "c": c})
    graph, record = prune(model, PruneWeights(ratio=0.1), samples_for(model, 256))
    assert record.metrics["worst_relative_error"] < 0.05
    assert outputs_db(model, graph, b.feeds_of(model, batch=32, seed=5)) > 13


def test_the_bias_behind_a_matmul_is_refitted_too() -> None:
    g = b.rng(0)
    weights = {"w": b.normal(g, 16, 12), "bias": b.normal(g, 12)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "fc"), helper.make_node("Add", ["bias", "h"], ["y"], "add")]
    model = b.model(nodes, [b.value("x", b.FLOAT, ["N", 16])], [b.value("y", b.FLOAT, ["N", 12])], weights)
    x = b.normal(b.rng(1), 256, 16, scale=1.0) + 3  # the mean of the inputs is what the bias makes up for
    graph, _ = prune(model, PruneWeights(ratio=0.6), Feeds(x=x))
    (y,) = b.run(encode(graph), {"x": x})
    (wanted,) = b.run(model, {"x": x})
    np.testing.assert_allclose(y.mean(axis=0), wanted.mean(axis=0), atol=1e-3)
    assert any(c.name == "bias" and not np.array_equal(c.values, weights["bias"]) for c in graph.constants())


def test_a_bias_that_others_share_is_made_private() -> None:
    g = b.rng(0)
    weights = {"w1": b.normal(g, 8, 8), "w2": b.normal(g, 8, 8), "c": b.normal(g, 8)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "c"], ["h"], "fc1"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w2", "c"], ["y"], "fc2"),
    ]
    model = b.model(nodes, [b.value("x", b.FLOAT, ["N", 8])], [b.value("y", b.FLOAT, ["N", 8])], weights)
    graph, _ = prune(model, PruneWeights(ratio=0.5), samples_for(model, 128))
    first, second = (node.constant(2) for node in graph.nodes if node.op == "Gemm")
    assert first is not None and second is not None and first is not second


def test_layers_behind_each_other_get_stages_of_their_own_and_siblings_share_one() -> None:
    graph = decode(b.transformer())
    layers = [found for use in uses_of(graph) if isinstance(found := refittable(graph, use), Layer)]
    batches = list(stages(graph, layers, memory=2**30))
    assert sorted(len(batch) for batch in batches)[-1] >= 3  # query, key and value read the same tensor
    assert sum(len(batch) for batch in batches) == len(layers)
    for batch in batches:
        for layer in batch:
            others = {one.node for one in batch} - {layer.node}
            assert not any(tensor.producer in others for tensor in layer.node.inputs)
    assert len(list(stages(graph, layers, memory=1))) == len(layers)
    assert len(list(stages(graph, layers, most=2, memory=2**30))) <= 2


def test_in_front_of_a_residual_add_the_sum_is_the_aim() -> None:
    graph = decode(b.residual_cnn(batch_norm=False))
    shapes = infer(graph)
    add = next(n for n in graph.nodes if n.op == "Add")
    by_node = {use.node: found for use in uses_of(graph) if isinstance(found := refittable(graph, use), Layer)}
    last = next(by_node[t.producer] for t in add.inputs if t.producer in by_node)
    shortcut = next(t for t in add.inputs if t is not last.output)
    assert target_of(graph, last, {last.node}, shapes) == Target(add.outputs[0].name, minus=shortcut.name)
    assert target_of(graph, last, set(by_node), shapes) == Target(last.output.name)  # the shortcut may still change


# -- what cannot be measured -------------------------------------------------------------------------------------------


def test_weights_in_bodies_go_by_magnitude_and_it_is_said() -> None:
    model = b.if_model()
    data = samples_for(model, 16)
    graph, record = prune(model, PruneWeights(ratio=0.5), data)
    assert zeros(graph) == removed_count(0.5, total(graph))
    inside = [c for c in record.details if "magnitude only" in c.what]
    assert inside and any("body" in c.what for c in inside)


def test_a_shared_weight_is_pruned_once_by_magnitude() -> None:
    model = b.shared_weight()
    graph, record = prune(model, PruneWeights(ratio=0.5), samples_for(model, 32))
    assert zeros(graph) == removed_count(0.5, total(graph))
    assert any("share it" in change.what for change in record.details)


def test_a_weight_that_an_excluded_node_reads_is_left_alone() -> None:
    graph = decode(b.shared_weight())
    shared = next(c for c in graph.constants() if len(c.shape) >= 2 and len(c.outputs) > 1)
    name = shared.outputs[0].name
    result, record = prune(graph, PruneWeights(ratio=0.5, exclude=(name,)))
    assert np.array_equal(kernels(result)[shared.name], shared.values)
    assert any("also read by" in skip.why for skip in record.skips)


@pytest.mark.parametrize("make", [b.loop_model, b.function_model, b.indirect_weights, b.transformer])
def test_any_graph_keeps_its_count_and_runs(make: Any) -> None:
    model = make()
    before = decode(model)
    data = samples_for(model, 8) if make is not b.transformer else Feeds(**b.transformer_feed(16))
    graph, record = prune(before, PruneWeights(ratio=0.5), data)
    if total(before):
        assert zeros(graph) == removed_count(0.5, total(graph))
    assert all(skip.why for skip in record.skips)
    feeds = b.feeds_of(model, batch=2) if make is not b.transformer else b.transformer_feed(2)
    assert all(np.isfinite(y).all() for y in b.run(encode(graph), feeds) if y.dtype.kind == "f")


def test_recurrent_weights_are_pruned_by_magnitude() -> None:
    g = b.rng(0)
    weights = {"w": b.normal(g, 1, 16, 6), "r": b.normal(g, 1, 16, 4)}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=4)
    model = b.model([node], [b.value("x", b.FLOAT, [5, "N", 6])], [b.value("y", b.FLOAT, None)], weights, check=False)
    x = b.normal(g, 5, 8, 6)
    graph, record = prune(model, PruneWeights(ratio=0.5), Feeds(x=x))
    assert zeros(graph) == removed_count(0.5, total(graph)) and "no plain product" in record.details[0].what


def test_weights_with_nan_or_of_integers_are_skipped_with_the_reason() -> None:
    model = b.mlp((6, 5, 4))
    bad = numpy_helper.to_array(model.graph.initializer[0]).copy()
    bad[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(bad, model.graph.initializer[0].name))
    _, record = prune(model, PruneWeights(ratio=0.5))
    assert record.changes == 1 and "NaN" in record.skips[0].why
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "fc")
    kind = onnx.TensorProto.INT32
    whole = b.model(
        [node], [b.value("x", kind, ["N", 4])], [b.value("y", kind, ["N", 4])], {"w": np.eye(4, dtype=np.int32)}
    )
    _, record = prune(whole, PruneWeights(ratio=0.5))
    assert not record.changes and "int32" in record.skips[0].why


def test_data_that_overflows_falls_back_to_magnitude() -> None:
    model = b.mlp((6, 5, 4))
    data = samples_for(model, 16)
    data.arrays["x"][0, 0] = 3e38
    graph, record = prune(model, PruneWeights(ratio=0.5), data)
    assert zeros(graph) == removed_count(0.5, total(graph))
    assert all("overflow" in change.what for change in record.details)
    graph, record = prune(model, PruneWeights(threshold=0.1), data)
    assert all("overflow" in change.what for change in record.details)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_refitted_in_their_own(dtype: type) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    g = b.rng(0)
    weights = {"w": b.normal(g, 16, 8).astype(dtype), "c": b.normal(g, 8).astype(dtype)}
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], "fc")
    model = b.model([node], [b.value("x", kind, ["N", 16])], [b.value("y", kind, ["N", 8])], weights)
    x = b.normal(g, 128, 16, scale=1.0).astype(dtype)
    graph, record = prune(model, PruneWeights(ratio=0.5), Feeds(x=x))
    assert {c.values.dtype for c in graph.constants()} == {np.dtype(dtype)}
    assert "refitted" in record.details[0].what and zeros(graph) == 64


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no criterion"),
        ({"ratio": 0.5, "threshold": 0.1}, "ratio and threshold"),
        ({"keep": 5, "pattern": "2:4"}, "keep and pattern"),
        ({"pattern": "4:2"}, "n:m"),
        ({"pattern": "2-4"}, "n:m"),
        ({"threshold": 0.1, "importance": "obs"}, "importance"),
        ({"pattern": "2:4", "scope": "layer"}, "scope"),
        ({"ratio": 0.0}, "above"),
        ({"ratio": 1.5}, "at most"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PruneWeights(**options)


@pytest.mark.parametrize("spec", ["compensate=true", "importance=wanda", "importance=obs,compensate=false"])
def test_missing_data_is_an_error_before_any_work(spec: str) -> None:
    with pytest.raises(DataError, match="calibration data"):
        prune(b.mlp(), f"prune-weights{{ratio=0.5,{spec}}}")


def test_without_data_it_says_what_data_would_bring() -> None:
    _, record = prune(b.mlp(), "prune-weights{ratio=0.5}")
    assert "not refitted" in record.summary and any("--data" in note for note in record.notes)


def test_a_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="matches no node"):
        prune(b.mlp(), PruneWeights(ratio=0.5, exclude=("stem*",)))


def test_excluded_weights_are_not_counted() -> None:
    model = b.mlp((12, 16, 6))
    graph, record = prune(model, PruneWeights(ratio=0.5, exclude=("fc2",)))
    new = kernels(graph)
    assert new["fc2.weight"].all() and (new["fc1.weight"] == 0).sum() == removed_count(0.5, new["fc1.weight"].size)
    assert any(skip.node == "fc2" for skip in record.skips)


def test_spec_strings_round_trip() -> None:
    for text in ("prune-weights{pattern=2:4}", "prune-weights{ratio=0.9,compensate=true,scope=layer,importance=wanda}"):
        (item,) = parse_passes(text)
        assert parse_passes(str(item)) == (item,)


def test_the_same_input_gives_the_same_bytes() -> None:
    model = b.residual_cnn(batch_norm=False)
    graphs = [prune(model, PruneWeights(ratio=0.7), samples_for(model, 48))[0] for _ in range(2)]
    assert encode(graphs[0]).SerializeToString() == encode(graphs[1]).SerializeToString()


# -- real models -------------------------------------------------------------------------------------------------------


def test_the_digits_model_keeps_its_accuracy_at_eighty_percent_zeros(
    digits: Path, digits_data: tuple[Path, Path]
) -> None:
    graph = io.load(digits)
    train, test = (np.load(path) for path in digits_data)
    images, judged = ((part["images"][:, None] / 255).astype(np.float32) for part in (train, test))
    pruned, record = prune(graph, "prune-weights{ratio=0.8}", Feeds(image=images[:512]))
    assert record.metrics["zero_share"] >= 0.8

    def top1(model: Graph) -> float:
        (logits,) = b.run(encode(model), {"image": judged})
        return float((logits.argmax(axis=1) == test["labels"]).mean())

    assert top1(pruned) >= top1(graph) - 0.01


@pytest.mark.parametrize(("ratio", "wanted"), [(0.9, 0.992), (0.95, 0.990), (0.98, 0.985)])
def test_lenet5_targets(assets: Path, ratio: float, wanted: float) -> None:
    graph = io.load(assets / "models" / "lenet5-mnist.onnx")
    train, test = (np.load(assets / "data" / f"mnist-{part}.npz") for part in ("train", "test"))
    images = (train["images"][:1024, None] / 255).astype(np.float32)
    pruned, record = prune(graph, f"prune-weights{{ratio={ratio}}}", Feeds(input=images))
    assert record.metrics["zero_share"] >= ratio and zeros(pruned) >= ratio * total(pruned)
    (logits,) = b.run(encode(pruned), {"input": (test["images"][:, None] / 255).astype(np.float32)})
    assert float((logits.argmax(axis=1) == test["labels"]).mean()) >= wanted
