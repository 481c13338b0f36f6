"""Which products with an added bias does ONNX Runtime turn into a Gemm? They are written as one from the start.

It joins MatMul and Add before it looks for integer kernels: where the left side has two dimensions, or where all of
its sizes are fixed (Reshape to two dimensions in front, and back behind). What then stands between Q and DQ is a Gemm,
whose integer kernel wants a weight with a zero point and an int32 bias; a MatMul with the Add behind it runs in float.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.literals import literal
from onnxcomp.graph.types import Shapes


@dataclass
class Joined:
    """A MatMul that became a Gemm, and all that puts it back.

    Attributes:
        node: the product, under its own name.
        data, product, bias, output: what went in, what stood between, what was added, what comes out.
        reshapes: around it, where its data has more than two dimensions.
    """

    graph: Graph
    node: Node
    data: Tensor
    product: Variable
    bias: Tensor
    output: Variable
    add: str
    swapped: bool
    reshapes: list[Node] = field(default_factory=list)

    def undo(self) -> None:
        """MatMul and Add again."""
        self.graph.remove_nodes(self.reshapes)
        self.node.op = "MatMul"
        self.node.inputs = [self.data, self.node.inputs[1]]
        self.node.outputs = [self.product]
        pair = [self.bias, self.product] if self.swapped else [self.product, self.bias]
        self.graph.nodes.append(Node("Add", self.add, {}, pair, [self.output]))


def join(graph: Graph, nodes: list[Node]) -> list[Joined]:
    """Turn those of the products into a Gemm that ONNX Runtime would turn into one; the graph is sorted afterwards."""
    shapes = shape_tools.infer(graph)
    found = []
    for node in nodes:
        match = _match(graph, node, shapes) if node.op == "MatMul" and not node.domain else None
        if match is not None:
            found.append(_rewrite(graph, node, *match, shapes))
    if found:
        graph.sort()
    return found


def undo(graph: Graph, joined: list[Joined]) -> None:
    """Put back what was joined; the graph is sorted afterwards."""
    for item in joined:
        item.undo()
    if joined:
        graph.sort()


def _match(graph: Graph, node: Node, shapes: Shapes) -> tuple[Node, Constant] | None:
    """The Add behind a product and the bias that it adds, one value a column; None where they stay apart."""
    weight, product = node.constant(1), node.outputs[0]
    if weight is None or len(weight.shape) != 2 or len(product.outputs) != 1 or graph.is_output(product):
        return None
    add: Node = product.outputs[0]
    if add.op != "Add" or add.domain or add not in graph.nodes:
        return None
    bias = literal(add.inputs[1 if add.inputs[0] is product else 0])
    rank, width = shapes.rank(node.inputs[0]), weight.shape[1]
    if bias is None or rank is None or rank < 2 or (rank > 2 and not shapes.static(node.inputs[0])):
        return None
    fits = bias.shape == (width,) or (rank == 2 and bias.shape == (1, width))
    return (add, bias) if fits else None


def _rewrite(graph: Graph, node: Node, add: Node, bias: Constant, shapes: Shapes) -> Joined:
    data, product, output = node.inputs[0], node.outputs[0], add.outputs[0]
    made = Joined(graph, node, data, product, bias, output, add.name, add.inputs[1] is product)
    made.bias = add.inputs[0 if made.swapped else 1]
    graph.remove_nodes([add])
    shape = shapes.static(data)
    if len(shape or ()) > 2:
        assert shape is not None
        flat, wide = (Variable(graph.unique_name(f"{node.name}_{end}"), np.dtype(np.float32)) for end in ("in", "out"))
        width = node.inputs[1].shape[1]
        made.reshapes = [
            _reshape(graph, node, data, (prod(shape[:-1]), shape[-1]), flat),
            _reshape(graph, node, wide, (*shape[:-1], width), output),
        ]
        data, output = flat, wide
    node.op = "Gemm"
    node.inputs = [data, node.inputs[1], bias]
    node.outputs = [output]
    return made


def _reshape(graph: Graph, node: Node, data: Tensor, shape: tuple[int, ...], output: Variable) -> Node:
    sizes = graph.add_constant("shape", np.asarray(shape, np.int64))
    return graph.add_node("Reshape", [data, sizes], name=f"{node.name}_reshape", outputs=[output])
