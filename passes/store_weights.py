"""Weights that are computed with in floating point take few bytes in the file, and no more time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.graph.clone import clone
from onnxcomp.graph.coded import Coded, CodedWriter, take_over
from onnxcomp.graph.ir import Array, Constant, Graph, elem_type
from onnxcomp.graph.rounding import Levels
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Range, SampleSource, Stage, option
from onnxcomp.passes.assigning.decisions import more_db
from onnxcomp.passes.assigning.finer import finer
from onnxcomp.passes.weights.coders import IntegerCoder
from onnxcomp.passes.weights.layout import Assembly, Layout, Reader
from onnxcomp.passes.weights.sources import described, reader, stored_weights
from onnxcomp.passes.weights.trials import Group, Trials, costly_first
from onnxcomp.runtime.closeness import energy
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find

CODER = IntegerCoder(Levels.signed(8), 8, 128)
LEAST_SAVED_BYTES = 256  # the nodes that decode a weight take about as much
HALF = np.dtype(np.float16)
HALF_DB = 50.0  # what half precision keeps of a weight whose numbers fit it; most have 70
OWN_DB = 30.0  # what 8 bits must keep of a weight itself, whatever the outputs say
SAMPLES = 3  # on which outputs are compared
MOST_BYTES = 512 * 2**20  # of weights that are held at once, to be tried one by one
ADDED = 0.25  # of the noise that is there already: what storing weights may add to it
FAIR = 0.5  # a group whose noise is below this part of its bytes' share of the budget is not looked into
STRICTER = 0.9  # the sum of single errors foretells that of all of them so well
LOOKS = 48  # runs on one sample, to find out which weights cost most
QUIET = 1e-5  # noise over signal, 50 dB: outputs that keep so much decide as they did
ROUNDS = 4  # until decisions hold, each asking for more dB
SMALL_SHARE = 0.05  # of the bytes: the smallest weights, of which 8 bits save least


@dataclass(frozen=True)
class StoreWeights(Pass):
    """What stays float is stored in 8 bits, or in half precision where 8 bits would cost the outputs too much.

    A weight is stored as integers with a scale a row, or in half precision, and decoded once, when the model is loaded:
    kernels and times are those of the float model. Which readers it has does not matter, so weights of fused operators,
    tables and what branches of an If share are stored likewise. With samples at hand it is measured what the rounding
    of each weight does to the outputs: those that cost most for their bytes take half precision, as many as it takes
    for the outputs' decisions to hold where a share of them is asked for. Run it last.
    """

    name: ClassVar[str] = "store-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    stage: ClassVar[Stage] = Stage.STORED

    least_sqnr: float = option(
        30.0,
        "dB that the outputs keep, beside the error that is there already; 0 takes 8 bits everywhere",
        minimum=0,
        search=Range(0.0, 50.0),
    )
    agreement: float = option(
        0.0,
        "share of the original's decisions that is kept, where they can be told: weights that cost most take half "
        "precision until then; 0: no limit",
        minimum=0,
        maximum=1,
        search=(0.0, 0.99),
    )
    form: Literal["auto", "int8", "half"] = option(
        "auto", "8 bits where the outputs allow it and half precision elsewhere, or one of them for all"
    )

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return target.decodes_at_load

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Choose a form for every weight, then write them."""
        outcome = Outcome()
        wanted = self.selects(graph)
        if not find(context.target).decodes_at_load:
            for constant in stored_weights(graph, context.operators):
                outcome.skip(reader(constant), f"{context.target} does not decode weights at load")
            return outcome
        found: dict[Constant, _Form] = {}
        weights = stored_weights(graph, context.operators)
        for constant, unfit in weights.items():
            chosen = all(wanted(node) for node in constant.consumers)
            why = unfit if chosen else "not selected by include and exclude"
            form = None if why else _Form.of(constant, context, self.form)
            why = why or (form.why if form is not None else "")
            if form is None or why:
                outcome.skip(reader(constant), why)
            else:
                found[constant] = form
        self._measure(graph, context, list(found.values()), outcome)
        _write(graph, found, outcome)
        if found:
            share = sum(form.bytes for form in found.values()) / sum(constant.nbytes for constant in found)
            outcome.metrics["stored_share"] = round(share, 6)
            outcome.summary = f"{len(found)} of {len(weights)} float weights stored in {share:.0%} of their bytes"
        return outcome

    def _measure(self, graph: Graph, context: PassContext, forms: list[_Form], outcome: Outcome) -> None:
        """Let weights take half precision until the outputs keep what they should."""
        free = [form for form in forms if form.bits == 8 and form.half_fits]
        feeds = _samples(context)
        if not self.least_sqnr or self.form != "auto" or not free:
            return
        if not feeds or sum(form.constant.nbytes for form in free) > MOST_BYTES:
            why = "no samples to run on" if not feeds else "they are too large to be held in memory twice"
            outcome.notes.append(f"what storing weights does to the outputs was not measured: {why}")
            return
        rounded = {form.constant: form.decoded() for form in free}
        trials = Trials(graph, list(rounded), feeds, context.sessions)
        budget, there = 10 ** (-self.least_sqnr / 10), math.inf
        if context.original is not None and context.training is None:
            there = trials.noise_of(context.original)
            budget = max(budget, ADDED * there) if np.isfinite(there) else budget
        allocation = _Allocation(trials, rounded, budget)
        allocation.settle(free)
        if self.agreement and context.agreement is not None:
            self._hold(graph, context.agreement, there, allocation, forms, free, outcome)

    def _hold(
        self,
        graph: Graph,
        share: Callable[[Graph], float | None],
        before: float,
        allocation: _Allocation,
        forms: list[_Form],
        free: list[_Form],
        outcome: Outcome,
    ) -> None:
        """Ask more of the outputs until they decide as often as the original does, or as the graph did before.

        Args:
            share: of the original's decisions that a graph keeps.
            before: noise over signal of the graph as it comes.
        """
        noise = allocation.noise(free)
        first = kept = share(_stored(graph, forms)) if noise > QUIET else None
        if kept is None or kept >= self.agreement:
            return
        there = 1.0 if before <= QUIET else share(graph)
        wanted = self.agreement if there is None else min(self.agreement, there)
        for _ in range(ROUNDS):
            if kept is None or kept >= wanted:
                break
            allocation.budget = min(allocation.budget, noise) / 10 ** (more_db(kept, self.agreement) / 10)
            for form in free:
                form.bits = 8
            allocation.settle(free)
            noise, kept = allocation.noise(free), share(_stored(graph, forms))
        outcome.notes.append(
            f"weights take half precision until the outputs decide as they did: {kept or 0.0:.1%} of the decisions are "
            f"the original's now, {first:.1%} were with {self.least_sqnr:g} dB"
        )


@dataclass
class _Form:
    """How one weight is stored.

    Attributes:
        bits: 8, or 16 for half precision.
        sqnr_db: of the weight itself at 8 bits.
        half_fits: whether half precision holds its numbers.
        why: why it stays as it is; empty where it does not.
        alone_db: what the outputs keep when it alone has 8 bits; None where that was not measured by itself.
    """

    constant: Constant
    layout: Layout
    bits: int
    sqnr_db: float
    half_fits: bool
    why: str = ""
    alone_db: float | None = None

    @classmethod
    def of(cls, constant: Constant, context: PassContext, wanted: str = "auto") -> _Form:
        """The smallest form that keeps the weight itself, or the one that is wanted."""
        layout = Layout.of(constant.shape, described(constant, context.operators), 0)
        form = cls(constant, layout, 8, float("inf"), False)
        signal = noise = half_noise = 0.0
        source = Reader(constant)
        for piece in layout.pieces():
            rows = source.rows(layout, piece)
            if not np.isfinite(rows).all():
                form.why = f"{constant.name} holds NaN or infinity"
                return form
            codes, scales = CODER.code(rows, layout.block)
            signal += energy(rows)
            noise += energy(rows - _decoded(codes, scales, rows.shape))
            with np.errstate(over="ignore"):
                half_noise += energy(rows - rows.astype(HALF).astype(np.float32))
        form.sqnr_db = _db(signal, noise)
        form.half_fits = constant.dtype.itemsize > 2 and _db(signal, half_noise) >= HALF_DB
        if wanted == "half" or (wanted == "auto" and form.sqnr_db < OWN_DB):
            form.bits = 16
        if wanted == "half" and not form.half_fits:
            form.why = f"half precision does not hold {constant.name}"
            return form
        if form.bits == 16 and not form.half_fits:
            form.why = f"8 bits keep {form.sqnr_db:.0f} dB of {constant.name}, and half precision does not hold it"
            if constant.dtype.itemsize == 2:
                form.why = f"8 bits keep {form.sqnr_db:.0f} dB of {constant.name}: it stays {constant.dtype.name}"
        elif constant.nbytes - form.bytes < LEAST_SAVED_BYTES:
            form.why = f"too small: {max(constant.nbytes - form.bytes, 0)} bytes would be saved"
        return form

    @property
    def bytes(self) -> int:
        """What it takes in the file."""
        return self.constant.size * self.bits // 8 + (4 * self.layout.rows if self.bits == 8 else 0)

    @property
    def words(self) -> str:
        """For the report."""
        if self.bits == 8:
            return f"8 bits, {self.sqnr_db:.1f} dB" if np.isfinite(self.sqnr_db) else "8 bits, exact"
        if self.alone_db is None:
            return "half precision"
        return f"half precision: with 8 bits here alone the outputs keep {self.alone_db:.1f} dB"

    def coded(self) -> Coded:
        """The integers and scales."""
        assembly, source = Assembly(self.layout), Reader(self.constant)
        for piece in self.layout.pieces():
            assembly.put(piece, *CODER.code(source.rows(self.layout, piece), self.layout.block))
        return assembly.coded(CODER.bits, CODER.zero)

    def decoded(self) -> Array:
        """The values that 8 bits stand for."""
        return self.coded().decode(self.constant.shape)


@dataclass
class _Allocation:
    """Finds the weights that may have 8 bits while the outputs keep what they should.

    Attributes:
        rounded: every weight as 8 bits give it.
        budget: noise over signal that all of them together may bring.
    """

    trials: Trials
    rounded: Mapping[Constant, Array]
    budget: float
    _known: dict[tuple[frozenset[Constant], int], float] = field(default_factory=dict)

    def settle(self, forms: list[_Form]) -> None:
        """Set `bits` of the weights that cost most for their bytes to 16."""
        if self._noise(forms) <= self.budget:
            return
        left = _without_smallest(forms)
        if self._noise(left) <= self.budget:
            return
        groups, allowed = self._groups(left), self.budget
        while groups:
            sizes = [sum(form.constant.size for form in group.items) for group in groups]
            fine = finer([group.noise for group in groups], sizes, allowed=allowed) or {0}  # the first costs most
            for place in fine:
                for form in groups[place].items:
                    form.bits = 16
            groups = [group for place, group in enumerate(groups) if place not in fine]
            noise = self._noise([form for group in groups for form in group.items])
            if noise <= self.budget:
                break
            allowed = min(allowed, sum(group.noise for group in groups)) * STRICTER * self.budget / noise

    def noise(self, forms: list[_Form]) -> float:
        """Of those that have 8 bits, together."""
        return self._noise([form for form in forms if form.bits == 8])

    def _groups(self, forms: list[_Form]) -> list[Group[_Form]]:
        """Weights in groups, those that cost most first and alone as far as LOOKS runs tell."""
        fair = FAIR * self.budget / sum(form.constant.nbytes for form in forms)
        groups = costly_first(
            forms, lambda part: self._noise(part, 1), lambda form: form.constant.nbytes, looks=LOOKS, fair=fair
        )
        for group in groups:
            if len(group.items) == 1:
                group.items[0].alone_db = -_db(max(group.noise, 1e-30), 1.0)
        return groups

    def _noise(self, forms: list[_Form], samples: int = SAMPLES) -> float:
        """Of these with 8 bits; run once, however often more is asked of the outputs."""
        asked = frozenset(form.constant for form in forms), samples
        if asked not in self._known:
            self._known[asked] = self.trials.noise({c: self.rounded[c] for c in asked[0]}, samples)
        return self._known[asked]


def _stored(graph: Graph, forms: list[_Form]) -> Graph:
    """A copy of a graph whose weights have the values that their forms stand for."""
    copied = clone(graph)
    for form in forms:
        if form.bits == 8 or form.half_fits:
            rounded = form.decoded() if form.bits == 8 else form.constant.values.astype(HALF)
            twin = copied.tensors[form.constant]
            assert isinstance(twin, Constant)
            twin.values = rounded.astype(form.constant.dtype)
    return copied.graph


def _without_smallest(forms: list[_Form]) -> list[_Form]:
    """The weights, in their order, but for the smallest, which take half precision: that costs next to nothing."""
    allowed = SMALL_SHARE * sum(form.constant.nbytes for form in forms)
    for form in sorted(forms, key=lambda form: form.constant.nbytes):
        allowed -= form.constant.nbytes
        if allowed < 0:
            break
        form.bits = 16
    return [form for form in forms if form.bits == 8]


def _samples(context: PassContext) -> list[dict[str, Array]]:
    source: SampleSource | None = context.calibration if context.calibration is not None else context.probes
    return [] if source is None else list(islice(source.batches(1), SAMPLES))


def _write(graph: Graph, found: Mapping[Constant, _Form], outcome: Outcome) -> None:
    writer = CodedWriter(graph)
    for constant, form in found.items():
        outcome.change(reader(constant), f"{constant.name}: {form.words}")
        if form.bits == 8:
            writer.write(constant, form.coded())
        else:
            small = graph.root.add_constant(f"{constant.name}_half", constant.values.astype(HALF))
            attrs = {"to": elem_type(constant.dtype)}
            take_over(
                graph.root, constant, graph.root.add_node("Cast", [small], name=f"{constant.name}_cast", attrs=attrs)
            )
    graph.sort()


def _decoded(codes: Array, scales: Array, shape: tuple[int, ...]) -> Array:
    """float32 rows of codes [rows, blocks, block] and scales [rows, blocks]."""
    values = (codes - np.float32(CODER.zero)) * scales[:, :, None]
    return values.reshape(shape[0], -1)[:, : shape[1]]


def _db(signal: float, noise: float) -> float:
    if not signal or not noise:
        return float("inf")
    return 10 * (float(np.log10(signal)) - float(np.log10(noise)))
