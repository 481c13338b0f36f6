"""The file holds what is run and nothing else: short names, no defaults, no notes, few bits in their own type."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.codec import encode_light
from onnxcomp.graph.coded import CodedWeight, coded_weights, unpacked
from onnxcomp.graph.io import total_bytes
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable, is_onnx
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Stage, option
from onnxcomp.manager.guarantee import Probe
from onnxcomp.manager.raising import raise_opset
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find

OPSETS = {4: 21, 2: 25}  # that have integers of so many bits
TYPES = {4: (ml_dtypes.int4, ml_dtypes.uint4), 2: (ml_dtypes.int2, ml_dtypes.uint2)}  # signed, unsigned
BY_RANK = {"pads": 0, "strides": 1, "dilations": 1}  # attributes of windows that default to this in each dimension
FIRST, REST = string.ascii_letters + "_", string.ascii_letters + "_" + string.digits


@dataclass(frozen=True)
class Compact(Pass):
    """Nothing is written that a runtime does not need: in a small model names and notes outweigh the weights.

    Tensors get the shortest names, the most used first, and nodes none; inputs and outputs of the model keep theirs.
    Doc strings, notes of exporters on nodes and tensors, shapes that can be inferred, the exporter's name, operator
    sets that nothing uses, and attributes that say what holds without them are left out; the model's own metadata
    stays. Weights that are packed by hand, four or two bits each, get the standard's own type, which saves the nodes
    that unpack them; the opset is raised for that. Run it last: nothing can be found by name afterwards.
    """

    name: ClassVar[str] = "compact"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE
    stage: ClassVar[Stage] = Stage.WRITTEN

    native: bool = option(
        True, "4- and 2-bit weights in the standard's own types, which need opset 21 and 25, where that is smaller"
    )
    provenance: bool = option(
        True, "record in the file where it comes from; false: only which version made it, the report beside it has all"
    )

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return target.decodes_at_load

    @property
    def traced(self) -> bool:  # noqa: D102 (as in Pass)
        return self.provenance

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite in place.

        Raises:
            UsageError: a glob matches nothing.
        """
        outcome = Outcome()
        before = _bytes(graph)
        if self.native and find(context.target).decodes_at_load:
            _store_natively(graph, context, outcome)
        wanted = self.selects(graph)
        for node in graph.walk():
            if wanted(node) and (gone := _drop_defaults(graph, node)):
                outcome.change(node, f"left out, for they say what holds anyway: {', '.join(gone)}")
        notes = _drop_notes(graph)
        renamed = _rename(graph)
        if notes or renamed:
            outcome.change("the model", f"{renamed} tensors renamed, {notes} names, notes and inferable types left out")
        saved = before - _bytes(graph)
        outcome.metrics["saved_bytes"] = float(saved)
        outcome.summary = f"{saved:,} bytes of names, notes, defaults and unpacking left out"
        return outcome


# -- weights of few bits -----------------------------------------------------------------------------------------------


def _store_natively(graph: Graph, context: PassContext, outcome: Outcome) -> None:
    """Give weights that are packed by hand the standard's type, where the model runs so and is smaller then."""
    packed = [weight for weight in coded_weights(graph) if _shape_node(weight) is not None and weight.bits in OPSETS]
    if not packed:
        return
    opset = max(OPSETS[weight.bits] for weight in packed)
    raised = graph.clone()
    try:
        if opset > onnx.defs.onnx_opset_version():
            raise ModelError(f"the installed onnx knows no opset {opset}", where="opset", do="upgrade onnx")
        notes = raise_opset(raised, opset, context)
        changed = [_unpack(raised, weight) for weight in coded_weights(raised) if weight.bits in OPSETS]
        raised.sort()
        Probe(context).outputs(raised)
    except (ModelError, DataError) as error:
        for weight in packed:
            outcome.skip(weight.codes, f"it stays packed by hand: {error.what}")
        return
    if _bytes(raised) >= _bytes(graph):
        for weight in packed:
            outcome.skip(weight.codes, f"it stays packed by hand: the model is no smaller at opset {opset}")
        return
    graph.become(raised)
    outcome.notes += notes
    for name, bits in filter(None, changed):
        outcome.change(name, f"{bits}-bit codes in the standard's own type")


def _shape_node(weight: CodedWeight) -> Node | None:
    """The Reshape that gives codes unpacked from bytes their shape; None where they are not packed by hand."""
    if not any(node.op == "BitShift" for node in weight.nodes):
        return None
    cast = max(at for at, node in enumerate(weight.nodes) if node.op == "Cast")
    node = weight.nodes[cast + 1]
    shape = node.constant(1) if node.op == "Reshape" else None
    return node if shape is not None and min(shape.values, default=0) > 0 else None


def _unpack(graph: Graph, weight: CodedWeight) -> tuple[str, int] | None:
    """Store one weight's codes in the standard's type; its name and bits, None where it is not packed by hand."""
    shaped = _shape_node(weight)
    if shaped is None or len(shaped.outputs[0].consumers) != 1:
        return None
    shape = tuple(int(d) for d in np.asarray(shaped.inputs[1].values))
    codes = unpacked(np.asarray(weight.codes.values).reshape(1, -1), weight.bits).reshape(-1)
    codes = codes[: int(np.prod(shape))].reshape(shape)
    cast = shaped.outputs[0].consumers[0]
    behind = cast.outputs[0].consumers
    middle = 2 ** (weight.bits - 1)
    zero = behind[0].constant(1) if len(behind) == 1 and behind[0].op == "Sub" else None
    signed = zero is not None and zero.size == 1 and float(np.asarray(zero.values).reshape(())) == middle
    native = np.dtype(TYPES[weight.bits][0 if signed else 1])
    values = (codes.astype(np.int16) - middle if signed else codes).astype(native)
    cast.inputs[0] = graph.root.add_constant(weight.codes.name, values)
    if signed:
        _skip(graph, behind[0])
        after = cast.outputs[0].consumers
        if len(after) == 1 and after[0].op == "Cast":  # through float, to the integers that DequantizeLinear takes
            cast.attrs["to"] = after[0].attrs["to"]
            cast.outputs[0].dtype = after[0].outputs[0].dtype
            _skip(graph, after[0])
    _remove_unread(graph, shaped)
    return weight.codes.name, weight.bits


def _skip(graph: Graph, node: Node) -> None:
    """Let what reads a node's output read its first input, which takes the output's place."""
    source, output = node.inputs[0], node.outputs[0]
    graph.root.remove_nodes([node])
    graph.root.replace_uses(output, source)


def _remove_unread(graph: Graph, node: Node) -> None:
    """Remove a node that nothing reads, and those that only it read."""
    while node is not None and not node.outputs[0].consumers:
        before = node.inputs[0].producer
        graph.root.remove_nodes([node])
        node = before


# -- what holds anyway -------------------------------------------------------------------------------------------------


def _drop_defaults(graph: Graph, node: Node) -> list[str]:
    """Remove attributes that say what the standard says where they are missing; their names."""
    if not is_onnx(node.domain) or graph.is_function(node):
        return []
    try:
        schema = onnx.defs.get_schema(node.op, graph.opset, "")
    except onnx.defs.SchemaError:
        return []
    windows = "kernel_shape" in schema.attributes
    gone = [
        name
        for name, value in node.attrs.items()
        if name in schema.attributes
        and (
            _is_default(value, schema.attributes[name].default_value)
            or (windows and name in BY_RANK and all(each == BY_RANK[name] for each in value))
            or (name == "kernel_shape" and _follows(node, schema, value))
        )
    ]
    for name in gone:
        del node.attrs[name]
    return gone


def _is_default(value: Any, default: onnx.AttributeProto) -> bool:
    if default.type == onnx.AttributeProto.UNDEFINED or isinstance(value, Graph | np.ndarray | onnx.AttributeProto):
        return False
    wanted = onnx.helper.get_attribute_value(default)
    if isinstance(wanted, bytes):
        value = value.encode() if isinstance(value, str) else value
    if isinstance(wanted, float):
        return bool(np.float32(value) == np.float32(wanted))
    return bool(value == wanted) if not isinstance(value, list | tuple) else list(value) == list(wanted)


def _follows(node: Node, schema: onnx.defs.OpSchema, size: Any) -> bool:
    """Whether the size of a window is that of the weight, which the standard calls W."""
    port = next((at for at, formal in enumerate(schema.inputs) if formal.name.upper() == "W"), None)
    weight = None if port is None else node.input(port)
    return weight is not None and weight.shape is not None and list(weight.shape[2:]) == list(size)


# -- names and notes ---------------------------------------------------------------------------------------------------


def _drop_notes(graph: Graph) -> int:
    """Clear doc strings, metadata of parts, types that can be inferred, names of nodes and unused operator sets."""
    gone = _clear(graph.model, "producer_name", "producer_version", "doc_string")
    for scope in graph.scopes():
        gone += _clear(scope.envelope, "doc_string", "metadata_props", "quantization_annotation")
        scope.envelope.name = "g"
        for tensor in (*scope.inputs, *scope.outputs):
            gone += _clear_envelope(tensor, "doc_string", "metadata_props")
        for node in scope.nodes:
            gone += _clear_envelope(node, "doc_string", "metadata_props") + (node.unnamed != node.name)
            node.unnamed = node.name
            if is_onnx(node.domain):
                gone += sum(_forget_type(tensor) for tensor in node.outputs if tensor not in scope.outputs)
    for constant in (*graph.constants(), *graph.unused):
        gone += _clear_envelope(constant, "doc_string", "metadata_props")
        stored = constant.stored.proto if constant.stored is not None else None
        if isinstance(stored, onnx.TensorProto) and not stored.external_data and stored.ByteSize() > _most(constant):
            constant.values = np.array(constant.values)
            gone += 1
    if not graph.functions:
        used = {"", "ai.onnx", *(node.domain for node in graph.walk())}
        kept = [entry for entry in graph.model.opset_import if entry.domain in used]
        gone += len(graph.model.opset_import) - len(kept)
        del graph.model.opset_import[:]
        graph.model.opset_import.extend(kept)
    return gone


def _most(constant: Constant) -> int:
    """Bytes that an initializer takes which holds its name, its dimensions and packed data."""
    return constant.nbytes + len(constant.name.encode()) + 10 * len(constant.shape) + 16


def _clear(message: Any, *fields: str) -> int:
    found = [field for field in fields if getattr(message, field)]
    for field in found:
        message.ClearField(field)
    return len(found)


def _clear_envelope(owner: Node | Tensor, *fields: str) -> int:
    """As `_clear`, on what a part of the graph keeps beside itself, which copies of the graph may share."""
    if owner.envelope is None or not any(getattr(owner.envelope, field, None) for field in fields):
        return 0
    envelope = type(owner.envelope)()
    envelope.CopyFrom(owner.envelope)
    owner.envelope = envelope
    return _clear(envelope, *fields)


def _forget_type(tensor: Variable) -> bool:
    known = tensor.shape is not None or tensor.dtype is not None
    tensor.shape = tensor.dtype = tensor.envelope = None
    return known


def _rename(graph: Graph) -> int:
    """Give every tensor inside the model the shortest name that is free; how many got another one."""
    uses: Counter[Tensor] = Counter()
    for scope in graph.scopes():
        uses.update(t for t in (*scope.inputs, *scope.outputs, *scope.unused) if t.name)
        for node in scope.nodes:
            uses.update(t for t in (*node.inputs, *node.outputs) if t.name)
    uses.update(t for t in uses if isinstance(t, Constant))  # its own name stands in the file, too
    kept = dict.fromkeys((*graph.inputs, *graph.outputs, *graph.kept_inputs))
    taken = {tensor.name for tensor in kept}
    names = (name for name in _names() if name not in taken)
    renamed = 0
    for tensor, _ in uses.most_common():  # equal counts in the order of the graph
        if tensor not in kept:
            name = next(names)
            renamed += name != tensor.name
            tensor.name = name
    graph._names = None
    return renamed


def _names() -> Iterator[str]:
    """All identifiers, the shortest first."""
    for length in count(0):
        for rest in product(REST, repeat=length):
            yield from (first + "".join(rest) for first in FIRST)


def _bytes(graph: Graph) -> int:
    """About what the file takes: everything but weights as it is written, and the weights."""
    return int(encode_light(graph, stays=lambda constant: False).ByteSize()) + total_bytes(graph)
