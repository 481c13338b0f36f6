"""Weights that are computed with in floating point take few bytes in the file, and no more time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import numpy as np

from onnxcomp.graph.coded import Coded, CodedWriter, take_over
from onnxcomp.graph.ir import Array, Constant, Graph, elem_type
from onnxcomp.graph.rounding import Levels
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, SampleSource, option
from onnxcomp.passes.weights.coders import IntegerCoder
from onnxcomp.passes.weights.layout import Assembly, Layout, Reader
from onnxcomp.passes.weights.sources import described, reader, stored_weights
from onnxcomp.passes.weights.trials import Trials

CODER = IntegerCoder(Levels.signed(8), 8, 128)
LEAST_SAVED_BYTES = 256  # the nodes that decode a weight take about as much
HALF = np.dtype(np.float16)
HALF_DB = 50.0  # what half precision keeps of a weight whose numbers fit it; most have 70
OWN_DB = 30.0  # what 8 bits must keep of a weight itself, whatever the outputs say
SAMPLES = 3  # on which outputs are compared
MOST_BYTES = 512 * 2**20  # of weights that are held at once, to be tried one by one
ADDED = 0.25  # of the noise that is there already: what storing weights may add to it
FAIR = 0.5  # a group whose noise is below this part of its bytes' share of the budget is not looked into


@dataclass(frozen=True)
class StoreWeights(Pass):
    """What stays float is stored in 8 bits, or in half precision where 8 bits would cost the outputs too much.

    A weight is stored as integers with a scale a row, or in half precision, and decoded once, when the model is loaded:
    kernels and times are those of the float model. Which readers it has does not matter, so weights of fused operators,
    tables and what branches of an If share are stored likewise. With samples at hand it is measured what the rounding
    of each weight does to the outputs: those that cost most for their bytes take half precision. Run it last.
    """

    name: ClassVar[str] = "store-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    least_sqnr: float = option(
        30.0, "dB that the outputs keep, beside the error that is there already; 0 takes 8 bits everywhere", minimum=0
    )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Choose a form for every weight, then write them."""
        outcome = Outcome()
        wanted = self.selects(graph)
        found: dict[Constant, _Form] = {}
        weights = stored_weights(graph, context.operators)
        for constant, unfit in weights.items():
            chosen = all(wanted(node) for node in constant.consumers)
            why = unfit if chosen else "not selected by include and exclude"
            form = None if why else _Form.of(constant, context)
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
        if not self.least_sqnr or not free:
            return
        if not feeds or sum(form.constant.nbytes for form in free) > MOST_BYTES:
            why = "no samples to run on" if not feeds else "they are too large to be held in memory twice"
            outcome.notes.append(f"what storing weights does to the outputs was not measured: {why}")
            return
        rounded = {form.constant: form.decoded() for form in free}
        trials = Trials(graph, list(rounded), feeds, context.threads)
        budget = 10 ** (-self.least_sqnr / 10)
        if context.original is not None and context.training is None:
            there = trials.noise_of(context.original, context.threads)
            budget = max(budget, ADDED * there) if np.isfinite(there) else budget
        _Allocation(trials, rounded, budget).settle(free)


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
    def of(cls, constant: Constant, context: PassContext) -> _Form:
        """The smallest form that keeps the weight itself."""
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
            signal += _energy(rows)
            noise += _energy(rows - _decoded(codes, scales, rows.shape))
            with np.errstate(over="ignore"):
                half_noise += _energy(rows - rows.astype(HALF).astype(np.float32))
        form.sqnr_db = _db(signal, noise)
        form.half_fits = constant.dtype.itemsize > 2 and _db(signal, half_noise) >= HALF_DB
        if form.sqnr_db < OWN_DB:
            form.bits = 16
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
    groups: list[tuple[float, list[_Form]]] = field(default_factory=list)

    def settle(self, forms: list[_Form]) -> None:
        """Set `bits` of the weights that cost most for their bytes to 16."""
        noise = self._noise(forms)
        if noise <= self.budget:
            return
        self._split(forms, noise, sum(form.constant.nbytes for form in forms))
        left = sorted(self.groups, key=lambda group: group[0] / sum(form.constant.nbytes for form in group[1]))
        while left and noise > self.budget:
            while left:
                _, costly = left.pop()
                for form in costly:
                    form.bits = 16
                if sum(cost for cost, _ in left) <= self.budget:
                    break
            noise = self._noise([form for _, group in left for form in group])

    def _split(self, forms: list[_Form], noise: float, total: int) -> None:
        """Halve groups until each has one weight, or brings less than is fair for its bytes: errors add up."""
        size = sum(form.constant.nbytes for form in forms)
        if len(forms) == 1 or noise <= FAIR * self.budget * size / total:
            self.groups.append((noise, forms))
            if len(forms) == 1:
                forms[0].alone_db = -10 * float(np.log10(max(noise, 1e-30)))
            return
        half = len(forms) // 2
        for part in (forms[:half], forms[half:]):
            self._split(part, self._noise(part), total)

    def _noise(self, forms: list[_Form]) -> float:
        return self.trials.noise({form.constant: self.rounded[form.constant] for form in forms}) if forms else 0.0


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


def _energy(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _db(signal: float, noise: float) -> float:
    return 10 * float(np.log10(signal / noise)) if signal and noise else float("inf")
