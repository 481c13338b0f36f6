"""How is a model pruned while it trains? A little at a time, more at first and less towards the end."""

from __future__ import annotations

from collections.abc import Iterator

from onnxcomp.manager.base import Outcome, Pass
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.prune_weights import PruneWeights


def cubic(done: float) -> float:
    """Share of the pruning that is done after a share of the rounds: 1 - (1 - done)^3 (Zhu and Gupta 2017)."""
    return float(1.0 - (1.0 - done) ** 3)


def rounds(sparsity: float | None, macs: float | None, count: int) -> Iterator[tuple[float, Pass | None]]:
    """For every round its share of the training steps and what prunes before it; one round without pruning where
    neither target is given. Shares of `macs` count against the graph as it then is.
    """
    if sparsity is None and macs is None:
        yield 1.0, None
        return
    left = 1.0
    for index in range(count):
        done = cubic((index + 1) / count)
        if sparsity is not None:
            yield 1.0 / count, PruneWeights(ratio=sparsity * done)
        elif macs is not None:
            wanted = 1.0 - (1.0 - macs) * done
            yield 1.0 / count, PruneChannels(macs=wanted / left)
            left = wanted


def merge(outcome: Outcome, other: Outcome | None) -> None:
    """Enter what a pruning on the way did."""
    if other is None:
        return
    outcome.changes += other.changes
    outcome.skips += [skip for skip in other.skips if skip not in outcome.skips]
    outcome.notes += [note for note in [other.summary, *other.notes] if note and note not in outcome.notes]
    outcome.metrics |= other.metrics
