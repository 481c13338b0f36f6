"""Which scales and shifts for each channel can live in the weights of a neighbouring layer?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable, is_onnx
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.sweeping import Here, sweep, unlink, until_stable
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.affine import (
    BATCH_NORM,
    ELEMENTWISE,
    Affine,
    added_by,
    affine_of,
    fitted,
    linear,
    rewrite,
    scaled_inputs,
    scaled_outputs,
    sees_padding,
)
from onnxcomp.layers.layer import Layer, UnfitError, multiplies
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.ops.facts import Operators

ABSORBED = ELEMENTWISE | {BATCH_NORM}


@dataclass(frozen=True)
class FuseBatchNorm(Pass):
    """No BatchNormalization stands beside a Conv, ConvTranspose, Gemm or MatMul that could do its work.

    Fuses into the layer before it, else into all layers behind it where zero padding does not see the shift. Mul, Add,
    Sub and Div with a constant for each channel, which is what exporters make of a BatchNormalization, fuse in the same
    way. Weights are computed in float64; one that several nodes share is copied for the node that changes it.
    """

    name: ClassVar[str] = "fuse-batchnorm"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Fuse until nothing more fuses."""
        outcome = Outcome()
        norms = [node for node in graph.walk() if node.op == BATCH_NORM]
        fuser = _Fuser(self, graph, outcome, context.operators)
        until_stable(fuser.after, fuser.before)
        left = {node for node in graph.walk() if node.op == BATCH_NORM}
        for node in norms:
            if node in left:
                outcome.skip(node, fuser.why.get(node, "no convolution or matrix product stands beside it"))
        if norms:
            outcome.summary = f"{len(norms) - len(left)} of {len(norms)} BatchNormalization fused"
        return outcome


class _Fuser:
    """One run of the pass over one graph."""

    def __init__(self, item: FuseBatchNorm, graph: Graph, outcome: Outcome, operators: Operators) -> None:
        self.graph, self.operators = graph, operators
        self.outcome = outcome
        self.wanted = item.selects(graph)
        self.why: dict[Node, str] = {}
        self.fed = graph.kept_inputs.keys()
        graph.sort()
        self.outputs: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs}

    @cached_property
    def shapes(self) -> Shapes:
        """Inferred when first asked for; names and ranks of what stays do not change while fusing."""
        return infer(self.graph)

    # -- behind a layer ----------------------------------------------------------------------------------------

    def after(self) -> int:
        """Fuse what stands behind layers; how many nodes that took."""
        return sweep(self.graph, self._fuse_behind)

    def _fuse_behind(self, node: Node, here: Here) -> list[Node]:
        chain: list[Node] = []
        if not (multiplies(node, self.operators) and self.wanted(node)):
            return []
        if not any(reader.op in ABSORBED for reader in node.outputs[0].consumers):
            return []
        try:
            layer = linear(self.graph, node, self.operators, self.fed)
            total, chain = self._chain(layer, here.nodes)
            if chain and self._worthwhile(layer, chain):
                self._absorb(layer, total.over(layer.outputs), chain, here.scope)
                return chain
        except UnfitError as error:
            for follower in chain or [n for n in node.outputs[0].consumers if n in here.nodes]:
                self.why[follower] = str(error)
        return []

    def _chain(self, layer: Layer, here: set[Node]) -> tuple[Affine, list[Node]]:
        """The scales and shifts that follow one another behind a layer, and what they come to."""
        total = Affine(np.ones(1), np.zeros(1))
        chain: list[Node] = []
        tensor: Tensor = layer.node.outputs[0]
        while True:
            node = tensor.consumers[0] if len(tensor.consumers) == 1 else None
            if tensor in self.outputs or node is None:
                for reader in tensor.consumers:
                    self.why[reader] = f"the result of {layer.node} is needed elsewhere too"
                return total, chain
            if node.op not in ABSORBED or node not in here or not self.wanted(node):
                return total, chain
            try:
                step = self._affine(node, tensor, layer, layer.weight.result_axis, layer.outputs)
            except UnfitError as error:
                self.why[node] = str(error)
                return total, chain
            total = total.then(step)
            chain.append(node)
            tensor = node.outputs[0]

    def _worthwhile(self, layer: Layer, chain: list[Node]) -> bool:
        """A product without a port for a bias has it behind already; a shared weight is copied for a norm only."""
        norm = any(node.op == BATCH_NORM for node in chain)
        if layer.weight.bias is None and [node.op for node in chain] == ["Add"]:
            return False
        return norm or not layer.use.shared

    def _absorb(self, layer: Layer, affine: Affine, chain: list[Node], scope: Graph) -> None:
        node, last = layer.node, chain[-1].outputs[0]
        weight = scaled_outputs(layer, affine.scale)
        if layer.weight.bias is None:
            rewrite(self.graph, layer, fitted(layer, weight, None)[0], None)
            unlink(*chain)
            self._add_behind(layer, affine.shift, last, scope)
        else:
            old = added_by(layer, self.fed)
            bias = old * affine.scale + affine.shift  # [outputs], or what Gemm's C broadcasts to
            needed = node.input(layer.weight.bias) is not None or affine.shift.any()
            rewrite(self.graph, layer, *fitted(layer, weight, bias if needed else None))
            unlink(*chain)
            node.outputs[0] = last
        for gone in chain:
            self.outcome.change(gone, f"fused into {node}")

    def _add_behind(self, layer: Layer, shift: Array, last: Variable, scope: Graph) -> None:
        """The operator takes no bias: what must be added stands in one Add."""
        node = layer.node
        if not shift.any():
            node.outputs[0] = last
            return
        vector = shift if layer.weight.result_axis == -1 else shift[:, None]  # [..., out, rows]
        bias = self.graph.add_constant(f"{node.name}_bias", vector.astype(layer.constant.dtype))
        name = self.graph.unique_name(f"{node.name}_add")
        scope.nodes.insert(scope.nodes.index(node) + 1, Node("Add", name, {}, [node.outputs[0], bias], [last]))

    # -- before layers -----------------------------------------------------------------------------------------

    def before(self) -> int:
        """Fuse what stands before layers; how many nodes that took."""
        return sweep(self.graph, lambda node, here: [node] if self._fuse_ahead(node, here.nodes) else [])

    def _fuse_ahead(self, node: Node, here: set[Node]) -> bool:
        if node.op not in ABSORBED or not is_onnx(node.domain) or not self.wanted(node):
            return False
        output = node.outputs[0]
        readers = list(dict.fromkeys(output.consumers))
        if output in self.outputs or not readers:
            return False
        if not all(r in here and multiplies(r, self.operators) for r in readers):
            return False
        try:
            plans = [self._plan_ahead(node, reader, output) for reader in readers]
        except UnfitError as error:
            self.why.setdefault(node, str(error))
            return False
        source = node.inputs[0] if node.op == BATCH_NORM or node.constant(0) is None else node.inputs[1]
        for layer, weight, bias in plans:
            rewrite(self.graph, layer, weight, bias)
            layer.node.inputs[layer.weight.data] = source
            self.outcome.change(node, f"fused into {layer.node}")
        unlink(node)
        return True

    def _plan_ahead(self, node: Node, reader: Node, output: Tensor) -> tuple[Layer, Array, Array | None]:
        """The layer behind a node, its new weight and bias; nothing is changed yet."""
        layer = linear(self.graph, reader, self.operators, self.fed)
        if node.op != BATCH_NORM and layer.weight.reads != "patches":
            raise UnfitError(f"{reader} is no convolution")
        if not self.wanted(reader) or [t is output for t in reader.inputs].count(True) != 1:
            raise UnfitError(f"{reader} is not selected, or reads it twice")
        if node.op != BATCH_NORM and layer.use.shared:
            raise UnfitError(f"the weight of {reader} is shared")
        data = next(t for t in node.inputs if not isinstance(t, Constant))
        axis = layer.weight.data_axis
        affine = self._affine(node, data, layer, axis, layer.inputs)
        shape = self.shapes.shape(data)
        if affine.scale.size + affine.shift.size > 2 and (shape is None or shape[axis] != layer.inputs):
            raise UnfitError("it may widen its input")
        affine = affine.over(layer.inputs)
        if affine.shift.any() and sees_padding(layer):
            raise UnfitError(f"it shifts values before the zero padding of {reader}")
        weight, added = scaled_inputs(layer, affine)
        if not added.any():
            return layer, *fitted(layer, weight, None)
        if layer.weight.bias is None:
            raise UnfitError(f"{reader} behind it has no bias to take the shift")
        return layer, *fitted(layer, weight, added_by(layer, self.fed) + added * layer.weight.alpha)

    def _affine(self, node: Node, data: Tensor, layer: Layer, axis: int, channels: int) -> Affine:
        rank, opset = layer.rank(self.shapes), self.graph.opset
        return affine_of(node, data, axis=axis, rank=rank, channels=channels, opset=opset, fed=self.fed)
