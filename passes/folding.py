"""What would it cost to compute some nodes ahead, and what do they give? The planning behind fold-constants."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, prod

import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.helper import tensor_dtype_to_np_dtype

from onnxcomp.graph.codec import encode_node, shape_of
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, elem_type, stored_bytes, tensor_proto

INSIDE_ELEMENTS = 1024  # larger initializers are fed, so that they are neither copied nor serialized
SWOLLEN_BYTES = 1 << 28  # a result so large, and twice what it is made from, is not held even for a moment
FEW_ELEMENTS = 64  # initializers up to this size do not tie nodes into one group
_PACKED = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# results that may be far larger than the inputs, at sizes that values decide
_EXPANDING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot"})


class Plan:
    """Candidate nodes, what their results weigh, and a model that computes them.

    Args:
        by_elements: weigh what is computed and what becomes free by elements: all of it will be stored small again.

    Attributes:
        equal: for a result that nodes before compute likewise, from equal inputs, that earlier result.
    """

    def __init__(self, nodes: list[Node], outputs: set[Tensor], graph: Graph, *, by_elements: bool = False) -> None:
        self.nodes = nodes
        self.outputs = outputs
        self.graph = graph
        self.by_elements = by_elements
        self.equal = _equal_results(nodes)
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

    def compute(
        self, nodes: list[Node], values: dict[Tensor, Array], threads: int, inside: int = INSIDE_ELEMENTS
    ) -> None:
        """Run the nodes on initializers and on earlier `values`; add what anything outside these nodes reads.

        Args:
            inside: initializers of at most so many elements stand in the model, larger ones are fed.

        Raises:
            ModelError, DataError: ONNX Runtime refuses.
        """
        from onnxcomp.runtime.taps import Sessions

        rest = []
        for node in nodes:
            view = self._view(node, values)
            if view is None:
                rest.append(node)
            else:
                values[node.outputs[0]] = view
        these = set(rest)
        wanted = [t for node in rest for t in node.outputs if t.name and self.leaves(t, these)]
        if not wanted:
            return
        model, feeds = self._model(rest, wanted, values, inside)
        # repacked weights round in another way than those that are fed
        found = Sessions(threads).small(model.SerializeToString()).run(feeds)
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
            ready = all(isinstance(t, Constant) for t in node.inputs if t.name)
            if ready and node.op == "Range":  # inference gives up on bounds of rank 1, which kernels take
                self.bytes.setdefault(node.outputs[0], _range_bytes(node))
            unknown = any(t.name and t not in self.bytes for t in node.outputs)
            if not waiting.isdisjoint(node.inputs) or (unknown and not ready):
                waiting.update(node.outputs)
            elif (large := self._swollen(node)) is not None:
                waiting.update(node.outputs)
                kept[node] = f"computing it ahead would take {large / 1e9:.1f} GB of memory"
            elif unknown and node.op in _EXPANDING:
                waiting.update(node.outputs)
                kept[node] = "the size of its result is not known ahead"
            else:
                nodes.append(node)
        return nodes

    def _swollen(self, node: Node) -> int | None:
        """Bytes of a node's results where they are far more than its inputs' and than a moment should take."""
        made = sum(self.bytes.get(t, 0) for t in node.outputs)
        used = sum(t.nbytes if isinstance(t, Constant) else self.bytes.get(t, 0) for t in node.inputs)
        return made if made > max(SWOLLEN_BYTES, 2 * used) else None

    def _growth(self, group: list[Node]) -> tuple[int, Node]:
        """Bytes by which the file grows when a group is computed ahead, and the node with the heaviest result."""
        inside = set(group)
        weight, counted = dict.fromkeys(group, 0), set[Tensor]()
        for node in group:
            for tensor in node.outputs:
                if tensor.name and self.leaves(tensor, inside) and self.first(tensor) not in counted:
                    counted.add(self.first(tensor))
                    weight[node] += self._weight(tensor)
        inputs = {t for node in group for t in node.inputs if isinstance(t, Constant)}
        freed = sum(self._weight(c) for c in inputs if not self.leaves(c, inside))
        return sum(weight.values()) - freed, max(group, key=weight.__getitem__)

    def first(self, tensor: Tensor) -> Tensor:
        """The first result that is equal to this one: where it is computed several times, it is stored once."""
        return self.equal.get(tensor, tensor)

    def _weight(self, tensor: Tensor) -> int:
        if self.by_elements:
            return tensor.size if isinstance(tensor, Constant) else prod(self.shapes.get(tensor, (0,)))
        return tensor.nbytes if isinstance(tensor, Constant) else self.bytes.get(tensor, 0)

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
                    parent[root(i)] = root(makers.setdefault(self.first(tensor), i))
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
        self,
        nodes: list[Node],
        wanted: Iterable[Tensor],
        values: dict[Tensor, Array],
        inside: int = INSIDE_ELEMENTS,
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
                    self._provide(tensor, values, graph, feeds, inside)
        graph.output.extend(onnx.ValueInfoProto(name=self.names[t]) for t in wanted)
        return model, feeds

    def _provide(
        self,
        tensor: Tensor,
        values: dict[Tensor, Array],
        graph: onnx.GraphProto,
        feeds: dict[str, Array],
        inside: int,
    ) -> None:
        name = self.names[tensor]
        if isinstance(tensor, Constant) and (tensor.size <= inside or tensor.dtype.name in _PACKED):
            sparse = tensor.stored is not None and isinstance(tensor.stored.proto, onnx.SparseTensorProto)
            proto = numpy_helper.from_array(tensor.values) if sparse else tensor_proto(tensor)
            proto.name = name
            graph.initializer.append(proto)
            return
        array = tensor.values if isinstance(tensor, Constant) else values[tensor]
        graph.input.append(helper.make_tensor_value_info(name, elem_type(array.dtype), array.shape))
        feeds[name] = array


def _equal_results(nodes: list[Node]) -> dict[Tensor, Tensor]:
    """For each result that an earlier node computes by the same operator from equal inputs, the earlier result.

    Small initializers are equal by value, large ones and results by identity.
    """
    equal: dict[Tensor, Tensor] = {}
    found: dict[tuple[object, ...], Node] = {}

    def key(tensor: Tensor) -> object:
        if isinstance(tensor, Constant) and tensor.size <= FEW_ELEMENTS and tensor.dtype != object:
            return tensor.dtype.name, tensor.shape, tensor.values.tobytes()
        return equal.get(tensor, tensor) if tensor.name else None

    for node in nodes:
        bare = Node(node.op, "", node.attrs, domain=node.domain)
        bare.origin = node.origin
        attributes = encode_node(bare).SerializeToString(deterministic=True)
        first = found.setdefault((attributes, len(node.outputs), *map(key, node.inputs)), node)
        if first is not node:
            equal.update(zip(node.outputs, first.outputs, strict=True))
    return equal


def _range_bytes(node: Node) -> int:
    """Bytes of what a Range with constant bounds makes."""
    start, limit, step = (float(t.values.reshape(-1)[0]) for t in node.inputs)
    if not step:
        return 0
    return max(0, ceil((limit - start) / step)) * int(node.inputs[0].dtype.itemsize)


def _without(group: list[Node], node: Node) -> list[Node]:
    """A group without a node and what depends on it."""
    return independent([other for other in group if other is not node], set(node.outputs))


def independent(nodes: list[Node], lost: set[Tensor]) -> list[Node]:
    """Those nodes, in graph order, that need none of the lost tensors, directly or through others; `lost` grows."""
    rest = []
    for node in nodes:
        if lost.isdisjoint(node.inputs):
            rest.append(node)
        else:
            lost.update(node.outputs)
    return rest
