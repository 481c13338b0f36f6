"""How is a plan written into the graph? Q and DQ nodes, integer weights, integer or float biases."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan, clip_limits
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.targets.base import Target

INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class StoredBias:
    """Where the bias of a layer lies in the written graph: an int32 or float32 constant, and its scale [out]."""

    constant: Constant
    scale: Array | None

    def store(self, bias: Array) -> None:
        """Put in another bias, float32 [out]."""
        self.constant.values = bias if self.scale is None else as_int32(bias, self.scale)


@dataclass
class Written:
    """What `Writer.write` did.

    Attributes:
        biases: for every quantized layer that has or can take a bias, where it lies.
        weights: for every quantized layer that shares its weight with no other, the constant of its integers.
        outputs: for every quantized layer, the float tensor that its node writes.
    """

    biases: dict[Node, StoredBias] = field(default_factory=dict)
    weights: dict[Node, Constant] = field(default_factory=dict)
    outputs: dict[Node, Variable] = field(default_factory=dict)


class Writer:
    """Writes Q and DQ into one graph.

    Args:
        grids: for every tensor of the plan, the numbers its integers stand for; tensors that must share a scale have
            equal grids.
        layers: for every weighted node, its weight as integers.
    """

    def __init__(
        self, graph: Graph, target: Target, plan: Plan, grids: dict[Variable, Grid], layers: dict[Node, Integers]
    ) -> None:
        self.graph, self.target, self.plan, self.grids, self.layers = graph, target, plan, grids, layers
        self._integers: dict[Variable, Variable] = {}
        self._shared: dict[tuple[object, ...], Constant] = {}
        self._weights: dict[tuple[Constant, int, bytes], tuple[Constant, Variable]] = {}
        self._gone: list[Node] = []
        self._dequantized: list[Node] = []
        self._rewritten = set(plan.rewritten)
        self._reads = self._ports()
        # what each layer reads, before DequantizeLinear nodes take the tensors' places
        self._sources = {node: node.inputs[(target.kernels[node.op].ports or (0,))[0]] for node in plan.weighted}

    def write(self) -> Written:
        """Rewrite the graph in place; call `sort` afterwards."""
        result = Written()
        for tensor in self.plan.tensors:
            self._integer(tensor)
        readers = Counter(layer.node.inputs[layer.weight.port] for layer in self.layers.values())
        for node, layer in self.layers.items():
            alone = readers[node.inputs[layer.weight.port]] == 1
            stored_weight = self._weight(layer)
            if alone:
                result.weights[node] = stored_weight
            stored = self._bias(layer)
            if stored is not None:
                result.biases[node] = stored
            self._unhide(node)
            result.outputs[node] = node.outputs[0]
        self.graph.remove_nodes((*self._gone, *self._unread()))
        if self.target.runs_here:
            self._shelter()
        return result

    def _shelter(self) -> None:
        """Put a Sum of one between a DequantizeLinear and what carries its values to a body of If, Loop or Scan.

        ONNX Runtime moves Q and DQ along with data, and cannot put them at a tensor that a body captures; a body may be
        inlined before, so that what moves data in there counts as well.
        """
        captured = self.graph.captured()
        if not captured:
            return
        for dequantize in self._dequantized:
            if not dequantize.outputs:
                continue  # nothing reads it, and it left the graph
            output: Variable = dequantize.outputs[0]
            readers = [node for node in dict.fromkeys(output.outputs) if node not in self._reads]
            carrying = [node for node in readers if self._carries(node, captured)]
            if output not in captured and not carrying:
                continue
            raw = Variable(self.graph.unique_name("d"), output.dtype)
            for node in set(output.outputs).difference(readers):
                for port, tensor in enumerate(node.inputs):
                    if tensor is output:
                        node.inputs[port] = raw
            dequantize.outputs[0] = raw
            self._node("Sum", [raw], output)

    def _carries(self, node: Node, captured: set[Variable]) -> bool:
        """Whether what a node gives are values of its input that come to a body, at other places."""
        if node.op not in self.target.moves:
            return False
        return any(t in captured or any(self._carries(n, captured) for n in t.outputs) for t in node.outputs)

    # -- activations ---------------------------------------------------------------------------------------------------

    def _ports(self) -> dict[Node, tuple[int, ...]]:
        """The ports at which integer nodes read dequantized tensors."""
        ports = {n: self.target.kernels[n.op].ports or () for n in self.plan.weighted}
        return {**ports, **self.plan.joined, **dict.fromkeys(self.plan.moving, (0,))}

    def _integer(self, tensor: Variable) -> Variable:
        """The integers of a tensor, with Q and DQ written around them on first use."""
        if tensor in self._integers:
            return self._integers[tensor]
        maker = self.plan.made.get(tensor)
        if maker in self._rewritten and maker is not None:
            source = self._integer(maker.inputs[0])
            integers = self._on_integers(maker, source, self.grids[tensor])
            maker.outputs.clear()
            self._gone.append(maker)
            self._integers[tensor] = integers
            self._dequantize(integers, self.grids[tensor], tensor)
        elif maker is not None:
            raw = Variable(self.graph.unique_name("r"), tensor.dtype)
            fold = self.plan.folded.get(maker)
            if fold is not None:
                fold.outputs.clear()
                self._gone.append(fold)
                maker.outputs[0] = raw
            else:
                maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = raw
            self._integers[tensor] = integers = self._quantize(raw, self.grids[tensor])
            self._dequantize(integers, self.grids[tensor], tensor)
        else:
            readers = [node for node in dict.fromkeys(tensor.outputs) if node in self._reads]
            self._integers[tensor] = integers = self._quantize(self._apart(tensor), self.grids[tensor])
            back = Variable(self.graph.unique_name("d"), tensor.dtype)
            self._dequantize(integers, self.grids[tensor], back)
            for node in readers:
                for port in self._reads[node]:
                    if node.inputs[port] is tensor:
                        node.inputs[port] = back
        return self._integers[tensor]

    def _unhide(self, node: Node) -> None:
        """Put a Sum of one between a product that gives float and a Relu or Clip that alone reads it.

        ONNX Runtime looks through those for a Q, and where there is none it runs the product in float.
        """
        output = node.outputs[0]
        readers = output.outputs
        if not self.target.runs_here or len(readers) != 1 or readers[0].op not in self.target.folds:
            return
        raw = Variable(self.graph.unique_name("r"), output.dtype)
        node.outputs[0] = raw
        self._node("Sum", [raw], output)

    def _apart(self, tensor: Variable) -> Variable:
        """A float tensor that a Q may read: a Sum of one stops what would fuse the node before it with that Q."""
        if tensor.name not in self.plan.fenced:
            return tensor
        copy = Variable(self.graph.unique_name("a"), tensor.dtype)
        self._node("Sum", [tensor], copy)
        return copy

    def _quantize(self, tensor: Tensor, grid: Grid) -> Variable:
        levels = grid.levels
        integers = Variable(self.graph.unique_name("q"), levels.dtype)
        self._node("QuantizeLinear", [tensor, *self._grid(grid)], integers)
        if levels.high == np.iinfo(levels.dtype).max:
            return integers
        kept = Variable(self.graph.unique_name("q"), levels.dtype)  # QuantizeLinear saturates at its type's ends only
        ends = [self._number(np.asarray(end, levels.dtype)) for end in (levels.low, levels.high)]
        self._node("Clip", [integers, *ends], kept)
        return kept

    def _dequantize(self, integers: Variable, grid: Grid, output: Variable) -> None:
        self._dequantized.append(self._node("DequantizeLinear", [integers, *self._grid(grid)], output))

    def _on_integers(self, node: Node, source: Variable, grid: Grid) -> Variable:
        """Relu, Clip or Pad once more, on the integers."""
        result = Variable(self.graph.unique_name("q"), grid.levels.dtype)
        zero = self._number(np.asarray(grid.zero, grid.levels.dtype))
        if node.op == "Pad":
            inputs: list[Tensor] = [source, *node.inputs[1:]]
            if len(inputs) > 2:
                inputs[2] = zero
            else:
                inputs.append(zero)
            attrs = dict(node.attrs)
        else:
            low, high = (0.0, np.inf) if node.op == "Relu" else clip_limits(node) or (-np.inf, np.inf)
            ends = [
                np.clip(np.rint(end / grid.scale) + grid.zero, grid.levels.low, grid.levels.high) for end in (low, high)
            ]
            inputs = [source, *(self._number(np.asarray(end, grid.levels.dtype)) for end in ends)]
            attrs = {}
        self.graph.add_node(
            "Pad" if node.op == "Pad" else "Clip", inputs, name=node.name, attrs=attrs, outputs=[result]
        )
        return result

    def _unread(self) -> list[Node]:
        """DequantizeLinear nodes whose result nothing reads, in the graph as it will be."""
        gone = set(self._gone)
        return [
            node
            for node in self.graph.nodes
            if node.op == "DequantizeLinear"
            and all(reader in gone for reader in node.outputs[0].outputs)
            and not self.graph.is_output(node.outputs[0])
        ]

    # -- weights and biases --------------------------------------------------------------------------------------------

    def _weight(self, layer: Integers) -> Constant:
        node, weight = layer.node, layer.weight
        constant = node.constant(weight.port)
        assert constant is not None
        kernel = self.target.kernels[node.op]
        axis = weight.out_axis % len(constant.shape)
        key = (constant, axis, layer.integers.tobytes() + layer.scales.tobytes())
        if key not in self._weights:
            name = self.graph.unique_name("w")
            stored = Constant(name, layer.tensor(), None, constant.envelope)
            scale = layer.scales[0] if layer.shared else layer.scales
            inputs: list[Tensor] = [stored, self._constant("s", np.asarray(scale))]
            if kernel.weight_zero_point:
                inputs.append(self._constant("z", np.zeros(np.shape(scale), np.int8)))
            output = Variable(self.graph.unique_name("f"), np.dtype(np.float32))
            self._node("DequantizeLinear", inputs, output, **({} if layer.shared else {"axis": axis}))
            self._weights[key] = stored, output
        node.inputs[weight.port] = self._weights[key][1]
        return self._weights[key][0]

    def _bias(self, layer: Integers) -> StoredBias | None:
        """Put a layer's bias where the target wants it; None where the operator takes none or the layer has none."""
        node, port = layer.node, layer.weight.bias
        if port is None or layer.bias is None:
            return None
        name = self.graph.unique_name("b")
        if self.target.bias == "float":
            constant = Constant(name, layer.bias)
            node.set_input(port, constant)
            return StoredBias(constant, None)
        scale = np.float32(self.grids[self._sources[node]].scale) * layer.scales
        constant = Constant(name, as_int32(layer.bias, scale))
        output = Variable(self.graph.unique_name("f"), np.dtype(np.float32))
        stored = np.asarray(scale[0] if layer.shared else scale)
        inputs: list[Tensor] = [constant, self._constant("s", stored)]
        if self.target.kernels[node.op].weight_zero_point:
            inputs.append(self._constant("z", np.zeros(stored.shape, np.int32)))
        self._node("DequantizeLinear", inputs, output, **({} if layer.shared else {"axis": 0}))
        node.set_input(port, output)
        return StoredBias(constant, scale)

    # -- small things --------------------------------------------------------------------------------------------------

    def _grid(self, grid: Grid) -> list[Constant]:
        return [
            self._number(np.asarray(grid.scale, np.float32)),
            self._number(np.asarray(grid.zero, grid.levels.dtype)),
        ]

    def _number(self, value: Array) -> Constant:
        return self._constant("s" if value.dtype == np.float32 else "z", value)

    def _constant(self, base: str, values: Array) -> Constant:
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._shared:
            self._shared[key] = self.graph.add_constant(base, values)
        return self._shared[key]

    def _node(self, op: str, inputs: list[Tensor], output: Variable, **attrs: int) -> Node:
        node = self.graph.add_node(op, inputs, name=op[0], attrs=dict(attrs), outputs=[output])
        node.unnamed = node.name  # thousands of names are a share of a small file, and nobody looks for these
        return node


def as_int32(bias: Array, scale: Array) -> Array:
    """A float bias in units of `scale`: int32 [out]."""
    return np.clip(np.rint(bias.astype(np.float64) / scale), INT32.min, INT32.max).astype(np.int32)
