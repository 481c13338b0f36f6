"""How is precision decided on one graph? Forms tried, priced and measured; assigned; measured whole; repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import ModelError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.io import total_bytes
from onnxcomp.graph.ir import Graph, Node
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import CostModel, Outcome, PassContext, SampleSource
from onnxcomp.manager.plan import Entry, Plan
from onnxcomp.passes.assigning.allocate import Allocator, Assignment, Goal, Limits, Option, Problem
from onnxcomp.passes.precision import noise
from onnxcomp.passes.precision.forms import FLOAT, FORMS, STATIC, WRITTEN, Tried, tried
from onnxcomp.passes.precision.judging import Judge, Verdict, shared_out
from onnxcomp.passes.precision.layers import Layer, layers_of
from onnxcomp.passes.precision.prices import Prices, Static, bytes_of, prices, problem
from onnxcomp.passes.qdq import placement
from onnxcomp.passes.qdq.quantizer import Quantizer
from onnxcomp.passes.qdq.sensitivity import Noise, worst
from onnxcomp.passes.qdq.trials import Trials
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.passes.quantize_qdq import QuantizeQdq
from onnxcomp.runtime.closeness import EXACT_DB
from onnxcomp.targets.table import find

if TYPE_CHECKING:
    from onnxcomp.passes.mixed_precision import MixedPrecision

FEEDS = 3  # on which errors of single layers are measured
TOLL = 1.5  # conversions cost more than their kernels, since layouts change with them: so much at first
MOST_TOLL = 8.0
SLOWER = 0.03  # of the float model's time: what a whole may take beyond what was predicted before conversions cost more
WRITES = 3  # whole models that are written and measured, where the first does not fit
MORE_WRITES = 6  # as many at most, while none keeps the budget
CLOSE_DB = 0.7  # a result that keeps so little more than it must is good enough
STRICTER = 0.9  # of the noise that would just do: what is aimed at after a miss
BYTES_WORTH = 0.03  # of the model's time: what all of its bytes are worth where time is to be small
ROUNDING = 1e-9
GOALS: dict[str, Goal] = {"latency": "time", "macs": "time", "size": "bytes", "accuracy": "noise"}


@dataclass
class Known:
    """All that decides, by layer.

    Attributes:
        layers: that have a choice.
        refused: nodes that have none, with the reason.
        tries: by form, the graph that has it everywhere.
        reasons: by layer and form, why it cannot take it.
        static: nodes that may be integers of a static scale; None where none may.
    """

    layers: list[Layer]
    refused: dict[str, str]
    tries: dict[str, Tried] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    noise: dict[str, dict[str, Noise]] = field(default_factory=dict)
    prices: Prices = field(default_factory=lambda: Prices(0.0))
    static: Static | None = None
    integers: dict[str, Integers] = field(default_factory=dict)

    def refuse(self, layer: str, form: str, why: str) -> None:
        """Record why a layer cannot take a form."""
        self.reasons.setdefault(layer, {})[form] = why


@dataclass
class Result:
    """A graph that was written and measured.

    Attributes:
        time: share of the float model's; None where nothing is measured.
        why: what it misses; empty where it holds.
    """

    assignment: Assignment
    graph: Graph
    verdict: Verdict
    bytes: int
    time: float | None
    why: str = ""


class Decider:
    """Decides for one graph.

    Args:
        graph: what the pass was given; stays as it is.
        samples: all that may be looked at; some are kept back to judge on.
    """

    def __init__(self, options: MixedPrecision, graph: Graph, context: PassContext, samples: SampleSource) -> None:
        self.options = options
        self.outcome = Outcome()
        learn, judged, self.apart = shared_out(samples)
        self.learn = learn
        self.context = replace(context, calibration=learn)
        self.base = graph.clone()
        self.target = find(context.target)
        reference = graph if context.original is None or context.training is not None else context.original
        self.judge = Judge(reference, judged, context)
        self.before_bytes = total_bytes(reference)
        self.start = graph
        self.quantizer = Quantizer(QuantizeQdq(isa=options.isa), self.base, self.context, learn, self.target)
        self.trials: Trials | None = None
        self.toll = TOLL

    @property
    def costs(self) -> CostModel | None:
        """Times of this machine; none where it is not the target."""
        return self.context.costs if self.target.timed_here else None

    # -- knowing -------------------------------------------------------------------------------------------------------

    def look(self, forms: Sequence[str], only: Mapping[str, str] | None = None) -> Known:
        """Find out what every form costs.

        Args:
            forms: that may be taken.
            only: the form of each layer, where a plan says: nothing else is tried.
        """
        wanted = self.options.selects(self.base)
        layers, refused = layers_of(self.base, self.context.operators)
        names = {node.name: node for node in self.base.nodes}
        for layer in list(layers):
            if not all(wanted(names[name]) for name in layer.nodes):
                layers.remove(layer)
                refused[layer.name] = "not selected by include and exclude"
        known = Known(layers, refused)
        if STATIC in forms and not self.quantizer.pointless():
            self._prepare_static(known, only)
        for form in (name for name in WRITTEN if name in forms):
            some = layers if only is None else [layer for layer in layers if only[layer.name] == form]
            if not some:
                continue
            planned = only is not None  # who made the plan knew the times
            decoded = planned or self.options.objective != "latency"  # few bits decoded at load gain no time
            attempt = tried(
                self.base, some, FORMS[form], self.context, self.options.isa, decoded=decoded, measured=not planned
            )
            known.tries[form] = attempt
            for name, why in attempt.refused.items():
                known.refuse(name, form, why)
        return known

    def _prepare_static(self, known: Known, only: Mapping[str, str] | None) -> None:
        quantizer = self.quantizer
        owner = {node: layer.name for layer in known.layers for node in layer.nodes}
        single = {layer.name for layer in known.layers if len(layer.nodes) == len(layer.weights) == 1}
        names = {n for n, layer in owner.items() if layer in single and (only is None or only[layer] == STATIC)}
        quantizer.prepare(lambda node: node.name in names)
        for node, why in quantizer.refused.items():
            known.refuse(owner.get(node.name, str(node.name)), STATIC, why)
        for name in set(owner.values()) - single:
            known.refuse(name, STATIC, "several weights or nodes belong together")
        if quantizer.study is None:
            return
        today = {layer.name: layer for layer in layers_of(self.base, self.context.operators)[0]}
        known.layers[:] = [today[layer.name] for layer in known.layers]  # products may have got reshapes around them
        self.trials = quantizer.trials()
        (plan, grids), integers = quantizer.proven(quantizer.study, self.trials)
        for node, why in (*quantizer.study.barred.items(), *plan.refused.items()):
            known.refuse(owner.get(node.name, str(node.name)), STATIC, why)
        known.integers = {owner[node.name]: item for node, item in integers.items()}
        if not integers:
            return
        ends = {owner[n.name]: fold.outputs[0].name for n, fold in plan.folded.items() if n in plan.weighted}
        known.layers[:] = [
            replace(layer, writes=(ends[layer.name],)) if layer.name in ends else layer for layer in known.layers
        ]
        whole = self.trials.written(plan, grids, integers)
        if self.costs is None:
            times = placement.guessed(plan, quantizer.shapes, self.context.operators)
        else:
            exact, fast = self.costs.node_times_us(self.base), self.costs.node_times_us(whole)
            times = placement.measured(plan, quantizer.shapes, exact, fast, whole)
        between = placement.conversions(plan, self.target, self.base, times, self.toll)
        known.static = Static(plan, times, between, owner)
        self._grids = grids

    def price(self, known: Known) -> None:
        """Times and errors of every form, in place."""
        shapes = self._shapes()
        known.prices = prices(self.base, known.layers, known.tries, self.costs, shapes, self.context.operators)
        if known.static is not None:
            self._price_static(known)
        alone: dict[str, noise.Alone | noise.StaticAlone] = {}
        for form, attempt in known.tries.items():
            some = [layer for layer in known.layers if layer.name in attempt.regions]
            if some:
                alone[form] = noise.Alone(attempt.graph, some, self.context.sessions)
        if known.static is not None:
            owned = {node: layer for layer in known.layers for node in layer.nodes}
            alone[STATIC] = noise.StaticAlone(
                self.base,
                owned,
                self.target,
                known.static.plan,
                self._grids,
                list(known.integers.values()),
                self.context.sessions,
            )
        probe = noise.Probe(self.base, known.layers, self.context.sessions)
        feeds = self.trials.feeds[:FEEDS] if self.trials is not None else list(self.learn.batches(1))[:FEEDS]
        known.noise = noise.measured(probe, alone, feeds, self.context.progress)

    def _price_static(self, known: Known) -> None:
        assert known.static is not None
        times = known.static.times
        for node in known.static.plan.weighted:
            found = known.prices.layers[known.static.owner[node.name]]
            extra = times.exact[node] - found[FLOAT]  # the activation function that the range takes over
            for form in found:
                found[form] += extra if not FORMS[form].own_kernel or known.static.plan.folded.get(node) else 0.0
            found[FLOAT] = times.exact[node]
            found[STATIC] = times.integer[node]

    def _shapes(self) -> Shapes:
        given = self.context.sample_shapes or {k: v.shape for k, v in next(iter(self.learn.batches(1))).items()}
        return shape_tools.infer(self.base, shape_tools.one_sample(self.base, given))

    # -- assigning -----------------------------------------------------------------------------------------------------

    def problem(self, known: Known) -> Problem:
        """What the allocator is to solve."""
        shapes, operators = self._shapes(), self.context.operators
        nodes = {node.name: node for node in self.base.nodes}
        rows = {name: len(item.scales) for name, item in known.integers.items()}
        macs = {}
        if self.options.objective == "macs":
            macs = {
                layer.name: float(sum(operators.facts(nodes[n]).macs(nodes[n], shapes) for n in layer.nodes))
                for layer in known.layers
            }
        found = problem(
            known.layers,
            known.prices,
            lambda layer, form: bytes_of(layer, form, known.tries, rows.get(layer.name, 0)),
            known.noise,
            macs,
            known.static,
        )
        found.bytes = max(float(total_bytes(self.base) - sum(layer.bytes for layer in known.layers)), 0.0)
        start = sum(options[0].time_us for options in found.options.values()) + found.time_us
        found.worth = BYTES_WORTH * start / max(float(total_bytes(self.base)), 1.0)
        return found

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, known: Known, assignment: Assignment | Mapping[str, str]) -> tuple[Graph, Outcome]:
        """A copy of the graph with every layer in its form, and what the passes say that wrote it."""
        if isinstance(assignment, Assignment):
            forms, integers = self.forms(known, assignment), assignment.integers
        else:
            forms, integers = dict(assignment), None
        told = Outcome()
        static = {name for name, form in forms.items() if form == STATIC}
        graph = self._static(known, static, integers) if static else self.base.clone()
        for form in WRITTEN:
            nodes = [n for layer in known.layers if forms[layer.name] == form for n in layer.nodes]
            if not nodes:
                continue
            found = FORMS[form].writer(nodes, self.options.isa).run(graph, self.context)
            graph.sort()
            told.changes += found.changes
            told.notes += found.notes
        return graph, told

    def _static(self, known: Known, layers: set[str], integers: frozenset[Any] | None) -> Graph:
        """Integers in some layers, and in other nodes as assigned, or as the target's table joins them."""
        study, static = self.quantizer.study, known.static
        assert study is not None and static is not None and self.trials is not None
        tabled, integers = integers is None, integers or frozenset()
        while True:
            nodes: list[Node] = [node for node in static.plan.weighted if static.owner[node.name] in layers]
            others = [n for n in placement.units(static.plan) if n.name in integers]
            plan, grids = study.planned([*nodes, *others], tabled=tabled)
            found = {node: known.integers[static.owner[node.name]] for node in plan.weighted}
            if not self.quantizer.barred(study, self.trials, plan, grids, found):
                break
            for node, why in study.barred.items():
                known.refuse(static.owner.get(node.name, str(node.name)), STATIC, why)
        return self.quantizer.written(plan, grids, found)

    def forms(self, known: Known, assignment: Assignment) -> dict[str, str]:
        """The form of each layer."""
        options = self._problem.options
        return {layer.name: options[layer.name][assignment.choice[layer.name]].form for layer in known.layers}

    def options_of(self, layer: str) -> tuple[Option, ...]:
        """The forms that a layer may take, what it has now first."""
        return self._problem.options[layer]

    def gain(self, now: Option, form: Option) -> float:
        """What a form saves of what should get small, conversions around it aside."""
        size = now.bytes - form.bytes
        if GOALS[self.options.objective] == "bytes":
            return size
        return now.time_us - form.time_us + self._problem.worth * size

    # -- deciding ------------------------------------------------------------------------------------------------------

    def limits(self, allocator: Allocator) -> Limits:
        """What the options ask for, in the allocator's units."""
        options = self.options
        noise_most = 10 ** (-options.min_sqnr / 10) if options.min_sqnr > 0 else np.inf
        size = options.max_size * self.before_bytes if options.max_size else np.inf
        time = np.inf
        if options.min_speedup and options.objective != "macs":
            start = allocator.nearest("noise", Limits())
            time = start.time_us / options.min_speedup
        return Limits(float(time), float(size), float(noise_most))

    def decide(self, known: Known) -> Result | None:
        """The best result that keeps the budget on samples kept back; None where none does."""
        self._price_anew(known)
        goal, limits = GOALS[self.options.objective], self.limits(self.allocator)
        self.aims = limits
        best: Result | None = None
        seen: set[tuple[int, ...]] = set()
        aim, self.tried = limits, list[Result]()
        for turn in range(MORE_WRITES):
            if turn >= WRITES and best is not None:
                break
            assignment = self.allocator.nearest(goal, aim)
            key = tuple(assignment.choice.values())
            if key in seen:
                if best is not None or assignment.worst == 0:
                    break
                aim = replace(aim, noise=min(aim.noise, assignment.worst) * STRICTER / 2)
                continue
            seen.add(key)
            result = self._measured(known, assignment)
            self.tried.append(result)
            if not result.why and (best is None or self._better(result, best)):
                best = result
            dearer = self._dearer(known, result)
            if not result.why and self._used(result) and not dearer:
                break
            aim = self._next(aim, limits, result)
            if dearer:
                self.toll = dearer
                self._price_anew(known)
                if best is not None:
                    best = replace(best, assignment=self.allocator.priced(best.assignment))
        return best

    def _price_anew(self, known: Known) -> None:
        """Make an allocator for conversions of today's toll."""
        if known.static is not None:
            plan, times = known.static.plan, known.static.times
            between = placement.conversions(plan, self.target, self.base, times, self.toll)
            known.static = replace(known.static, conversions=between)
        self._problem = self.problem(known)
        self.allocator = Allocator(self._problem)

    def _dearer(self, known: Known, result: Result) -> float:
        """The toll at which what was measured would have been predicted; 0 where it took no longer than predicted.

        Kernels are priced one by one. What the runtime puts between them (changes of layout, activation functions that
        are fused no longer) shows in the time of the whole alone, and comes with conversions.
        """
        if result.time is None or known.static is None or self.options.objective == "macs":
            return 0.0
        start = sum(options[0].time_us for options in self._problem.options.values()) + self._problem.time_us
        beyond = result.time * start - result.assignment.time_us
        paid = known.static.paid(result.assignment.integers)
        if beyond <= SLOWER * start or paid <= 0 or self.toll >= MOST_TOLL:
            return 0.0
        return min(self.toll * (1 + beyond / paid), MOST_TOLL)

    def _measured(self, known: Known, assignment: Assignment) -> Result:
        try:
            graph, _ = self.write(known, assignment)
            verdict = self.judge.verdict(graph)
        except ModelError as error:
            worst = Verdict(-EXACT_DB, -EXACT_DB, 0)
            return Result(assignment, self.base, worst, 0, None, f"the runtime refuses it: {error.what}")
        time = None
        if self.costs is not None:
            time = self.costs.latency_ms(graph) / self.costs.latency_ms(self.start)
        result = Result(assignment, graph, verdict, total_bytes(graph), time)
        result.why = self._missed(result)
        return result

    def _missed(self, result: Result) -> str:
        options = self.options
        if options.min_sqnr and result.verdict.sure_db < options.min_sqnr:
            return (
                f"it keeps {result.verdict.sqnr_db:.1f} dB on {result.verdict.samples} samples kept back, "
                f"{result.verdict.sure_db:.1f} dB surely, and must keep {options.min_sqnr:g}"
            )
        if options.max_size and result.bytes > options.max_size * self.before_bytes:
            return f"it has {result.bytes / self.before_bytes:.1%} of the size"
        if options.min_speedup and result.time is not None and result.time * options.min_speedup > 1:
            return f"it takes {result.time:.2f} of the time of the float model it was given"
        if options.max_drop is not None and self.context.drop is not None:
            drop = self.context.drop(result.graph)
            if drop > options.max_drop + ROUNDING:
                return f"the metric falls by {drop:.4f}"
        return ""

    def _better(self, result: Result, other: Result) -> bool:
        goal = GOALS[self.options.objective]
        if goal == "time" and result.time is not None and other.time is not None:
            return result.time < other.time
        return result.assignment.cost(goal) < other.assignment.cost(goal)

    def _used(self, result: Result) -> bool:
        """Whether little is left of what may be given away."""
        if GOALS[self.options.objective] == "noise" or not self.options.min_sqnr:
            return True
        return result.verdict.sure_db - self.options.min_sqnr < CLOSE_DB or result.assignment.worst >= self._loosest

    @property
    def _loosest(self) -> float:
        return self.allocator.nearest(GOALS[self.options.objective], replace(self.aims, noise=np.inf)).worst * 0.999

    def _next(self, aim: Limits, limits: Limits, result: Result) -> Limits:
        """What to aim at next: errors and times as predicted, corrected by what was measured."""
        noise_aim, time_aim, size_aim = aim.noise, aim.time, aim.bytes
        if np.isfinite(limits.noise) and result.verdict.samples:
            kept = 10 ** (-result.verdict.sure_db / 10)
            predicted = max(result.assignment.worst, 1e-12)
            noise_aim = predicted * limits.noise / max(kept, 1e-12)
            noise_aim = min(max(noise_aim, predicted / 100), predicted * 100)
            if result.why:
                noise_aim = min(noise_aim, predicted) * STRICTER
        if np.isfinite(limits.bytes) and result.bytes:
            size_aim = limits.bytes * min(1.0, result.assignment.bytes / result.bytes)
        if np.isfinite(limits.time) and result.time is not None:
            wrong = result.time * self.options.min_speedup
            time_aim = aim.time / wrong * (0.99 if wrong > 1 else 1.0)
        return Limits(time_aim, size_aim, noise_aim)


def figures(problem_: Problem, known: Known, layer: Layer, form: str) -> dict[str, Any]:
    """What decided about one form of one layer."""
    option = next(o for o in problem_.options[layer.name] if o.form == form)
    share = worst(known.noise[layer.name].get(form, {}))
    found: dict[str, Any] = {"time_us": round(option.time_us, 1), "bytes": int(option.bytes)}
    if share > 0:
        found["sqnr_db"] = round(-10 * float(np.log10(share)), 1)
    return found


def plan_of(problem_: Problem, known: Known, forms: Mapping[str, str], about: str, whole: Mapping[str, Any]) -> Plan:
    """An assignment as a file that a person can edit."""
    entries = []
    for layer in known.layers:
        own = forms[layer.name]
        others = [o.form for o in problem_.options[layer.name] if o.form != own]
        told = figures(problem_, known, layer, own)
        told["others"] = [{"form": form, **figures(problem_, known, layer, form)} for form in others]
        entries.append(Entry(layer.name, own, told))
    return Plan(tuple(entries), about=about, figures=whole)


def counted(forms: Mapping[str, str]) -> str:
    """`12 int8, 3 float`, in the order of the table."""
    counts = Counter(forms.values())
    return ", ".join(f"{counts[form]} {form}" for form in FORMS if counts[form])
