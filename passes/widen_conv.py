"""Which convolutions stand upright on an image of width 1, where lying down they are faster?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Constant, Graph, Node, Variable
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import Here, sweep
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.affine import linear, rewrite
from onnxcomp.layers.layer import Layer, UnfitError, multiplies
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.ops.facts import Operators
from onnxcomp.targets.table import find

TURNED = [0, 1, 3, 2]


@dataclass(frozen=True)
class WidenConv(Pass):
    """No Conv [M, C, k, 1] reads an image [N, C, H, 1] of width 1: it reads [N, C, 1, H] with a kernel [1, k].

    TensorFlow's converters write convolutions over time so. ONNX Runtime's CPU provider computes several places of a
    row at once, and one row after another: the same sums took 0.5 to 1.0 of the time lying down
    (benchmarks/widen_conv.py, one thread, AVX2). The Transposes around it move nothing. They stand behind functions of
    single values, so that these stay beside their Conv, and join with Transposes that are there already.
    """

    name: ClassVar[str] = "widen-conv"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Turn every such Conv."""
        outcome = Outcome()
        wanted = self.selects(graph)
        operators = context.operators
        if not find(context.target).runs_here or not any(_upright(node, operators) for node in graph.walk()):
            return outcome
        shapes = infer(graph, declared=False)

        def turn(node: Node, here: Here) -> Collection[Node]:
            if _upright(node, operators) and wanted(node):
                try:
                    _turn(graph, here, _fit(graph, node, shapes, operators), operators)
                    outcome.change(node, "lies along the width")
                except UnfitError as error:
                    outcome.skip(node, str(error))
            return ()

        sweep(graph, turn)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} Conv lie along the width"
        return outcome


def _upright(node: Node, operators: Operators) -> bool:
    """Whether a node convolves with a kernel that is higher than 1 and 1 wide."""
    if node.op != "Conv" or not multiplies(node, operators):
        return False
    weight = node.constant(1)
    return weight is not None and len(weight.shape) == 4 and weight.shape[2] > 1 and weight.shape[3] == 1


def _fit(graph: Graph, node: Node, shapes: Shapes, operators: Operators) -> Layer:
    """The layer of an upright Conv, where it may be turned.

    Raises:
        UnfitError: its image may be wider than 1, or its weight is not its own.
    """
    layer = linear(graph, node, operators, graph.kept_inputs.keys())
    shape, rows = shapes.shape(node.inputs[0]), layer.rows
    if shape is None or len(shape) != 4 or shape[3] != 1:
        raise UnfitError("its image is not known to be 1 wide")
    assert rows is not None
    if rows.pads[1] or rows.pads[3]:
        raise UnfitError("it pads the width")
    if layer.use.shared or graph.is_output(layer.constant):
        raise UnfitError("its weight is shared")
    return layer


def _turn(graph: Graph, here: Here, layer: Layer, operators: Operators) -> None:
    """Put a Transpose before the Conv and one behind it and its activation, and turn its weight and attributes."""
    node, rows, nodes = layer.node, layer.rows, here.scope.nodes
    assert rows is not None
    image = node.inputs[0]
    turned = Variable(graph.unique_name(f"{image.name}_turned"), image.dtype)
    before = Node("Transpose", graph.unique_name(f"{node.name}_turn"), {"perm": TURNED}, [image], [turned])
    node.inputs[0] = turned
    nodes.insert(nodes.index(node), before)
    last = _lie_down(graph, here, node, operators)
    out = last.outputs[0]
    wide = Variable(graph.unique_name(f"{out.name}_wide"), out.dtype)
    last.outputs = [wide]
    after = Node("Transpose", graph.unique_name(f"{node.name}_back"), {"perm": TURNED}, [wide], [out])
    nodes.insert(nodes.index(last) + 1, after)
    rewrite(graph, layer, np.ascontiguousarray(layer.constant.values.transpose(TURNED)), None)
    node.attrs["kernel_shape"] = [1, rows.kernel[0]]
    for attribute, values in (("strides", rows.strides), ("dilations", rows.dilations)):
        node.attrs[attribute] = [values[1], values[0]]
    if rows.auto_pad == "NOTSET":
        node.attrs["pads"] = [0, rows.pads[0], 0, rows.pads[2]]


def _lie_down(graph: Graph, here: Here, node: Node, operators: Operators) -> Node:
    """The last of the functions of single values behind a node that alone read it; results between bear new names."""
    while True:
        out = node.outputs[0]
        reader = out.consumers[0] if len(out.consumers) == 1 and not graph.is_output(out) else None
        if reader is None or reader not in here.nodes or not _of_one(reader, out, operators):
            return node
        lying = Variable(graph.unique_name(f"{out.name}_wide"), out.dtype)
        node.outputs = [lying]
        reader.inputs[next(port for port, tensor in enumerate(reader.inputs) if tensor is out)] = lying
        node = reader


def _of_one(node: Node, tensor: Variable, operators: Operators) -> bool:
    """Whether a node's single result is a function of each value of a tensor, and of numbers."""
    facts = operators.facts(node)
    others = [other for other in node.inputs if other is not tensor and other.name]
    return (
        facts.elementwise
        and not facts.random
        and len(node.outputs) == 1
        and all(isinstance(other, Constant) and other.size == 1 and len(other.shape) <= 1 for other in others)
    )
