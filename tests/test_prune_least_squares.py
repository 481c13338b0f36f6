"""Do the refits of pruned weights find what least squares can?"""

from __future__ import annotations

from pathlib import Path

import builders as b
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxcomp
from onnxcomp.passes.pruning.select import rounds
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.runtime.gram import Gram


def problem_of(
    seed: int, group: int = 1, outs: int = 5, width: int = 9, rows: int = 60, biased: bool = True
) -> Problem:
    g = b.rng(seed)
    x = g.standard_normal((group, rows, width)) @ g.standard_normal((width, width)) + 0.5
    z = np.concatenate([x, np.ones_like(x[..., :1])], axis=2)
    y = g.standard_normal((group, rows, outs)) + x @ g.standard_normal((width, outs))
    turned = z.transpose(0, 2, 1)
    moments = Gram(turned @ z / rows, rows, turned @ y / rows, np.square(y).mean(axis=1))
    old = g.standard_normal((group, outs, width))
    return Problem.of(moments, old, np.zeros((group, outs)) if biased else None, 1e-3)


def masks(seed: int, problem: Problem, share: float) -> np.ndarray:
    return b.rng(seed + 1).random(problem.old.shape) < share


@given(st.integers(0, 200), st.sampled_from([1, 3]), st.floats(0.0, 1.0), st.booleans())
@settings(max_examples=30)
def test_both_solvers_find_the_constrained_minimum(seed: int, group: int, share: float, biased: bool) -> None:
    problem = problem_of(seed, group, biased=biased)
    mask = masks(seed, problem, share)
    exact = problem._solve(mask)
    assert (exact[~mask] == 0).all()
    for g in range(group):
        for o in range(mask.shape[1]):
            at = np.flatnonzero(mask[g, o])
            wanted = np.linalg.solve(problem.a[g][np.ix_(at, at)], problem.r[g, o, at])
            np.testing.assert_allclose(exact[g, o, at], wanted, rtol=1e-6, atol=1e-9)
    descended = problem._descend(mask, problem.old, 200, 0.0)
    assert (descended[~mask] == 0).all()
    slack = 1e-3 * problem.power.max()
    assert (problem.error(descended) <= problem.error(exact) + slack).all()


@given(st.integers(0, 500), st.floats(0.0, 1.0), st.sampled_from([1, 2]))
@settings(max_examples=40)
def test_refit_never_raises_the_error_on_the_calibration_data(seed: int, share: float, group: int) -> None:
    problem = problem_of(seed, group)
    mask = masks(seed, problem, share)
    best = problem.best(mask, problem.refit(mask, problem.old))
    assert (problem.error(best) <= problem.error(problem.old * mask) * (1 + 1e-9) + 1e-12).all()
    assert (best[~mask] == 0).all()


def test_the_error_is_that_of_the_data() -> None:
    g = b.rng(3)
    x, y = g.standard_normal((200, 6)) + 1, g.standard_normal((200, 4))
    z = np.concatenate([x, np.ones((200, 1))], axis=1)
    moments = Gram((z.T @ z / 200)[None], 200, (z.T @ y / 200)[None], np.square(y).mean(axis=0)[None])
    w = g.standard_normal((1, 4, 6))
    free = Problem.of(moments, w, np.zeros((1, 4)), 1e-3)
    bias = free.bias(w)
    assert bias is not None
    residual = y - x @ w[0].T - bias[0]
    np.testing.assert_allclose(free.error(w)[0], np.square(residual).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-12)
    fixed = Problem.of(moments, w, None, 1e-3)
    np.testing.assert_allclose(fixed.error(w)[0], np.square(y - x @ w[0].T).mean(axis=0), rtol=1e-9)
    assert fixed.bias(w) is None


def test_without_targets_a_layer_aims_at_its_own_outputs() -> None:
    g = b.rng(4)
    x = g.standard_normal((100, 6)) + 1
    z = np.concatenate([x, np.ones((100, 1))], axis=1)
    w, bias = g.standard_normal((1, 4, 6)), g.standard_normal((1, 4))
    problem = Problem.of(Gram((z.T @ z / 100)[None], 100), w, bias, 1e-3)
    assert problem.relative_error(w) < 1e-12
    np.testing.assert_allclose(problem.bias(w), bias, atol=1e-9)
    np.testing.assert_allclose(problem.refit(np.ones(w.shape, bool), w), w, atol=1e-6)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x = b.rng(5).standard_normal((50, 6))
    x[:, 2:4] = 0
    z = np.concatenate([x, np.ones((50, 1))], axis=1)
    old = b.rng(6).standard_normal((2, 3, 6))
    h = np.stack([z.T @ z / 50, np.zeros((7, 7))])
    h[1, -1, -1] = 1
    problem = Problem.of(Gram(h, 50), old, np.zeros((2, 3)), 1e-3)
    for mask, w in rounds(problem, [18, 9], "obs"):
        assert np.isfinite(w).all() and (w[~mask] == 0).all()
    assert not mask[1].any() and not mask[0][:, 2:4].any()  # what never sees a signal goes first


def test_inputs_that_hardly_vary_about_a_large_mean_are_solved_for() -> None:
    """Their variance is lost in the rounding of float32 moments, and may come out below zero."""
    for spread in (0.0, -4.7e-7):
        mean = np.array([1.3, 1.3, 1.3, 1.0])
        h = np.outer(mean, mean)[None]
        h[:, :3, :3] += spread
        old = b.rng(6).standard_normal((1, 4, 3))
        problem = Problem.of(Gram(h, 50), old, np.zeros((1, 4)), 1e-3)
        for mask, w in rounds(problem, [8, 5], "obs"):
            assert np.isfinite(w).all() and (w[~mask] == 0).all()
            assert np.isfinite(problem.bias(w)).all()


@pytest.mark.parametrize("constant", [False, True])
def test_zeros_enough_leave_the_weights_alone(constant: bool, tmp_path: Path) -> None:
    """Sparse initializers and sparse Constant nodes stay as they are where a ratio asks for no more zeros."""
    rng, tensors = b.rng(4), []
    for i, (rows, columns) in enumerate(((64, 256), (256, 10))):
        at = np.flatnonzero(rng.random(rows * columns) < 0.1)
        name = "" if constant else f"w{i}"
        values = helper.make_tensor(name, b.FLOAT, [len(at)], rng.standard_normal(len(at)).astype(np.float32))
        tensors.append(
            helper.make_sparse_tensor(values, helper.make_tensor("", b.INT64, [len(at)], at), [rows, columns])
        )
    nodes = [helper.make_node("Constant", [], [f"w{i}"], f"k{i}", sparse_value=t) for i, t in enumerate(tensors)]
    product = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], "m0"),
        helper.make_node("MatMul", ["h", "w1"], ["y"], "m1"),
    ]
    proto = b.model(
        [*(nodes if constant else []), *product],
        [b.value("x", b.FLOAT, ["N", 64])],
        [b.value("y", b.FLOAT, ["N", 10])],
        check=False,
    )
    if not constant:
        proto.graph.sparse_initializer.extend(tensors)
    path, out = b.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx"
    data = {"x": rng.standard_normal((64, 64)).astype(np.float32)}
    report = onnxcomp.optimize(path, data=data, passes="prune-weights{ratio=0.5}", output=out, bench=False)
    assert report.exit_code == 13 and not out.exists()
    report = onnxcomp.optimize(path, data=data, passes="prune-weights{ratio=0.95}", output=out, bench=False)
    assert report.verdict == "accepted" and report.after.bytes < report.before.bytes
    report = onnxcomp.optimize(path, data=data, passes="convert-float16", output=out, bench=False)
    assert report.verdict == "accepted" and report.after.bytes < report.before.bytes
