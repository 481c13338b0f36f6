"""A graph run piece by piece: the values of a whole run, wherever they are held, and changed weights ahead are seen."""

from __future__ import annotations

import tempfile
from typing import Any

import builders
import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.codec import decode
from onnxcomp.graph.ir import Constant, Graph
from onnxcomp.runtime.stages import Stages, peak_bytes
from onnxcomp.runtime.taps import tapped

COUNT = 3


def case() -> tuple[Graph, list[dict[str, np.ndarray]]]:
    proto = builders.residual_cnn(channels=8)
    graph = decode(proto, None)
    return graph, [builders.feeds_of(proto, seed=seed) for seed in range(COUNT)]


def expected(graph: Graph, names: list[str], batches: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    session = tapped(graph, names, 1)
    return [[session.run(feeds)[name] for name in names] for feeds in batches]


@pytest.mark.parametrize("memory", [None, 0, 5000])
def test_values_are_those_of_a_whole_run_wherever_they_lie(memory: int | None) -> None:
    graph, batches = case()
    tensors = [node.outputs[0] for node in graph.nodes]
    stages = Stages(graph, batches, 1, memory=memory)
    for tensor in tensors:
        found = stages.get([tensor])
        for one, wanted in zip(found, expected(graph, [tensor.name], batches), strict=True):
            np.testing.assert_allclose(one[0], wanted[0], rtol=1e-5, atol=1e-5)
        if memory != 5000:  # holds a part
            assert isinstance(found[0][0], np.memmap) == (memory == 0)


def test_a_full_disk_leaves_values_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    graph, batches = case()
    last = graph.nodes[-1].outputs[0]
    (one,), *_ = Stages(graph, batches, 1, memory=0).get([last])
    assert not isinstance(one, np.memmap)
    np.testing.assert_allclose(one, expected(graph, [last.name], batches)[0][0], rtol=1e-5, atol=1e-5)


def test_memory_comes_back_when_values_are_let_go() -> None:
    graph, batches = case()
    room = 2 * COUNT * int(peak_bytes(graph, _shapes(graph, batches)))
    stages = Stages(graph, batches, 1, memory=room)
    for node in graph.nodes:
        assert not isinstance(stages.get([node.outputs[0]])[0][0], np.memmap)


def test_nodes_ahead_read_weights_as_they_are_then() -> None:
    graph, batches = case()
    convs = [node for node in graph.nodes if node.op == "Conv"]
    stages = Stages(graph, batches, 1, memory=0)
    before = stages.get([convs[0].outputs[0]])[0][0].copy()
    weight = convs[1].inputs[1]
    assert isinstance(weight, Constant)
    weight.values = np.zeros_like(np.asarray(weight.values))
    behind = convs[1].outputs[0]
    found = stages.get([behind])[0][0]
    np.testing.assert_allclose(found, expected(graph, [behind.name], batches)[0][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(before, expected(graph, [convs[0].outputs[0].name], batches)[0][0])


def _shapes(graph: Graph, batches: list[dict[str, np.ndarray]]) -> Any:
    return shape_tools.infer(graph, {name: array.shape for name, array in batches[0].items()})


def test_values_come_where_onnxruntime_refuses_what_its_optimizer_makes() -> None:
    """It turns int8 between Q and DQ into uint8, and not the attribute that names the type: then it refuses that."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], output_dtype=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Tanh", ["d"], ["y"]),
    ]
    ports = [builders.value(name, builders.FLOAT, ["N", 4]) for name in "xy"]
    weights = {"scale": np.float32(0.5), "zero": np.int8(0)}
    graph = decode(builders.model(nodes, ports[:1], ports[1:], weights, opset=21, ir_version=10))
    x = np.array([[0.6, -0.9, 2.0, 100]], np.float32)
    (found,) = tapped(graph, ["d"], 1).run({"x": x}).values()
    np.testing.assert_array_equal(found, [[0.5, -1, 2, 63.5]])


def test_a_scan_runs_behind_a_reshape_to_computed_sizes() -> None:
    """ONNX Runtime runs one only where it knows the ranks of what it reads, which a piece has no types for."""
    row = [builders.value(name, builders.FLOAT, [4]) for name in ("in", "out")]
    body = helper.make_graph([helper.make_node("Neg", ["in"], ["out"])], "body", row[:1], row[1:])
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["same"]),
        helper.make_node("Scan", ["same"], ["y"], body=body, num_scan_inputs=1),
    ]
    ends = [builders.value(name, builders.FLOAT, ["N", 4]) for name in "xy"]
    ends.insert(0, builders.value("sizes", builders.INT64, ["rank"]))
    graph = decode(builders.model(nodes, ends[:2], ends[2:], opset=13))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    ((found,),) = Stages(graph, [{"x": x, "sizes": np.array([3, 4])}], 1).get([graph.outputs[0]])
    np.testing.assert_array_equal(found, -x)
