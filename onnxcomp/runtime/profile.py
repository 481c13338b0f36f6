"""Where does a model's time go, and which kernels does ONNX Runtime really run?"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.files import scratch
from onnxcomp.runtime.session import Feeds, open_session

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

Model = Path | str | bytes

KERNEL = "_kernel_time"
# the operators whose time holds the time of nodes in their bodies
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
# above this a saved model keeps its weights in a file beside it: a protobuf message ends at 2 GB
EXTERNAL_BYTES = 1 << 20
LEAST_RUNS = 4  # the fastest quarter of which is one


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the optimised graph.

    `microseconds` is the mean over the fastest quarter of the runs of the node's own time in one run: what else runs on
    the machine only ever adds, and a mean is finer than the whole microseconds that ONNX Runtime records. For If, Loop
    and Scan the bodies' nodes are taken off.
    `types` are those of the inputs at its first call, as ONNX Runtime spells them: `float`, `uint8`, `int64`.
    """

    name: str
    op: str
    provider: str
    microseconds: float
    types: tuple[str, ...] = ()


def node_times(
    model: Model,
    feed: Feeds,
    *,
    provider: str = "cpu",
    threads: int = 1,
    runs: int = 20,
    warm_up: int = 3,
    seconds: float = math.inf,
) -> list[NodeTime]:
    """Kernel time of every node, in the order in which they first run.

    Args:
        model: a file or the bytes of a model.
        feed: one array for each input.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core.
        runs: runs that count.
        warm_up: runs before them that do not.
        seconds: after so many no further run begins, once `LEAST_RUNS` count: the kernels of a model that runs for long
            run for long, and what disturbs them is little beside that.

    Raises:
        ModelError, DataError, EnvironmentLacksError: as `open_session` and `Session.run` do.
    """
    with scratch("profile") as folder:
        prefix = folder / "run"
        session = open_session(model, provider=provider, threads=threads, profile_prefix=prefix)
        end = time.monotonic() + seconds
        for done in range(warm_up + runs):
            if done >= warm_up + LEAST_RUNS and time.monotonic() > end:
                break
            session.run(feed)
        events = json.loads(Path(session.raw.end_profiling()).read_text(encoding="utf-8"))
    return summarise(events, warm_up)


def summarise(events: Iterable[dict[str, Any]], warm_up: int = 0) -> list[NodeTime]:
    """The events of ONNX Runtime's profiler as one line a node; the first `warm_up` runs are left out."""
    runs = _runs(events)[warm_up:]
    facts: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    for number, run in enumerate(runs):
        for event, own in _own_times(run):
            name = event["name"].removesuffix(KERNEL)
            if name not in facts:
                facts[name] = event["args"]["op_name"], event["args"]["provider"], _types(event["args"])
            times[name][number] += own
    return [
        NodeTime(name, op, provider, undisturbed(times[name]), types) for name, (op, provider, types) in facts.items()
    ]


def _types(args: dict[str, Any]) -> tuple[str, ...]:
    """Element types of a call's inputs; omitted ones are not listed."""
    return tuple(kind for entry in args.get("input_type_shape", ()) for kind in entry)


def undisturbed(values: list[float]) -> float:
    """Mean of the smallest quarter of the values, at least one."""
    return float(np.sort(values)[: max(len(values) // 4, 1)].mean())


def kernels(model: Model, *, provider: str = "cpu", threads: int = 1) -> Counter[str]:
    """How often each operator stands in the graph that ONNX Runtime really runs, bodies of If, Loop and Scan included.

    Fusions show here: `NhwcFusedConv`, `QLinearConv`, `DynamicQuantizeMatMul`. The names are without their domain.

    Raises:
        ModelError: the model does not load.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    import onnx

    with scratch("kernels") as folder:
        path = folder / "optimised.onnx"
        config = {
            "session.optimized_model_external_initializers_file_name": "weights.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": str(EXTERNAL_BYTES),
        }
        open_session(model, provider=provider, threads=threads, save_optimized=path, config=config)
        graph = onnx.load(path, load_external_data=False).graph
    return Counter(node.op_type for node in _nodes(graph))


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _runs(events: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Kernel events by the `model_run` that holds them, in order of time."""
    events = list(events)
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    found = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)]
    found.sort(key=lambda e: (e["ts"], -e["dur"]))
    return [[e for e in found if start <= e["ts"] <= end] for start, end in spans]


def _own_times(run: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Each event with its duration in microseconds, less that of the events inside it."""
    own = [float(event["dur"]) for event in run]
    holders: list[int] = []
    for index, event in enumerate(run):
        while holders and event["ts"] >= run[holders[-1]]["ts"] + run[holders[-1]]["dur"]:
            holders.pop()
        if holders:
            own[holders[-1]] -= event["dur"]
        if event["args"]["op_name"] in CONTROL_FLOW:
            holders.append(index)
    return ((event, max(0.0, time)) for event, time in zip(run, own, strict=True))
