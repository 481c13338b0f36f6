"""How good is structural pruning? Targets on the shared models, light and exported architectures at 30 %, time by size.

    python benchmarks/pruning.py [resnet20|lenet5|minilm|yolox|architectures|scale]... [--onnxsim PYTHON]

Models, data and the judge (meter.py) come from the folder that ONNXCOMP_TEST_ASSETS names. PYTHON is an interpreter
that has onnxsim, the peer that prunes ONNX graphs, and onnxruntime. Rows go to results/pruning-*.json and from there
into docs/structural-pruning.md.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
import onnxruntime as ort
from common import ROOT
from onnx import numpy_helper

from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.open import random_data
from onnxcomp.graph import cost
from onnxcomp.graph.codec import decode
from onnxcomp.graph.coupling.analysis import analyse
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.io import load, save, to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators
from onnxcomp.runtime.costs import MeasuredCosts

OPERATORS = load_operators()
SAMPLES, SEEDS = 512, (0, 1, 2)


class Several:
    """Arrays by input name as samples."""

    labels = None
    source = "benchmark"

    def __init__(self, arrays: dict[str, np.ndarray], fixed: int = 0) -> None:
        self.arrays, self.fixed = arrays, fixed

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        size = self.fixed or size or 32
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def samples_of(data: Any, seed: int) -> np.ndarray:
    """SAMPLES of the training set, others with each seed."""
    x, _ = data("train")
    return x[np.random.default_rng(seed).permutation(len(x))[:SAMPLES]]


def prune(graph: Graph, spec: str, feeds: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[Graph, Any, float]:
    context = PassContext(calibration=feeds, sample_shapes=shapes, costs=MeasuredCosts(next(iter(feeds.batches(1)))))
    start = time.perf_counter()
    result = PassManager(Pipeline.parse(spec), verify=False).run(graph, context)
    return result.graph, result.records[-1], time.perf_counter() - start


def spread(values: list[float], form: str = ".4f") -> str:
    low, high = min(values), max(values)
    return f"{low:{form}}" if f"{low:{form}}" == f"{high:{form}}" else f"{low:{form}} to {high:{form}}"


def classifier(assets: Path, model: str, data: Any, spec: str, limit: float) -> dict[str, Any]:
    """One target over three sets of calibration samples."""
    import meter

    source = assets / "models" / model
    x, labels = data("test")
    found: dict[str, list[float]] = {"quality": [], "macs": [], "time": [], "seconds": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            pruned, _, seconds = prune(
                load(source), spec, Several({"input": samples_of(data, seed)}), {"input": x[:1].shape}
            )
            after = Path(folder) / "pruned.onnx"
            save(pruned, after)
            found["quality"].append(meter.top1(after, x, labels))
            found["macs"].append(meter.macs(after) / meter.macs(source))
            found["time"].append(meter.latency_ratio(source, after, x, seconds=4)[0])
            found["seconds"].append(seconds)
    row = {"row": f"{source.stem}: {spec}", "limit": f"{limit}", "original": f"{meter.top1(source, x, labels):.4f}"}
    forms = {"quality": ".4f", "macs": ".3f", "time": ".2f", "seconds": ".0f"}
    return row | {name: spread(values, forms[name]) for name, values in found.items()}


def sentences(assets: Path) -> dict[str, Any]:
    """MiniLM without a third of its heads and of its feed-forward neurons."""
    import meter

    source = assets / "models" / "minilm-l6.onnx"
    spec = "prune-channels{ratio=0.3333,scope=layer}"
    documents = {name: array[:256] for name, array in meter.packages("train")[1].items()}
    feeds = Several(documents)
    pruned, record, seconds = prune(load(source), spec, feeds, {k: v[:1].shape for k, v in documents.items()})
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / "pruned.onnx"
        save(pruned, after)
        ratio = meter.feed_ratio(source, after, {k: v[:1] for k, v in meter.packages()[1].items()})[0]
        quality = meter.recall1(after)[0]
    groups = [
        change.what.split(";")[0] for change in record.details if "->" in change.what and "solved" not in change.what
    ]
    print(groups)
    return {
        "row": f"{source.stem}: {spec}",
        "quality": f"{quality:.3f}",
        "original": f"{meter.recall1(source)[0]:.3f}",
        "limit": "0.75",
        "macs": f"{record.metrics['macs_share']:.3f}",
        "time": f"{ratio:.2f}",
        "seconds": f"{seconds:.0f}",
    }


def detector(assets: Path, peer: str) -> Iterator[dict[str, Any]]:
    """YOLOX-Nano at four fifths of its MACs, beside the peer at the same."""
    import meter

    source, spec = assets / "models" / "yolox-nano.onnx", "prune-channels{macs=0.8}"
    photos = meter.photos("yolox")
    calibration, judged = photos[:100], photos[-50:]
    feeds = Several({"images": calibration}, fixed=1)
    pruned, _, seconds = prune(load(source), spec, feeds, {"images": calibration[:1].shape})
    with tempfile.TemporaryDirectory() as folder:
        after = Path(folder) / "pruned.onnx"
        save(pruned, after)
        yield {
            "row": f"{source.stem}: {spec}",
            "quality": f"{meter.fidelity(source, after, judged):.1f} dB",
            "limit": "onnxsim's",
            "macs": f"{meter.macs(after) / meter.macs(source):.3f}",
            "time": f"{meter.latency_ratio(source, after, judged)[0]:.2f}",
            "seconds": f"{seconds:.0f}",
        }
        if not peer:
            return
        np.save(Path(folder) / "photos.npy", calibration[:32])
        script = Path(__file__).resolve().parent / "onnxsim_prune.py"
        subprocess.run([peer, str(script), str(source), folder, "0.8"], check=True)
        for path in sorted(Path(folder).glob("peer-*.onnx")):
            yield {
                "row": f"{source.stem}: onnxsim, {path.stem.removeprefix('peer-')}",
                "quality": f"{meter.fidelity(source, path, judged):.1f} dB",
                "macs": f"{meter.macs(path) / meter.macs(source):.3f}",
                "time": f"{meter.latency_ratio(source, path, judged)[0]:.2f}",
            }


def filled(path: Path, seed: int = 0) -> onnx.ModelProto:
    """A light model with random weights in place of its ConstantOfShape nodes."""
    model = onnx.load(path)
    generator = np.random.default_rng(seed)
    sizes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in sizes:
            nodes.append(node)
            continue
        shape = tuple(int(v) for v in sizes[node.input[0]])
        fan_in = int(np.prod(shape[1:])) or 1
        scale = np.sqrt(2 / fan_in) if len(shape) > 1 else 1.0
        values = generator.standard_normal(shape) * scale if len(shape) > 1 else generator.uniform(0.5, 1.5, shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for field in (model.graph.initializer, model.graph.input):
        left = [entry for entry in field if entry.name in used]
        del field[:]
        field.extend(left)
    stored = {t.name for t in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    return model


def architectures() -> Iterator[dict[str, Any]]:
    """Light models of onnx and exported ones at 30 %: they run, and how much of them lies inside prunable groups."""
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in [*sorted(light.glob("*.onnx")), *sorted((ROOT / "models" / "architectures").glob("*.onnx"))]:
        graph = decode(filled(path), None) if path.parent == light else load(path)
        made = random_data([InputSpec(t.name, t.dtype, t.shape) for t in graph.inputs], 1)
        feed = next(made.samples().batches(1))
        start = time.perf_counter()
        result = PassManager(Pipeline.parse("prune-channels{ratio=0.3,streams=true}"), verify=False).run(
            graph, PassContext(sample_shapes={name: array.shape for name, array in feed.items()})
        )
        seconds = time.perf_counter() - start
        session = ort.InferenceSession(to_bytes(result.graph), providers=["CPUExecutionProvider"])
        session.run(None, feed)
        before, after = (cost.stats(g, OPERATORS, file_bytes=0).macs for g in (graph, result.graph))
        yield {
            "row": path.stem,
            "inside": f"{result.records[-1].metrics['prunable_macs_share']:.1%}",
            "left": f"{after / before:.1%}",
            "seconds": f"{seconds:.1f}",
        }


def scale() -> Iterator[dict[str, Any]]:
    """Analysis and cut by number of nodes."""
    for blocks, width in ((100, 160), (1000, 32)):
        graph = load_chain(blocks, width)
        size = sum(c.nbytes for c in graph.constants()) / 1e6
        start = time.perf_counter()
        coupling = analyse(graph, OPERATORS)
        middle = time.perf_counter()
        cut(coupling, np.concatenate([group.units[: group.size // 3] for group in coupling.groups]))
        end = time.perf_counter()
        yield {
            "row": f"{len(graph.nodes)} nodes, {size:.0f} MB",
            "analysis": f"{middle - start:.2f}",
            "cut": f"{end - middle:.2f}",
        }


def load_chain(blocks: int, width: int) -> Graph:
    """Residual blocks of two convolutions and a BatchNormalization."""
    generator = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []

    def weight(*shape: int) -> str:
        values = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return str(weights[-1].name)

    make, nodes, x = onnx.helper.make_node, [], "x0"
    nodes.append(make("Conv", ["x", weight(width, 3, 1, 1)], [x]))
    for i in range(blocks):
        nodes.append(make("Conv", [x, weight(width, width, 3, 3)], [f"a{i}"], pads=[1] * 4))
        nodes.append(make("BatchNormalization", [f"a{i}", *(weight(width) for _ in range(4))], [f"b{i}"]))
        nodes.append(make("Relu", [f"b{i}"], [f"r{i}"]))
        nodes.append(make("Conv", [f"r{i}", weight(width, width, 3, 3)], [f"c{i}"], pads=[1] * 4))
        nodes.append(make("Add", [f"c{i}", x], [f"x{i + 1}"]))
        x = f"x{i + 1}"
    nodes.append(make("Conv", [x, weight(3, width, 1, 1)], ["y"]))
    info = onnx.helper.make_tensor_value_info
    ends = [info("x", 1, [1, 3, 8, 8])], [info("y", 1, [1, 3, 8, 8])]
    return decode(onnx.helper.make_model(onnx.helper.make_graph(nodes, "chain", *ends, weights)), None)


TABLES = {
    "targets": (
        {
            "row": "model and setting",
            "quality": "quality",
            "limit": "must reach",
            "original": "original",
            "macs": "MACs left",
            "time": "time",
            "seconds": "s",
        },
        "top-1, recall@1, or SQNR of the output; ranges over three sets of 512 samples; time as a share of the "
        "original's, one thread, batch 1.",
    ),
    "architectures": (
        {"row": "architecture, random weights", "inside": "MACs inside groups", "left": "MACs left", "seconds": "s"},
        "`prune-channels{ratio=0.3,streams=true}` without data.",
    ),
    "scale": ({"row": "graph", "analysis": "analysis, s", "cut": "cut, s"}, ""),
}


def write(kind: str, rows: Iterable[dict[str, Any]]) -> None:
    """Keep rows as they come and bring their table on the page up to date."""
    head, about = TABLES[kind]
    for row in rows:
        print(row, flush=True)
        known = common.keep(f"pruning-{kind}", [row], "row")
        body = common.table(list(head.values()), [[r.get(key, "") for key in head] for r in known])
        text = f"{about}\n\n{body}\n\n{common.machine()['cpu']}." if about else f"{body}\n\n{common.machine()['cpu']}."
        common.write_page(ROOT / "docs" / "structural-pruning.md", f"pruning-{kind}", text)


def targets(wanted: set[str], assets: Path, peer: str) -> Iterator[dict[str, Any]]:
    """The rows with targets."""
    import meter

    if "resnet20" in wanted:
        for target, limit in (("macs=0.6667", 0.840), ("macs=0.5", 0.810), ("latency=0.66", 0.812)):
            yield classifier(assets, "resnet20-cifar10.onnx", meter.cifar, f"prune-channels{{{target}}}", limit)
    if "lenet5" in wanted:
        names = ("/conv1/Conv", "/conv2/Conv", "/fc1/Gemm")
        for widths, limit in (((10, 25, 250), 0.992), ((8, 16, 40), 0.980)):
            given = ",".join(f'"{name}:{width}"' for name, width in zip(names, widths, strict=True))
            yield classifier(assets, "lenet5-mnist.onnx", meter.mnist, f"prune-channels{{keep=[{given}]}}", limit)
    if "minilm" in wanted:
        yield sentences(assets)
    if "yolox" in wanted:
        yield from detector(assets, peer)


def main() -> None:
    """Measure what is asked for and bring the page up to date."""
    known = ["resnet20", "lenet5", "minilm", "yolox", "architectures", "scale"]
    parser = argparse.ArgumentParser(description="Measure structural pruning.")
    parser.add_argument("what", nargs="*", choices=[*known, []], help="what to measure; default: everything")
    parser.add_argument("--onnxsim", default="", help="an interpreter that has onnxsim")
    arguments = parser.parse_args()
    wanted = set(arguments.what or known)
    if wanted - {"architectures", "scale"}:
        write("targets", targets(wanted, common.need_assets(), arguments.onnxsim))
    if "architectures" in wanted:
        write("architectures", architectures())
    if "scale" in wanted:
        write("scale", scale())


if __name__ == "__main__":
    main()
