"""Are the items that stay fine the ones that cost least to keep, within what is allowed?"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from onnxcomp.passes.assigning.finer import finer


def test_the_fewest_bytes_keep_what_is_allowed() -> None:
    # greedy by noise for its bytes would take the first, which is not enough, and then the second
    assert finer([5.0, 9.0, 0.5], [1.0, 3.0, 1.0], allowed=6.0) == {1}


def test_what_fits_the_room_leaves_the_least_noise() -> None:
    assert finer([6.0, 5.0, 5.0], [3.0, 2.0, 2.0], room=4.0, allowed=0.0) == {1, 2}


def test_nothing_is_fine_where_nothing_needs_it() -> None:
    assert finer([1.0, 2.0], [1.0, 1.0], allowed=3.0) == set()
    assert finer([1.0, 2.0], [1.0, 1.0], room=0.0, allowed=0.0) == set()
    assert finer([], []) == set()


@pytest.mark.parametrize("seed", range(12))
def test_it_is_near_the_best_of_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise, more = rng.lognormal(0, 2, 10), rng.lognormal(0, 1, 10)
    allowed = float(noise.sum() * rng.uniform(0.02, 0.5))
    found = finer(list(noise), list(more), allowed=allowed)
    subsets = (set(s) for n in range(11) for s in combinations(range(10), n))
    least = min(sum(more[i] for i in s) for s in subsets if noise.sum() - sum(noise[i] for i in s) <= allowed)
    assert noise.sum() - sum(noise[i] for i in found) <= allowed + 1e-9
    assert sum(more[i] for i in found) <= 1.1 * least
    assert math.isfinite(least)
