"""ModelProto to Graph and back, with nothing lost on the way.

onnx-graphsurgeon's importer and exporter drop metadata, doc strings, exact attribute types and several tensor types;
this codec builds the same kind of objects and keeps the rest in envelopes. See docs/decisions for the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.errors import ModelError
from onnxcomp.graph.ir import (
    Array,
    Constant,
    Dim,
    Graph,
    Node,
    Stored,
    Tensor,
    Variable,
    elem_type,
    tensor_proto,
)
from onnxcomp.graph.stored import (
    check_sparse,
    check_values,
    dense,
    external_location,
    known_type,
    mapped,
    read,
    sparse_proto,
)

MIN_IR_FOR_FREE_INITIALIZERS = 4  # before IR 4 every initializer had to be a graph input too

Reader = Callable[[onnx.TensorProto], Array]
LIGHT_ELEMENTS = 1024  # of an initializer whose values checks and inference may need
Encoder = Callable[[Constant], onnx.TensorProto]


def decode(model: onnx.ModelProto, folder: Path | None = None, *, keep_initializer_inputs: bool = False) -> Graph:
    """Build a Graph from a ModelProto, which it keeps references into and never changes.

    Args:
        folder: where external data lies.
        keep_initializer_inputs: leave weights that old exporters list as graph inputs among the inputs.

    Raises:
        ModelError: a node reads a tensor that nothing defines, a name is defined twice, external data is missing.
    """
    return _Decoder(folder, keep_initializer_inputs).model(model)


def encode(graph: Graph, initializer: Encoder = tensor_proto) -> onnx.ModelProto:
    """Build a ModelProto from a Graph.

    Args:
        initializer: makes the TensorProto of a Constant; the default puts the data inside.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    if any(constant.scope is None for constant in graph.constants()):
        model.ir_version = max(model.ir_version, MIN_IR_FOR_FREE_INITIALIZERS)
    _encode_graph(graph, graph, model.graph, initializer)
    return model


def encode_light(
    graph: Graph, limit_elements: int = LIGHT_ELEMENTS, stays: Callable[[Constant], bool] = lambda constant: True
) -> onnx.ModelProto:
    """A ModelProto for checks and shape inference: initializers above the limit become graph inputs without data.

    Args:
        stays: asked for the small ones; False strips them too.
    """
    moved: list[Constant] = []

    def heavy(constant: Constant) -> bool:
        if constant.scope is not None or (constant.size <= limit_elements and stays(constant)):
            return False
        moved.append(constant)
        return True

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.ir_version = max(model.ir_version, MIN_IR_FOR_FREE_INITIALIZERS)
    _encode_graph(graph, graph, model.graph, tensor_proto, heavy, sparse=False)  # inference takes sparse for no tensor
    listed = {value.name for value in model.graph.input}
    for constant in dict.fromkeys(moved):
        if constant.name not in listed:
            model.graph.input.append(
                helper.make_tensor_value_info(constant.name, elem_type(constant.dtype), constant.shape)
            )
    return model


# -- decoding --------------------------------------------------------------------------------------------------


class _Decoder:
    def __init__(self, folder: Path | None, keep_initializer_inputs: bool) -> None:
        self.folder = folder
        self.keep = keep_initializer_inputs
        self.taken: set[str] = set()
        self.counts: dict[str, int] = {}  # how many names were made of each: thousands may be alike

    def model(self, proto: onnx.ModelProto) -> Graph:
        envelope = onnx.ModelProto()
        for descriptor, value in proto.ListFields():
            if descriptor.name == "graph":
                continue
            if isinstance(value, int | float | str | bytes):
                setattr(envelope, descriptor.name, value)
            else:
                getattr(envelope, descriptor.name).MergeFrom(value)
        self.taken = {node.name for node in _all_nodes(proto.graph)}
        graph = self.graph(proto.graph, None, {}, envelope)
        graph.external = any(t.external_data for t in all_tensors(proto.graph))
        return graph

    def graph(
        self, proto: onnx.GraphProto, parent: Graph | None, outer: dict[str, Tensor], model: onnx.ModelProto | None
    ) -> Graph:
        graph = Graph(parent=parent)
        if model is not None:
            graph.model = model
        graph.envelope = _leftovers(proto, "node", "initializer", "sparse_initializer", "input", "output", "value_info")
        scope = None if parent is None else graph
        local: dict[str, Tensor] = {}
        for tensor in proto.initializer:
            self._define(local, Constant(tensor.name, self._stored(tensor), scope, _without_data(tensor)))
        for sparse in proto.sparse_initializer:
            check_sparse(sparse)
            stored = Stored(sparse, partial(dense, sparse))
            self._define(local, Constant(sparse.values.name, stored, scope))
        graph.order = [t for t in local.values() if isinstance(t, Constant)]
        self._inputs(proto, graph, local)
        infos = {value.name: value for value in proto.value_info}
        infos.update({value.name: value for value in proto.output})
        for node in proto.node:
            for name in node.output:
                if name:
                    self._define(local, _variable(infos.get(name), name))
        visible = {**outer, **local}
        graph.nodes = [self._node(node, graph, visible) for node in proto.node]
        graph.outputs = [self._known(value.name, visible, f"graph output {value.name}") for value in proto.output]
        used = {t for n in graph.walk() for t in n.inputs}.union(graph.inputs, *(s.outputs for s in graph.scopes()))
        graph.unused = [c for c in graph.order if c not in used]
        return graph

    def _inputs(self, proto: onnx.GraphProto, graph: Graph, local: dict[str, Tensor]) -> None:
        dropped = []
        for value in proto.input:
            if value.name not in local:
                tensor = _variable(value, value.name)
                self._define(local, tensor)
                graph.inputs.append(tensor)
            elif self.keep:
                graph.kept_inputs[local[value.name]] = value
            else:
                dropped.append(value.name)
        if dropped:
            some = ", ".join(dropped[:3]) + (", …" if len(dropped) > 3 else "")
            graph.notes.append(
                f"{len(dropped)} weights listed as graph inputs became plain initializers ({some}); "
                "--keep-initializer-inputs leaves them"
            )

    def _node(self, proto: onnx.NodeProto, graph: Graph, visible: dict[str, Tensor]) -> Node:
        where = f"node {proto.op_type} {proto.name or '(no name)'}"
        inputs = [self._known(name, visible, where) if name else Variable("") for name in proto.input]
        outputs = [visible[name] if name else Variable("") for name in proto.output]
        name = proto.name or self._node_name(proto)
        node = Node(
            proto.op_type,
            name,
            {},
            inputs,
            outputs,
            proto.domain,
            _leftovers(proto, "op_type", "name", "input", "output", "attribute", "domain"),
        )
        if not proto.name:
            node.unnamed = name
        for attribute in proto.attribute:
            if attribute.ref_attr_name:
                raise ModelError(
                    f"attribute {attribute.name} refers to attribute {attribute.ref_attr_name!r} of a function, "
                    "and the node stands in none",
                    where=where,
                    do="export the model again",
                )
            value = self._attribute(attribute, graph, visible)
            node.attrs[attribute.name] = value
            if not _holds_graph(attribute):
                node.origin[attribute.name] = (value, attribute)
        return node

    def _node_name(self, proto: onnx.NodeProto) -> str:
        base = next((o for o in proto.output if o), proto.op_type)
        name, count = base, self.counts.get(base, 0)
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.counts[base] = count
        self.taken.add(name)
        return name

    def _attribute(self, proto: onnx.AttributeProto, graph: Graph, visible: dict[str, Tensor]) -> Any:
        kind = proto.type
        if kind == AttributeProto.GRAPH:
            return self.graph(proto.g, graph, visible, None)
        if kind == AttributeProto.GRAPHS:
            return [self.graph(g, graph, visible, None) for g in proto.graphs]
        if kind == AttributeProto.TENSOR:
            stored = self._stored(proto.t)
            return read(stored, proto.t.name or proto.name) if stored.dtype != np.dtype(object) else proto
        if kind in _PLAIN:
            return _PLAIN[kind](proto)
        return proto

    def _known(self, name: str, visible: dict[str, Tensor], where: str) -> Tensor:
        if name not in visible:
            raise ModelError(
                f"tensor {name!r} is read but nothing defines it", where=where, do="export the model again"
            )
        return visible[name]

    def _define(self, local: dict[str, Tensor], tensor: Tensor) -> None:
        if tensor.name in local:
            raise ModelError(
                f"tensor {tensor.name!r} is defined twice", where="the model's graph", do="export the model again"
            )
        local[tensor.name] = tensor

    def _stored(self, proto: onnx.TensorProto) -> Stored:
        check_values(proto)
        if proto.data_location == TensorProto.EXTERNAL:
            path, offset, length = external_location(proto, self.folder)
            return Stored(proto, lambda: mapped(proto, path, offset, length))
        return Stored(proto, lambda: numpy_helper.to_array(proto))


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


_PLAIN: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.STRING: lambda a: _text(a.s),
    AttributeProto.FLOATS: lambda a: list(a.floats),
    AttributeProto.INTS: lambda a: list(a.ints),
    AttributeProto.STRINGS: lambda a: [_text(s) for s in a.strings],
}


def _holds_graph(proto: onnx.AttributeProto) -> bool:
    return proto.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _variable(value: onnx.ValueInfoProto | None, name: str) -> Variable:
    if value is None:
        return Variable(name)
    kind = value.type.tensor_type
    if value.type.HasField("tensor_type") and kind.elem_type:
        known_type(kind.elem_type, f"tensor {name}")
    return Variable(name, *_typed(value), value)


def _typed(value: onnx.ValueInfoProto) -> tuple[np.dtype[Any] | None, tuple[Dim, ...] | None]:
    """Element type and shape, each None where it is unknown."""
    if not value.type.HasField("tensor_type"):
        return None, None
    kind = value.type.tensor_type.elem_type
    return (tensor_dtype_to_np_dtype(kind) if kind else None), shape_of(value)


def shape_of(value: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """Shape of a tensor's ValueInfoProto; None when the rank is unknown."""
    return dims_of(value.type.tensor_type)


def dims_of(kind: onnx.TypeProto.Tensor) -> tuple[Dim, ...] | None:
    """Shape of a tensor type; None when the rank is unknown.

    A negative size is unknown: exporters write -1 for any, and inference gives one where a kernel does not fit.
    """
    if not kind.HasField("shape"):
        return None
    return tuple(_dim(d) for d in kind.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    name: str | bytes = dim.dim_param
    return (name.decode() if isinstance(name, bytes) else name) or None  # protobuf gives bytes for what is no UTF-8


def _leftovers(proto: Any, *handled: str) -> Any:
    rest = type(proto)()
    for descriptor, value in proto.ListFields():
        if descriptor.name in handled:
            continue
        if isinstance(value, int | float | str | bytes):
            setattr(rest, descriptor.name, value)
        else:
            getattr(rest, descriptor.name).MergeFrom(value)
    return rest


def _without_data(proto: onnx.TensorProto) -> onnx.TensorProto | None:
    if not proto.doc_string and not proto.metadata_props:
        return None
    rest = onnx.TensorProto(doc_string=proto.doc_string)
    rest.metadata_props.MergeFrom(proto.metadata_props)
    return rest


def bodies_of(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    """The subgraphs that a node holds."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _all_nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in bodies_of(node):
            yield from _all_nodes(body)


def all_tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """Every tensor with data in a graph and its bodies: initializers and tensor attributes."""
    yield from graph.initializer
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.type == AttributeProto.TENSOR)
        for body in bodies_of(node):
            yield from all_tensors(body)


# -- encoding --------------------------------------------------------------------------------------------------


def _encode_graph(
    root: Graph,
    graph: Graph,
    proto: onnx.GraphProto,
    initializer: Encoder,
    leave_out: Callable[[Constant], bool] = lambda constant: False,
    *,
    sparse: bool = True,
) -> None:
    proto.CopyFrom(graph.envelope)
    scope = None if graph is root else graph
    for node in graph.nodes:
        _encode_node(root, node, proto.node.add(), initializer, leave_out, sparse=sparse)
    for tensor in graph.inputs:
        proto.input.append(value_info(tensor))
    for value in graph.kept_inputs.values():
        proto.input.append(value)
    for tensor in graph.outputs:
        proto.output.append(_output_info(graph, tensor))
    for tensor in dict.fromkeys(t for node in graph.nodes for t in node.outputs):
        if tensor.name and tensor.shape is not None and tensor.dtype is not None and not _in(tensor, graph.outputs):
            proto.value_info.append(value_info(tensor))
    for constant in _initializers(root, graph, scope):
        if leave_out(constant):
            continue
        stored = constant.stored
        if sparse and stored is not None and isinstance(stored.proto, onnx.SparseTensorProto):
            kept = proto.sparse_initializer.add()
            kept.CopyFrom(stored.proto)
            kept.values.name = constant.name
        elif sparse and constant.sparse and (made := sparse_proto(constant)) is not None:
            proto.sparse_initializer.append(made)
        else:
            proto.initializer.append(initializer(constant))
    known = {c.name for c in (*proto.initializer, *proto.node)} | {o for n in proto.node for o in n.output}
    _keep_valid_annotations(proto, known | {i.name for i in proto.input})


def _initializers(root: Graph, graph: Graph, scope: Graph | None) -> list[Constant]:
    """What this graph stores: its own, in file order, and on the main graph also whatever passes made."""
    if scope is None:
        mine = [c for c in root.constants() if c.scope is None]
        return sorted((*mine, *graph.unused), key=_rank(graph.order))
    used = dict.fromkeys(
        t for node in graph.walk() for t in node.inputs if isinstance(t, Constant) and t.scope is graph
    )
    used.update(dict.fromkeys(t for t in graph.outputs if isinstance(t, Constant) and t.scope is graph))
    return sorted((*used, *graph.unused), key=_rank(graph.order))


def _rank(order: Sequence[Constant]) -> Callable[[Constant], int]:
    rank = {constant: i for i, constant in enumerate(order)}
    return lambda constant: rank.get(constant, len(rank))


def encode_node(node: Node) -> onnx.NodeProto:
    """One node without bodies as a NodeProto."""
    proto = onnx.NodeProto()
    _encode_node(Graph(), node, proto, tensor_proto, lambda constant: False)
    return proto


def _encode_node(
    root: Graph,
    node: Node,
    proto: onnx.NodeProto,
    initializer: Encoder,
    leave_out: Callable[[Constant], bool],
    *,
    sparse: bool = True,
) -> None:
    if node.envelope is not None:
        proto.CopyFrom(node.envelope)
    proto.op_type = node.op
    if node.unnamed != node.name:
        proto.name = node.name
    if node.domain:
        proto.domain = node.domain
    proto.input.extend(t.name for t in node.inputs)
    proto.output.extend(t.name for t in node.outputs)
    for key, value in node.attrs.items():
        original = node.origin.get(key)
        if original is not None and original[0] is value and not original[1].t.external_data:
            proto.attribute.append(original[1])
        elif isinstance(value, Graph):
            attribute = proto.attribute.add(name=key, type=AttributeProto.GRAPH)
            _encode_graph(root, value, attribute.g, initializer, leave_out, sparse=sparse)
        elif isinstance(value, list) and value and isinstance(value[0], Graph):
            attribute = proto.attribute.add(name=key, type=AttributeProto.GRAPHS)
            for body in value:
                _encode_graph(root, body, attribute.graphs.add(), initializer, leave_out, sparse=sparse)
        elif isinstance(value, np.ndarray):
            proto.attribute.append(helper.make_attribute(key, numpy_helper.from_array(value)))
        elif isinstance(value, onnx.AttributeProto):
            proto.attribute.append(value)
        else:
            kind = AttributeProto.INTS if isinstance(value, list | tuple) and not value else None
            proto.attribute.append(helper.make_attribute(key, value, attr_type=kind))


def value_info(tensor: Variable) -> onnx.ValueInfoProto:
    """The tensor's type as a ValueInfoProto; what graphs of tensors cannot say (sequences, …) from its envelope."""
    value = onnx.ValueInfoProto()
    if tensor.envelope is not None:
        value.CopyFrom(tensor.envelope)
        if _typed(tensor.envelope) == (tensor.dtype, tensor.shape):
            value.name = tensor.name
            return value
    value.name = tensor.name
    if tensor.dtype is not None:
        value.type.CopyFrom(helper.make_tensor_type_proto(elem_type(tensor.dtype), tensor.shape))
    return value


def _output_info(graph: Graph, tensor: Tensor) -> onnx.ValueInfoProto:
    if isinstance(tensor, Constant):
        return helper.make_tensor_value_info(tensor.name, elem_type(tensor.dtype), tensor.shape)
    return value_info(tensor)


def _in(tensor: Tensor, tensors: Sequence[Tensor]) -> bool:
    return any(tensor is other for other in tensors)


def _keep_valid_annotations(proto: onnx.GraphProto, known: set[str]) -> None:
    kept = [a for a in proto.quantization_annotation if a.tensor_name in known]
    if len(kept) != len(proto.quantization_annotation):
        del proto.quantization_annotation[:]
        proto.quantization_annotation.extend(kept)
