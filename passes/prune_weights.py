"""Unstructured pruning: single weights, or n of every m, become zero and the others make up for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.layers.layer import Layer
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext, option
from onnxcomp.passes.pruning.allocate import Curve, allocate, magnitude_curve
from onnxcomp.passes.pruning.compensate import Compensation, Plan, curve_shares
from onnxcomp.passes.pruning.layers import refittable
from onnxcomp.passes.pruning.select import Importance, Pattern, random_scores, removed_count, smallest
from onnxcomp.targets.base import Target

_CRITERIA = ("ratio", "threshold", "mean_scale", "keep", "min_norm", "pattern")
_RANKED = ("ratio", "keep", "pattern")  # criteria that rank weights; the others compare them with a bound
_COUNTED = ("ratio", "keep")  # criteria whose count can be shared out over the tensors


@dataclass(frozen=True)
class PruneWeights(Pass):
    """Weights that matter least are zero; with data the others, and biases, are refitted to make up for them.

    Exactly one criterion is given. Counted are the elements of the selected weights with two or more dimensions that
    operators know as weights: kernels, embedding tables, recurrent matrices; zeros that were there count as removed.

    With calibration data, and unless `compensate=false`, layers are pruned in graph order and in rounds: weights are
    ranked by what their removal costs (optimal brain surgeon, Hassibi and Stork 1993), and after each round every
    output channel's survivors and bias are solved anew by least squares on the activations of the model as pruned so
    far, against what the original gives (compare Frantar and Alistarh, OBC 2022 and SparseGPT 2023). A `global` count
    is shared out by measured error curves, so that the sum of the layers' relative errors is smallest. Without
    compensation a global count compares scores of all tensors: |w|, or with `wanda` and `obs` the share of a layer's
    output energy that a weight's removal costs.
    """

    name: ClassVar[str] = "prune-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    ratio: float | None = option(None, "share of the weights to remove, at least", above=0.0, maximum=1.0)
    threshold: float | None = option(None, "remove weights whose magnitude is below this", above=0.0)
    mean_scale: float | None = option(None, "remove weights below this times their tensor's mean magnitude", above=0.0)
    keep: int | None = option(None, "how many weights stay (with scope=layer: of each tensor)", minimum=0)
    min_norm: float | None = option(None, "remove tensors whose Euclidean norm is below this", above=0.0)
    pattern: str | None = option(
        None, "n:m, at most n of every m neighbours along the input channels stay; 2:4", search=("2:4",)
    )
    importance: Literal["auto", "magnitude", "wanda", "random", "obs"] = option(
        "auto", "what ranks weights; auto is obs where survivors are refitted, else magnitude"
    )
    scope: Literal["global", "layer"] = option("global", "rank all tensors together, or each for itself")
    compensate: bool | None = option(None, "refit the survivors on calibration data; by default when there is any")
    damping: float = option(1e-3, "ridge of the refit, a share of the mean input power", above=0.0, maximum=1.0)

    @classmethod
    def suits(cls, target: Target) -> bool:
        """Elsewhere zeros make no file smaller and no kernel faster."""
        return target.sparse

    def validate(self) -> None:
        """Exactly one criterion, and only options that mean something with it."""
        given = [name for name in _CRITERIA if getattr(self, name) is not None]
        if len(given) != 1:
            raise self._wrong(
                f"{' and '.join(given)} are given together" if given else "no criterion is given",
                f"give exactly one of {', '.join(_CRITERIA)}; for example ratio=0.5",
            )
        if self.importance != "auto" and given[0] not in _RANKED:
            raise self._wrong(f"importance means nothing with {given[0]}", "leave importance out, or give a ratio")
        if self.scope != "global" and given[0] not in _COUNTED:
            raise self._wrong(f"scope means nothing with {given[0]}", "leave scope out, or give a ratio")
        if self.pattern is not None and Pattern.parse(self.pattern) is None:
            raise self._wrong(f"pattern={self.pattern!r} is not n:m with 0 < n < m", 'write it as pattern="2:4"')

    def required(self) -> frozenset[Need]:
        """Data, where survivors must be refitted or the ranking looks at activations."""
        measured = self.compensate is True or self.importance in ("wanda", "obs")
        return frozenset({Need.DATA}) if measured else frozenset()

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Prune in place."""
        outcome = Outcome()
        tensors = self._tensors(graph, context, outcome)
        work = _Work(self, graph, context, outcome, tensors)
        if tensors:
            work.prune()
        return outcome

    def refits(self, context: PassContext) -> bool:
        """Whether survivors are refitted."""
        return context.calibration is not None if self.compensate is None else self.compensate

    def ranking(self, context: PassContext) -> Importance:
        """What ranks weights, `auto` resolved."""
        if self.importance != "auto":
            return self.importance
        return "obs" if self.refits(context) else "magnitude"

    def _tensors(self, graph: Graph, context: PassContext, outcome: Outcome) -> list[_Tensor]:
        """The weights that can be pruned, each once; others are recorded with the reason."""
        uses: dict[Constant, list[WeightUse]] = {}
        for use in self.weights(graph, context, outcome):
            uses.setdefault(use.constant, []).append(use)
        pattern = Pattern.parse(self.pattern) if self.pattern is not None else None
        found = []
        for constant, readers in uses.items():
            reason = _unprunable(graph, constant, readers) or (pattern and _unfit(pattern, readers)) or ""
            if reason:
                for use in readers:
                    outcome.skip(use.node, reason)
                continue
            layer = refittable(graph, readers[0])
            found.append(_Tensor(constant, readers, layer))
        return found

    def _wrong(self, what: str, do: str) -> UsageError:
        return UsageError(f"{self.name}: {what}", where=f"pass {self.name}", do=do)


@dataclass(eq=False)
class _Tensor:
    """A weight to prune, its readers, and its layer or why it has none that could be measured."""

    constant: Constant
    uses: list[WeightUse]
    layer: Layer | str
    before: int = 0

    def __post_init__(self) -> None:
        self.before = self.zeros

    @property
    def zeros(self) -> int:
        return self.constant.size - int(np.count_nonzero(self.constant.values))


def _removes(tensor: _Tensor, plan: Plan) -> bool:
    """Whether a plan asks for more zeros than there are; of a pattern that is not known before its ranking."""
    if isinstance(plan, Pattern):
        return True
    if isinstance(plan, int):
        return plan < tensor.constant.size - tensor.before
    return bool((np.asarray(tensor.constant.values)[~plan] != 0).any())


@dataclass
class _Work:
    """One run of the pass."""

    options: PruneWeights
    graph: Graph
    context: PassContext
    outcome: Outcome
    tensors: list[_Tensor]
    reasons: dict[_Tensor, str] = field(default_factory=dict)

    def prune(self) -> None:
        total = sum(t.constant.size for t in self.tensors)
        if self.options.refits(self.context):
            errors = self._with_refit()
        else:
            errors = {}
            self._apply(self.tensors, self._masks())
        self._report(total, errors)

    # -- with refit ------------------------------------------------------------------------------------------------

    def _with_refit(self) -> dict[str, float]:
        """Prune measured layers with refit and the other tensors by magnitude; relative errors by node name."""
        run = Compensation(self.graph, self.context, self.options.ranking(self.context), self.options.damping)
        plans = self._plans(run)
        self._note_unmeasured(run)
        if not any(_removes(tensor, plan) for tensor, plan in plans.items()):
            return {}
        run.apply({t.layer: plan for t, plan in plans.items() if isinstance(t.layer, Layer)})
        self._note_unmeasured(run)
        for tensor, plan in plans.items():
            if not isinstance(tensor.layer, Layer):
                self.reasons[tensor] = tensor.layer
                self._apply([tensor], [self._mask_of(tensor, plan)])
        return run.errors

    def _plans(self, run: Compensation) -> dict[_Tensor, Plan]:
        """How each tensor is pruned."""
        options = self.options
        if options.pattern is not None:
            pattern = Pattern.parse(options.pattern)
            assert pattern is not None
            return dict.fromkeys(self.tensors, pattern)
        if options.ratio is None and options.keep is None:
            return dict(zip(self.tensors, self._masks(), strict=True))
        if options.scope == "layer":
            return {t: min(self._survivors(t.constant.size), t.constant.size - t.before) for t in self.tensors}
        total = sum(t.constant.size for t in self.tensors)
        keep = self._survivors(total)
        curves = run.curves([t.layer for t in self.tensors if isinstance(t.layer, Layer)], keep / total)
        self._note_unmeasured(run)
        ordered = [self._curve(tensor, curves, keep / total) for tensor in self.tensors]
        return dict(zip(self.tensors, allocate(ordered, keep), strict=True))

    def _curve(self, tensor: _Tensor, measured: dict[str, Curve], share: float) -> Curve:
        if isinstance(tensor.layer, Layer):
            return measured[tensor.layer.node.name]
        values = np.asarray(tensor.constant.values, np.float32)
        values = values[values != 0]
        return magnitude_curve(values, curve_shares(values.size, share))

    def _note_unmeasured(self, run: Compensation) -> None:
        for tensor in self.tensors:
            if isinstance(tensor.layer, Layer) and tensor.layer.node.name in run.unmeasured:
                tensor.layer = run.unmeasured[tensor.layer.node.name]

    def _mask_of(self, tensor: _Tensor, plan: Plan) -> Array:
        """The mask of a tensor that is pruned without statistics."""
        score = self._score(tensor)
        if isinstance(plan, Pattern):
            return self._pattern_mask(tensor, plan, score())
        if isinstance(plan, int):
            return next(smallest([score], tensor.constant.size - plan))
        return plan

    # -- without refit ---------------------------------------------------------------------------------------------

    def _masks(self) -> Iterable[Array]:
        """Masks of survivors by the criterion, on the weights as they are."""
        options = self.options
        if options.pattern is not None:
            pattern = Pattern.parse(options.pattern)
            assert pattern is not None
            scores = self._scores()
            return [self._pattern_mask(t, pattern, s()) for t, s in zip(self.tensors, scores, strict=True)]
        if options.ratio is None and options.keep is None:
            return [self._bounded(t.constant.values) for t in self.tensors]
        scores = self._scores()
        sizes = [t.constant.size for t in self.tensors]
        if options.scope == "layer":
            return [next(smallest([s], size - self._survivors(size))) for s, size in zip(scores, sizes, strict=True)]
        return smallest(scores, sum(sizes) - self._survivors(sum(sizes)))

    def _bounded(self, values: Array) -> Array:
        """Survivors by threshold, mean_scale or min_norm."""
        options = self.options
        magnitude: Array = np.abs(np.asarray(values, np.float64))
        if options.min_norm is not None:
            return np.full(values.shape, math.sqrt(float(np.square(magnitude).sum())) >= options.min_norm)
        bound = options.threshold or 0.0
        if options.mean_scale is not None:
            bound = options.mean_scale * float(magnitude.mean())
        mask: Array = magnitude >= bound
        return mask

    def _survivors(self, size: int) -> int:
        """How many of `size` weights stay, by ratio or keep."""
        if self.options.ratio is not None:
            return size - removed_count(self.options.ratio, size)
        return min(self.options.keep or 0, size)

    def _scores(self) -> list[Callable[[], Array]]:
        """One scorer a tensor, for all of them comparable."""
        ranking = self.options.ranking(self.context)
        if ranking not in ("wanda", "obs"):
            return [self._score(t) for t in self.tensors]
        run = Compensation(self.graph, self.context, ranking, self.options.damping)
        factors = run.scores([t.layer for t in self.tensors if isinstance(t.layer, Layer)])
        self._note_unmeasured(run)
        for tensor in self.tensors:
            if not isinstance(tensor.layer, Layer):
                self.reasons[tensor] = tensor.layer
        return [partial(_measured_score, t, factors) for t in self.tensors]

    def _score(self, tensor: _Tensor) -> Callable[[], Array]:
        """Magnitudes, or noise where random pruning was asked for."""
        if self.options.importance == "random":
            return partial(random_scores, tensor.constant.name, tensor.constant.shape, self.context.seed)
        return lambda: np.abs(np.asarray(tensor.constant.values, np.float32))

    def _pattern_mask(self, tensor: _Tensor, pattern: Pattern, scores: Array) -> Array:
        weight = tensor.uses[0].weight
        mask: Array = weight.from_matrix(pattern.mask(weight.to_matrix(scores)), tensor.constant.shape)
        return mask

    def _apply(self, tensors: Iterable[_Tensor], masks: Iterable[Array]) -> None:
        for tensor, mask in zip(tensors, masks, strict=True):
            values = tensor.constant.values
            if np.count_nonzero(values) > np.count_nonzero(values * mask):
                tensor.constant.values = np.where(mask, values, np.zeros((), values.dtype))

    # -- report ----------------------------------------------------------------------------------------------------

    def _report(self, total: int, errors: dict[str, float]) -> None:
        before, after = sum(t.before for t in self.tensors), 0
        for tensor in self.tensors:
            zeros = tensor.zeros
            after += zeros
            self._report_one(tensor, zeros, errors)
        self.outcome.metrics |= {
            "zero_share": after / total,
            "zero_share_before": before / total,
            "zeros": after,
            "weights": total,
        }
        how = "survivors not refitted"
        if self.context.calibration is not None and errors:
            self.outcome.metrics["worst_relative_error"] = max(errors.values())
            how = f"{len(errors)} layers refitted on {len(self.context.calibration)} samples"
        elif self.options.compensate is None and self.context.calibration is None:
            self.outcome.notes.append("survivors were not refitted: with calibration data (--data) much more is kept")
        if self.outcome.changes:
            self.outcome.summary = (
                f"{after / total:.1%} of {total:,} weights are zero (before: {before / total:.1%}); {how}"
            )

    def _report_one(self, tensor: _Tensor, zeros: int, errors: dict[str, float]) -> None:
        node = tensor.uses[0].node
        refitted = isinstance(tensor.layer, Layer) and node.name in errors
        if zeros == tensor.before and not refitted:
            self.outcome.skip(node, "the criterion removes none of its weights")
            return
        size = tensor.constant.size
        text = f"{zeros / size:.1%} of {size:,} weights zero (before: {tensor.before / size:.1%})"
        if refitted:
            text += f", refitted, relative error {errors[node.name]:.2g}"
        if tensor in self.reasons:
            text += f", by magnitude only: {self.reasons[tensor]}"
        self.outcome.change(node, text)


def _measured_score(tensor: _Tensor, factors: dict[str, tuple[Array, Array]]) -> Array:
    """Share of the output energy that a weight's removal costs; of the weight's own energy where none is measured."""
    values = np.square(np.asarray(tensor.constant.values, np.float32))
    if not isinstance(tensor.layer, Layer):
        energy = float(values.sum(dtype=np.float64))
        return values / np.float32(energy) if energy > 0 else values
    rows, columns = factors[tensor.layer.node.name]
    return tensor.layer.folded(
        tensor.layer.unfolded(values) * rows * (columns * np.float32(tensor.layer.weight.alpha**2))
    )


def _unprunable(graph: Graph, constant: Constant, uses: list[WeightUse]) -> str:
    """Why a weight must be left alone; empty when it may be pruned."""
    if len(constant.shape) < 2 or constant.size == 0:
        return "its weight has fewer than two dimensions" if constant.size else "its weight is empty"
    if constant.dtype.kind != "f" and not constant.dtype.name.startswith("bfloat16"):
        return f"its weight is {constant.dtype.name}: prune before quantizing"
    if len(constant.outputs) > len(uses):
        others = [n for n in constant.outputs if all(n is not use.node for use in uses)]
        return f"its weight is also read by {others[0] if others else uses[0].node}, which is not to be pruned"
    if graph.is_output(constant):
        return "its weight is an output of the model"
    if constant in graph.root.kept_inputs:
        return "its weight is listed as an input, so a caller may replace it"
    if not np.isfinite(np.asarray(constant.values, np.float32 if constant.dtype.itemsize < 8 else np.float64)).all():
        return "its weight holds NaN or infinity"
    return ""


def _unfit(pattern: Pattern, uses: list[WeightUse]) -> str:
    """Why a weight cannot take an n:m pattern; empty when it can."""
    for use in uses:
        if use.weight.role == "embedding":
            return "a table is looked up, not multiplied: a pattern brings nothing"
        if use.weight != uses[0].weight:
            return "its readers sum over different axes of the weight"
        channels = use.constant.shape[use.weight.in_axes[-1]]
        if channels % pattern.of:
            return f"{channels} input channels are no multiple of {pattern.of}"
    return ""
