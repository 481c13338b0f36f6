"""What becomes of each weight: its integers, who shares a scale, how it is stored, or why it stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from onnxcomp.graph.ir import Constant, Graph, Node
from onnxcomp.graph.rounding import Levels
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import Outcome
from onnxcomp.ops.facts import Operators, Weight
from onnxcomp.passes.weights.coders import BinaryCoder, Coder, Error, IntegerCoder, TernaryCoder
from onnxcomp.passes.weights.dequantize import dequantize_refusal
from onnxcomp.passes.weights.kernels import SMALLEST_BLOCK, BlockGather, block_matmul_refusal, valid_block
from onnxcomp.passes.weights.layout import Layout
from onnxcomp.passes.weights.scales import scale_bytes
from onnxcomp.targets.table import find

LEAST_SAVED_BYTES = 256  # the nodes that decode a weight take about as much
FAST_TWO_BIT_BLOCK = 64  # 2-bit MatMulNBits in smaller blocks is slower than float
SMALL_TABLE_SHARE = 0.05  # of all weights: fewer bits would save next to nothing, and every sample reads such a table

PRODUCT_BLOCKS, SCALE_BYTES = (128, 64, 32), 4

Form = Literal["integer", "binary", "ternary", "codebook"]
Store = Literal["matmul", "gather", "rows", "folded", "dequantize"]


@dataclass(frozen=True)
class Recipe:
    """How elements become codes.

    Attributes:
        levels: of integers.
        bits: bits a code takes in the file.
        block: elements that share a scale; 0 for whole rows.
        clusters: levels of a codebook.
        free_block: nobody asked for a block size or whole rows.
        full_range: the levels are all that the bits hold, and were not asked for one by one.
    """

    form: Form
    levels: Levels
    bits: int
    block: int
    clusters: int = 0
    power_of_two: bool = False
    full_range: bool = True
    free_block: bool = False

    @property
    def zero(self) -> int:
        """The code of the integer 0: the middle where the levels allow it."""
        middle = 2 ** (self.bits - 1)
        return middle if self.levels.low >= -middle and self.levels.high < middle else -self.levels.low

    @property
    def centred(self) -> bool:
        """Whether codes are integers around the middle, which the integer kernels want."""
        return self.form == "integer" and self.zero == 2 ** (self.bits - 1)

    def coder(self, error: Error, *, positive: bool = False, small_scales: bool = False) -> Coder:
        """The rule by which rows become codes.

        Args:
            positive: scales must be positive, and the range symmetric.
            small_scales: scales are stored in 8 bits.
        """
        if self.form == "binary":
            return BinaryCoder(power_of_two=self.power_of_two)
        if self.form == "ternary":
            return TernaryCoder(power_of_two=self.power_of_two)
        levels, two_sided = self.levels, self.full_range and self.bits < 8
        if positive and two_sided:
            levels, two_sided = Levels.signed(self.bits), False
        return IntegerCoder(levels, self.bits, self.zero, two_sided, error, self.power_of_two, small_scales)

    def words(self, block: int) -> str:
        """For the report."""
        if self.form == "codebook":
            return f"codebook of {self.clusters}"
        kind = f"int{self.bits}" if self.full_range else f"integers {self.levels.low} to {self.levels.high}"
        return f"{kind if self.form == 'integer' else self.form}, {block} to a scale"


@dataclass
class Plan:
    """What becomes of one weight.

    Attributes:
        uses: the nodes that read it as a weight.
        store: the form in which it is written.
        error: how the codes are chosen.
    """

    constant: Constant
    uses: list[WeightUse]
    recipe: Recipe
    layout: Layout
    store: Store
    error: Error = "round"

    @property
    def coder(self) -> Coder:
        """The rule by which the rows of the weight become codes."""
        return self.recipe.coder(self.error, positive=self.store == "dequantize", small_scales=self.small_scales)

    @property
    def small_scales(self) -> bool:
        """Whether the scales of blocks are stored in 8 bits: where they are many beside the codes, and any will do."""
        rows, blocks = self.layout.rows, self.layout.blocks
        saved = scale_bytes(rows, blocks, small=False) - scale_bytes(rows, blocks, small=True)
        few = self.recipe.form == "integer" and self.recipe.bits < 8 and not self.recipe.power_of_two
        return few and self.store in ("matmul", "gather") and saved >= LEAST_SAVED_BYTES

    @property
    def bytes(self) -> int:
        """What codes and scales take in the file."""
        if self.recipe.clusters:
            return self.constant.size * self.recipe.bits // 8 + 4 * self.recipe.clusters
        rows, blocks = self.layout.rows, self.layout.blocks
        codes = rows * blocks * self.layout.block * self.recipe.bits // 8
        return codes + scale_bytes(rows, blocks, small=self.small_scales)

    @property
    def words(self) -> str:
        """For the report."""
        return f"{self.recipe.words(self.layout.block)}, {_STORES[self.store]}"


_STORES = {
    "matmul": "MatMulNBits",
    "gather": "GatherBlockQuantized",
    "rows": "looked up by rows",
    "folded": "decoded at load",
    "dequantize": "DequantizeLinear",
}


@dataclass(frozen=True)
class Planner:
    """Chooses a form for each weight.

    Attributes:
        wanted: which nodes were selected.
        embeddings: whether tables are quantized.
        decoded: whether weights are quantized that have to be decoded to float.
    """

    graph: Graph
    shapes: Shapes
    operators: Operators
    recipe: Recipe
    wanted: Callable[[Node], bool]
    target: str = "cpu"
    embeddings: bool = True
    decoded: bool = True

    def plans(self, uses: list[WeightUse], outcome: Outcome) -> list[Plan]:
        """One plan for each weight that can and should be quantized, in graph order; the others are skipped."""
        by_constant: dict[Constant, list[WeightUse]] = {}
        for use in uses:
            by_constant.setdefault(use.constant, []).append(use)
        small = SMALL_TABLE_SHARE * sum(constant.size for constant in by_constant)
        found = []
        for constant, readers in by_constant.items():
            why = self.unfit(constant, readers)
            plan = None if why else self.plan(constant, readers, small)
            if plan is not None:
                why = self.unprofitable(plan)
            if plan is None or why:
                for use in readers:
                    outcome.skip(use.node, why)
            else:
                found.append(plan)
        return found

    def unfit(self, constant: Constant, uses: list[WeightUse]) -> str:
        """Why a weight must stay as it is; empty when it may change."""
        kind = constant.dtype.name
        others = [n for n in constant.consumers if not self.wanted(n) and self.operators.facts(n).weights(n)]
        if others:
            return f"{constant.name} is shared with {others[0]}, which is not selected"
        if any(part in kind for part in ("int", "float8", "float4")):
            return f"{constant.name} is already stored as {kind}"
        if kind not in ("float32", "float16", "bfloat16", "float64"):
            return f"{constant.name} is {kind}"
        if not constant.size:
            return f"{constant.name} is empty"
        if self.graph.is_output(constant):
            return f"{constant.name} is an output of the model itself"
        if constant in self.graph.root.kept_inputs:
            return f"{constant.name} is listed as an input, so a caller may replace it"
        if constant.stored is not None and not hasattr(constant.stored.proto, "data_type"):
            return f"{constant.name} is stored as a sparse tensor"
        if not self.embeddings and any(use.weight.role == "embedding" for use in uses):
            return "embeddings=false"
        return ""

    def plan(self, constant: Constant, uses: list[WeightUse], small: float) -> Plan:
        """The form that runs fastest among those that hold the weight: docs/decisions/0012-weight-forms.md.

        Args:
            small: tables of fewer elements get 8 bits.
        """
        recipe = self.recipe
        table = all(use.weight.role == "embedding" for use in uses)
        if table and recipe.form == "integer" and recipe.full_range and constant.size < small:
            recipe = replace(recipe, levels=Levels.signed(8), bits=8, block=0)
        weight = next((use.weight for use in uses if use.weight.role == "kernel"), uses[0].weight)
        if recipe.free_block and not recipe.block and not table:
            blocks = replace(recipe, block=_product_block(constant, weight, recipe.bits))
            recipe = blocks if self.store(constant, uses, blocks) == "matmul" else recipe
        store = self.store(constant, uses, recipe)
        if store == "gather":
            layout = Layout.of(constant.shape, weight, _table_block(constant, recipe), exact=True)
        else:
            block = recipe.block
            if store == "matmul":  # a block that is wider than the rows would be padding
                block = min(block, _covering(prod(constant.shape[axis] for axis in weight.in_axes)))
            layout = Layout.of(constant.shape, weight, block, exact=store == "matmul")
        return Plan(constant, uses, recipe, layout, store)

    def store(self, constant: Constant, uses: list[WeightUse], recipe: Recipe) -> Store:
        """Read as integers where a kernel does that fast, else decoded once at load."""
        if find(self.target).plain_storage:
            return "dequantize"
        if not recipe.centred or len(constant.consumers) != len(uses):
            return "folded"
        if all(use.weight.role == "embedding" for use in uses):
            if any(use.node.op != "Gather" for use in uses):
                return "folded"  # EmbedLayerNormalization looks up floats
            if recipe.bits == 8 and not recipe.block:
                return "rows"
            fits = valid_block(_table_block(constant, recipe), recipe.bits)
            return "gather" if fits and not BlockGather.refusal(constant, recipe.bits) else "folded"
        slow = recipe.bits == 2 and recipe.block < FAST_TWO_BIT_BLOCK
        one_side = len({use.weight.out_axis % len(constant.shape) for use in uses}) == 1
        if slow or not one_side or not valid_block(recipe.block, recipe.bits):
            return "folded"
        return "folded" if any(block_matmul_refusal(use, self.shapes) for use in uses) else "matmul"

    def unprofitable(self, plan: Plan) -> str:
        """Why quantizing a weight gains nothing; empty when it gains."""
        layout, recipe = plan.layout, plan.recipe
        if plan.store == "folded" and not self.decoded:
            return "no kernel reads it as it is stored: left for a pass that has it decoded at load (decoded=false)"
        if plan.store == "dequantize":
            why = dequantize_refusal(plan.uses, layout, recipe.form, recipe.bits)
            if why:
                return why
        saved = plan.constant.nbytes - plan.bytes
        return "" if saved >= LEAST_SAVED_BYTES else f"too small: {max(saved, 0)} bytes would be saved"


def _product_block(constant: Constant, weight: Weight, bits: int) -> int:
    """The block that takes least space for a product's rows, the padding of the last one and a scale each counted."""
    columns = prod(constant.shape[axis] for axis in weight.in_axes)
    return min(PRODUCT_BLOCKS, key=lambda block: -(-columns // block) * (block * bits // 8 + SCALE_BYTES))


def _table_block(constant: Constant, recipe: Recipe) -> int:
    """A whole row of a table is a block of the next power of two."""
    return recipe.block or _covering(constant.shape[1])


def _covering(columns: int) -> int:
    """The smallest block that the kernels take and that holds so many elements."""
    return max(SMALLEST_BLOCK, 1 << (columns - 1).bit_length())
