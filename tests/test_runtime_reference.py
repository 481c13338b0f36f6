"""Is what passes measure against the measure itself, whatever they do to copies meanwhile?"""

from __future__ import annotations

from collections.abc import Iterator

import builders
import numpy as np
import pytest

from onnxcomp.graph.codec import decode
from onnxcomp.manager.base import PassContext
from onnxcomp.runtime.closeness import EXACT_DB


class Counted:
    """Feeds that tell how often they are gone through."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds, self.times = feeds, 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.times += 1
        return iter(self.feeds)


def test_the_measure_runs_once_and_others_are_held_against_it() -> None:
    proto = builders.mlp((6, 5, 4))
    graph = decode(proto)
    feeds = Counted([builders.feeds_of(proto, batch=n, seed=n) for n in (2, 3)])
    reference = PassContext().reference(graph, feeds)
    assert reference.sqnr_db(graph.clone()) == EXACT_DB
    assert reference.rows == [2, 3]
    before = feeds.times
    worse = graph.clone()
    for constant in worse.constants():
        constant.values = constant.values * np.float32(1.1)
    whole, each = reference.each_db(worse)
    assert whole == reference.sqnr_db(worse) < 30
    assert feeds.times - before == 2  # the measure's own answers are kept
    assert min(each) <= whole <= max(each) and len(each) == 2
    assert reference.noise_share(worse) == pytest.approx(10 ** (-whole / 10))


def test_feeds_are_run_as_they_come() -> None:
    """Nothing holds all batches of a source that streams them."""
    proto = builders.mlp((6, 5, 4))
    graph = decode(proto)
    answers = PassContext().reference(graph, [builders.feeds_of(proto), {"nothing": np.zeros(1)}]).answers(graph)
    assert next(answers)
