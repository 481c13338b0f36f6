"""Do integers decide as the float model does? Where not, layers that cost most stay float, as few as will do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Outcome, PassContext, SampleSource
from onnxcomp.passes.assigning.decisions import more_db
from onnxcomp.passes.qdq.learned import Learned
from onnxcomp.passes.qdq.quantizer import Quantizer
from onnxcomp.targets.base import Target

if TYPE_CHECKING:
    from onnxcomp.passes.quantize_qdq import QuantizeQdq

ROUNDS = 3  # each takes about as long as the first quantization
WORTH_LOOKING_BACK_DB = 4.0  # a smaller step leaves few layers more in float than need be


@dataclass
class Protector:
    """Quantizes one graph until its decisions hold.

    Args:
        options: of the pass; `min_sqnr` is where it begins.
        share: how often a graph decides as the original does; None where nothing can be told.
    """

    options: QuantizeQdq
    context: PassContext
    samples: SampleSource
    target: Target
    share: Callable[[Graph], float | None]

    def run(self, graph: Graph) -> Outcome:
        """Quantize in place.

        The share of decisions that change is, near the edge between two of them, as large as the noise: so many dB more
        are asked of the outputs as the share has to fall by. Where no placement holds that is faster than float, that
        one is taken which keeps most: what else there is decides for whoever compares. Where a large step led to one
        that holds, the middle of the step is tried, once: the fewer layers stay float, the faster it is.
        """
        start, learned = graph.clone(), Learned()
        first = self._quantized(graph, self.options, learned)
        kept = self.share(graph) if first.changes else None
        if kept is None or kept >= self.options.agreement:
            return first
        low, high, found = max(learned.reached_db, self.options.min_sqnr), math.inf, kept
        best, best_share = (graph, first), kept
        held: tuple[Graph, Outcome, str] | None = None
        for _ in range(ROUNDS):
            back = held is not None
            least_db = min(low + more_db(found, self.options.agreement), (low + high) / 2)
            candidate = start.clone()
            outcome = self._quantized(candidate, replace(self.options, min_sqnr=least_db), learned)
            told = self.share(candidate) if outcome.changes else None
            if told is None:  # nothing is left on integers: less is asked
                high = least_db
            elif told < self.options.agreement:
                low, found = max(least_db, learned.reached_db), told
                if told > best_share:
                    best, best_share = (candidate, outcome), told
            else:
                words = (
                    f"layers stay float until the outputs keep {least_db:.0f} dB before refinement, beyond min_sqnr: "
                    f"{told:.1%} of the decisions are the original's now, {kept:.1%} were"
                )
                held, high = (candidate, outcome, words), least_db
            if back or (held is not None and high - low <= WORTH_LOOKING_BACK_DB):
                break
        if held is not None:
            candidate, outcome, words = held
            graph.become(candidate)
            outcome.notes.append(words)
            return outcome
        chosen, outcome = best
        if chosen is not graph:
            graph.become(chosen)
        outcome.notes.append(
            f"{best_share:.1%} of the decisions are the original's; no faster placement was found that keeps "
            f"{self.options.agreement:.1%} of them"
        )
        return outcome

    def _quantized(self, graph: Graph, options: QuantizeQdq, learned: Learned) -> Outcome:
        return Quantizer(options, graph, self.context, self.samples, self.target, learned).run()
