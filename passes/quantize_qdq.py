"""Static 8-bit quantization: which nodes run on integers, with which ranges, written as Q and DQ nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxcomp.errors import DataError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Graph, Node, Variable
from onnxcomp.graph.ops.facts import Weight
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, SampleSource, option
from onnxcomp.passes.qdq import emit, refine, regions, sharing, weights
from onnxcomp.passes.qdq.ranges import Grid, Rule
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.weights import Layer
from onnxcomp.runtime import blas
from onnxcomp.runtime.activations import collect
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find

QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)


@dataclass(frozen=True)
class QuantizeQdq(Pass):
    """Convolutions and matrix products on 8-bit integers, activations in ranges measured on calibration data.

    Weights: symmetric int8, one scale a channel. Activations: unsigned with a zero point on CPU, signed with zero
    point 0 on TensorRT, one scale a tensor, shared through operators that only move data. Written as QuantizeLinear
    and DequantizeLinear where the target fuses them into integer kernels (B. Jacob et al., CVPR 2018).
    """

    name: ClassVar[str] = "quantize-qdq"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    activations: Literal["minmax", "percentile", "entropy", "mse"] = option("mse", "how activation ranges are chosen")
    percentile: float = option(
        99.999, "share of values inside the range, for activations=percentile", above=50, maximum=100
    )
    isa: Literal["portable", "native"] = option(
        "portable", "weights safe on every x86, or best on CPUs with VNNI (and ARM, GPUs)"
    )

    rounding: Literal["compensated", "nearest"] = option(
        "compensated", "weights whose rounding errors make good for one another, or each to the nearest level"
    )
    bias_correction: bool = option(True, "let biases take up the error of each layer's mean output")

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Quantize in place.

        Raises:
            DataError: there is no calibration data.
            UsageError: a glob matches nothing.
            ModelError: ONNX Runtime cannot run the model.
        """
        samples = context.calibration
        if samples is None or not len(samples):
            raise DataError("quantize-qdq needs calibration data", where="pass quantize-qdq", do="give it with --data")
        return _Quantizer(self, graph, context, samples, find(context.target)).run()


class _Quantizer:
    """One run of the pass."""

    def __init__(
        self, options: QuantizeQdq, graph: Graph, context: PassContext, samples: SampleSource, target: Target
    ) -> None:
        self.options, self.graph, self.context, self.samples, self.target = options, graph, context, samples, target
        self.outcome = Outcome()
        self.rule = Rule(options.activations, target.levels, target.symmetric, options.percentile)

    def run(self) -> Outcome:
        wanted = self.options.selects(self.graph)
        if self._pointless():
            return self.outcome
        shapes = self._shapes()
        accepted, refused = regions.eligible(self.graph, shapes, self.target, self.context.operators, wanted)
        layers: dict[Node, Layer] = {}
        if accepted:
            self.outcome.notes += raise_opset(self.graph, self.target.opset)
            plan, grids = self._measured(shapes, accepted)
            refused |= plan.refused
            layers = {node: self._layer(node, weight, grids) for node, weight in plan.weighted.items()}
            self._write(shapes, plan, grids, layers)
        self._report(layers, refused)
        return self.outcome

    def _pointless(self) -> bool:
        """Whether there is nothing to do from the start; says why."""
        name = self.graph.envelope.name or "model"
        found = Counter(node.op for node in self.graph.walk() if node.op in QUANTIZED_OPS)
        if found:
            op, count = found.most_common(1)[0]
            self.outcome.skip(name, f"it is quantized already: {count} {op}")
            self.outcome.summary = "nothing quantized: the model is quantized already"
        elif self.target.why_not:
            self.outcome.skip(name, self.target.why_not)
            self.outcome.summary = f"nothing quantized: {self.target.why_not}"
        return bool(self.outcome.summary)

    def _shapes(self) -> Shapes:
        given = self.context.sample_shapes or {k: v.shape for k, v in next(iter(self.samples.batches(1))).items()}
        return shape_tools.infer(self.graph, shape_tools.one_sample(self.graph, given))

    def _measured(self, shapes: Shapes, accepted: dict[Node, Weight]) -> tuple[Plan, dict[Variable, Grid]]:
        """The plan, and the grid of each of its tensors from statistics streamed over the samples."""
        plan = self._plan(shapes, accepted, ())
        names = [t.name for t in sharing.sources(plan)]
        seen = collect(self.graph, names, self.samples, threads=self.context.threads, progress=self.context.progress)
        banned: dict[Variable, str] = {}
        while True:
            grids, bad = sharing.grids(plan, self.target, self.rule, seen, {})
            if not bad:
                return plan, grids
            banned |= bad
            for tensor, why in bad.items():
                self.outcome.skip(tensor.name, f"kept float: {why}")
            plan = self._plan(shapes, accepted, banned)

    def _plan(self, shapes: Shapes, accepted: dict[Node, Weight], banned: Iterable[Variable]) -> Plan:
        operators = self.context.operators
        return regions.plan(self.graph, self.target, operators, shapes, accepted, float_tensors=banned)

    def _layer(self, node: Node, weight: Weight, grids: dict[Variable, Grid]) -> Layer:
        port = (self.target.kernels[node.op].ports or (0,))[0]
        return weights.quantized(node, weight, self.options.isa, grids[node.inputs[port]].scale)

    def _write(self, shapes: Shapes, plan: Plan, grids: dict[Variable, Grid], layers: dict[Node, Layer]) -> None:
        options, exact = self.options, self.graph.clone()
        wanted = refine.aims(layers, shapes)
        if options.bias_correction:
            for layer in layers.values():
                layer.give_bias()
        written = emit.Writer(self.graph, self.target, plan, grids, layers).write()
        self.graph.sort()
        if options.bias_correction or options.rounding == "compensated":
            with blas.limited():
                refine.refine(
                    self.graph,
                    exact,
                    wanted,
                    layers,
                    written,
                    refine.few(exact, self.samples, shapes),
                    compensate=options.rounding == "compensated",
                    correct=options.bias_correction,
                    threads=self.context.threads,
                    progress=self.context.progress,
                )

    def _report(self, layers: dict[Node, Layer], refused: dict[Node, str]) -> None:
        for node, layer in layers.items():
            self.outcome.change(node, f"int8 weights ({layer.own_sqnr_db:.1f} dB)")
        for node, why in refused.items():
            self.outcome.skip(node, why)
        done = Counter(node.op for node in layers)
        total = done + Counter(node.op for node in refused)
        kept = Counter(refused.values())
        parts = [f"{done[op]} of {count} {op}" for op, count in total.items()]
        text = ", ".join(parts) + " quantized" if parts else "no operator with an integer kernel and a weight"
        if kept:
            text += f"; {sum(kept.values())} kept float: " + ", ".join(f"{n} {why}" for why, n in kept.most_common())
        self.outcome.summary = text
        self.outcome.metrics["quantized_layers"] = float(len(layers))
