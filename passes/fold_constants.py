"""What can be computed before the model runs? Constant nodes, shape arithmetic and constant branches become values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.codec import encode_node, shape_of
from onnxcomp.graph.inline import inline_branch
from onnxcomp.graph.ir import (
    Array,
    Constant,
    Graph,
    Node,
    Stored,
    Tensor,
    Variable,
    elem_type,
    stored_bytes,
    tensor_proto,
)
from onnxcomp.graph.partial import certain_values
from onnxcomp.graph.shapes import infer
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, option

INSIDE_ELEMENTS = 1024  # larger initializers are fed, so that they are neither copied nor serialized
FEW_ELEMENTS = 64  # below, a widening Cast is arithmetic; above, it is how a weight is stored small


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Everything that does not depend on the inputs is computed once and stored as an initializer.

    Constant nodes become initializers. Nodes whose inputs are all known are run by ONNX Runtime, unoptimized, in one
    session, so results are bit-equal to what the model would compute. Shape, Size and the arithmetic on them are
    replaced where sizes follow from the inputs' fixed dimensions. An If whose condition is known becomes the nodes of
    its branch. Weights that are stored small on purpose (behind DequantizeLinear or a widening Cast) stay as they are.
    """

    name: ClassVar[str] = "fold-constants"
    guarantee: ClassVar[Guarantee] = Guarantee.EXACT

    max_bytes: int = option(65536, "bytes by which one folded group of nodes may make the file larger", minimum=0)

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Fold until nothing changes."""
        outcome = Outcome()
        folder = _Folder(self, graph, context, outcome)
        while folder.constant_nodes() + folder.branches() + folder.shape_arithmetic() + folder.computed():
            pass
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} nodes became initializers, or parts of the graph around them"
        still = set(graph.walk())
        for node, why in folder.kept.items():
            if node in still:
                outcome.skip(node, why)
        return outcome


class _Folder:
    """One run of the pass over one graph."""

    def __init__(self, item: FoldConstants, graph: Graph, context: PassContext, outcome: Outcome) -> None:
        self.item = item
        self.graph = graph
        self.context = context
        self.outcome = outcome
        self.wanted = item.selects(graph)
        self.kept: dict[Node, str] = {}
        self.replaceable = set(graph.kept_inputs)  # initializers that a caller may feed
        graph.sort()

    # -- Constant nodes ----------------------------------------------------------------------------------------

    def constant_nodes(self) -> int:
        """Constant nodes become initializers; one that makes an output of its graph stays."""
        gone = []
        outputs = self._outputs()
        for owner, node in self._nodes():
            if node.op != "Constant" or not _standard(node) or not self.wanted(node):
                continue
            value = None if node.outputs[0] in outputs else _value_of(node)
            if value is not None:
                self._replace(owner, node.outputs[0], value, node)
                self.outcome.change(node, "became an initializer")
                gone.append(node)
        self.graph.remove_nodes(gone)
        return len(gone) + self._aliases()

    def _aliases(self) -> int:
        """Readers of an Identity of an initializer read the initializer."""
        outputs = self._outputs()
        gone = []
        for _, node in self._nodes():
            if node.op != "Identity" or not _standard(node) or not self.wanted(node):
                continue
            source = node.constant(0)
            if source is not None and node.outputs[0] not in outputs and source not in self.replaceable:
                self.graph.replace_uses(node.outputs[0], source)
                self.outcome.change(node, f"another name of {source.name}")
                gone.append(node)
        self.graph.remove_nodes(gone)
        return len(gone)

    # -- If ----------------------------------------------------------------------------------------------------

    def branches(self) -> int:
        """An If with a constant condition becomes the nodes of its branch."""
        count = 0
        while (found := next(self._decided(), None)) is not None:
            owner, node, condition = found
            branch = node.attrs["then_branch" if condition else "else_branch"]
            self.outcome.change(node, f"its condition is always {condition}: replaced by the branch")
            inline_branch(self.graph, owner, node, branch)
            count += 1
        return count

    def _decided(self) -> Iterator[tuple[Graph, Node, bool]]:
        for owner, node in self._nodes():
            if node.op == "If" and _standard(node) and self.wanted(node):
                condition = node.constant(0)
                if condition is not None and condition.size == 1 and condition not in self.replaceable:
                    yield owner, node, bool(condition.values.reshape(-1)[0])

    # -- shapes ------------------------------------------------------------------------------------------------

    def shape_arithmetic(self) -> int:
        """What follows from fixed dimensions alone."""
        operators = self.graph.operators()
        if "Shape" not in operators and "Size" not in operators:
            return 0
        values = certain_values(self.graph, infer(self.graph, declared=False))
        outputs = self._outputs()
        gone = []
        for owner, node in self._nodes():
            tensor = node.outputs[0] if node.outputs else None
            if tensor not in values or tensor in outputs or not self.wanted(node):
                continue
            if not any(isinstance(t, Variable) and t.name for t in node.inputs):
                continue  # ONNX Runtime computes it
            self._replace(owner, tensor, np.asarray(values[tensor]), node)
            self.outcome.change(node, f"always {values[tensor].tolist()}")
            gone.append(node)
        self.graph.remove_nodes(gone)
        return len(gone)

    # -- everything else ---------------------------------------------------------------------------------------

    def computed(self) -> int:
        """Run the nodes that depend on initializers only, and keep what others read of them."""
        candidates = self._candidates()
        if not candidates:
            return 0
        owners = {node: owner for owner, node in self._nodes() if node in candidates}
        plan = _Plan(candidates, self._outputs(), self.graph)
        chosen = plan.affordable(self.item.max_bytes, self.kept)
        values: dict[Tensor, Array] = {}
        done = self._run(plan, chosen, values)
        inside = set(done)
        for node in done:
            left = {t: values[t] for t in node.outputs if t in values and plan.leaves(t, inside)}
            for tensor, value in left.items():
                self._replace(owners[node], tensor, value, node, keep_output=tensor in plan.outputs)
            self.outcome.change(node, f"computed once ({_shown(left.values())})" if left else "computed once")
        self.graph.remove_nodes(done)
        return len(done)

    def _candidates(self) -> list[Node]:
        """Nodes all of whose inputs are known, or will be when earlier candidates have run; in graph order."""
        fixed: set[Tensor] = set()
        found = []
        outputs = self._outputs()
        for _, node in self._nodes():
            inputs = [t for t in node.inputs if t.name]
            if not all((isinstance(t, Constant) and t not in self.replaceable) or t in fixed for t in inputs):
                continue
            if not self.wanted(node) or node in self.kept:
                continue
            if node.op in ("Identity", "Constant") and any(t in outputs for t in node.outputs):
                continue
            why = self._barred(node)
            if why:
                self.kept[node] = why
                continue
            found.append(node)
            fixed.update(node.outputs)
        return found

    def _barred(self, node: Node) -> str:
        """Why a node with known inputs is left in the graph; empty where it may be computed."""
        facts = self.context.operators.facts(node)
        if not _standard(node):
            return f"of the domain {node.domain}: only standard operators are computed ahead"
        if facts.random:
            return "draws random numbers, or drops some"
        if node.bodies:
            return "has a body"
        if node.op == "DequantizeLinear":
            return "a weight stored as integers on purpose"
        if node.op.startswith(("Sequence", "Optional", "SplitToSequence")):
            return "makes a sequence or an optional, which no initializer can hold"
        if node.op == "Constant":
            return "its value has a form that no initializer can hold"
        if _widens(node):
            return "a weight stored in a smaller type on purpose"
        return ""

    def _run(self, plan: _Plan, nodes: list[Node], values: dict[Tensor, Array]) -> list[Node]:
        """Compute nodes, add what others read of them to `values`, and return those that could be computed.

        When ONNX Runtime refuses, each half is tried alone, down to the nodes that it has no kernel for.
        """
        if not nodes:
            return []
        try:
            plan.compute(nodes, values, self.context.threads)
        except (ModelError, DataError) as error:
            if len(nodes) == 1:
                self.kept[nodes[0]] = f"could not be computed ahead: {error.what}"
                return []
            half = len(nodes) // 2
            done = self._run(plan, nodes[:half], values)
            failed = {t for node in set(nodes[:half]) - set(done) for t in node.outputs}
            return done + self._run(plan, _independent(nodes[half:], failed), values)
        return nodes

    # -- shared ------------------------------------------------------------------------------------------------

    def _nodes(self) -> Iterator[tuple[Graph, Node]]:
        """Every node with the graph or body that holds it, outer nodes before those in their bodies."""
        yield from _with_owner(self.graph)

    def _outputs(self) -> set[Tensor]:
        return {t for scope in self.graph.scopes() for t in scope.outputs}

    def _replace(
        self, owner: Graph, tensor: Variable, value: Array | Stored, node: Node, *, keep_output: bool = False
    ) -> None:
        """Let the readers of a tensor read an initializer of the main graph; its maker is removed by the caller."""
        reuse = owner is self.graph and not keep_output
        name = tensor.name if reuse else self.graph.unique_name(f"{tensor.name}_folded" if keep_output else tensor.name)
        constant = Constant(name, value)
        self.graph.replace_uses(tensor, constant)
        if keep_output:
            node.outputs[list(node.outputs).index(tensor)] = Variable("")
            at = owner.nodes.index(node)
            owner.nodes.insert(
                at, Node("Identity", self.graph.unique_name(f"{node.name}_value"), {}, [constant], [tensor])
            )


class _Plan:
    """Candidate nodes, what their results weigh, and a model that computes them."""

    def __init__(self, nodes: list[Node], outputs: set[Tensor], graph: Graph) -> None:
        self.nodes = nodes
        self.outputs = outputs
        self.graph = graph
        self.names: dict[Tensor, str] = {}
        for node in nodes:
            for tensor in (*node.inputs, *node.outputs):
                if tensor.name:
                    self.names.setdefault(tensor, f"t{len(self.names)}")
        self.bytes: dict[Tensor, int] = {}
        self.shapes: dict[Tensor, tuple[int, ...]] = {}
        self._infer()

    def affordable(self, limit: int, kept: dict[Node, str]) -> list[Node]:
        """The candidates whose results make the file at most `limit` bytes larger, group by group.

        A group hangs together through computed tensors. The heaviest result of a group that grows too much is left
        in the graph, and the rest is weighed again. Nodes of unknown size wait until their inputs are initializers.
        """
        nodes = self._sized(kept)
        chosen: list[Node] = []
        pending = self._groups(nodes)
        while pending:
            group = pending.pop()
            growth, heaviest = self._growth(group)
            if growth <= limit:
                chosen.extend(group)
                continue
            kept[heaviest] = f"computing it ahead would make the file {growth} bytes larger"
            pending.extend(self._groups(_without(group, heaviest)))
        order = {node: i for i, node in enumerate(self.nodes)}
        return sorted(chosen, key=order.__getitem__)

    def compute(self, nodes: list[Node], values: dict[Tensor, Array], threads: int) -> None:
        """Run the nodes on initializers and on earlier `values`; add what anything outside these nodes reads.

        Raises:
            ModelError, DataError: ONNX Runtime refuses.
        """
        from onnxcomp.runtime.session import open_session

        rest = []
        for node in nodes:
            view = self._view(node, values)
            if view is None:
                rest.append(node)
            else:
                values[node.outputs[0]] = view
        inside = set(rest)
        wanted = [t for node in rest for t in node.outputs if t.name and self.leaves(t, inside)]
        if not wanted:
            return
        model, feeds = self._model(rest, wanted, values)
        found = open_session(model.SerializeToString(), threads=threads, optimize=False).run(feeds)
        values.update({t: found[self.names[t]] for t in wanted})

    def _view(self, node: Node, values: dict[Tensor, Array]) -> Array | None:
        """A large tensor under another shape or order of axes, without copying it; None where the node must run."""
        source = node.inputs[0] if node.inputs and node.op in _VIEWS else None
        shape = self.shapes.get(node.outputs[0])
        if source is None or shape is None:
            return None
        array = source.values if isinstance(source, Constant) else values.get(source)
        if array is None or array.size <= INSIDE_ELEMENTS:
            return None
        return array.transpose(node.attrs.get("perm")) if node.op == "Transpose" else array.reshape(shape)

    def _sized(self, kept: dict[Node, str]) -> list[Node]:
        waiting: set[Tensor] = set()
        nodes = []
        for node in self.nodes:
            unknown = any(t.name and t not in self.bytes for t in node.outputs)
            ready = all(isinstance(t, Constant) for t in node.inputs if t.name)
            if not waiting.isdisjoint(node.inputs) or (unknown and not ready):
                waiting.update(node.outputs)
            elif unknown and node.op in _EXPANDING:
                waiting.update(node.outputs)
                kept[node] = "the size of its result is not known ahead"
            else:
                nodes.append(node)
        return nodes

    def _growth(self, group: list[Node]) -> tuple[int, Node]:
        """Bytes by which the file grows when a group is computed ahead, and the node with the heaviest result."""
        inside = set(group)
        weight = {
            node: sum(self.bytes.get(t, 0) for t in node.outputs if t.name and self.leaves(t, inside)) for node in group
        }
        inputs = {t for node in group for t in node.inputs if isinstance(t, Constant)}
        freed = sum(c.nbytes for c in inputs if not self.leaves(c, inside))
        return sum(weight.values()) - freed, max(group, key=weight.__getitem__)

    def leaves(self, tensor: Tensor, inside: set[Node]) -> bool:
        """Whether anything outside a set of nodes reads the tensor."""
        return tensor in self.outputs or not inside.issuperset(tensor.outputs)

    def _groups(self, nodes: list[Node]) -> list[list[Node]]:
        """Nodes that hang together through computed tensors, or through large initializers that they share."""
        makers: dict[Tensor, int] = {}
        parent = list(range(len(nodes)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for i, node in enumerate(nodes):
            for tensor in node.inputs:
                if tensor.name and not (isinstance(tensor, Constant) and tensor.size <= FEW_ELEMENTS):
                    parent[root(i)] = root(makers.setdefault(tensor, i))
            for tensor in node.outputs:
                if tensor.name:
                    makers[tensor] = i
        groups: dict[int, list[Node]] = {}
        for i, node in enumerate(nodes):
            groups.setdefault(root(i), []).append(node)
        return list(groups.values())

    def _infer(self) -> None:
        """Shape and bytes of every result whose size shape inference knows."""
        model, _ = self._model(self.nodes, [], {})
        try:
            inferred = shape_inference.infer_shapes(model, data_prop=True)
        except (shape_inference.InferenceError, RuntimeError, ValueError):
            return
        types = {value.name: value for value in inferred.graph.value_info}
        for tensor, name in self.names.items():
            element = types[name].type.tensor_type.elem_type if name in types else 0
            dims = shape_of(types[name]) if element else None
            if dims is not None and all(isinstance(d, int) for d in dims):
                shape = tuple(int(d) for d in dims if isinstance(d, int))
                self.shapes[tensor] = shape
                self.bytes[tensor] = stored_bytes(prod(shape), tensor_dtype_to_np_dtype(element))

    def _model(
        self, nodes: list[Node], wanted: Iterable[Tensor], values: dict[Tensor, Array]
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """A model of the nodes: small initializers inside, large ones fed; every name is made up."""
        model = onnx.ModelProto()
        model.opset_import.extend(self.graph.root.model.opset_import)
        model.ir_version = max(
            self.graph.root.model.ir_version,
            int(helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)),
        )
        graph = model.graph
        graph.name = "constants"
        made: set[Tensor] = set()
        feeds: dict[str, Array] = {}
        for i, node in enumerate(nodes):
            proto = encode_node(node)
            proto.name = f"n{i}"
            proto.doc_string = ""
            proto.input[:] = [self.names[t] if t.name else "" for t in node.inputs]
            proto.output[:] = [self.names[t] if t.name else "" for t in node.outputs]
            graph.node.append(proto)
            for tensor in node.inputs:
                if tensor not in made and (isinstance(tensor, Constant) or tensor in values):
                    made.add(tensor)
                    self._provide(tensor, values, graph, feeds)
        graph.output.extend(onnx.ValueInfoProto(name=self.names[t]) for t in wanted)
        return model, feeds

    def _provide(
        self, tensor: Tensor, values: dict[Tensor, Array], graph: onnx.GraphProto, feeds: dict[str, Array]
    ) -> None:
        name = self.names[tensor]
        if isinstance(tensor, Constant) and (tensor.size <= INSIDE_ELEMENTS or tensor.dtype.name in _PACKED):
            sparse = tensor.stored is not None and isinstance(tensor.stored.proto, onnx.SparseTensorProto)
            proto = numpy_helper.from_array(tensor.values) if sparse else tensor_proto(tensor)
            proto.name = name
            graph.initializer.append(proto)
            return
        array = tensor.values if isinstance(tensor, Constant) else values[tensor]
        graph.input.append(helper.make_tensor_value_info(name, elem_type(array.dtype), array.shape))
        feeds[name] = array


_PACKED = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# results that may be far larger than the inputs, at sizes that values decide
_EXPANDING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot"})


def _with_owner(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    for node in list(graph.nodes):
        yield graph, node
        for body in node.bodies:
            yield from _with_owner(body)


def _standard(node: Node) -> bool:
    return node.domain in (None, "", "ai.onnx")


def _value_of(node: Node) -> Array | Stored | None:
    """The value of a Constant node; None for a form that no dense initializer can hold."""
    attrs: dict[str, Any] = node.attrs
    value, proto = node.origin.get("value", (None, None))
    if proto is not None and value is attrs.get("value") and not proto.t.external_data:
        tensor = proto.t
        return Stored(tensor, lambda: numpy_helper.to_array(tensor))
    if isinstance(attrs.get("value"), np.ndarray):
        array: Array = attrs["value"]
        return array
    for kind, dtype in (("float", np.float32), ("int", np.int64), ("string", object)):
        for key in (f"value_{kind}", f"value_{kind}s"):
            if key in attrs:
                return np.asarray(attrs[key], dtype)
    return None


def _widens(node: Node) -> bool:
    """Whether a Cast turns a stored tensor of more than a few elements into a wider type."""
    source = node.constant(0) if node.op in ("Cast", "CastLike") else None
    if source is None or source.size <= FEW_ELEMENTS:
        return False
    to = node.inputs[1].dtype if node.op == "CastLike" else tensor_dtype_to_np_dtype(int(node.attrs.get("to", 0)))
    return to is not None and stored_bytes(source.size, to) > source.nbytes


def _without(group: list[Node], node: Node) -> list[Node]:
    """A group without a node and what depends on it."""
    return _independent([other for other in group if other is not node], set(node.outputs))


def _independent(nodes: list[Node], lost: set[Tensor]) -> list[Node]:
    """Those nodes, in graph order, that need none of the lost tensors, directly or through others; `lost` grows."""
    rest = []
    for node in nodes:
        if lost.isdisjoint(node.inputs):
            rest.append(node)
        else:
            lost.update(node.outputs)
    return rest


def _shown(values: Iterable[Array]) -> str:
    return ", ".join(f"{value.dtype}{list(value.shape)}" for value in values)
