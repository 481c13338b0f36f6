"""Does prune-channels meet its targets, keep what it is told to keep, and make good what it took?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from coupling_checks import OPERATORS, graph_of
from nets import Net

import onnxcomp
from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph import cost
from onnxcomp.graph.io import load, to_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline, RunResult
from onnxcomp.passes.prune_channels import PruneChannels
from onnxcomp.passes.structure.trials import Candidate, hardly_worse


class Samples:
    """Feeds held in memory."""

    labels = None
    source = "test"

    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self.feeds = feeds

    def __len__(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int | None = None):
        size = size or 32
        for start in range(0, len(self), size):
            yield {name: value[start : start + size] for name, value in self.feeds.items()}


def run(graph: Graph, spec: str, samples: Samples | None = None) -> RunResult:
    shapes = {} if samples is None else {name: value[:1].shape for name, value in samples.feeds.items()}
    context = PassContext(calibration=samples, sample_shapes=shapes)
    return PassManager(Pipeline.parse(spec), verify=False).run(graph, context)


def macs(graph: Graph) -> int:
    return cost.stats(graph, OPERATORS, file_bytes=0).macs


def widths(graph: Graph) -> dict[str, int]:
    return {node.name: weight.shape[use.out_axis] for node in graph.nodes for use, weight in OPERATORS.weights(node)}


def images(count: int = 64, seed: int = 0) -> Samples:
    return Samples({"image": builders.rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)})


@pytest.mark.parametrize("target", ["ratio", "macs", "params"])
@pytest.mark.parametrize("with_data", [False, True])
def test_target_is_met_and_hardly_overshot(target: str, with_data: bool) -> None:
    graph = graph_of(builders.residual_cnn(channels=32))
    result = run(graph, f"prune-channels{{{target}=0.6,streams=true}}", images() if with_data else None)
    if target == "macs":
        share = macs(result.graph) / macs(graph)
    elif target == "params":
        share = cost.parameters(result.graph, OPERATORS).total / cost.parameters(graph, OPERATORS).total
    else:
        share = 0.6 - abs(0.6 - (64 - widths(result.graph)["stem"] - widths(result.graph)["block.conv1"]) / 64)
    assert 0.5 < share <= 0.605


@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm", "bn", "random"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_ranking_by_weights_needs_no_data(importance: str, scope: str) -> None:
    graph = graph_of(builders.residual_cnn(channels=16))
    result = run(graph, f"prune-channels{{ratio=0.25,importance={importance},scope={scope}}}")
    assert widths(result.graph)["block.conv1"] == 12
    builders.run(to_bytes(result.graph), {"image": images(2).feeds["image"]})


def test_measured_ranking_without_data_is_refused_before_any_work() -> None:
    graph = graph_of(builders.residual_cnn())
    with pytest.raises(DataError, match="calibration data"):
        run(graph, "prune-channels{ratio=0.3,importance=reconstruction}")


@pytest.mark.parametrize("importance", ["reconstruction", "activation"])
def test_compensation_brings_the_outputs_nearer(importance: str) -> None:
    model = builders.residual_cnn(channels=32, batch_norm=False)
    spec = f"prune-channels{{ratio=0.4,importance={importance},compensate=%s}}"
    feeds = images(32, seed=1).feeds
    reference = builders.run(model, feeds)[0]
    quality = []
    for compensate in ("false", "true"):
        result = run(graph_of(model), spec % compensate, images(128))
        quality.append(builders.sqnr_db(reference, builders.run(to_bytes(result.graph), feeds)[0]))
    assert quality[1] > quality[0] + 3.0


def test_duplicated_channels_leave_without_loss() -> None:
    """Half of the hidden units repeat the other half: their readers take over exactly."""
    generator = builders.rng(0)
    net = Net()
    x = net.input("N", 8)
    half, bias = builders.normal(generator, 8, 8), generator.standard_normal(8).astype(np.float32)
    net.weights["w"], net.weights["b"] = np.concatenate([half, half]), np.concatenate([bias, bias])
    hidden = net.op("Relu", net.op("Gemm", x, "w", "b", transB=1))
    model = net.model(net.gemm(hidden, 16, 4))
    samples = Samples({"x0": generator.standard_normal((256, 8)).astype(np.float32)})
    result = run(graph_of(model), 'prune-channels{keep=["n1_Gemm:8"],damping=1e-6}', samples)
    feeds = {"x0": generator.standard_normal((16, 8)).astype(np.float32)}
    before, after = builders.run(model, feeds)[0], builders.run(to_bytes(result.graph), feeds)[0]
    assert widths(result.graph)["n1_Gemm"] == 8
    assert builders.sqnr_db(before, after) > 40


@pytest.mark.parametrize(("multiple", "blocks"), [("auto", True), ("1", False)])
def test_on_a_cpu_widths_are_whole_blocks_where_that_costs_nothing(multiple: str, blocks: bool) -> None:
    """Forty channels, twelve of them different: any width from twelve on loses nothing, so the kernels may choose."""
    generator = builders.rng(0)
    net = Net()
    x = net.input("N", 8, 3, 3)
    copies = np.arange(40) % 12
    net.weights["w"] = builders.normal(generator, 12, 8, 1, 1)[copies]
    net.weights["b"] = generator.standard_normal(12).astype(np.float32)[copies]
    net.weights["last"] = builders.normal(generator, 4, 40, 1, 1)
    model = net.model(net.op("Conv", net.op("Relu", net.op("Conv", x, "w", "b")), "last"))
    samples = Samples({"x0": generator.standard_normal((64, 8, 3, 3)).astype(np.float32)})
    spec = f"prune-channels{{macs=0.9,multiple_of={multiple},damping=1e-6}}"
    width = widths(run(graph_of(model), spec, samples).graph)["n1_Conv"]
    assert 12 <= width <= 36
    assert (width % 8 == 0) == blocks


def test_of_candidates_the_last_is_taken_that_is_hardly_worse() -> None:
    candidates = [Candidate((i,)) for i in range(4)]
    for losses, best in (([1.0, 0.9, 0.91, 1.1], 2), ([1.0, 1.1, 1.2, 1.3], 0), ([1e-9, 1e-7, 2e-6, 1e-4], 2)):
        assert hardly_worse(candidates, lambda c, losses=losses: losses[c.removed[0]]) == candidates[best]


def test_explicit_widths_and_their_errors() -> None:
    graph = graph_of(builders.residual_cnn(channels=16))
    assert widths(run(graph, 'prune-channels{keep=["block.conv1:6"]}').graph)["block.conv1"] == 6
    with pytest.raises(UsageError, match="cannot keep"):
        run(graph, 'prune-channels{keep=["block.conv1:17"]}')
    with pytest.raises(UsageError, match="matches no group"):
        run(graph, 'prune-channels{keep=["nothing*:4"]}')
    with pytest.raises(UsageError, match="GLOB:WIDTH"):
        PruneChannels(keep=("conv",))


def test_one_target_is_needed_and_no_more() -> None:
    for options in ({}, {"ratio": 0.3, "macs": 0.5}):
        with pytest.raises(UsageError, match="one of"):
            PruneChannels(**options)


def test_widths_are_multiples_and_never_below_the_least() -> None:
    graph = graph_of(builders.residual_cnn(channels=32))
    result = run(graph, "prune-channels{macs=0.5,multiple_of=8,min_keep=16,streams=true}")
    found = widths(result.graph)
    assert all(found[name] % 8 == 0 and found[name] >= 16 for name in ("stem", "block.conv1"))


def test_excluded_layers_stay_and_the_report_says_so() -> None:
    graph = graph_of(builders.residual_cnn(channels=16))
    result = run(graph, "prune-channels{ratio=0.5,exclude=[block.conv1]}")
    assert result.changes == 0
    assert {skip.node: skip.why for skip in result.records[0].skips}["block.conv1"].startswith("not selected")


def test_same_input_gives_the_same_bytes() -> None:
    graph = graph_of(builders.residual_cnn(channels=16))
    first, second = (to_bytes(run(graph, "prune-channels{macs=0.6}", images()).graph) for _ in range(2))
    assert first == second


def test_heads_and_neurons_of_a_transformer() -> None:
    model = builders.transformer(heads=4)
    feed = builders.transformer_feed(batch=32)
    result = run(graph_of(model), "prune-channels{ratio=0.25}", Samples(feed))
    kinds = " ".join(change.what for change in result.records[0].details)
    assert "heads" in kinds or "neurons" in kinds
    after = builders.run(to_bytes(result.graph), builders.transformer_feed())
    assert after[0].shape == builders.run(model, builders.transformer_feed())[0].shape


def test_resnet20_at_two_thirds_of_its_macs(assets: Path) -> None:
    """Half the calibration samples of the stated target, a part of the test set: far above what a plain cut leaves."""
    with np.load(assets / "data" / "cifar10-train.npz") as stored:
        train = stored["images"][:256]
    with np.load(assets / "data" / "cifar10-test.npz") as stored:
        test, labels = stored["images"][:1000], stored["labels"][:1000]

    def ready(pixels: np.ndarray) -> np.ndarray:
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))

    graph = load(assets / "models" / "resnet20-cifar10.onnx")
    result = run(graph, "prune-channels{macs=0.6667}", Samples({"input": ready(train)}))
    assert macs(result.graph) <= 0.6667 * macs(graph)
    scores = builders.run(to_bytes(result.graph), {"input": ready(test)})[0]
    assert float((scores.argmax(1) == labels).mean()) > 0.80


def nearly_closed(*, depth: int = 3, width: int = 48, hidden: int = 64) -> onnx.ModelProto:
    """Layers added to the input, so that their widths are given, and one open hidden layer behind them."""
    generator = builders.rng(0)
    net = Net()
    source = h = net.input("N", width)
    for index in range(depth):
        net.weights[f"w{index}"] = builders.normal(generator, width, width)
        h = net.op("Add", net.op("Tanh", net.op("MatMul", h, f"w{index}")), source)
    net.weights["up"], net.weights["down"] = (
        builders.normal(generator, *s) for s in ((width, hidden), (hidden, width))
    )
    return net.model(net.op("MatMul", net.op("Relu", net.op("MatMul", h, "up")), "down"))


def vectors(count: int, width: int = 48) -> Samples:
    return Samples({"x0": builders.rng(3).standard_normal((count, width)).astype(np.float32)})


@pytest.mark.parametrize("target", ["macs=0.3", "params=0.3", "ratio=0.97"])
def test_a_target_out_of_reach_is_said_and_the_model_stays_usable(target: str) -> None:
    model = nearly_closed()
    result = run(graph_of(model), f"prune-channels{{{target}}}", vectors(256))
    feeds = vectors(64).feeds
    assert builders.sqnr_db(builders.run(model, feeds)[0], builders.run(to_bytes(result.graph), feeds)[0]) > 8
    (record,) = result.records
    assert record.missed.startswith(f"{target} was not reached: {target.split('=', maxsplit=1)[0]}=0.")
    assert any("is out of reach" in note and "half of what their readers get" in note for note in record.notes)


@pytest.mark.parametrize("samples", [None, vectors(4)])
def test_without_samples_to_judge_on_a_target_out_of_reach_changes_nothing(samples: Samples | None) -> None:
    result = run(graph_of(nearly_closed()), "prune-channels{macs=0.3}", samples)
    (record,) = result.records
    assert record.changes == 0
    assert record.missed == "macs=0.3 was not reached: the model stays as it is"


def test_the_first_line_says_that_a_target_was_not_reached(tmp_path: Path) -> None:
    path = builders.save(nearly_closed(), tmp_path / "m.onnx")
    out = tmp_path / "o.onnx"
    report = onnxcomp.optimize(path, output=str(out), passes="prune-channels{macs=0.3}", bench=False)
    assert (report.exit_code, report.reason) == (13, "macs=0.3 was not reached: the model stays as it is")
    assert not out.exists()
