"""How does a latency stand in a table? One row of cells for a model, the same in bench, compare and notebooks."""

from __future__ import annotations

from onnxcomp.results import Benchmark

LATENCY = ("p50 ms", "p90 ms", "p99 ms", "speed-up (95 %)", "", "nodes on")


def latency_cells(bench: Benchmark, side: int) -> tuple[str, ...]:
    """Cells under `LATENCY`: of the model that all are compared with (side 0), or of the other (side 1)."""
    times_ms = bench.after_ms if side else bench.before_ms
    low, high = bench.speedup_interval
    ratio = (f"{bench.speedup:.2f} ({low:.2f} to {high:.2f})", bench.outcome) if side else ("1.00", "")
    nodes = bench.placement[side] if bench.placement is not None else {}
    placed = ", ".join(f"{count} {name.removesuffix('ExecutionProvider').lower()}" for name, count in nodes.items())
    return (*(f"{times_ms[key]:.3f}" for key in ("p50", "p90", "p99")), *ratio, placed)
