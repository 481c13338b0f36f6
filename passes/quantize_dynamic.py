"""Dynamic quantization: matrix products on int8 weights, activations quantized anew on every run."""

from __future__ import annotations

import glob
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Array, Constant, Graph, Node, Tensor, Variable
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.rounding import Levels, Pairs, clipped_pair_scales, clipped_scales, round_nearest, round_pairs
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, WeightUse, option
from onnxcomp.passes.weights.smoothing import channel_statistics

LEVELS = Levels.signed(8)
LEAST_ELEMENTS = 1024  # a smaller product runs no faster on integers
OPSET = 11  # DynamicQuantizeLinear


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """MatMul and Gemm run on int8 weights, and their activations are quantized at run time.

    Each activation tensor gets one scale and zero point from its own range, once however many products read it
    (DynamicQuantizeLinear); weights [K, N] have one scale an output channel. Written so that ONNX Runtime fuses it
    into DynamicQuantizeMatMul or MatMulIntegerToFloat. Convolutions stay float: integers that are scaled at run time
    make them slower.
    """

    name: ClassVar[str] = "quantize-dynamic"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    isa: Literal["portable", "native"] = option(
        "portable", "weights safe on every x86, or best on CPUs with VNNI (and ARM)"
    )
    smooth: bool = option(True, "even out outlying channels of activations where that pays; needs calibration data")
    embeddings: bool = option(True, "tables that are looked up by row are stored in 8 bits, too")

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Quantize in place.

        Raises:
            UsageError: a glob matches nothing.
        """
        outcome = Outcome()
        uses = [u for u in self.weights(graph, context, outcome) if u.node.op in ("MatMul", "Gemm")]
        shapes = shape_tools.infer(graph, shape_tools.one_sample(graph, context.sample_shapes))
        accepted = [use for use in uses if not self._skipped(use, shapes, outcome)]
        total = Counter(use.node.op for use in uses)
        done = Counter(use.node.op for use in accepted)
        if accepted:
            outcome.notes += raise_opset(graph, OPSET)
            writer = _Writer(graph, self.isa, self._smoothing(graph, context, accepted))
            if writer.factors:
                outcome.notes.append(f"{len(writer.factors)} activations are smoothed before they are quantized")
            for use in accepted:
                sqnr = writer.replace(use)
                outcome.change(use.node, f"int8 weights ({sqnr:.1f} dB), activations quantized at run time")
        parts = [f"{done[op]} of {count} {op}" for op, count in sorted(total.items())]
        outcome.summary = ", ".join(parts) + " quantized" if parts else "no matrix product with a constant weight"
        if self.embeddings:
            self._tables(graph, context, outcome)
        return outcome

    def _skipped(self, use: WeightUse, shapes: Shapes, outcome: Outcome) -> bool:
        reason = _refusal(use, shapes)
        if reason:
            outcome.skip(use.node, reason)
        return bool(reason)

    def _smoothing(self, graph: Graph, context: PassContext, uses: list[WeightUse]) -> dict[Tensor, Array]:
        """Factors by activation tensor, for those where the noise to expect falls."""
        if not self.smooth or context.calibration is None:
            return {}
        top = set(graph.nodes)
        readers: dict[Tensor, list[WeightUse]] = {}
        for use in uses:
            if use.node in top:
                readers.setdefault(use.node.inputs[0], []).append(use)
        seen = channel_statistics(
            graph, [t.name for t in readers], context.calibration, threads=context.threads, progress=context.progress
        )
        found = {}
        for tensor, products in readers.items():
            if tensor.name in seen:
                weights = [use.weight.to_matrix(use.constant.values).T for use in products]
                factors = seen[tensor.name].factors(weights)
                if factors is not None:
                    found[tensor] = factors
        return found

    def _tables(self, graph: Graph, context: PassContext, outcome: Outcome) -> None:
        """Embedding tables become 8-bit rows."""
        from onnxcomp.passes.quantize_weights import QuantizeWeights

        found = [u for u in self.weights(graph, context, Outcome()) if u.weight.role == "embedding"]
        if not found:
            return
        globs = tuple(dict.fromkeys(glob.escape(use.node.name) for use in found))
        inner = QuantizeWeights(bits=8, include=globs, error="round").run(graph, context)
        outcome.changes += inner.changes
        outcome.skips += [skip for skip in inner.skips if any(skip.node == use.node.name for use in found)]
        outcome.notes += inner.notes
        outcome.summary += f", {len(inner.changes)} of {len(found)} embeddings"


@dataclass
class _Writer:
    """Writes the integer form of products; weights and activations that several of them read are quantized once."""

    graph: Graph
    isa: str
    factors: dict[Tensor, Array]
    owners: dict[Node, Graph] = field(init=False)
    weights: dict[tuple[Constant, int, Tensor | None], tuple[Constant, Constant, float]] = field(default_factory=dict)
    activations: dict[tuple[Tensor, Graph], Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.owners = self.graph.owners()

    def replace(self, use: WeightUse) -> float:
        """Put integer nodes in the place of a product; returns the weight's SQNR in dB."""
        node, owner = use.node, self.owners[use.node]
        integers, scale, sqnr = self._weight(use)
        data = node.inputs[0]
        bias = node.constant(2) if node.op == "Gemm" else None
        alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
        beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
        if alpha != 1.0:
            scale = self.graph.add_constant(scale.name, scale.values * np.float32(alpha))
        dynamic = self._activation(data, owner)
        out = node.outputs[0]
        sums = Variable(self.graph.unique_name(f"{node.name}_sums"))
        # the node keeps its name and becomes the integer product, so that reports find the layer again
        node.op, node.attrs = "MatMulInteger", {}
        node.inputs, node.outputs = [dynamic.outputs[0], integers, dynamic.outputs[2]], [sums]
        cast = owner.add_node("Cast", [sums], name=f"{node.name}_cast", attrs={"to": 1})
        scales = owner.add_node("Mul", [dynamic.outputs[1], scale], name=f"{node.name}_scales")
        last = owner.add_node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{node.name}_scaled")
        if bias is not None:
            values = np.asarray(bias.values, np.float32) * np.float32(beta)
            added = bias if beta == 1.0 else self.graph.add_constant(f"{bias.name}_beta", values)
            last = owner.add_node("Add", [last.outputs[0], added], name=f"{node.name}_biased")
        last.outputs = [out]
        return sqnr

    def _activation(self, tensor: Tensor, owner: Graph) -> Node:
        key = (tensor, owner)
        if key not in self.activations:
            if tensor in self.factors:
                factors = self.graph.add_constant(f"{tensor.name}_smooth", self.factors[tensor])
                tensor = owner.add_node("Mul", [tensor, factors], name=f"{tensor.name}_smoothed").outputs[0]
            self.activations[key] = owner.add_node(
                "DynamicQuantizeLinear", [tensor], name=f"{tensor.name}_quantize", outputs=3
            )
        return self.activations[key]

    def _weight(self, use: WeightUse) -> tuple[Constant, Constant, float]:
        """int8 [K, N], float32 scales [N], and the SQNR in dB."""
        factors = self.factors.get(use.node.inputs[0])
        key = (use.constant, use.weight.out_axis, None if factors is None else use.node.inputs[0])
        if key not in self.weights:
            matrix = np.asarray(use.weight.to_matrix(use.constant.values), np.float32)  # [N, K]
            if factors is not None:
                matrix = np.asarray(matrix / factors, np.float32)
            integers, scales = _rounded(matrix, self.isa)
            error = float(np.square(matrix - integers * scales[:, None], dtype=np.float64).sum())
            power = float(np.square(matrix, dtype=np.float64).sum())
            sqnr = 10 * float(np.log10(power / error)) if error > 0 and power > 0 else 99.0
            name = use.constant.name
            stored = self.graph.add_constant(f"{name}_q8", np.ascontiguousarray(integers.T))
            self.weights[key] = (stored, self.graph.add_constant(f"{name}_scale", scales), sqnr)
        return self.weights[key]


def _rounded(matrix: Array, isa: str) -> tuple[Array, Array]:
    if isa == "native":
        scales = clipped_scales(matrix, LEVELS)
        return round_nearest(matrix, scales, LEVELS), scales
    scales = clipped_pair_scales(matrix, LEVELS, Pairs())
    return round_pairs(matrix, scales, LEVELS, Pairs()), scales


def _refusal(use: WeightUse, shapes: Shapes) -> str:
    """Why a product keeps float; empty when it does not."""
    node, constant = use.node, use.constant
    if constant.dtype != np.dtype(np.float32):
        return f"its weight is {constant.dtype}, not float32"
    if use.weight.port != 1 or len(constant.shape) != 2:
        return "its weight is not a two-dimensional right side"
    if constant.size < LEAST_ELEMENTS:
        return f"its weight has {constant.size} elements, too few to gain"
    if node.attrs.get("transA", 0):
        return "its activation is transposed"
    if node.op == "Gemm" and node.input(2) is not None and node.constant(2) is None:
        return "its bias is computed"
    if shapes.dtype(node.inputs[0]) not in (None, np.dtype(np.float32)):
        return "its activation is not float32"
    return "" if np.isfinite(constant.values).all() else "its weight holds NaN or infinity"
