"""Given which weights survive, what should they be? Masked least squares on second moments, many rows at once.

For one output with target y: min over w, zero outside its mask, of E|y - w x - b|^2 + ridge |w - w_old|^2. All rows of
a layer share E[x x^T], each has its own mask (the layer-wise problem of Hassibi and Stork's OBS 1993 and of Frantar and
Alistarh's OBC 2022). The minimum is never worse than the old weights under the mask, whose ridge term is zero.

Arrays carry convolution groups in front: W [group, out, in], moments [group, in, in].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.runtime.gram import Gram

CHUNK_BYTES = 64 * 2**20
MOST_STEPS, LEAST_STEPS = 32, 6  # of conjugate gradients
SMALL_GAIN = 0.003  # of all that conjugate gradients gained: where a refit is not the last, a step below it ends them
ORDINARY = 4.0  # times the median power: what counts as ordinary
ROUNDING = 1e-6  # of moments that are summed from float32 products, as a share of them
LAYER_FLOPS = 6e10  # that one refit may spend on those steps


@dataclass(frozen=True)
class Problem:
    """The least-squares problem of one layer, the bias already solved for.

    Attributes:
        a: [group, in, in] E[x x^T] (about the mean where the bias is free) plus the ridge on its diagonal.
        r: [group, out, in] E[y x^T] (likewise) plus ridge times the old weights.
        power: [group, out] E[y^2] (likewise).
        old: [group, out, in] the weights as they are.
        ridge: [group] the ridge.
        x_mean, y_mean: [group, in] and [group, out] where the bias is free; else None.
    """

    a: Array
    r: Array
    power: Array
    old: Array
    ridge: Array
    x_mean: Array | None
    y_mean: Array | None

    @classmethod
    def of(cls, moments: Gram, old: Array, bias: Array | None, damping: float) -> Problem:
        """Set up from moments, against their targets; where they have none, against the layer's own outputs.

        Args:
            old: [group, out, in] weights.
            bias: [group, out], or None where the layer has none that could change.
            damping: ridge as a share of the mean diagonal.
        """
        if moments.cross is None or moments.power is None:
            whole = np.concatenate([old, np.zeros_like(old[..., :1]) if bias is None else bias[..., None]], axis=2)
            cross = whole @ moments.h  # [group, out, in + 1]
            power = np.einsum("goi,goi->go", cross, whole)
        else:
            cross, power = moments.cross.transpose(0, 2, 1), moments.power
        a, r = np.array(moments.second), np.array(cross[..., :-1])
        x_mean = y_mean = None
        if bias is not None:
            x_mean, y_mean = moments.mean, cross[..., -1]
            a -= x_mean[:, :, None] * x_mean[:, None, :]
            r -= y_mean[:, :, None] * x_mean[:, None, :]
            power = power - y_mean**2
        scale = np.einsum("gii->gi", a).mean(axis=1)  # [group]; a channel that is always zero still gets a ridge
        noise = np.einsum("gii->gi", moments.second).mean(axis=1)  # what hardly varies about a large mean is rounding
        ridge = np.maximum(damping * np.maximum(np.maximum(scale, 1e-6 * scale.mean()), 1e-30), ROUNDING * noise)
        a[:, np.arange(a.shape[1]), np.arange(a.shape[1])] += ridge[:, None]
        return cls(a, r + ridge[:, None, None] * old, np.maximum(power, 0.0), old, ridge, x_mean, y_mean)

    def error(self, w: Array) -> Array:
        """E|y - w x - b|^2 at the best bias, without the ridge: [group, out]."""
        plain = 2 * np.einsum("goi,goi->go", w, self.r - self.ridge[:, None, None] * self.old)
        quadratic = np.einsum("goi,goi->go", w @ self.a, w) - self.ridge[:, None] * np.square(w).sum(axis=2)
        error: Array = np.maximum(self.power - plain + quadratic, 0.0)
        return error

    @cached_property
    def row_weights(self) -> Array:
        """How much an output's squared error counts in its layer: [group, out], about 1 / power.

        Outputs of ordinary power count alike; one of huge power, which mostly lies where the activation behind it is
        flat, counts by what share of itself is lost. Without that such an output hides the errors of all others.
        """
        usual = float(np.median(self.power)) or float(self.power.mean())
        weights: Array = 1.0 / np.maximum(self.power + ORDINARY * usual, 1e-30)
        return weights

    def relative_error(self, w: Array) -> float:
        """The layer's error as a share of its target's energy, both counted by `row_weights`."""
        return self.share(self.error(w))

    def share(self, error: Array) -> float:
        """Errors [group, out] as a share of the target's energy."""
        total = float((self.power * self.row_weights).sum())
        return float((error * self.row_weights).sum()) / total if total > 0 else 0.0

    def bias(self, w: Array) -> Array | None:
        """The best bias for given weights: [group, out]; None where the layer has none."""
        if self.x_mean is None or self.y_mean is None:
            return None
        best: Array = self.y_mean - np.einsum("goi,gi->go", w, self.x_mean)
        return best

    @cached_property
    def inverse_diagonal(self) -> Array:
        """Diagonal of a^-1: [group, 1, in]; w^2 over it is what removing one weight costs (OBS)."""
        found: Array = np.einsum("gii->gi", np.linalg.inv(self.a))[:, None, :]
        return found

    @cached_property
    def diagonal(self) -> Array:
        """Diagonal of a: [group, 1, in]."""
        found: Array = np.einsum("gii->gi", self.a)[:, None, :]
        return found

    def refit(self, mask: Array, start: Array, flops: float = LAYER_FLOPS, *, last: bool = True) -> Array:
        """The best weights under a mask.

        Solved exactly where rows keep few weights, by conjugate gradients on all rows at once where that is cheaper.

        Args:
            mask: [group, out, in] bool, True for survivors.
            start: where conjugate gradients begin.
            flops: how much those may cost.
            last: whether the weights are to stay so; others are only ranked, and need not be the very best.
        """
        kept = mask.sum(axis=2, dtype=np.float64)
        _, _, width = mask.shape
        steps = _steps(mask.size * width, flops)
        # seconds, roughly: small factorings run at 1.5 GFLOP/s and gathers at 1 GB/s where products reach 50 GFLOP/s
        exact = float((0.67 * kept**3 / 1.5e9 + 8e-9 * kept**2)[kept < width].sum())
        iterated = steps * mask.size * (2 * width / 50e9 + 8e-9)
        if exact <= iterated:
            return self._solve(mask)
        return self._descend(mask, start, steps, 0.0 if last else SMALL_GAIN)

    def best(self, mask: Array, refitted: Array) -> Array:
        """Row by row the better of the refitted weights and the old ones under the same mask."""
        masked = self.old * mask
        worse = self.error(refitted) > self.error(masked)
        return np.where(worse[..., None], masked, refitted)

    def _solve(self, mask: Array) -> Array:
        """Gather each row's block of `a` and solve them in stacks of similar size."""
        groups, outs, width = mask.shape
        kept = mask.sum(axis=2).reshape(-1)
        flat, r = mask.reshape(-1, width), self.r.reshape(-1, width)
        found = np.zeros((groups * outs, width))
        whole = kept == width
        for group in np.unique(np.flatnonzero(whole) // outs):
            rows = np.flatnonzero(whole[group * outs : (group + 1) * outs]) + group * outs
            found[rows] = np.linalg.solve(self.a[group], r[rows].T).T
        kept = np.where(whole, 0, kept)
        order = np.argsort(kept, kind="stable")
        start = int(np.searchsorted(kept[order], 1))  # rows that keep nothing stay zero, whole ones are done
        while start < len(order):
            stop = _stack_end(kept, order, start)
            rows = order[start:stop]
            size = int(kept[rows[-1]])
            places = np.argsort(~flat[rows], axis=1, kind="stable")[:, :size]  # [rows, size] indices, survivors first
            real = np.arange(size) < kept[rows][:, None]
            blocks = self.a[(rows // outs)[:, None, None], places[:, :, None], places[:, None, :]]
            if not real.all():
                blocks *= real[:, :, None] & real[:, None, :]
                blocks[:, np.arange(size), np.arange(size)] += ~real
            right = np.where(real, np.take_along_axis(r[rows], places, axis=1), 0.0)
            solved = np.linalg.solve(blocks, right[..., None])[..., 0]
            found[np.repeat(rows, kept[rows]), places[real]] = solved[real]
            start = stop
        return found.reshape(mask.shape)

    def _descend(self, mask: Array, start: Array, steps: int, least_gain: float) -> Array:
        """Conjugate gradients with the diagonal as preconditioner; every step is one product for all rows.

        A step that lowers the error by less than `least_gain` of all that was gained before is the last.
        """
        a, allowed = self.a.astype(np.float32), mask.astype(np.float32)
        w = (start * mask).astype(np.float32)
        weight = (1.0 / self.diagonal).astype(np.float32)
        rest = (self.r.astype(np.float32) - w @ a) * allowed
        z = rest * weight
        p = z
        rho = np.einsum("goi,goi->go", rest, z)[..., None]
        enough = 1e-6 * rho.max(initial=0.0)
        gained = 0.0
        for _ in range(steps):
            if rho.max(initial=0.0) <= enough:
                break
            q = (p @ a) * allowed
            curve = np.einsum("goi,goi->go", p, q)[..., None]
            alpha = np.divide(rho, curve, out=np.zeros_like(rho), where=curve > 0)
            w += alpha * p
            rest -= alpha * q
            gain = float((alpha * rho)[..., 0].ravel() @ self.row_weights.ravel())  # twice what the error falls by
            gained += gain
            if gain < least_gain * gained:
                break
            z = rest * weight
            before, rho = rho, np.einsum("goi,goi->go", rest, z)[..., None]
            p = z + np.divide(rho, before, out=np.zeros_like(rho), where=before > 0) * p
        return w.astype(np.float64)


def _steps(work: float, flops: float) -> int:
    """Conjugate-gradient steps for a product of `work` multiply-accumulates."""
    return int(np.clip(flops / max(2.0 * work, 1.0), LEAST_STEPS, MOST_STEPS))


def _stack_end(kept: Array, order: Array, start: int) -> int:
    """How far a stack of blocks may reach: sizes within a quarter of each other, memory bounded."""
    most = int(kept[order[start]] * 1.25) + 4
    stop = int(np.searchsorted(kept[order], most, side="right"))
    size = int(kept[order[stop - 1]])
    return min(stop, start + max(1, CHUNK_BYTES // (8 * size * size)))
