"""What does onnxsim's structured pruning leave at a share of MACs? Run by pruning.py in an environment of its own.

    PYTHON benchmarks/onnxsim_prune.py MODEL FOLDER SHARE

FOLDER holds photos.npy, calibration samples of one input; peer-*.onnx are written there, their sparsity bisected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxsim


def macs(model: onnx.ModelProto) -> int:
    """Of the convolutions."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {t.name: list(t.dims) for t in graph.initializer}
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    found = (np.prod(sizes[n.input[1]]) * np.prod(shapes[n.output[0]][2:]) for n in graph.node if n.op_type == "Conv")
    return int(sum(found))


def at_share(model: onnx.ModelProto, share: float, prune: Callable[[float], onnx.ModelProto]) -> onnx.ModelProto:
    low, high, limit, best = 0.0, 0.9, share * macs(model), None
    for _ in range(10):
        middle = (low + high) / 2
        pruned = prune(middle)
        if macs(pruned) <= limit:
            high, best = middle, pruned
        else:
            low = middle
    assert best is not None
    return best


def main() -> None:
    source, folder, share = onnx.load(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    name = source.graph.input[0].name
    feeds = [{name: sample[None]} for sample in np.load(folder / "photos.npy")]
    ways = {
        "magnitude": lambda s: onnxsim.apply_structured_pruning_cpp(source, sparsity=s, global_sparsity=True),
        "activation-aware": lambda s: onnxsim.apply_structured_wanda_pruning_cpp(
            source, calibration_data=feeds, sparsity=s, global_sparsity=True
        ),
        "magnitude, each layer": lambda s: onnxsim.apply_structured_pruning_cpp(source, sparsity=s),
    }
    for way, prune in ways.items():
        try:
            onnx.save(at_share(source, share, prune), folder / f"peer-{way}.onnx")
        except AssertionError:
            print(f"onnxsim, {way}: does not reach {share:.0%} of the MACs")


if __name__ == "__main__":
    main()
