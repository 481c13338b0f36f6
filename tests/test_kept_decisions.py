"""How is a share of decisions kept read where it is of few? What one of them alone brings is told of none."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.results import Agreement, Fidelity, OutputFidelity
from onnxcomp.verify.tasks.decisions import Classes
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


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(("whole", "least", "most"), [(False, 2000, 4000), (True, 40, 130)])
def test_places_are_evidence_as_far_as_samples_differ_by_chance(
    whole: bool, least: int, most: int, time_first: bool
) -> None:
    """Where each place changes by itself, nearly each one counts; where all places of a sample do, samples count."""
    random = np.random.default_rng(3)
    names = random.integers(0, 9, (80, 50))
    flip = np.repeat(random.random((80, 1)) < 0.1, 50, axis=1) if whole else random.random((80, 50)) < 0.1
    before, after = (np.eye(9, dtype=np.float32)[part] for part in (names, np.where(flip, (names + 1) % 9, names)))
    measure = Classes("tokens", "y")
    for start in (0, 16, 48):
        end = {0: 16, 16: 48, 48: 80}[start]
        batch = [part[start:end].transpose(1, 0, 2) if time_first else part[start:end] for part in (before, after)]
        measure.add({"y": batch[0]}, {"y": batch[1]}, end - start)
    found = measure.result()
    assert found.value == pytest.approx(1 - flip.mean()) and found.decisions == 4000
    assert found.evidence == found.seen and least <= found.seen <= most


def test_what_never_changes_or_was_seen_on_few_samples_says_nothing_of_its_spread() -> None:
    scores = np.eye(9, dtype=np.float32)[np.random.default_rng(0).integers(0, 9, (40, 50))]
    same, few = Classes("tokens", "y"), Classes("tokens", "y")
    same.add({"y": scores}, {"y": scores}, 40)
    few.add({"y": scores[:8]}, {"y": np.roll(scores[:8], 1, axis=1)}, 8)
    assert (same.result().evidence, same.result().seen) == (None, 40)
    assert (few.result().evidence, few.result().seen) == (None, 8)


def test_what_the_samples_do_not_tell_is_not_told() -> None:
    assert kept(0.98, 4, doubts=("the original finds 4 boxes",)) is None
