"""Models that protobuf reads and the standard does not have: text that is not UTF-8, attributes that fit nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import pytest
from nets import Net
from onnx import GraphProto, ModelProto, TensorProto, helper

from onnxcomp import inspect, optimize
from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode
from onnxcomp.graph.io import load
from onnxcomp.graph.shapes import blamed_on
from onnxcomp.verify.provenance import is_stamped

MARK, BYTES = "markmark", b"mark\xf3ark"


def in_node_name(model: ModelProto) -> None:
    model.graph.node[0].name = MARK


def in_node_of_a_body(model: ModelProto) -> None:
    body_of(model).node[0].name = MARK


def in_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = MARK


def in_domain(model: ModelProto) -> None:
    model.graph.node[0].domain = MARK


def in_tensor(model: ModelProto) -> None:
    body_of(model).node[0].output[0] = MARK


def in_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute(MARK, 1))


def in_documentation(model: ModelProto) -> None:
    model.graph.node[0].doc_string = MARK


def in_size(model: ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = MARK


def in_producer(model: ModelProto) -> None:
    model.producer_name = MARK


def in_metadata(model: ModelProto) -> None:
    model.metadata_props.add(key="key", value=MARK)


def in_initializer(model: ModelProto) -> None:
    model.graph.initializer[0].name = MARK


def in_graph(model: ModelProto) -> None:
    model.graph.name = MARK


def body_of(model: ModelProto) -> GraphProto:
    return next(n for n in model.graph.node if n.op_type == "If").attribute[0].g


PLACES = (
    in_node_name,
    in_node_of_a_body,
    in_operator,
    in_domain,
    in_tensor,
    in_attribute,
    in_documentation,
    in_size,
    in_producer,
    in_initializer,
    in_graph,
)


@pytest.mark.parametrize("put", PLACES, ids=lambda put: put.__name__)
def test_text_that_is_not_utf8_is_the_models_fault(put: Callable[[ModelProto], None], tmp_path: Path) -> None:
    model = builders.if_model()
    put(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(MARK.encode(), BYTES))
    with pytest.raises(ModelError):
        load(path)


@pytest.mark.parametrize("place", ["key", "value"])
def test_metadata_may_be_any_bytes(place: str, tmp_path: Path) -> None:
    model = builders.mlp()
    model.metadata_props.add(**{"key": "key", "value": "value", place: MARK})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(MARK.encode(), BYTES))
    optimize(path, passes="quantize-weights{bits=8}", output=tmp_path / "out.onnx", bench=False)
    assert BYTES in (tmp_path / "out.onnx").read_bytes()
    assert is_stamped(tmp_path / "out.onnx")
    assert not is_stamped(path)


@pytest.mark.parametrize("place", ["key", "value"])
def test_an_external_place_that_is_not_utf8_is_the_models_fault(place: str, tmp_path: Path) -> None:
    model = builders.mlp()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.external_data.add(**{"key": "offset", "value": "0", place: MARK})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(MARK.encode(), BYTES))
    with pytest.raises(ModelError, match="not UTF-8"):
        load(path)


def transposed_beyond(path: Path) -> Path:
    """A Transpose of an axis that its weight does not have."""
    model = builders.indirect_weights()
    node = next(n for n in model.graph.node if n.op_type == "Transpose")
    node.attribute[0].ints[:] = [1, 7]
    path.write_bytes(model.SerializeToString())
    return path


def test_an_attribute_that_does_not_fit_is_the_models_fault(tmp_path: Path) -> None:
    path = transposed_beyond(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="Transpose"):
        inspect(path)
    with pytest.raises(ModelError, match="Transpose"):
        optimize(path, passes="drop-zero-channels", output=tmp_path / "out.onnx", bench=False, verify=False)


@pytest.mark.parametrize("group", [0, 3, -(2**62)])
def test_groups_that_part_no_channels_are_the_models_fault(group: int, tmp_path: Path) -> None:
    model = builders.conv_bn_relu()
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    node.attribute.append(helper.make_attribute("group", group))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="groups"):
        inspect(path)


def test_an_error_of_ours_on_a_right_graph_stays_one() -> None:
    with pytest.raises(KeyError), blamed_on(decode(builders.mlp())):
        raise KeyError("ours")


@pytest.mark.parametrize("axes", [[1, 1], [7], [0, -4]])
def test_axes_that_are_not_there_or_twice_are_the_models_fault(axes: list[int], tmp_path: Path) -> None:
    net = Net()
    x = net.op("Unsqueeze", net.op("MatMul", net.input("N", 8), net.weight(8, 8)), net.const(axes))
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(x).SerializeToString())
    with pytest.raises(ModelError, match="axes"):
        inspect(path, groups=True)
