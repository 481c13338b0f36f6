"""Are bad model files refused with a clear error, and do good ones come back from load and save as they were?"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import builders
import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.testing import assert_onnx_proto_equal

from onnxcomp.errors import ModelError, OutputError
from onnxcomp.graph import io
from onnxcomp.graph.codec import decode, encode
from onnxcomp.graph.health import broken_weights
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.pipeline import PassManager, Pipeline
from onnxcomp.ops.facts import load_operators

FLOAT = builders.FLOAT


def refused(path: Path) -> ModelError:
    """The error that loading gives: three lines, each saying something."""
    with pytest.raises(ModelError) as caught:
        io.load(path)
    error = caught.value
    assert error.exit_code == 3
    assert error.what and error.where and error.do
    assert "\n" not in error.what + error.where + error.do
    return error


# -- files that are no models ----------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.onnx").what
    assert "cannot be read" in refused(tmp_path).what


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"not a model at all",
        b"PK\x03\x04" + bytes(200),
        bytes(1000),
        b"\x89PNG\r\n\x1a\n",
        b'{"a": 1}' * 50,
    ],
    ids=["empty", "zero", "text", "zip", "zeros", "png", "json"],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "not an ONNX model" in refused(path).what


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = builders.residual_cnn().SerializeToString()
    path = tmp_path / "model.onnx"
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = builders.save(builders.mlp(), tmp_path / "model.onnx")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "cannot be read" in refused(path).what


@pytest.mark.parametrize("version", [0, 99, 10_000])
def test_unknown_opset(version: int, tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.opset_import[0].version = version
    error = refused(builders.save(proto, tmp_path / "m.onnx"))
    assert f"opset {version}" in error.what


def test_no_opset_at_all(tmp_path: Path) -> None:
    proto = builders.mlp()
    del proto.opset_import[:]
    assert "operator set" in refused(builders.save(proto, tmp_path / "m.onnx")).what


def test_cyclic_graph_names_a_node_on_the_cycle(tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.graph.node[0].input[0] = "h2" if len(proto.graph.node) > 3 else proto.graph.node[-1].output[0]
    error = refused(builders.save(proto, tmp_path / "m.onnx"))
    assert "cycle" in error.what
    assert "fc1" in error.where or "relu" in error.where


def test_node_that_reads_itself_is_a_cycle(tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.graph.node[1].input[0] = proto.graph.node[1].output[0]
    assert "cycle" in refused(builders.save(proto, tmp_path / "m.onnx")).what


def test_unsorted_graph_is_sorted_and_said(tmp_path: Path) -> None:
    proto = builders.residual_cnn()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    graph = io.load(builders.save(proto, tmp_path / "m.onnx"))
    assert any("sorted" in note for note in graph.notes)
    feeds = builders.feeds_of(proto)
    np.testing.assert_array_equal(builders.run(io.to_bytes(graph), feeds)[0], builders.run(proto, feeds)[0])


def test_reversed_chain_of_ten_thousand_nodes_does_not_recurse() -> None:
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"], f"n{i}") for i in range(10_000)]
    ports = [builders.value("t0", FLOAT, [1])], [builders.value("t10000", FLOAT, [1])]
    graph = decode(builders.model(nodes[::-1], *ports, check=False))
    graph.sort()
    assert [node.name for node in graph.nodes[:2]] == ["n0", "n1"]


def test_tensor_that_nothing_defines_and_tensor_defined_twice(tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.graph.node[0].input[1] = "nowhere"
    error = refused(builders.save(proto, tmp_path / "m.onnx"))
    assert "'nowhere'" in error.what and "fc1" in error.where
    proto = builders.mlp()
    proto.graph.node[2].output[0] = proto.graph.node[0].output[0]
    proto.graph.output[0].name = proto.graph.node[0].output[0]
    assert "twice" in refused(builders.save(proto, tmp_path / "m.onnx")).what


# -- external data ---------------------------------------------------------------------------------------------


def external(tmp_path: Path, **entries: str) -> Path:
    """A model with external data whose first tensor's entries are replaced."""
    path = builders.save_external(builders.mlp(), tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    return builders.save(proto, path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "none.bin"}, "missing"),
        ({"location": ""}, "outside"),
        ({"location": "../weights.bin"}, "outside"),
        ({"location": "a/../../weights.bin"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "."}, "missing"),
        ({"offset": "100000"}, "truncated"),
        ({"offset": "-4"}, "truncated"),
        ({"length": "4"}, "truncated"),
        ({"length": "99999999999999"}, "truncated"),
        ({"offset": "many"}, "malformed"),
    ],
)
def test_bad_external_data_is_refused(entries: dict[str, str], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    error = refused(external(folder, **entries))
    assert words in error.what
    assert "fc1.weight" in error.where


def test_text_in_external_data_is_refused(tmp_path: Path) -> None:
    proto = builders.mlp()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = TensorProto.STRING
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="text is kept in external data"):
        io.load(path)


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert "truncated" in refused(path).what


@pytest.mark.parametrize("target", ["file", "folder"])
def test_link_out_of_the_folder_is_refused(target: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    path = external(folder)
    if target == "file":
        (folder / "weights.bin").rename(outside / "weights.bin")
        (folder / "weights.bin").symlink_to(outside / "weights.bin")
    else:
        (folder / "weights.bin").rename(outside / "weights.bin")
        (folder / "sub").symlink_to(outside)
        path = external_at(path, "sub/weights.bin")
    error = refused(path)
    assert "link" in error.what and "cp -L" in error.do


def external_at(path: Path, location: str) -> Path:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return builders.save(proto, path)


def test_link_and_subfolder_inside_the_folder_are_fine(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "sub" / "real.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "sub" / "real.bin")
    first = io.load(path)
    second = io.load(external_at(path, "sub/real.bin"))
    assert io.to_bytes(first) == io.to_bytes(second)


def test_named_pipe_as_external_data_does_not_hang(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    os.mkfifo(tmp_path / "weights.bin")
    assert stat.S_ISFIFO((tmp_path / "weights.bin").stat().st_mode)
    assert "missing" in refused(path).what


def test_external_weights_are_read_from_the_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = builders.residual_cnn()
    (tmp_path / "a").mkdir()
    path = builders.save_external(proto, tmp_path / "a" / "m.onnx")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    graph = io.load(path)
    written = io.save(graph, tmp_path / "out.onnx")
    assert [p.suffix for p in written] == [".onnx", ".data"]
    feeds = builders.feeds_of(proto)
    np.testing.assert_array_equal(builders.run(tmp_path / "out.onnx", feeds)[0], builders.run(proto, feeds)[0])
    assert written == io.model_files(tmp_path / "out.onnx")


def test_external_data_in_constants_bodies_and_unused_weights(tmp_path: Path) -> None:
    proto = builders.if_model()
    big = builders.normal(builders.rng(), 8, 64)
    proto.graph.initializer.append(numpy_helper.from_array(big, "unused"))
    proto.graph.node.append(
        helper.make_node("Constant", [], ["wide"], "constant", value=numpy_helper.from_array(big, "value"))
    )
    proto.graph.node.append(helper.make_node("MatMul", ["x", "wide"], ["z"], "mm"))
    proto.graph.output.append(builders.value("z", FLOAT, ["N", 64]))
    source = tmp_path / "in"
    source.mkdir()
    onnx.save_model(
        onnx.ModelProto.FromString(proto.SerializeToString()), str(source / "m.onnx"), save_as_external_data=True,
        location="w.bin", size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    graph = io.load(source / "m.onnx")
    io.save(graph, tmp_path / "out.onnx")
    for path in source.iterdir():
        path.unlink()
    feeds = builders.feeds_of(proto)
    for a, b in zip(builders.run(tmp_path / "out.onnx", feeds), builders.run(proto, feeds), strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_beyond_protobufs_limit_get_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = builders.residual_cnn()
    graph = decode(proto)
    monkeypatch.setattr(io, "EXTERNAL_ABOVE_BYTES", 10_000)
    written = io.save(graph, tmp_path / "m.onnx")
    assert len(written) == 2
    again = io.load(tmp_path / "m.onnx")
    assert again.external
    feeds = builders.feeds_of(proto)
    np.testing.assert_array_equal(builders.run(written[0], feeds)[0], builders.run(proto, feeds)[0])
    with io.runnable(again) as where:
        assert isinstance(where, Path)
        np.testing.assert_array_equal(builders.run(where, feeds)[0], builders.run(proto, feeds)[0])
        temporary = where.parent
    assert not temporary.exists()
    result = PassManager(Pipeline.parse("fold-constants,cleanup,fuse-batchnorm")).run(again)
    assert "BatchNormalization" not in result.graph.operators()
    first = [p.read_bytes() for p in io.save(result.graph, tmp_path / "a.onnx")]
    second = [p.read_bytes() for p in io.save(result.graph, tmp_path / "a.onnx")]
    assert first == second


# -- saving ----------------------------------------------------------------------------------------------------


def test_the_input_file_is_never_overwritten(tmp_path: Path) -> None:
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    before = path.read_bytes()
    graph = io.load(path)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    for target in (path, link, tmp_path / "." / "m.onnx"):
        with pytest.raises(OutputError):
            io.save(graph, target)
    assert path.read_bytes() == before


def test_a_folder_is_made_where_that_can_be_done(tmp_path: Path) -> None:
    io.save(decode(builders.mlp()), tmp_path / "new" / "deep" / "m.onnx")
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["m.onnx"]
    with pytest.raises(OutputError):
        io.save(decode(builders.mlp()), tmp_path / "new" / "deep" / "m.onnx" / "n.onnx")


def test_weights_of_earlier_runs_go_and_those_that_a_model_names_stay(tmp_path: Path) -> None:
    def saved(seed: int, name: str = "out.onnx") -> Path:
        graph = io.load(builders.save_external(builders.mlp((64, 64, 10), seed=seed), tmp_path / f"in{seed}.onnx"))
        graph.external = True
        return io.save(graph, tmp_path / name)[1]

    first = saved(1)
    shutil.copy(tmp_path / "out.onnx", tmp_path / "kept.onnx")  # names the same weights
    second = saved(2)
    assert first.exists() and second.exists() and first != second
    (tmp_path / "kept.onnx").unlink()
    foreign = tmp_path / "out.0123456789ab.data"
    foreign.write_bytes(b"not what its name says")
    third = saved(3)
    assert not first.exists() and not second.exists() and third.exists()
    assert foreign.exists()


# -- nothing is lost -------------------------------------------------------------------------------------------


def whole_life(proto: onnx.ModelProto) -> Graph:
    """Load, touch every value, clone, save: the message is the same before and after."""
    graph = decode(proto)
    for constant in graph.constants():
        assert constant.values.shape == constant.shape
        assert constant.values.dtype == constant.dtype
    assert_onnx_proto_equal(encode(graph), proto)
    assert_onnx_proto_equal(encode(graph.clone().clone()), proto)
    assert io.to_bytes(graph.clone()) == io.to_bytes(graph)
    return graph


@pytest.mark.parametrize(
    "name",
    [
        "conv_bn_relu",
        "residual_cnn",
        "indirect_weights",
        "if_model",
        "loop_model",
        "function_model",
        "dynamic_cnn",
        "transformer",
    ],
)
def test_ordinary_models_come_back_as_they_were(name: str) -> None:
    whole_life(getattr(builders, name)())


TYPES = [
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
    "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "int4", "uint4", "int2", "uint2", "float4_e2m1fn",
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (0, 4)])
def test_every_type_of_initializer(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.asarray(builders.rng().integers(0, 2, shape)).astype(getattr(ml_dtypes, dtype, dtype))
    proto = sink({"w": values})
    graph = whole_life(proto)
    (constant,) = graph.constants()
    assert constant.values.tobytes() == values.tobytes()
    constant.values = np.array(constant.values)  # a pass may write what it read
    (tensor,) = encode(graph).graph.initializer
    assert numpy_helper.to_array(tensor).tobytes() == values.tobytes()
    assert tensor.data_type == proto.graph.initializer[0].data_type
    graph.external = True
    io.save(graph, tmp_path / "m.onnx")
    (again,) = io.load(tmp_path / "m.onnx").constants()
    assert again.values.tobytes() == values.tobytes()
    assert again.dtype == constant.dtype


def sink(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A custom operator that takes any types."""
    node = helper.make_node("Sink", ["x", *weights], ["y"], "sink", domain="my")
    ports = [builders.value("x", FLOAT, [1])], [builders.value("y", FLOAT, [1])]
    return builders.model([node], *ports, weights, check=False, domains={"my": 1}, opset=23, ir_version=11)


def test_strings_and_large_packed_tensors(tmp_path: Path) -> None:
    proto = sink({"s": np.array(["a", "", "é"], object), "p": np.arange(5001).astype(ml_dtypes.int4)})
    graph = whole_life(proto)
    graph.external = True
    io.save(graph, tmp_path / "m.onnx")
    again = {c.name: c.values for c in io.load(tmp_path / "m.onnx").constants()}
    assert [s if isinstance(s, str) else s.decode() for s in again["s"]] == ["a", "", "é"]
    assert again["p"].tolist() == np.arange(5001).astype(ml_dtypes.int4).tolist()


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers(linear: bool) -> None:
    values = numpy_helper.from_array(np.float32([1, 2]), "w")
    places = np.int64([1, 5]) if linear else np.int64([[0, 1], [1, 2]])
    proto = sink({"w": np.float32([0])})
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), [2, 3])
    )
    graph = whole_life(proto)
    (constant,) = graph.constants()
    assert constant.values.tolist() == [[0, 1, 0], [0, 0, 2]]
    constant.values = constant.values * 2
    (tensor,) = encode(graph).graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == [[0, 2, 0], [0, 0, 4]]


def test_metadata_doc_strings_and_annotations_are_kept() -> None:
    proto = builders.residual_cnn()
    proto.producer_name, proto.producer_version, proto.domain = "trainer", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "a model"
    proto.metadata_props.add(key="author", value="someone")
    graph = proto.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="g", value="1")
    graph.node[0].doc_string = "a node"
    graph.node[0].metadata_props.add(key="n", value="2")
    graph.input[0].doc_string = "an input"
    graph.input[0].metadata_props.add(key="i", value="3")
    graph.initializer[0].doc_string = "a weight"
    graph.output[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    entry = graph.quantization_annotation.add(tensor_name=graph.node[0].output[0])
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=graph.initializer[0].name)
    loaded = whole_life(proto)
    assert loaded.metadata == {"author": "someone"}
    result = PassManager(Pipeline.parse("cleanup")).run(loaded)
    assert encode(result.graph).metadata_props == proto.metadata_props


def test_attributes_of_every_kind() -> None:
    node = helper.make_node(
        "Odd", ["x"], ["y"], "odd", domain="my",
        i=1, f=0.5, s="text", b=b"\xff\xfe", ints=[1, 2], floats=[0.5], strings=["a", "b"],
        t=numpy_helper.from_array(np.float32([1])),
    )  # fmt: skip
    node.attribute.add(name="empty", type=onnx.AttributeProto.INTS)
    node.attribute.add(name="none", type=onnx.AttributeProto.FLOATS)
    tensors = node.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS)
    tensors.tensors.append(numpy_helper.from_array(np.int64([1])))
    kind = node.attribute.add(name="kind", type=onnx.AttributeProto.TYPE_PROTO)
    kind.tp.CopyFrom(helper.make_tensor_type_proto(FLOAT, [1]))
    ports = [builders.value("x", FLOAT, [1])], [builders.value("y", FLOAT, [1])]
    proto = builders.model([node], *ports, check=False, domains={"my": 1})
    graph = whole_life(proto)
    graph.nodes[0].attrs["new"] = []
    assert encode(graph).graph.node[0].attribute[-1].type == onnx.AttributeProto.INTS


def test_sequences_optionals_and_omitted_ports() -> None:
    nodes = [
        helper.make_node("SequenceAt", ["s", "i"], ["a"], "at"),
        helper.make_node("Clip", ["a", "", "high"], ["c"], "clip"),
        helper.make_node("Optional", ["c"], ["o"], "optional"),
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], "lstm", hidden_size=2),
    ]
    generator = builders.rng()
    weights = {
        "i": np.array(0, np.int64), "high": np.float32(1), "w": builders.normal(generator, 1, 8, 4),
        "r": builders.normal(generator, 1, 8, 2),
    }  # fmt: skip
    tensor = helper.make_tensor_type_proto(FLOAT, [2])
    inputs = [
        helper.make_value_info("s", helper.make_sequence_type_proto(tensor)),
        builders.value("x", FLOAT, [1, 1, 4]),
    ]
    outputs = [
        helper.make_value_info("o", helper.make_optional_type_proto(tensor)),
        builders.value("h", FLOAT, [1, 1, 2]),
    ]
    whole_life(builders.model(nodes, inputs, outputs, weights))


def test_unnamed_and_symbolic_dimensions_stay_as_written() -> None:
    proto = builders.dynamic_cnn()
    graph = whole_life(proto)
    assert graph.inputs[0].shape == ("N", 3, None, None)
    unranked = builders.model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [builders.value("x", FLOAT, None)],
        [builders.value("y", FLOAT, None)],
        check=False,
    )
    assert whole_life(unranked).inputs[0].shape is None


def test_weights_listed_as_inputs_become_plain_and_that_is_said() -> None:
    proto = builders.weights_as_inputs(builders.residual_cnn())
    graph = decode(proto)
    assert [t.name for t in graph.inputs] == ["image"]
    assert any("weights listed as graph inputs" in note for note in graph.notes)
    saved = encode(graph)
    assert saved.ir_version >= 4
    feeds = builders.feeds_of(proto)
    np.testing.assert_allclose(builders.run(saved, feeds)[0], builders.run(proto, feeds)[0], rtol=1e-4, atol=1e-5)
    kept = decode(proto, keep_initializer_inputs=True)
    assert_onnx_proto_equal(encode(kept), ordered(proto, encode(kept)))


def ordered(proto: onnx.ModelProto, like: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its inputs in the order of another, and the IR version that free initializers need."""
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    result.ir_version = like.ir_version
    by_name = {entry.name: entry for entry in proto.graph.input}
    del result.graph.input[:]
    result.graph.input.extend(by_name[entry.name] for entry in like.graph.input)
    return result


def test_weight_captured_by_both_branches_is_stored_once(tmp_path: Path) -> None:
    generator = builders.rng()
    proto = builders.if_model()
    graph = decode(proto)
    (shared,) = (c for c in graph.constants() if c.name == "w")
    assert len(shared.consumers) == 3
    shared.values = builders.normal(generator, 8, 8)
    io.save(graph, tmp_path / "m.onnx")
    stored = onnx.load(tmp_path / "m.onnx")
    names = [t.name for g in bodies_of(stored.graph) for t in g.initializer]
    assert sorted(names) == ["else_w", "then_b", "w"]


def bodies_of(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [graph, *(g for body in inner for g in bodies_of(body))]


def test_weight_that_a_body_hands_out_directly_is_stored_once() -> None:
    def branch(name: str) -> onnx.GraphProto:
        tensors = [numpy_helper.from_array(np.float32([1, 2]), name)]
        return helper.make_graph([], name, [], [builders.value(name, FLOAT, [2])], tensors)

    node = helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("t"), else_branch=branch("e"))
    inputs = [builders.value("flag", TensorProto.BOOL, [])]
    proto = builders.model([node], inputs, [builders.value("y", FLOAT, [2])])
    whole_life(proto)
    result = PassManager(Pipeline.parse("fold-constants,cleanup")).run(decode(proto))
    feeds = {"flag": np.array(True)}
    np.testing.assert_array_equal(builders.run(io.to_bytes(result.graph), feeds)[0], [1, 2])


def test_custom_operators_are_kept_and_not_run() -> None:
    proto = sink({"w": np.float32([1, 2])})
    result = PassManager(Pipeline.parse("fold-constants,cleanup,fuse-batchnorm")).run(decode(proto))
    assert_onnx_proto_equal(encode(result.graph), proto)
    assert result.changes == 0


def test_functions_are_kept() -> None:
    proto = builders.function_model()
    result = PassManager(Pipeline.parse("fold-constants,cleanup,fuse-batchnorm")).run(decode(proto))
    assert encode(result.graph).functions == proto.functions


def test_broken_weights_are_listed() -> None:
    proto = builders.mlp()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, :2] = np.nan
    weight[1, 0] = np.inf
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "fc1.weight"))
    assert broken_weights(decode(proto), load_operators()) == {"fc1.weight": "2 NaN and 1 infinite of 512 values"}
    assert broken_weights(decode(builders.transformer()), load_operators()) == {}
    PassManager(Pipeline.parse("fold-constants,cleanup,fuse-batchnorm")).run(decode(proto))
