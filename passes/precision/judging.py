"""Does a graph keep what it must, on samples that nothing was fitted to, and how sure is that?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from onnxcomp.errors import DataError
from onnxcomp.graph.ir import Array, Graph
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.runtime.closeness import EXACT_DB, rows_of
from onnxcomp.runtime.quantiles import student

KEPT_BACK = 0.25  # of the samples: they judge, the others calibrate
LEAST, MOST = 8, 48  # samples that judge
HELD_BYTES = 64 * 2**20
CONFIDENCE = 0.95  # one-sided


class Slice:
    """Some of the samples of a source, in their order."""

    def __init__(self, source: SampleSource, start: int, stop: int) -> None:
        self._source, self._start, self._stop = source, start, stop

    @property
    def labels(self) -> np.ndarray[Any, Any] | None:
        """Of these samples."""
        labels = self._source.labels
        return None if labels is None else labels[self._start : self._stop]

    @property
    def source(self) -> str:
        """Where they come from."""
        return self._source.source

    def __len__(self) -> int:
        return self._stop - self._start

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Feeds by input name; a model that fixes its batch gets whole ones."""
        taken = 0
        for feed in self._source.batches(size):
            rows = rows_of(feed)
            low, high = max(self._start - taken, 0), min(self._stop - taken, rows)
            taken += rows
            if low >= high:
                if taken >= self._stop:
                    return
                continue
            whole = low == 0 and high == rows
            yield feed if whole else {k: v[low:high] if v.ndim and len(v) == rows else v for k, v in feed.items()}


def shared_out(samples: SampleSource) -> tuple[SampleSource, SampleSource, bool]:
    """Samples to calibrate on, samples to judge on, and whether those differ: too few are not cut.

    Raises:
        DataError: one sample, which tells nothing of what others keep.
    """
    if len(samples) < 2:
        raise DataError(
            "one sample cannot tell what others keep, so no budget can be promised",
            where="the calibration samples",
            do="give more samples: 32 or more for a tight budget",
        )
    first = next(iter(samples.batches(1)))
    step = rows_of(first)
    kept = int(min(MOST, max(LEAST, len(samples) * KEPT_BACK))) // step * step
    if not kept or len(samples) < 2 * kept:
        return samples, Slice(samples, 0, min(len(samples), MOST)), False
    at = (len(samples) - kept) // step * step
    return Slice(samples, 0, at), Slice(samples, at, at + kept), True


@dataclass(frozen=True)
class Verdict:
    """What a graph keeps.

    Attributes:
        sqnr_db: of the worst part of the outputs over all samples.
        sure_db: what as many unseen samples keep in 95 of 100 cases.
        samples: it was judged on so many.
    """

    sqnr_db: float
    sure_db: float
    samples: int


class Judge:
    """Holds graphs against a reference on samples that are held."""

    def __init__(self, reference: Graph, samples: SampleSource, context: PassContext) -> None:
        self.feeds: list[Mapping[str, Array]] = []
        held = 0
        for feed in samples.batches(1):
            self.feeds.append(feed)
            held += sum(array.nbytes for array in feed.values())
            if held >= HELD_BYTES:
                break
        self._reference = context.reference(reference, self.feeds)
        self._looks = 0

    def verdict(self, graph: Graph) -> Verdict:
        """What a graph keeps of the reference."""
        whole, each = self._reference.each_db(graph)
        self._looks += 1
        return Verdict(whole, whole - margin_db(each, self._looks), sum(self._reference.rows))


def margin_db(each: Sequence[float], looks: int = 1) -> float:
    """How much less than measured as many other samples may keep: from the spread of single samples, in dB.

    Both the samples that were measured and those to come spread about the truth, hence the root of 2. The best of
    several graphs looks better on the samples that chose it than it is, hence a share of the risk for each look
    (C. Bonferroni); few samples underrate their own spread (Student's distribution).

    Args:
        looks: graphs that these samples have judged so far, this one among them.
    """
    known = np.asarray([db for db in each if abs(db) < EXACT_DB])
    if len(known) < 2:
        return 0.0
    quantile = student(2 * (1 - CONFIDENCE) / looks, len(known) - 1)
    return float(quantile * np.sqrt(2) * known.std(ddof=1) / np.sqrt(len(known)))


def head(samples: SampleSource, feeds: int) -> list[dict[str, Array]]:
    """The first feeds."""
    return list(islice(samples.batches(1), feeds))
