"""How do rows of a weight become codes? Integers with a scale, signs, three values, or a table of levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.graph.rounding import SMALLEST_SCALE, Levels, rescaled, round_compensated, round_descended
from onnxcomp.passes.weights.scales import snapped_scales

SEARCH_STEPS = 16
SEARCH_FROM, SEARCH_TO = 1.06, 0.6  # of the scale that clips nothing
CACHED_ELEMENTS = 2**15  # that are looked at together: what is made of them fits a processor's cache
DAMPING = 0.05  # of second moments, when few bits are chosen by them
TERNARY_THRESHOLD = 0.7  # of mean |w|: Ternary Weight Networks, arXiv 1605.04711

Error = Literal["round", "mse", "gptq"]


class Coder(Protocol):
    """Turns rows into codes."""

    @property
    def bits(self) -> int:
        """Bits a code takes in the file."""

    @property
    def zero(self) -> float:
        """The code, or the point between two, that stands for 0."""

    def code(self, rows: Array, block: int, gram: Array | None = None) -> tuple[Array, Array]:
        """Codes uint8 [rows, blocks, block] and scales float32 [rows, blocks] of float32 rows [rows, columns].

        Args:
            block: elements that share a scale; the last block is padded with the code of zero.
            gram: E[x x^T] of what the columns are multiplied with, for coders that make use of it.
        """


@dataclass(frozen=True)
class IntegerCoder:
    """An element is `scale * q` with an integer q of `levels`, stored as `q + zero`.

    Attributes:
        two_sided: scales may be negative, so that the level without a counterpart (-8 of -8..7) serves whichever
            sign has the largest magnitude.
        error: how q is chosen: nearest, nearest under the scale of least squared error, or, where second moments of
            the inputs are known, so that the error of the layer's output is least (GPTQ).
        power_of_two: scales are powers of two.
        small_scales: scales are multiples of one a row, so that 8 bits hold them.
    """

    levels: Levels
    bits: int
    zero: float
    two_sided: bool = False
    error: Error = "round"
    power_of_two: bool = False
    small_scales: bool = False

    def code(self, rows: Array, block: int, gram: Array | None = None) -> tuple[Array, Array]:
        """As `Coder.code`."""
        count, columns = rows.shape
        blocks = -(-columns // block)
        padded = _padded(rows, blocks * block).reshape(count * blocks, block)
        scales = self.scales(padded)
        if self.small_scales:
            scales = snapped_scales(scales.reshape(count, blocks)).reshape(-1)
        if gram is not None and self.error == "gptq":
            scales, chosen = self._for_output(rows, scales.reshape(count, blocks), block, gram)
            integers = _padded(chosen, blocks * block)
        else:
            integers = self.nearest(padded, scales)
        codes = (integers + np.int16(self.zero)).astype(np.uint8)
        return codes.reshape(count, blocks, block), scales.reshape(count, blocks)

    def _for_output(self, rows: Array, scales: Array, block: int, gram: Array) -> tuple[Array, Array]:
        """Scales [rows, blocks] and integers [rows, columns] of least error of the output.

        Integers by error feedback, scales solved anew for them, and integers moved one by one as long as that helps.
        """
        columns = rows.shape[1]

        def spread(values: Array) -> Array:
            return np.repeat(values, block, axis=1)[:, :columns]

        integers = round_compensated(rows, spread(scales), gram, self.levels, damping=DAMPING, ordered=True)
        if not self.power_of_two:
            scales = rescaled(rows, scales, integers, gram, block, damping=DAMPING)
            scales = snapped_scales(scales) if self.small_scales else scales
        return scales, round_descended(rows, spread(scales), integers, gram, self.levels, damping=DAMPING)

    def scales(self, blocks: Array) -> Array:
        """A float32 scale for each row of [blocks, block]; no element is clipped unless a search found that better."""
        full = self._full(blocks)
        exponents = np.frexp(full)[1]  # by powers of two, which is exact: squares neither overflow nor vanish
        blocks, full = np.ldexp(blocks, -exponents[:, None]), np.ldexp(full, -exponents)
        if self.error != "round":
            full = self._search(blocks, full)
        if self.power_of_two:
            full = self._nearer_power(blocks, full, exponents)
        return np.ldexp(full, exponents)

    def nearest(self, blocks: Array, scales: Array) -> Array:
        """The nearest level of each element: int16 [blocks, block]."""
        return np.clip(np.rint(blocks / scales[:, None]), self.levels.low, self.levels.high).astype(np.int16)

    def _full(self, blocks: Array) -> Array:
        low, high = self.levels.low, self.levels.high
        top, bottom = blocks.max(axis=1, initial=0.0), blocks.min(axis=1, initial=0.0)
        if self.two_sided:
            larger = np.where(top >= -bottom, top, bottom)
            return _safe(larger / (high if high >= -low else low))
        above = top / high if high > 0 else np.zeros_like(top)
        below = bottom / low if low < 0 else np.zeros_like(bottom)
        return _safe(np.maximum(above, below))

    def _search(self, blocks: Array, full: Array) -> Array:
        best, least = full.copy(), np.full(len(full), np.inf, np.float32)
        signs = (1.0, -1.0) if self.two_sided else (1.0,)
        step = max(1, CACHED_ELEMENTS // max(1, blocks.shape[1]))
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            for ratio in np.linspace(SEARCH_FROM, SEARCH_TO, SEARCH_STEPS):
                for sign in signs:
                    self._keep_better(blocks[part], full[part] * np.float32(ratio * sign), best[part], least[part])
        return best

    def _nearer_power(self, blocks: Array, scales: Array, exponents: Array) -> Array:
        """The power of two below or above each scale, whichever leaves the smaller error; both taken by 2^exponents."""
        exponent = np.floor(np.log2(np.abs(scales)))
        best, least = scales.copy(), np.full(len(scales), np.inf, np.float32)
        for step in (1, 0):
            power = np.copysign(np.exp2(np.maximum(exponent + step, -126.0 - exponents)), scales).astype(np.float32)
            self._keep_better(blocks, power, best, least)
        return best

    def _keep_better(self, blocks: Array, scales: Array, best: Array, least: Array) -> None:
        error = blocks / scales[:, None]
        np.clip(np.rint(error, out=error), self.levels.low, self.levels.high, out=error)
        error *= scales[:, None]
        error -= blocks
        error = np.square(error, out=error).sum(axis=1)
        better = error < least
        best[better], least[better] = scales[better], error[better]


@dataclass(frozen=True)
class BinaryCoder:
    """alpha * sign(w) with alpha = mean |w|, the least-squares choice (XNOR-Net, arXiv 1603.05279)."""

    bits: int = 1
    zero: float = 0.5
    power_of_two: bool = False

    def code(self, rows: Array, block: int, gram: Array | None = None) -> tuple[Array, Array]:
        """As `Coder.code`; the scale is 2 alpha, since codes are one apart."""
        del gram
        blocks, counts = _blocked(rows, block)
        alpha = np.abs(blocks).sum(axis=2) / counts
        return (blocks >= 0).astype(np.uint8), _rounded(_safe(2 * alpha), self.power_of_two)


@dataclass(frozen=True)
class TernaryCoder:
    """-alpha, 0 or alpha: zero up to 0.7 mean |w|, alpha the mean of the rest (Ternary Weight Networks)."""

    bits: int = 2
    zero: float = 2.0
    power_of_two: bool = False

    def code(self, rows: Array, block: int, gram: Array | None = None) -> tuple[Array, Array]:
        """As `Coder.code`."""
        del gram
        blocks, counts = _blocked(rows, block)
        size = np.abs(blocks)
        threshold = TERNARY_THRESHOLD * size.sum(axis=2) / counts
        kept = size > threshold[:, :, None]
        alpha = (size * kept).sum(axis=2) / np.maximum(kept.sum(axis=2), 1)
        return (np.sign(blocks) * kept + 2).astype(np.uint8), _rounded(_safe(alpha), self.power_of_two)


def _blocked(rows: Array, block: int) -> tuple[Array, Array]:
    """[rows, blocks, block], and how many elements of each block are no padding: [blocks]."""
    count, columns = rows.shape
    blocks = -(-columns // block)
    sizes = np.minimum(block, columns - block * np.arange(blocks)).astype(np.float32)
    return _padded(rows, blocks * block).reshape(count, blocks, block), sizes


def _padded(rows: Array, columns: int) -> Array:
    return rows if rows.shape[1] == columns else np.pad(rows, ((0, 0), (0, columns - rows.shape[1])))


def _safe(scales: Array) -> Array:
    """No scale is 0 or so small that it is no normal number."""
    found = np.asarray(scales, np.float32)
    small = np.abs(found) < SMALLEST_SCALE
    return np.where(small, np.where(found == 0, np.float32(1), np.float32(SMALLEST_SCALE)), found)


def _rounded(scales: Array, power_of_two: bool) -> Array:
    """The nearest power of two by ratio, if that is asked for."""
    return np.exp2(np.rint(np.log2(scales))).astype(np.float32) if power_of_two else scales
