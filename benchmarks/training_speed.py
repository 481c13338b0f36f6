"""How long is a training step here, and in PyTorch on the same model, batch and machine? How fast does a worker start?

    python benchmarks/training_speed.py [--torch PYTHON] [--rounds 5] [--steps 12]

PYTHON is an interpreter that has torch and onnx (`python -m venv t && t/bin/pip install torch onnx`). Both sides run in
turns, each round in processes of their own; the table has the median over the rounds of a round's median step, the best
round's, and peak memory of the process. Writes results/training_speed.json and the table in docs/distillation.md.
"""

from __future__ import annotations

import argparse
import json
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
from onnxcomp.graph.ops.facts import load_operators
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


def start_seconds(runtime: environment.Environment) -> float:
    """From nothing to a first trained step of a small model, the self-check aside."""
    small = task(need_assets() / "models" / "lenet300-100-mnist.onnx", 32, 1, 1)
    start = time.perf_counter()
    engine.train(small, runtime=runtime)
    return time.perf_counter() - start


def measure(name: str, batch: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    source, threads = need_assets() / "models" / f"{name}.onnx", usable_cores()
    static = folder / f"{name}.onnx"
    save(prepare(load(source), load_operators(), batch=batch).graph, static)
    ours, other = [], []
    for _ in range(arguments.rounds):
        found = engine.train(task(source, batch, arguments.steps, threads))
        ours.append((found.step_seconds, found.peak_memory_bytes))
        if arguments.torch:
            run = theirs(arguments.torch, static, arguments.steps, threads)
            other.append((statistics.median(run["seconds"][2:]), run["peak_bytes"]))
    row = {"name": name, "batch": batch, **machine(), "ours": _summed(ours)}
    return row | ({"torch": _summed(other) | {"version": run["version"]}} if other else {})


def _summed(rounds: list[tuple[float, int]]) -> dict[str, float]:
    times = [seconds * 1000 for seconds, _ in rounds]
    return {
        "median_ms": round(statistics.median(times), 1),
        "best_ms": round(min(times), 1),
        "peak_mb": round(max(peak for _, peak in rounds) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    runtime = environment.provide()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, batch, arguments, Path(folder)) for name, batch in CASES]
    rows[0]["start_seconds"] = round(min(start_seconds(runtime) for _ in range(3)), 2)
    rows[0]["environment"] = {"seconds": runtime.seconds, "mb": round(runtime.size_bytes / 1e6)}
    rows = keep("training_speed", rows, "name")
    head = ["model", "batch", "ms a step", "best round", "PyTorch", "best round", "time", "peak MB", "PyTorch"]
    cells = []
    for row in rows:
        ours, other = row["ours"], row.get("torch")
        blank = {"median_ms": "-", "best_ms": "-", "peak_mb": "-"}
        ratio = f"{ours['best_ms'] / other['best_ms']:.2f}" if other else "-"
        their = other or blank
        times = ours["median_ms"], ours["best_ms"], their["median_ms"], their["best_ms"]
        cells.append([row["name"], row["batch"], *times, ratio, ours["peak_mb"], their["peak_mb"]])
    text = table(head, cells)
    print(text, f"\nstart of a worker to its first step: {rows[0]['start_seconds']} s")
    write_page(ROOT / "docs" / "distillation.md", "training-speed", text)


if __name__ == "__main__":
    main()
