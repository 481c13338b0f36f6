"""Does fake quantization compute what is written afterwards, with the gradients of its paper?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import Net

from onnxcomp.distill import engine, environment
from onnxcomp.distill.task import Feeding, TrainingTask
from onnxcomp.errors import EnvironmentLacksError, OutputError, UsageError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.graph.rounding import Levels, symmetric_scales
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.training import quantized
from onnxcomp.passes.training.fake import FakeWeight, Step, insert
from onnxcomp.passes.training.quantized import Precision, Quantization, packed
from onnxcomp.passes.training.scales import least_squares_scales


class Feeds:
    """Seeded pictures as samples."""

    labels = None
    source = "random"

    def __init__(self, *shape: int, count: int = 64) -> None:
        self.x = np.random.default_rng(5).normal(size=(count, *shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self), size or 16):
            yield {"x0": self.x[start : start + (size or 16)]}


def residual_net(width: int = 8) -> Graph:
    """Conv, a residual block, pooling and a classifier: all that the CPU's integer kernels join."""
    net = Net(seed=2)
    x = net.input("n", 3, 8, 8)
    a = net.op("Relu", net.conv(x, 3, width))
    b = net.conv(net.op("Relu", net.conv(a, width, width)), width, width)
    c = net.op("MaxPool", net.op("Relu", net.op("Add", a, b)), kernel_shape=[2, 2], strides=[2, 2])
    d = net.op("Relu", net.conv(c, width, 12))
    flat = net.op("Flatten", net.op("GlobalAveragePool", d))
    return decode(net.model(net.gemm(flat, 12, 5)))


def run(graph: Graph, x: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def planned(precision: Precision, target: str = "cpu") -> tuple[Quantization, np.ndarray]:
    feeds = Feeds(3, 8, 8)
    context = PassContext(calibration=feeds, sample_shapes={"x0": (1, 3, 8, 8)}, target=target)
    graph = residual_net(8 if target == "cpu" else 32)
    return quantized.plan(graph, precision, lambda node: True, context), feeds.x


def moved(plan: Quantization) -> dict[str, np.ndarray]:
    """Learned scales somewhere else than at their start."""
    rng = np.random.default_rng(0)
    return {
        step.name: rng.normal(size=step.base.shape).astype(np.float32) * 0.1
        for step in (*(w.step for w in plan.weights.values()), *(a.step for a in plan.activations))
    }


@pytest.mark.parametrize("activation_bits", [0, 8, 4])
@pytest.mark.parametrize("bits", [8, 5, 4, 2, 1])
def test_what_is_written_computes_what_was_trained(bits: int, activation_bits: int) -> None:
    plan, x = planned(Precision(bits, activation_bits, 8 if activation_bits else 0, "adamw", "portable"))
    learned = moved(plan)
    trained = run(plan.reference(learned), x, optimize=False)
    plan.write(learned)
    written = run(plan.graph, x)
    error = np.square(written - trained).sum() / np.square(trained).sum()
    assert error < (1e-10 if not activation_bits else 2e-3)
    plain = run(residual_net(), x)
    assert np.square(trained - plain).sum() / np.square(plain).sum() > 1e-6, "nothing was rounded"


def kernels(graph: Graph, tmp_path) -> set[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    ort.InferenceSession(to_bytes(graph), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node}


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_packed_weights_run_on_integer_kernels(bits: int, tmp_path) -> None:
    plan, _ = planned(Precision(bits, 8, 0, "adamw", "portable"))
    weights = sum(c.size for c in plan.graph.constants() if len(c.shape) > 1)
    plan.write({})
    found = kernels(plan.graph, tmp_path)
    assert {"QLinearConv", "QGemm"} <= found
    assert not {"Conv", "Gemm", "BitShift"} & found
    codes = sum(c.nbytes for c in plan.graph.constants() if c.name.endswith("_codes"))
    assert codes == (0 if bits == 8 else pytest.approx(weights * bits / 8, abs=8))


def test_activations_of_few_bits_take_few_values() -> None:
    plan, x = planned(Precision(4, 3, 0, "adamw", "portable"))
    plan.write({})
    readers = {n.inputs[0].name for n in plan.graph.nodes if n.op == "DequantizeLinear" and n.inputs[0].producer}
    clipped = [n for n in plan.graph.nodes if n.op == "Clip" and n.outputs[0].name in readers]
    assert clipped
    copy = plan.graph.clone()
    tensor = copy.tensors()[clipped[1].outputs[0].name]
    copy.outputs = [tensor]
    assert set(np.unique(run(copy, x))) <= set(range(8))


def test_residual_streams_stay_float_where_activations_have_few_bits() -> None:
    plan, _ = planned(Precision(4, 4, 8, "adamw", "portable"))
    assert plan.plan is not None
    assert not any(node.op == "Add" for node in plan.plan.joined)
    whole, _ = planned(Precision(8, 8, 8, "adamw", "portable"))
    assert whole.plan is not None
    assert any(node.op == "Add" for node in whole.plan.joined)


def test_edges_keep_more_bits() -> None:
    plan, _ = planned(Precision(2, 4, 8, "adamw", "portable"))
    assert list(plan.bits.values()) == [8, 2, 2, 2, 8]
    plan, _ = planned(Precision(2, 4, 0, "adamw", "portable"))
    assert set(plan.bits.values()) == {2}


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_single_weights_have_their_bits_and_one_scale_where_that_is_asked(activation_bits: int) -> None:
    names = list(planned(Precision(2, activation_bits, 4, "adamw", "portable"))[0].weights)
    own = {names[2]: 3}
    plan, x = planned(Precision(2, activation_bits, 4, "adamw", "portable", own, each_channel=False))
    assert [plan.bits[name] for name in names] == [4, 2, 3, 2, 4]
    assert all(fake.step.base.size == 1 for fake in plan.weights.values())
    learned = moved(plan)
    expected = run(plan.reference(learned), x, optimize=False)
    plan.write(learned)
    error = np.abs(run(plan.graph, x) - expected).max() / np.abs(expected).max()
    assert error < (0.02 if activation_bits else 1e-5)
    scales = [c for c in plan.graph.constants() if c.name.endswith("_scale")]
    assert activation_bits or (len(scales) == 5 and all(c.size == 1 for c in scales))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ('distill{bits=2,bits_of=["fc1"]}', "GLOB:BITS"),
        ('distill{bits=2,bits_of=["fc1:9"]}', "GLOB:BITS"),
        ('distill{bits_of=["fc1:2"]}', "belong to weights on few bits"),
        ("distill{granularity=tensor}", "belong to weights on few bits"),
    ],
)
def test_bits_of_single_weights_are_checked_before_any_work(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Pipeline.parse(spec)


def test_eight_bit_weights_never_saturate_where_products_are_added_in_pairs() -> None:
    plan, _ = planned(Precision(8, 8, 8, "adamw", "portable"))
    assert all(fake.levels.high <= 64 for fake in plan.weights.values())
    plan, _ = planned(Precision(8, 8, 8, "adamw", "native"))
    assert all(fake.levels.high == 127 for fake in plan.weights.values())


def test_tensorrt_takes_no_activations_of_few_bits() -> None:
    with pytest.raises(UsageError, match="4 bits"):
        planned(Precision(4, 4, 8, "adamw", "portable"), target="tensorrt")
    plan, x = planned(Precision(8, 8, 8, "adamw", "portable"), target="tensorrt")
    trained = run(plan.reference({}), x, optimize=False)
    plan.write({})
    assert "Clip" not in plan.graph.operators()
    written = run(plan.graph, x, optimize=False)
    assert np.square(written - trained).sum() < 1e-5 * np.square(trained).sum()


def test_scales_start_where_the_error_is_least() -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 400)).astype(np.float32)
    matrix[5] = 0

    def error(scales: np.ndarray, levels: Levels) -> np.ndarray:
        q = np.clip(np.rint(matrix / scales[:, None]), levels.low, levels.high)
        return np.square(matrix - q * scales[:, None]).sum(1)

    for bits, share in ((2, 0.25), (4, 0.8), (8, 1.0)):
        levels = Levels.signed(bits, narrow=False)
        found, full = least_squares_scales(matrix, levels), symmetric_scales(matrix, levels)
        assert (error(found, levels)[:5] <= share * error(full, levels)[:5] + 1e-6).all()
        assert found[5] == pytest.approx(found[:5].mean())


def test_binary_codes_are_signs() -> None:
    values = np.float32([[0.5, -0.25, 0.0, 1.0]])
    fake = FakeWeight.of(decode_weight(values), Weight(1), None, "w.step", "adamw")
    integers, scales = fake.integers(values, None)
    assert set(integers.reshape(-1).tolist()) == {-1, 1}
    assert scales[0] == pytest.approx(np.abs(values).mean())
    assert packed(integers, 1).decode((1, 4)).tolist() == integers.tolist()


def decode_weight(values: np.ndarray):
    net = Net()
    x = net.input(2, values.shape[1])
    w = net.const(values, np.float32)
    graph = decode(net.model(net.op("Gemm", x, w, transB=1)))
    return graph.constants()[0]


# -- gradients, in the worker --


@pytest.fixture(scope="module")
def runtime() -> environment.Environment:
    try:
        return environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_scale_gradient_is_the_papers(runtime, optimizer) -> None:
    """d/ds of s * round(clip(w/s)) is round(w/s) - w/s inside and the level outside, times spread for r."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(3, 40)).astype(np.float32)
    net = Net()
    x = net.input(4, 40)
    graph = decode(net.model(net.op("Gemm", x, net.const(weight, np.float32), transB=1)))
    (constant,) = graph.constants()
    levels = Levels(-2, 1)
    fake = FakeWeight.of(constant, Weight(1), levels, "step", optimizer)
    inserted = insert(graph, [fake])
    square = graph.add_node("ReduceMean", [graph.outputs[0]], attrs={"keepdims": 0}).outputs[0]
    square.name, square.dtype, square.shape = "loss", np.dtype(np.float32), ()
    graph.outputs = [square]
    graph.sort()
    rows = rng.normal(size=(4, 40)).astype(np.float32)
    feeding = Feeding({"x0": rows}, np.arange(4).reshape(1, 4), np.zeros((0, 4), np.int64))
    task = TrainingTask(graph, feeding, (constant.name, *inserted.trainable))
    found = engine.gradient_moments(task, 1, runtime=runtime).mean
    scale = fake.step.base
    ratio = weight / scale
    inside = (ratio > levels.low) & (ratio < levels.high)
    to_scale = np.where(inside, np.rint(ratio) - ratio, np.clip(ratio, levels.low, levels.high))
    upstream = np.broadcast_to(rows.mean(0) / 3, weight.shape)
    assert found["step"] == pytest.approx((upstream * to_scale).sum(1, keepdims=True) * fake.step.spread, rel=1e-3)
    assert found[constant.name] == pytest.approx(upstream * inside, abs=1e-6)
    assert (fake.step.spread == (fake.step.base if optimizer == "adamw" else (40 * 1) ** -0.25)).all()


def test_a_scale_never_turns_its_sign() -> None:
    step = Step.start("s", np.float32([0.5, 2.0]), 10, 7, "sgd")
    low = step.constraint.low
    assert low is not None
    assert (step.scale(low) > 0).all()
    assert step.scale(low) == pytest.approx(0.05 * step.base)


def test_inserting_keeps_the_interface() -> None:
    plan, _ = planned(Precision(4, 8, 8, "adamw", "portable"))
    copy = plan.graph.clone()
    inserted = plan.insert(copy)
    assert [t.name for t in copy.inputs] == ["x0"]
    assert all(isinstance(t, Variable) for t in copy.outputs)
    assert set(inserted.trainable) == set(inserted.constraints)
    assert len(inserted.trainable) == len(set(inserted.trainable)) >= 10
