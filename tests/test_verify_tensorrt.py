"""What TensorRT takes, asked of its own parser and builder where they are installed; and how their answer is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import optimize
from onnxcomp.cli.main import main
from onnxcomp.errors import EnvironmentLacksError, ModelError
from onnxcomp.runtime import tensorrt
from onnxcomp.verify.tensorrt import ask_tensorrt

needs_parser = pytest.mark.skipif(not tensorrt.installed(), reason="TensorRT's parser is not installed")
FLOAT, INT8 = TensorProto.FLOAT, TensorProto.INT8


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code if isinstance(stopped.value.code, int) else 1


# -- reading the builder's log, without it --

LOG = "\n".join(
    [
        "Layers:",
        "Name: a, b_myl0, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,4], Datatype: Int8, Format: (N) "
        "Channel }], Constants: [ { Name: w, Dimensions: [[8],4], Datatype: Int8, F: x }, { Name: s, Datatype: Float }"
        "], Outputs: [ { Name: y, Datatype: Float }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv, 1]\x1f"
        "[ONNX Layer: q[0]]",
        "Name: pw, LayerType: kgen, Inputs: [ { Name: x, Datatype: Int8 }], Constants: [ { Datatype: Int8 }], "
        "Outputs: [], Metadata: [ONNX Layer: small]",
        "Name: f, LayerType: gemm, Inputs: [ { Datatype: Half }, { Datatype: Half }], Outputs: [], Metadata: ",
    ]
)


def test_layers_are_read_with_types_and_nodes():
    conv, small, gemm = tensorrt.parse_layers(LOG)
    assert conv == tensorrt.EngineLayer("a, b_myl0", "correlation", ("Int8",), ("Int8", "Float"), ("conv, 1", "q[0]"))
    assert conv.integer
    assert not small.integer  # a pointwise kernel that reads integers multiplies in float
    assert (gemm.inputs, gemm.constants, gemm.integer) == (("Half", "Half"), (), False)
    assert list(tensorrt.parse_layers("")) == []


def test_without_the_parser_it_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(tensorrt, "PACKAGE", "no_such_package_here")
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    with pytest.raises(EnvironmentLacksError, match="parser is not installed") as caught:
        ask_tensorrt(path)
    assert "onnxcomp[tensorrt]" in caught.value.do
    assert call("verify", path, "--target", "tensorrt") == 5


# -- the forms that docs/providers.md lists --


def product(op: str, *, axis: int | None, zero: int = 0, unsigned: bool = False, bias: str = "") -> onnx.ModelProto:
    """One Conv or MatMul with Q and DQ on its input and a quantized weight."""
    rng = np.random.default_rng(0)
    shape = (32, 32, 3, 3) if op == "Conv" else (32, 32)
    kind = TensorProto.UINT8 if unsigned else INT8
    scales = np.full(32 if axis is not None else (), 0.02, np.float32)
    consts = [
        helper.make_tensor("s", FLOAT, [], [0.05]),
        helper.make_tensor("z", kind, [], [zero]),
        numpy_helper.from_array(rng.integers(-127, 127, shape).astype(np.int8), "w8"),
        numpy_helper.from_array(scales, "ws"),
        numpy_helper.from_array(np.zeros(scales.shape, np.int8), "wz"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=axis or 0),
    ]
    inputs = ["d", "w"]
    if bias == "int32":
        consts += [
            helper.make_tensor("b32", TensorProto.INT32, [32], [3] * 32),
            numpy_helper.from_array(np.full(32, 0.001, np.float32), "bs"),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["b32", "bs"], ["b"], axis=0))
        inputs.append("b")
    elif bias == "float":
        consts.append(numpy_helper.from_array(np.ones(32, np.float32), "b"))
        inputs.append("b")
    extra = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
    nodes.append(helper.make_node(op, inputs, ["y"], name="product", **extra))
    sizes = [4, 32, 8, 8] if op == "Conv" else [64, 32]
    values = [helper.make_tensor_value_info(name, FLOAT, sizes) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], consts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@needs_parser
@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ({"op": "Conv", "axis": 0, "bias": "float"}, "int8"),
        ({"op": "Conv", "axis": None}, "int8"),
        ({"op": "MatMul", "axis": 1}, "int8"),
        ({"op": "MatMul", "axis": None}, "int8"),
        ({"op": "MatMul", "axis": 0}, "float"),
        ({"op": "Conv", "axis": 0, "zero": 3}, "refused"),
        ({"op": "Conv", "axis": 0, "bias": "int32"}, "refused"),
    ],
)
def test_forms_that_become_int8_and_forms_that_do_not(form: dict[str, Any], wanted: str, tmp_path: Path):
    found = ask_tensorrt(builders.save(product(**form), tmp_path / "m.onnx")).acceptance
    if wanted == "refused":
        assert not found.accepted and found.problems[0][2]
        return
    assert found.accepted, found.problems
    (one,) = found.products
    assert (one.node, one.asked, one.integer) == ("product", True, wanted == "int8")
    assert len(found.refused) == (wanted != "int8")


@needs_parser
def test_the_command_says_what_became_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = builders.save(product("Conv", axis=0), tmp_path / "good.onnx")
    assert call("verify", good, "--target", "tensorrt", "--json", tmp_path / "v.json") == 0
    assert "1 of 1 Conv, Gemm and MatMul are int8" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())["tensorrt"]["products"][0]["integer"] is True
    bad = builders.save(product("Conv", axis=0, zero=3), tmp_path / "bad.onnx")
    assert call("verify", bad, "--target", "tensorrt") == ModelError.exit_code
    assert "refuses the model" in capsys.readouterr().out
    assert call("verify", good, good, "--allow-random", "--target", "tensorrt", "--json", tmp_path / "v.json") == 0
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["tensorrt"]["integer"] == 1 and found["fidelity"]["samples"] > 0


@needs_parser
def test_free_dimensions_take_the_sizes_given(tmp_path: Path):
    path = builders.save(builders.transformer(), tmp_path / "m.onnx")
    found = ask_tensorrt(path, {"input_ids": (2, 7), "attention_mask": (2, 7)})
    assert found.acceptance.accepted, found.acceptance.problems
    assert found.shapes == {"input_ids": (2, 7), "attention_mask": (2, 7)}
    assert found.integer == 0 and "it has no Q and DQ" in found.kept_float.values()


# -- what our own pass writes --


@needs_parser
def test_a_result_that_tensorrt_refuses_is_an_error_where_it_takes_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the original is refused as well, it is only said."""
    from onnxcomp.runtime.tensorrt import Acceptance
    from onnxcomp.verify import tensorrt
    from onnxcomp.verify.tensorrt import TensorrtVerdict

    source = builders.save(builders.residual_cnn(), tmp_path / "m.onnx")
    real = tensorrt.ask_tensorrt
    bad = Acceptance("1.7", (("conv", "Conv", "no such form"),), ())

    def refuse(model: Path, shapes: Any) -> TensorrtVerdict:
        return real(model, shapes) if model == source and takes else TensorrtVerdict(model, {}, bad, {})

    monkeypatch.setattr(tensorrt, "ask_tensorrt", refuse)
    options = {"passes": "fuse-batchnorm", "target": "tensorrt", "bench": False, "output": tmp_path / "o.onnx"}
    takes = True
    with pytest.raises(ModelError, match="refuses the result, and takes the original: Conv conv: no such form"):
        optimize(source, **options)
    assert not (tmp_path / "o.onnx").exists()
    takes = False
    assert any("refuses the model" in note for note in optimize(source, **options).notes)


@needs_parser
def test_int8_in_a_half_network_is_int8_and_half_there(tmp_path: Path):
    """quantize-qdq and then convert-float16: scales are float16, as TensorRT wants them in such networks."""
    rng = np.random.default_rng(0)
    source = builders.save(builders.residual_cnn(channels=32), tmp_path / "m.onnx")
    size = onnx.load(source).graph.input[0].type.tensor_type.shape
    shape = [dim.dim_value or 24 for dim in size.dim]
    name = onnx.load(source).graph.input[0].name
    np.savez(tmp_path / "d.npz", **{name: rng.standard_normal(shape).astype(np.float32)})
    optimize(
        source,
        output=tmp_path / "o.onnx",
        data=str(tmp_path / "d.npz"),
        passes="fuse-batchnorm,quantize-qdq{activations=minmax,rounding=nearest,min_sqnr=0},convert-float16",
        target="tensorrt",
        bench=False,
    )
    made = onnx.load(tmp_path / "o.onnx").graph
    types = {t.name: t.data_type for t in made.initializer}
    # a Q that reads the float32 input stays as it is: what it gives are integers
    scales = {node.input[1] for node in made.node if node.op_type == "DequantizeLinear"}
    assert {types[scale] for scale in scales} == {TensorProto.FLOAT16}
    found = ask_tensorrt(tmp_path / "o.onnx")
    assert found.acceptance.accepted, found.acceptance.problems
    assert found.integer >= 3
    assert found.acceptance.refused == []


EVERYTHING = (
    "fold-constants,cleanup,fuse-batchnorm,cleanup,quantize-qdq{activations=minmax,rounding=nearest,min_sqnr=0}"
)
MODELS = {
    "lenet5-mnist": ({"data": "data/mnist-test.npz", "preprocess": {"scale": 1 / 255}}, 3),
    "lenet300-100-mnist": ({"data": "data/mnist-test.npz", "preprocess": {"scale": 1 / 255}}, 2),
    "resnet20-cifar10": ({"data": "data/cifar10-test.npz", "preprocess": {"scale": 1 / 255}}, 19),
    "yolox-nano": ({"data": "data/photos", "preprocess": {"resize": "letterbox", "color": "bgr"}}, 80),
    "minilm-l6": ({"data": "data/packages-test.npz"}, 36),
}


def assets() -> Path:
    folder = Path(os.environ.get("ONNXCOMP_TEST_ASSETS", ""))
    if not (folder / "models" / "minilm-l6.onnx").is_file():
        pytest.skip("no folder of models in ONNXCOMP_TEST_ASSETS")
    return folder


@needs_parser
@pytest.mark.parametrize("name", MODELS)
def test_every_product_that_the_rules_allow_is_int8(name: str, tmp_path: Path):
    """Of each model that we have: it parses, and no Conv or MatMul is float but for a reason of the target's rules."""
    folder = assets()
    options, least = MODELS[name]
    options = {**options, "data": str(folder / str(options["data"]))}
    if "preprocess" in options:
        from onnxcomp.data.preprocess import Preprocess

        options["preprocess"] = Preprocess(**options["preprocess"])  # type: ignore[arg-type]
    output = tmp_path / "m.onnx"
    report = optimize(
        folder / "models" / f"{name}.onnx",
        output=output,
        passes=EVERYTHING,
        target="tensorrt",
        calib_samples=4,
        bench=False,
        verify=False,
        **options,
    )
    found = ask_tensorrt(output)
    assert found.acceptance.accepted, found.acceptance.problems
    assert found.acceptance.refused == []
    assert found.integer >= least
    unexplained = [node for node, why in found.kept_float.items() if why == "it has no Q and DQ"]
    assert unexplained == []
    assert any("are int8" in note for note in report.notes)
