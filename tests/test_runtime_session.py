"""Models run, and what stops them from running is told as an error to act on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import builders
import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import optimize
from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.codec import decode
from onnxcomp.runtime import opening
from onnxcomp.runtime.session import Port, open_graph, open_session

FLOAT = TensorProto.FLOAT


def one_node(op: str, out: int, dtype: int = FLOAT, *, opset: int = 21, ir: int = 10, **attributes: object) -> bytes:
    """x [n, 4] -> op -> y."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], "node", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 4])],
        [helper.make_tensor_value_info("y", out, ["n", 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir).SerializeToString()


def two_outputs() -> bytes:
    nodes = [helper.make_node("Relu", ["x"], ["b"]), helper.make_node("Neg", ["x"], ["a"])]
    values = [builders.value(name, FLOAT, ["n", 4]) for name in "xba"]
    return builders.model(nodes, values[:1], values[1:]).SerializeToString()


def test_outputs_come_by_name_in_the_models_order():
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    found = open_session(two_outputs()).run({"x": x})
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["a"], -x)
    assert list(open_session(two_outputs()).run({"x": x}, ["a"])) == ["a"]


def test_ports_tell_names_shapes_and_dtypes():
    session = open_session(builders.transformer().SerializeToString())
    assert [(port.name, port.shape, port.dtype) for port in session.inputs] == [
        ("input_ids", ("N", "S"), np.int64),
        ("attention_mask", ("N", "S"), np.int64),
    ]
    assert Port("s", (), "sequence(tensor(float))").dtype is None
    assert session.signature() == "input_ids int64 [N, S], attention_mask int64 [N, S]"


def test_optimisation_and_threads_do_not_change_the_answer():
    proto = builders.residual_cnn()
    feeds = builders.feeds_of(proto)
    (wanted,) = builders.run(proto, feeds)
    for options in ({"optimize": False}, {"threads": 2}, {"threads": 0}, {"lean": True}):
        np.testing.assert_allclose(
            open_session(proto.SerializeToString(), **options).run(feeds)["logits"], wanted, 1e-4, 1e-5
        )


def test_few_bits_with_computed_scales_are_not_zero_where_the_optimizer_refuses_a_model():
    generator = builders.rng()
    codes = generator.integers(0, 256, size=(4, 1, 16)).astype(np.uint8)  # two codes a byte, the first the lower
    scales = generator.integers(20, 100, size=(4, 1)).astype(np.int8)
    weights = {"s": np.float32(0.05), "z": np.uint8(128), "q": codes, "small": scales, "step": np.float32(0.01)}
    product = {"K": 32, "N": 4, "bits": 4, "block_size": 32, "accuracy_level": 4}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("AveragePool", ["xd"], ["a"], kernel_shape=[1, 2], dilations=[1, 2]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "s", "z"], ["ad"]),
        helper.make_node("Cast", ["small"], ["wide"], to=FLOAT),
        helper.make_node("Mul", ["wide", "step"], ["scale"]),
        helper.make_node("MatMulNBits", ["ad", "q", "scale"], ["y"], domain="com.microsoft", **product),
    ]
    ports = [builders.value("x", FLOAT, [1, 1, 3, 34])], [builders.value("y", FLOAT, [1, 1, 3, 4])]
    graph = decode(builders.model(nodes, *ports, weights, opset=19, ir_version=9, domains={"com.microsoft": 1}))
    with pytest.raises(ModelError):
        open_graph(graph)
    x = generator.normal(size=(1, 1, 3, 34)).astype(np.float32)
    stepped = np.rint(x / 0.05) * 0.05
    pooled = np.rint((stepped[..., :-2] + stepped[..., 2:]) / 2 / 0.05) * 0.05
    weight = (np.stack([codes & 15, codes >> 4], -1).reshape(4, 32) - 8.0) * scales * 0.01
    found = open_graph(graph, strict=False).run({"x": x})["y"]
    np.testing.assert_allclose(found, pooled @ weight.T, rtol=0.05, atol=0.4)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "no data for the input 'x'"),
        ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "no input 'z'"),
        ({"x": np.zeros((1, 4))}, "takes float32, the data is float64"),
        ({"x": np.zeros((1, 5), np.float32)}, "takes the shape [n, 4], the data has [1, 5]"),
        ({"x": np.zeros(4, np.float32)}, "takes the shape [n, 4], the data has [4]"),
    ],
)
def test_a_feed_that_does_not_fit_is_a_data_error(feeds: dict[str, np.ndarray], said: str):
    with pytest.raises(DataError) as caught:
        open_session(two_outputs()).run(feeds)
    assert said in caught.value.what
    assert "x float32 [n, 4]" in caught.value.do


def test_an_index_beyond_the_table_is_a_data_error():
    proto = builders.model(
        [helper.make_node("Gather", ["table", "i"], ["y"], "look-up")],
        [builders.value("i", TensorProto.INT64, ["n"])],
        [builders.value("y", FLOAT, ["n", 2])],
        {"table": np.ones((3, 2), np.float32)},
    )
    with pytest.raises(DataError, match="out of data bounds"):
        open_session(proto.SerializeToString()).run({"i": np.array([7])})


def test_a_batch_that_a_reshape_forbids_is_a_model_error_with_the_node_and_the_shapes():
    proto = builders.model(
        [helper.make_node("Reshape", ["x", "s"], ["y"], "flatten-one")],
        [builders.value("x", FLOAT, ["n", 4])],
        [builders.value("y", FLOAT, [1, 4])],
        {"s": np.array([1, 4])},
        check=False,
    )
    with pytest.raises(ModelError) as caught:
        open_session(proto.SerializeToString()).run({"x": np.zeros((2, 4), np.float32)})
    assert "flatten-one" in caught.value.what
    assert "x [2, 4]" in caught.value.where
    assert "onnxruntime_src" not in str(caught.value)


def custom_op() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], "mine", domain="acme")],
        "g",
        [builders.value("x", FLOAT, [1])],
        [builders.value("y", FLOAT, [1])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def cyclic() -> bytes:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Relu", ["a"], ["y"], "third"),
    ]
    values = [builders.value(name, FLOAT, [1]) for name in "xy"]
    return builders.model(nodes, values[:1], values[1:], check=False).SerializeToString()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (custom_op(), "no kernel for an operator"),
        (cyclic(), "has a cycle"),
        (b"not a model at all", "no whole ONNX model"),
        (b"", "no whole ONNX model"),
        (two_outputs()[:-20], "no whole ONNX model"),
        (one_node("Relu", FLOAT, opset=9999), "newer than this ONNX Runtime"),
        (one_node("Relu", FLOAT, opset=17, nonsense=1), "refuses the model"),
    ],
)
def test_a_model_that_cannot_be_opened_is_a_model_error(model: bytes, said: str):
    with pytest.raises(ModelError) as caught:
        open_session(model)
    assert said in caught.value.what
    assert caught.value.exit_code == 3
    assert caught.value.do


def test_a_missing_file_is_a_model_error(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model file absent\.onnx"):
        open_session(tmp_path / "absent.onnx")


def with_external_data(path: Path) -> Path:
    proto = builders.mlp((16, 64, 4))
    onnx.save(proto, str(path), save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=0)
    return path


def test_external_data_is_found_beside_the_file_and_its_absence_is_told(tmp_path: Path):
    path = with_external_data(tmp_path / "m.onnx")
    feeds = builders.feeds_of(builders.mlp((16, 64, 4)))
    wanted = builders.run(builders.mlp((16, 64, 4)), feeds)[0]
    for lean in (False, True):
        np.testing.assert_allclose(open_session(path, lean=lean).run(feeds)["y"], wanted, rtol=1e-5)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(ModelError, match="external data cannot be read"):
        open_session(path)


def test_shapes_may_lie_in_external_data(tmp_path: Path):
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"], "reshape"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "matmul"),
    ]
    weights = {"shape": np.int64([-1, 64]), "w": builders.normal(builders.rng(), 64, 8)}
    ports = builders.value("x", FLOAT, ["N", 8, 8]), builders.value("y", FLOAT, ["N", 8])
    proto = builders.model(nodes, ports[:1], ports[1:], weights)
    feeds = builders.feeds_of(proto)
    wanted = builders.run(proto, feeds)[0]
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="m.bin", size_threshold=0)
    np.testing.assert_allclose(open_session(path).run(feeds)["y"], wanted, rtol=1e-5)
    assert optimize(path, passes="quantize-weights{bits=8}", output=tmp_path / "out.onnx", bench=False).exit_code == 0


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        (TensorProto.INT4, ml_dtypes.int4),
        (TensorProto.UINT4, ml_dtypes.uint4),
        (TensorProto.FLOAT16, np.float16),
    ],
)
def test_unusual_dtypes_pass_out(element: int, dtype: type):
    x = np.array([[1, 2, 3, 0], [7, 5, 4, 6], [0, 1, 1, 2]], np.float32)
    found = open_session(one_node("Cast", element, to=element)).run({"x": x})["y"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(np.float32), x)


def test_negative_4_bit_values_keep_their_sign():
    x = np.array([[-8, -1, 7, -4]], np.float32)
    found = open_session(one_node("Cast", TensorProto.INT4, to=TensorProto.INT4)).run({"x": x})["y"]
    np.testing.assert_array_equal(found.astype(np.float32), x)


@pytest.mark.parametrize(
    ("element", "dtype"),
    [(TensorProto.BFLOAT16, ml_dtypes.bfloat16), (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn)],
)
def test_unusual_dtypes_pass_in(element: int, dtype: type):
    session = open_session(one_node("Cast", FLOAT, element, to=FLOAT))
    x = np.array([[1.5, -2, 0, 4]]).astype(dtype)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x.astype(np.float32))
    with pytest.raises(DataError, match=f"takes {np.dtype(dtype)}, the data is float32"):
        session.run({"x": x.astype(np.float32)})


def test_strings_pass():
    session = open_session(one_node("Identity", TensorProto.STRING, TensorProto.STRING))
    x = np.array([["a", "é", "", "long " * 9]], object)
    assert session.run({"x": x})["y"].tolist() == x.tolist()


def test_a_scalar_and_an_empty_batch_pass():
    proto = builders.model(
        [helper.make_node("Neg", ["x"], ["y"])], [builders.value("x", FLOAT, [])], [builders.value("y", FLOAT, [])]
    )
    assert open_session(proto.SerializeToString()).run({"x": np.array(3, np.float32)})["y"] == -3
    assert open_session(two_outputs()).run({"x": np.zeros((0, 4), np.float32)})["a"].shape == (0, 4)


def test_weights_listed_as_inputs_need_no_feed():
    proto = builders.mlp()
    proto.graph.input.append(builders.value("fc1.bias", FLOAT, [32]))
    session = open_session(proto.SerializeToString())
    assert [port.name for port in session.inputs] == ["x"]


def test_what_onnx_runtime_really_runs_can_be_saved(tmp_path: Path):
    path = tmp_path / "optimised.onnx"
    open_session(builders.conv_bn_relu().SerializeToString(), save_optimized=path)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}


def test_importing_the_module_does_not_import_onnx_runtime():
    code = "import sys, onnxcomp.runtime.session, onnxcomp.runtime.latency; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_type_error_names_its_node():
    weight = numpy_helper.from_array(np.ones((4, 4), np.int16), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mixed")],
        "g",
        [builders.value("x", FLOAT, ["n", 4])],
        [builders.value("y", FLOAT, ["n", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="mixed"):
        open_session(model.SerializeToString())


def test_how_a_process_ended_that_opened_a_model_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = decode(builders.mlp())
    assert opening.death([graph]) == ""
    nonsense = graph.clone()
    nonsense.nodes[0].op = "Nonsense"
    assert opening.death([graph, nonsense]) == ""
    (tmp_path / "aborting.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert opening.death([graph], "aborting") == "SIGABRT"
