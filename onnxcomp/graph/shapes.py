"""Shapes and types of every tensor, and whether a graph is well formed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

import onnx
from onnx import shape_inference
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import LIGHT_ELEMENTS, encode_light, shape_of
from onnxcomp.graph.evaluate import SMALL_ELEMENTS, beyond_onnx, empty_along, propagate
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Graph, is_onnx
from onnxcomp.graph.types import Shapes, TensorType

UNREAD = {"GroupNormalization": range(18, 21), "MeanVarianceNormalization": range(13, 99)}
MOST_ANSWERS = 16
LONGEST_FOLLOWED = 65536  # elements of a vector; no shape has so many


def infer(graph: Graph, bind: Mapping[str, tuple[int, ...]] | None = None, *, declared: bool = True) -> Shapes:
    """Infer shapes and types of all tensors, bodies included.

    Args:
        bind: concrete shapes of graph inputs by name; None leaves symbolic dimensions symbolic. With shapes given,
            shape arithmetic (Shape, Gather, Concat, … down to a Reshape) is evaluated on the way, so that sizes come
            out as numbers wherever they follow from the inputs.
        declared: believe what the file says of tensors inside; False uses only what follows from the inputs, which
            the runtime enforces, and so is certain. Inputs of bodies then have types but no shapes of their own.
    """
    model = _readable(encode_light(graph))
    if not declared:
        _forget(model.graph)
    if bind:
        _bind(model.graph, bind)
    beyond = bool(bind) or beyond_onnx(graph)
    key = _key(graph, model, declared=declared, beyond=beyond)
    answers = graph.root.answers
    types = answers.pop(key) if key in answers else _inferred(graph, model, declared=declared, beyond=beyond)
    answers[key] = types
    if len(answers) > MOST_ANSWERS:
        answers.popitem(last=False)
    return Shapes(dict(types), declared=declared)


def _inferred(graph: Graph, model: onnx.ModelProto, *, declared: bool, beyond: bool) -> MutableMapping[str, TensorType]:
    try:
        inferred = propagated(model)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model  # what the file itself says is still known
    shapes = Shapes(_types(inferred.graph), declared=declared)
    if beyond:
        propagate(graph, shapes)
    return shapes.types


def propagated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the shapes that follow, those out of shape arithmetic, too.

    onnx keeps one entry an element of every vector on the way, whatever that holds: vectors that are declared as long
    are shown to it as of a size unknown, and the size is put where it went.

    Raises:
        InferenceError, RuntimeError, ValueError: as onnx has them.
    """
    sizes: dict[str, int] = {}
    for value in _declared(model.graph):
        if (length := _length(value)) > LONGEST_FOLLOWED:
            name = f"onnxcomp:{value.name}:{length}"  # bodies may use a name twice
            sizes[name] = length
            value.type.tensor_type.shape.dim[0].dim_param = name
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        _give_sizes(inferred.graph, sizes)
    finally:
        _give_sizes(model.graph, sizes)
    return inferred


def _length(value: onnx.ValueInfoProto) -> int:
    """The size of a vector, 0 where there is none or it is no vector."""
    dims = value.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if len(dims) == 1 else 0


def _give_sizes(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    for value in _declared(graph) if sizes else ():
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]


def _key(graph: Graph, model: onnx.ModelProto, *, declared: bool, beyond: bool) -> bytes:
    """Everything that an answer depends on: the model as inference sees it, and the values that evaluation reads."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True) + bytes([declared, beyond]))
    for constant in graph.constants() if beyond else ():
        if LIGHT_ELEMENTS < constant.size <= SMALL_ELEMENTS:
            values = constant.values
            told = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
            digest.update(f"{constant.name} {values.dtype} {values.shape} ".encode() + told)
    for node in graph.nodes if beyond and declared else ():
        for tensor in node.outputs:
            if tensor.dtype is None and tensor.shape is not None:  # a shape alone is not written, and is believed
                digest.update(f"{tensor.name} {tensor.shape} ".encode())
    return digest.digest()


def _types(graph: onnx.GraphProto) -> dict[str, TensorType]:
    """Types by tensor name; where bodies use a name twice, only what holds for both is known."""
    types: dict[str, TensorType] = {}
    for value in _declared(graph):
        if not value.name or not value.type.HasField("tensor_type"):
            continue
        element = value.type.tensor_type.elem_type
        known = TensorType(tensor_dtype_to_np_dtype(element) if element else None, shape_of(value))
        seen = types.setdefault(value.name, known)
        if seen != known:
            types[value.name] = TensorType(
                seen.dtype if seen.dtype == known.dtype else None, seen.shape if seen.shape == known.shape else None
            )
    return types


def _declared(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    return (value for body in _graphs(graph) for value in (*body.input, *body.value_info, *body.output))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies below it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for body in attribute.graphs:
                    yield from _graphs(body)


def _forget(graph: onnx.GraphProto) -> None:
    """Drop every declared shape but those of the model's inputs."""
    for body in _graphs(graph):
        del body.value_info[:]
        for value in (*body.output, *(() if body is graph else body.input)):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")


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
    model = _set_apart(_readable(encode_light(graph)))
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


def strict_enough(graph: Graph) -> bool:
    """Whether strict inference passes a graph that is right; it fails some with custom operators.

    Raises:
        ModelError: the graph is not right.
    """
    try:
        check_structure(graph, strict=True)
    except ModelError:
        check_structure(graph, strict=False)
        return False
    return True


@contextmanager
def blamed_on(graph: Graph) -> Iterator[None]:
    """An unexpected error of what reads a graph that ONNX's own strict inference refuses is the graph's fault.

    Only then is the inference asked: it refuses some models that run, too.

    Raises:
        ModelError: in the place of an error that attributes and sizes which fit nothing lead to; names what is wrong.
    """
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError):
        check_structure(graph, strict=True)
        raise


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let onnx read what its inference refuses although it is right and runtimes run it.

    These are GroupNormalization of opset 18 to 20, which it calls deprecated, and MeanVarianceNormalization made of
    others, whose parts it cannot type where `axes` is left to its default or a size is free. In checks and for
    inference an Identity stands in their place, which has the same type and shape. And what is empty does not tell the
    sizes of what it is joined with: runtimes skip it.
    """
    _skip_empty(model.graph)
    opset = next((o.version for o in model.opset_import if is_onnx(o.domain)), 0)
    unread = [name for name, opsets in UNREAD.items() if opset in opsets]
    for node in (n for body in _graphs(model.graph) for n in body.node) if unread else ():
        if node.op_type in unread and is_onnx(node.domain):
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return model


def _skip_empty(graph: onnx.GraphProto) -> None:
    """Leave constants out of a Concat that are empty along its axis."""
    empty: dict[str, list[int]] = {}
    for body in _graphs(graph):
        held = (
            (n.output[0], a.t) for n in body.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
        )
        for name, tensor in (*((t.name, t) for t in body.initializer), *held):
            if 0 in tensor.dims:
                empty[name] = list(tensor.dims)
    for node in (n for body in _graphs(graph) for n in body.node) if empty else ():
        if node.op_type == "Concat" and is_onnx(node.domain):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            left = [name for name in node.input if not empty_along(empty.get(name, []), axis)]
            if left:
                node.input[:] = left


def _set_apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """Operators in ONNX's own domain that are not of the standard: to the checker, foreign.

    ONNX Runtime keeps some there, and tools put nodes for plugins of TensorRT there without a word on their domain.
    """
    local = {function.name for function in model.functions if is_onnx(function.domain)}
    foreign = [
        node
        for body in _graphs(model.graph)
        for node in body.node
        if is_onnx(node.domain) and not onnx.defs.has(node.op_type) and node.op_type not in local
    ]
    for node in foreign:
        node.domain = MICROSOFT_DOMAIN
    if foreign and not any(used.domain == MICROSOFT_DOMAIN for used in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT_DOMAIN, 1))
    return model


def _shapeless(graph: onnx.GraphProto) -> Iterator[onnx.TypeProto.Tensor]:
    for body in _graphs(graph):
        for value in (*body.input, *body.output, *body.value_info):
            if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                yield value.type.tensor_type


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
