"""Does a compacted file hold what is run and nothing else, and does it run as before?"""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from nets import Net
from onnx import ModelProto, helper, numpy_helper

from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.io import load
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.runtime.profile import kernels
from onnxcomp.verify.provenance import provenance


def compacted(proto: ModelProto, spec: str = "compact"):
    result = PassManager(Pipeline.parse(spec)).run(decode(proto), PassContext())
    return encode(result.graph), result.records[-1]


def talkative() -> ModelProto:
    """A small CNN as exporters write it: every attribute, long names, shapes, notes."""
    net = Net()
    x = net.conv(net.input("N", 8, 12, 12), 8, 16)
    x = net.op("MaxPool", net.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4, dilations=[1, 1])
    proto = net.model(net.conv(x, 16, 16))
    for node in proto.graph.node:
        node.name = f"/backbone/stage/{node.op_type}_{node.output[0]}"
        node.doc_string = "File model.py(12): forward"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'backbone', 'stage']")
    proto = onnx.shape_inference.infer_shapes(proto)
    proto.producer_name, proto.doc_string = "pytorch", "exported"
    proto.metadata_props.add(key="names", value="{0: 'cat'}")
    return proto


def test_names_notes_and_defaults_go_and_the_interface_and_metadata_stay(tmp_path: Path) -> None:
    proto = talkative()
    after, record = compacted(proto)
    feeds = builders.feeds_of(proto, batch=2)
    for before, now in zip(builders.run(proto, feeds), builders.run(after, feeds), strict=True):
        assert np.array_equal(before, now)
    data = sum(len(tensor.raw_data) for tensor in after.graph.initializer)
    assert after.ByteSize() - data < 0.45 * (proto.ByteSize() - data)
    assert list(after.graph.input) == list(proto.graph.input)
    assert list(after.graph.output) == list(proto.graph.output)
    assert {p.key: p.value for p in after.metadata_props} == {"names": "{0: 'cat'}"}
    assert not after.graph.value_info and not any(n.name or n.doc_string for n in after.graph.node)
    pool = next(node for node in after.graph.node if node.op_type == "MaxPool")
    assert [a.name for a in pool.attribute] == ["kernel_shape", "strides"]
    onnx.checker.check_model(after, full_check=True)
    before, now = (kernels(builders.save(m, tmp_path / f"{i}.onnx")) for i, m in enumerate((proto, after)))
    assert now == before
    assert record.metrics["saved_bytes"] == pytest.approx(proto.ByteSize() - after.ByteSize(), rel=0.1)


def test_what_is_not_the_default_stays() -> None:
    net = Net()
    x = net.conv(net.input("N", 4, 9, 9), 4, 4, strides=[2, 1], pads=[1, 0, 1, 0], dilations=[1, 2])
    x = net.op("LeakyRelu", x, alpha=0.2)
    proto = net.model(net.op("Flatten", net.op("Softmax", x, axis=1), axis=2))
    after, _ = compacted(proto)
    feeds = builders.feeds_of(proto, batch=2)
    assert np.array_equal(builders.run(proto, feeds)[0], builders.run(after, feeds)[0])
    assert {a.name for node in after.graph.node for a in node.attribute} >= {"strides", "pads", "dilations", "alpha"}


@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (2, 25)])
@pytest.mark.parametrize("form", ["integer", "codebook"])
def test_weights_packed_by_hand_get_the_standard_type(form: str, bits: int, opset: int, tmp_path: Path) -> None:
    spec = f"quantize-weights{{bits={bits},block=0,form={form}}}"
    before, _ = compacted(talkative(), spec)
    after, record = compacted(talkative(), f"{spec},compact")
    assert not {"BitShift", "Mod", "Reshape"} & {node.op_type for node in after.graph.node}
    assert {"BitShift", "Mod"} <= {node.op_type for node in before.graph.node}
    assert next(o.version for o in after.opset_import if not o.domain) == opset
    assert any("opset" in note for note in record.notes)
    feeds = builders.feeds_of(before, batch=2)
    assert np.array_equal(builders.run(before, feeds)[0], builders.run(after, feeds)[0])
    runs = (kernels(builders.save(m, tmp_path / f"{i}.onnx")) for i, m in enumerate((before, after)))
    assert next(runs) == next(runs), "decoded at load as before"
    kept, _ = compacted(talkative(), f"{spec},compact{{native=false}}")
    assert {"BitShift", "Mod"} <= {node.op_type for node in kept.graph.node}
    assert kept.ByteSize() > after.ByteSize()


def test_bodies_see_what_they_captured(tmp_path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Add", ["a long name outside", "branch weight"], ["then result"], name="n")],
        "then_body",
        [],
        [helper.make_tensor_value_info("then result", 1, ["N", 4])],
        [numpy_helper.from_array(np.ones(4, np.float32), "branch weight")],
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["a long name outside", "branch weight"], ["else result"], name="m")],
        "else_body",
        [],
        [helper.make_tensor_value_info("else result", 1, ["N", 4])],
        [numpy_helper.from_array(np.full(4, 3, np.float32), "branch weight")],
    )
    nodes = [
        helper.make_node("Neg", ["a"], ["a long name outside"], name="first"),
        helper.make_node("If", ["which"], ["b"], then_branch=then, else_branch=other, name="choice"),
    ]
    inputs = [helper.make_tensor_value_info("a", 1, ["N", 4]), helper.make_tensor_value_info("which", 9, [])]
    graph = helper.make_graph(nodes, "main_graph", inputs, [helper.make_tensor_value_info("b", 1, ["N", 4])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    after, _ = compacted(proto)
    onnx.checker.check_model(after, full_check=True)
    for which in (True, False):
        feeds = {"a": np.arange(8, dtype=np.float32).reshape(2, 4), "which": np.asarray(which)}
        assert np.array_equal(builders.run(proto, feeds)[0], builders.run(after, feeds)[0])
    names = {t for node in after.graph.node for t in (*node.input, *node.output)}
    assert max(map(len, names)) <= len("which") and {"a", "b"} <= names


def test_a_file_without_provenance_is_still_known_by_its_report(tmp_path: Path, digits: Path) -> None:
    import onnxcomp

    out = tmp_path / "d.opt.onnx"
    onnxcomp.optimize(digits, passes="fuse-batchnorm,compact{provenance=false}", output=out, bench=False)
    assert [p.key for p in onnx.load(out).metadata_props] == ["onnxcomp.version"]
    found = provenance(out)
    assert found.report is not None and found.source_unchanged
    found.report.unlink()
    with pytest.raises(onnxcomp.OnnxcompError, match="records no provenance"):
        provenance(out)


def test_a_second_run_finds_nothing(tmp_path: Path) -> None:
    after, _ = compacted(talkative())
    again, record = compacted(onnx.load(builders.save(after, tmp_path / "m.onnx")))
    assert record.changes == 0 and again.SerializeToString() == after.SerializeToString()
    assert load(tmp_path / "m.onnx").nodes
