"""Are the streamed second moments those of the rows that enter a layer? Against ONNX Runtime and float64 sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import builders as b
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Graph
from onnxcomp.layers.use import WeightUse
from onnxcomp.ops.facts import load_operators
from onnxcomp.runtime import gram as g

OPERATORS = load_operators()


@dataclass
class Feeds:
    """Samples held in memory."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        step = size or 4
        for i in range(0, len(self), step):
            yield {k: v[i : i + step] for k, v in self.arrays.items()}


def uses_of(graph: Graph) -> list[WeightUse]:
    return [WeightUse(node, w, c) for node in graph.walk() for w, c in OPERATORS.weights(node)]


def one_node(op: str, x: tuple[int, ...], w: tuple[int, ...], seed: int = 0, **attrs: Any) -> onnx.ModelProto:
    """x -> op -> y with a constant weight; for MatMul `left` puts the weight on the left."""
    left = attrs.pop("left", False)
    weight = b.normal(b.rng(seed), *w)
    inputs = ["w", "x"] if left else ["x", "w"]
    node = helper.make_node(op, inputs, ["y"], "layer", **attrs)
    return b.model([node], [b.value("x", b.FLOAT, x)], [b.value("y", b.FLOAT, None)], {"w": weight}, check=False)


def rows_of(graph: Graph, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, g.LayerInputs]:
    """All rows of the only layer [group, rows, in], and its weight as [group, out / group, in]."""
    (use,) = uses_of(graph)
    rule = g.LayerInputs.of(use)
    assert isinstance(rule, g.LayerInputs)
    patches = rule.patches(x)
    matrix = use.weight.to_matrix(use.constant.values).reshape(rule.group, -1, rule.features)
    return patches.take(np.arange(patches.count)), matrix, rule


def outputs(rule: g.LayerInputs, y: np.ndarray) -> np.ndarray:
    """A layer's output as [group, rows, out / group]."""
    patches = rule.outputs(y)
    return patches.take(np.arange(patches.count))


CASES = [
    ("Conv", (2, 3, 9, 7), (4, 3, 3, 2), {}),
    ("Conv", (2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", (2, 6, 8, 8), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ("Conv", (2, 4, 8, 8), (8, 1, 2, 2), {"group": 4}),
    ("Conv", (1, 2, 12, 11), (3, 2, 3, 3), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
    ("Conv", (1, 2, 10, 9), (3, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("Conv", (1, 2, 10, 9), (3, 2, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    ("Conv", (1, 2, 10, 9), (3, 2, 4, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    ("Conv", (3, 4, 15), (5, 4, 3), {"strides": [2], "pads": [1, 1]}),
    ("Conv", (1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"pads": [1, 0, 1, 0, 1, 0]}),
    ("ConvTranspose", (2, 3, 5, 4), (3, 4, 3, 3), {}),
    ("ConvTranspose", (2, 3, 5, 4), (3, 4, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 2]}),
    ("ConvTranspose", (2, 3, 5, 4), (3, 2, 2, 2), {"strides": [2, 2], "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ("Gemm", (6, 5), (5, 4), {}),
    ("Gemm", (5, 6), (4, 5), {"transA": 1, "transB": 1}),
    ("MatMul", (2, 3, 6, 5), (5, 4), {}),
    ("MatMul", (2, 6, 5), (1, 5, 4), {}),
    ("MatMul", (5,), (5, 4), {}),
    ("MatMul", (2, 5, 6), (4, 5), {"left": True}),
]


@pytest.mark.parametrize(("op", "x", "w", "attrs"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_rows_times_the_weight_matrix_are_what_the_layer_computes(
    op: str, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    model = one_node(op, x, w, **attrs)
    data = b.normal(b.rng(1), *x, scale=1.0)
    (y,) = b.run(model, {"x": data})
    rows, matrix, rule = rows_of(decode(model), data)
    ours = np.einsum("gri,goi->gro", rows.astype(np.float64), matrix.astype(np.float64))
    np.testing.assert_allclose(outputs(rule, y), ours, rtol=1e-4, atol=1e-5)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
    st.integers(0, 99),
)  # fmt: skip
def test_any_convolution_is_rows_times_matrix(
    group: int, per_group: int, kernel: int, stride: int, pad: int, dilation: int, seed: int
) -> None:
    x, w = (2, group * per_group, 7, 8), (group * 2, per_group, kernel, 2)
    attrs = {"group": group, "strides": [stride, 1], "pads": [pad, 0, 1, pad], "dilations": [dilation, 1]}
    model = one_node("Conv", x, w, seed, **attrs)
    data = b.normal(b.rng(seed), *x, scale=1.0)
    (y,) = b.run(model, {"x": data})
    rows, matrix, rule = rows_of(decode(model), data)
    np.testing.assert_allclose(outputs(rule, y), np.einsum("gri,goi->gro", rows, matrix), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk", [g.CHUNK_ELEMENTS, 300])
def test_moments_equal_a_float64_sum_over_all_rows(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(g, "CHUNK_ELEMENTS", chunk)
    model = one_node("Conv", ("N", 4, 9, 8), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1])  # type: ignore[arg-type]
    data = b.normal(b.rng(1), 10, 4, 9, 8, scale=1.0) + 0.5
    graph = decode(model)
    found = g.gram(graph, uses_of(graph), Feeds({"x": data}), batch=3, targets={"layer": g.Target("y")})["layer"]
    rows, _, rule = rows_of(graph, data)
    z = np.concatenate([rows, np.ones_like(rows[..., :1])], axis=2).astype(np.float64)
    y = outputs(rule, b.run(model, {"x": data})[0]).astype(np.float64)
    assert found.count == 10 * 72
    assert found.h.dtype == np.float64 and found.finite
    np.testing.assert_allclose(found.h, z.transpose(0, 2, 1) @ z / found.count, rtol=1e-5, atol=1e-6)
    assert found.cross is not None and found.power is not None
    np.testing.assert_allclose(found.cross, z.transpose(0, 2, 1) @ y / found.count, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.power, (y**2).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.mean, z.mean(axis=1)[:, :-1], rtol=1e-5)
    np.testing.assert_allclose(found.second, found.h[:, :-1, :-1])
    assert np.allclose(found.h[:, -1, -1], 1.0)


def test_least_squares_on_the_moments_gives_the_weights_back() -> None:
    model = b.residual_cnn(batch_norm=False)
    graph = decode(model)
    uses = [u for u in uses_of(graph) if u.node.op == "Conv"]
    data = b.normal(b.rng(2), 24, 3, 16, 16, scale=1.0)
    targets = {u.node.name: g.Target(u.node.outputs[0].name) for u in uses}
    found = g.gram(graph, uses, Feeds({graph.inputs[0].name: data}), targets=targets)
    for use in uses:
        moments = found[use.node.name]
        assert moments.cross is not None
        solved = np.linalg.lstsq(moments.h[0], moments.cross[0], rcond=1e-9)[0].T
        bias = use.node.constant(2)
        assert bias is not None
        np.testing.assert_allclose(solved[:, -1], bias.values, atol=2e-2)
        np.testing.assert_allclose(solved[:, :-1], use.weight.to_matrix(use.constant.values), atol=2e-2)


def test_layers_that_read_the_same_tensor_share_one_result() -> None:
    graph = decode(b.transformer())
    uses = [u for u in uses_of(graph) if not g.why_not(graph, u)]
    feed = b.transformer_feed(6)
    found = g.gram(graph, uses, Feeds(feed), batch=2)
    assert set(found) == {u.node.name for u in uses}
    by_source: dict[str, list[g.Gram]] = {}
    for use in uses:
        by_source.setdefault(use.node.inputs[0].name, []).append(found[use.node.name])
    assert any(len(same) > 1 for same in by_source.values())
    assert all(m.h is same[0].h for same in by_source.values() for m in same)


def test_groups_and_small_budgets_give_the_same_moments() -> None:
    graph = decode(b.residual_cnn(batch_norm=False))
    uses = uses_of(graph)
    samples = Feeds({graph.inputs[0].name: b.normal(b.rng(2), 9, 3, 16, 16, scale=1.0)})
    whole = g.gram(graph, uses, samples)
    tight = g.gram(graph, uses, samples, budget_bytes=1)
    parts = list(g.grams(graph, uses, samples, group_bytes=1))
    assert len(parts) == len(uses)
    joined = {name: m for part in parts for name, m in part.items()}
    for name, moments in whole.items():
        # with a small budget a run holds fewer samples, so that float32 blocks are other ones
        np.testing.assert_allclose(tight[name].h, moments.h, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(joined[name].h, moments.h, rtol=1e-6, atol=1e-9)


def test_many_positions_are_thinned_evenly_and_repeatably() -> None:
    graph = decode(one_node("Conv", ("N", 2, 30, 30), (3, 2, 3, 3)))  # type: ignore[arg-type]
    samples = Feeds({"x": b.normal(b.rng(3), 16, 2, 30, 30, scale=1.0)})
    uses = uses_of(graph)
    all_rows = g.gram(graph, uses, samples)["layer"]
    few = g.gram(graph, uses, samples, max_rows=4000)["layer"]
    again = g.gram(graph, uses, samples, max_rows=4000)["layer"]
    other = g.gram(graph, uses, samples, max_rows=4000, seed=1)["layer"]
    assert all_rows.count == 16 * 28 * 28 and few.count == 4000
    assert np.array_equal(few.h, again.h) and not np.array_equal(few.h, other.h)
    assert np.abs(few.h - all_rows.h).max() < 0.1


@given(st.integers(1, 500), st.integers(1, 500))
def test_thinning_takes_rows_in_order_one_from_each_stretch(count: int, quota: int) -> None:
    picked = g._pick(count, quota, np.random.default_rng(0))
    assert len(picked) == min(count, quota)
    assert (np.diff(picked) >= 0).all() and picked.min() >= 0 and picked.max() < count


def test_a_target_can_aim_at_the_sum_behind_the_layer() -> None:
    original, changed = decode(b.residual_cnn(batch_norm=False)), decode(b.residual_cnn(batch_norm=False))
    add = next(n for n in changed.nodes if n.op == "Add")
    side = next(t for t in add.inputs if t.producer is not None and t.producer.op == "Conv")
    shortcut = next(t for t in add.inputs if t is not side)
    conv = side.producer
    assert conv is not None
    stem = next(n for n in changed.nodes if n.op == "Conv")
    bias = stem.constant(2)
    assert bias is not None
    bias.values = bias.values + 0.25
    use = next(u for u in uses_of(changed) if u.node is conv)
    samples = Feeds({changed.inputs[0].name: b.normal(b.rng(4), 6, 3, 16, 16, scale=1.0)})
    target = g.Target(add.outputs[0].name, minus=shortcut.name)
    found = g.gram(changed, [use], samples, targets={conv.name: target}, reference=original)[conv.name]
    plain = g.gram(changed, [use], samples, targets={conv.name: g.Target(side.name)}, reference=original)[conv.name]
    assert found.cross is not None and plain.cross is not None
    mean_shift = found.cross[0, -1] - plain.cross[0, -1]  # the shortcut is larger than it was, so the aim is lower
    assert (mean_shift < 0).all()


def test_weights_that_cannot_be_measured_say_why() -> None:
    graph = decode(b.if_model())
    inside = [u for u in uses_of(graph) if u.node not in graph.nodes]
    assert inside and all("body" in g.why_not(graph, u) for u in inside)
    with pytest.raises(ValueError, match="body"):
        g.gram(graph, inside[:1], Feeds({}))
    batched = decode(one_node("MatMul", (3, 6, 5), (3, 5, 4)))
    assert "no rows" in g.why_not(batched, uses_of(batched)[0])
    grouped = decode(one_node("ConvTranspose", (1, 4, 5, 5), (4, 2, 3, 3), group=2))
    assert "groups" in g.why_not(grouped, uses_of(grouped)[0])
    same = decode(one_node("ConvTranspose", (1, 4, 5, 5), (4, 2, 3, 3), auto_pad="SAME_UPPER"))
    assert "auto_pad" in g.why_not(same, uses_of(same)[0])
    assert g.gram(graph, [], Feeds({})) == {}


def test_values_that_are_not_finite_are_told() -> None:
    graph = decode(one_node("Gemm", ("N", 5), (5, 4)))  # type: ignore[arg-type]
    data = b.normal(b.rng(0), 8, 5, scale=1.0)
    data[3, 2] = np.nan
    assert not g.gram(graph, uses_of(graph), Feeds({"x": data}))["layer"].finite


def test_half_precision_inputs_are_summed_in_float() -> None:
    weight = b.normal(b.rng(0), 5, 4).astype(np.float16)
    half = onnx.TensorProto.FLOAT16
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "layer")
    model = b.model([node], [b.value("x", half, ["N", 5])], [b.value("y", half, ["N", 4])], {"w": weight})
    graph = decode(model)
    data = (100 * b.normal(b.rng(1), 64, 5, scale=1.0)).astype(np.float16)
    found = g.gram(graph, uses_of(graph), Feeds({"x": data}))["layer"]
    np.testing.assert_allclose(found.second[0], data.astype(np.float64).T @ data.astype(np.float64) / 64, rtol=1e-5)
