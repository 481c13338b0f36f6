"""How long does a model take to load, and how much memory? Measured in a process of its own, for each model anew.

In one process the models of a comparison share allocator, caches and whatever the first one left behind, and a peak of
memory never falls. So a child process opens the model, runs it, and says what that took beyond what it had before.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.files import scratch
from onnxcomp.results import Footprint
from onnxcomp.runtime import child
from onnxcomp.runtime.acceleration import PLAIN, Acceleration
from onnxcomp.runtime.machine import peak_memory_bytes, reset_peak_memory
from onnxcomp.runtime.session import Feeds, open_session

Model = Path | str | bytes

RUNS = 5
AGAIN, AGAIN_SECONDS = 4, 2.0  # a median of so many further openings, of fewer where they take long


def footprint(
    model: Model, feed: Feeds, *, provider: str = "cpu", threads: int = 1, acceleration: Acceleration = PLAIN
) -> Footprint:
    """Load the model in a new process and run it some times.

    Args:
        model: a file or the bytes of a model.
        feed: one array for each input.
        provider: `cpu`, `cuda`, `tensorrt` or ONNX Runtime's full name.
        threads: threads inside one operator; 0 means every usable core.
        acceleration: options of a GPU provider.

    Raises:
        OnnxcompError: as `open_session` and `Session.run`; ModelError, too, when the process dies.
    """
    with scratch("load") as folder:
        if isinstance(model, bytes):
            path = folder / "model.onnx"
            path.write_bytes(model)
        else:
            path = Path(model)
        feeds = [_stored(array, folder / f"{index}.npy") for index, array in enumerate(feed.values())]
        order = {
            "model": str(path.resolve()),
            "feed": dict(zip(feed, feeds, strict=True)),
            "provider": provider,
            "threads": threads,
            "acceleration": acceleration.to_json(),
        }
        name = "the model in memory" if isinstance(model, bytes) else str(model)
        answer = child.ask("onnxcomp.runtime.footprint", order, where=name, doing="loads the model")
    return Footprint(**answer)


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """What the child does: open, run, look at the memory; then open again to see what caches save."""
    feed = {name: _loaded(*stored) for name, stored in order["feed"].items()}
    options = {
        "provider": order["provider"],
        "threads": order["threads"],
        "acceleration": Acceleration(**order["acceleration"]),
    }
    open_session(_tiny())  # what ONNX Runtime sets up once in a process is no part of this model
    base = reset_peak_memory()
    begin = time.perf_counter()
    session = open_session(order["model"], **options)
    opened = time.perf_counter()
    session.run(feed)
    ran = time.perf_counter()
    for _ in range(RUNS - 1):
        session.run(feed)
    peak = peak_memory_bytes()
    del session
    again: list[float] = []
    while len(again) < AGAIN and sum(again) < AGAIN_SECONDS:
        start = time.perf_counter()
        open_session(order["model"], **options)
        again.append(time.perf_counter() - start)
    found = Footprint(
        load_seconds=round(opened - begin, 6),
        reload_seconds=round(float(np.median(again)), 6),
        first_run_seconds=round(ran - opened, 6),
        peak_memory_bytes=max(0, peak - base),
        process_memory_bytes=peak,
    )
    return dataclasses.asdict(found)


def _stored(array: np.ndarray[Any, Any], path: Path) -> tuple[str, str, str]:
    """A feed's array in a file; types that numpy does not know are kept by their name."""
    name = array.dtype.name
    if array.dtype.kind == "O":
        path.write_text(json.dumps([[str(item) for item in array.reshape(-1)], list(array.shape)]))
        return str(path), "object", ""
    plain = array if array.dtype.isbuiltin == 1 else np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    np.save(path, plain)
    return str(path), name, ",".join(map(str, array.shape))


def _loaded(path: str, dtype: str, shape: str) -> np.ndarray[Any, Any]:
    if dtype == "object":
        items, sizes = json.loads(Path(path).read_text())
        return np.array(items, object).reshape(sizes)
    array: np.ndarray[Any, Any] = np.load(path)
    if array.dtype.name != dtype:
        import ml_dtypes

        array = array.view(np.dtype(getattr(ml_dtypes, dtype)))
    return array.reshape([int(size) for size in shape.split(",") if size])


def _tiny() -> bytes:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    text: bytes = model.SerializeToString()
    return text


if __name__ == "__main__":
    sys.exit(child.serve(measure))
