"""Trains an ONNX graph with PyTorch, for comparison: python torch_step.py MODEL.onnx STEPS THREADS.

Needs torch and onnx. The model takes one input of static shape and gives logits. Prints one JSON line: seconds of every
step and peak memory. Operators are those of the models compared, each one call of PyTorch, so that this is timed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F  # noqa: N812


def pool(kind: Callable[..., Any]) -> Callable[..., Any]:
    def run(attrs: dict[str, Any], x: Any) -> Any:
        pads = attrs.get("pads", [0, 0, 0, 0])
        assert not any(pads), "pools with pads are not compared"
        return kind(x, attrs["kernel_shape"], attrs.get("strides", [1, 1]))

    return run


def conv(attrs: dict[str, Any], x: Any, w: Any, b: Any = None) -> Any:
    pads = attrs.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:], "uneven pads are not compared"
    return F.conv2d(x, w, b, attrs.get("strides", 1), pads[:2], attrs.get("dilations", 1), attrs.get("group", 1))


def gemm(attrs: dict[str, Any], x: Any, w: Any, b: Any = None) -> Any:
    return F.linear(x, w if attrs.get("transB") else w.t(), b)


def pad(attrs: dict[str, Any], x: Any, pads: Any, *rest: Any) -> Any:
    half = len(pads) // 2
    return F.pad(x, [int(pads[i + side * half]) for i in range(half - 1, -1, -1) for side in (0, 1)])


def cut(attrs: dict[str, Any], x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
    index = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), min(int(end), x.shape[int(axis)]), int(step))
    return x[tuple(index)]


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "Gemm": gemm,
    "Pad": pad,
    "Slice": cut,
    "Relu": lambda attrs, x: F.relu(x),
    "Add": lambda attrs, x, y: x + y,
    "MatMul": lambda attrs, x, y: x @ y,
    "MaxPool": pool(F.max_pool2d),
    "AveragePool": pool(F.avg_pool2d),
    "GlobalAveragePool": lambda attrs, x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda attrs, x: x.flatten(attrs.get("axis", 1)),
    "Reshape": lambda attrs, x, shape: x.reshape([int(size) for size in shape]),
    "Identity": lambda attrs, x: x,
}


def main() -> None:
    model, steps, threads = onnx.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    held: dict[str, Any] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        moves = array.dtype == np.float32 and array.size > 1
        held[tensor.name] = torch.nn.Parameter(torch.tensor(array)) if moves else array
    port = model.graph.input[0]
    shape = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
    x, labels = torch.randn(shape), torch.randint(0, 10, shape[:1])
    optimizer = torch.optim.AdamW([p for p in held.values() if isinstance(p, torch.nn.Parameter)], lr=1e-4)
    nodes = [(n, {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}) for n in model.graph.node]
    seconds, busy = [], []
    for _ in range(steps):
        start, before = time.perf_counter(), time.process_time()
        values = {**held, port.name: x}
        for node, attrs in nodes:
            inputs = [values[name] if name else None for name in node.input]
            values[node.output[0]] = OPERATORS[node.op_type](attrs, *inputs)
        optimizer.zero_grad()
        F.cross_entropy(values[model.graph.output[0].name], labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "busy": busy, "peak_bytes": peak, "version": torch.__version__}))


if __name__ == "__main__":
    main()
