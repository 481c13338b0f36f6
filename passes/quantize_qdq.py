"""Static 8-bit quantization: which nodes run on integers, with which ranges, written as Q and DQ nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxcomp.errors import DataError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import CostModel, Guarantee, Need, Outcome, Pass, PassContext, SampleSource, option
from onnxcomp.manager.raising import raise_opset
from onnxcomp.ops.facts import Operators, Weight
from onnxcomp.passes.qdq import dense, parts, proof, refine, regions, sharing, weights
from onnxcomp.passes.qdq.choice import Choice, Chooser, Planned
from onnxcomp.passes.qdq.coarse import Coarsener
from onnxcomp.passes.qdq.ranges import Grid, Rule
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.trials import Trials, write
from onnxcomp.passes.qdq.weights import Layer
from onnxcomp.runtime import blas
from onnxcomp.runtime.activations import Activation, collect
from onnxcomp.runtime.closeness import rows_of
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

    placement: Literal["measured", "table"] = option(
        "measured",
        "integers where they are faster on this machine (where times are known), or wherever a kernel exists",
    )
    min_sqnr: float = option(
        20.0, "dB that the outputs keep before refinement: layers that cost most stay float; 0 lets all run on integers"
    )

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
        self.ops: dict[Node, str] = {}
        self.rule = Rule(options.activations, target.levels, target.symmetric, options.percentile)

    def run(self) -> Outcome:
        wanted = self.options.selects(self.graph)
        if self._pointless():
            return self.outcome
        shapes = self._shapes()
        accepted, refused = regions.eligible(self.graph, shapes, self.target, self.context.operators, wanted)
        layers: dict[Node, Layer] = {}
        self.ops = {node: node.op for node in (*accepted, *refused)}
        if accepted:
            self.outcome.notes += raise_opset(self.graph, self.target.opset, self.context)
            shapes, joined = self._joined(shapes, accepted)
            study = self._study(shapes, accepted)
            choice = self._choose(study)
            refused |= choice.refused | study.barred
            layers = choice.layers
            self.outcome.notes += choice.notes
            if layers:
                self._write(shapes, choice, layers)
                self._tell_fences(choice.plan)
                if self.target.separate:
                    self._separate(layers)
            dense.undo(self.graph, [item for item in joined if item.node not in layers])
        self._report(layers, refused)
        return self.outcome

    def _joined(self, shapes: Shapes, accepted: dict[Node, Weight]) -> tuple[Shapes, list[dense.Joined]]:
        """Products in the form that ONNX Runtime gives them before it looks for integer kernels."""
        joined = dense.join(self.graph, list(accepted)) if self.target.joins_bias else []
        for item in joined:
            accepted[item.node] = next(iter(self.context.operators.facts(item.node).weights(item.node)))
        return self._shapes() if joined else shapes, joined

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

    def _study(self, shapes: Shapes, accepted: dict[Node, Weight]) -> _Study:
        """Statistics of every tensor that may be quantized, streamed over the samples."""
        study = _Study(self.graph, self.target, self.context.operators, shapes, accepted, self.rule)
        study.wide = self._costs() is not None
        names = [t.name for t in study.plan().tensors]  # any of them may come from a float node in the end
        study.seen = collect(
            self.graph,
            names,
            self.samples,
            threads=self.context.threads,
            budget_bytes=self.context.memory.activations,
            progress=self.context.progress,
        )
        for tensor, why in study.settle().items():
            self.outcome.skip(tensor.name, f"kept float: {why}")
        return study

    def _costs(self) -> CostModel | None:
        return self.context.costs if self.options.placement == "measured" and self.target.name == "cpu" else None

    def _choose(self, study: _Study) -> Choice:
        """A placement that ONNX Runtime runs as it says; what it would run otherwise is barred, and chosen anew."""
        threads = self.context.threads
        held = refine.few(self.graph, self.samples, study.shapes)
        feeds = refine.judged(self.samples, batch=rows_of(held[0]))
        native = self.options.isa == "native"
        trials = Trials(self.graph, self.target, study.shapes, feeds, threads, native=native)
        while True:
            full, layers = self._proven(study, trials)
            if not layers:
                return Choice(*full, refused=dict(full[0].refused))
            choice = Chooser(
                trials,
                self.context.operators,
                full,
                layers,
                study.planned,
                coarsener=Coarsener(
                    self.graph,
                    self.target,
                    lambda node, grids, shared: self._layer(node, study.accepted[node], grids, shared=shared),
                    lambda plan, moved: self._again(study, plan, moved),
                ),
                costs=self._costs(),
                least_db=self.options.min_sqnr,
                threads=threads,
                progress=self.context.progress,
            ).choose()
            if not self._barred(study, trials, choice.plan, choice.grids, choice.layers):
                choice.refused = full[0].refused | choice.refused
                return choice

    def _proven(self, study: _Study, trials: Trials) -> tuple[Planned, dict[Node, Layer]]:
        """Everything that can run on integers and really does, and its layers."""
        while True:
            plan, grids = study.planned()
            layers = {node: self._layer(node, weight, grids) for node, weight in plan.weighted.items()}
            if not layers or not self._barred(study, trials, plan, grids, layers):
                return (plan, grids), layers

    def _barred(
        self, study: _Study, trials: Trials, plan: Plan, grids: dict[Variable, Grid], layers: dict[Node, Layer]
    ) -> bool:
        """Whether parts of a plan do not run as it says; the study knows of them from now on."""
        if not self.target.runs_here or not plan.weighted:
            return False
        found = proof.faults(
            trials.written(plan, grids, layers),
            plan,
            self.target,
            trials.feeds[0],
            saturates=self.options.isa == "native",
            threads=self.context.threads,
        )
        return study.learn(found)

    def _again(
        self, study: _Study, plan: Plan, moved: Sequence[Variable]
    ) -> tuple[dict[Variable, Grid], Callable[[], None]]:
        """The grids of a plan after the values of some tensors changed, and what takes that back."""
        seen, chosen = dict(study.seen), dict(study.chosen)
        names = [tensor.name for tensor in moved]
        study.seen |= collect(self.graph, names, self.samples, threads=self.context.threads)
        for tensor in moved:
            study.chosen.pop(tensor, None)

        def undo() -> None:
            study.seen, study.chosen = seen, chosen

        return sharing.grids(plan, self.target, self.rule, study.seen, study.chosen)[0], undo

    def _layer(self, node: Node, weight: Weight, grids: Mapping[Variable, Grid], *, shared: bool = False) -> Layer:
        port = (self.target.kernels[node.op].ports or (0,))[0]
        return weights.quantized(node, weight, self.options.isa, grids[node.inputs[port]].scale, shared=shared)

    def _write(self, shapes: Shapes, choice: Choice, layers: dict[Node, Layer]) -> None:
        options, exact = self.options, self.graph.clone()
        wanted = refine.aims(self.graph, layers, shapes)
        if options.bias_correction:
            for layer in layers.values():
                layer.give_bias()
        written = write(self.graph, self.target, choice.plan, choice.grids, layers)
        if not options.bias_correction and options.rounding == "nearest":
            return
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
                memory=self.context.memory.staged,
                progress=self.context.progress,
            )

    def _separate(self, layers: dict[Node, Layer]) -> None:
        if found := parts.separate(self.graph, layers, self._shapes()):
            names = ", ".join(node.name for node, _ in found[:2]) + (" and others" if len(found) > 2 else "")
            self.outcome.notes.append(
                f"{len(found)} products are cut into parts right behind and got a product for each part, or "
                f"{self.target.name} would multiply in float: {names}"
            )

    def _tell_fences(self, plan: Plan) -> None:
        kept = sorted(t.producer.name for t in plan.read if t.name in plan.fenced and t.producer is not None)
        if kept:
            names = ", ".join(kept[:2]) + (" and others" if len(kept) > 2 else "")
            self.outcome.notes.append(
                f"{len(kept)} float nodes have a Sum of one behind them, or ONNX Runtime would run them on integers "
                f"unasked, with other results: {names}"
            )

    def _report(self, layers: dict[Node, Layer], refused: dict[Node, str]) -> None:
        for node, layer in layers.items():
            self.outcome.change(node, f"int8 weights ({layer.own_sqnr_db:.1f} dB)")
        for node, why in refused.items():
            self.outcome.skip(node, why)
        done = Counter(self.ops[node] for node in layers)
        total = done + Counter(self.ops.get(node) or node.op for node in refused)
        kept = Counter(why.partition(":")[0] for why in refused.values())
        words = [f"{done[op]} of {count} {op}" for op, count in total.items()]
        text = ", ".join(words) + " quantized" if words else "no operator with an integer kernel and a weight"
        if kept:
            text += f"; {sum(kept.values())} kept float: " + ", ".join(f"{n} {why}" for why, n in kept.most_common())
        self.outcome.summary = text
        self.outcome.metrics["quantized_layers"] = float(len(layers))


class _Study:
    """What is known of the tensors, and the plans that follow from it.

    Attributes:
        wide: whether kernels join that the target's table leaves out by default.
        seen: statistics by tensor name.
        chosen: the grid of each tensor by itself.
        banned: tensors without a usable range.
        barred: nodes that ONNX Runtime does not run as a plan says, with the reason.
        fenced: names of tensors that no Q may read directly.
    """

    def __init__(
        self,
        graph: Graph,
        target: Target,
        operators: Operators,
        shapes: Shapes,
        accepted: dict[Node, Weight],
        rule: Rule,
    ) -> None:
        self.graph, self.target, self.operators = graph, target, operators
        self.shapes, self.accepted, self.rule = shapes, accepted, rule
        self.wide = False
        self.seen: dict[str, Activation] = {}
        self.chosen: dict[Variable, Grid] = {}
        self.banned: dict[Variable, str] = {}
        self.barred: dict[Node, str] = {}
        self.fenced: set[str] = set()

    def learn(self, found: proof.Faults) -> bool:
        """Leave nodes in float from now on, and keep them apart from integers; False where nothing of it is new."""
        new = any(node not in self.barred for node in found.barred) or not found.fenced <= self.fenced
        self.barred |= found.barred
        self.fenced |= found.fenced
        self.accepted = {node: weight for node, weight in self.accepted.items() if node not in found.barred}
        return new

    def plan(self, chosen: Iterable[Node] | None = None) -> Plan:
        """The plan with some of the nodes; with all that can be when None."""
        nodes = None if chosen is None else set(chosen)
        weighted = {n: w for n, w in self.accepted.items() if nodes is None or n in nodes}
        others = None if nodes is None else nodes - set(weighted)
        return regions.plan(
            self.graph,
            self.target,
            self.operators,
            self.shapes,
            weighted,
            chosen=others,
            wide=self.wide,
            float_tensors=self.banned,
            barred=self.barred,
            fenced=self.fenced,
        )

    def planned(self, chosen: Iterable[Node] | None = None) -> Planned:
        """The plan with some of the nodes, and the grid of each of its tensors."""
        plan = self.plan(chosen)
        return plan, sharing.grids(plan, self.target, self.rule, self.seen, self.chosen)[0]

    def settle(self) -> dict[Variable, str]:
        """Ban tensors until every one that is left has a usable range; returns the reasons."""
        while bad := sharing.grids(self.plan(), self.target, self.rule, self.seen, self.chosen)[1]:
            self.banned |= bad
        return self.banned
