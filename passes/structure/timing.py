"""How long do graphs and their nodes take here, and which widths do this machine's kernels like?"""

from __future__ import annotations

from onnxcomp.errors import EnvironmentLacksError
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import CostModel, PassContext
from onnxcomp.runtime.costs import MeasuredCosts
from onnxcomp.runtime.machine import instruction_sets
from onnxcomp.targets.table import find

BLOCKS = (8, 16)  # channels that ONNX Runtime's float convolutions compute together


def kernel_block() -> int:
    """The largest block that kernels have here: 16 with AVX-512, else 8."""
    return BLOCKS[1] if "avx512f" in instruction_sets() else BLOCKS[0]


class Clock:
    """Times as shares of one graph's, from the context's cost model, or measured here where it has none.

    Raises:
        EnvironmentLacksError: there is neither a cost model nor a sample to measure on.
    """

    def __init__(self, original: Graph, context: PassContext) -> None:
        self.costs: CostModel
        if context.costs is not None:
            self.costs = context.costs
        elif context.calibration is not None and find(context.target).timed_here:
            self.costs = MeasuredCosts(next(iter(context.calibration.batches(1))), alone=context.alone)
        else:
            raise EnvironmentLacksError(
                "a time cannot be measured here", where="latency=", do="give calibration data, and target cpu"
            )
        self.whole_ms = self.costs.latency_ms(original)

    def share(self, candidate: Graph) -> float:
        """Time of a candidate as a share of the original's."""
        return self.costs.latency_ms(candidate) / self.whole_ms

    def nodes(self, graph: Graph) -> dict[str, float]:
        """Kernel times by node name as shares of their sum; what the runtime added by itself under the empty name."""
        return self.costs.node_times_us(graph)
