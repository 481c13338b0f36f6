"""One form for each layer: float, half, 8, 4 or 2 bits, static or at run time, chosen together under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from onnxcomp.errors import DataError, UsageError
from onnxcomp.graph.ir import Graph
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, Range, Stage, option
from onnxcomp.manager.plan import Plan
from onnxcomp.passes.assigning.allocate import Option
from onnxcomp.passes.precision.decide import GOALS, Decider, Known, Result, counted, plan_of
from onnxcomp.passes.precision.forms import FLOAT, FORMS

LEAST_US = 0.5  # a smaller difference of times is none in whole microseconds


@dataclass(frozen=True)
class MixedPrecision(Pass):
    """Every layer takes the form that serves the whole best: precision is decided under a budget, and measured.

    Each form of each layer has a time (kernels profiled on this machine), bytes, and a noise in every part of the
    outputs (its own error on calibration samples, carried to the end of the float model). The assignment is a
    multiple-choice knapsack with conversions between neighbours, solved by Lagrange multipliers and a minimum cut. What
    it gives is written by the passes that a person would use for one form alone, measured on samples kept back, and
    assigned anew until the budget holds there; where it cannot hold, the model stays as it is.

    A plan (docs/mixed-precision.md) is followed as it stands: nothing is measured then but the whole.
    """

    name: ClassVar[str] = "mixed-precision"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    stage: ClassVar[Stage] = Stage.INTEGER

    objective: Literal["latency", "size", "accuracy", "macs"] = option(
        "latency",
        "what should get small: time, bytes, error; macs stands for bit operations",
        search=("latency", "size"),
    )
    min_sqnr: float = option(
        20.0,
        "dB that the worst part of the outputs keeps on samples kept back, in 95 of 100 cases; 0: no limit",
        minimum=0,
        search=Range(5.0, 30.0),
    )
    max_size: float = option(
        0.0, "share of the model's bytes that the result may have; 0: no limit", minimum=0, maximum=1
    )
    min_speedup: float = option(0.0, "time before over time after, at least; 0: no limit", minimum=0)
    max_drop: float | None = option(None, "largest loss of the metric, where labels are given", minimum=0)
    forms: tuple[str, ...] = option((), "forms that may be taken, beside float; empty means all that the target runs")
    front: int = option(
        0, "so many points of time, size and error are told beside the one that is taken", minimum=0, maximum=1000
    )
    isa: Literal["portable", "native"] = option(
        "portable", "weights safe on every x86, or best on CPUs with VNNI (and ARM, GPUs)"
    )
    plan: str = option("", "a plan to follow: .toml or .json")

    def validate(self) -> None:
        """Check the names of forms, and that something bounds what the objective gives away."""
        for form in self.forms:
            if form not in FORMS:
                raise UsageError(
                    f"{self.name} knows no form {form!r}",
                    where=f"pass {self.name}",
                    do=f"choose among {', '.join(FORMS)}",
                )
        if self.objective == "accuracy" and not (self.max_size or self.min_speedup or self.plan):
            raise UsageError(
                f"{self.name}: objective=accuracy alone leaves the model as it is",
                where=f"pass {self.name}",
                do="give max_size or min_speedup",
            )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Decide, write and measure.

        Raises:
            DataError: there is no calibration data, or no metric where max_drop asks for one.
            UsageError: a glob matches nothing; a plan names a missing node or a form that its node cannot take.
            ModelError: ONNX Runtime cannot run the model.
        """
        samples = context.calibration
        if samples is None or not len(samples):
            raise DataError(f"{self.name} needs calibration data", where=f"pass {self.name}", do="give it with --data")
        if self.max_drop is not None and context.drop is None:
            raise DataError(
                "max_drop needs labels or a metric", where=f"pass {self.name}", do="give --labels or --metric"
            )
        decider = Decider(self, graph, context, samples)
        if self.plan:
            return self._follow(graph, decider, Plan.read(self.plan))
        return self._decide(graph, decider)

    def _decide(self, graph: Graph, decider: Decider) -> Outcome:
        outcome = decider.outcome
        forms = self.forms or tuple(form for form in FORMS if form != FLOAT)
        known = decider.look(forms)
        if not known.layers:
            return _nothing(outcome, known)
        decider.price(known)
        result = decider.decide(known)
        if self.front:
            outcome.documents["front"] = _front(decider, self.front, result)
        if result is None:
            closest = min(decider.tried, key=lambda r: -r.verdict.sure_db, default=None)
            why = "nothing was found" if closest is None else closest.why
            outcome.missed = f"{self.name}: no assignment keeps the budget: {why}"
            outcome.summary = f"nothing changed: {outcome.missed}"
            for layer in known.layers:
                outcome.skip(layer.name, "no assignment of forms keeps the budget")
            return outcome
        chosen = decider.forms(known, result.assignment)
        if all(form == FLOAT for form in chosen.values()):
            outcome.summary = "every layer stays float: no other form keeps the budget and gains anything"
            for layer in known.layers:
                outcome.skip(layer.name, _why_float(decider, known, layer.name))
            return outcome
        plan = plan_of(decider.allocator.problem, known, chosen, str(replace(self, plan="")), _whole(decider, result))
        outcome.documents["plan"] = plan.data()
        self._tell(outcome, known, chosen, result, decider)
        outcome.notes += decider.quantizer.outcome.notes + _price_list(decider, result)
        graph.become(result.graph)
        return outcome

    def _follow(self, graph: Graph, decider: Decider, plan: Plan) -> Outcome:
        """Give every layer the form that a plan says."""
        outcome = decider.outcome
        wanted = tuple(form for form in FORMS if form != FLOAT)
        bare = Decider(self, graph, decider.context, decider.learn).look(())
        nodes = [node.name for node in graph.walk()]
        chosen = plan.forms({layer.name: layer.nodes for layer in bare.layers}, nodes, FORMS)
        known = decider.look(wanted, chosen)
        for layer in known.layers:
            why = known.reasons.get(layer.name, {}).get(chosen[layer.name], "")
            if why and chosen[layer.name] != plan.default:
                raise UsageError(
                    f"the plan cannot be followed: {layer.name} cannot take the form {chosen[layer.name]}: {why}",
                    where=f"{plan.where}, {layer.name}",
                    do="give it another form, or leave the line out",
                )
            if why:
                chosen[layer.name] = FLOAT
        if not known.layers or all(form == FLOAT for form in chosen.values()):
            return _nothing(outcome, known)
        written, _ = decider.write(known, chosen)
        for name, form in chosen.items():
            if why := known.reasons.get(name, {}).get(form, ""):  # found out when the whole was opened
                outcome.notes.append(f"{name} stays float, against the plan: {why}")
                chosen[name] = FLOAT
        verdict = decider.judge.verdict(written)
        for layer in known.layers:
            if chosen[layer.name] != FLOAT:
                outcome.change(layer.name, FORMS[chosen[layer.name]].about)
            else:
                outcome.skip(layer.name, "float in the plan")
        apart = "kept back" if decider.apart else "that calibrated as well"
        outcome.summary = (
            f"plan followed: {counted(chosen)}; {verdict.sqnr_db:.1f} dB on {verdict.samples} samples {apart}"
        )
        outcome.documents["plan"] = replace(plan, where="plan").data()
        outcome.metrics["sqnr_db"] = round(verdict.sqnr_db, 3)
        graph.become(written)
        return outcome

    def _tell(
        self, outcome: Outcome, known: Known, chosen: Mapping[str, str], result: Result, decider: Decider
    ) -> None:
        for layer in known.layers:
            form = chosen[layer.name]
            if form == FLOAT:
                outcome.skip(layer.name, _why_float(decider, known, layer.name))
                continue
            noise = max(known.noise[layer.name].get(form, {}).values(), default=0.0)
            alone = f"; alone, the outputs keep {-10 * np.log10(noise):.0f} dB" if noise else ""
            outcome.change(layer.name, f"{form}: {FORMS[form].about}{alone}")
        for name, why in known.refused.items():
            outcome.skip(name, why)
        apart = "kept back" if decider.apart else "that calibrated as well, being few"
        time = "" if result.time is None else f"{result.time:.2f} of the time of the float model it was given, "
        outcome.summary = (
            f"{counted(chosen)}: {time}{result.bytes / decider.before_bytes:.0%} of the original's size, "
            f"{result.verdict.sqnr_db:.1f} dB on {result.verdict.samples} samples {apart} "
            f"(95 of 100 times at least {result.verdict.sure_db:.1f})"
        )
        outcome.metrics["sqnr_db"] = round(result.verdict.sqnr_db, 3)


def _nothing(outcome: Outcome, known: Known) -> Outcome:
    for name, why in known.refused.items():
        outcome.skip(name, why)
    outcome.summary = "nothing to decide: no layer has another form to take"
    return outcome


def _why_float(decider: Decider, known: Known, layer: str) -> str:
    """Why a layer stays as it is: what the truest form would save, and what it would take of the budget."""
    now, *others = decider.options_of(layer)
    if not others:
        return next(iter(known.reasons.get(layer, {}).values()), "no other form fits it")
    gaining = [form for form in others if decider.gain(now, form) > 0]
    if not gaining:
        return "no other form gains anything"
    form = min(gaining, key=lambda one: one.worst)
    return f"kept float: {form.form} would {_saved(decider, now, form)}, for {_spent(decider, form)}"


def _saved(decider: Decider, now: Option, form: Option) -> str:
    time, size = now.time_us - form.time_us, now.bytes - form.bytes
    if decider.options.objective == "macs":
        return f"save {time / max(now.time_us, 1e-9):.0%} of its bit operations"
    words = [f"{size / 1000:.1f} kB"] if size > 0 else []
    if decider.costs is not None and abs(time) >= LEAST_US:
        words.insert(0, f"{time:.0f} us") if time > 0 else words.append(f"take {-time:.0f} us more")
    elif decider.costs is not None:
        words.append("no time")
    conversions = " before conversions around it" * form.integer
    return f"save {' and '.join(words)}{conversions}"


def _spent(decider: Decider, form: Option) -> str:
    """What a form takes of the error that the budget allows; where none is set, what it leaves."""
    if math.isfinite(decider.aims.noise):
        share = form.worst / decider.aims.noise
        amount = f"{share:.1%} of" if share < 1 else f"{share:.1f} times"
        return f"{amount} the error that {decider.options.min_sqnr:g} dB allow"
    return f"{-10 * np.log10(max(form.worst, 1e-30)):.0f} dB alone" if form.worst else "no error"


def _whole(decider: Decider, result: Result) -> dict[str, Any]:
    """Figures of a whole model, as predicted and as measured."""
    found = {
        "predicted_time_us": round(result.assignment.time_us, 1),
        "bytes": result.bytes,
        "sqnr_db": round(result.verdict.sqnr_db, 2),
        "sure_db": round(result.verdict.sure_db, 2),
        "samples": result.verdict.samples,
    }
    return found if result.time is None else found | {"time": round(result.time, 4)}


def _front(decider: Decider, points: int, result: Result | None) -> list[dict[str, Any]]:
    """Points of least time (or bytes) for each error, JSON-ready, the fastest first.

    Errors are those of single layers added up, corrected by what the whole was measured to keep at the point taken:
    refined weights and biases keep more.
    """
    goal = GOALS[decider.options.objective]
    limits = replace(decider.aims, noise=np.inf)
    found = decider.allocator.front("time" if goal == "noise" else goal, limits, points)
    start = decider.allocator.problem
    float_us = sum(options[0].time_us for options in start.options.values()) + start.time_us
    correction = 1.0
    if result is not None and result.assignment.worst > 0:
        correction = 10 ** (-result.verdict.sqnr_db / 10) / result.assignment.worst
    told = []
    for item in found:
        forms = {name: start.options[name][place].form for name, place in item.choice.items()}
        told.append(
            {
                "predicted_sqnr_db": round(-10 * float(np.log10(item.worst * correction)), 2) if item.worst else None,
                "predicted_time": round(item.time_us / max(float_us, 1e-9), 4),
                "predicted_bytes": int(item.bytes),
                "forms": {str(name): form for name, form in forms.items()},
            }
        )
    return told


def _price_list(decider: Decider, result: Result) -> list[str]:
    """What one dB more or less would cost from here."""
    if decider.options.objective in ("macs", "accuracy") or not result.assignment.worst:
        return []
    goal = GOALS[decider.options.objective]
    here, words = result.assignment, []
    for step, what in ((-0.1, "1 dB more costs"), (0.1, "1 dB less saves")):
        limits = replace(decider.aims, noise=here.worst * 10**step)
        other = decider.allocator.best(goal, limits)
        if other is None:
            continue
        time, size = (other.time_us - here.time_us) * -np.sign(step), (other.bytes - here.bytes) * -np.sign(step)
        words.append(f"{what} {abs(max(time, 0.0)):.0f} us and {abs(max(size, 0.0)) / 1000:.1f} kB")
    unit = "measured kernels" if decider.costs is not None else "sizes alone"
    return [f"prices of the next step, by {unit}: {'; '.join(words)}"] if words else []
