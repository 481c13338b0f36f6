"""What does one run of static quantization do? Statistics, placement, integers written, then refined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from onnxcomp.errors import DataError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.clone import clone
from onnxcomp.graph.ir import Constant, Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.manager import ranges
from onnxcomp.manager.base import CostModel, Outcome, PassContext, SampleSource
from onnxcomp.manager.raising import raise_opset
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.qdq import dense, packing, parts, proof, refine, regions, sharing, weights
from onnxcomp.passes.qdq.choice import Choice, Chooser, Planned
from onnxcomp.passes.qdq.coarse import Coarsener
from onnxcomp.passes.qdq.emit import Written
from onnxcomp.passes.qdq.learned import Learned, mark
from onnxcomp.passes.qdq.ranges import Grid, Method, Rule
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.study import Study
from onnxcomp.passes.qdq.trials import Trials, moved, write
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime import blas
from onnxcomp.runtime.activations import collect
from onnxcomp.runtime.closeness import rows_of
from onnxcomp.runtime.reference import Reference
from onnxcomp.targets.base import Target

if TYPE_CHECKING:
    from onnxcomp.passes.quantize_qdq import QuantizeQdq

QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)


TRIED: tuple[Method, ...] = ("mse", "l3")  # where activations=auto


class Quantizer:
    """One run of the pass on one graph.

    Attributes:
        outcome: what was done and left, as far as it got.
        shapes: of one sample, once `prepare` has run.
        study: statistics of what may be quantized; None where nothing may be.
        refused: nodes that keep float whatever is chosen, with the reason.
        joined: products that took in the bias added behind them.
        narrow: weights of few bits.
        learned: what holds for another run on a copy of the graph.
    """

    def __init__(
        self,
        options: QuantizeQdq,
        graph: Graph,
        context: PassContext,
        samples: SampleSource,
        target: Target,
        learned: Learned | None = None,
    ) -> None:
        self.options, self.graph, self.context, self.samples, self.target = options, graph, context, samples, target
        self.outcome = Outcome()
        self.ops: dict[Node, str] = {}
        self.shapes: Shapes
        self.study: Study | None = None
        self.refused: dict[Node, str] = {}
        self.joined: list[dense.Joined] = []
        self.narrow: set[Constant] = set()
        self.learned = learned or Learned()
        method = self.learned.method or (TRIED[0] if options.activations == "auto" else options.activations)
        self.rule = Rule(method, target.levels, target.symmetric, options.percentile)

    def run(self) -> Outcome:
        """Quantize in place what the pass's own rules choose."""
        layers: dict[Node, Integers] = {}
        if self.pointless():
            return self.outcome
        self.prepare(self.options.selects(self.graph))
        if self.study is not None:
            choice = self._choose(self.study)
            self.refused |= choice.refused | self.study.barred
            layers = choice.layers
            self.outcome.notes += choice.notes
            if layers:
                self.finish(self.graph, self.shapes, choice.plan, choice.grids, layers)
                self._tell_fences(choice.plan)
                if self.target.separate:
                    self._separate(layers)
            dense.undo(self.graph, [item for item in self.joined if item.node not in layers])
        self._report(layers, self.refused)
        return self.outcome

    def prepare(self, wanted: Callable[[Node], bool]) -> None:
        """Bring the graph into the form in which integers can stand, and look at its activations."""
        self.shapes = self._shapes()
        accepted, self.refused = regions.eligible(self.graph, self.shapes, self.target, self.context.operators, wanted)
        self.ops = {node: node.op for node in (*accepted, *self.refused)}
        if accepted:
            self.outcome.notes += raise_opset(self.graph, self.target.opset, self.context)
            self.shapes, self.joined = self._joined(self._shapes(), accepted)
            self.study = self._studied(self.shapes, accepted)
            if self.options.bits < 8:
                self._narrow(self.study)

    def _joined(self, shapes: Shapes, accepted: dict[Node, Weight]) -> tuple[Shapes, list[dense.Joined]]:
        """Products in the form that ONNX Runtime gives them before it looks for integer kernels."""
        joined = dense.join(self.graph, list(accepted)) if self.target.joins_bias else []
        for item in joined:
            accepted[item.node] = next(iter(self.context.operators.facts(item.node).weights(item.node)))
        return self._shapes() if joined else shapes, joined

    def pointless(self) -> bool:
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

    def _shapes(self, graph: Graph | None = None) -> Shapes:
        graph = self.graph if graph is None else graph
        given = self.context.sample_shapes or {k: v.shape for k, v in next(iter(self.samples.batches(1))).items()}
        return shape_tools.infer(graph, shape_tools.one_sample(graph, given))

    def _studied(self, shapes: Shapes, accepted: dict[Node, Weight]) -> Study:
        """Statistics of every tensor that may be quantized, streamed over the samples."""
        study = Study(self.graph, self.target, self.context.operators, shapes, accepted, self.rule)
        study.wide = self._costs() is not None
        tensors = study.plan().tensors  # any of them may come from a float node in the end
        if self.options.ranges:
            self._take_ranges(study)
        missing = [t.name for t in tensors if t.name not in self.learned.seen]
        if missing:
            self.learned.seen |= collect(
                self.graph,
                missing,
                self.samples,
                threads=self.context.threads,
                budget_bytes=self.context.memory.activations,
                progress=self.context.progress,
            )
        study.seen = dict(self.learned.seen)
        known = {tensor: self.learned.chosen[tensor.name] for tensor in tensors if tensor.name in self.learned.chosen}
        study.chosen = known | study.chosen
        for tensor, why in study.settle().items():
            self.outcome.skip(tensor.name, f"kept float: {why}")
        self.learned.chosen |= {tensor.name: grid for tensor, grid in study.chosen.items()}
        return study

    def _take_ranges(self, study: Study) -> None:
        """Ranges that another tool found go before those of the samples.

        Raises:
            DataError: the file cannot be used, or names no tensor of the model.
        """
        given = ranges.read(self.options.ranges)
        met = [tensor for tensor in study.plan().tensors if tensor.name in given]
        if not met:
            raise DataError(
                "none of the ranges is of a tensor that would be quantized",
                where=f"file {self.options.ranges}",
                do="give ranges of this model: names of tensors must be equal",
            )
        study.chosen |= {tensor: self.rule.grid(*given[tensor.name]) for tensor in met}
        study.given = set(met)
        self.outcome.notes.append(
            f"{len(met)} of {len(study.plan().tensors)} activation ranges come from {self.options.ranges}; "
            "the others from the samples, weights are rounded anew"
        )

    @property
    def _isa(self) -> weights.Isa:
        return "portable" if self.target.portable(self.options.isa) else "native"

    def _costs(self) -> CostModel | None:
        return self.context.costs if self.options.placement == "measured" and self.target.timed_here else None

    def trials(self) -> Trials:
        """What plans really give, on a few samples."""
        if self.learned.reference is None:
            self.learned.reference = self._reference()
        return Trials(self.graph, self.target, self.shapes, self.learned.reference)

    def _reference(self) -> Reference:
        """The graph's answers; where weights saturate on this processor, Q and DQ are run as they stand, in float."""
        held = refine.few(self.graph, self.samples, self.shapes, budget_bytes=self.context.memory.activations)
        sizes = [self.shapes.static(output) for output in self.graph.outputs]
        answer = sum(4 * prod(size) for size in sizes if size is not None)
        feeds = refine.judged(self.samples, rows_of(held[0]), answer, self.context.memory.rows)
        return self.context.reference(self.graph, feeds, optimize=self.target.portable(self.options.isa))

    def _choose(self, study: Study) -> Choice:
        """A placement that ONNX Runtime runs as it says; what it would run otherwise is barred, and chosen anew."""
        threads = self.context.threads
        trials = self.trials()
        while True:
            full, layers = self.proven(study, trials)
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
                learned=self.learned,
                faulty=lambda plan, grids, layers: self.barred(study, trials, plan, grids, layers),
                least_db=self.options.min_sqnr if self.options.bits == 8 else 0.0,
                threads=threads,
                progress=self.context.progress,
            ).choose()
            if not self.barred(study, trials, choice.plan, choice.grids, choice.layers):
                choice.refused = full[0].refused | choice.refused
                return choice

    def proven(self, study: Study, trials: Trials) -> tuple[Planned, dict[Node, Integers]]:
        """Everything that can run on integers and really does, and its layers, in the ranges that keep most."""
        found = self._proven(study, trials)
        if self.options.activations != "auto" or self.learned.method or not found[1]:
            return found
        changed = self._choose_rule(study, trials, *found)
        self.learned.method = study.rule.method
        return self._proven(study, trials) if changed else found

    def _choose_rule(self, study: Study, trials: Trials, planned: Planned, layers: dict[Node, Integers]) -> bool:
        """Let ranges be chosen so that everything on integers comes nearest to the float model; whether that is new."""
        plan, grids = planned
        first, best = study.rule, self.learned.keeps_db(trials, plan, grids, layers)
        for method in TRIED[1:]:
            rule = replace(first, method=method)
            other, chosen = study.by(rule, plan)
            if not other:
                continue
            rescaled = {node: self._layer(node, weight, other) for node, weight in plan.weighted.items()}
            reached = self.learned.keeps_db(trials, plan, other, rescaled)
            if reached > best:
                best, study.rule, study.chosen = reached, rule, chosen
        self.learned.chosen = {tensor.name: grid for tensor, grid in study.chosen.items()}
        return study.rule is not first

    def _proven(self, study: Study, trials: Trials) -> tuple[Planned, dict[Node, Integers]]:
        while True:
            plan, grids = study.planned()
            layers = {node: self._layer(node, weight, grids) for node, weight in plan.weighted.items()}
            if not layers or not self.barred(study, trials, plan, grids, layers):
                return (plan, grids), layers

    def barred(
        self, study: Study, trials: Trials, plan: Plan, grids: dict[Variable, Grid], layers: dict[Node, Integers]
    ) -> bool:
        """Whether parts of a plan do not run as it says; the study knows of them from now on."""
        if not self.target.runs_here or not plan.weighted:
            return False

        def prove() -> proof.Faults:
            return proof.faults(
                trials.written(plan, grids, layers),
                plan,
                self.target,
                trials.feeds[0],
                saturates=not self.target.portable(self.options.isa),
                sessions=self.context.sessions,
            )

        return study.learn(self.learned.faults(mark(plan, grids, layers), plan, prove))

    def _again(
        self, study: Study, plan: Plan, moved: Sequence[Variable]
    ) -> tuple[dict[Variable, Grid], Callable[[], None]]:
        """The grids of a plan after the values of some tensors changed, and what takes that back."""
        seen, chosen = dict(study.seen), dict(study.chosen)
        names = [tensor.name for tensor in moved]
        study.seen |= collect(self.graph, names, self.samples, threads=self.context.threads)
        for tensor in moved:
            study.chosen.pop(tensor, None)

        def undo() -> None:
            study.seen, study.chosen = seen, chosen

        return sharing.grids(plan, self.target, study.rule, study.seen, study.chosen)[0], undo

    def _layer(self, node: Node, weight: Weight, grids: Mapping[Variable, Grid], *, shared: bool = False) -> Integers:
        port = (self.target.kernels[node.op].ports or (0,))[0]
        levels = packing.LEVELS if node.constant(weight.port) in self.narrow else weights.LEVELS
        scale = grids[node.inputs[port]].scale
        return self.learned.layer(
            node,
            weight,
            (scale, shared, levels),
            lambda: weights.quantized(node, weight, self._isa, scale, shared=shared, levels=levels),
        )

    def _narrow(self, study: Study) -> None:
        """Choose the weights that take few bits: all but the small, and those that cost the outputs most."""
        found, why = packing.narrow(self.graph, study.accepted, self.context, self.target, self.options)
        self.narrow = found
        if why:
            self.outcome.notes.append(why)

    def written(self, plan: Plan, grids: dict[Variable, Grid], layers: dict[Node, Integers]) -> Graph:
        """A copy of the graph with a plan written into it, weights and biases refined."""
        copied = clone(self.graph)
        self.finish(copied.graph, self._shapes(copied.graph), *moved(copied, plan, grids, layers))
        return copied.graph

    def finish(
        self,
        graph: Graph,
        shapes: Shapes,
        plan: Plan,
        grids: dict[Variable, Grid],
        layers: dict[Node, Integers],
    ) -> None:
        """Write a plan into the graph whose nodes it names, and let weights and biases make good what they can."""
        options, exact = self.options, graph.clone()
        wanted = refine.aims(graph, layers, shapes)
        if options.bias_correction:
            for layer in layers.values():
                layer.give_bias()
        written = write(graph, self.target, plan, grids, layers)
        if options.bias_correction or options.rounding != "nearest":
            done = set(self.learned.refine(layers, written))
            left = {node: layer for node, layer in layers.items() if node not in done}
            if left:
                self._refine(graph, exact, shapes, {node: wanted[node] for node in left}, left, written)
            self.learned.refined |= {node.name: replace(layer) for node, layer in left.items()}
        packing.pack(graph, layers)

    def _refine(
        self,
        graph: Graph,
        exact: Graph,
        shapes: Shapes,
        wanted: dict[Node, refine.Aim],
        layers: dict[Node, Integers],
        written: Written,
    ) -> None:
        options = self.options
        with blas.limited():
            refine.refine(
                graph,
                exact,
                wanted,
                layers,
                written,
                refine.few(exact, self.samples, shapes, budget_bytes=self.context.memory.activations),
                compensate=options.rounding == "compensated",
                correct=options.bias_correction,
                threads=self.context.threads,
                memory=self.context.memory.staged,
                progress=self.context.progress,
            )

    def _separate(self, layers: dict[Node, Integers]) -> None:
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

    def _report(self, layers: dict[Node, Integers], refused: dict[Node, str]) -> None:
        for node, layer in layers.items():
            stored = 8 if layer.levels == weights.LEVELS else self.options.bits
            self.outcome.change(node, f"int{stored} weights ({layer.own_sqnr_db:.1f} dB)")
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
