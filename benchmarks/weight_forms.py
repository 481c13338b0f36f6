"""How small and how fast is each form in which quantize-weights stores a weight? On three models made up here.

    python benchmarks/weight_forms.py

Rows go to results/weight-forms.json and from there into docs/measured.md. Times are shares of the float model's, taken
in turns at batch 1 on one thread; DequantizeLinear is the form for TensorRT, run here to show what it costs on the CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SPECS = (
    "bits=8", "bits=4,block=0", "bits=4,block=32", "bits=4,block=128", "bits=2,block=0", "bits=2,block=64",
    "form=binary", "form=ternary", "form=codebook,bits=4", "low=-3,high=4", "bits=8,scale=pow2",
)  # fmt: skip
SECONDS = 2.0


def chain(kind: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Eight convolutions or products, or a table that is looked up, and a feed."""
    rng = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    shape = {"convolutions": (64, 64, 3, 3), "products": (768, 768), "table": (30000, 256)}[kind]
    for i in range(1 if kind == "table" else 8):
        array = rng.normal(0, float(np.prod(shape[1:])) ** -0.5, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{i}"))
        if kind == "table":
            nodes.append(helper.make_node("Gather", [f"w{i}", current], ["y"], "look", axis=0))
            break
        op = "Conv" if kind == "convolutions" else "MatMul"
        attributes = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
        nodes.append(helper.make_node(op, [current, f"w{i}"], [f"a{i}"], f"{op}{i}", **attributes))
        current = "y" if i == 7 else f"r{i}"
        nodes.append(helper.make_node("Relu", [f"a{i}"], [current], f"relu{i}"))
    feed = {
        "convolutions": rng.normal(size=(1, 64, 16, 16)).astype(np.float32),
        "products": rng.normal(size=(1, 768)).astype(np.float32),
        "table": rng.integers(0, 30000, (1, 128)),
    }[kind]
    dtype = TensorProto.INT64 if kind == "table" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", dtype, list(feed.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True), {"x": feed}


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every form on every model."""
    import onnxcomp
    from onnxcomp.graph.io import to_bytes
    from onnxcomp.manager.base import PassContext
    from onnxcomp.runtime.latency import compare
    from onnxcomp.runtime.profile import kernels

    for kind in ("convolutions", "products", "table"):
        model, feed = chain(kind)
        path = folder / f"{kind}.onnx"
        onnx.save(model, str(path))
        before = path.read_bytes()
        cases = [(spec, "cpu") for spec in SPECS] + [("bits=8", "tensorrt"), ("bits=4,block=32", "tensorrt")]
        for spec, target in cases:
            pipeline = onnxcomp.Pipeline.parse(f"quantize-weights{{{spec}}}")
            context = PassContext(target=target)
            result = onnxcomp.PassManager(pipeline, verify=False).run(onnxcomp.load(path), context)
            if not result.changes:
                continue
            after = to_bytes(result.graph)
            found = compare(before, after, feed, seconds=SECONDS)
            ran = kernels(after)
            yield {
                "row": f"{kind}, {spec}{', DequantizeLinear' if target == 'tensorrt' else ''}",
                "size": f"{len(after) / len(before):.1%}",
                "time": f"{1 / found.speedup:.2f}",
                "kernels": ", ".join(f"{n} {op}" for op, n in ran.most_common(2)),
            }


def main() -> None:
    """Measure and bring the page up to date."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for row in rows(Path(name)):
            found.append(row)
            print(row, flush=True)
    kept = common.keep("weight-forms", found, "row")
    head = ("weights and form", "size", "time", "what runs most")
    text = common.table(head, [[row["row"], row["size"], row["time"], row["kernels"]] for row in kept])
    text += f"\n\n{common.machine()['cpu']}; ONNX Runtime {common.machine()['onnxruntime']}."
    common.write_page(common.ROOT / "docs" / "measured.md", "weight-forms", text)


if __name__ == "__main__":
    main()
