"""Which architectures can be trained, and does their loss fall? Writes the table in docs/trainable.md.

    python benchmarks/trainable.py [NAME]...

Models: those of ONNXCOMP_TEST_ASSETS (trained), onnx's own light set and models/architectures (random weights). Noise
is put on a model's weights, and the pass `distill` with its own defaults trains it a few steps on one batch of random
samples, the model as it was being the teacher. The loss is that of this batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from common import ASSETS, ROOT, keep, table, write_page
from pruning import filled

from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.open import random_data
from onnxcomp.distill.trainable import prepare
from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import load
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext, SampleSource
from onnxcomp.ops.facts import load_operators
from onnxcomp.passes.distill import Distill
from onnxcomp.runtime.taps import tapped

PAGE = ROOT / "docs" / "trainable.md"
BATCH, STEPS, LARGE = 4, 5, 20_000_000
NOISE = 0.2  # of the RMS of a weight
OPERATORS = load_operators()


def models() -> Iterator[tuple[str, str, Graph]]:
    """Name, where from, graph."""
    for path in sorted((ROOT / "models" / "architectures").glob("*.onnx")):
        yield path.stem, "PyTorch's exporter", load(path)
    for path in sorted((ASSETS / "models").glob("*.onnx")):
        yield path.stem, "trained", load(path)
    for path in sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx")):
        yield path.stem.removeprefix("light_"), "onnx's light set", settled(decode(filled(path), None))


def settled(graph: Graph) -> Graph:
    """Give BatchNormalization the statistics of a sample, in place: with random ones activations explode."""
    work = graph.clone()
    found = {}
    for node in [node for node in work.nodes if node.op == "BatchNormalization"]:
        x, axes = node.inputs[0], [0, 2, 3]
        away = work.add_node("Sub", [x, work.add_node("ReduceMean", [x], attrs={"axes": axes}).outputs[0]]).outputs[0]
        square = work.add_node("Mul", [away, away]).outputs[0]
        for port, tensor in ((3, x), (4, square)):
            mean = work.add_node("ReduceMean", [tensor], attrs={"axes": axes, "keepdims": 0}).outputs[0]
            found[node.inputs[port].name] = mean.name
            node.set_input(port, mean)
    if found:
        work.sort()
        seen = tapped(work, list(found.values()), 2).run(next(iter(samples(graph, 1).batches(1))))
        for constant in graph.constants():
            if constant.name in found:
                constant.values = seen[found[constant.name]]
    return graph


def samples(graph: Graph, count: int) -> SampleSource:
    return random_data([InputSpec(t.name, t.dtype, t.shape) for t in graph.inputs], count).samples()


def damaged(graph: Graph) -> Graph:
    """A copy whose weights have noise on them, a share of their own size."""
    work, generator = graph.clone(), np.random.default_rng(1)
    for constant in work.constants():
        if constant.dtype == np.float32 and len(constant.shape) > 1:
            values = np.asarray(constant.values)
            noise = generator.standard_normal(values.shape, np.float32) * (NOISE * np.sqrt(np.mean(np.square(values))))
            constant.values = values + noise.astype(np.float32)
    return work


def row(name: str, origin: str, graph: Graph) -> dict[str, object]:
    weights = sum(c.size for c in graph.constants() if c.dtype == np.float32)
    batch = 1 if weights > LARGE else BATCH
    rows = samples(graph, batch)
    shapes = {key: (1, *array.shape[1:]) for key, array in next(iter(rows.batches(1))).items()}
    prepared = prepare(graph, OPERATORS, shapes, batch)
    sizes = {c.name: c.size for c in prepared.graph.constants()}
    found: dict[str, object] = {
        "name": name,
        "origin": origin,
        "nodes": len(graph.nodes),
        "share": sum(sizes[n] for n in (*prepared.trainable, *prepared.statistics)) / max(1, weights),
        "refused": sorted({f"{r.op}: {r.why}" for r in prepared.refused}),
        "batch": prepared.batch,
    }
    context = PassContext(training=rows, held_out=rows, original=graph, sample_shapes=shapes)
    try:
        outcome = Distill(steps=STEPS, batch=batch).run(damaged(graph), context)
    except OnnxcompError as error:
        return found | {"error": str(error).replace("\n", "; ")}
    record = outcome.trainings[-1]
    return found | {
        "gradient_error": record.gradient_error,
        "rate": max(rate for _, rate in record.rates),
        "before": record.held_out[0][1],
        "after": min(loss for _, loss in record.held_out[1:]),
        "batches": [loss for _, loss in record.losses],
        "seconds": record.seconds,
        "step_seconds": record.step_seconds,
        "memory": record.peak_memory_bytes,
    }


def main() -> None:
    asked = sys.argv[1:]
    rows = []
    for name, origin, graph in models():
        if not asked or name in asked:
            rows.append(row(name, origin, graph))
            print(rows[-1], flush=True)
    kept = keep("trainable", rows, "name")
    head = (
        "model",
        "from",
        "nodes",
        "weights trained",
        "batch",
        "refused",
        "gradient off by",
        f"loss, and least in {STEPS} steps",
        "lr",
        "a step",
    )
    lines = [
        (r["name"], r["origin"], r["nodes"], f"{r['share']:.1%}", r["batch"], "; ".join(r["refused"]) or "-",
         f"{r['gradient_error']:.2%}" if "gradient_error" in r else "-",
         f"{r['before']:.3g} -> {r['after']:.3g}" if "before" in r else r["error"],
         f"{r['rate']:g}" if "rate" in r else "-",
         f"{r['step_seconds'] * 1e3:.3g} ms" if "step_seconds" in r else "-")
        for r in kept
    ]  # fmt: skip
    write_page(PAGE, "architectures", table(head, lines))


if __name__ == "__main__":
    main()
