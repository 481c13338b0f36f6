"""How long is a training step here, and in PyTorch on the same model, batch and machine? How fast does a worker start?

    python benchmarks/training_speed.py [--torch PYTHON] [--rounds 5] [--steps 12]

PYTHON is an interpreter that has torch and onnx (`python -m venv t && t/bin/pip install torch onnx`). Both sides run in
turns, each round in processes of their own; the table has the median over the rounds of a round's median step, the best
round's, and peak memory of the process. On a machine that does other work as well, the processor time of a step on one
thread is the fairer figure. Writes results/training_speed.json and the table in docs/distillation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import keep, machine, need_assets, table, write_page

from onnxcomp.distill import engine, environment
from onnxcomp.distill.task import Feeding, Optimizer, TrainingTask
from onnxcomp.distill.trainable import prepare
from onnxcomp.graph.io import load, save
from onnxcomp.graph.ir import Variable
from onnxcomp.ops.facts import load_operators
from onnxcomp.passes.training.trainer import piece_of
from onnxcomp.runtime.machine import usable_cores

ROOT = Path(__file__).resolve().parent.parent
CASES = [("lenet5-mnist", 64), ("resnet20-cifar10", 128)]


def task(model: Path, batch: int, steps: int, threads: int) -> TrainingTask:
    """Cross-entropy on random data, AdamW on everything, no looks between."""
    prepared = prepare(load(model), load_operators(), batch=piece_of(batch, threads))
    graph, rng = prepared.graph, np.random.default_rng(0)
    rows, (source,) = prepared.batch, graph.inputs
    labels = Variable("labels", np.dtype(np.int64), (rows,))
    graph.inputs.append(labels)
    loss = Variable("loss", np.dtype(np.float32), ())
    graph.add_node(
        "SoftmaxCrossEntropyLoss", [graph.outputs[0], labels], outputs=[loss, Variable("logs", np.dtype(np.float32))]
    )
    graph.outputs = [loss]
    shape = (2 * batch, *prepared.shapes[source.name][1:])
    arrays = {
        source.name: rng.standard_normal(shape).astype(np.float32),
        "labels": rng.integers(0, 10, len(shape) and 2 * batch),
    }
    order = rng.integers(0, 2 * batch, (steps, batch))
    return TrainingTask(
        graph,
        Feeding(arrays, order, np.zeros((0, batch), np.int64)),
        prepared.trainable,
        optimizer=Optimizer(lr=1e-4),
        check_gradients=False,
        threads=threads,
    )


def theirs(python: str, model: Path, steps: int, threads: int) -> dict[str, Any]:
    """PyTorch's seconds of every step and peak memory."""
    script = Path(__file__).with_name("torch_step.py")
    done = subprocess.run(
        [python, str(script), str(model), str(steps), str(threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def starts() -> dict[str, Any]:
    """How long the environment takes in an empty cache, and a worker from nothing to the end of one step.

    The step is a small model's, the self-check aside: what is measured is the start.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        made = environment.provide(environment.CPU)
        del os.environ["XDG_CACHE_HOME"]
        small = task(need_assets() / "models" / "lenet300-100-mnist.onnx", 32, 1, 1)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            engine.train(small, runtime=made)
            seconds.append(round(time.perf_counter() - start, 2))
    row = {"name": "start", "made_seconds": made.seconds, "made_mb": round(made.size_bytes / 1e6), **machine()}
    return row | {"worker_seconds": statistics.median(seconds), "worker_slowest": max(seconds)}


def busy_seconds(source: Path, batch: int, steps: int) -> float:
    """Processor seconds a step on one thread: what more steps cost, so that the start does not count."""
    used = []
    for count in (1, 1 + steps):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        engine.train(task(source, batch, count, 1))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (used[1] - used[0]) / steps


def measure(name: str, batch: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    source, threads, steps = need_assets() / "models" / f"{name}.onnx", usable_cores(), arguments.steps
    static = folder / f"{name}.onnx"
    save(prepare(load(source), load_operators(), batch=batch).graph, static)
    ours, other = [], []
    for _ in range(arguments.rounds):
        found = engine.train(task(source, batch, steps, threads))
        ours.append((found.step_seconds, found.peak_memory_bytes))
        if arguments.torch:
            run = theirs(arguments.torch, static, steps, threads)
            other.append((statistics.median(run["seconds"][2:]), run["peak_bytes"]))
    row = {"name": name, "batch": batch, **machine()}
    row["ours"] = _summed(ours) | {"busy_ms": round(1000 * busy_seconds(source, batch, steps), 1)}
    if arguments.torch:
        alone = theirs(arguments.torch, static, steps, 1)
        busy = round(1000 * statistics.mean(alone["busy"][1:]), 1)
        row["torch"] = _summed(other) | {"busy_ms": busy, "version": alone["version"]}
    return row


def _summed(rounds: list[tuple[float, int]]) -> dict[str, float]:
    times = [seconds * 1000 for seconds, _ in rounds]
    return {
        "median_ms": round(statistics.median(times), 1),
        "best_ms": round(min(times), 1),
        "peak_mb": round(max(peak for _, peak in rounds) / 1e6),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The table: ours / PyTorch in each cell; then what comes before the first step."""
    start = next((row for row in rows if row["name"] == "start"), None)
    rows = [row for row in rows if row is not start]
    head = [
        "model",
        "batch",
        "ms a step, all cores",
        "best round",
        "ratio",
        "processor ms, one thread",
        "ratio",
        "peak MB",
    ]
    cells = []
    for row in rows:
        pairs = {key: (row["ours"][key], row.get("torch", {}).get(key, "-")) for key in row["ours"]}
        ratios = {key: f"{a / b:.2f}" if b != "-" else "-" for key, (a, b) in pairs.items()}
        both = {key: f"{a} / {b}" for key, (a, b) in pairs.items()}
        cells.append(
            [
                *(row["name"], row["batch"], both["median_ms"], both["best_ms"]),
                *(ratios["best_ms"], both["busy_ms"], ratios["busy_ms"], both["peak_mb"]),
            ]
        )
    cpu = rows[0]["cpu"]
    found = f"onnxcomp / PyTorch {rows[0].get('torch', {}).get('version', '-')}, {cpu}.\n\n{table(head, cells)}"
    if start is None:
        return found
    return (
        f"{found}\n\nThe environment was made in {start['made_seconds']:.0f} s in an empty cache, downloads included "
        f"({start['made_mb']} MB on the disk).\nA worker's first step was done {start['worker_seconds']:.2f} s after "
        f"it was asked for (median of 5; slowest {start['worker_slowest']:.2f} s)."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", default="", help="one model's name, or `start`")
    arguments = parser.parse_args()
    environment.provide()
    cases = [case for case in CASES if not arguments.only or case[0] == arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, batch, arguments, Path(folder)) for name, batch in cases]
    if arguments.only in ("", "start"):
        rows.append(starts())
    text = page(keep("training_speed", rows, "name"))
    print(text)
    write_page(ROOT / "docs" / "distillation.md", "training-speed", text)


if __name__ == "__main__":
    main()
