"""Is more held back where the same few samples judged more than one result?"""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.passes.precision.judging import margin_db

EACH = list(40 + np.random.default_rng(2).standard_normal(16))


def test_one_look_at_many_samples_is_the_normal_margin() -> None:
    many = EACH * 64
    spread = np.std(many, ddof=1) / np.sqrt(len(many))
    assert margin_db(many) == pytest.approx(1.645 * np.sqrt(2) * spread, rel=5e-3)


def test_every_further_look_and_every_sample_less_holds_back_more() -> None:
    found = [margin_db(EACH, looks) for looks in (1, 2, 3, 6)]
    assert found == sorted(set(found))
    assert margin_db(EACH[:6]) / np.std(EACH[:6], ddof=1) * np.sqrt(6) > margin_db(EACH) / np.std(EACH, ddof=1) * 4


@pytest.mark.parametrize("looks", [1, 3])
def test_nineteen_of_twenty_draws_keep_what_was_said_to_be_sure(looks: int) -> None:
    rng, kept = np.random.default_rng(looks), 0
    for _ in range(2000):
        judged = 40 + rng.standard_normal(
            (looks, 16)
        )  # as many results, all as good, of which the best-looking is taken
        sure = max(float(np.mean(each)) - margin_db(list(each), looks) for each in judged)
        kept += float(np.mean(40 + rng.standard_normal(16))) >= sure
    assert kept >= 0.95 * 2000
