"""How does a graph come to a newer opset? By onnx's version converter, with nodes, names and weights kept."""

from __future__ import annotations

import onnx
from onnx import helper, version_converter

from onnxcomp.errors import ModelError
from onnxcomp.graph.codec import decode, encode_light, encode_node
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable

SCAN_CHANGED = 9  # the converter passes Scan of opset 8 on unchanged, which is wrong
_ADAPTED = ("float32", "float64", "int32", "int64", "bool")  # small constants of these types steer adapters


def raise_opset(graph: Graph, version: int) -> list[str]:
    """Bring the model to at least opset `version` of the default domain, in place.

    Conversion sees a copy without large weights. Nodes and tensors that it leaves alone stay the same objects; names
    of nodes and tensors, weights, doc strings, metadata, functions and other domains are kept. What it adds gets
    names of its own, and the constants that it adds become initializers.

    Returns:
        One sentence that says what was done; nothing where the model is new enough.

    Raises:
        ModelError: an operator cannot be converted. The graph is then as it was.
    """
    before = graph.opset
    if graph.parent is not None:
        return raise_opset(graph.root, version)
    if before >= version:
        return []
    where = f"opset {before} to {version}"
    if before < SCAN_CHANGED <= version and "Scan" in graph.operators():
        raise ModelError(
            f"Scan of opset {before} has another form than newer ones, and no converter for it exists",
            where=where,
            do=f"export the model with opset {version} or newer",
        )
    try:
        light = encode_light(graph, stays=_steers)
        valid = not _fault(light)
        functions = list(light.functions)
        del light.functions[:]
        converted = version_converter.convert_version(light, version)
    except (RuntimeError, ValueError, TypeError, version_converter.ConvertError) as error:
        raise ModelError(
            f"the model cannot be brought from opset {before} to {version}: {' '.join(str(error).split())[:300]}",
            where=where,
            do=f"export it with opset {version} or newer",
        ) from error
    converted.functions.extend(functions)
    if [o.name for o in converted.graph.output] != [t.name for t in graph.outputs]:
        raise ModelError(
            "the version converter changed the model's outputs", where=where, do=f"export it with opset {version}"
        )
    fault = _fault(converted)  # the checker has the last word, e.g. on local functions that the new opset breaks
    if valid and fault:
        raise ModelError(
            f"the model is not valid after conversion from opset {before} to {version}: {fault}",
            where=where,
            do=f"export it with opset {version} or newer",
        )
    _Merge(graph).scope(graph, decode(converted))
    for entry in graph.model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version
    least = int(helper.find_min_ir_version_for([helper.make_opsetid("", version)], ignore_unknown=True))
    graph.model.ir_version = max(graph.model.ir_version, least)
    return [f"opset raised from {before} to {version}"]


def _fault(model: onnx.ModelProto) -> str:
    """What the checker finds wrong; empty where it is content."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split())[:300]
    return ""


class _Merge:
    """Puts converted nodes into the graph that they came from, keeping the objects that are still right."""

    def __init__(self, graph: Graph) -> None:
        self.root = graph

    def scope(self, old: Graph, new: Graph, visible: dict[Tensor, Tensor] | None = None) -> None:
        known = {t.name: t for t in (*old.inputs, *old.outputs, *old.unused, *old.order)}
        for node in old.nodes:
            known.update((t.name, t) for t in (*node.inputs, *node.outputs) if t.name)
        for node in old.walk():  # captured in bodies only
            for tensor in node.inputs:
                known.setdefault(tensor.name, tensor)
        mapped = dict(visible or {})
        named = {node.name: node for node in old.nodes if not node.unnamed}
        makers = {t.name: node for node in old.nodes for t in node.outputs if t.name}
        nodes = []
        for node in new.nodes:
            if node.op == "Constant" and node.outputs[0].name not in makers and "value" in node.attrs:
                reader = next((n.name for n in node.outputs[0].consumers), node.op)
                mapped[node.outputs[0]] = self.root.add_constant(f"{reader}_opset", node.attrs["value"])
                continue
            for tensor in node.outputs:
                if tensor.name:
                    mapped[tensor] = known.get(tensor.name) or self._new(tensor)
            nodes.append(node)
        for tensor in (*new.inputs, *new.order, *new.outputs):
            if tensor not in mapped:
                mapped[tensor] = known.get(tensor.name) or self._new(tensor)
        claimed: set[Node | None] = {named[node.name] for node in nodes if not node.unnamed and node.name in named}
        kept = []
        for node in nodes:
            mine = self._counterpart(node, named, makers, claimed)
            claimed.add(mine)
            kept.append(self._new_node(node, mapped) if mine is None else self._updated(mine, node, mapped))
        gone = set(old.nodes) - set(kept)
        old.nodes = kept
        for node in gone:
            node.inputs.clear()
            node.outputs.clear()

    def _counterpart(
        self, node: Node, named: dict[str, Node], makers: dict[str, Node], claimed: set[Node | None]
    ) -> Node | None:
        """The old node that a converted one came from; adapters drop names, then the tensor it makes tells."""
        if not node.unnamed:
            return named.get(node.name)
        maker = makers.get(node.unnamed)
        if maker is None or maker in claimed or (maker.unnamed and maker.op != node.op):
            return None
        return maker

    def _updated(self, old: Node, node: Node, mapped: dict[Tensor, Tensor]) -> Node:
        old.op = node.op
        bodies = {key: value for key, value in old.attrs.items() if _is_body(value)}
        if _plain_attributes(old) != _plain_attributes(node):
            old.attrs = {key: value for key, value in node.attrs.items() if not _is_body(value)} | bodies
            old.origin = dict(node.origin)
        for key, value in bodies.items():
            theirs = node.attrs[key]
            pairs = zip(value, theirs, strict=True) if isinstance(value, list) else [(value, theirs)]
            for body, converted in pairs:
                self.scope(body, converted, mapped)
        old.inputs = [mapped[t] if t.name else Variable("") for t in node.inputs]
        old.outputs = [mapped[t] if t.name else Variable("") for t in node.outputs]
        return old

    def _new_node(self, node: Node, mapped: dict[Tensor, Tensor]) -> Node:
        inputs = [mapped[t] if t.name else Variable("") for t in node.inputs]
        outputs = [mapped[t] if t.name else Variable("") for t in node.outputs]
        name = self.root.unique_name(f"{node.name or node.op}_opset")
        return Node(node.op, name, node.attrs, inputs, outputs, node.domain)

    def _new(self, tensor: Tensor) -> Tensor:
        name = self.root.unique_name(tensor.name)
        if isinstance(tensor, Constant):
            return Constant(name, tensor.values)
        return Variable(name, tensor.dtype, tensor.shape)


def _steers(constant: Constant) -> bool:
    """Whether the converter should see the value; the rest it need not, or cannot, carry."""
    sparse = constant.stored is not None and isinstance(constant.stored.proto, onnx.SparseTensorProto)
    return constant.dtype.name in _ADAPTED and not sparse


def _is_body(value: object) -> bool:
    return isinstance(value, Graph) or (isinstance(value, list) and bool(value) and isinstance(value[0], Graph))


def _plain_attributes(node: Node) -> list[bytes]:
    bare = Node(node.op, node.name, {k: v for k, v in node.attrs.items() if not _is_body(v)}, domain=node.domain)
    bare.origin = node.origin
    return sorted(a.SerializeToString(deterministic=True) for a in encode_node(bare).attribute)
