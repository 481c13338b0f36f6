"""Int8 products and cells whose activations are quantized while the model runs: for transformers and LSTMs on CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.ir import ONNX_DOMAIN, Array, Constant, Graph, Node, Variable, elem_type
from onnxcomp.graph.single import unfit
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import CostModel, Guarantee, Outcome, Pass, PassContext, Range, Stage, option
from onnxcomp.manager.raising import raise_opset
from onnxcomp.passes.weights import recurrent, windows
from onnxcomp.passes.weights.attention import attention_refusal, write_attention
from onnxcomp.passes.weights.coders import IntegerCoder
from onnxcomp.passes.weights.kernels import BlockCodes, BlockMatMul, RowGather, block_matmul_refusal, state_type
from onnxcomp.passes.weights.layout import Assembly, Layout, Reader
from onnxcomp.passes.weights.rounding import LEVELS, int8_rows, solved_rows
from onnxcomp.passes.weights.smoothing import Group, Verdict, measure, without
from onnxcomp.passes.weights.sources import other_weights
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find

DYNAMIC_OPSET = 11  # DynamicQuantizeLinear
PROTECTED_BLOCK = 32
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """MatMul, Gemm, LSTM and Conv multiply 8-bit integers; activations get their scales from their values at run time.

    Products are written with standard operators (DynamicQuantizeLinear, MatMulInteger, Cast, Mul), which ONNX Runtime
    fuses into DynamicQuantizeMatMul and MatMulIntegerToFloat. Weights have one scale an output channel; an activation
    that several products read is quantized once. LSTM becomes DynamicQuantizeLSTM where that is measured to be faster,
    or, where nothing is measured, if it is large; with calibration data its weights are rounded so that what it really
    reads errs least (GPTQ, arXiv 2210.17323, and coordinate descent). Embedding tables are stored in rows of int8,
    unless as many rows are looked up as there are.

    A Conv becomes a product of windows, cut out of its quantized input, where that is measured to be faster: long
    kernels over many channels along one axis took 0.50 to 0.65 of their time on AVX2. Where one static scale serves all
    samples, quantize-qdq is faster still; this one follows each sample's range.

    With calibration data the input channels of a product are evened out where that makes its error smaller on samples
    not used to find it: x / s times s W, with s = max|x|^smooth / max|W|^(1 - smooth) (SmoothQuant, arXiv 2211.10438).
    Where a few channels reach far beyond all others, as hidden units of transformers do that fire at the first token,
    those are multiplied in float beside the others, whose range they would set (after LLM.int8(), arXiv 2208.07339).
    """

    name: ClassVar[str] = "quantize-dynamic"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY
    stage: ClassVar[Stage] = Stage.INTEGER

    isa: Literal["portable", "native"] = option(
        "portable", "weights safe on every x86, or best on CPUs with VNNI (and ARM)"
    )
    embeddings: bool = option(True, "store tables that are looked up by row in int8, too")
    smooth: float = option(
        0.7,
        "how much of the range of activations moves into weights; 0 leaves it",
        minimum=0,
        maximum=1,
        search=Range(0.0, 0.9),
    )
    protect: float = option(
        0.0,
        "share of the products' work, the most sensitive first, done in 8-bit blocks (MatMulNBits): exact but slower",
        minimum=0,
        maximum=1,
        search=Range(0.0, 1.0),
    )
    apart: bool = option(
        True, "with calibration data: multiply few channels in float beside the others, whose range they would set"
    )
    least: int = option(4096, "elements of the smallest weight worth it", minimum=1)
    windows: Literal["measured", "always"] = option(
        "measured",
        "convolutions become products of windows where that is faster here (where times are known), or always",
    )

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return target.dynamic

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every product that gains, bodies of If, Loop and Scan included."""
        outcome = Outcome()
        uses = self.weights(graph, context, outcome)
        target = find(context.target)
        if not target.dynamic:
            for use in uses:
                outcome.skip(use.node, f"{context.target} has no kernels for activations quantized at run time")
            return outcome
        work = _Work(self, graph, outcome, portable=target.portable(self.isa))
        products = [use for use in uses if work.takes_product(use)]
        convolutions = [use for use in uses if work.takes_windows(use, context.costs)]
        tables = [use for use in uses if use.weight.role == "embedding" and work.takes_table(use)]
        cells = work.takes_cells(list(dict.fromkeys(use.node for use in uses if use.weight.role == "recurrent")))
        if (products or convolutions) and graph.opset < DYNAMIC_OPSET:
            outcome.notes.extend(raise_opset(graph, DYNAMIC_OPSET, context))
            work = _Work(self, graph, outcome, portable=target.portable(self.isa))
        if convolutions:
            work.windows(convolutions, context)
        groups = work.groups(products)
        verdicts = self._look(graph, groups, context)
        protected = self._protected(products, groups, verdicts, work)
        moments = recurrent.moments(graph, cells, context)
        for group in groups:
            work.quantize(group, verdicts.get(group.key), protected)
        work.tables(tables)
        work.cells(cells, context.costs, moments)
        known = {use.constant for use in uses}
        for use in other_weights(graph, context.operators, known, self.selects(graph), outcome):
            if use.constant.size >= self.least and use.constant.dtype == FLOAT32:
                outcome.skip(use.node, f"no kernel takes {use.constant.name} in 8-bit integers: store-weights can")
        work.summarize(len(uses))
        return outcome

    def _look(self, graph: Graph, groups: list[Group], context: PassContext) -> dict[str, Verdict]:
        """What calibration data says of each activation; empty where there is none or nobody asks."""
        if context.calibration is None or not (self.smooth or self.protect or self.apart):
            return {}
        inside = [group for group in groups if any(node is group.uses[0].node for node in graph.nodes)]
        return measure(graph, inside, context, self.smooth, apart=self.apart)

    def _protected(
        self, products: list[WeightUse], groups: list[Group], verdicts: dict[str, Verdict], work: _Work
    ) -> set[Node]:
        """The products with the largest errors of their own, up to the share of work that may be slower."""
        losses = [
            (verdicts[group.key].sqnr_db[use.node.name], use)
            for group in groups
            if group.key in verdicts
            for use in group.uses
        ]
        left = self.protect * sum(use.constant.size for use in products)
        chosen: set[Node] = set()
        for _, use in sorted(losses, key=lambda pair: pair[0]):
            if use.constant.size <= left and not use.shared and not block_matmul_refusal(use, work.shapes):
                chosen.add(use.node)
                left -= use.constant.size
        return chosen


@dataclass
class _Work:
    """Rewrites products and look-ups of one graph."""

    options: QuantizeDynamic
    graph: Graph
    outcome: Outcome
    portable: bool
    changed: int = 0
    _codes: dict[tuple[Constant, int, str], tuple[Constant, Array]] = field(default_factory=dict)
    _few: dict[str, Variable] = field(default_factory=dict)
    _quantized: dict[str, tuple[Variable, Variable, Variable]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes = shape_tools.infer(self.graph)
        self.owners = self.graph.owners()

    # -- choosing ----------------------------------------------------------------------------------------------

    def takes_product(self, use: WeightUse) -> bool:
        """Whether a use is a product that can be quantized; a reason is recorded where it is not."""
        if use.weight.windows:
            return False
        why = self._refusal(use)
        if why:
            self.outcome.skip(use.node, why)
        return not why and use.weight.role == "kernel"

    def _refusal(self, use: WeightUse) -> str:
        node, constant = use.node, use.constant
        if use.weight.role != "kernel":
            return ""
        weight = use.weight
        if node.op == "Attention":
            if why := attention_refusal(node):
                return why
        elif not (weight.reads and weight.bare):
            return f"ONNX Runtime has no kernel for {node.op} with 8-bit integers"
        elif weight.port != 1:
            return "its weight is on the left, where the integer kernels want the activations"
        elif weight.reads == "columns" and weight.rank != 2:
            return "its activations are transposed inside"
        if constant.dtype != FLOAT32:
            return unfit(constant.name, constant.dtype)
        if len(constant.shape) != 2:
            return f"{constant.name} has {len(constant.shape)} dimensions: one scale an output needs two"
        if constant.size < self.options.least:
            return f"too small: {constant.size} weights cost less than quantizing their input"
        return "its input is a constant" if isinstance(node.inputs[0], Constant) else ""

    def takes_table(self, use: WeightUse) -> bool:
        """Whether a look-up can read a table of int8 rows; a reason is recorded where it cannot."""
        constant, why = use.constant, ""
        if not self.options.embeddings:
            why = "embeddings=false"
        elif constant.dtype.name not in ("float32", "float16"):
            why = f"{constant.name} is {constant.dtype.name}"
        elif constant.size < self.options.least:
            why = f"too small: {constant.size} elements"
        elif self._picks_all(use.node, constant):
            why = "as many rows are looked up as there are: decoding them each time takes time, store-weights none"
        elif any(self._other_use(reader) for reader in constant.consumers):
            why = f"{constant.name} is read by other operators too, so that a second copy would only cost space"
        elif self.graph.is_output(constant) or constant in self.graph.root.kept_inputs:
            why = f"{constant.name} is visible from outside the model"
        if why:
            self.outcome.skip(use.node, why)
        return not why

    def _picks_all(self, node: Node, table: Constant) -> bool:
        """Whether one run looks up at least as many rows as the table has, as far as sizes are known."""
        picked = self.shapes.shape(node.inputs[1]) or ()
        return prod(d for d in picked if isinstance(d, int)) >= table.shape[0]

    def _other_use(self, reader: Node) -> bool:
        return reader.op != "Gather" or int(reader.attrs.get("axis", 0)) != 0

    def groups(self, products: list[WeightUse]) -> list[Group]:
        """Products that read one activation in one scope, and so share what is done to it."""
        found: dict[tuple[Graph, Variable, bool], list[WeightUse]] = {}
        for use in products:
            turned = use.weight.reads == "columns"
            found.setdefault((self.owners[use.node], use.node.inputs[0], turned), []).append(use)
        return [Group(f"{i}", x, members, turned) for i, ((_, x, turned), members) in enumerate(found.items())]

    # -- products ----------------------------------------------------------------------------------------------

    def quantize(self, group: Group, verdict: Verdict | None, protected: set[Node]) -> None:
        """Rewrite the products of one activation."""
        smoothing = verdict.smoothing if verdict is not None else None
        apart = verdict.apart if verdict is not None else None
        for use in group.uses:
            if use.node in protected:
                self._protect(use)
                continue
            made = self._weight(use, group.key, smoothing, apart)
            if made is None:
                self.outcome.skip(use.node, f"{use.constant.name} holds NaN or infinity")
                continue
            activation = self._activation(group, self.owners[use.node], smoothing, apart)
            if use.node.op == "Attention":
                write_attention(self.graph, use.node, activation, *made, self.shapes)
            else:
                output = use.node.outputs[0]
                self._rewrite(use, activation, *made)
                if apart is not None:
                    self._beside(use, group, apart, output)
            how = "int8, smoothed input" if smoothing is not None else "int8"
            if apart is not None:
                how = f"int8, {len(apart)} channels in float"
            if verdict is not None:
                how = f"{how}, {verdict.sqnr_db[use.node.name]:.1f} dB"
            self.outcome.change(use.node, how)
            self.changed += 1

    def _activation(
        self, group: Group, owner: Graph, smoothing: Array | None, apart: Array | None
    ) -> tuple[Variable, Variable, Variable]:
        """The quantized activation, its scale and its zero point; made once for a group."""
        if group.key not in self._quantized:
            x: Variable = group.activation
            base = x.name
            if group.turned:
                x = owner.add_node("Transpose", [x], name=f"{base}_turned", attrs={"perm": [1, 0]}).outputs[0]
            if smoothing is not None or apart is not None:
                layout = Layout.of(group.uses[0].constant.shape, group.uses[0].weight, 0)
                factors = 1 / smoothing if smoothing is not None else np.ones(layout.columns)
                if apart is not None:
                    factors[apart] = 0
                factor = self.graph.add_constant(f"{base}_smooth", factors.astype(np.float32))
                x = owner.add_node("Mul", [x, factor], name=f"{base}_smoothed").outputs[0]
            made = owner.add_node("DynamicQuantizeLinear", [x], name=f"{base}_quantized", outputs=3)
            self._quantized[group.key] = tuple(made.outputs)
        return self._quantized[group.key]

    def _weight(
        self, use: WeightUse, key: str, smoothing: Array | None, apart: Array | None
    ) -> tuple[Constant, Array] | None:
        """int8 [K, N] and its float32 scales [N]; nodes that share a weight and its smoothing share the copy.

        None where the weight is not finite.
        """
        constant, out_axis = use.constant, use.weight.out_axis % 2
        where = (constant, out_axis, key if smoothing is not None or apart is not None else "")
        if where not in self._codes:
            layout, reader = Layout.of(constant.shape, use.weight, 0), Reader(constant)
            codes = np.empty((layout.columns, layout.rows), np.int8)
            scales = np.empty(layout.rows, np.float32)
            for piece in layout.pieces():
                rows = reader.rows(layout, piece)
                if not np.isfinite(rows).all():
                    return None
                if smoothing is not None:
                    rows *= smoothing
                if apart is not None:
                    rows = without(rows, apart)
                chosen, scales[piece] = int8_rows(rows, portable=self.portable)
                codes[:, piece] = chosen.T
            self._codes[where] = (self.graph.add_constant(f"{constant.name}_q8", codes), scales)
        return self._codes[where]

    def _rewrite(
        self, use: WeightUse, activation: tuple[Variable, Variable, Variable], weight: Constant, scales: Array
    ) -> None:
        """Turn a product into MatMulInteger, in place, and what follows it back to float."""
        node, alpha, beta = use.node, use.weight.alpha, use.weight.beta
        owner, out = self.owners[node], node.outputs[0]
        state_type(out, self.shapes, self.graph)
        bias = node.input(use.weight.bias) if use.weight.bias is not None and beta != 0 else None
        quantized, scale, zero = activation
        node.op, node.domain, node.attrs, node.origin = "MatMulInteger", ONNX_DOMAIN, {}, {}
        node.inputs = [quantized, weight, zero]
        total = Variable(self.graph.unique_name(f"{node.name}_int32"), np.dtype(np.int32), out.shape)
        node.outputs = [total]
        real = owner.add_node("Cast", [total], name=f"{node.name}_cast", attrs={"to": elem_type(FLOAT32)}).outputs[0]
        factors = self.graph.add_constant(f"{weight.name}_scale", (scales * np.float32(alpha)).astype(np.float32))
        both = owner.add_node("Mul", [scale, factors], name=f"{node.name}_scale").outputs[0]
        if bias is None:
            owner.add_node("Mul", [real, both], name=f"{node.name}_float", outputs=[out])
            return
        product = owner.add_node("Mul", [real, both], name=f"{node.name}_float").outputs[0]
        if beta != 1:
            times = self.graph.add_constant(f"{node.name}_beta", np.asarray(beta, np.float32))
            bias = owner.add_node("Mul", [bias, times], name=f"{node.name}_bias").outputs[0]
        owner.add_node("Add", [product, bias], name=f"{node.name}_add", outputs=[out])

    def _beside(self, use: WeightUse, group: Group, apart: Array, output: Variable) -> None:
        """Add what the channels that are left out give, in float, in front of a bias: each tensor stays what it is."""
        owner, base = self.owners[use.node], group.activation.name
        if group.key not in self._few:
            places = self.graph.add_constant(f"{base}_places", apart)
            attrs = {"axis": -1}
            few = owner.add_node("Gather", [group.activation, places], name=f"{base}_apart", attrs=attrs).outputs[0]
            self._few[group.key] = few
        rows = Layout.of(use.constant.shape, use.weight, 0).read(use.constant.values, slice(None))  # [N, K]
        weight = np.ascontiguousarray(rows[:, apart].T * np.float32(use.weight.alpha))
        stored = self.graph.add_constant(f"{use.constant.name}_apart", weight)
        side = owner.add_node("MatMul", [self._few[group.key], stored], name=f"{use.node.name}_apart").outputs[0]
        maker = output.producer
        assert maker is not None
        others = Variable(self.graph.unique_name(f"{output.name}_others"), FLOAT32, output.shape)
        maker.outputs[0] = others
        owner.add_node("Add", [others, side], name=f"{use.node.name}_all", outputs=[output])

    def _protect(self, use: WeightUse) -> None:
        """An 8-bit block product, whose activations get a scale for every few elements."""
        layout, reader = Layout.of(use.constant.shape, use.weight, PROTECTED_BLOCK, exact=True), Reader(use.constant)
        coder = IntegerCoder(LEVELS, 8, 128)
        parts = []
        for piece in layout.pieces():
            codes, scales = coder.code(reader.rows(layout, piece), layout.block)
            parts.append(BlockCodes.packed(codes, scales, 8, layout.columns))
        BlockMatMul(self.graph, use.constant, BlockCodes.joined(parts), 4).replace(use, self.shapes)
        self.outcome.change(use.node, f"int8 in blocks of {PROTECTED_BLOCK}: sensitive")
        self.changed += 1

    # -- convolutions ------------------------------------------------------------------------------------------

    def takes_windows(self, use: WeightUse, costs: CostModel | None) -> bool:
        """Whether a convolution may gain as a product of windows; a reason is recorded where it cannot."""
        if not use.weight.windows:
            return False
        if use.constant.dtype != FLOAT32:
            why = f"{use.constant.name} is {use.constant.dtype.name}"
        elif isinstance(use.node.inputs[0], Constant):
            why = "its input is a constant"
        elif costs is None and self.options.windows == "measured":
            why = "few convolutions are faster with activations quantized at run time, and times are not measured"
        else:
            why = windows.refusal(use, self.shapes, self.graph.opset)
        if why:
            self.outcome.skip(use.node, why)
        return not why

    def windows(self, uses: list[WeightUse], context: PassContext) -> None:
        """Convolutions become products of windows where that is measured to be faster, or all of them if so asked."""
        if self.options.windows == "always" or context.costs is None:
            moments = windows.moments(self.graph, uses, context)
            for use in uses:
                if self.window(use, moments.get(use.node.name)):
                    self.outcome.change(use.node, "int8 windows")
                    self.changed += 1
                else:
                    self.outcome.skip(use.node, f"{use.constant.name} holds NaN or infinity")
            return
        times = self._faster(uses, context.costs)
        moments = windows.moments(self.graph, [use for use in uses if use.node.name in times], context)
        for use in uses:
            if use.node.name not in times:
                self.outcome.skip(use.node, "measured: no faster with activations quantized at run time")
                continue
            before, after = times[use.node.name]
            self.window(use, moments.get(use.node.name))
            self.outcome.change(use.node, f"int8 windows, {after / before:.2f} of its time")
            self.changed += 1

    def _faster(self, uses: list[WeightUse], costs: CostModel) -> dict[str, tuple[float, float]]:
        """Microseconds before and after of the convolutions that are faster as products of windows, by name."""
        other = _Work(self.options, self.graph.clone(), Outcome(), self.portable)
        twins = {node.name: node for node in other.graph.walk()}
        written = {}
        for use in uses:
            twin, constant = twins[use.node.name], twins[use.node.name].constant(use.weight.port)
            if constant is not None and (parts := other.window(WeightUse(twin, use.weight, constant), None)):
                written[use.node.name] = parts
        other.graph.sort()  # in bodies ONNX Runtime wants nodes behind what they read, in the model itself it does not
        return windows.faster(self.graph, written, other.graph, costs) if written else {}

    def window(self, use: WeightUse, moments: Array | None) -> set[str]:
        """Write one convolution as a product of windows; the names of its nodes, none where a weight is not finite.

        Args:
            moments: of what the kernel reads, float64 [in, in]; None: each weight is rounded to the nearest.
        """
        node, rows = use.node, np.asarray(use.weight.to_matrix(use.constant.values), np.float32)
        if not np.isfinite(rows).all():
            return set()
        if moments is None:
            codes, scales = int8_rows(rows, portable=self.portable)
        else:
            codes, scales = solved_rows(rows, moments, portable=self.portable)
        weight = self.graph.add_constant(f"{use.constant.name}_q8", np.ascontiguousarray(codes.T))
        owner, out = self.owners[node], node.outputs[0]
        there = len(owner.nodes)
        state_type(out, self.shapes, self.graph)
        form = windows.Windows.of(self.graph, owner, use)
        activation = form.quantized()
        node.outputs = [Variable(self.graph.unique_name(f"{node.name}_rows"), FLOAT32)]
        product: Variable = node.outputs[0]
        self._rewrite(use, activation, weight, scales)
        form.turned_back(product, out)
        return {node.name, *(new.name for new in owner.nodes[there:])}

    # -- recurrent cells ---------------------------------------------------------------------------------------

    def takes_cells(self, nodes: list[Node]) -> list[Node]:
        """The recurrent nodes with an integer kernel that may be faster; reasons are recorded for the others."""
        found = []
        for node in nodes:
            why = recurrent.refusal(node, self.graph) or recurrent.too_small(node, max(self.options.least, 1))
            if why:
                self.outcome.skip(node, why)
            else:
                found.append(node)
        return found

    def cells(self, nodes: list[Node], costs: CostModel | None, moments: Mapping[Constant, Array]) -> None:
        """LSTM nodes get their integer kernel where that is measured to be faster; where nothing is, if large."""
        times = (
            recurrent.faster(self.graph, nodes, costs, portable=self.portable) if nodes and costs is not None else {}
        )
        writer = recurrent.LstmWriter(self.graph, self.shapes, portable=self.portable, moments=moments)
        for node in nodes:
            exact, integer = times.get(node.name, (1.0, 0.0))
            if integer >= exact:
                why = f"measured: {integer:.0f} us with 8-bit integers, {exact:.0f} us in float"
            elif not times and (why := recurrent.too_small(node, recurrent.LEAST_ELEMENTS)):
                pass
            else:
                why = "" if writer.replace(node) else "its weights hold NaN or infinity"
            if why:
                self.outcome.skip(node, why)
                continue
            faster = f", {integer / exact:.2f} of its time" if node.name in times else ""
            self.outcome.change(node, f"int8, input and state quantized at run time{faster}")
            self.changed += len(recurrent.WEIGHT_PORTS)

    # -- tables ------------------------------------------------------------------------------------------------

    def tables(self, uses: list[WeightUse]) -> None:
        """Store tables in rows of int8."""
        made: dict[Constant, RowGather] = {}
        coder = IntegerCoder(LEVELS, 8, 128)
        for use in uses:
            constant = use.constant
            if constant not in made:
                layout, reader = Layout.of(constant.shape, use.weight, 0), Reader(constant)
                assembly = Assembly(layout)
                for piece in layout.pieces():
                    rows = reader.rows(layout, piece)
                    assembly.put(piece, *coder.code(rows, layout.block))
                if not np.isfinite(assembly.scales).all():
                    self.outcome.skip(use.node, f"{constant.name} holds NaN or infinity")
                    continue
                made[constant] = RowGather(self.graph, constant, assembly.codes, assembly.scales)
            made[constant].replace(use.node, self.owners[use.node], self.shapes)
            self.outcome.change(use.node, "rows of int8")
            self.changed += 1

    def summarize(self, found: int) -> None:
        """One line for the report."""
        if self.changed:
            self.outcome.summary = f"{self.changed} of {found} weights in int8"
