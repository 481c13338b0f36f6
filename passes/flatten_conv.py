"""Where does a convolution span a whole axis, so that the axis could as well be part of the channels?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Graph, Node, Variable
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import Here, sweep
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.affine import linear, rewrite
from onnxcomp.layers.layer import Layer, UnfitError, multiplies
from onnxcomp.layers.rows import LayerInputs
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, option
from onnxcomp.ops.facts import Operators

BLOCK = 8  # channels of a block in the layout in which ONNX Runtime convolves on AVX2
FIRST_RESHAPE = 5  # the opset since which Reshape takes its sizes as an input


@dataclass(frozen=True)
class FlattenConv(Pass):
    """No large Conv [M, C, H, k] spans the whole height H of its image: it reads C H channels of height 1 instead.

    Kernels that span all electrodes of a recording, all bands of a spectrum: without padding along H, a Reshape of the
    input [N, C, H, W] to [N, C H, 1, W] and of the weight to [M, C H, 1, k] gives the same sums with less bookkeeping.
    Only where it was measured to pay: H k >= `least`, and at least 8 channels that are no multiple of 8. There a Conv
    took 0.42 to 1.00 times as long (benchmarks/flatten_conv.py: ONNX Runtime, one thread, AVX2), elsewhere up to 1.35
    times. One that spans both axes stays as well: it gains nothing, and as a Gemm it takes longer for one sample.
    Channels that are merged with an axis can no longer be pruned, so prune first.
    """

    name: ClassVar[str] = "flatten-conv"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    least: int = option(160, "leave kernels of fewer places, H times k, alone", minimum=1)

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Flatten every such Conv."""
        outcome = Outcome()
        wanted = self.selects(graph)
        operators = context.operators
        if not any(_convolves(node, operators) and wanted(node) for node in graph.walk()):
            return outcome
        shapes = infer(graph, declared=False)  # a size that is not certain would be an error of the Reshape

        def flatten(node: Node, here: Here) -> Collection[Node]:
            if _convolves(node, operators) and wanted(node) and _spans(node, shapes, operators):
                try:
                    self._flatten(graph, here.scope, _fit(graph, node, shapes, operators, self.least))
                    outcome.change(node, "reads the axis that it spans as channels")
                except UnfitError as error:
                    outcome.skip(node, str(error))
            return ()

        sweep(graph, flatten)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} Conv read an axis as channels"
        return outcome

    def _flatten(self, graph: Graph, scope: Graph, layer: Layer) -> None:
        """Put a Reshape before the layer, and give it its weight and attributes."""
        node, old, rows = layer.node, layer.constant.values, layer.rows
        assert rows is not None
        outputs, channels, height, width = old.shape
        sizes = graph.add_constant(f"{node.name}_sizes", np.asarray([0, channels * height, 1, 0], np.int64))
        data = node.inputs[rows.port]
        flat = Variable(graph.unique_name(f"{data.name}_flat"), data.dtype, None)
        name = graph.unique_name(f"{node.name}_flatten")
        scope.nodes.insert(scope.nodes.index(node), Node("Reshape", name, {}, [data, sizes], [flat]))
        node.inputs[rows.port] = flat
        rewrite(graph, layer, old.reshape(outputs, channels * height, 1, width), None)
        node.attrs["kernel_shape"] = [1, width]
        for attribute, values in (("strides", rows.strides), ("dilations", rows.dilations)):
            node.attrs[attribute] = [1, values[1]]


def _convolves(node: Node, operators: Operators) -> bool:
    """Whether a node moves a kernel over places."""
    return multiplies(node, operators) and any(w.reads == "patches" for w in operators.facts(node).weights(node))


def _spans(node: Node, shapes: Shapes, operators: Operators) -> bool:
    """Whether a convolution's kernel over two axes is as high as the image, and the image higher than 1."""
    weight = operators.facts(node).weights(node)[0]
    image, kernel = shapes.shape(node.input(weight.data)), shapes.shape(node.input(weight.port))
    if image is None or kernel is None or len(image) != 4 or len(kernel) != 4:
        return False
    return isinstance(image[2], int) and image[2] == kernel[2] and image[2] > 1


def _fit(graph: Graph, node: Node, shapes: Shapes, operators: Operators, least: int) -> Layer:
    """The layer of a Conv that spans its image's height, where flattening is right and pays.

    Raises:
        UnfitError: it is not right, or does not pay.
    """
    layer = linear(graph, node, operators, graph.kept_inputs.keys())
    rows, kernel = layer.rows, layer.constant.shape
    assert rows is not None
    if graph.opset < FIRST_RESHAPE:
        raise UnfitError(f"Reshape takes its sizes as an input from opset {FIRST_RESHAPE} on")
    if layer.group != 1:
        raise UnfitError("it has groups")
    if rows.auto_pad not in ("NOTSET", "VALID"):
        raise UnfitError("its padding is automatic")
    if rows.pads[0] or rows.pads[2]:
        raise UnfitError("it pads the axis that it spans")
    if layer.use.shared or graph.is_output(layer.constant):
        raise UnfitError("its weight is shared")
    if _covers(rows, shapes.shape(node.inputs[rows.port])):
        raise UnfitError("it spans the whole image: a reshaped one is no faster")
    if kernel[1] < BLOCK or kernel[1] % BLOCK == 0 or prod(kernel[2:]) < least:
        raise UnfitError("no gain was measured for a Conv of its sizes")
    return layer


def _covers(rows: LayerInputs, shape: tuple[object, ...] | None) -> bool:
    """Whether the kernel is as wide as the image too, and gives one value a channel."""
    return shape is not None and shape[3] == rows.kernel[1] and not (rows.pads[1] or rows.pads[3])
