"""Which weights go? Exact counts over many tensors, n of every m, and rounds that rank again after each refit."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.passes.pruning.solve import LAYER_FLOPS, Problem

Importance = Literal["magnitude", "wanda", "random", "obs"]

FIRST_ROUND = 0.5  # above it hardly anything is lost, so the order in which weights go does not matter
ROUND = 0.72  # share that survives one round
_HALF_BITS = 16


@dataclass(frozen=True)
class Pattern:
    """At most `keep` of every `of` neighbouring weights along the input channels."""

    keep: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern | None:
        """Read `2:4`; None where the text is no such pattern."""
        parts = text.split(":")
        if len(parts) != 2 or not all(p.isascii() and p.isdigit() for p in parts):
            return None
        keep, of = int(parts[0]), int(parts[1])
        return cls(keep, of) if 0 < keep < of else None

    def mask(self, scores: Array, keep: int | None = None) -> Array:
        """True for the `keep` largest scores of every `of` neighbours of the last axis; the first wins a tie."""
        blocks = scores.reshape(*scores.shape[:-1], -1, self.of)
        order = np.argsort(-blocks, axis=-1, kind="stable")
        mask = np.zeros(blocks.shape, bool)
        np.put_along_axis(mask, order[..., : self.keep if keep is None else keep], True, axis=-1)
        return mask.reshape(scores.shape)


def removed_count(ratio: float, total: int) -> int:
    """How many of `total` weights make the share `ratio`: never less than it, and not one more than needed."""
    return min(total, int(np.ceil(ratio * total - 1e-9 * total)))


def smallest(scores: Sequence[Callable[[], Array]], count: int) -> Iterator[Array]:
    """Masks of survivors, tensor by tensor, once the `count` smallest scores of all tensors together are gone.

    Exact, with one tensor in memory at a time: a radix selection over the bits of float32, whose order is that of the
    numbers where none is negative. Among equal scores the earlier ones go.

    Args:
        scores: each gives one tensor's scores, float32 and not negative; asked three times.
        count: how many go.
    """
    high = _cut(np.zeros(2**_HALF_BITS, np.int64), scores, count, lambda bits: bits >> _HALF_BITS)
    inside = count - high[1]

    def low_bits(bits: Array) -> Array:
        found: Array = bits[bits >> _HALF_BITS == high[0]] & (2**_HALF_BITS - 1)
        return found

    low = _cut(np.zeros(2**_HALF_BITS, np.int64), scores, inside, low_bits)
    bound = (high[0] << _HALF_BITS) | low[0]
    ties = inside - low[1]
    for score in scores:
        bits = _bits(score())
        mask = bits > bound
        equal = np.flatnonzero(bits == bound)
        mask.reshape(-1)[equal[ties:]] = True
        ties -= min(ties, len(equal))
        yield mask


def _cut(
    histogram: Array, scores: Sequence[Callable[[], Array]], count: int, bins: Callable[[Array], Array]
) -> tuple[int, int]:
    """The bin in which the `count`-th smallest lies, and how many lie in the bins before it."""
    for score in scores:
        histogram += np.bincount(bins(_bits(score())).reshape(-1), minlength=len(histogram))
    below = np.concatenate([[0], np.cumsum(histogram)])
    found = int(np.searchsorted(below[1:], count, side="left"))
    found = min(found, len(histogram) - 1)
    return found, int(below[found])


def _bits(scores: Array) -> Array:
    return np.ascontiguousarray(scores, np.float32).view(np.uint32)


def random_scores(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Scores that know nothing, the same for a tensor of the same name and seed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).random(shape, dtype=np.float32)


def importances(problem: Problem, w: Array, importance: Importance, noise: Array | None) -> Array:
    """Scores of weights [group, out, in] of a layer whose statistics are known; larger stays.

    `wanda` is w^2 E[x^2] (Sun et al. 2023, squared), `obs` w^2 / [H^-1]_jj (Hassibi and Stork 1993): both are squared
    output errors, counted by the problem's `row_weights`. `magnitude` is |w|.
    """
    if importance == "random":
        assert noise is not None
        return noise
    if importance == "magnitude":
        return np.abs(w)
    scores: Array = np.square(w) * costs(problem, importance) * problem.row_weights[..., None]
    return scores


def costs(problem: Problem, importance: Importance) -> Array:
    """The squared output error of removing a weight of 1, by `wanda` or `obs`: [group, 1, in]."""
    return problem.diagonal if importance == "wanda" else 1.0 / problem.inverse_diagonal


def densities(target: float) -> list[float]:
    """Shares that survive round by round, down to `target`."""
    found = [FIRST_ROUND]
    while found[-1] * ROUND > max(target * 1.05, 1e-4):
        found.append(found[-1] * ROUND)
    return [d for d in found if d > target * 1.05] + [target]


def rounds(
    problem: Problem,
    keeps: Sequence[int],
    importance: Importance,
    noise: Array | None = None,
    *,
    flops: float = LAYER_FLOPS,
    final: bool = True,
) -> Iterator[tuple[Array, Array]]:
    """Prune a layer to fewer and fewer weights, each time refitting the survivors and ranking them again.

    A weight that is zero already counts as gone and stays so.

    Args:
        keeps: falling counts of survivors, over the whole layer.
        flops: what one refit may spend, where it is not exact.
        final: whether the last weights are to stay.

    Yields:
        (mask, weights) [group, out, in] after each round.
    """
    w = problem.old
    alive = w != 0
    for index, keep in enumerate(keeps):
        if keep < np.count_nonzero(alive):
            scores = np.where(alive, importances(problem, w, importance, noise), -1.0).reshape(-1)
            order = np.argpartition(-scores, keep - 1)[:keep] if keep else np.zeros(0, np.int64)
            alive = np.zeros(alive.size, bool)
            alive[order] = True
            alive = alive.reshape(w.shape)
        w = problem.refit(alive, w, flops, last=final and index == len(keeps) - 1)
        yield alive, w


def pattern_rounds(
    problem: Problem, pattern: Pattern, importance: Importance, noise: Array | None = None
) -> tuple[Array, Array]:
    """Prune to n of every m, one weight of each block a round, survivors refitted in between: (mask, weights)."""
    w = problem.old
    alive = w != 0
    step = max(1, -(-(pattern.of - pattern.keep) // 4))
    keep = pattern.of
    while keep > pattern.keep:
        keep = max(pattern.keep, keep - step)
        scores = np.where(alive, importances(problem, w, importance, noise), -1.0)
        alive &= pattern.mask(scores, keep)
        w = problem.refit(alive, w, last=keep == pattern.keep)
    return alive, w
