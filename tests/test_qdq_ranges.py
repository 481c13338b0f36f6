"""Are ranges what a plain search over all values would choose, and is memory bounded while they are found?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.graph.rounding import Levels
from onnxcomp.passes.qdq.forms import _CURVES, _sigmoid
from onnxcomp.passes.qdq.ranges import Curve, Grid, Rule, unusable
from onnxcomp.runtime.activations import Activation

UNSIGNED, SIGNED = Levels.unsigned(8), Levels.signed(8)
SHAPES = ["normal", "heavy", "relu", "negative", "skewed"]


def values_of(shape: str, count: int = 20_000) -> np.ndarray:
    random = np.random.default_rng(7)
    plain = random.standard_normal(count)
    found = {
        "normal": plain,
        "heavy": random.standard_t(3, count),
        "relu": np.maximum(plain, 0),
        "negative": -np.abs(plain) - 0.1,
        "skewed": np.exp(plain) - 0.5,
    }[shape]
    return found.astype(np.float32)


def seen(values: np.ndarray, parts: int = 7) -> Activation:
    activation = Activation()
    for part in np.array_split(values, parts):
        activation.add(part, part.size)
    activation.flush()
    return activation


def rule(method: str, *, symmetric: bool = False, percentile: float = 99.9) -> Rule:
    return Rule(method, SIGNED if symmetric else UNSIGNED, symmetric, percentile)  # type: ignore[arg-type]


def loss(grid: Grid, values: np.ndarray, curve: Curve | None = None, power: int = 2) -> float:
    """Mean error of rounding to some power, by the definition."""
    exact = values.astype(np.float64)
    levels = np.clip(np.rint(exact / grid.scale) + grid.zero, grid.levels.low, grid.levels.high)
    moved = (levels - grid.zero) * grid.scale
    if curve is not None:
        exact, moved = curve(exact), curve(moved)
    return float(np.mean(np.abs(moved - exact) ** power))


def candidates(chooser: Rule, values: np.ndarray, steps: int = 40) -> list[Grid]:
    """Grids over a net of both ends."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    ratios = np.geomspace(1, 0.1, steps)
    if chooser.symmetric:
        return [chooser.grid(-r * max(-low, high), r * max(-low, high)) for r in ratios]
    lows = low * ratios if low < 0 else [0.0]
    highs = high * ratios if high > 0 else [0.0]
    return [chooser.grid(a, b) for a in lows for b in highs]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_covers_every_value_exactly(shape: str, symmetric: bool) -> None:
    values = values_of(shape)
    grid = rule("minmax", symmetric=symmetric).choose(seen(values))
    assert grid.low <= values.min() + grid.scale / 2
    assert grid.high >= values.max() - grid.scale / 2
    assert np.abs(grid.rounded(values.astype(np.float64)) - values).max() <= grid.scale * 0.51
    widest = (
        max(-values.min(), values.max()) / 127 if symmetric else (max(values.max(), 0) - min(values.min(), 0)) / 255
    )
    np.testing.assert_allclose(grid.scale, widest, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "power"), [("mse", 2), ("l3", 3)])
def test_the_least_error_is_as_good_as_a_search_over_all_ranges(
    method: str, power: int, shape: str, symmetric: bool
) -> None:
    values = values_of(shape)
    chooser = rule(method, symmetric=symmetric)
    best = min(loss(grid, values, power=power) for grid in candidates(chooser, values))
    assert loss(chooser.choose(seen(values)), values, power=power) <= 1.03 * best


@pytest.mark.parametrize("name", ["silu", "Sigmoid", "Tanh", "Relu", "HardSwish"])
def test_mse_behind_a_function_counts_the_error_that_comes_out_of_it(name: str) -> None:
    values = 4 * values_of("heavy", 5000)
    curve: Curve = (lambda x: x * _sigmoid(x)) if name == "silu" else _CURVES["", name]
    chooser = rule("mse")
    chosen = loss(chooser.choose(seen(values), curve), values, curve)
    best = min(loss(grid, values, curve) for grid in candidates(chooser, values, steps=30))
    assert chosen <= 1.3 * best  # the bins are wide where the range is ten times that of the function's bend
    assert chosen < loss(chooser.choose(seen(values)), values, curve)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
@pytest.mark.parametrize("shape", SHAPES)
def test_percentile_leaves_out_the_share_it_says(shape: str, percentile: float) -> None:
    values = values_of(shape)
    grid = rule("percentile", percentile=percentile).choose(seen(values))
    outside = np.mean((values < grid.low - grid.scale / 2) | (values > grid.high + grid.scale / 2))
    assert outside <= (100 - percentile) / 100 + 1e-3
    tail = (100 - percentile) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    reference = Rule("minmax", UNSIGNED, False).grid(min(low, 0.0), max(high, 0.0))
    assert 0.9 < grid.scale / reference.scale < 1.1


def kl_of(grid: Grid, values: np.ndarray, bins: int) -> float:
    """The divergence of the clipped distribution from the quantized one, bin by bin in plain loops."""
    counts, edges = np.histogram(values[values != 0], bins)
    centers = (edges[:-1] + edges[1:]) / 2
    inside = [i for i in range(bins) if counts[i] and grid.low <= centers[i] <= grid.high]
    p = {i: float(counts[i]) for i in inside}
    p[inside[0]] += counts[: inside[0]].sum()
    p[inside[-1]] += counts[inside[-1] + 1 :].sum()
    levels: dict[int, list[int]] = {}
    for i in inside:
        levels.setdefault(round(centers[i] / grid.scale), []).append(i)
    q = {i: sum(counts[j] for j in held) / len(held) for held in levels.values() for i in held}
    all_p, all_q = sum(p.values()), sum(q.values())
    return sum(p[i] / all_p * math.log((p[i] / all_p) / (q[i] / all_q)) for i in inside)


@pytest.mark.parametrize("shape", ["heavy", "relu"])
def test_entropy_finds_about_the_least_divergence(shape: str) -> None:
    values = values_of(shape, 100_000)
    chooser = rule("entropy", symmetric=True)
    nets = candidates(chooser, values, steps=25)
    best = min(kl_of(grid, values, 1024) for grid in nets)
    full = kl_of(rule("minmax", symmetric=True).choose(seen(values)), values, 1024)
    chosen = kl_of(chooser.choose(seen(values)), values, 1024)
    assert chosen <= best + 0.25 * max(full - best, 0.05)


@given(
    low=st.floats(-1e4, 1e4, width=32), high=st.floats(-1e4, 1e4, width=32), symmetric=st.booleans(),
    method=st.sampled_from(["minmax", "percentile", "mse", "entropy"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_every_grid_meets_zero_and_stays_within_what_was_seen(
    low: float, high: float, symmetric: bool, method: str, seed: int
) -> None:
    low, high = min(low, high), max(low, high)
    values = np.random.default_rng(seed).uniform(low, high, 500).astype(np.float32)
    grid = rule(method, symmetric=symmetric).choose(seen(values))
    assert grid.scale > 0
    assert grid.levels.low <= grid.zero <= grid.levels.high
    assert grid.rounded(np.zeros(1))[0] == 0
    assert not symmetric or grid.zero == 0
    reach = max(abs(low), abs(high)) * 1.02 + 1e-6
    assert grid.high - grid.low <= 2 * reach + 2 * grid.scale or math.isclose(grid.scale, 1.0)


@pytest.mark.parametrize("order", [1, -1])
def test_statistics_do_not_depend_on_the_order_of_samples_and_take_bounded_memory(order: int) -> None:
    parts = [values_of("heavy", 3000) * factor for factor in (1.0, 50.0, 0.01)][::order]
    activation = Activation()
    for part in parts:
        activation.add(part, part.size)
    activation.flush()
    everything = np.concatenate(parts)
    assert (activation.minimum, activation.maximum) == (everything.min(), everything.max())
    assert activation.histogram.total == everything.size
    assert len(activation.histogram.counts) <= activation.histogram.bins
    grid = rule("mse").choose(activation)
    assert loss(grid, everything) <= 1.05 * min(loss(g, everything) for g in candidates(rule("mse"), everything))


def test_tensors_that_no_grid_fits_are_told_apart() -> None:
    outliers = np.concatenate([values_of("normal"), np.float32([-3e38])])
    chooser = rule("minmax")
    assert "outliers set its range" in unusable(seen(outliers), chooser.choose(seen(outliers)))
    assert not unusable(seen(values_of("heavy")), chooser.choose(seen(values_of("heavy"))))
    broken = np.float32([np.nan, 1.0, 2.0])
    assert "NaN or infinite" in unusable(seen(broken, 1), chooser.choose(seen(broken, 1)))
    nothing = np.full(4, np.nan, np.float32)
    assert "no finite value" in unusable(seen(nothing, 1), chooser.choose(seen(nothing, 1)))
