"""Which initializers of a graph are learned, and which are constants of its arithmetic?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxcomp.graph.ir import Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators

VIEWS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
AFFINE = frozenset({"Add", "Div", "Mean", "Mul", "Sub", "Sum"})
LEARNED = ""  # no reason to leave it alone
STATISTICS = "statistics of "  # moved by training, but not by a gradient


def roots_of(graph: Graph) -> dict[Tensor, Constant]:
    """For every tensor that shows one float initializer under another shape, order or type: that initializer.

    Initializers of the main graph stand for themselves.
    """
    roots: dict[Tensor, Constant] = {c: c for c in graph.constants() if c.scope is None and is_float(c.dtype)}
    for node in graph.nodes:
        root = roots.get(node.inputs[0]) if node.op in VIEWS and not node.domain and node.inputs else None
        to = node.attrs.get("to")
        if root is not None and (node.op != "Cast" or to in (1, 10, 11, 16)):
            roots[node.outputs[0]] = root
    return roots


def is_float(dtype: np.dtype | None) -> bool:
    """Whether values of a type can be learned, or carry a gradient; an unknown type may."""
    return dtype is None or dtype.name in ("float16", "float32", "float64", "bfloat16")


def roles(graph: Graph, operators: Operators, shapes: Shapes) -> dict[Constant, str]:
    """Every float initializer that nodes read: LEARNED, or why it is taken for a constant.

    Learned are the weights, biases and normalization vectors that operator facts name, and vectors that are added to
    or multiplied with something computed from weights: biases and scales that stand in nodes of their own.
    """
    roots = roots_of(graph)
    found: dict[Constant, str] = {}
    fed: set[Tensor] = set()  # computed from activations and weights
    for node in graph.nodes:
        ports = dict(_ports(node, roots, operators, shapes))
        for port, tensor in enumerate(node.inputs):
            root = roots.get(tensor)
            if root is None or node.outputs[0] in roots:
                continue
            role = ports.get(port)
            if role is None:
                role = (
                    _operand(node, port, root, shapes, fed) if node.op in AFFINE else f"{node} takes it as a constant"
                )
            if found.get(root, "constant"):
                found[root] = role
        if LEARNED in ports.values() or not fed.isdisjoint(node.inputs):
            fed.update(node.outputs)
    return found


def _ports(
    node: Node, roots: dict[Tensor, Constant], operators: Operators, shapes: Shapes
) -> Iterator[tuple[int, str]]:
    """The ports of learned values by operator facts, weights reached through views included."""
    facts = operators.facts(node)
    for weight in facts.weights(_shown(node, roots, shapes)):
        for port in (weight.port, weight.bias):
            if port is not None and node.input(port) in roots:
                yield port, LEARNED
    for port in facts.vector_ports:
        if node.input(port) in roots:
            yield port, LEARNED
    for port in facts.statistics_ports:
        if node.input(port) in roots:
            yield port, f"{STATISTICS}{node}"


def _shown(node: Node, roots: dict[Tensor, Constant], shapes: Shapes) -> Node:
    """The node, or a stand-in where weights come through views: they look like initializers there."""
    if not any(t in roots and not isinstance(t, Constant) for t in node.inputs):
        return node
    inputs: list[Tensor] = []
    for tensor in node.inputs:
        shape = shapes.static(tensor) if tensor.name else None
        if isinstance(tensor, Constant) or (tensor in roots and shape is not None):
            inputs.append(Constant(tensor.name, np.broadcast_to(np.zeros((), tensor.dtype), shape or ())))
        else:
            inputs.append(Variable(tensor.name, tensor.dtype, shapes.shape(tensor)))
    outputs = [Variable(t.name) for t in node.outputs]
    return Node(node.op, node.name, node.attrs, inputs, outputs, node.domain)


def _operand(node: Node, port: int, root: Constant, shapes: Shapes, fed: set[Tensor]) -> str:
    """Whether a constant operand of arithmetic is learned: a vector along one axis of something computed."""
    if fed.isdisjoint(node.inputs):
        return f"{node} prepares the input with it"
    if root.size == 1:
        return f"a single number that {node} takes"
    wide = [d for d in shapes.shape(node.inputs[port]) or root.shape if d != 1]
    return LEARNED if len(wide) == 1 else f"{node} takes it with several axes: it may be a fixed grid"
