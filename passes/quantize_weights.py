"""Store weights in few bits, each in the form that ONNX Runtime runs at the speed of its best kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coded import PACKING_OPSET, Coded, CodedWriter
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.graph.rounding import Levels
from onnxcomp.layers.layer import bias_of
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, Range, Stage, option
from onnxcomp.manager.raising import raise_opset
from onnxcomp.passes.weights.codebook import learn_levels, nearest_level
from onnxcomp.passes.weights.coders import CACHED_ELEMENTS, Coder, Error
from onnxcomp.passes.weights.dequantize import DEQUANTIZE_OPSET, write_dequantize
from onnxcomp.passes.weights.inputs import Absorber, hedged, layer_moments, seen_samples, unmeasured
from onnxcomp.passes.weights.kernels import BlockCodes, BlockGather, BlockMatMul, RowGather
from onnxcomp.passes.weights.layout import Assembly, Layout, Reader
from onnxcomp.passes.weights.mixing import mixed
from onnxcomp.passes.weights.plan import Plan, Planner, Recipe
from onnxcomp.passes.weights.sources import other_weights, readers
from onnxcomp.runtime.closeness import energy
from onnxcomp.runtime.gram import Gram
from onnxcomp.targets.base import Target

DEFAULT_BLOCK = 32


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Weights are stored in 8, 4, 2 or 1 bits; activations stay float.

    Integers: w is about scale * q, one scale an output channel or a block along the summed axes. Binary: alpha times
    the sign (XNOR-Net). Ternary: -alpha, 0, alpha (TWN). Codebook: indices into levels found by k-means (Deep
    Compression). Integers of fewer than 8 bits are chosen so that the error of each layer's output, not of its weights,
    is least (GPTQ): on calibration data, where the mean of the error that is left goes into the bias, or on made-up
    samples, which are trusted half.

    Weights of fewer bits that cost the outputs most take 8, as far as `average` allows: each is rounded alone and the
    outputs compared, on calibration samples or on made-up ones.

    MatMul and Gemm in blocks of 16 to 256 become MatMulNBits, embeddings become look-ups of integers; both are
    read as they are stored. Everything else is decoded once, when the model is loaded, and runs float kernels.
    Of a small embedding table (under 5 % of the weights) rows stay in 8 bits.
    """

    name: ClassVar[str] = "quantize-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    stage: ClassVar[Stage] = Stage.INTEGER

    bits: Literal[8, 4, 2] = option(
        8, "bits an integer takes; a codebook has 2**bits levels unless clusters says else", search=(8, 4, 2)
    )
    form: Literal["integer", "binary", "ternary", "codebook"] = option(
        "integer", "what the codes stand for", search=("integer", "codebook")
    )
    block: int | None = option(
        None,
        "elements along a row that share a scale, 0 for whole rows; by default 32 below 8 bits, and for 8 bits whole "
        "rows but for products, which run faster in blocks",
        minimum=0,
        search=(None, 0, 16, 32, 64, 128),
        when={"form": ("integer",)},
    )
    scale: Literal["float", "pow2"] = option("float", "any scale, or powers of two only")
    low: int | None = option(None, "lowest integer, with high in place of bits", minimum=-128, maximum=0)
    high: int | None = option(None, "highest integer, with low in place of bits", minimum=0, maximum=255)
    clusters: int = option(0, "levels of a codebook; 0 means 2**bits", minimum=0, maximum=256)
    embeddings: bool = option(True, "tables that are looked up by row, too")
    decoded: bool = option(
        True, "weights that no kernel reads as integers, too: decoded when the model is loaded", search=(True, False)
    )
    error: Literal["auto", "round", "mse", "gptq"] = option(
        "auto",
        "least error by rounding, by scale (mse), of the layer's output (gptq); auto: gptq, on made-up samples where "
        "no data is given",
    )
    least_sqnr: float = option(
        20.0,
        "dB that the outputs shall keep: what costs them most takes 8 bits, as far as average allows; 0: none",
        minimum=0,
        search=Range(0.0, 40.0),
    )
    average: float = option(
        5.0, "bits a weight, scales included, that all weights together may take for it", minimum=0, maximum=8
    )
    accuracy_level: Literal[0, 1, 4] = option(
        4, "MatMulNBits multiplies in 8-bit integers (4, fastest), in float (1), or as the kernel likes (0)"
    )

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return target.contrib

    def validate(self) -> None:
        """Check the integer range and what goes with which form."""
        if (self.low is None) != (self.high is None):
            raise self._wrong("low and high go together", "give both or none")
        if self.low is not None and self.high is not None and not 1 <= self.high - self.low <= 255:
            raise self._wrong(f"the range {self.low} to {self.high} has no 2 to 256 integers", "widen or narrow it")
        if self.form != "integer" and self.low is not None:
            raise self._wrong(f"form={self.form} has no integer range", "leave out low and high")
        if self.form == "codebook" and self.scale == "pow2":
            raise self._wrong("a codebook has no scale", "leave out scale=pow2")
        if self.form != "codebook" and self.clusters:
            raise self._wrong("clusters belongs to form=codebook", "leave out clusters, or add form=codebook")
        if self.clusters == 1:
            raise self._wrong("a codebook of one level holds nothing", "give at least 2 clusters")
        if self.form != "integer" and self.error in ("mse", "gptq"):
            raise self._wrong(f"form={self.form} has its own rule for errors", "leave out error")

    def required(self) -> frozenset[Need]:
        """error=gptq looks at activations."""
        return frozenset({Need.DATA}) if self.error == "gptq" else frozenset()

    def recipe(self) -> Recipe:
        """The options as one rule."""
        explicit = self.low is not None and self.high is not None
        levels = Levels.signed(self.bits, narrow=self.bits == 8)
        if self.low is not None and self.high is not None:
            levels = Levels(self.low, self.high)
        clusters = (self.clusters or 2**self.bits) if self.form == "codebook" else 0
        count = {"binary": 2, "ternary": 4}.get(self.form, clusters or levels.high - levels.low + 1)
        bits = next(bits for bits in (1, 2, 4, 8) if count <= 2**bits)
        block = self.block
        if block is None:
            block = DEFAULT_BLOCK if self.form == "integer" and not explicit and self.bits < 8 else 0
        if self.form == "codebook":
            block = 0
        free = self.block is None and self.form == "integer" and not explicit and self.bits == 8
        return Recipe(self.form, levels, bits, block, clusters, self.scale == "pow2", not explicit, free)

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every weight that pays, one after another; the float weights are never held together."""
        outcome = Outcome()
        uses = self.weights(graph, context, outcome)
        hidden = list(outcome.skips)  # weights behind other nodes among them, which may be stored small where they lie
        known = {use.constant for use in uses}
        uses += other_weights(graph, context.operators, known, self.selects(graph), outcome)
        planner = Planner(
            graph,
            shape_tools.infer(graph),
            context.operators,
            self.recipe(),
            self.selects(graph),
            context.target,
            self.embeddings,
            self.decoded,
        )
        plans = self._mixed(planner, planner.plans(uses, outcome), context, outcome)
        for plan in plans:
            named = plan.constant in known
            plan.error = self._error(plan, graph, context, outcome) if named else self._unseen_error(plan)
        through = {node.name: plan.constant for plan in plans for node in readers(plan.constant)}
        _prepare_opset(graph, plans, context, outcome)
        work = _Work(self, graph, outcome, made_up=context.calibration is None)
        measured = [plan for plan in plans if plan.error == "gptq"]
        for moments in layer_moments(graph, [plan.uses[0] for plan in measured], context):
            for plan in [p for p in measured if p.uses[0].node.name in moments]:
                work.apply(plan, moments[plan.uses[0].node.name])
            graph.sort()
        for plan in plans:
            if plan.error != "gptq":
                work.apply(plan, None)
        work.summarize(len({use.constant for use in uses}))
        outcome.skips = [s for s in outcome.skips if s not in hidden or through.get(s.node) not in work.done]
        return outcome

    def _mixed(self, planner: Planner, plans: list[Plan], context: PassContext, outcome: Outcome) -> list[Plan]:
        """The plans, with 8 bits for the weights that cost the outputs most."""
        narrow = [plan for plan in plans if plan.recipe.bits < 8]
        if self.form != "integer" or self.low is not None or not (self.least_sqnr and self.average and narrow):
            return plans
        wide = replace(planner, recipe=QuantizeWeights(bits=8, scale=self.scale).recipe())

        def widen(plan: Plan) -> Plan | None:
            other = wide.plan(plan.constant, plan.uses, 0)
            return None if wide.unprofitable(other) else other

        found = mixed(planner.graph, narrow, widen, _decoded, context, least_db=self.least_sqnr, average=self.average)
        outcome.notes += found.notes
        return [found.wider.get(plan.constant, plan) for plan in plans]

    def _error(self, plan: Plan, graph: Graph, context: PassContext, outcome: Outcome) -> Error:
        """How the codes of a weight are chosen.

        What multiplies a table is one row number at a time, so that the best scale of a row is all there is to gain.
        """
        if self.form != "integer" or self.error == "round":
            return "round"
        if self.error == "mse":
            return "mse"
        table = all(use.weight.role == "embedding" for use in plan.uses)
        if table:
            return "mse" if plan.recipe.bits < 8 else "round"
        if plan.recipe.bits == 8 and self.error == "auto":
            return "round"
        if seen_samples(context) is None:
            return "mse" if plan.recipe.bits < 8 else "round"
        why = unmeasured(graph, plan.uses)
        if why:
            outcome.notes.append(f"{plan.constant.name} is rounded without a look at its inputs: {why}")
        return "mse" if why else "gptq"

    def _unseen_error(self, plan: Plan) -> Error:
        """How the codes of a weight are chosen whose inputs nobody knows."""
        return "round" if self.form != "integer" or self.error == "round" or plan.recipe.bits == 8 else "mse"

    def _wrong(self, what: str, do: str) -> UsageError:
        return UsageError(f"{self.name}: {what}", where=f"pass {self.name}", do=do)


def _prepare_opset(graph: Graph, plans: list[Plan], context: PassContext, outcome: Outcome) -> None:
    """Raise the opset where the forms that were chosen need it."""
    needed = 0
    for plan in plans:
        if plan.store == "dequantize":
            needed = max(needed, DEQUANTIZE_OPSET[plan.recipe.bits])
        elif plan.store == "folded" and plan.recipe.bits < 8:
            needed = max(needed, PACKING_OPSET)
    if graph.opset < needed:
        outcome.notes.extend(raise_opset(graph, needed, context))


class _NotFiniteError(Exception):
    """A weight holds NaN or infinity."""


@dataclass
class _Loss:
    """Squared weights and squared errors, summed up."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, values: Array, decoded: Array) -> None:
        step = max(1, CACHED_ELEMENTS // max(1, values.shape[1]))
        for start in range(0, len(values), step):
            part = values[start : start + step].astype(np.float64)
            error = part - decoded[start : start + step]
            self.signal += energy(part)
            self.noise += energy(error)

    @property
    def sqnr_db(self) -> float:
        """Infinite where nothing was lost."""
        if self.noise == 0 or self.signal == 0:
            return float("inf")
        return 10 * float(np.log10(self.signal / self.noise))


@dataclass
class _Work:
    """Carries out plans on one graph and keeps the accounts. `made_up`: what layers saw was no real input."""

    options: QuantizeWeights
    graph: Graph
    outcome: Outcome
    made_up: bool = False
    losses: list[_Loss] = field(default_factory=list)
    done: set[Constant] = field(default_factory=set)
    bytes_before: int = 0
    bytes_after: int = 0

    def __post_init__(self) -> None:
        self.shapes = shape_tools.infer(self.graph)
        self.owners = self.graph.owners()
        self.writer = CodedWriter(self.graph)

    def apply(self, plan: Plan, moments: Gram | None) -> None:
        """Quantize one weight, write it, and record what it cost."""
        before, loss = plan.constant.nbytes, _Loss()
        if moments is not None and not moments.finite:
            moments = None
        try:
            stored = self._codebook(plan, loss) if plan.recipe.clusters else self._codes(plan, moments, loss)
        except _NotFiniteError:
            for use in plan.uses:
                self.outcome.skip(use.node, f"{plan.constant.name} holds NaN or infinity")
            return
        self.done.add(plan.constant)
        self.losses.append(loss)
        self.bytes_before += before
        self.bytes_after += stored
        error = f"{loss.sqnr_db:.1f} dB" if np.isfinite(loss.sqnr_db) else "exact"
        for use in plan.uses:
            self.outcome.change(use.node, f"{plan.words}, {error}")

    def _codes(self, plan: Plan, moments: Gram | None, loss: _Loss) -> int:
        """Rows to codes, piece by piece, then into the graph; returns the bytes they take."""
        coder = plan.coder
        bias = bias_of(self.graph, plan.uses[0]) if moments is not None and not self.made_up else None
        absorber = None if bias is None else Absorber(bias)
        pieces = _coded_pieces(plan, coder, moments, absorber, loss, hedge=self.made_up)
        blocks, coded = None, None
        if plan.store in ("matmul", "gather"):
            columns = plan.layout.columns
            small = plan.small_scales
            parts = [BlockCodes.packed(c, s, coder.bits, columns, small_scales=small) for _, c, s in pieces]
            blocks = BlockCodes.joined(parts)
        else:
            assembly = Assembly(plan.layout)
            for piece, codes, scales in pieces:
                assembly.put(piece, codes, scales)
            coded = assembly.coded(coder.bits, coder.zero)
        if absorber is not None:
            absorber.write(self.graph)
        if blocks is not None:
            return self._write_blocks(plan, blocks)
        assert coded is not None
        return self._write_whole(plan, coded)

    def _write_blocks(self, plan: Plan, blocks: BlockCodes) -> int:
        if plan.store == "matmul":
            matmul = BlockMatMul(self.graph, plan.constant, blocks, self.options.accuracy_level)
            for use in plan.uses:
                matmul.replace(use, self.shapes)
        else:
            gather = BlockGather(self.graph, plan.constant, blocks)
            for use in plan.uses:
                gather.replace(use.node, self.shapes)
        return blocks.nbytes

    def _write_whole(self, plan: Plan, coded: Coded) -> int:
        if plan.store == "rows":
            table = RowGather(self.graph, plan.constant, coded.codes, np.asarray(coded.scale))
            for use in plan.uses:
                table.replace(use.node, self.owners[use.node], self.shapes)
        elif plan.store == "dequantize":
            write_dequantize(self.graph, plan.constant, plan.layout, coded)
        else:
            self.writer.write(plan.constant, coded)
        scales = 0 if coded.scale is None else coded.scale.nbytes
        return -(-coded.codes.size * coded.bits // 8) + scales

    def _codebook(self, plan: Plan, loss: _Loss) -> int:
        """All elements of a weight to indices into one table of levels."""
        constant, layout, reader = plan.constant, plan.layout, Reader(plan.constant)
        bounds, zeros = _bounds(reader, layout)
        pieces = (reader.rows(layout, piece) for piece in layout.pieces())
        levels = learn_levels(pieces, bounds, plan.recipe.clusters, zeros, constant.size)
        codes = np.empty(constant.shape, np.uint8)
        for piece in layout.pieces():
            rows = reader.rows(layout, piece)
            chosen = nearest_level(rows, levels)
            loss.add(rows, levels[chosen])
            layout.unread(chosen, piece, codes)
        self.writer.write(constant, Coded(codes, plan.recipe.bits, levels=levels))
        return -(-codes.size * plan.recipe.bits // 8) + levels.nbytes

    def summarize(self, found: int) -> None:
        """The summary line and the figures."""
        if not self.losses:
            return
        share = self.bytes_after / max(self.bytes_before, 1)
        self.outcome.summary = f"{len(self.losses)} of {found} weights quantized, {share:.1%} of their bytes"
        self.outcome.metrics["stored_share"] = round(share, 6)
        finite = [loss.sqnr_db for loss in self.losses if np.isfinite(loss.sqnr_db)]
        if finite:
            self.outcome.metrics["worst_weight_sqnr_db"] = round(min(finite), 3)
            self.outcome.metrics["median_weight_sqnr_db"] = round(float(np.median(finite)), 3)


def _decoded(plan: Plan) -> Array:
    """The values that a weight gets when each element is rounded to the nearest."""
    layout, reader, coder = plan.layout, Reader(plan.constant), replace(plan, error="round").coder
    values = np.empty(plan.constant.shape, np.float32)
    for piece in layout.pieces():
        rows = reader.rows(layout, piece)
        codes, scales = coder.code(rows, layout.block)
        decoded = (codes - np.float32(coder.zero)) * scales[:, :, None]
        layout.unread(decoded.reshape(len(rows), -1)[:, : layout.columns], piece, values)
    return values


def _coded_pieces(
    plan: Plan, coder: Coder, moments: Gram | None, absorber: Absorber | None, loss: _Loss, *, hedge: bool
) -> Iterator[tuple[slice, Array, Array]]:
    """Codes [rows, blocks, block] and scales [rows, blocks] of one piece of a weight after another.

    `hedge`: the moments are of samples that were made up.
    """
    layout, reader = plan.layout, Reader(plan.constant)
    grams, means = _in_columns(plan, moments)
    groups = max(1, len(grams))
    # the rows of a group have one Gram matrix: groups are told apart on the whole weight
    for piece in layout.pieces() if groups == 1 else [slice(0, layout.shape[layout.sliced])]:
        rows = reader.rows(layout, piece)
        if not np.isfinite(rows).all():
            raise _NotFiniteError
        codes, scales = [], []
        for group, part in enumerate(np.split(rows, groups)):
            gram = grams[group] if grams else None
            if gram is not None and hedge:
                gram = hedged(gram)
            if gram is not None and absorber is not None:
                gram = gram - np.outer(means[group], means[group])  # the bias makes good what is left of the mean
            chosen, scale = coder.code(part, layout.block, gram)
            decoded = (chosen - np.float32(coder.zero)) * scale[:, :, None]
            decoded = decoded.reshape(len(part), -1)[:, : layout.columns]
            loss.add(part, decoded)
            if absorber is not None:
                absorber.add((part - decoded) @ means[group])
            codes.append(chosen)
            scales.append(scale)
        yield piece, np.concatenate(codes), np.concatenate(scales)


def _in_columns(plan: Plan, moments: Gram | None) -> tuple[list[Array], list[Array]]:
    """E[x x^T] and E[x] of each group, in the order of the layout's columns."""
    if moments is None:
        return [], []
    order = plan.layout.gram_order(plan.uses[0].weight)
    return [g[np.ix_(order, order)] for g in moments.second], [m[order] for m in moments.mean]


def _bounds(reader: Reader, layout: Layout) -> tuple[tuple[float, float], int]:
    """Smallest and largest element, and how many are exactly 0."""
    low, high, zeros = np.inf, -np.inf, 0
    for piece in layout.pieces():
        rows = reader.rows(layout, piece)
        if not np.isfinite(rows).all():
            raise _NotFiniteError
        low, high = min(low, float(rows.min())), max(high, float(rows.max()))
        zeros += rows.size - int(np.count_nonzero(rows))
    return (low, high), zeros
