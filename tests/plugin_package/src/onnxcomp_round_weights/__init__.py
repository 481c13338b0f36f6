"""A pass from outside: which weights survive with fewer mantissa bits?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp import Graph, Guarantee, Outcome, Pass, PassContext, option


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Weights keep `bits` significant bits; a model file then compresses better.

    Reads float32 weights of any shape. The relative error of a weight is at most 2**-bits.
    """

    name: ClassVar[str] = "round-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    bits: int = option(8, "significant bits to keep, the leading one included", minimum=1, maximum=24)

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        outcome = Outcome()
        done = set()
        for use in self.weights(graph, context, outcome):
            weight = use.constant
            if weight.dtype != np.float32:
                outcome.skip(use.node, f"its weight is {weight.dtype}, not float32")
            elif weight not in done:
                done.add(weight)
                mantissa, exponent = np.frexp(weight.values)  # |mantissa| in [0.5, 1)
                steps = np.float32(2**self.bits)
                weight.values = np.ldexp(np.round(mantissa * steps) / steps, exponent).astype(np.float32)
                outcome.change(use.node, f"{weight.name} rounded to {self.bits} bits")
        outcome.summary = f"{len(outcome.changes)} weights rounded to {self.bits} bits"
        return outcome
