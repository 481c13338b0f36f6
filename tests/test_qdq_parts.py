"""Does each part of a product that is cut right behind get a product of its own on TensorRT, with the same values?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from feeds import Feeds
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.graph import cost
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.cost import LayerCost
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.passes.qdq import parts
from onnxcomp.passes.training import quantized as trained
from onnxcomp.passes.training.quantized import Precision
from onnxcomp.runtime import tensorrt
from onnxcomp.verify.tensorrt import ask_tensorrt

FLOAT = TensorProto.FLOAT
SPEC = "quantize-qdq{activations=minmax,rounding=nearest,min_sqnr=0}"
DEEP = 32
# what stands behind the product of 96 channels: nodes, and the shape of each tensor that leaves
HEADS = [("Reshape", ["y", "heads"], ["r"], {}), ("Transpose", ["r"], ["t"], {"perm": [2, 0, 3, 1, 4]})]
LAST = [("Reshape", ["y", "last"], ["r"], {}), ("Transpose", ["r"], ["t"], {"perm": [3, 0, 2, 1, 4]})]
FORMS = {
    "split after heads": [*HEADS, ("Split", ["t"], ["a", "b", "c"], {"axis": 0})],
    "gathers after heads": [
        *HEADS,
        *(("Gather", ["t", index], [out], {"axis": 0}) for index, out in zip(("i0", "i1", "i2"), "abc", strict=True)),
    ],
    "split of the last axis": [("Split", ["y"], ["a", "b", "c"], {"axis": -1})],
    "slices of the last axis": [
        ("Slice", ["y", "from0", "to32", "axes"], ["a"], {}),
        ("Slice", ["y", "from32", "end", "axes"], ["b"], {}),
    ],
}
UNTOUCHED = {
    "interleaved by heads": [*LAST, ("Split", ["t"], ["a", "b", "c"], {"axis": 0})],
    "parts too narrow": [("Split", ["y", "narrow"], ["a", "b"], {"axis": -1})],
    "cut along the rows": [("Split", ["y"], ["a", "b"], {"axis": 1})],
    "not cut": [("Relu", ["y"], ["a"], {})],
}


def net(behind: list[tuple[str, list[str], list[str], dict[str, object]]], op: str = "MatMul") -> ModelProto:
    """x [N, 8, 32] (a Gemm: [N, 32]) -> product of 96 channels, with bias -> `behind`."""
    rng = np.random.default_rng(0)
    numbers = {
        "heads": [0, 8, 3, 4, 8],
        "last": [0, 8, 4, 3, 8],
        "from0": [0],
        "to32": [32],
        "from32": [32],
        "end": [2**31],
        "axes": [-1],
        "narrow": [90, 6],
    }
    consts = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    consts |= {f"i{index}": np.asarray(index, np.int64) for index in range(3)}
    consts["w"] = rng.standard_normal((DEEP, 96)).astype(np.float32)
    consts["bias"] = rng.standard_normal(96).astype(np.float32)
    if op == "MatMul":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Add", ["bias", "p"], ["y"], "add"),
        ]
    else:
        consts["w"] = consts["w"].T.copy()
        nodes = [helper.make_node("Gemm", ["x", "w", "bias"], ["y"], "product", transB=1)]
    nodes += [helper.make_node(kind, ins, outs, f"{kind}{i}", **at) for i, (kind, ins, outs, at) in enumerate(behind)]
    read = {name for node in nodes for name in node.input}
    ends = [name for node in nodes for name in node.output if name not in read]
    shape = ["N", 8, DEEP] if op == "MatMul" else ["N", DEEP]
    inputs = [helper.make_tensor_value_info("x", FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in ends]
    held = [numpy_helper.from_array(array, name) for name, array in consts.items() if name in read]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def samples(proto: ModelProto, count: int) -> np.ndarray:
    sizes = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(1).standard_normal((count, *sizes)).astype(np.float32)


def quantized(proto: ModelProto) -> tuple[ModelProto, list[str]]:
    context = PassContext(calibration=Feeds({"x": samples(proto, 8)}), target="tensorrt")
    result = PassManager(Pipeline.parse(SPEC)).run(decode(proto), context)
    return encode(result.graph), list(result.records[-1].notes)


def run(proto: ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": samples(proto, 5)}))


def products(proto: ModelProto) -> list[str]:
    return [node.name for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")]


@pytest.mark.parametrize(
    ("form", "op"), [*((form, "MatMul") for form in FORMS), ("split of the last axis", "Gemm")], ids=str
)
def test_each_part_gets_a_product_with_the_same_values(form: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = net(FORMS[form], op)
    after, notes = quantized(before)
    assert products(after) == [f"product.part{index}" for index in range(2 if "slices" in form else 3)]
    assert "cut into parts right behind" in " ".join(notes)
    monkeypatch.setattr(parts, "separate", lambda *_: [])
    whole, _ = quantized(before)
    assert products(whole) == ["product"]
    for one, other in zip(run(after), run(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_trained_integers_are_separated_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    before = net(FORMS["split after heads"])
    context = PassContext(
        calibration=Feeds({"x": samples(before, 8)}), sample_shapes={"x": (1, 8, DEEP)}, target="tensorrt"
    )
    precision = Precision(8, 8, 8, "adamw", "portable")

    def written() -> ModelProto:
        plan = trained.plan(decode(before), precision, lambda node: True, context)
        plan.write({})
        return encode(plan.graph)

    after = written()
    assert products(after) == [f"product.part{index}" for index in range(3)]
    monkeypatch.setattr(parts, "separate", lambda *_: [])
    for one, other in zip(run(after), run(written()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", UNTOUCHED)
def test_what_is_not_cut_into_such_parts_stays_one_product(form: str) -> None:
    after, notes = quantized(net(UNTOUCHED[form]))
    assert products(after) == ["product"]
    assert "cut into parts" not in " ".join(notes)


@pytest.mark.skipif(not tensorrt.installed(), reason="TensorRT's parser is not installed")
@pytest.mark.parametrize("form", FORMS)
def test_parts_are_int8_in_the_engine(form: str, tmp_path: Path) -> None:
    after, _ = quantized(net(FORMS[form]))
    found = ask_tensorrt(builders.save(after, tmp_path / "m.onnx"), {"x": (4, 8, DEEP)})
    assert found.acceptance.accepted, found.acceptance.problems
    assert found.acceptance.refused == []
    assert found.integer == len(products(after))


def test_reports_take_parts_together_under_the_name_of_the_whole() -> None:
    layers = [LayerCost(name, "MatMul", 10, 20, 30, "int8") for name in ("a", "q.part0", "q.part1", "b.partner")]
    found = {layer.node: layer for layer in cost.joined(layers)}
    assert list(found) == ["a", "q", "b.partner"]
    assert (found["q"].parameters, found["q"].bytes, found["q"].macs) == (20, 40, 60)
