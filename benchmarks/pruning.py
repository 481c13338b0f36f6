"""How good is structural pruning? Targets on the shared models, light ONNX architectures at 30 %, and time by size.

    python benchmarks/pruning.py ASSETS [resnet20|lenet5|light|scale]...

ASSETS is the folder with models/ and data/. Figures go to docs/structural-pruning.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnxcomp.graph import cost
from onnxcomp.graph.codec import decode
from onnxcomp.graph.coupling.analysis import analyse
from onnxcomp.graph.coupling.cut import cut
from onnxcomp.graph.io import load, to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.ops.facts import load_operators
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline

OPERATORS = load_operators()
SAMPLES = 512


class Feeds:
    """One array as samples of one input."""

    labels = None
    source = "benchmark"

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def __len__(self) -> int:
        return len(self.values)

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        size = size or 32
        for start in range(0, len(self), size):
            yield {self.name: self.values[start : start + size]}


def cifar(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "data" / f"cifar10-{split}.npz") as stored:
        images, labels = stored["images"], stored["labels"]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)), labels


def mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "data" / f"mnist-{split}.npz") as stored:
        return (stored["images"][:, None] / 255).astype(np.float32), stored["labels"]


def prune(graph: Graph, spec: str, feeds: Feeds | None, shapes: dict[str, tuple[int, ...]]) -> tuple[Graph, Any, float]:
    context = PassContext(calibration=feeds, sample_shapes=shapes)
    start = time.perf_counter()
    result = PassManager(Pipeline.parse(spec), verify=False).run(graph, context)
    return result.graph, result.records[-1], time.perf_counter() - start


def top1(graph: Graph, x: np.ndarray, labels: np.ndarray) -> float:
    session = ort.InferenceSession(to_bytes(graph), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: x[i : i + 100]})[0].argmax(1) for i in range(0, len(x), 100)]
    return float((np.concatenate(found) == labels).mean())


def trained(folder: Path, model: str, data: Any, specs: list[str]) -> None:
    x, labels = data(folder, "test")
    calibration = data(folder, "train")[0][:SAMPLES]
    for spec in specs:
        graph = load(folder / "models" / model)
        shapes = {"input": (1, *x.shape[1:])}
        pruned, record, seconds = prune(graph, spec, Feeds("input", calibration), shapes)
        share = record.metrics["macs_share"], record.metrics["params_share"]
        print(f"{model} {spec}: top-1 {top1(pruned, x, labels):.4f}, MACs and parameters {share}, {seconds:.0f} s")


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


def light() -> None:
    """Every architecture of onnx's own light set at 30 %: it runs, and how much of it lies inside prunable groups."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(folder.glob("*.onnx")):
        graph = decode(filled(path), None)
        shape = tuple(graph.inputs[0].shape or ())
        before = cost.stats(graph, OPERATORS, file_bytes=0).macs
        pruned, record, seconds = prune(graph, "prune-channels{ratio=0.3,streams=true}", None, {})
        session = ort.InferenceSession(to_bytes(pruned), providers=["CPUExecutionProvider"])
        session.run(None, {graph.inputs[0].name: np.zeros(shape, np.float32)})
        after = cost.stats(pruned, OPERATORS, file_bytes=0).macs
        inside = record.metrics["prunable_macs_share"]
        print(f"{path.stem}: {inside:.1%} of the MACs inside groups, {after / before:.1%} left, {seconds:.1f} s")


def scale() -> None:
    """Analysis and cut by number of nodes."""
    for blocks, width in ((100, 160), (1000, 32)):
        graph = load_chain(blocks, width)
        start = time.perf_counter()
        coupling = analyse(graph, OPERATORS)
        middle = time.perf_counter()
        cut(coupling, np.concatenate([group.units[: group.size // 3] for group in coupling.groups]))
        end = time.perf_counter()
        size = sum(c.nbytes for c in graph.constants()) / 1e6
        print(
            f"{len(graph.nodes)} nodes, {size:.0f} MB left: analysis {middle - start:.2f} s, cut {end - middle:.2f} s"
        )


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


def main() -> None:
    folder = Path(sys.argv[1])
    wanted = sys.argv[2:] or ["resnet20", "lenet5", "light", "scale"]
    if "resnet20" in wanted:
        specs = [f"prune-channels{{{target}}}" for target in ("macs=0.6667", "macs=0.5", "latency=0.66")]
        trained(folder, "resnet20-cifar10.onnx", cifar, specs)
    if "lenet5" in wanted:
        widths = ((10, 25, 250), (8, 16, 40))
        names = ("/conv1/Conv", "/conv2/Conv", "/fc1/Gemm")
        specs = [
            "prune-channels{keep=[" + ",".join(f'"{n}:{w}"' for n, w in zip(names, row, strict=True)) + "]}"
            for row in widths
        ]
        trained(folder, "lenet5-mnist.onnx", mnist, specs)
    if "light" in wanted:
        light()
    if "scale" in wanted:
        scale()


if __name__ == "__main__":
    main()
