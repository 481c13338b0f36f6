"""The graph that passes work on: onnx-graphsurgeon's nodes and tensors, with identity semantics and nothing lost.

graphsurgeon's own classes compare by name and content and cannot be hashed; these subclasses compare by identity, so
they may stand in sets and dict keys. What graphsurgeon has no place for (doc strings, metadata, exact attribute types)
stays beside each object in an `envelope`, so that a rename does not break it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx.helper import np_dtype_to_tensor_dtype, tensor_dtype_to_np_dtype

from onnxcomp.errors import ModelError
from onnxcomp.graph.metadata import metadata_of

Array: TypeAlias = np.ndarray[Any, Any]
Dim: TypeAlias = int | str | None

ONNX_DOMAIN = ""
MICROSOFT_DOMAIN = "com.microsoft"


class Variable(gs.Variable):
    """A tensor whose value is known at run time only.

    Attributes:
        name: unique in the model; empty for an omitted optional input or output.
        dtype: numpy dtype (of ml_dtypes for types that numpy lacks), or None when unknown.
        shape: tuple of int, str (symbolic) or None (unknown) a dimension; None when the rank is unknown.
        inputs, outputs: producing node (none or one), consuming nodes, those in subgraphs included.
        envelope: the ValueInfoProto it came from; sequence, map and optional types live only there.
        left: by axis, int64 indices into the axis that the tensor had, where pruning took the others out.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any] | None = None,
        shape: Sequence[Dim] | None = None,
        envelope: onnx.ValueInfoProto | None = None,
        left: Mapping[int, Array] | None = None,
    ) -> None:
        super().__init__(name, dtype, tuple(shape) if shape is not None else None)
        self.envelope = envelope
        self.left = dict(left or {})

    @property
    def producer(self) -> Node | None:
        """The node that computes this tensor; None for a graph input and for an omitted tensor."""
        return self.inputs[0] if self.inputs else None

    @property
    def consumers(self) -> list[Node]:
        """The nodes that read this tensor, each once a port that reads it."""
        return list(self.outputs)


class Stored:
    """The value of an initializer as it lies in the model file; decoded on each read, never kept.

    Args:
        proto: a TensorProto, or a SparseTensorProto.
        read: returns the array; external data gives a view of the mapped file.
    """

    def __init__(self, proto: onnx.TensorProto | onnx.SparseTensorProto, read: Callable[[], Array]) -> None:
        self.proto = proto
        self.read = read
        values = proto.values if isinstance(proto, onnx.SparseTensorProto) else proto
        self.dtype = tensor_dtype_to_np_dtype(values.data_type)
        self.shape = tuple(proto.dims)


class Constant(gs.Constant):
    """A tensor whose value is known: an initializer.

    `values` is read-only: a pass that changes a weight assigns a new array. Values still in the file are decoded on
    each read and not kept, so hold the array while you use it.

    Attributes:
        scope: the subgraph that holds the initializer; None for the main graph.
        envelope: a TensorProto without data (name, doc string, metadata).
        sparse: whether the file held it as a sparse tensor; a new value is written so too where that is smaller.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        name: str,
        values: Array | Stored,
        scope: Graph | None = None,
        envelope: onnx.TensorProto | None = None,
    ) -> None:
        super().__init__(name, np.zeros(0, np.float32))
        self.scope = scope
        self.envelope = envelope
        self._values: Array | Stored = values if isinstance(values, Stored) else _frozen(values)
        self.sparse = isinstance(values, Stored) and isinstance(values.proto, onnx.SparseTensorProto)

    @property
    def values(self) -> Array:
        """The value, read-only, in its own dtype."""
        if isinstance(self._values, Stored):
            array = self._values.read()
            array.flags.writeable = False
            return array
        return self._values

    @values.setter
    def values(self, values: Array) -> None:
        self._values = _frozen(values)

    @property
    def stored(self) -> Stored | None:
        """The untouched value in the model file; None once a pass assigned a new one."""
        return self._values if isinstance(self._values, Stored) else None

    @property
    def payload(self) -> Array | Stored:
        """What a clone shares: the array, or where it lies."""
        return self._values

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions, without reading the value."""
        return tuple(self._values.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy dtype, without reading the value."""
        return self._values.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the value as the file stores it: 4- and 2-bit types are packed."""
        return stored_bytes(self.size, self.dtype)

    @property
    def producer(self) -> None:
        """An initializer has no producer; here so that a tensor can be asked without looking at its kind."""
        return

    @property
    def consumers(self) -> list[Node]:
        """The nodes that read this tensor, each once a port that reads it."""
        return list(self.outputs)


Tensor: TypeAlias = Variable | Constant


class Node(gs.Node):
    """One operation.

    Attributes:
        op, name, domain: as in ONNX; the default domain is the empty string.
        attrs: name to int, float, str, bytes, lists of these, numpy array (tensors), `Graph` (subgraphs), or the
            AttributeProto itself for kinds that have no plain form.
        inputs, outputs: tensors; an omitted optional one is a Variable with an empty name.
        envelope: a NodeProto with what has no place here (doc string, overload, metadata).
        origin: attribute name to (decoded value, its proto), so that an untouched attribute is written back exactly.
        unnamed: the name given on load to a node without one; it is not written back.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        op: str,
        name: str,
        attrs: dict[str, Any] | None = None,
        inputs: Sequence[Tensor] = (),
        outputs: Sequence[Tensor] = (),
        domain: str = ONNX_DOMAIN,
        envelope: onnx.NodeProto | None = None,
    ) -> None:
        super().__init__(op, name, dict(attrs or {}), list(inputs), list(outputs), domain)
        self.envelope = envelope
        self.origin: dict[str, tuple[Any, onnx.AttributeProto]] = {}
        self.unnamed = ""

    def input(self, port: int) -> Tensor | None:
        """The tensor at an input port; None where it is omitted."""
        if port >= len(self.inputs) or not self.inputs[port].name:
            return None
        tensor: Tensor = self.inputs[port]
        return tensor

    def constant(self, port: int) -> Constant | None:
        """The initializer at an input port; None where the input is computed or omitted."""
        tensor = self.input(port)
        return tensor if isinstance(tensor, Constant) else None

    def output(self, port: int = 0) -> Variable | None:
        """The tensor at an output port; None where it is omitted."""
        if port >= len(self.outputs) or not self.outputs[port].name:
            return None
        tensor: Variable = self.outputs[port]
        return tensor

    def set_input(self, port: int, tensor: Tensor) -> None:
        """Put a tensor at an input port, padding omitted ports before it."""
        while len(self.inputs) <= port:
            self.inputs.append(Variable(""))
        self.inputs[port] = tensor

    @property
    def bodies(self) -> list[Graph]:
        """The subgraphs of this node (If, Loop, Scan)."""
        found: list[Graph] = []
        for value in self.attrs.values():
            if isinstance(value, Graph):
                found.append(value)
            elif isinstance(value, list) and value and isinstance(value[0], Graph):
                found.extend(value)
        return found

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


@dataclass(eq=False)
class Graph:
    """A model, or the body of a control-flow node.

    Attributes:
        nodes: in an order that runs; `sort` restores it after edits.
        inputs, outputs: the interface. A weight is never among the inputs unless asked for on load.
        order: initializers in file order, for stable output; new ones follow as they are first used.
        unused: initializers that nothing reads, kept until a clean-up pass drops them.
        parent: the graph whose node holds this one as a body; None for the model.
        model: ModelProto without its graph: IR version, opset imports, producer, metadata, functions. Main graph only.
        envelope: GraphProto without its contents: name, doc string, metadata.
        notes: what loading changed, one sentence each.
        external: whether the model came with external data, and so will be saved with it.
        source: the file it was loaded from, which is never written to.
        kept_inputs: initializers that stay listed as inputs because loading was asked to leave them.
        answers: the last ones of shape inference by what they depend on, of this graph and all copies of it: passes,
            measurements and reports ask the same again and again.
    """

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Variable] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    order: list[Constant] = field(default_factory=list)
    unused: list[Constant] = field(default_factory=list)
    parent: Graph | None = None
    model: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    envelope: onnx.GraphProto = field(default_factory=onnx.GraphProto)
    notes: list[str] = field(default_factory=list)
    external: bool = False
    source: Path | None = None
    kept_inputs: dict[Constant, onnx.ValueInfoProto] = field(default_factory=dict)
    answers: OrderedDict[bytes, Mapping[str, Any]] = field(default_factory=OrderedDict, repr=False)
    _names: set[str] | None = None
    _counts: dict[str, int] = field(default_factory=dict)
    _bodies: list[Graph] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.parent is not None:
            self.root._bodies.append(self)

    @property
    def root(self) -> Graph:
        """The main graph."""
        graph = self
        while graph.parent is not None:
            graph = graph.parent
        return graph

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """Version of the default operator set; 0 where the model imports none."""
        return self.opset_of(ONNX_DOMAIN)

    def opset_of(self, domain: str) -> int:
        """Version of one operator set; 0 where the model does not import it."""
        wanted = _canonical(domain)
        return next((o.version for o in self.root.model.opset_import if _canonical(o.domain) == wanted), 0)

    def import_domain(self, domain: str, version: int = 1) -> None:
        """Import an operator set that the model does not import yet."""
        if not self.opset_of(domain):
            self.root.model.opset_import.append(onnx.helper.make_opsetid(domain, version))

    @property
    def metadata(self) -> dict[str, str]:
        """The model's `metadata_props` as `metadata_of` reads them; change them with `set_metadata`."""
        return metadata_of(self.root.model)

    def set_metadata(self, key: str, value: str) -> None:
        """Set one of the model's `metadata_props`."""
        props = self.root.model.metadata_props
        for entry in props:
            if entry.key == key:
                entry.value = value
                return
        props.add(key=key, value=value)

    def metadata_bytes(self, more: Mapping[str, str]) -> int:
        """By how many bytes the model's file grows where these `metadata_props` are set."""

        def size(entries: Mapping[str, str]) -> int:
            props = (onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items())
            return int(onnx.ModelProto(metadata_props=props).ByteSize())

        return size({**self.metadata, **more}) - size(self.metadata)

    @property
    def functions(self) -> Sequence[onnx.FunctionProto]:
        """The model's local functions, which passes leave as they are."""
        found: Sequence[onnx.FunctionProto] = self.root.model.functions
        return found

    def is_function(self, node: Node) -> bool:
        """Whether a node calls one of the model's local functions."""
        return any(f.name == node.op and _canonical(f.domain) == _canonical(node.domain) for f in self.functions)

    def scopes(self) -> Iterator[Graph]:
        """This graph and every body below it, outermost first."""
        yield self
        for node in self.nodes:
            for body in node.bodies:
                yield from body.scopes()

    def walk(self) -> Iterator[Node]:
        """Every node, those in bodies included, each body right after the node that holds it."""
        waiting = [iter(self.nodes)]
        while waiting:
            for node in waiting[-1]:
                yield node
                if bodies := node.bodies:
                    waiting.extend(iter(body.nodes) for body in reversed(bodies))
                    break
            else:
                waiting.pop()

    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor of this graph and its bodies, by name."""
        found: dict[str, Tensor] = {}
        for scope in self.scopes():
            for tensor in (*scope.inputs, *scope.outputs, *scope.unused):
                found.setdefault(tensor.name, tensor)
            for node in scope.nodes:
                for tensor in (*node.inputs, *node.outputs):
                    if tensor.name:
                        found.setdefault(tensor.name, tensor)
        return found

    def constants(self) -> list[Constant]:
        """Every initializer in use, in file order, bodies included; the same value shared by many nodes stands once."""
        used: dict[Constant, None] = {}
        for scope in self.scopes():
            for tensor in scope.outputs:
                if isinstance(tensor, Constant):
                    used.setdefault(tensor)
            for node in scope.nodes:
                for tensor in node.inputs:
                    if isinstance(tensor, Constant):
                        used.setdefault(tensor)
        rank = {constant: i for i, constant in enumerate(c for scope in self.scopes() for c in scope.order)}
        return sorted(used, key=lambda c: rank.get(c, len(rank)))

    def is_output(self, tensor: Tensor) -> bool:
        """Whether the tensor is an output of this graph or of a body."""
        root = self.root
        return any(tensor is out for scope in (root, *root._bodies) for out in scope.outputs)

    def captured(self) -> set[Variable]:
        """The tensors that a body reads and an outer graph makes or takes."""
        found: set[Variable] = set()
        for scope in self.scopes():
            if scope.parent is not None:
                read = {t for t in (*scope.outputs, *(t for n in scope.nodes for t in n.inputs)) if t.name}
                made = {*scope.inputs, *(t for node in scope.nodes for t in node.outputs)}
                found |= {t for t in read - made if isinstance(t, Variable)}
        return found

    def owners(self) -> dict[Node, Graph]:
        """For every node, the graph or body whose list holds it."""
        return {node: scope for scope in self.scopes() for node in scope.nodes}

    # -- editing -----------------------------------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, … : a name no tensor or node of the model bears; it is taken from now on."""
        root = self.root
        if root._names is None:
            root._names = set(root.tensors()) | {node.name for node in root.walk()}
        name, count = base, root._counts.get(base, 0)
        while not name or name in root._names:
            count += 1
            name = f"{base}_{count}"
        root._counts[base] = count
        root._names.add(name)
        return name

    def add_constant(self, base: str, values: Array) -> Constant:
        """A new initializer of the main graph, visible in every body."""
        return Constant(self.unique_name(base), np.asarray(values))

    def add_node(
        self,
        op: str,
        inputs: Sequence[Tensor],
        *,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        outputs: Sequence[Tensor] | int = 1,
        domain: str = ONNX_DOMAIN,
    ) -> Node:
        """A new node at the end of this graph; call `sort` (the pass manager does) before it is saved.

        Args:
            outputs: the tensors it produces, or how many new ones to make.
        """
        name = self.unique_name(name or op)
        if isinstance(outputs, int):
            suffixes = [""] if outputs == 1 else [f"_{i}" for i in range(outputs)]
            outputs = [Variable(self.unique_name(f"{name}_out{suffix}")) for suffix in suffixes]
        node = Node(op, name, attrs, inputs, outputs, domain)
        self.nodes.append(node)
        return node

    def replace_uses(self, old: Tensor, new: Tensor, *, only: Iterable[Node] | None = None) -> None:
        """Let every consumer of `old` (or those in `only`) read `new`; graph outputs stay as they are."""
        wanted = None if only is None else set(only)
        for node in dict.fromkeys(old.consumers):
            if wanted is not None and node not in wanted:
                continue
            for port, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[port] = new

    def remove_nodes(self, nodes: Iterable[Node]) -> None:
        """Take nodes out of this graph or its bodies and unlink their tensors."""
        gone = set(nodes)
        for scope in list(self.scopes()):
            scope.nodes = [node for node in scope.nodes if node not in gone]
        for node in gone:
            for body in node.bodies:
                for inner in body.walk():
                    inner.inputs.clear()
                    inner.outputs.clear()
            node.inputs.clear()
            node.outputs.clear()

    def own_constant(self, node: Node, port: int) -> Constant | None:
        """The initializer at a port, made private to the node: a shared one is replaced by a copy of its own.

        Returns None where the input is computed or omitted. The copy shares the value until it is assigned.
        """
        constant = node.constant(port)
        if constant is None or (len(constant.outputs) == 1 and not self.is_output(constant)):
            return constant
        private = Constant(self.unique_name(f"{constant.name}_{node.name}"), constant.payload, constant.scope)
        private.sparse = constant.sparse
        node.inputs[port] = private
        return private

    def sort(self) -> None:
        """Order the nodes of this graph and its bodies so that each runs after its producers; stable.

        Raises:
            ModelError: the graph has a cycle.
        """
        for scope in self.scopes():
            scope.nodes = _sorted(scope)

    def clone(self) -> Graph:
        """A structural copy that shares weight arrays and files but no nodes, tensors or protos that change.

        `onnxcomp.graph.clone.clone` hands back the map from old to new as well.
        """
        from onnxcomp.graph.clone import clone  # it builds the classes of this module

        return clone(self).graph

    def become(self, other: Graph) -> None:
        """Take over the contents of another model, which must not be used any more."""
        for body in other._bodies:
            body.parent = self if body.parent is other else body.parent
        for item in fields(self):
            setattr(self, item.name, getattr(other, item.name))

    def operators(self) -> dict[str, int]:
        """How many nodes of each operator, bodies included, by name."""
        counts: dict[str, int] = {}
        for node in self.walk():
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items()))


def stored_bytes(size: int, dtype: np.dtype[Any]) -> int:
    """Bytes that `size` elements take in a model file; 4- and 2-bit types are packed (0 for strings)."""
    if dtype == np.dtype(object):
        return 0
    name = dtype.name
    bits = 4 if name.endswith(("int4", "e2m1fn")) else 2 if name.endswith("int2") else dtype.itemsize * 8
    return -(-size * bits // 8)


def elem_type(dtype: np.dtype[Any] | None) -> int:
    """TensorProto.DataType of a numpy dtype; UNDEFINED for None."""
    return 0 if dtype is None else int(np_dtype_to_tensor_dtype(dtype))


def tensor_proto(constant: Constant) -> onnx.TensorProto:
    """The initializer as a TensorProto with its data inside."""
    stored = constant.stored
    if stored is not None and isinstance(stored.proto, onnx.TensorProto) and not stored.proto.external_data:
        proto = onnx.TensorProto()
        proto.CopyFrom(stored.proto)
    else:
        proto = numpy_helper.from_array(np.asarray(constant.values))
        if constant.envelope is not None:
            proto.MergeFrom(constant.envelope)
    proto.name = constant.name
    return proto


def _frozen(values: Array) -> Array:
    view = np.asarray(values).view()
    view.flags.writeable = False
    return view


def is_onnx(domain: str | None) -> bool:
    """Whether an operator set is ONNX's own, under any of its names."""
    return domain in (None, ONNX_DOMAIN, "ai.onnx")


def _canonical(domain: str | None) -> str:
    return ONNX_DOMAIN if is_onnx(domain) else str(domain)


def reads(node: Node) -> list[Tensor]:
    """The tensors that a node needs before it runs, as often as it reads them: its inputs and what bodies capture."""
    found: list[Tensor] = [t for t in node.inputs if t.name]
    for body in node.bodies:
        nodes = list(body.walk())
        inside = {t for scope in body.scopes() for t in scope.inputs} | {t for inner in nodes for t in inner.outputs}
        bodies = [body, *(deeper for inner in nodes for deeper in inner.bodies)]
        read = [t for inner in nodes for t in inner.inputs if t.name]
        found.extend(t for t in (*read, *(t for b in bodies for t in b.outputs)) if t not in inside)
    return found


def _sorted(scope: Graph) -> list[Node]:
    """Kahn's algorithm, iterative; among nodes that are ready the one that stood first goes first (a heap)."""
    index = {node: i for i, node in enumerate(scope.nodes)}
    waiting = [0] * len(scope.nodes)
    followers: list[list[int]] = [[] for _ in scope.nodes]
    for i, node in enumerate(scope.nodes):
        producers = {index[p] for t in reads(node) for p in t.inputs if p in index}
        waiting[i] = len(producers)
        for p in producers:
            followers[p].append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    result: list[Node] = []
    while ready:
        i = heapq.heappop(ready)
        result.append(scope.nodes[i])
        for f in followers[i]:
            waiting[f] -= 1
            if waiting[f] == 0:
                heapq.heappush(ready, f)
    if len(result) != len(scope.nodes):
        stuck = next(node for i, node in enumerate(scope.nodes) if waiting[i] > 0)
        raise ModelError(
            "the graph has a cycle", where=f"node {stuck}", do="export the model again: ONNX graphs must be acyclic"
        )
    return result
