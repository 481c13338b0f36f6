"""What would the next layers see if the ones before them were changed? Runs a graph piece by piece on a few batches."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxcomp.graph.codec import encode_node
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, elem_type, reads, tensor_proto
from onnxcomp.graph.types import Shapes
from onnxcomp.runtime.session import open_session


class Stages:
    """Computes tensors of one graph on fixed batches in the order in which they are asked for, each node once.

    Between two calls the graph's weights may be changed: nodes that have not run yet read the new ones. Values are
    kept while nodes that have not run need them, and not longer.

    Args:
        graph: sorted; only its main graph is cut, nodes with bodies run whole.
        batches: feeds by input name; all of them are held.
        threads: of ONNX Runtime.
        keep: tensors whose values are kept in any case.
        memory: bytes of values held in memory; what is more lies in temporary files. None: all of them.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Mapping[str, Array]],
        threads: int,
        keep: Iterable[Tensor] = (),
        memory: int | None = None,
    ) -> None:
        self.graph, self.threads, self.keep = graph, threads, set(keep)
        self._room = math.inf if memory is None else memory
        self.values: list[dict[Tensor, Array]] = [
            {tensor: feeds[tensor.name] for tensor in graph.inputs if tensor.name in feeds} for feeds in batches
        ]
        self._room -= sum(array.nbytes for values in self.values for array in values.values())
        self._done: set[Node] = set()
        self._order = {node: i for i, node in enumerate(graph.nodes)}

    def get(self, tensors: Sequence[Tensor]) -> list[list[Array]]:
        """The values of some tensors: for every batch one array each.

        Raises:
            ModelError: ONNX Runtime cannot run the nodes before them.
        """
        for nodes in _parted(self._missing(tensors)):
            self._run(nodes, tensors)
        found = [[values[tensor] for tensor in tensors] for values in self.values]
        self._let_go()
        return found

    def replace(self, tensor: Tensor, arrays: Sequence[Array]) -> None:
        """Let the nodes that have not run read other values of a tensor, one array a batch."""
        for values, array in zip(self.values, arrays, strict=True):
            if tensor in values:
                self._free(values[tensor])
                values[tensor] = self._hold(array)

    def ready(self, tensor: Tensor, waiting: Container[Node]) -> bool:
        """Whether a tensor can be had without running any of the nodes that are to wait."""
        return not any(node in waiting for node in self._missing([tensor]))

    def _missing(self, tensors: Sequence[Tensor]) -> list[Node]:
        """Nodes to run for these tensors, in order."""
        wanted: set[Node] = set()
        stack = [t.producer for t in tensors if t not in self.values[0]]
        while stack:
            node = stack.pop()
            if node is None or node in wanted or node in self._done:
                continue
            wanted.add(node)
            stack.extend(t.producer for t in reads(node) if t not in self.values[0])
        return sorted(wanted, key=self._order.__getitem__)

    def _run(self, nodes: list[Node], tensors: Sequence[Tensor]) -> None:
        self._done.update(nodes)
        asked = {*tensors, *self.keep}
        outputs = [t for node in nodes for t in node.outputs if t.name and (t in asked or self._needed(t))]
        inputs = list(dict.fromkeys(t for node in nodes for t in reads(node) if t in self.values[0]))
        model = piece(self.graph, nodes, {t: self.values[0][t] for t in inputs}, outputs)
        session = open_session(model, threads=self.threads, arena=False)
        names = [t.name for t in outputs]
        for values in self.values:
            found = session.run({t.name: values[t] for t in inputs}, names)
            values.update((t, self._hold(found[t.name])) for t in outputs)

    def _hold(self, array: Array) -> Array:
        """The array itself while memory lasts, else one that is mapped from a file without a name."""
        if isinstance(array, list):  # a sequence of tensors
            return [self._hold(part) for part in array]
        if array.nbytes > self._room and array.nbytes and not array.dtype.hasobject:
            mapped = _mapped(array)
            if mapped is not None:
                return mapped
        self._room -= array.nbytes
        return array

    def _free(self, array: Array) -> None:
        if isinstance(array, list):
            for part in array:
                self._free(part)
            return
        self._room += 0 if isinstance(array, np.memmap) else array.nbytes

    def _needed(self, tensor: Tensor) -> bool:
        """Whether a node that has not run reads the tensor; one inside a body counts as one that never runs."""
        return any(reader not in self._done for reader in tensor.outputs)

    def _let_go(self) -> None:
        for values in self.values:
            for tensor in [t for t in values if t not in self.keep and not self._needed(t)]:
                self._free(values.pop(tensor))


def _parted(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """Nodes in order, cut in front of those with bodies: ONNX Runtime runs a Scan only where it knows ranks of inputs.

    What is fed to a piece has its rank; what is computed inside, behind a Reshape to computed sizes say, may have none.
    """
    part: list[Node] = []
    for node in nodes:
        if node.bodies and part:
            yield part
            part = []
        part.append(node)
    if part:
        yield part


def _mapped(array: Array) -> Array | None:
    """A copy that lies in a temporary file; None where the disk is full."""
    with tempfile.TemporaryFile() as file:
        try:
            array.tofile(file)  # raises on a full disk, where writing to a mapping would kill the process
            file.flush()
        except OSError:
            return None
        return np.memmap(file, array.dtype, "r", shape=array.shape)


def peak_bytes(graph: Graph, shapes: Shapes) -> float:
    """The most that the activations of a sorted graph take together while it runs; infinite where sizes are unknown."""
    last: dict[Tensor, Node] = {tensor: node for node in graph.nodes for tensor in reads(node)}
    held = peak = sum(_bytes(tensor, shapes) for tensor in graph.inputs)
    for node in graph.nodes:
        held += sum(_bytes(tensor, shapes) for tensor in node.outputs if tensor.name)
        peak = max(peak, held)
        held -= sum(_bytes(t, shapes) for t in set(reads(node)) if isinstance(t, Variable) and last[t] is node)
    return peak


def trained_bytes(graph: Graph, shapes: Shapes) -> float:
    """What a training step of a graph holds: every activation until its gradient is known, and the gradient."""
    return 2 * sum(_bytes(tensor, shapes) for node in graph.walk() for tensor in node.outputs if tensor.name)


def _bytes(tensor: Variable, shapes: Shapes) -> float:
    known = shapes.types.get(tensor.name)
    if known is None or known.dtype is None or known.shape is None:
        return math.inf
    sizes = [d for d in known.shape if isinstance(d, int)]
    return math.prod(sizes) * known.dtype.itemsize if len(sizes) == len(known.shape) else math.inf


def _port(tensor: Tensor, array: Array) -> onnx.ValueInfoProto:
    """What a piece takes in the place of a tensor, or of a sequence of tensors.

    An input of the whole graph keeps the sizes that it declares: some operators are refused where those of a weight,
    which may be fed in its place, are unknown.
    """
    if isinstance(array, list):
        kind = elem_type(array[0].dtype) if array else onnx.TensorProto.FLOAT
        return helper.make_tensor_sequence_value_info(tensor.name, kind, None)
    declared = tensor.shape if tensor.producer is None and tensor.shape is not None else ()
    sizes = [
        size if isinstance(size, int) and size == have else None
        for size, have in zip(declared, array.shape, strict=False)
    ]
    shape = sizes if len(sizes) == array.ndim else [None] * array.ndim
    return helper.make_tensor_value_info(tensor.name, elem_type(array.dtype), shape)


def piece(graph: Graph, nodes: list[Node], fed: Mapping[Tensor, Array], outputs: list[Tensor]) -> bytes:
    """A model of some nodes, their weights inside."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.root.model)
    model.graph.name = "piece"
    model.graph.node.extend(encode_node(node) for node in nodes)
    model.graph.input.extend(_port(tensor, array) for tensor, array in fed.items())
    model.graph.output.extend(onnx.ValueInfoProto(name=t.name) for t in outputs)
    weights = dict.fromkeys(t for node in nodes for t in reads(node) if isinstance(t, Constant) and t.scope is None)
    model.graph.initializer.extend(tensor_proto(t) for t in weights)
    return model.SerializeToString()  # type: ignore[no-any-return]
