"""Outliers among the weights are clamped, so that quantization spends its levels on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.layers.use import WeightUse
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Range, option

BLOCK_ELEMENTS = 2**22  # rows are worked on a block of about this many weights at a time
COARSE, FINE, ZOOMS = 24, 8, 2  # candidates of the first search, of each closer look, and how many of those
DONE = "onnxcomp.clipped"  # metadata: marks of weights and options, one for each weight that was clipped
NARROWEST = 0.1  # of the largest magnitude: no narrower clip is tried


@dataclass(frozen=True)
class ClipWeights(Pass):
    """No weight lies beyond its tensor's, or its output channel's, bound any more.

    Bounds: `absolute` is +-threshold; `percentile` the given percentile of |w|; `sigma` the mean +- that many standard
    deviations; `mse` the symmetric bound at which rounding to `bits` bits loses least, clipping error included.
    `soft` shrinks every weight toward zero by `threshold` instead, to zero at most: the proximal step of an L1 penalty.
    """

    name: ClassVar[str] = "clip-weights"
    guarantee: ClassVar[Guarantee] = Guarantee.LOSSY

    method: Literal["absolute", "percentile", "sigma", "mse", "soft"] = option(
        "mse", "how the bound is found", search=("mse", "percentile", "sigma")
    )
    threshold: float | None = option(None, "the bound of absolute, the step of soft, in units of the weights", above=0)
    percentile: float = option(
        99.9,
        "percentile of the magnitudes",
        above=0,
        maximum=100,
        search=Range(98.0, 99.99),
        when={"method": ("percentile",)},
    )
    sigma: float = option(
        3.0, "standard deviations from the mean", above=0, search=Range(2.5, 6.0), when={"method": ("sigma",)}
    )
    bits: int = option(
        8,
        "for mse: bits of the symmetric integers the weights are to become",
        minimum=2,
        maximum=16,
        search=(8, 4),
        when={"method": ("mse",)},
    )
    per_channel: bool = option(True, "a bound for every output channel instead of one for the tensor")

    def validate(self) -> None:
        """A threshold where, and only where, it is used."""
        if (self.threshold is None) == (self.method in ("absolute", "soft")):
            wanted = "needs a threshold" if self.threshold is None else "takes no threshold"
            raise UsageError(
                f"{self.name}: method={self.method} {wanted}",
                where=f"pass {self.name}",
                do="give threshold=... with method=absolute or method=soft only",
            )

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Clip in place."""
        outcome = Outcome()
        readers: dict[Constant, list[WeightUse]] = {}
        for use in self.weights(graph, context, outcome):
            readers.setdefault(use.constant, []).append(use)
        total = clipped = 0
        worst = np.inf
        done = graph.metadata.get(DONE, "").split()
        for constant, uses in readers.items():
            fed = constant in graph.root.kept_inputs
            result: _Clipped | str
            if fed:
                result = "its weight is listed as an input, so a caller may replace it"
            elif self.method == "mse" and any(use.weight.role == "recurrent" for use in uses):
                result = "each step feeds its error back: quantization finds the bounds by what the layer reads"
            elif done and self._mark(constant.values) in done:
                result = "these options have clipped it already"
            else:
                result = self._clip(constant, uses)
            if isinstance(result, str):
                for use in uses:
                    outcome.skip(use.node, result)
                continue
            total += constant.size
            clipped += result.count
            if not result.changed:
                outcome.skip(uses[0].node, f"none of its weights lies beyond {self._bound_text()}")
                continue
            worst = min(worst, result.sqnr_db)
            copied = _store(graph, constant, uses, result.values)
            done.append(self._mark(result.values))
            outcome.change(uses[0].node, self._text(constant, uses, result, copied))
        if outcome.changes:
            graph.set_metadata(DONE, " ".join(dict.fromkeys(done)))
            outcome.metrics |= {"clipped_share": clipped / total, "worst_sqnr_db": float(worst)}
            verb = "shrunk to zero" if self.method == "soft" else "clipped"
            outcome.summary = (
                f"{clipped:,} of {total:,} weights {verb} ({clipped / total:.3%}) in {len(outcome.changes)} tensors"
            )
        return outcome

    def _mark(self, values: Array) -> str:
        """What tells that these options gave these weights: clipping them again would find narrower bounds."""
        chosen = (self.method, self.threshold, self.percentile, self.sigma, self.bits, self.per_channel)
        digest = hashlib.sha256(repr((chosen, values.dtype.name, values.shape)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def bounds(self, rows: Array) -> tuple[Array, Array]:
        """Lower and upper bounds of weights [rows, n], each [rows, 1] float64, one pair a row."""
        if self.method == "sigma":
            mean = rows.mean(axis=1, keepdims=True, dtype=np.float64)
            reach = self.sigma * rows.std(axis=1, keepdims=True, dtype=np.float64)
            return mean - reach, mean + reach
        if self.method == "percentile":
            high = np.percentile(np.abs(rows), self.percentile, axis=1, keepdims=True).astype(np.float64)
        elif self.method == "mse":
            high = best_clip(rows, self.bits)[:, None]
        else:
            high = np.full((len(rows), 1), self.threshold, np.float64)
        return -high, high

    def _clip(self, constant: Constant, uses: list[WeightUse]) -> _Clipped | str:
        """The clipped weight, or why it is left alone."""
        if constant.dtype.kind != "f" and constant.dtype.name != "bfloat16":
            return f"its weight is {constant.dtype.name}, not float"
        values = constant.values
        work = np.asarray(values, np.float64 if values.dtype.itemsize == 8 else np.float32)
        if not values.size or not np.isfinite(work).all():
            return "its weight holds NaN or infinity" if values.size else "its weight is empty"
        weight = uses[0].weight
        channels = self.per_channel and all(use.weight.out_axis == weight.out_axis for use in uses)
        rows = weight.to_matrix(work) if channels else work.reshape(1, -1)
        parts = [self._clip_rows(block, values.dtype) for block in _blocks(rows)]
        matrix = np.concatenate([part for part, _ in parts])
        new = weight.from_matrix(matrix, values.shape) if channels else matrix.reshape(values.shape)
        noise = float(np.square(work - new.astype(work.dtype), dtype=np.float64).sum())
        signal = float(np.square(work, dtype=np.float64).sum())
        sqnr_db = float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else np.inf
        changed = int(np.count_nonzero(new != values))
        return _Clipped(new, sum(count for _, count in parts), changed, sqnr_db)

    def _clip_rows(self, rows: Array, dtype: np.dtype[Any]) -> tuple[Array, int]:
        """Clipped rows in their own dtype, and how many weights lay outside (for soft: how many became zero)."""
        low, high = self.bounds(rows)
        if self.method == "soft":
            shrunk = (np.sign(rows) * np.maximum(np.abs(rows) - high, 0)).astype(dtype)
            return shrunk, int(np.count_nonzero((shrunk == 0) & (rows != 0)))
        low, high = _inward(low, dtype, np.inf), _inward(high, dtype, -np.inf)
        outside = (rows < low) | (rows > high)
        return np.clip(rows, low, high).astype(dtype), int(np.count_nonzero(outside))

    def _bound_text(self) -> str:
        return {
            "absolute": f"{self.threshold:g}" if self.threshold else "",
            "percentile": f"percentile {self.percentile:g}",
            "sigma": f"{self.sigma:g} standard deviations",
            "mse": f"the best clip at {self.bits} bits",
            "soft": f"the step of {self.threshold:g}" if self.threshold else "",
        }[self.method]

    def _text(self, constant: Constant, uses: list[WeightUse], result: _Clipped, copied: bool) -> str:
        verb = "shrunk to zero" if self.method == "soft" else "clipped"
        text = f"{result.count:,} of {constant.size:,} weights {verb}, SQNR {result.sqnr_db:.1f} dB"
        if len(uses) > 1:
            text += f"; shared with {', '.join(use.node.name for use in uses[1:])}"
        return f"{text}; a copy, since other nodes read the original" if copied else text


@dataclass(frozen=True)
class _Clipped:
    """A clipped weight: how many elements lay outside (soft: became zero), how many changed, what is left."""

    values: Array
    count: int
    changed: int
    sqnr_db: float


def best_clip(rows: Array, bits: int) -> Array:
    """For each row the symmetric bound at which rounding to integers of `bits` bits has the least squared error.

    A grid from a tenth of the largest magnitude to all of it, then closer looks around the best; the largest magnitude
    is among the candidates, so no row gets worse by it. Rows beyond 4 million weights are judged on an even sample.

    Args:
        rows: [rows, n] weights.

    Returns:
        [rows] float64.
    """
    top = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    exponents = np.frexp(top)[1]  # by powers of two, which is exact: squares neither overflow nor vanish
    sample = np.ldexp(rows[:, :: max(1, -(-rows.shape[1] // BLOCK_ELEMENTS))], -exponents[:, None])
    top = np.ldexp(top, -exponents)
    share = np.ones(len(rows))
    error = rounding_error(sample, top, bits)

    def look(candidates: Iterator[Array]) -> None:
        for candidate in candidates:
            found = rounding_error(sample, top * candidate, bits)
            better = found < error
            share[better], error[better] = candidate[better], found[better]

    step = (1 - NARROWEST) / COARSE
    look(np.full(len(rows), NARROWEST + step * i) for i in range(COARSE))
    for _ in range(ZOOMS):
        centre = share.copy()
        step /= FINE / 2
        offsets = [step * i for i in range(-FINE // 2 + 1, FINE // 2) if i]
        look(np.clip(centre + offset, NARROWEST, 1.0) for offset in offsets)
    best: Array = np.ldexp(top * share, exponents)
    return best


def rounding_error(rows: Array, clip: Array, bits: int) -> Array:
    """Squared error of each row [rows, n] once clamped to +-clip [rows] and rounded to symmetric integers: [rows]."""
    levels = 2 ** (bits - 1) - 1
    scale = np.where(clip > 0, clip / levels, 1.0)[:, None].astype(rows.dtype)
    codes = np.clip(np.rint(rows / scale), -levels, levels)
    error: Array = np.square(rows - codes * scale).sum(axis=1, dtype=np.float64)
    return error


def _blocks(rows: Array) -> Iterator[Array]:
    step = max(1, BLOCK_ELEMENTS // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _inward(bound: Array, dtype: np.dtype[Any], toward: float) -> Array:
    """Bounds as numbers of a dtype, none beyond what was asked for; float32 at least, for comparing."""
    found = bound.astype(dtype)
    beyond: Callable[[Array, Array], Array] = np.greater if toward < 0 else np.less
    wrong = beyond(found.astype(np.float64), bound)
    inner = np.nextafter(found, np.asarray(toward, dtype))
    return np.where(wrong, inner, found).astype(np.float64 if dtype.itemsize == 8 else np.float32)


def _store(graph: Graph, constant: Constant, uses: list[WeightUse], values: Array) -> bool:
    """Assign the new weight; where others read the old one too, to a copy for these uses. True for a copy."""
    if len(constant.outputs) == len(uses) and not graph.is_output(constant):
        constant.values = values
        return False
    private = graph.add_constant(f"{constant.name}_clipped", values)
    for use in uses:
        use.node.inputs[use.weight.port] = private
    return True
