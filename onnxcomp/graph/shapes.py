"""Shapes and types of every tensor, and whether a graph is well formed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import shape_inference

from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode, encode_light
from onnxcomp.graph.evaluate import propagate
from onnxcomp.graph.ir import Graph, Variable
from onnxcomp.graph.types import Shapes, TensorType


def infer(graph: Graph, bind: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Infer shapes and types of all tensors, bodies included.

    Args:
        bind: concrete shapes of graph inputs by name; None leaves symbolic dimensions symbolic. With shapes given,
            shape arithmetic (Shape, Gather, Concat, … down to a Reshape) is evaluated on the way, so that sizes come
            out as numbers wherever they follow from the inputs.
    """
    model = encode_light(graph)
    if bind:
        _bind(model.graph, bind)
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model  # what the file itself says is still known
    types: dict[str, TensorType] = {}
    for scope in decode_types(inferred):
        types.update(scope)
    shapes = Shapes(types)
    if bind:
        propagate(graph, shapes)
    return shapes


def decode_types(model: onnx.ModelProto) -> list[dict[str, TensorType]]:
    """Types of the variables of each scope of a ModelProto, the main graph first."""
    graph = decode(model)
    found = []
    for scope in graph.scopes():
        variables = [*scope.inputs, *(t for node in scope.nodes for t in node.outputs), *scope.outputs]
        found.append({t.name: TensorType(t.dtype, t.shape) for t in variables if isinstance(t, Variable) and t.name})
    return found


def annotate(graph: Graph) -> Shapes:
    """Infer, and write shapes and types to the tensors themselves; the interface stays as it is."""
    shapes = infer(graph)
    for scope in graph.scopes():
        fixed = {*scope.inputs, *scope.outputs}
        for node in scope.nodes:
            for tensor in node.outputs:
                known = shapes.types.get(tensor.name)
                if known is not None and tensor not in fixed:
                    tensor.dtype, tensor.shape = known.dtype, known.shape
    return shapes


def one_sample(graph: Graph, given: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, tuple[int, ...]]:
    """Concrete input shapes for cost figures: symbolic and unknown dimensions become 1 where none is given."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in graph.inputs:
        if given and tensor.name in given:
            shapes[tensor.name] = tuple(given[tensor.name])
        elif tensor.shape is not None:
            shapes[tensor.name] = tuple(d if isinstance(d, int) and d > 0 else 1 for d in tensor.shape)
    return shapes


def check_structure(graph: Graph, *, strict: bool = True) -> None:
    """onnx.checker and shape inference on a copy without large weights.

    Args:
        strict: fail where shape inference contradicts the graph; some valid models with custom operators need False.

    Raises:
        ModelError: names what is wrong.
    """
    model = encode_light(graph)
    try:
        shapeless = list(_shapeless(model.graph))
        for kind in shapeless:  # the checker wants a shape; runtimes and real models do without
            kind.shape.SetInParent()
        onnx.checker.check_model(model)
        for kind in shapeless:
            kind.ClearField("shape")
        shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict, data_prop=False)
    except (onnx.checker.ValidationError, shape_inference.InferenceError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ModelError(
            f"the graph is not valid ONNX: {line[:300]}", where="onnx.checker", do="export the model again"
        ) from error


def _shapeless(graph: onnx.GraphProto) -> Iterator[onnx.TypeProto.Tensor]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            yield value.type.tensor_type
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _shapeless(body)


def _bind(graph: onnx.GraphProto, bind: Mapping[str, tuple[int, ...]]) -> None:
    """Give inputs their sizes, and every symbol that this settles its value in what the file says of other tensors."""
    symbols: dict[str, int] = {}
    for value in graph.input:
        if value.name not in bind or not value.type.HasField("tensor_type"):
            continue
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, bind[value.name], strict=False):
            if dim.dim_param:
                symbols[dim.dim_param] = size
        del dims[:]
        for size in bind[value.name]:
            dims.add(dim_value=size)
    for value in (*graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in symbols:
                    dim.dim_value = symbols[dim.dim_param]
