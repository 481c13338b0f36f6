"""Does prune-blocks take the branches that matter least, meet its target, and make good what it took?"""

from __future__ import annotations

import builders
import numpy as np
import pytest
from coupling_checks import OPERATORS, graph_of
from nets import Net
from onnx import ModelProto, numpy_helper
from test_pass_prune_channels import Samples, macs

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph import cost
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.passes.prune_blocks import PruneBlocks

SCALES = (0.6, 0.05, 0.5, 0.1)  # of what each branch adds


def residual(scales: tuple[float, ...] = SCALES, width: int = 6) -> ModelProto:
    """A stem and one block a scale; the second convolution of each is that small."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, width))
    small: dict[str, float] = {}
    for scale in scales:
        inner = net.op("Relu", net.conv(x, width, width))
        branch = net.conv(inner, width, width)
        small[net.nodes[-1].input[1]] = scale
        x = net.op("Relu", net.op("Add", branch, x))
    model = net.model(net.conv(x, width, 2))
    for tensor in model.graph.initializer:
        if tensor.name in small:
            values = numpy_helper.to_array(tensor) * np.float32(small[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def images(count: int = 96, seed: int = 0) -> Samples:
    return Samples({"x0": builders.rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)})


def run(graph: Graph, spec: str, costs: object = None) -> RunResult:
    context = PassContext(calibration=images(), sample_shapes={"x0": (1, 3, 8, 8)}, costs=costs)
    return PassManager(Pipeline.parse(spec), verify=False).run(graph, context)


def gone(model: ModelProto, result: RunResult) -> list[int]:
    """Which of the blocks are no longer there."""
    left = {node.name for node in result.graph.nodes}
    adds = [node.name for node in model.graph.node if node.op_type == "Add"]
    return [index for index, name in enumerate(adds) if name not in left]


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (2, [1, 3])])
def test_the_branches_that_give_least_leave(count: int, expected: list[int]) -> None:
    model = residual()
    assert gone(model, run(graph_of(model), f"prune-blocks{{count={count}}}")) == expected


def test_what_is_left_makes_up_for_the_branch() -> None:
    model, feeds = residual((0.3, 0.3)), images(32, seed=1).feeds
    reference = builders.run(model, feeds)[0]
    quality = []
    for compensate in ("false", "true"):
        result = run(graph_of(model), f"prune-blocks{{count=1,compensate={compensate}}}")
        quality.append(builders.sqnr_db(reference, builders.run(to_bytes(result.graph), feeds)[0]))
    assert quality[1] > quality[0] + 3.0


def test_targets_in_macs_and_parameters_are_met() -> None:
    graph = graph_of(residual())
    result = run(graph, "prune-blocks{macs=0.8,max_error=1.0}")
    assert 0.5 < macs(result.graph) / macs(graph) <= 0.8
    result = run(graph, "prune-blocks{params=0.6,max_error=1.0}")
    share = cost.parameters(result.graph, OPERATORS).total / cost.parameters(graph, OPERATORS).total
    assert 0.3 < share <= 0.6


class Told:
    """A cost model with made-up answers: so long a convolution."""

    def latency_ms(self, graph: Graph) -> float:
        return sum(self.node_times_us(graph).values()) / 1000

    def node_times_us(self, graph: Graph) -> dict[str, float]:
        return {node.name: 100.0 if node.op == "Conv" else 1.0 for node in graph.nodes}


def test_a_latency_target_asks_the_cost_model() -> None:
    model = residual()
    result = run(graph_of(model), "prune-blocks{latency=0.7,max_error=1.0}", Told())
    assert gone(model, result) == [1, 3]


def test_costly_branches_stay_and_the_report_says_so() -> None:
    model = residual((2.0, 2.0))
    result = run(graph_of(model), "prune-blocks{count=2,max_error=0.01}")
    assert result.changes == 0
    assert all("would cost" in skip.why for skip in result.records[0].skips)


def test_excluded_branches_stay() -> None:
    model = residual()
    second = [node.name for node in model.graph.node if node.op_type == "Add"][1]
    result = run(graph_of(model), f'prune-blocks{{count=1,exclude=["{second}"]}}')
    assert gone(model, result) == [3]
    assert {skip.node: skip.why for skip in result.records[0].skips}[second].startswith("not selected")


def test_options_and_data_are_checked_first() -> None:
    with pytest.raises(UsageError, match="one of"):
        PruneBlocks()
    with pytest.raises(DataError, match="calibration data"):
        PassManager(Pipeline.parse("prune-blocks{count=1}"), verify=False).run(graph_of(residual()), PassContext())


def test_same_input_gives_the_same_bytes() -> None:
    graph = graph_of(residual())
    first, second = (to_bytes(run(graph, "prune-blocks{count=2}").graph) for _ in range(2))
    assert first == second


def test_a_shortcut_that_is_spread_over_the_branch_is_no_residual() -> None:
    net = Net()
    spread = net.op("Relu", net.weight(8))  # computed, one value a feature
    x = net.op("Add", net.op("MatMul", net.input("N", 6, 12), net.weight(12, 8)), spread)
    inner = net.op("Relu", net.op("MatMul", x, net.weight(8, 16)))
    x = net.op("Add", net.op("MatMul", inner, net.weight(16, 8, scale=0.01)), x)
    model = net.model(net.op("MatMul", x, net.weight(8, 4)))
    feeds = {"x0": builders.rng(1).standard_normal((24, 6, 12)).astype(np.float32)}
    context = PassContext(calibration=Samples(feeds), sample_shapes={"x0": (1, 6, 12)})
    result = PassManager(Pipeline.parse("prune-blocks{count=1}"), verify=False).run(graph_of(model), context)
    assert len(gone(model, result)) == 1
    assert builders.sqnr_db(builders.run(model, feeds)[0], builders.run(to_bytes(result.graph), feeds)[0]) > 20
