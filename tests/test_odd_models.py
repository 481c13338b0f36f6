"""Does the default run stand what is neither an image model nor a transformer? It compresses, or says why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnxcomp
from onnxcomp.errors import DataError, ModelError
from onnxcomp.inspection import inspect
from onnxcomp.manager import registry

FLOAT, INT64, DOUBLE, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.BOOL
Port = tuple[str, int, Sequence[int | str] | None]
GENERATOR = builders.rng(0)


def weight(*shape: int) -> np.ndarray:
    return (0.3 * GENERATOR.standard_normal(shape)).astype(np.float32)


def model(
    nodes: list[NodeProto], inputs: list[Port], outputs: list[Port], opset: int = 17, **weights: np.ndarray
) -> ModelProto:
    ends = ([builders.value(*port) for port in ports] for ports in (inputs, outputs))
    return builders.model(nodes, *ends, weights, opset=opset, check=False)


def tagger() -> ModelProto:
    """Token numbers to a label a token, through a GRU."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embedding"),
        helper.make_node("Transpose", ["e"], ["t"], "turn", perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r", "b"], ["h"], "gru", hidden_size=32),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], "squeeze"),
        helper.make_node("MatMul", ["s", "head"], ["l"], "head"),
        helper.make_node("Transpose", ["l"], ["logits"], "back", perm=[1, 0, 2]),
    ]
    weights = {"table": weight(500, 64), "w": weight(1, 96, 64), "r": weight(1, 96, 32), "b": weight(1, 192)}
    weights |= {"axis": np.array([1]), "head": weight(32, 9)}
    return model(nodes, [("ids", INT64, ["N", "S"])], [("logits", FLOAT, ["N", "S", 9])], **weights)


def picture_and_numbers() -> ModelProto:
    """Two inputs of different rank, whose batches bear different names."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["c"], "conv", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["m"], "mean"),
        helper.make_node("Flatten", ["m"], ["f"], "flatten"),
        helper.make_node("Concat", ["f", "numbers"], ["j"], "join", axis=1),
        helper.make_node("Gemm", ["j", "w"], ["y"], "head"),
    ]
    inputs: list[Port] = [("image", FLOAT, ["A", 3, 32, 32]), ("numbers", FLOAT, ["B", 16])]
    return model(nodes, inputs, [("y", FLOAT, ["A", 64])], kernel=weight(32, 3, 3, 3), w=weight(48, 64))


def open_sizes() -> ModelProto:
    """Height, width and batch are free, the rank of the output is not known."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", kernel_shape=[3, 3]),
        helper.make_node("Shape", ["c"], ["s"], "shape"),
        helper.make_node("ReduceProd", ["s"], ["p"], "size", keepdims=1),
        helper.make_node("Reshape", ["c", "p"], ["y"], "flat"),
    ]
    ends: tuple[list[Port], list[Port]] = [("x", FLOAT, ["n", 3, "h", "w"])], [("y", FLOAT, None)]
    return model(nodes, *ends, w1=weight(32, 3, 3, 3), w2=weight(16, 32, 3, 3))


def whole_numbers() -> ModelProto:
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["d"], "double"),
        helper.make_node("Gather", ["table", "d"], ["y"], "look"),
    ]
    table = GENERATOR.integers(0, 99, (10, 200))
    return model(nodes, [("x", INT64, ["N"])], [("y", INT64, ["N", 200])], two=np.array(2), table=table)


def sequence_inside() -> ModelProto:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], "split", axis=1),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], "join", axis=1),
        helper.make_node("MatMul", ["c", "w"], ["y"], "product"),
    ]
    return model(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 64])], w=weight(64, 64))


def double_precision() -> ModelProto:
    w = {"w": GENERATOR.standard_normal((64, 64)), "b": GENERATOR.standard_normal(64)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc")]
    return model(nodes, [("x", DOUBLE, ["N", 64])], [("y", DOUBLE, ["N", 64])], **w)


def masked() -> ModelProto:
    nodes = [
        helper.make_node("Where", ["mask", "x", "zero"], ["a"], "where"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "product"),
    ]
    inputs: list[Port] = [("mask", BOOL, ["N", 64]), ("x", FLOAT, ["N", 64])]
    return model(nodes, inputs, [("y", FLOAT, ["N", 64])], zero=np.array(0, np.float32), w=weight(64, 64))


def one_and_three_dimensions() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1d", kernel_shape=[5]),
        helper.make_node("Unsqueeze", ["a", "axes"], ["b"], "up"),
        helper.make_node("Conv", ["b", "w2"], ["y"], "conv3d", kernel_shape=[1, 1, 3]),
    ]
    weights = {"w1": weight(32, 16, 5), "axes": np.array([2, 3]), "w2": weight(32, 32, 1, 1, 3)}
    return model(nodes, [("x", FLOAT, ["N", 16, 40])], [("y", FLOAT, ["N", 32, 1, 1, 34])], **weights)


def grouped_deconvolution() -> ModelProto:
    nodes = [
        helper.make_node(
            "ConvTranspose", ["x", "w", "b"], ["y"], "up", kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4, group=2
        )
    ]
    ends: tuple[list[Port], list[Port]] = [("x", FLOAT, ["N", 16, 8, 8])], [("y", FLOAT, ["N", 32, 16, 16])]
    return model(nodes, *ends, w=weight(16, 16, 4, 4), b=weight(32))


def noise() -> ModelProto:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["e"], "noise"),
        helper.make_node("Add", ["x", "e"], ["z"], "add"),
        helper.make_node("MatMul", ["z", "w"], ["y"], "product"),
    ]
    return model(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 64])], w=weight(64, 64))


def inputs_and_weights_as_outputs() -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], "product")]
    outputs: list[Port] = [("m", FLOAT, ["N", 64]), ("x", FLOAT, ["N", 32]), ("w", FLOAT, [32, 64])]
    return model(nodes, [("x", FLOAT, ["N", 32])], outputs, w=weight(32, 64))


def no_inputs() -> ModelProto:
    return model([helper.make_node("Identity", ["w"], ["y"], "same")], [], [("y", FLOAT, [4, 4])], w=weight(4, 4))


def no_nodes() -> ModelProto:
    return model([], [("x", FLOAT, ["N", 4])], [("x", FLOAT, ["N", 4])])


def no_width() -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    return model(nodes, [("x", FLOAT, ["N", 0])], [("y", FLOAT, ["N", 64])], w=weight(0, 64))


def minus_one_for_any_size() -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    return model(nodes, [("x", FLOAT, [-1, 64])], [("y", FLOAT, [-1, 64])], w=weight(64, 64))


def an_input_that_nothing_reads() -> ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    inputs: list[Port] = [("x", FLOAT, ["N", 64]), ("idle", INT64, ["N", 3])]
    return model(nodes, inputs, [("y", FLOAT, ["N", 64])], w=weight(64, 64))


def a_number_for_output() -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("ReduceSum", ["m"], ["y"], "sum", keepdims=0),
    ]
    return model(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, [])], w=weight(64, 64))


def opset_seven() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], "conv", kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], "norm"),
        helper.make_node("AveragePool", ["n"], ["p"], "pool", kernel_shape=[30, 30]),
        helper.make_node("Reshape", ["p", "shape"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "c"], ["y"], "fc", transB=1),
    ]
    weights = {"k": weight(64, 3, 3, 3), "s": weight(64), "b": weight(64), "m": weight(64), "v": weight(64) ** 2}
    weights |= {"shape": np.array([1, 64]), "w": weight(10, 64), "c": weight(10)}
    return model(nodes, [("x", FLOAT, [1, 3, 32, 32])], [("y", FLOAT, [1, 10])], 7, **weights)


COMPRESSED = (
    tagger,
    picture_and_numbers,
    open_sizes,
    sequence_inside,
    double_precision,
    masked,
    one_and_three_dimensions,
    grouped_deconvolution,
    noise,
    minus_one_for_any_size,
    an_input_that_nothing_reads,
    a_number_for_output,
    opset_seven,
)
UNCHANGED = (whole_numbers, inputs_and_weights_as_outputs, no_inputs, no_nodes, no_width)


@pytest.mark.parametrize("make", [*COMPRESSED, *UNCHANGED], ids=lambda make: make.__name__)
@pytest.mark.parametrize("random", [False, True], ids=["no-data", "random"])
def test_default_run(make: object, random: bool, tmp_path: Path) -> None:
    source, out = builders.save(make(), tmp_path / "model.onnx"), tmp_path / "out.onnx"
    shapes = {"x": (1, 3, 24, 24)} if make is open_sizes else {}
    report = onnxcomp.optimize(
        source, output=out, bench=False, allow_random=random, calib_samples=8, shapes=shapes, report=tmp_path / "r.json"
    )
    assert (report.exit_code, report.verdict) == ((0, "accepted") if make in COMPRESSED else (13, "unchanged"))
    assert out.exists() == (make in COMPRESSED)
    if out.exists():
        assert report.after.bytes == out.stat().st_size < 0.7 * report.before.bytes
        before, after = onnx.load(source).graph, onnx.load(out).graph
        assert [v.name for v in (*before.input, *before.output)] == [v.name for v in (*after.input, *after.output)]
        assert report.fidelity is not None
        assert report.fidelity.source == "synthetic"


@pytest.mark.parametrize("make", [*COMPRESSED, *UNCHANGED], ids=lambda make: make.__name__)
def test_inspect(make: object, tmp_path: Path) -> None:
    found = inspect(builders.save(make(), tmp_path / "model.onnx"), groups=True)
    assert sum(found.operators.values()) == len(make().graph.node)


def test_prospects_see_weights_in_constant_nodes_and_tell_what_a_pass_would_really_do(tmp_path: Path) -> None:
    generator = builders.rng()
    weight = numpy_helper.from_array(builders.normal(generator, 8, 3, 3, 3))
    nodes = [
        helper.make_node("Constant", [], ["w"], "weight", value=weight),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    ports = builders.value("x", FLOAT, [1, 3, 9, 9]), builders.value("y", FLOAT, [1, 8, 7, 7])
    path = builders.save(builders.model(nodes, ports[:1], ports[1:]), tmp_path / "model.onnx")
    told = {p.name: p.what for p in inspect(path).prospects}
    assert told["quantize-qdq"] == "1 weights, 100.0% of the parameters; needs calibration data"
    assert "nothing to do" in told["quantize-dynamic"], "no convolution is quantized at run time"
    assert told["convert-float16"].startswith("1 of 1 float32 nodes")


@pytest.mark.parametrize("make", [tagger, picture_and_numbers], ids=lambda make: make.__name__)
def test_what_is_told_of_a_pass_does_not_depend_on_those_before_it(
    make: Callable[[], ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builders.save(make(), tmp_path / "model.onnx")
    together = {p.name: p for p in inspect(path).prospects}
    names = registry.names()
    for name in names:
        monkeypatch.setattr(registry, "names", lambda name=name: [name])
        (alone,) = inspect(path).prospects
        assert alone == together[name]
    assert together.keys() == set(names)


def test_rows_of_a_constant_node_are_counted(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((5, 4), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["t"], "table", value=table),
        helper.make_node("Gather", ["t", "i"], ["y"], "gather"),
    ]
    ports = builders.value("i", INT64, [2]), builders.value("y", FLOAT, [2, 4])
    path = builders.save(builders.model(nodes, ports[:1], ports[1:]), tmp_path / "model.onnx")
    assert inspect(path).stats.parameters == 20


def test_guessed_sizes_are_said_and_count_in_the_macs(tmp_path: Path) -> None:
    path = builders.save(open_sizes(), tmp_path / "model.onnx")
    guessed, told = inspect(path), inspect(path, {"x": (1, 3, 10, 10)})
    assert any("h of x = 224 guessed" in note for note in guessed.notes)
    assert not told.notes
    assert told.stats.macs == 32 * 3 * 9 * 8 * 8 + 16 * 32 * 9 * 6 * 6 < guessed.stats.macs


def test_what_no_data_can_be_made_up_for_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    free = builders.save(model(nodes, [("x", FLOAT, None)], [("y", FLOAT, None)]), tmp_path / "free.onnx")
    with pytest.raises(DataError, match="unknown rank"):
        onnxcomp.optimize(free, bench=False)
    nodes = [helper.make_node("SequenceLength", ["s"], ["y"], "length")]
    several = helper.make_tensor_sequence_value_info("s", FLOAT, [4])
    proto = builders.model(nodes, [several], [builders.value("y", INT64, [])], check=False)
    with pytest.raises(ModelError, match="seq"):
        onnxcomp.optimize(builders.save(proto, tmp_path / "sequence.onnx"), bench=False)
