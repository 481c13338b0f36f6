"""prune-channels: whole channels, attention heads and neurons leave the graph, and the rest makes up for them."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.distill import environment
from onnxcomp.errors import UsageError
from onnxcomp.graph.branches import Branch, branches, innermost
from onnxcomp.graph.coupling import streams
from onnxcomp.graph.coupling.analysis import Coupling, Group, analyse, release
from onnxcomp.graph.coupling.costing import Costing
from onnxcomp.graph.ir import Graph, Node
from onnxcomp.layers.hidden import why_computed
from onnxcomp.layers.layer import add_biases, drop_zero_biases
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, Range, option
from onnxcomp.passes.structure.allocate import EXPONENT, Choice, allowed_counts, channels_each
from onnxcomp.passes.structure.blocks import branch_errors
from onnxcomp.passes.structure.elimination import Curve
from onnxcomp.passes.structure.importance import measured_curves, weight_curve
from onnxcomp.passes.structure.latency import HARDLY_MORE, Planner
from onnxcomp.passes.structure.readers import makers
from onnxcomp.passes.structure.refit import Refit
from onnxcomp.passes.structure.taylor import taylor_moments
from onnxcomp.passes.structure.timing import BLOCKS, kernel_block
from onnxcomp.passes.structure.trials import LEAST_SAMPLES, Candidate, Trials, carry_out, hardly_worse, search
from onnxcomp.passes.structure.widths import MOST_ERROR, WORTH, Goal, Widths, nearest, within_sense
from onnxcomp.runtime.progress import Progress
from onnxcomp.targets.table import find

FEWEST_SAMPLES = 8  # on which a candidate is carried out and judged
_MEASURED = ("activation", "reconstruction")


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Channels, heads and neurons leave every tensor they stand in; the layers that read them are solved again.

    What must leave together is found by index-exact dependency analysis (onnxcomp.graph.coupling). With calibration
    data, units leave by backward elimination with refit, groups share the loss by error against saving, and weights and
    biases are then solved again by ridge regression in graph order, so that each layer's output, behind a residual Add
    the sum, is again the original's. Without data units are ranked by their weights and nothing is made good.

    Give one of ratio, macs, params and latency, or widths by `keep`, or both.
    """

    name: ClassVar[str] = "prune-channels"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    ratio: float | None = option(None, "share of channels, heads and neurons to remove", above=0.0, below=1.0)
    macs: float | None = option(
        None,
        "share of multiply-accumulates kept at most",
        above=0.0,
        below=1.0,
        search=Range(0.3, 0.97),
        one_of="target",
    )
    params: float | None = option(
        None,
        "share of parameters kept at most",
        above=0.0,
        below=1.0,
        search=Range(0.05, 0.97, log=True),
        one_of="target",
    )
    latency: float | None = option(
        None,
        "share of the time kept at most, measured here",
        above=0.0,
        below=1.0,
        search=Range(0.4, 0.97),
        one_of="target",
    )
    keep: tuple[str, ...] = option((), 'widths by node, as "GLOB:16": channels, neurons or heads that stay')
    importance: Literal["auto", "l1", "l2", "fpgm", "bn", "random", "activation", "reconstruction", "taylor"] = option(
        "auto", "how units are ranked; auto: reconstruction with data, l2 without; taylor: by gradients, with labels"
    )
    scope: Literal["global", "layer"] = option("global", "share the loss over all layers, or the same share of each")
    multiple_of: int | Literal["auto"] = option(
        "auto", "widths are multiples of this; auto: 8 for TensorRT, on CPU a kernel's block where it costs little"
    )
    min_keep: int = option(1, "fewest channels that stay in a layer", minimum=1)
    streams: bool = option(False, "also channels that several layers add up (residual streams)", search=(False, True))
    blocks: bool = option(True, "whole residual branches may leave too, where that costs less (macs, params, latency)")
    compensate: bool = option(True, "solve the remaining weights again, whenever there is calibration data")
    damping: float = option(2e-3, "ridge of the refit, as a share of the mean diagonal of E[x x^T]", above=0.0)

    def validate(self) -> None:
        """One target at most, one at least, and readable widths."""
        targets = [t for t in (self.ratio, self.macs, self.params, self.latency) if t is not None]
        if len(targets) > 1 or not (targets or self.keep):
            raise UsageError(
                f"{self.name}: give one of ratio, macs, params and latency, or widths by keep",
                where=f"pass {self.name}",
                do="for example prune-channels{ratio=0.3}",
            )
        for entry in self.keep:
            _width(self.name, entry)
        if isinstance(self.multiple_of, int) and self.multiple_of < 1:
            raise UsageError(
                f"{self.name}: multiple_of={self.multiple_of} must be at least 1",
                where=f"pass {self.name}",
                do=f"see onnxcomp passes {self.name}",
            )

    def required(self) -> frozenset[Need]:
        """Some rankings are measured, and one takes gradients."""
        if self.importance == "taylor":
            return frozenset({Need.DATA, Need.LABELS, Need.TRAINING})
        return frozenset({Need.DATA}) if self.importance in _MEASURED else frozenset()

    def provide(self, progress: Progress) -> None:
        """The environment that takes gradients."""
        environment.provide()

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rank, choose, cut, make good.

        Raises:
            UsageError: a glob matches nothing, or a width is larger than the layer's.
        """
        outcome = Outcome()
        compensate = self.compensate and context.calibration is not None
        added = add_biases(graph, context.operators) if compensate else []
        coupling = analyse(graph, context.operators, context.sample_shapes)
        groups = self._eligible(graph, coupling, context, outcome)
        fixed = self._fixed_widths(groups, context)
        costing = Costing(coupling, context.operators)
        before = costing.macs, costing.params
        outcome.metrics["prunable_macs_share"] = _share(costing.touched_macs(coupling.groups), costing.macs)
        choices = self._choices(graph, groups, fixed, context, outcome)
        found = self._branches(graph, choices, context)
        errors = branch_errors(graph, found, context, self.damping) if found else {}
        widths = Widths(coupling, choices, found, context.operators, self.scope)
        best = self._decide(graph, widths, errors, context, outcome)
        costing = widths.costing(best)
        if not any(best.removed) and not best.dropped:
            drop_zero_biases(added)
            release(coupling)
            outcome.summary = outcome.missed or "nothing leaves: no group is open, or the target is met already"
            return outcome
        refitted = carry_out(graph, choices, best, context, self.damping if compensate else None)
        drop_zero_biases(added)
        for name in best.dropped:
            outcome.change(name, f"branch left, which costs {errors[name]:.2%} of its sum at first")
        for choice, count in zip(choices, best.removed, strict=True):
            if count:
                outcome.change(choice.group.name, _words(choice, count))
        self._report(outcome, costing, before, refitted, coupling)
        if self.compensate and context.calibration is None:
            outcome.notes.append("nothing makes up for what left: that takes calibration data")
        return outcome

    # -- what may leave ----------------------------------------------------------------------------------------

    def _eligible(self, graph: Graph, coupling: Coupling, context: PassContext, outcome: Outcome) -> list[Group]:
        wanted = self.selects(graph)
        shared = streams.added_up(coupling)
        found = []
        for group in coupling.groups:
            made = list(dict.fromkeys(node for _, node, _ in makers(group, context.operators)))
            if not made:
                outcome.skip(group.name, "no weight makes these units")
            elif not all(wanted(node) for node in made):
                outcome.skip(group.name, "not selected by include and exclude")
            elif not self.streams and group.name in shared and not self._named(group, made):
                outcome.skip(group.name, "several layers add up in these channels; streams=true cuts them too")
            else:
                found.append(group)
        for name, why in coupling.kept.items():
            outcome.skip(name, why)
        for node in graph.walk():
            for weight in context.operators.facts(node).weights(node):
                source = node.input(weight.port)
                if source is not None and source.producer is not None:
                    outcome.skip(node, f"its weight {why_computed(source.producer)}")
        for op, count in coupling.without_rule.items():
            outcome.notes.append(f"{op} has no coupling rule: what enters its {count} nodes stays whole")
        return found

    def _named(self, group: Group, made: Sequence[Node]) -> bool:
        return any(_matches(entry, group, made) for entry in self.keep)

    def _fixed_widths(self, groups: Sequence[Group], context: PassContext) -> dict[str, int]:
        """Units that leave by name of the group, where `keep` says so."""
        found: dict[str, int] = {}
        for entry in self.keep:
            glob, width = _width(self.name, entry)
            hits = [g for g in groups if _matches(entry, g, [n for _, n, _ in makers(g, context.operators)])]
            if not hits:
                names = ", ".join(group.name for group in groups[:8])
                raise UsageError(
                    f"{self.name}: keep {glob!r} matches no group",
                    where=f"pass {self.name}",
                    do=f"groups: {names}; see onnxcomp inspect MODEL --groups",
                )
            for group in hits:
                each = channels_each(group)
                if width > group.size * each or width % each or width < each:
                    raise UsageError(
                        f"{self.name}: {group.name} has {group.size} units of {each} and cannot keep {width}",
                        where=f"pass {self.name}, keep {entry!r}",
                        do=f"give a multiple of {each} up to {group.size * each}",
                    )
                found[group.name] = group.size - width // each
        return found

    # -- how much leaves ---------------------------------------------------------------------------------------

    def _choices(
        self, graph: Graph, groups: Sequence[Group], fixed: dict[str, int], context: PassContext, outcome: Outcome
    ) -> list[Choice]:
        if all(target is None for target in (self.ratio, self.macs, self.params, self.latency)):
            groups = [group for group in groups if group.name in fixed]
        multiple = self._multiple(context)
        counts = {
            g.name: (fixed[g.name],) if g.name in fixed else allowed_counts(g, self.min_keep, multiple) for g in groups
        }
        method: str = self.importance
        if method == "auto":
            method = "l2" if context.calibration is None else "reconstruction"
        if method not in _MEASURED:
            by = taylor_moments(graph, context) if method == "taylor" else None
            curves = [weight_curve(g, method, context.operators, context.seed, by) for g in groups]
            return [Choice(g, curve, counts[g.name]) for g, curve in zip(groups, curves, strict=True)]
        least = {group.name: group.size - counts[group.name][-1] for group in groups}
        found = []
        for group, curve, why in measured_curves(graph, groups, method, context, self.damping, least, fixed):
            if curve is None and group.name not in fixed:
                outcome.skip(group.name, f"what its units are worth cannot be measured: {why}")
                continue
            given: Curve = weight_curve(group, "l2", context.operators, context.seed) if curve is None else curve
            found.append(Choice(group, given, counts[group.name]))
        return found

    def _multiple(self, context: PassContext) -> int:
        if isinstance(self.multiple_of, int):
            return self.multiple_of
        target = find(context.target)
        return kernel_block() if target.blocked and self.latency is not None else target.channel_multiple

    def _can_try(self, choices: Sequence[Choice], context: PassContext) -> bool:
        """Whether candidates can be carried out and judged."""
        enough = context.calibration is not None and len(context.calibration) >= LEAST_SAMPLES
        return enough and self.compensate and any(choice.curve.measured for choice in choices)

    def _in_blocks(self, choices: Sequence[Choice], context: PassContext) -> list[list[Choice]]:
        """The choices at widths that convolutions compute together, largest last; none where they are not free."""
        targets = (self.macs, self.params, self.ratio)
        blocked = self.multiple_of == "auto" and find(context.target).blocked
        free = blocked and any(target is not None for target in targets)
        convolved = any(c.group.kind == "channels" and len(c.counts) > 1 for c in choices)
        if not (free and convolved and self._can_try(choices, context)):
            return []
        return [
            [
                c
                if len(c.counts) == 1
                else within_sense(replace(c, counts=allowed_counts(c.group, self.min_keep, multiple)))
                for c in choices
            ]
            for multiple in BLOCKS
            if multiple <= kernel_block()
        ]

    def _branches(self, graph: Graph, choices: Sequence[Choice], context: PassContext) -> list[Branch]:
        """Residual branches that may leave besides."""
        targets = (self.macs, self.params, self.latency)
        if not self.blocks or not self._can_try(choices, context) or all(target is None for target in targets):
            return []
        wanted = self.selects(graph)
        found = innermost(branches(graph, context.operators, context.sample_shapes))
        return [branch for branch in found if all(wanted(n) for n in branch.nodes if context.operators.weights(n))]

    def _goal(self) -> Goal | None:
        if self.ratio is not None:
            return Goal("units", 1 - self.ratio)
        if self.macs is not None:
            return Goal("macs", self.macs)
        if self.params is not None:
            return Goal("params", self.params)
        return Goal("time", self.latency) if self.latency is not None else None

    def _decide(
        self, graph: Graph, widths: Widths, errors: dict[str, float], context: PassContext, outcome: Outcome
    ) -> Candidate:
        """How many units leave each group, and which branches besides."""
        goal = self._goal()
        if goal is None:
            return widths.given()
        sensible = widths.of([within_sense(choice) for choice in widths.choices])
        trials = self._trials(graph, widths, context)
        planner = None
        if goal.kind == "time":
            planner = Planner(graph, widths.coupling, sensible.choices, widths.branches, context, goal.kept)
            planner.settle(())  # puts the scale of the model right
        best = self._with_branches(sensible, goal, planner, errors, trials, context)
        if planner is not None:
            best, share = planner.settle(best.dropped if best is not None else ())
            outcome.metrics["time_share"] = share
            if goal.kept < share <= goal.kept * HARDLY_MORE:
                outcome.missed = f"{goal.words} was not reached: {share:.3g} was"
            elif share > goal.kept:
                best = None
        return best or self._as_near(sensible, widths, goal, planner, errors, trials, context, outcome)

    def _trials(self, graph: Graph, widths: Widths, context: PassContext) -> Trials | None:
        """Carries out candidates and judges them, where there are samples to do so."""
        if context.calibration is None or len(context.calibration) < FEWEST_SAMPLES:
            return None
        macs = Costing(widths.coupling, context.operators).macs
        return Trials(graph, widths.choices, context, self.damping if self.compensate else None, macs)

    def _with_branches(
        self,
        widths: Widths,
        goal: Goal,
        planner: Planner | None,
        errors: dict[str, float],
        trials: Trials | None,
        context: PassContext,
    ) -> Candidate | None:
        """The best candidate that meets the target, at widths that kernels like where that is free; None: none does."""
        meeting = functools.partial(widths.meeting, goal) if planner is None else planner.widths
        saved = planner.gone if planner is not None else {b.name: widths.saved_by(b, goal) for b in widths.branches}
        order = [n for n, saving in saved.items() if saving > 0 and errors[n] <= MOST_ERROR]
        order.sort(key=lambda name: errors[name] ** EXPONENT / saved[name])
        in_blocks = self._in_blocks(widths.choices, context)
        if trials is None or not (order or in_blocks):
            return meeting(())
        best = search(order, meeting, trials.loss)
        if best is None:
            return None
        others = [widths.of(other).meeting(goal, best.dropped) for other in in_blocks]
        return hardly_worse([best, *(other for other in others if other is not None)], trials.loss)

    def _as_near(
        self,
        sensible: Widths,
        widths: Widths,
        goal: Goal,
        planner: Planner | None,
        errors: dict[str, float],
        trials: Trials | None,
        context: PassContext,
        outcome: Outcome,
    ) -> Candidate:
        """For a target out of reach: the nearest whose outputs are still right; nothing leaves where there is none."""
        least = sensible.least(goal) if planner is None else planner.least()
        found = None
        if trials is not None and least < 1 - WORTH:

            def meeting(near: Goal) -> Candidate | None:
                if planner is not None:
                    return planner.measured(near.kept)
                return self._with_branches(sensible, near, None, errors, trials, context)

            found = nearest(goal, max(least, goal.kept), meeting, trials.loss)
        instead = (
            f"{replace(found[0], kept=round(found[0].kept, 2)).words} was" if found else "the model stays as it is"
        )
        outcome.missed = f"{goal.words} was not reached: {instead}"
        outcome.notes += _out_of_reach(goal, least, widths, planner, found is not None)
        return found[1] if found is not None else Candidate((0,) * len(widths.choices))

    # -- saying it ---------------------------------------------------------------------------------------------

    def _report(
        self, outcome: Outcome, costing: Costing, before: tuple[int, int], refitted: Refit | None, coupling: Coupling
    ) -> None:
        outcome.metrics["macs_share"] = _share(costing.macs, before[0])
        outcome.metrics["params_share"] = _share(costing.params, before[1])
        cut = sum(any(change.node == group.name for change in outcome.changes) for group in coupling.groups)
        words = [f"{cut} of {len(coupling.groups)} groups cut"]
        if left := len(outcome.changes) - cut:
            words.append(f"{left} branch{'es' * (left > 1)} left")
        words.append(f"{outcome.metrics['macs_share']:.1%} of the MACs are left")
        words.append(f"{outcome.metrics['params_share']:.1%} of the parameters")
        outcome.summary = ", ".join(words)
        if refitted is not None:
            refitted.report(outcome)


def _words(choice: Choice, count: int) -> str:
    group, each = choice.group, channels_each(choice.group)
    text = f"{group.size * each} -> {(group.size - count) * each} {group.kind}"
    error = float(choice.curve.errors[count])
    if choice.curve.measured and np.isfinite(error):
        text += f"; expected loss {error:.2%} of its readers' output"
    return text


def _width(name: str, entry: str) -> tuple[str, int]:
    glob, _, width = entry.rpartition(":")
    if not glob or not width.isascii() or not width.isdigit() or int(width) < 1:
        raise UsageError(
            f"{name}: keep={entry!r} is not GLOB:WIDTH", where=f"pass {name}", do='for example keep=["/conv1*:16"]'
        )
    return glob, int(width)


def _matches(entry: str, group: Group, made: Sequence[Node]) -> bool:
    glob = entry.rpartition(":")[0]
    weights = [slot.constant.name for slot in group.slots[:1]]
    return any(fnmatch.fnmatchcase(name, glob) for name in (group.name, *(n.name for n in made), *weights))


def _out_of_reach(goal: Goal, least: float, widths: Widths, planner: Planner | None, taken: bool) -> list[str]:
    """What can be reached, and at which price."""
    open_, all_ = len(widths.choices), len(widths.coupling.groups) + len(widths.coupling.kept)
    lines = [
        f"{goal.words} is out of reach: {open_} of {all_} groups and closed layers are open, and "
        f"{least:.2f} of the {goal.unit} is left once half of what their readers get is gone"
    ]
    if planner is None and (bare := widths.least(goal)) < least - WORTH:
        lines.append(
            f"cut down to the last unit, {bare:.2f} of the {goal.unit} would be left, and nothing of what they do"
        )
    if taken:
        lines.append("taken is the nearest share that leaves 10 dB on calibration samples set aside")
    else:
        lines.append("nothing that was tried leaves 10 dB; a training afterwards (distill) bears more, by keep=[...]")
    return lines


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
