"""Which architectures can be trained, and does their loss fall? Writes the table in docs/trainable.md.

    python benchmarks/trainable.py [NAME]...

Models: those of ONNXCOMP_TEST_ASSETS (trained), onnx's own light set and models/architectures (random weights). A model
is asked for other outputs than its own (noise of their size is added) and trained for a few steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from common import ASSETS, ROOT, keep, table, write_page
from pruning import filled

from onnxcomp.distill import engine
from onnxcomp.distill.task import Feeding, Optimizer, TrainingTask
from onnxcomp.distill.trainable import Prepared, prepare
from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import load, to_bytes
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.graph.ops.facts import load_operators

PAGE = ROOT / "docs" / "trainable.md"
BATCH, STEPS, SEQUENCE, LARGE = 4, 5, 16, 20_000_000
OPERATORS = load_operators()


def models() -> Iterator[tuple[str, str, Graph]]:
    """Name, where from, graph."""
    for path in sorted((ROOT / "models" / "architectures").glob("*.onnx")):
        yield path.stem, "PyTorch's exporter", load(path)
    for path in sorted((ASSETS / "models").glob("*.onnx")):
        yield path.stem, "trained", load(path)
    for path in sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx")):
        yield path.stem.removeprefix("light_"), "onnx's light set", decode(filled(path), None)


def feeds_of(graph: Graph, prepared: Prepared) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    feeds = {}
    for tensor in graph.inputs:
        shape, kind = prepared.shapes[tensor.name], tensor.dtype
        integers = kind is not None and kind.kind in "iu"
        feeds[tensor.name] = (generator.integers(1, 2, shape) if integers else generator.standard_normal(shape)).astype(
            kind
        )
    return feeds


def task(graph: Graph, prepared: Prepared) -> TrainingTask:
    """Move every float output towards itself plus noise."""
    feeds = feeds_of(graph, prepared)
    work, generator, terms = prepared.graph.clone(), np.random.default_rng(1), []
    each = prepared.batch if len(set(_batch(graph))) == 1 and _batch(graph)[0] == 1 else 0
    outputs = _run(graph, feeds, each)
    for tensor, values in zip(work.outputs, outputs, strict=True):
        wanted = values + generator.standard_normal(values.shape) * values.std()
        share = np.float32(1 / max(float(np.square(values.std())), 1e-30))
        away = work.add_node("Sub", [tensor, work.add_constant("wanted", wanted.astype(np.float32))]).outputs[0]
        flat = work.add_node("Flatten", [work.add_node("Mul", [away, away]).outputs[0]], attrs={"axis": 0}).outputs[0]
        mean = work.add_node("ReduceMean", [flat], attrs={"keepdims": 0}).outputs[0]
        terms.append(work.add_node("Mul", [mean, work.add_constant("share", share)]).outputs[0])
    loss = Variable("loss", np.dtype(np.float32), ())
    work.add_node("Identity", terms[:1], outputs=[loss])
    work.outputs = [loss]
    rows = np.arange(prepared.batch)
    return TrainingTask(
        work,
        Feeding(feeds, np.tile(rows, (STEPS, 1)), rows[None]),
        prepared.trainable,
        statistics=prepared.statistics,
        optimizer=Optimizer(lr=2e-4, schedule="constant"),
        evaluate_every=1,
    )


def _batch(graph: Graph) -> list[object]:
    return [t.shape[0] for t in graph.inputs if t.shape]


def _run(graph: Graph, feeds: dict[str, np.ndarray], each: int) -> list[np.ndarray]:
    """Outputs of the model itself, sample by sample where it takes one a call."""
    session = ort.InferenceSession(to_bytes(graph), providers=["CPUExecutionProvider"])
    if not each:
        return list(session.run(None, feeds))
    parts = [session.run(None, {name: v[i : i + 1] for name, v in feeds.items()}) for i in range(each)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def row(name: str, origin: str, graph: Graph) -> dict[str, object]:
    weights = sum(c.size for c in graph.constants() if c.dtype == np.float32)
    samples = {t.name: (1, *(d if isinstance(d, int) else SEQUENCE for d in (t.shape or ())[1:])) for t in graph.inputs}
    prepared = prepare(graph, OPERATORS, samples, 1 if weights > LARGE else BATCH)
    sizes = {c.name: c.size for c in prepared.graph.constants()}
    found: dict[str, object] = {
        "name": name,
        "origin": origin,
        "nodes": len(graph.nodes),
        "share": sum(sizes[n] for n in (*prepared.trainable, *prepared.statistics)) / max(1, weights),
        "refused": sorted({f"{r.op}: {r.why}" for r in prepared.refused}),
        "batch": prepared.batch,
    }
    try:
        result = engine.train(task(graph, prepared))
    except OnnxcompError as error:
        return found | {"error": str(error).replace("\n", "; ")}
    return found | {
        "gradient_error": result.gradient_error,
        "before": result.held_out[0][1],
        "after": result.held_out[-1][1],
        "memory": result.peak_memory_bytes,
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
        f"loss after {STEPS} steps",
    )
    lines = [
        (r["name"], r["origin"], r["nodes"], f"{r['share']:.1%}", r["batch"], "; ".join(r["refused"]) or "-",
         f"{r['gradient_error']:.2%}" if "gradient_error" in r else "-",
         f"{r['before']:.3f} -> {r['after']:.3f}" if "before" in r else r["error"])
        for r in kept
    ]  # fmt: skip
    write_page(PAGE, "architectures", table(head, lines))


if __name__ == "__main__":
    main()
