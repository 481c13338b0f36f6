"""Store weights in few bits, each in the form that ONNX Runtime runs at the speed of its best kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coded import PACKING_OPSET, Coded, CodedWriter
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.rounding import Levels
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, WeightUse, option
from onnxcomp.passes.weights.codebook import learn_levels, nearest_level
from onnxcomp.passes.weights.coders import BinaryCoder, Coder, Error, IntegerCoder, TernaryCoder
from onnxcomp.passes.weights.dequantize import DEQUANTIZE_OPSET, dequantize_refusal, write_dequantize
from onnxcomp.passes.weights.inputs import Absorber, layer_moments, unmeasured
from onnxcomp.passes.weights.kernels import (
    BlockCodes,
    BlockGather,
    BlockMatMul,
    RowGather,
    block_matmul_refusal,
    valid_block,
)
from onnxcomp.passes.weights.layout import Assembly, Layout, Reader
from onnxcomp.runtime.gram import Gram

DEFAULT_BLOCK = 32
LEAST_SAVED_BYTES = 256  # nodes that decode a weight take about as much
FAST_TWO_BIT_BLOCK = 64  # 2-bit MatMulNBits in smaller blocks is slower than float

Store = Literal["matmul", "gather", "rows", "folded", "dequantize"]


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Weights are stored in 8, 4, 2 or 1 bits; activations stay float.

    Integers: w is about scale * q, one scale an output channel or a block along the summed axes. Binary: alpha times
    the sign (XNOR-Net). Ternary: -alpha, 0, alpha (TWN). Codebook: indices into levels found by k-means (Deep
    Compression). With calibration data, integers of 4 and 2 bits are chosen so that the error of each layer's output,
    not of its weights, is least (GPTQ), and the mean of the error that is left goes into the bias.

    MatMul and Gemm in blocks of 16 to 256 become MatMulNBits, embeddings become look-ups of integers; both are
    read as they are stored. Everything else is decoded once, when the model is loaded, and runs float kernels.
    """

    name: ClassVar[str] = "quantize-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    bits: Literal[8, 4, 2] = option(8, "bits an integer takes; a codebook has 2**bits levels unless clusters says else")
    block: int | None = option(
        None, "elements along a row that share a scale; 0 leaves rows whole; default 0 for 8 bits, 32 below", minimum=0
    )
    form: Literal["integer", "binary", "ternary", "codebook"] = option("integer", "what the codes stand for")
    scale: Literal["float", "pow2"] = option("float", "any scale, or powers of two only")
    low: int | None = option(None, "lowest integer, with high in place of bits", minimum=-128, maximum=0)
    high: int | None = option(None, "highest integer, with low in place of bits", minimum=0, maximum=255)
    clusters: int = option(0, "levels of a codebook; 0 means 2**bits", minimum=0, maximum=256)
    embeddings: bool = option(True, "tables that are looked up by row, too")
    error: Literal["auto", "round", "mse", "gptq"] = option(
        "auto", "least error by rounding, by scale (mse), of the layer's output (gptq); auto: gptq where data is given"
    )
    accuracy_level: Literal[0, 1, 4] = option(
        4, "MatMulNBits multiplies in 8-bit integers (4, fastest), in float (1), or as the kernel likes (0)"
    )

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
        if self.form != "integer" and self.error in ("mse", "gptq"):
            raise self._wrong(f"form={self.form} has its own rule for errors", "leave out error")

    def required(self) -> frozenset[Need]:
        """error=gptq looks at activations."""
        return frozenset({Need.DATA}) if self.error == "gptq" else frozenset()

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every weight that pays, one after another; the float weights are never held together."""
        outcome = Outcome()
        work = _Work(self, graph, context, outcome)
        plans = work.plans()
        work.prepare_opset(plans)
        measured = [plan for plan in plans if plan.measured]
        for moments in layer_moments(graph, [plan.uses[0] for plan in measured], context):
            for plan in [p for p in measured if p.uses[0].node.name in moments]:
                work.apply(plan, moments[plan.uses[0].node.name])
            graph.sort()
        for plan in plans:
            if not plan.measured:
                work.apply(plan, None)
        work.summarize(len(plans))
        return outcome

    # -- what the options mean ---------------------------------------------------------------------------------

    @property
    def integers(self) -> Levels:
        """The integers that may be used."""
        if self.low is not None and self.high is not None:
            return Levels(self.low, self.high)
        return Levels.signed(self.bits, narrow=self.bits == 8)

    @property
    def stored_bits(self) -> int:
        """Bits a code takes in the file."""
        if self.form in ("binary", "ternary"):
            return 1 if self.form == "binary" else 2
        count = (
            (self.clusters or 2**self.bits) if self.form == "codebook" else self.integers.high - self.integers.low + 1
        )
        return next(bits for bits in (1, 2, 4, 8) if count <= 2**bits)

    @property
    def block_size(self) -> int:
        """Elements that share a scale; 0 for whole rows."""
        if self.block is not None:
            return self.block
        return DEFAULT_BLOCK if self.form == "integer" and self.low is None and self.bits < 8 else 0

    def coder(self, error: Error, *, positive: bool) -> Coder:
        """The rule by which rows become codes.

        Args:
            positive: scales must be positive, and the range symmetric.
        """
        power = self.scale == "pow2"
        if self.form == "binary":
            return BinaryCoder(power_of_two=power)
        if self.form == "ternary":
            return TernaryCoder(power_of_two=power)
        levels, bits = self.integers, self.stored_bits
        middle = 2 ** (bits - 1)
        zero = middle if levels.low >= -middle and levels.high < middle else -levels.low
        two_sided = self.low is None and levels.low < -levels.high
        if positive and two_sided:
            levels, two_sided = Levels.signed(bits), False
        return IntegerCoder(levels, bits, zero, two_sided, error, power)

    def _wrong(self, what: str, do: str) -> UsageError:
        return UsageError(f"{self.name}: {what}", where=f"pass {self.name}", do=do)


@dataclass
class _Plan:
    """What becomes of one weight.

    Attributes:
        uses: the nodes that read it as a weight.
        store: the form in which it is written.
        measured: the inputs of its layer are looked at.
    """

    constant: Constant
    uses: list[WeightUse]
    layout: Layout
    store: Store
    measured: bool = False


@dataclass
class _Error:
    """Squared weights and squared errors, summed up."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, values: Array, decoded: Array) -> None:
        self.signal += float(np.square(values, dtype=np.float64).sum())
        self.noise += float(np.square(values - decoded, dtype=np.float64).sum())

    @property
    def sqnr_db(self) -> float:
        if self.noise == 0 or self.signal == 0:
            return float("inf")
        return 10 * float(np.log10(self.signal / self.noise))


class _NotFiniteError(Exception):
    """A weight holds NaN or infinity."""


@dataclass
class _Work:
    """One run of the pass on one graph."""

    options: QuantizeWeights
    graph: Graph
    context: PassContext
    outcome: Outcome
    errors: dict[str, _Error] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0

    def __post_init__(self) -> None:
        self.shapes: Shapes = shape_tools.infer(self.graph)
        self.owners = self.graph.owners()
        self.writer = CodedWriter(self.graph)

    # -- planning ----------------------------------------------------------------------------------------------

    def plans(self) -> list[_Plan]:
        """One plan for each weight that can and should be quantized, in graph order; the others are skipped."""
        options, outcome = self.options, self.outcome
        by_constant: dict[Constant, list[WeightUse]] = {}
        for use in options.weights(self.graph, self.context, outcome):
            by_constant.setdefault(use.constant, []).append(use)
        found = []
        wanted = options.selects(self.graph)
        for constant, uses in by_constant.items():
            others = [n for n in constant.consumers if not wanted(n) and self.context.operators.facts(n).weights(n)]
            why = f"{constant.name} is shared with {others[0]}, which is not selected" if others else ""
            why = why or self._unfit(constant, uses)
            plan = None if why else self._plan(constant, uses)
            why = why or (self._unprofitable(plan) if plan is not None else "")
            if why or plan is None:
                for use in uses:
                    outcome.skip(use.node, why)
            else:
                found.append(plan)
        return found

    def _unfit(self, constant: Constant, uses: list[WeightUse]) -> str:
        kind = constant.dtype
        if any(part in kind.name for part in ("int", "float8", "float4")):
            return f"{constant.name} is already stored as {kind.name}"
        if kind.name not in ("float32", "float16", "bfloat16", "float64"):
            return f"{constant.name} is {kind.name}"
        if not constant.size:
            return f"{constant.name} is empty"
        if self.graph.is_output(constant):
            return f"{constant.name} is an output of the model itself"
        if constant in self.graph.root.kept_inputs:
            return f"{constant.name} is listed as an input, so a caller may replace it"
        if constant.stored is not None and not hasattr(constant.stored.proto, "data_type"):
            return f"{constant.name} is stored as a sparse tensor"
        if not self.options.embeddings and any(use.weight.role == "embedding" for use in uses):
            return "embeddings=false"
        return ""

    def _plan(self, constant: Constant, uses: list[WeightUse]) -> _Plan | None:
        options = self.options
        weight = next((use.weight for use in uses if use.weight.role == "kernel"), uses[0].weight)
        store = self._store(constant, uses)
        if store in ("matmul", "gather"):
            layout = Layout.of(constant.shape, weight, self._kernel_block(constant.shape, store), exact=True)
        else:
            layout = Layout.of(constant.shape, weight, 0 if store == "rows" else options.block_size)
        plan = _Plan(constant, uses, layout, store)
        plan.measured = self._error(plan) == "gptq"
        return plan

    def _store(self, constant: Constant, uses: list[WeightUse]) -> Store:
        """The form that is fastest to run among those that hold the weight; docs/decisions/weight-forms.md."""
        options, bits, block = self.options, self.options.stored_bits, self.options.block_size
        if self.context.target == "tensorrt":
            return "dequantize"
        centred = options.form == "integer" and options.coder("round", positive=False).zero == 2 ** (bits - 1)
        only_weights = len(constant.consumers) == len(uses)
        if not centred or not only_weights:
            return "folded"
        if all(use.weight.role == "embedding" for use in uses):
            if bits == 8 and not block:
                return "rows"
            fits = valid_block(self._kernel_block(constant.shape, "gather"), bits)
            return "gather" if fits and not BlockGather.refusal(constant, bits) else "folded"
        if not valid_block(block, bits) or (bits == 2 and block < FAST_TWO_BIT_BLOCK):
            return "folded"
        same_side = len({use.weight.out_axis % 2 for use in uses}) == 1
        if same_side and not any(block_matmul_refusal(use, self.shapes) for use in uses):
            return "matmul"
        return "folded"

    def _kernel_block(self, shape: tuple[int, ...], store: Store) -> int:
        """The block of a kernel: a whole row of a table is a block of the next power of two."""
        block = self.options.block_size
        if store == "gather" and not block:
            return max(16, 1 << (shape[1] - 1).bit_length())
        return block

    def _unprofitable(self, plan: _Plan) -> str:
        layout, bits = plan.layout, self.options.stored_bits
        if plan.store == "dequantize":
            why = dequantize_refusal(plan.uses, layout, self.options.form, bits)
            if why:
                return why
        levels = 4 * 2**bits if self.options.form == "codebook" else 4 * layout.rows * layout.blocks
        stored = layout.rows * layout.blocks * layout.block * bits // 8 + levels
        saved = plan.constant.nbytes - stored
        return "" if saved >= LEAST_SAVED_BYTES else f"too small: {max(saved, 0)} bytes would be saved"

    def _error(self, plan: _Plan) -> Error:
        """How rounding errors are kept small for this weight."""
        options = self.options
        if options.form != "integer":
            return "round"
        if options.error in ("round", "mse"):
            return "round" if options.error == "round" else "mse"
        few_bits = options.stored_bits < 8 or options.error == "gptq"
        if self.context.calibration is None or not few_bits:
            return "round"
        why = unmeasured(self.graph, plan.uses)
        if why and options.error == "gptq":
            self.outcome.notes.append(f"{plan.constant.name} is rounded without looking at data: {why}")
        return "mse" if why else "gptq"

    def prepare_opset(self, plans: list[_Plan]) -> None:
        """Raise the opset where the forms that were chosen need it."""
        bits, opset = self.options.stored_bits, self.graph.opset
        needed = 0
        if any(plan.store == "dequantize" for plan in plans):
            needed = DEQUANTIZE_OPSET[bits]
        elif bits < 8 and any(plan.store == "folded" for plan in plans):
            needed = PACKING_OPSET
        if opset < needed:
            self.outcome.notes.extend(raise_opset(self.graph, needed))
            self.shapes = shape_tools.infer(self.graph)
            self.owners = self.graph.owners()

    # -- doing -------------------------------------------------------------------------------------------------

    def apply(self, plan: _Plan, moments: Gram | None) -> None:
        """Quantize one weight, write it, and record what it cost."""
        constant, error = plan.constant, _Error()
        before = constant.nbytes
        try:
            if self.options.form == "codebook":
                stored = self._codebook(plan, error)
            else:
                stored = self._codes(plan, moments, error)
        except _NotFiniteError:
            for use in plan.uses:
                self.outcome.skip(use.node, f"{constant.name} holds NaN or infinity")
            return
        self.errors[constant.name] = error
        self.bytes_before += before
        self.bytes_after += stored
        for use in plan.uses:
            self.outcome.change(use.node, f"{self._words(plan)}, {_db(error.sqnr_db)}")

    def _codes(self, plan: _Plan, moments: Gram | None, error: _Error) -> int:
        """Row by row to codes, then into the graph; returns the bytes they take."""
        coder = self.options.coder(self._error(plan), positive=plan.store == "dequantize")
        absorber = Absorber.find(self.graph, plan.uses[0]) if moments is not None else None
        pieces = self._coded_pieces(plan, coder, moments, absorber, error)
        if plan.store in ("matmul", "gather"):
            columns = plan.layout.columns
            blocks = BlockCodes.joined([BlockCodes.packed(c, s, coder.bits, columns) for _, c, s in pieces])
            if absorber is not None:
                absorber.write(self.graph)
            return self._write_blocks(plan, blocks)
        assembly = Assembly(plan.layout)
        for piece, codes, scales in pieces:
            assembly.put(piece, codes, scales)
        if absorber is not None:
            absorber.write(self.graph)
        return self._write_whole(plan, assembly.coded(coder.bits, coder.zero))

    def _coded_pieces(
        self, plan: _Plan, coder: Coder, moments: Gram | None, absorber: Absorber | None, error: _Error
    ) -> Iterator[tuple[slice, Array, Array]]:
        layout, reader = plan.layout, Reader(plan.constant)
        groups = plan.uses[0].weight.group if moments is not None else 1
        order = layout.gram_order(plan.uses[0].weight) if moments is not None else None
        for piece in layout.pieces() if groups == 1 else [slice(0, layout.shape[layout.sliced])]:
            rows = reader.rows(layout, piece)
            if not np.isfinite(rows).all():
                raise _NotFiniteError
            parts = []
            for group, part in enumerate(np.split(rows, groups)):
                gram = None
                if moments is not None and order is not None:
                    gram, mean = moments.second[group][np.ix_(order, order)], moments.mean[group][order]
                    if absorber is not None:
                        gram = gram - np.outer(mean, mean)
                codes, scales = coder.code(part, layout.block, gram)
                decoded = ((codes - np.float32(coder.zero)) * scales[:, :, None]).reshape(len(part), -1)
                decoded = decoded[:, : layout.columns]
                error.add(part, decoded)
                if absorber is not None and moments is not None:
                    absorber.add((part - decoded) @ moments.mean[group][order])
                parts.append((codes, scales))
            yield piece, np.concatenate([c for c, _ in parts]), np.concatenate([s for _, s in parts])

    def _write_blocks(self, plan: _Plan, blocks: BlockCodes) -> int:
        if plan.store == "matmul":
            matmul = BlockMatMul(self.graph, plan.constant, blocks, self.options.accuracy_level)
            for use in plan.uses:
                matmul.replace(use.node, self.shapes)
        else:
            gather = BlockGather(self.graph, plan.constant, blocks)
            for use in plan.uses:
                gather.replace(use.node, self.owners[use.node], self.shapes)
        return blocks.codes.nbytes + blocks.scales.nbytes

    def _write_whole(self, plan: _Plan, coded: Coded) -> int:
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

    def _codebook(self, plan: _Plan, error: _Error) -> int:
        """All elements of a weight to indices into one table of levels."""
        constant, options = plan.constant, self.options
        layout = Layout.of(constant.shape, plan.uses[0].weight, 0)
        reader = Reader(constant)
        bounds, zeros = _bounds(reader, layout)
        pieces = (reader.rows(layout, piece) for piece in layout.pieces())
        levels = learn_levels(pieces, bounds, options.clusters or 2**options.bits, zeros, constant.size)
        codes = np.empty(constant.shape, np.uint8)
        for piece in layout.pieces():
            rows = reader.rows(layout, piece)
            chosen = nearest_level(rows, levels)
            error.add(rows, levels[chosen])
            layout.unread(chosen, piece, codes)
        self.writer.write(constant, Coded(codes, options.stored_bits, levels=levels))
        return -(-codes.size * options.stored_bits // 8) + levels.nbytes

    # -- telling -----------------------------------------------------------------------------------------------

    def _words(self, plan: _Plan) -> str:
        options, layout = self.options, plan.layout
        forms = {
            "integer": f"int{options.bits}" if options.low is None else f"integers {options.low} to {options.high}",
            "binary": "binary",
            "ternary": "ternary",
            "codebook": f"codebook of {options.clusters or 2**options.bits}",
        }
        share = "" if options.form == "codebook" else f", {layout.block} to a scale"
        return f"{forms[options.form]}{share}, {_STORES[plan.store]}"

    def summarize(self, planned: int) -> None:
        """The summary line and the figures."""
        outcome, errors = self.outcome, list(self.errors.values())
        if not errors:
            return
        share = self.bytes_after / max(self.bytes_before, 1)
        outcome.summary = (
            f"{len(errors)} of {planned + len(outcome.skips)} weights in {self.options.stored_bits} bits, "
            f"{share:.1%} of their bytes"
        )
        outcome.metrics["stored_share"] = round(share, 6)
        finite = [e.sqnr_db for e in errors if np.isfinite(e.sqnr_db)]
        if finite:
            outcome.metrics["worst_weight_sqnr_db"] = round(min(finite), 3)
            outcome.metrics["median_weight_sqnr_db"] = round(float(np.median(finite)), 3)


_STORES = {
    "matmul": "MatMulNBits",
    "gather": "GatherBlockQuantized",
    "rows": "looked up by rows",
    "folded": "decoded at load",
    "dequantize": "DequantizeLinear",
}


def _db(value: float) -> str:
    return f"{value:.1f} dB" if np.isfinite(value) else "exact"


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
