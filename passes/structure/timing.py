"""How long does a cut copy take, as a share of the original, and which widths do this machine's kernels like?"""

from __future__ import annotations

from onnxcomp.errors import EnvironmentLacksError
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.runtime.latency import compare
from onnxcomp.runtime.machine import instruction_sets

SECONDS = 2.0  # one comparison


def kernel_block() -> int:
    """Channels that ONNX Runtime's float convolutions compute together: 16 with AVX-512, else 8."""
    return 16 if "avx512f" in instruction_sets() else 8


def time_share(original: Graph, candidate: Graph, context: PassContext) -> float:
    """Time of a candidate as a share of the original's: from the context's cost model, else measured interleaved.

    Raises:
        EnvironmentLacksError: there is neither a cost model nor a sample to measure on.
    """
    if context.costs is not None:
        return context.costs.latency_ms(candidate) / context.costs.latency_ms(original)
    if context.calibration is None or context.target != "cpu":
        raise EnvironmentLacksError(
            "a time cannot be measured here", where="latency=", do="give calibration data, and target cpu"
        )
    feed = next(iter(context.calibration.batches(1)))
    found = compare(to_bytes(original), to_bytes(candidate), feed, seconds=SECONDS, seed=context.seed)
    return 1.0 / found.speedup
