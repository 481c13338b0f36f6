"""How often does `compare` call a model changed against itself, and how often does it see one that is 10 % slower?

    python benchmarks/latency_noise.py [RUNS] [MODEL.onnx ...]

Prints a Markdown table. The slower model is built here: 22 equal layers against 20, whose fixed cost is small. Run it
with other work on the machine too: that is what the figures are for.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data.inputs import inputs_of
from onnxcomp.data.synthetic import random_data
from onnxcomp.runtime.latency import compare
from onnxcomp.runtime.session import Feeds

Model = Path | bytes


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
    """Measure and print line by line."""
    print("| pair | runs | no change | faster | slower | mean | spread | half width | each |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in models:
        feed = next(random_data(inputs_of(model)[0], 1).samples().batches(1))
        print(row(f"{model.name}, itself", model, model, feed, runs), flush=True)
    for size in (128, 512):
        feed = {"x": np.random.default_rng(1).standard_normal((4, size)).astype(np.float32)}
        base = chain(20, size)
        print(row(f"20 layers of {size}, itself", base, base, feed, runs), flush=True)
        print(row(f"20 layers of {size}, 22 layers", base, chain(22, size), feed, runs), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, [Path(name) for name in sys.argv[2:]])
