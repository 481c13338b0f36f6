"""How often does `compare` call a model changed against itself, and how often does it see one that is 10 % slower?

    python benchmarks/latency_noise.py [RUNS] [MODEL.onnx ...]

Prints a Markdown table and writes it to docs/measured.md. The slower model is built here: 22 equal layers against 20,
whose fixed cost is small. Run it with other work on the machine too: that is what the figures are for.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import ROOT, machine, write_page
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data.inputs import inputs_of
from onnxcomp.data.synthetic import random_data
from onnxcomp.runtime.latency import compare
from onnxcomp.runtime.session import Feeds

Model = Path | bytes
SIZE = 128


def chain(layers: int, size: int) -> bytes:
    """x [N, size] -> (MatMul, Tanh) * layers -> y."""
    rng = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for i in range(layers):
        weight = (rng.standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [current, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i}"]))
        current = f"t{i}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in ("x", current)]
    nodes.append(helper.make_node("Identity", [current], ["y"]))
    values[1].name = "y"
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def row(name: str, before: Model, after: Model, feed: Feeds, runs: int) -> str:
    """One line of the table."""
    outcomes: Counter[str] = Counter()
    logs, halves = [], []
    start = time.perf_counter()
    for seed in range(runs):
        found = compare(before, after, feed, seed=seed)
        low, high = found.speedup_interval
        outcomes[found.outcome] += 1
        logs.append(np.log(found.speedup))
        halves.append(np.log(high / low) / 2)
    seconds = (time.perf_counter() - start) / runs
    counts = " | ".join(str(outcomes[key]) for key in ("no change", "faster", "slower"))
    spread = f"{np.mean(logs):+.2%} | {np.std(logs):.2%} | {np.median(halves):.2%} | {seconds:.1f} s"
    return f"| {name} | {runs} | {counts} | {spread} |"


def main(runs: int, models: list[Path]) -> None:
    """Measure, print line by line, write the table."""
    head = ["pair", "runs", "no change", "faster", "slower", "mean", "spread", "half width", "each"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print("\n".join(lines), flush=True)
    feed = {"x": np.random.default_rng(1).standard_normal((4, SIZE)).astype(np.float32)}
    base = chain(20, SIZE)
    pairs = [
        (f"20 layers of {SIZE}, itself", base, base, feed),
        (f"20 layers of {SIZE}, 22 layers", base, chain(22, SIZE), feed),
    ]
    for model in models:
        own = next(random_data(inputs_of(model)[0], 1).samples().batches(1))
        pairs.append((f"{model.name}, itself", model, model, own))
    for name, before, after, fed in pairs:
        lines.append(row(name, before, after, fed, runs))
        print(lines[-1], flush=True)
    load = f", load {os.getloadavg()[0]:.0f} at the end" if hasattr(os, "getloadavg") else ""
    write_page(ROOT / "docs" / "measured.md", "noise", "\n".join([*lines, "", f"{machine()['cpu']}{load}."]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, [Path(name) for name in sys.argv[2:]])
