"""Have enough samples judged? Asked at fixed looks: yes, once each limit lies outside what its figure may come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.data.dataset import FeedReader, Samples
from onnxcomp.ordered import Certainty
from onnxcomp.results import Accuracy, Fidelity
from onnxcomp.runtime.closeness import sqnr_db
from onnxcomp.runtime.quantiles import student

CONFIDENCE = 0.95  # of each interval, at all looks together
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the samples: when it is asked
LEAST_SEEN = 96  # samples before it is asked for the first time
SECTIONS = 8  # that the samples of the first look are divided into; later ones have sections of the same size
MOST_NOISE = 1e3  # times the signal: what is worse is not told apart

Interval = tuple[float, float]


@dataclass(frozen=True)
class Limits:
    """What the figures of a judgement are held to. It may end early where all of them are decided.

    Attributes:
        sqnr_db, agreement, drop: limits to the figures of these names; none where nothing depends on one.
        seed: of the order in which samples are seen.
    """

    sqnr_db: tuple[float, ...] = ()
    agreement: tuple[float, ...] = ()
    drop: tuple[float, ...] = ()
    seed: int = 0

    def decided(self, fidelity: Fidelity, found: Certainty, *, metric: bool) -> bool:
        """Whether every limit lies outside the interval of its figure.

        A figure that cannot be told yet decides nothing; where no output tells of decisions, or there is no metric, no
        limit to that counts.
        """
        counted = any(agreement.kind != "state" for agreement in fidelity.agreements)
        held = [
            (self.sqnr_db, found.sqnr_db),
            (self.agreement if counted else (), found.agreement),
            (self.drop if metric else (), found.drop),
        ]
        return all(
            interval is not None and not interval[0] <= limit <= interval[1]
            for limits, interval in held
            for limit in limits
        )


@dataclass(frozen=True)
class Look:
    """Samples that are added before it is asked again.

    Attributes:
        samples: in the order of the source.
        sections: as many as they are divided into.
        rows: most samples of a batch, so that no section goes empty.
        level: the chance of error that this look may spend, of all that `CONFIDENCE` leaves.
    """

    samples: Samples
    sections: int
    rows: int
    level: float


def looks(samples: Samples, seed: int) -> list[Look]:
    """The samples, divided at random into what each look adds; one look where they are too few to end early.

    The chance of error is spent on the looks by the function of Lan and DeMets (1983, Biometrika 70, 659-663) that
    stands for Pocock's boundaries, and each look uses only its own part: by the union bound the intervals of all looks
    hold together, whatever depends on what.
    """
    batch = samples.batch or 1
    units = len(samples) // batch
    counts = [math.ceil(units * share) for share in SHARES]
    counts = [n for n in counts if n * batch >= LEAST_SEEN and n >= SECTIONS]
    apart = samples.starts is None and not isinstance(samples.dataset.reader, FeedReader)  # feeds may hold any number
    if len(counts) < 2 or not apart:
        return [Look(samples, 1, len(samples), 1 - CONFIDENCE)]
    order = np.random.default_rng(seed).permutation(units)
    found, seen, spent = [], 0, 0.0
    for count in counts:
        added = np.sort(order[seen:count])
        places = (added[:, None] * batch + np.arange(batch)).reshape(-1)
        due = (1 - CONFIDENCE) * math.log(1 + (math.e - 1) * count / units)
        sections = max(1, round(SECTIONS * len(added) / counts[0]))
        part = Samples(samples.dataset, samples.indices[places])
        found.append(Look(part, sections, max(1, len(part) // sections), due - spent))
        seen, spent = count, due
    return found


def certainty(
    whole: Fidelity, sections: Sequence[Fidelity], drop: Interval | None, level: float, *, of: int, look: int
) -> Certainty:
    """The intervals of a judgement's figures, from how sections of the samples differ.

    A figure of all samples is no mean over them: SQNR is a ratio of sums of the worst part, F1 one of counts. What
    single sections come to spreads about it as the figure itself would over other samples, times the root of their
    number (sectioning; Asmussen and Glynn 2007, Stochastic Simulation, III.5). Where a figure counts equal decisions,
    one more sample than was seen counts as changed, as for a metric's drop.

    Args:
        whole: of all that was seen.
        sections: of disjoint parts of it, of about equal size.
        drop: the interval of the metric's drop at this level, where there is one.
        level: the chance of error of each interval.
        of, look: samples there are, and how often it was asked.
    """
    one = 1 / max(whole.samples, 1)
    counted = one if any(o.sqnr_db is None for o in whole.outputs.values()) else 0.0
    noise = _interval(_noise(whole), [_noise(section) for section in sections], level, counted)
    agreement = None
    told = [section.agreement for section in sections if section.agreement is not None]
    if whole.agreement is not None and len(told) == len(sections):
        agreement = _interval(whole.agreement, told, level, one)
    return Certainty(
        available=of,
        confidence=CONFIDENCE,
        looks=look,
        sqnr_db=None if noise is None else (sqnr_db(1.0, noise[1]), sqnr_db(1.0, max(noise[0], 0.0))),
        agreement=None if agreement is None else (max(agreement[0], 0.0), min(agreement[1], 1.0)),
        drop=drop,
    )


def in_words(fidelity: Fidelity, accuracy: Accuracy | None = None) -> str:
    """Why not all samples judged; empty where they did. `accuracy`: the metric, whose change is told."""
    found = fidelity.certainty
    if found is None or fidelity.samples >= found.available:
        return ""
    figures = []
    if found.sqnr_db is not None:
        figures.append(f"SQNR {found.sqnr_db[0]:.1f} to {found.sqnr_db[1]:.1f} dB")
    if found.agreement is not None:
        figures.append(f"agreement {found.agreement[0]:.3f} to {found.agreement[1]:.3f}")
    if found.drop is not None and accuracy is not None:
        low, high = accuracy.changes(found.drop)
        figures.append(f"{accuracy.metric} {low:+.4f} to {high:+.4f}")
    return (
        f"judged on {fidelity.samples:,} of {found.available:,} samples, enough to decide every limit "
        f"({', '.join(figures)}, with {found.confidence:.0%} confidence); --eval-samples {found.available} takes all"
    )


def _interval(value: float, sections: Sequence[float], level: float, one: float) -> Interval | None:
    """Where a figure lies; `one`: by how much one changed decision more moves it."""
    if len(sections) < SECTIONS:
        return None
    variance = float(np.square(np.asarray(sections) - value).sum()) / (len(sections) - 1) / len(sections)
    half = student(level, len(sections) - 1) * math.sqrt(variance + one**2)
    return value - half, value + half


def _noise(fidelity: Fidelity) -> float:
    """Noise over signal where that is worst; a share is never without bound, as decibels of equal outputs are."""
    worst = fidelity.worst_db
    return 0.0 if worst is None else min(float(10 ** (-worst / 10)), MOST_NOISE)
