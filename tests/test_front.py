"""Is a model compressed that ends in operators which ONNX Runtime does not know, and does the rest stay as it was?"""

from __future__ import annotations

import copy
from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcomp
from onnxcomp.driver import check_written
from onnxcomp.errors import ModelError
from onnxcomp.graph.io import load, save
from onnxcomp.graph.parting import part
from onnxcomp.job import Job

PLUGIN = "trt.plugins"


def detector(*, domain: str = PLUGIN, op: str = "EfficientNMS_TRT", behind: bool = False) -> onnx.ModelProto:
    """Two convolutions, boxes and scores, and a plugin that picks among them; with `behind` standard nodes follow."""
    g, f = builders.rng(3), TensorProto.FLOAT
    weights = {
        "w0": builders.normal(g, 32, 3, 3, 3),
        "w1": builders.normal(g, 32, 32, 3, 3),
        "wb": builders.normal(g, 4, 32, 1, 1),
        "ws": builders.normal(g, 6, 32, 1, 1),
        "as_boxes": np.array([0, 4, -1]),
        "as_scores": np.array([0, 6, -1]),
        "two": np.array(2.0, np.float32),
    }
    conv = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="stem", **conv),
        helper.make_node("Relu", ["a"], ["b"], name="relu0"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="body", **conv),
        helper.make_node("Relu", ["c"], ["d"], name="relu1"),
        helper.make_node("Conv", ["d", "wb"], ["e"], name="box_head"),
        helper.make_node("Conv", ["d", "ws"], ["s"], name="score_head"),
        helper.make_node("Reshape", ["e", "as_boxes"], ["boxes"], name="flat_boxes"),
        helper.make_node("Reshape", ["s", "as_scores"], ["scores"], name="flat_scores"),
        helper.make_node(op, ["boxes", "scores"], ["count", "picked"], name="nms", domain=domain or None, keep=50),
    ]
    outputs = [builders.value("count", TensorProto.INT32, ["N", 1])]
    if behind:
        nodes.append(helper.make_node("Mul", ["picked", "two"], ["doubled"], name="double"))
        shape = [helper.make_node("Shape", ["doubled"], ["size"], name="size")]
        body = helper.make_graph(shape, "then", [], [builders.value("size", TensorProto.INT64, None)])
        other = helper.make_graph(
            [helper.make_node("Shape", ["boxes"], ["other"], name="other")],
            "else",
            [],
            [builders.value("other", TensorProto.INT64, None)],
        )
        nodes.append(helper.make_node("If", ["flag"], ["shape"], name="choose", then_branch=body, else_branch=other))
        outputs.append(builders.value("doubled", f, None))
        outputs.append(builders.value("shape", TensorProto.INT64, None))
    else:
        outputs.append(builders.value("picked", f, ["N", 50, 4]))
    inputs = [builders.value("x", f, ["N", 3, 16, 16])]
    inputs += [builders.value("flag", TensorProto.BOOL, [])] if behind else []
    return builders.model(nodes, inputs, outputs, weights, check=False, domains={domain: 1} if domain else {})


def cut(proto: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    """The part in front of the plugin, made with protos alone."""
    result = copy.deepcopy(proto)
    del result.graph.output[:], result.graph.node[[n.name for n in proto.graph.node].index("nms") :]
    result.graph.output.extend(builders.value(name, TensorProto.FLOAT, None) for name in names)
    return result


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    x = np.repeat(np.repeat(builders.rng(1).standard_normal((64, 3, 4, 4)), 4, 2), 4, 3).astype(np.float32)
    np.savez("data.npz", x=x, flag=np.array(True))
    np.savez("plain.npz", x=x)
    return Path("plain.npz")


@pytest.mark.parametrize("domain", [PLUGIN, ""])
@pytest.mark.parametrize("spec", ["quantize-qdq{placement=table}", "prune-channels{macs=0.7}"])
def test_the_part_in_front_of_a_plugin_is_compressed_and_judged(data: Path, domain: str, spec: str) -> None:
    proto = detector(domain=domain)
    builders.save(proto, Path("m.onnx"))
    report = onnxcomp.optimize("m.onnx", data=data, passes=spec, output="o.onnx", bench=False)
    assert report.verdict == "accepted"
    assert report.after.bytes == Path("o.onnx").stat().st_size < 0.75 * report.before.bytes
    assert report.before.bytes == Path("m.onnx").stat().st_size
    assert report.fidelity is not None and set(report.fidelity.outputs) == {"boxes", "scores"}
    assert any("EfficientNMS_TRT is no operator of ONNX Runtime" in note for note in report.notes)
    assert any("in front of" in doubt for doubt in report.doubts)
    written = onnx.load("o.onnx")
    assert written.graph.node[-1] == proto.graph.node[-1]
    assert list(written.graph.output) == list(proto.graph.output)
    x = np.load(data)["x"][:8]
    before = builders.run(cut(proto, ("boxes", "scores")), {"x": x})
    after = builders.run(cut(written, ("boxes", "scores")), {"x": x})
    for a, b in zip(before, after, strict=True):
        assert builders.sqnr_db(a, b) > (25 if "qdq" in spec else 5)
    check_written(Job(Path("m.onnx"), data=data, output=Path("o.onnx"), bench=False), report)


def test_what_stands_behind_comes_back_unchanged_and_takes_a_newer_opset(data: Path) -> None:
    proto = detector(behind=True)
    for entry in proto.opset_import:
        entry.version = 11 if entry.domain == "" else entry.version
    builders.save(proto, Path("m.onnx"))
    report = onnxcomp.optimize(
        "m.onnx", data="data.npz", passes="quantize-qdq{placement=table}", output="o.onnx", bench=False
    )
    assert report.verdict == "accepted" and report.after.opset > 11
    written = load("o.onnx")
    parting = part(written, lambda domain, op: domain == PLUGIN)
    assert parting is not None and parting.behind == 2 and set(parting.ends) == {"boxes", "scores"}
    assert [t.name for t in written.outputs] == ["count", "doubled", "shape"]


def test_a_name_that_a_pass_gave_makes_way_for_one_of_the_rest(data: Path) -> None:
    builders.save(detector(behind=True), Path("m.onnx"))
    graph = load("m.onnx")
    parting = part(graph, lambda domain, op: domain == PLUGIN)
    assert parting is not None
    changed = parting.front.clone()
    tensors, nodes = changed.tensors(), {node.name: node for node in changed.nodes}
    tensors["b"].name, tensors["w1"].name, nodes["relu0"].name = "picked", "two", "double"
    save(parting.rejoined(changed), "o.onnx")
    x = {"x": np.load(data)["x"][:4], "flag": np.array(True)}
    names = ("boxes", "scores")
    before, after = (cut(onnx.load(path), names) for path in ("m.onnx", "o.onnx"))
    for a, b in zip(builders.run(before, x), builders.run(after, x), strict=True):
        np.testing.assert_array_equal(a, b)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load("o.onnx").graph.initializer}
    assert weights["two"] == 2.0


def test_nothing_in_front_of_a_foreign_operator_is_refused_with_advice_that_helps(data: Path) -> None:
    proto = detector()
    first = helper.make_node("Decode", ["x"], ["decoded"], name="decode", domain=PLUGIN)
    proto.graph.node[0].input[0] = "decoded"
    proto.graph.node.insert(0, first)
    builders.save(proto, Path("m.onnx"))
    with pytest.raises(ModelError, match="no weights stand in front of it") as caught:
        onnxcomp.optimize("m.onnx", data=data, passes="quantize-qdq", output="o.onnx")
    assert "trt.plugins:Decode" in caught.value.what and "extract_model" in caught.value.do
    report = onnxcomp.optimize("m.onnx", passes="quantize-weights", output="o.onnx", bench=False, verify=False)
    assert report.verdict == "accepted"  # as the advice says


def packed(kind: str) -> onnx.ModelProto:
    """A classifier as scikit-learn's converter writes it, with a map a sample, or answers of two layers in a list."""
    g, f = builders.rng(5), TensorProto.FLOAT
    weights = {"w": builders.normal(g, 24, 64), "v": builders.normal(g, 64, 3), "names": np.array([10, 20, 30])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "v"], ["c"], name="second"),
        helper.make_node("Softmax", ["c"], ["p"], name="softmax", axis=1),
    ]
    outputs = [onnx.ValueInfoProto(name="packed")]
    if kind == "map":
        nodes.append(
            helper.make_node("ZipMap", ["p"], ["packed"], name="zip", domain="ai.onnx.ml", classlabels_int64s=[1, 2, 3])
        )
        found = outputs[0].type.sequence_type.elem_type.map_type
        found.key_type, found.value_type.tensor_type.elem_type = TensorProto.INT64, f
    else:
        nodes.append(helper.make_node("SequenceConstruct", ["b", "p"], ["packed"], name="list"))
        outputs[0].type.sequence_type.elem_type.tensor_type.elem_type = f
    nodes.append(helper.make_node("ArgMax", ["p"], ["label"], name="label", axis=1, keepdims=0))
    outputs.append(builders.value("label", TensorProto.INT64, ["N"]))
    domains = {"ai.onnx.ml": 1} if kind == "map" else {}
    return builders.model(nodes, [builders.value("x", f, ["N", 24])], outputs, weights, check=False, domains=domains)


@pytest.mark.parametrize("kind", ["map", "list"])
def test_what_packs_answers_into_maps_or_lists_stays_behind_what_is_compressed(kind: str, data: Path) -> None:
    x = builders.normal(builders.rng(2), 120, 24)
    np.savez("x.npz", x=x)
    builders.save(packed(kind), Path("m.onnx"))
    report = onnxcomp.optimize("m.onnx", data="x.npz", passes="quantize-weights{bits=8}", output="o.onnx", bench=False)
    assert report.verdict == "accepted" and report.after.bytes < 0.5 * report.before.bytes
    assert report.fidelity is not None and {"label", "p"} <= set(report.fidelity.outputs)
    assert any("gives no tensor" in note for note in report.notes)
    before, after = (onnxruntime.InferenceSession(name).run(None, {"x": x[:9]}) for name in ("m.onnx", "o.onnx"))
    if kind == "map":
        assert [set(row) for row in after[0]] == [{1, 2, 3}] * 9
        before[0], after[0] = ([np.array(list(row.values())) for row in found[0]] for found in (before, after))
    for a, b in zip(before[0], after[0], strict=True):
        assert builders.sqnr_db(np.asarray(a), np.asarray(b)) > 25
    with pytest.raises(ModelError, match="cannot be compared element by element"):
        onnxcomp.verify("m.onnx", "o.onnx", data="x.npz")
