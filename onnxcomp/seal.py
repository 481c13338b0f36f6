"""Is a report what it was when it was written? Digests over all of it but times, which differ from run to run."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SEAL = "seal"
# what differs between two runs on the same input: sealed apart or, where it decides nothing, not at all
TIMES = frozenset({"benchmarks", "seconds", "step_seconds", "peak_memory_bytes"})
SPEED_BUDGET = "min_speedup"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A report's JSON with the digests that give away a later change of it.

    One covers all but times, so that equal builds have equal seals; each benchmark has one of its own. They find
    accidents and careless hands; who computes them anew passes, as with every file that carries no signature.
    """
    plain = [_unsealed(item) for item in content["benchmarks"]]
    benchmarks = [{**item, SEAL: _digest(item)} for item in plain]
    return {**content, "benchmarks": benchmarks, SEAL: _digest(_lasting(_unsealed(content)))}


def broken_seal(content: dict[str, Any]) -> str:
    """Which part of a report's JSON is not as it was written; empty where all is."""
    benchmarks = content.get("benchmarks") or []
    if not isinstance(benchmarks, list) or not all(isinstance(item, dict) for item in benchmarks):
        return "its latencies"
    if content.get(SEAL) != _digest(_lasting(_unsealed(content))):
        return "its contents"
    changed = any(item.get(SEAL) != _digest(_unsealed(item)) for item in benchmarks)
    return "its latencies" if changed else ""


def _unsealed(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != SEAL}


def _lasting(value: Any) -> Any:
    """JSON-ready data without times."""
    if isinstance(value, list):
        return [_lasting(item) for item in value]
    if not isinstance(value, dict):
        return value
    measured = TIMES | {"value"} if value.get("name") == SPEED_BUDGET else TIMES
    return {key: _lasting(item) for key, item in value.items() if key not in measured}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
