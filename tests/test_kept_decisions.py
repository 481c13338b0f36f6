"""How is a share of decisions kept read where it is of few? What one of them alone brings is told of none."""

from __future__ import annotations

import pytest

from onnxcomp.results import Agreement, Fidelity, OutputFidelity
from onnxcomp.work.judging import Kept


def kept(value: float, decisions: int | None, *, samples: int = 128, doubts: tuple[str, ...] = ()) -> Kept | None:
    found = Agreement("boxes", ("y",), "boxes matched", value, samples, doubts=doubts, decisions=decisions)
    return Kept.of(Fidelity(samples, "data", {"y": OutputFidelity(False, 20.0, 0.1)}, (found,)))


@pytest.mark.parametrize(
    ("value", "decisions", "read"),
    [
        (2 * 34 / 70, 35, 1.0),  # one box of 35 has another class
        (2 * 35 / 71, 35, 1.0),  # one box more
        (2 * 33 / 70, 35, 2 * 33 / 70 + 1 / 35),  # two of them: what is missed beyond one
        (0.985, 200, 0.985),  # a point is two decisions: nothing is chance
        (0.985, None, 0.985),  # a cosine is no count
        (47 / 48, 48, 47 / 48),  # one text of as many samples is another
    ],
)
def test_one_decision_of_few_is_no_loss(value: float, decisions: int | None, read: float) -> None:
    found = kept(value, decisions, samples=48 if decisions == 48 else 128)
    assert found is not None and found.value == value
    assert found.roughly == pytest.approx(read)


def test_decisions_are_seen_on_no_more_than_samples_or_boxes() -> None:
    for decisions, seen in ((35, 35), (9000, 128), (None, 128)):
        found = kept(0.98, decisions)
        assert found is not None and found.seen == seen


def test_what_the_samples_do_not_tell_is_not_told() -> None:
    assert kept(0.98, 4, doubts=("the original finds 4 boxes",)) is None
