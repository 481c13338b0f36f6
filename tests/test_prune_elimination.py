"""Which units stay: curves against brute force, and exchanges that only ever lower the error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.graph.ir import Array
from onnxcomp.passes.pruning.solve import Problem
from onnxcomp.passes.structure.elimination import Added, Curve, Eliminated, Exchanged, eliminate, exchange, select
from onnxcomp.runtime.gram import Gram

DAMPING = 1e-3


def problem(seed: int, units: int, each: int, outs: int) -> tuple[Problem, Array]:
    """A layer that reads `units` units of `each` correlated columns, and the columns of each unit."""
    rng = np.random.default_rng(seed)
    inputs = units * each
    x = rng.standard_normal((4 * inputs, inputs)) @ rng.standard_normal((inputs, inputs))
    z = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    moments = Gram((z.T @ z / len(z))[None], len(z))
    w, bias = rng.standard_normal((1, outs, inputs)), rng.standard_normal((1, outs))
    return Problem.of(moments, w, bias, DAMPING), rng.permutation(inputs).reshape(units, each)


def error(one: Problem, columns: Array, chosen: Array) -> float:
    """What is lost with only some units, the rest refitted, ridge included."""
    mask = np.zeros(one.old.shape, bool)
    mask[..., columns[chosen].reshape(-1)] = True
    w = one.refit(mask, one.old)
    return float((one.error(w) + one.ridge[:, None] * np.square(w - one.old).sum(axis=2)).sum())


def exchanged(one: Problem, columns: Array) -> Exchanged:
    return Exchanged(one.a[0], np.ascontiguousarray(one.r[0].T), columns, 1.0)


@pytest.mark.parametrize("each", [1, 3])
def test_what_leaves_and_what_joins_cost_what_a_refit_says(each: int) -> None:
    one, columns = problem(1, 7, each, 2)
    reader, chosen = exchanged(one, columns), np.array([0, 2, 5, 6])
    whole = error(one, columns, chosen)
    leaving = [error(one, columns, np.delete(chosen, place)) - whole for place in range(4)]
    np.testing.assert_allclose(reader.leaving(chosen), leaving, rtol=1e-6)
    joining = [whole - error(one, columns, np.append(chosen, unit)) for unit in (1, 3, 4)]
    np.testing.assert_allclose(reader.joining(chosen, np.array([1, 3, 4])), joining, rtol=1e-6)


@given(seed=st.integers(0, 1000), kept=st.integers(1, 5), each=st.integers(1, 2), two=st.booleans())
@settings(deadline=None, max_examples=25)
def test_exchange_ends_no_worse_and_says_the_true_error(seed: int, kept: int, each: int, two: bool) -> None:
    parts = [problem(seed + more, 6, each, 2) for more in range(1 + two)]
    for curve in (
        eliminate([Eliminated(*part, 1.0) for part in parts], 6, kept),
        select([Added(*part, 1.0) for part in parts], 6, kept),
    ):
        better = exchange([exchanged(*part) for part in parts], curve, kept)
        chosen = better.order[6 - kept :]
        assert sorted(better.order) == list(range(6))
        assert better.errors[6 - kept] <= curve.errors[6 - kept] + 1e-12
        whole = sum(error(*part, np.arange(6)) for part in parts)  # the ridge's; elimination counts from there
        found = sum(error(*part, chosen) for part in parts)
        assert better.errors[6 - kept] == pytest.approx(found, rel=1e-4, abs=whole + 1e-6)


def test_exchange_stops_where_no_single_exchange_is_better() -> None:
    one, columns = problem(5, 8, 1, 3)
    choices = [np.array(c) for c in itertools.combinations(range(8), 3)]
    errors = [error(one, columns, c) for c in choices]
    poor = choices[int(np.argmax(errors))]
    order = np.concatenate([np.setdiff1d(np.arange(8), poor), poor])
    start = Curve(order, np.array([0.0, *[np.inf] * 4, max(errors), *[np.inf] * 3]))
    found = exchange([exchanged(one, columns)], start, 3)
    chosen = found.order[5:]
    assert found.errors[5] == pytest.approx(error(one, columns, chosen), rel=1e-6)
    assert found.errors[5] < 0.5 * max(errors)
    near = [e for e, c in zip(errors, choices, strict=True) if len(np.intersect1d(c, chosen)) == 2]
    assert found.errors[5] <= min(near) * (1 + 1e-9)


def test_exchange_is_left_out_where_it_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    one, columns = problem(5, 8, 1, 3)
    monkeypatch.setattr("onnxcomp.passes.structure.elimination.EXCHANGE_WORK", 1.0)
    start = Curve(np.arange(8), np.array([0.0, *[np.inf] * 4, 7.0, *[np.inf] * 3]))
    found = exchange([exchanged(one, columns)], start, 3)
    assert found.order[5:].tolist() == [5, 6, 7]
    assert found.errors[5] == 7.0
