"""Are weights rounded to what least error asks for, and never to pairs that could saturate?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.graph.rounding import (
    PAIR_LIMIT,
    Levels,
    Pairs,
    affine,
    clipped_pair_scales,
    clipped_scales,
    clipped_shared_scale,
    inverse_factor,
    pair_scales,
    rescaled,
    round_compensated,
    round_descended,
    round_nearest,
    round_pairs,
    symmetric_scales,
)

EIGHT, FOUR = Levels.signed(8), Levels.signed(4)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 40))


def matrix_of(shape: tuple[int, int], seed: int, *, heavy: bool = False) -> np.ndarray:
    random = np.random.default_rng(seed)
    found = random.standard_t(2, shape) if heavy else random.standard_normal(shape)
    return found.astype(np.float32)


def error(matrix: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.square(matrix - integers * scales[:, None]).sum(axis=1)


@given(shapes, st.integers(0, 99))
def test_symmetric_scales_clip_nothing_and_the_nearest_level_is_half_a_step_away(
    shape: tuple[int, int], seed: int
) -> None:
    matrix = matrix_of(shape, seed)
    scales = symmetric_scales(matrix, EIGHT)
    integers = round_nearest(matrix, scales, EIGHT)
    assert np.abs(integers.astype(int)).max(axis=1).min() == 127
    assert (np.abs(matrix - integers * scales[:, None]) <= scales[:, None] * 0.5001).all()


@given(shapes, st.booleans(), st.integers(0, 99))
def test_clipping_never_costs_and_is_as_good_as_a_fine_scan(shape: tuple[int, int], heavy: bool, seed: int) -> None:
    matrix = matrix_of(shape, seed, heavy=heavy)
    full, found = symmetric_scales(matrix, FOUR), clipped_scales(matrix, FOUR)
    mine = error(matrix, round_nearest(matrix, found, FOUR), found)
    assert (mine <= error(matrix, round_nearest(matrix, full, FOUR), full) + 1e-6).all()
    shared = clipped_shared_scale(matrix, FOUR)
    assert (shared == shared[0]).all()
    total = error(matrix, round_nearest(matrix, shared, FOUR), shared).sum()
    scan = []
    for ratio in np.linspace(1, 0.4, 25):
        scales = np.full_like(full, full.max() * ratio)
        scan.append(error(matrix, round_nearest(matrix, scales, FOUR), scales).sum())
    assert total <= min(scan) * 1.1 + 1e-6
    assert total >= mine.sum() * 0.8 - 1e-6


@given(shapes, st.booleans(), st.integers(0, 99))
def test_pairs_never_saturate_and_give_way_as_little_as_they_can(
    shape: tuple[int, int], every: bool, seed: int
) -> None:
    matrix, pairs = np.abs(matrix_of(shape, seed)), Pairs(every=every)
    scales = symmetric_scales(matrix, EIGHT)
    integers = round_pairs(matrix, scales, EIGHT, pairs)
    assert not pairs.excess(integers).any()
    left = integers[:, : shape[1] // 2 * 2 : 2].astype(int)
    right = integers[:, 1::2].astype(int)
    assert (np.abs(left + right) <= PAIR_LIMIT).all()
    if every:
        assert (np.abs(integers[:, :-1].astype(int) + integers[:, 1:]) <= PAIR_LIMIT).all()
        return
    nearest = round_nearest(matrix, scales, EIGHT).astype(int)
    excess = np.maximum(nearest[:, : shape[1] // 2 * 2 : 2] + nearest[:, 1::2] - PAIR_LIMIT, 0)
    moved = nearest[:, : shape[1] // 2 * 2] - integers[:, : shape[1] // 2 * 2]
    np.testing.assert_array_equal(moved[:, ::2] + moved[:, 1::2], excess)


@given(shapes, st.booleans(), st.integers(0, 99))
def test_pair_scales_need_no_clipping_and_the_search_between_never_costs(
    shape: tuple[int, int], every: bool, seed: int
) -> None:
    matrix, pairs = matrix_of(shape, seed), Pairs(every=every)
    wide = pair_scales(matrix, EIGHT, pairs)
    assert not pairs.excess(round_nearest(matrix, wide, EIGHT)).any()
    found = clipped_pair_scales(matrix, EIGHT, pairs)
    best = error(matrix, round_pairs(matrix, found, EIGHT, pairs), found)
    assert (best <= error(matrix, round_nearest(matrix, wide, EIGHT), wide) + 1e-6).all()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("levels", [EIGHT, FOUR], ids=["8", "4"])
def test_compensated_rounding_makes_the_error_of_outputs_smaller(levels: Levels, ordered: bool) -> None:
    random = np.random.default_rng(3)
    inputs = random.standard_normal((400, 30)) @ random.standard_normal((30, 48))
    gram, matrix = inputs.T @ inputs / len(inputs), matrix_of((16, 48), 1)
    scales = symmetric_scales(matrix, levels)

    def loss(integers: np.ndarray) -> float:
        return float(np.square(inputs @ (matrix - integers * scales[:, None]).T).sum())

    nearest = round_nearest(matrix, scales, levels)
    found = round_compensated(matrix, scales, gram, levels, ordered=ordered)
    assert loss(found) < 0.5 * loss(nearest)
    assert found.min() >= levels.low
    assert found.max() <= levels.high


@given(shapes, st.booleans(), st.integers(0, 30))
def test_compensated_rounding_keeps_pairs_safe(shape: tuple[int, int], every: bool, seed: int) -> None:
    matrix, pairs = np.abs(matrix_of(shape, seed)), Pairs(every=every)
    inputs = np.random.default_rng(seed).standard_normal((60, shape[1]))
    scales = symmetric_scales(matrix, EIGHT)
    found = round_compensated(matrix, scales, inputs.T @ inputs, EIGHT, pairs=pairs)
    assert not pairs.excess(found).any()


def output_error(matrix: np.ndarray, integers: np.ndarray, scales: np.ndarray, gram: np.ndarray) -> float:
    left = matrix - integers * scales[:, None]
    return float(np.einsum("oi,ij,oj->", left, gram, left))


@pytest.mark.parametrize("start", ["nearest", "compensated"])
@pytest.mark.parametrize("levels", [FOUR, EIGHT])
def test_descent_makes_the_error_of_outputs_smaller_still_and_ends_where_no_single_step_helps(
    levels: Levels, start: str
) -> None:
    random = np.random.default_rng(4)
    rows = random.standard_normal((400, 24)) @ random.standard_normal((24, 24))
    gram, matrix = rows.T @ rows / len(rows), matrix_of((10, 24), 5)
    scales = symmetric_scales(matrix, levels)
    plain = round_nearest(matrix, scales, levels)
    before = plain if start == "nearest" else round_compensated(matrix, scales, gram, levels, damping=0.0)
    found = round_descended(matrix, scales, before, gram, levels, damping=0.0)
    least = output_error(matrix, found, scales, gram)
    assert least < output_error(matrix, before, scales, gram)
    again = round_descended(matrix, scales, found, gram, levels, damping=0.0)
    assert output_error(matrix, again, scales, gram) <= least
    assert found.min() >= levels.low and found.max() <= levels.high


@given(shapes, st.booleans(), st.integers(0, 99))
def test_descent_keeps_pairs_safe(shape: tuple[int, int], every: bool, seed: int) -> None:
    matrix, pairs = matrix_of(shape, seed, heavy=True), Pairs(every)
    rows = matrix_of((60, shape[1]), seed + 1)
    scales = symmetric_scales(matrix, EIGHT)
    start = round_pairs(matrix, scales, EIGHT, pairs)
    gram = (rows.T @ rows / 60).astype(np.float64)
    found = round_descended(matrix, scales, start, gram, EIGHT, pairs=pairs)
    assert not pairs.excess(found).any()
    damped = gram + 0.01 * np.diagonal(gram).mean() * np.eye(len(gram))
    assert output_error(matrix, found, scales, damped) <= output_error(matrix, start, scales, damped) * (1 + 1e-9)


@pytest.mark.parametrize("gram", [np.zeros((6, 6)), np.full((6, 6), np.nan), -np.eye(6)])
def test_without_a_usable_gram_matrix_rounding_is_plain(gram: np.ndarray) -> None:
    matrix = matrix_of((3, 6), 0)
    scales = symmetric_scales(matrix, EIGHT)
    found = round_compensated(matrix, scales, gram, EIGHT)
    np.testing.assert_array_equal(found, round_nearest(matrix, scales, EIGHT))


@pytest.mark.parametrize("size", [3, 70, 200])
def test_the_factor_is_that_of_the_inverse(size: int) -> None:
    random = np.random.default_rng(size)
    rows = random.standard_normal((2 * size, size))
    gram = rows.T @ rows / len(rows)
    upper = inverse_factor(gram, 0.01)
    assert upper is not None
    damped = gram + 0.01 * np.diagonal(gram).mean() * np.eye(size)
    np.testing.assert_allclose(upper.T @ upper, np.linalg.inv(damped), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(upper, np.triu(upper))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_an_affine_grid_covers_its_range_and_holds_zero(one: float, two: float) -> None:
    low, high = min(one, two, 0.0), max(one, two, 0.0)
    scale, zero = affine(np.array([low]), np.array([high]), Levels.unsigned(8))
    assert scale[0] > 0
    assert (0 - int(zero[0])) * scale[0] <= low + scale[0] * 0.5001
    assert (255 - int(zero[0])) * scale[0] >= high - scale[0] * 0.5001


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(2, 40)), block=st.sampled_from([3, 8, 16]), seed=st.integers(0, 99)
)
def test_scales_of_blocks_solved_anew_and_descent_under_them_make_the_error_of_outputs_smaller(
    shape: tuple[int, int], block: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal(shape).astype(np.float32)
    inputs = generator.standard_normal((200, shape[1])) @ generator.standard_normal((shape[1], shape[1]))
    gram, levels = inputs.T @ inputs / 200, Levels.signed(4, narrow=False)
    blocks = -(-shape[1] // block)
    padded = np.pad(matrix, ((0, 0), (0, blocks * block - shape[1]))).reshape(shape[0], blocks, block)
    scales = (np.abs(padded).max(axis=2) / 7 + np.float32(1e-3)).astype(np.float32)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, block, axis=1)[:, : shape[1]]

    def error(values: np.ndarray, integers: np.ndarray) -> np.ndarray:
        left = matrix - integers * spread(values)
        return np.asarray(np.einsum("ij,jk,ik->i", left, gram, left))

    integers = round_compensated(matrix, spread(scales), gram, levels)
    solved = rescaled(matrix, scales, integers, gram, block, damping=0.0)
    assert solved.shape == scales.shape and (solved * scales > 0).all()
    assert (error(solved, integers) <= error(scales, integers) * (1 + 1e-4) + 1e-9).all()
    moved = round_descended(matrix, spread(solved), integers, gram, levels, damping=0.0)
    assert (error(solved, moved) <= error(solved, integers) * (1 + 1e-4) + 1e-9).all()
    assert moved.min() >= levels.low and moved.max() <= levels.high
