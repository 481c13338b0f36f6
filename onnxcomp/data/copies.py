"""Which samples are copies of others? Found by content, so that no verdict rests on what calibration saw."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.data.dataset import Samples
from onnxcomp.errors import DataError

MOST_BYTES = 1 << 18  # of one input of one sample; of a larger one evenly spread values are looked at
NAMED = 3
LEAST = 20  # different samples; fewer tell little


@dataclass(frozen=True)
class Evidence:
    """What of the samples that judge is evidence.

    Attributes:
        samples: those that are no copies; all of them where that leaves none, or they have to stay together.
        doubts: what to say of it, in words.
        repeated: how many of them are copies nevertheless.
    """

    samples: Samples
    doubts: tuple[str, ...] = ()
    repeated: int = 0


def evidence(judge: Samples, *seen: Samples | None, apart: bool, together: bool = False) -> Evidence:
    """Find copies, by content, of samples that were seen before.

    Args:
        judge: the samples that judge.
        seen: the samples that nothing may be judged by: those that calibrated, trained or chose.
        apart: the samples that judge come from a source of their own.
        together: leave copies among the samples: a metric needs all of them, or they are steps of sequences.

    Raises:
        DataError: a source of its own holds nothing but copies.
    """
    known = {digest for samples in seen if samples is not None for digest in digests(samples)}
    own = digests(judge)
    copied = np.repeat(np.array([digest in known for digest in own], bool), judge.batch or 1)
    different = len(set(own)) * (judge.batch or 1)
    if copied.all() and apart and different > (judge.batch or 1):
        raise DataError(
            f"all {len(judge):,} samples of --eval-data are among those of --data, by content",
            where=f"{judge.source} and --data",
            do="give other samples to --eval-data, or leave it out: --data is split then",
        )
    doubts = []
    stay = together or bool(copied.all())
    if copied.any():
        names = ", ".join(judge.dataset.name_of(int(i)) for i in judge.indices[copied][:NAMED])
        more = " and others" if int(copied.sum()) > NAMED else ""
        share = "all" if copied.all() else f"{int(copied.sum()):,} of"
        out = "" if stay else ", and were left out"
        doubts.append(
            f"{share} {len(judge):,} samples that judge are copies of samples seen before ({names}{more}){out}"
        )
    if different < min(LEAST, len(judge)):
        doubts.append(f"only {different} of the {len(judge):,} samples that judge differ from one another")
    kept = judge if stay else Samples(judge.dataset, judge.indices[~copied])
    return Evidence(kept, tuple(doubts), int(copied.sum()) if stay else 0)


def digests(samples: Samples) -> list[bytes]:
    """One digest a sample, or a batch where the model fixes it, in their order; equal ones are of equal content."""
    return [_digest(feed) for feed in samples.batches(1)]


def _digest(feed: Mapping[str, npt.NDArray[Any]]) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        values = np.ravel(feed[name])
        values = values[:: max(1, -(-values.nbytes // MOST_BYTES))]
        made.update(name.encode())
        made.update(
            repr(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes()
        )
    return made.digest()
