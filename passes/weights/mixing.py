"""Which weights cost the outputs most when they have few bits? Those take 8, as far as the bytes allow.

Every weight is rounded alone, in a session to which the weights are fed; what arrives at the outputs for each byte
that 8 bits would take more is the order in which weights get them. In transformers value projections and the last
layers cost some thirty times what a query projection of the first layer costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.passes.assigning.finer import finer
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
        notes: what the user should know.
    """

    wider: dict[Constant, Plan]
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
        return Mixed({})
    rounded = {plan.constant: decode(plan) for plan in items}
    found = costliest(graph, rounded, more, room, context, least_db=least_db)
    wider = {constant: wide[constant] for constant in found.constants}
    apart = "" if context.calibration is not None else ", on made-up inputs"
    told = f"{len(wider)} of {len(narrow)} weights take 8 bits: they cost the outputs most{apart}"
    return Mixed(wider, (found.why_not,) if found.why_not else (told,) if wider else ())


@dataclass(frozen=True)
class Costliest:
    """The weights that cost the outputs most; empty, with the reason, where that could not be told."""

    constants: tuple[Constant, ...] = ()
    why_not: str = ""


def costliest(
    graph: Graph,
    rounded: Mapping[Constant, Array],
    more: Mapping[Constant, int],
    room: float,
    context: PassContext,
    *,
    least_db: float,
) -> Costliest:
    """The weights that are better left as they are, those first that cost the outputs most for their bytes.

    Args:
        rounded: what each weight is in few bits.
        more: bytes that it takes beyond that in more bits.
        room: bytes that there are for it.
        least_db: what the outputs shall keep; no more weights than that takes.
    """
    feeds = _samples(context)
    if not feeds or sum(constant.nbytes for constant in rounded) > MOST_BYTES:
        why = "there are no samples to run on" if not feeds else "they are too large to be held in memory twice"
        return Costliest(why_not=f"which weights need 8 bits was not looked for: {why}")
    items = [constant for constant, values in rounded.items() if np.isfinite(values).all()]
    trials = Trials(graph, items, feeds, context.sessions)

    def noise(constants: Sequence[Constant]) -> float:
        return trials.noise({constant: rounded[constant] for constant in constants}, len(feeds))

    allowed, total = 10 ** (-least_db / 10), noise(items)
    if total <= allowed or not np.isfinite(total):
        return Costliest()
    groups = costly_first(items, noise, lambda constant: max(more[constant], 1), looks=LOOKS)
    scale = total / max(sum(group.noise for group in groups), 1e-30)  # single errors add up to about the whole
    cost = [sum(more[constant] for constant in group.items) for group in groups]
    places = finer([group.noise * scale for group in groups], cost, room=room, allowed=allowed)
    found = [constant for place in sorted(places) for constant in groups[place].items]
    return Costliest(tuple(found))


def _samples(context: PassContext) -> list[dict[str, np.ndarray[Any, Any]]]:
    source: SampleSource | None = context.calibration if context.calibration is not None else context.probes
    return [] if source is None else list(islice(source.batches(BATCH), BATCHES))
