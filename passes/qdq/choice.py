"""Which placement is taken? Proposes some by times and errors, measures them, keeps the fastest that is good enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Node, Variable
from onnxcomp.manager.base import CostModel
from onnxcomp.ops.facts import Operators
from onnxcomp.passes.qdq import placement, sensitivity
from onnxcomp.passes.qdq.coarse import Coarsener
from onnxcomp.passes.qdq.learned import Learned
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.trials import Trials
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.progress import Progress

TOLLS = (1.0, 2.0)
ATTEMPTS = 4
COARSE_DB, COARSE_WORTH = 3.0, 0.95  # at most so much SQNR is given for one scale a weight, and at least so much time
SMALLER = 1.03  # a placement that leaves more weights in float, and the file larger, must be faster by this
WORTH = 0.99  # a placement must take at most this share of the float model's time
SPENT, SLOWER, LARGER = 0.01, 1.02, 0.01  # what less error may take: of the float's time foretold, measured, of bytes
QUIETER = 0.9  # of the error of all layers: what has to be left for that
WEIGHTY = 0.05  # of the noise that is allowed: what one layer brings in beyond it is a reason to leave it in float
SENSITIVITY_FEEDS = 3
MOST_WORK = 1e12  # multiply-accumulates of the model times its layers: beyond, one feed tells the noise of layers

Planned = tuple[Plan, dict[Variable, Grid]]


@dataclass
class Choice:
    """A placement, and why the nodes that are not in it keep float.

    Attributes:
        plan, grids, layers: what is to be written.
        refused: nodes with weights that stay float, with the reason.
        notes: sentences for the user.
        reached_db: what it keeps before weights and biases are refined.
    """

    plan: Plan
    grids: dict[Variable, Grid]
    layers: dict[Node, Integers] = field(default_factory=dict)
    refused: dict[Node, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reached_db: float = 0.0


def _best(found: Iterable[tuple[float, Choice]]) -> tuple[float, Choice] | None:
    """The fastest; of those that are nearly as fast the one with most weights on integers."""
    items = list(found)
    least = min((time for time, _ in items), default=0.0)
    return max((item for item in items if item[0] <= SMALLER * least), key=_integers, default=None)


def _integers(item: tuple[float, Choice]) -> tuple[int, float]:
    """Elements of integer weights; the faster first where they are as many."""
    weighted = item[1].plan.weighted
    return sum(node.inputs[weight.port].size for node, weight in weighted.items()), -item[0]


class Chooser:
    """Chooses among the nodes of a plan.

    Args:
        full: the plan with everything on integers that can be.
        replan: gives the plan and grids for some of its nodes.
        coarsener: gives layers one scale for all their outputs.
        costs: times of this machine, or None to leave all to the target's table.
        learned: what an earlier run found out; this one adds to it.
        faulty: whether ONNX Runtime would run a plan otherwise than it says; what it was is known from then on, so that
            the next plan with the same nodes is another.
        least_db: signal to noise ratio that the worst part of the outputs must keep before weights and biases are
            refined; 0 sets no limit, since a part may be worse than that.
    """

    def __init__(
        self,
        trials: Trials,
        operators: Operators,
        full: Planned,
        layers: dict[Node, Integers],
        replan: Callable[[Iterable[Node]], Planned],
        *,
        coarsener: Coarsener,
        costs: CostModel | None,
        learned: Learned,
        faulty: Callable[[Plan, dict[Variable, Grid], dict[Node, Integers]], bool],
        least_db: float,
        threads: int,
        progress: Progress,
    ) -> None:
        self.trials, self.operators, self.full, self.layers, self.replan = trials, operators, full, layers, replan
        self.faulty = faulty
        self.coarsener = coarsener
        self.costs, self.learned, self.threads, self.progress = costs, learned, threads, progress
        self.least_db = least_db if least_db > 0 else -np.inf
        self._solved: dict[tuple[float, float], set[Node]] = {}

    def choose(self) -> Choice:
        """The placement to write, and the layers with it."""
        choice = self._placed()
        self.learned.reached_db = choice.reached_db
        choice.layers = choice.layers or {node: self.layers[node] for node in choice.plan.weighted}
        return choice

    def _placed(self) -> Choice:
        plan, grids = self.full
        if self.costs is None:
            times = placement.guessed(plan, self.trials.shapes, self.operators)
            choice = self._sound(None, times)
            self._explain(choice, times)
            return choice
        graph, whole = self.trials.graph, self.trials.written(plan, grids, self.layers)
        integer = self.costs.node_times_us(whole)
        times = placement.measured(plan, self.trials.shapes, self.costs.node_times_us(graph), integer, whole)
        float_ms = self.costs.latency_ms(graph)
        found: list[tuple[float, Choice]] = []
        tolls: list[float | None] = []
        seen: list[set[Node]] = []
        for toll in self.learned.tolls or (None, *TOLLS):
            choice = self._sound(toll, times)
            kept = {*placement.units(choice.plan)}
            if not choice.plan.weighted or kept in seen:
                continue
            seen.append(kept)
            written = self.trials.written(choice.plan, choice.grids, self.layers)
            found.append((self.costs.latency_ms(written), choice))
            tolls.append(toll)
        if found:
            least = SMALLER * min(time for time, _ in found)
            self.learned.tolls = tuple(toll for toll, (time, _) in zip(tolls, found, strict=True) if time <= least)
        fastest, choice = _best(found) or (float_ms, Choice(*self.replan(())))
        self._explain(choice, times)
        share = fastest / float_ms
        if share > WORTH:
            choice = Choice(*self.replan(()))
            why = f"on this machine no placement of integers is faster: the best takes {share:.2f} of the time"
            choice.refused = dict.fromkeys(plan.weighted, why)
        else:
            fastest = self._quieter(choice, fastest, times)
            share = self._coarsened(choice, fastest) / float_ms
            choice.notes.append(f"placed by measured times: {share:.2f} of the float model's time before refinement")
        return choice

    def _quieter(self, choice: Choice, fastest: float, times: placement.Times) -> float:
        """Float for layers that gain next to nothing on integers and bring in much error; the new time in ms.

        The error foretold decides, and not what the placement keeps as it is: refinement takes back what weights lose
        and not what activations do, and it takes longer than all of this.
        """
        assert self.costs is not None
        weighted = choice.plan.weighted
        noise = {node: found for node, found in self._noises().items() if node in weighted}
        before = sensitivity.together(noise.values())
        for spent in (SPENT, SPENT / 2):
            quiet = placement.quietest(
                choice.plan, self.trials.target, self.trials.graph, times, noise=noise, spent=spent, larger=LARGER
            )
            left = [node for node in weighted if node not in quiet]
            after = sensitivity.together(noise[node] for node in weighted if node in quiet)
            if not left or sensitivity.worst(after) > QUIETER * sensitivity.worst(before):
                break
            plan, grids = self._replanned(node for node in placement.units(choice.plan) if node not in left)
            if not plan.weighted:
                break
            found = self.costs.latency_ms(self.trials.written(plan, grids, self.layers))
            if found > SLOWER * fastest:
                continue
            choice.plan, choice.grids = plan, grids
            choice.reached_db = self.learned.keeps_db(self.trials, plan, grids, self.layers)
            for node in left:
                share = sensitivity.worst(noise[node]) / sensitivity.worst(before)
                choice.refused[node] = f"too much error for what it gains: {share:.0%} of all, next to no time saved"
            return found
        return fastest

    def _coarsened(self, choice: Choice, fastest: float) -> float:
        """One scale for all outputs of products, where that is clearly faster and costs little; the new time in ms."""
        assert self.costs is not None
        least = 0.0
        for variant in self.coarsener.variants(choice.plan, choice.grids, self.layers):
            least = least or self.learned.keeps_db(self.trials, choice.plan, choice.grids, self.layers) - COARSE_DB
            written = self.trials.written(choice.plan, variant.grids, variant.layers)
            found = self.costs.latency_ms(written)
            if found <= COARSE_WORTH * fastest and self.trials.sqnr_db(written) >= max(least, self.least_db):
                choice.grids = variant.grids
                choice.layers = {node: variant.layers[node] for node in choice.plan.weighted}
                names = ", ".join(node.name for node in variant.coarse)
                choice.notes.append(f"one scale for all outputs of {names}: {found / fastest:.2f} of the time here")
                return found
            variant.undo()
        return fastest

    def _sound(self, toll: float | None, times: placement.Times) -> Choice:
        """A placement, with the nodes that bring in most error for their gain left out until it is good enough.

        Args:
            toll: of conversions, for the placement to begin with; None begins with all that can be integers.
        """
        plan, grids = self.full if toll is None else self._replanned(self._fastest(times, toll))
        choice, fast = Choice(plan, grids), set(plan.weighted)
        toll = toll or 1.0
        if self.costs is not None:
            fast &= self._fastest(times, toll)
        reached = self.learned.keeps_db(self.trials, plan, grids, self.layers)
        allowed = 10 ** (-self.least_db / 10)
        most = allowed * self.learned.held.get(toll, 1.0)
        for _ in range(ATTEMPTS):
            if reached >= self.least_db or not plan.weighted:
                break
            noise = self._noises()
            plan, grids = self._replanned(self._fastest(times, toll, most))
            choice = Choice(plan, grids)
            for node in self.full[0].weighted:
                own_noise = sensitivity.worst(noise[node])
                if node not in plan.weighted and node in fast and own_noise > WEIGHTY * allowed:
                    own, taken = -10 * np.log10(own_noise), own_noise / allowed
                    choice.refused[node] = (
                        f"too much error for what it gains: alone, it leaves {own:.0f} dB, "
                        f"{taken:.0%} of the error that {self.least_db:g} dB allow"
                    )
            reached = self.learned.keeps_db(self.trials, plan, grids, self.layers)
            if reached >= self.least_db:
                self.learned.held[toll] = most / allowed
            most *= 10 ** (min(reached - self.least_db, -1.0) / 10)
        choice.reached_db = reached
        return choice

    def _fastest(self, times: placement.Times, toll: float, most: float = math.inf) -> set[Node]:
        """The nodes of the fastest placement, by times alone or with so much noise in any part of the outputs."""
        if (toll, most) not in self._solved:
            noise = self._noises() if most < math.inf else None
            self._solved[toll, most] = placement.chosen(
                self.full[0], self.trials.target, self.trials.graph, times, toll=toll, noise=noise, most=most
            )
        return self._solved[toll, most]

    def _replanned(self, nodes: Iterable[Node]) -> Planned:
        """The plan with some nodes that runs as it says: a float node between integers may be made one unasked."""
        chosen = list(nodes)
        while True:
            plan, grids = self.replan(chosen)
            proven = len(plan.weighted) == len(self.full[0].weighted)
            if proven or not self.faulty(plan, grids, {node: self.layers[node] for node in plan.weighted}):
                return plan, grids

    def _noises(self) -> dict[Node, sensitivity.Noise]:
        plan, grids = self.full
        known = self.learned.noise
        if not all(node.name in known for node in plan.weighted):
            found = sensitivity.noises(
                self.trials.graph,
                self.trials.target,
                plan,
                grids,
                {node: self.layers[node] for node in plan.weighted},
                self.trials.feeds[: self._feeds()],
                threads=self.threads,
                progress=self.progress,
            )
            known |= {str(node.name): noise for node, noise in found.items()}
        return {node: known[str(node.name)] for node in plan.weighted}

    def _feeds(self) -> int:
        """How many samples tell the noise of single layers: for each half of the model runs, for all of them."""
        graph, shapes = self.trials.graph, self.trials.shapes
        macs = sum(self.operators.facts(node).macs(node, shapes) for node in graph.nodes)
        return SENSITIVITY_FEEDS if macs * len(self.full[0].weighted) <= MOST_WORK else 1

    def _explain(self, choice: Choice, times: placement.Times) -> None:
        for node in self.full[0].weighted:
            if node in choice.plan.weighted or node in choice.refused:
                continue
            exact, integer = times.exact[node], times.integer[node]
            if integer >= exact:
                choice.refused[node] = "its integer kernel is slower here"
            else:
                choice.refused[node] = "conversions around it would cost more than its integer kernel gains"
