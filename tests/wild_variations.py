"""In which other forms can a whole random model stand? Other types, fewer known shapes, as a runtime writes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

Form = Callable[[ModelProto], ModelProto]
Feeds = Callable[[int, int], dict[str, np.ndarray]]


def drawn(random: np.random.Generator) -> Form | None:
    """The form that a seed gives; most models stay as they are."""
    kind = random.random()
    for share, form in ((0.06, in_half), (0.10, in_double), (0.20, sizes_unknown), (0.24, ranks_alone),
                        (0.30, as_the_runtime_writes), (0.34, sparse_weights), (0.38, told_everything)):  # fmt: skip
        if kind < share:
            return form
    return None


def feeds_of(proto: ModelProto, feeds: Feeds) -> Feeds:
    """Values of the types that the model's inputs have."""
    types = {p.name: helper.tensor_dtype_to_np_dtype(p.type.tensor_type.elem_type) for p in proto.graph.input}
    return lambda batch, seed: {n: a.astype(types[n]) for n, a in feeds(batch, seed).items()}


def in_half(proto: ModelProto) -> ModelProto:
    return _in_type(proto, TensorProto.FLOAT16)


def in_double(proto: ModelProto) -> ModelProto:
    return _in_type(proto, TensorProto.DOUBLE)


def sizes_unknown(proto: ModelProto) -> ModelProto:
    """Inputs whose every size has a name only."""
    made = copy(proto)
    for port in made.graph.input:
        for place, dim in enumerate(port.type.tensor_type.shape.dim):
            if not any(t.name == port.name for t in made.graph.initializer):
                dim.dim_param = dim.dim_param or f"{port.name}_{place}"
    return _without_types(made)


def ranks_alone(proto: ModelProto) -> ModelProto:
    """Ports with their ranks and no more: no size of an output, no name of a size."""
    made = copy(proto)
    for port in made.graph.input:
        for dim in port.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    return _without_types(made)


def _without_types(proto: ModelProto) -> ModelProto:
    for port in proto.graph.output:
        for dim in port.type.tensor_type.shape.dim:
            dim.Clear()
    return proto


def told_everything(proto: ModelProto) -> ModelProto:
    """Shapes of all inner tensors, as exporters write them."""
    made = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    return made if isinstance(made, ModelProto) else proto


def as_the_runtime_writes(proto: ModelProto) -> ModelProto:
    """What ONNX Runtime's own optimizer writes, with operators of its own."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def sparse_weights(proto: ModelProto) -> ModelProto:
    """Weights that hold zeros, as sparse initializers."""
    made = copy(proto)
    ports = {p.name for p in (*made.graph.input, *made.graph.output)}
    for tensor in list(made.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 2 and (array == 0).mean() > 0.3 and tensor.name not in ports:
            places = np.flatnonzero(array).astype(np.int64)
            values = numpy_helper.from_array(array.reshape(-1)[places], tensor.name)
            indices = numpy_helper.from_array(places, f"{tensor.name}_places")
            made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(array.shape)))
            made.graph.initializer.remove(tensor)
    return made


def _in_type(proto: ModelProto, kind: int) -> ModelProto:
    """Every float32 of the model as another type: weights, constants, casts, ports and those of bodies."""
    made = copy(proto)
    for graph in _graphs(made):
        for port in (*graph.input, *graph.output, *graph.value_info):
            if port.type.tensor_type.elem_type == TensorProto.FLOAT:
                port.type.tensor_type.elem_type = kind
        for tensor in graph.initializer:
            _convert(tensor, kind)
        for node in graph.node:
            _convert_attributes(node.op_type, node.attribute, kind)
    for function in made.functions:
        for node in function.node:
            _convert_attributes(node.op_type, node.attribute, kind)
    return made


def _convert_attributes(op: str, attributes: Any, kind: int) -> None:
    for attribute in attributes:
        if attribute.type == AttributeProto.TENSOR:
            _convert(attribute.t, kind)
        elif op == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind


def _convert(tensor: TensorProto, kind: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _graphs(proto: ModelProto) -> Iterator[GraphProto]:
    found = [proto.graph, *(a.g for f in proto.functions for n in f.node for a in n.attribute if a.HasField("g"))]
    while found:
        graph = found.pop()
        yield graph
        found += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def copy(proto: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(proto)
    return made
