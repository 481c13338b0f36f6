"""Weight clipping: no weight is larger than a bound, so that what quantizes them wastes no levels on outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.graph.rounding import Levels, clipped_scales
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, WeightUse, option


@dataclass(frozen=True)
class ClipWeights(Pass):
    """Weights limited to a range, chosen by one of five methods.

    `absolute` clamps to +-threshold. `percentile` clamps to that percentile of |w|. `sigma` clamps to the mean +-
    sigma standard deviations. `mse` takes the symmetric bound that makes the squared error of `bits`-bit rounding
    least, found by search. `soft` shrinks every weight toward zero by the threshold: the proximal step of an L1
    penalty (R. Tibshirani, 1996), which sets small weights to exactly zero.

    Works on float weights [out, in...] of convolutions, matrix products, embeddings and recurrent layers.
    """

    name: ClassVar[str] = "clip-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    method: Literal["absolute", "percentile", "sigma", "mse", "soft"] = option("mse", "how the bound is found")
    threshold: float | None = option(None, "bound for absolute, amount for soft, in the weights' unit", above=0.0)
    percentile: float = option(99.9, "share of |w| inside the bound, in %, for percentile", above=0.0, maximum=100.0)
    sigma: float = option(3.0, "number of standard deviations, for sigma", above=0.0)
    bits: int = option(8, "width of the integers that mse rounds to", minimum=2, maximum=16)
    per_channel: bool = option(True, "a bound for each output channel; else one for the tensor")

    def validate(self) -> None:
        """A threshold belongs to the methods that read it."""
        needed = self.method in ("absolute", "soft")
        if needed and self.threshold is None:
            raise UsageError(
                f"clip-weights{{method={self.method}}} needs a threshold",
                where="pass clip-weights",
                do=f"write clip-weights{{method={self.method},threshold=0.1}}",
            )
        if self.threshold is not None and not needed:
            raise UsageError(
                f"clip-weights{{method={self.method}}} takes no threshold",
                where="pass clip-weights",
                do="leave it out, or choose method=absolute or soft",
            )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Clip in place.

        Raises:
            UsageError: a glob matches nothing.
        """
        outcome = Outcome()
        clipped = total = 0
        signal = noise = 0.0
        uses = self.weights(graph, context, outcome)
        wanted = {use.node for use in uses}
        done: set[Constant] = set()
        for use in uses:
            if use.constant in done:
                continue
            if reason := _refusal(use):
                outcome.skip(use.node, reason)
                continue
            constant = use.constant
            alone = set(constant.consumers) <= wanted
            if alone:
                done.add(constant)
            before = constant.values
            after = self.clipped(use, before)
            changed = int(np.count_nonzero(after != before))
            total += before.size
            if not changed:
                continue
            if not alone:
                constant = graph.own_constant(use.node, use.weight.port) or constant
            constant.values = after
            power = float(np.square(before, dtype=np.float64).sum())
            error = float(np.square(after.astype(np.float64) - before).sum())
            clipped, signal, noise = clipped + changed, signal + power, noise + error
            outcome.change(use.node, f"{changed / before.size:.2%} of {constant.name} clipped, {_db(power, error)}")
        if clipped:
            outcome.summary = f"{clipped / total:.2%} of {total:,} weights clipped, {_db(signal, noise)}"
            outcome.metrics = {"clipped_share": clipped / total, "sqnr_db": _sqnr(signal, noise)}
        return outcome

    def clipped(self, use: WeightUse, values: Array) -> Array:
        """The weight after clipping, in its own shape and dtype."""
        matrix = np.asarray(use.weight.to_matrix(values), np.float32)  # [out, in]
        rows = matrix if self.per_channel else matrix.reshape(1, -1)
        if self.method == "soft":
            result = np.sign(rows) * np.maximum(np.abs(rows) - np.float32(self.threshold or 0.0), 0)
        else:
            low, high = self._bounds(rows)
            result = np.clip(rows, low[:, None], high[:, None])
        return use.weight.from_matrix(result.reshape(matrix.shape), values.shape).astype(values.dtype)

    def _bounds(self, rows: Array) -> tuple[Array, Array]:
        """Lowest and highest value of each row, float32 [rows]."""
        if self.method == "sigma":
            mean, spread = rows.mean(axis=1), self.sigma * rows.std(axis=1)
            return mean - spread, mean + spread
        if self.method == "absolute":
            bound = np.full(len(rows), np.float32(self.threshold or 0.0))
        elif self.method == "percentile":
            bound = np.percentile(np.abs(rows), self.percentile, axis=1).astype(np.float32)
        else:
            levels = (
                Levels.signed(self.bits)
                if self.bits <= 8
                else Levels(1 - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1)
            )
            bound = clipped_scales(rows, levels) * np.float32(levels.high)
        return -bound, bound


def _refusal(use: WeightUse) -> str:
    kind = use.constant.dtype
    if kind not in (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)):
        return f"its weight is {kind}, not float"
    if not use.constant.size:
        return "its weight is empty"
    return "" if np.isfinite(use.constant.values).all() else "its weight holds NaN or infinity"


def _sqnr(signal: float, noise: float) -> float:
    return float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")


def _db(signal: float, noise: float) -> str:
    return f"SQNR {_sqnr(signal, noise):.1f} dB"
