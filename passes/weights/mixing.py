"""Which weights cost the outputs most when they have few bits? Those take 8, as far as the bytes allow.

Every weight is rounded alone, in a session to which the weights are fed; what arrives at the outputs for each byte
that 8 bits would take more is the order in which weights get them. In transformers value projections and the last
layers cost some thirty times what a query projection of the first layer costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.passes.weights.plan import Plan
from onnxcomp.passes.weights.trials import Trials, costly_first

BATCH, BATCHES = 8, 2  # samples on which weights are tried
MOST_BYTES = 512 * 2**20  # of weights that are held twice, to be tried one by one
LOOKS = 96  # runs, at most, to find out which weights cost most


@dataclass(frozen=True)
class Mixed:
    """Which weights get 8 bits.

    Attributes:
        wider: their plans with 8 bits, by constant.
        alone_db: what the outputs keep when one of them alone has few bits, in dB.
        notes: what the user should know.
    """

    wider: dict[Constant, Plan]
    alone_db: dict[Constant, float]
    notes: tuple[str, ...] = ()


def mixed(
    graph: Graph,
    narrow: Sequence[Plan],
    widen: Callable[[Plan], Plan | None],
    decode: Callable[[Plan], Array],
    context: PassContext,
    *,
    least_db: float,
    average: float,
) -> Mixed:
    """Choose the weights that take 8 bits.

    Args:
        narrow: plans with few bits.
        widen: the same weight with 8 bits; None where it cannot have them.
        decode: the values that a plan gives a weight.
        least_db: what the outputs shall keep where all of them are rounded to the nearest.
        average: bits a weight that all of them together may take, scales included.
    """
    wide = {plan.constant: other for plan in narrow if (other := widen(plan)) is not None}
    items = [plan for plan in narrow if plan.constant in wide]
    room = average * sum(plan.constant.size for plan in narrow) / 8 - sum(plan.bytes for plan in narrow)
    more = {plan.constant: wide[plan.constant].bytes - plan.bytes for plan in items}
    if not items or room < min(more.values()):
        return Mixed({}, {})
    feeds = _samples(context)
    if not feeds or sum(plan.constant.nbytes for plan in items) > MOST_BYTES:
        why = "there are no samples to run on" if not feeds else "they are too large to be held in memory twice"
        return Mixed({}, {}, (f"which weights need 8 bits was not looked for: {why}",))
    rounded = {plan.constant: decode(plan) for plan in items}
    if not all(np.isfinite(values).all() for values in rounded.values()):
        items = [plan for plan in items if np.isfinite(rounded[plan.constant]).all()]
    trials = Trials(graph, [plan.constant for plan in items], feeds, context.threads)

    def noise(plans: Sequence[Plan]) -> float:
        return trials.noise({plan.constant: rounded[plan.constant] for plan in plans}, len(feeds))

    allowed, total = 10 ** (-least_db / 10), noise(items)
    if total <= allowed or not np.isfinite(total):
        return Mixed({}, {})
    groups = costly_first(items, noise, lambda plan: max(more[plan.constant], 1), looks=LOOKS)
    scale = total / max(sum(group.noise for group in groups), 1e-30)  # single errors add up to about the whole
    found, alone = {}, {}
    for group in groups:
        cost = sum(more[plan.constant] for plan in group.items)
        if total <= allowed:
            break
        if cost > room:
            continue
        room -= cost
        total -= group.noise * scale
        for plan in group.items:
            found[plan.constant] = wide[plan.constant]
            if len(group.items) == 1:
                alone[plan.constant] = -10 * float(np.log10(max(group.noise, 1e-30)))
    apart = "" if context.calibration is not None else ", on made-up inputs"
    notes = (f"{len(found)} of {len(narrow)} weights take 8 bits: they cost the outputs most{apart}",) if found else ()
    return Mixed(found, alone, notes)


def _samples(context: PassContext) -> list[dict[str, np.ndarray[Any, Any]]]:
    source: SampleSource | None = context.calibration if context.calibration is not None else context.probes
    return [] if source is None else list(islice(source.batches(BATCH), BATCHES))
