"""Why does a layer lose what it loses, in words, and what can be done about it?

Each cause has a sign of its own in what was measured; the one that explains most of the error is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.explanation.matching import Pair, bias_elsewhere
from onnxcomp.explanation.measuring import Error, Finding, Range
from onnxcomp.explanation.products import Layer, Place
from onnxcomp.graph.ir import Array

EXPLAINS = 0.5  # of the error's energy
MISSING = 0.2  # of a lost bias is seen in the means, behind an activation function too
LOST = (0.5, 1.5)  # shares of a bias that the means may lack where it is said to be lost and nothing else shows it
STEPS = 2.0  # that the mean of an input may be off by rounding and cutting
PLAIN = 0.01  # of a layer's error, below which a fault is not worth the first place
CHOSEN = 0.05  # of the values: what a method leaves out of a range that saw samples like these is less
FEW = 4  # channels, or elements of a row, from which on a common shift is no accident
RELATED_DB = 1.0  # between a weight and what any compression makes of it
ALIKE_DB = 6.0  # how much better the weights may be than the output whose error they explain


@dataclass(frozen=True)
class Cause:
    """Words on one layer: why it loses, and what would mend the layer itself, where that is known.

    Attributes:
        fault: whether no rounding can have done this, however coarse: the file is wrong.
    """

    why: str
    remedy: str = ""
    fault: bool = False


@dataclass(frozen=True)
class Weights:
    """The weight of one pair of layers.

    Attributes:
        sqnr_db: of the weight itself, each row scaled to fit best; None where it is equal or could not be read.
        saturated: share of the stored integers at the ends of their range.
        swapped: rows that fit another row of the original far better than their own.
        zeroed: rows that are zero now and were not.
        offset: how much of the error one constant a row makes up, beside a scale a row.
        constant: the largest of these constants.
    """

    sqnr_db: float | None = None
    saturated: float = 0.0
    swapped: tuple[int, ...] = ()
    zeroed: tuple[int, ...] = ()
    offset: float = 0.0
    constant: float = 0.0


def compare_weights(before: Layer, after: Layer) -> Weights:
    """Row by row, whatever scale folding gave a row."""
    a, b, codes = before.weight, after.weight, after.codes
    saturated = 0.0
    if codes is not None and codes.size:
        info = np.iinfo(codes.dtype) if codes.dtype.kind in "iu" else None
        if info is not None:
            saturated = (
                float(((codes == info.max) | (codes <= -info.max)).mean())
                if info.min < 0
                else float(((codes == info.max) | (codes == info.min)).mean())
            )
    if a is None or b is None or a.shape != b.shape:
        return Weights(None, saturated)
    rows, other = a.astype(np.float64), b.astype(np.float64)
    energy, length = np.square(rows).sum(1), np.square(other).sum(1)
    gain = np.where(length > 0, (rows * other).sum(1) / np.where(length > 0, length, 1), 0)
    noise = np.square(rows - other * gain[:, None]).sum(1)
    zeroed = np.flatnonzero((length == 0) & (energy > 0))
    total = float(noise.sum())
    sqnr = None if total == 0 else float(10 * np.log10(max(float(energy.sum()), 1e-300) / total))
    swapped = _swapped(rows, other, noise, energy)
    return Weights(sqnr, saturated, swapped, tuple(int(i) for i in zeroed), *_offset(rows, other))


def _offset(rows: Array, other: Array) -> tuple[float, float]:
    """How much of other's error, beside a scale a row, is one constant a row; and the largest constant."""
    if rows.shape[1] < FEW:
        return 0.0, 0.0
    middle, moved = rows.mean(1, keepdims=True), other.mean(1, keepdims=True)
    spread = np.square(rows - middle).sum(1)
    gain = np.where(spread > 0, ((rows - middle) * other).sum(1) / np.where(spread > 0, spread, 1), 1.0)[:, None]
    constant = moved - gain * middle
    total = float(np.square(other - gain * rows).sum())
    share = float(np.square(constant).sum()) * rows.shape[1] / total if total > 0 else 0.0
    return share, float(constant[np.abs(constant).argmax()].item())


def of_one_model(pairs: Sequence[Pair], layers: Sequence[Layer]) -> bool:
    """Whether two models can be forms of one: weights that nothing has in common are those of another model.

    Weights of other shapes say nothing, as channels may have been removed; then most layers must have a partner.

    Args:
        layers: of the first model.
    """
    sizes = [(pair, compare_weights(pair.before, pair.after)) for pair in pairs]
    read = [(pair, w) for pair, w in sizes if _same_size(pair)]
    if read:
        return any(w.sqnr_db is None or w.sqnr_db > RELATED_DB or w.swapped for _, w in read)
    return 2 * len(pairs) > len(layers)


def _same_size(pair: Pair) -> bool:
    a, b = pair.before.weight, pair.after.weight
    return a is not None and b is not None and a.shape == b.shape


def _swapped(rows: Array, other: Array, noise: Array, energy: Array) -> tuple[int, ...]:
    """Rows that are another row of the original: only the bad ones are looked up."""
    bad = np.flatnonzero(noise > 0.5 * energy)
    if not len(bad) or len(bad) > 4096:
        return ()
    unit = rows / np.maximum(np.sqrt(energy), 1e-30)[:, None]
    taken = other[bad] / np.maximum(np.linalg.norm(other[bad], axis=1), 1e-30)[:, None]
    fit = taken @ unit.T
    best = fit.argmax(1)
    good = (fit.max(1) > 0.9) & (best != bad)
    return tuple(int(i) for i in bad[good])


def cause_of(finding: Finding, weights: Weights) -> Cause:
    """The main reason for a layer's own error."""
    error = finding.own_error or finding.piled_error
    if error is None or not error.count:
        return Cause("its output has no counterpart to be compared with")
    if error.sqnr_db is None:
        return Cause("equal")
    if weights.swapped:
        shown = ", ".join(map(str, weights.swapped[:4]))
        words = f"output channels {shown} hold the weights of other channels"
        return Cause(words, "restore their order in this layer", fault=True)
    found = (
        _clipped_output(finding, error)
        or _dead(error, weights)
        or _clipped(finding, CHOSEN)
        or _lost_bias(finding, error)
        or _zero_point_of_weights(weights)
        or _zero_point_of_input(finding)
        or _saturated(weights, error)
        or _clipped(finding)
        or _rounded_weights(weights, error)
        or _pruned(finding)
        or _gain(error)
        or _shift(finding, error)
        or _rounded_input(finding)
    )
    return found or Cause("rounding")


def _lost_bias(finding: Finding, error: Error) -> Cause | None:
    """Nothing but a lost bias moves the mean of every channel by what the bias is there."""
    before, after = finding.pair.before.bias, finding.pair.after.bias
    behind = _linear(finding) or error
    gone = before is not None and not (after is not None and after.any()) and "Add" not in finding.pair.after.linear_ops
    if bias_elsewhere(finding.pair):
        return None
    for bias in (before, *finding.pair.before.vectors):
        if bias is None or not bias.any() or any(_alike(bias, kept) for kept in finding.pair.after.vectors):
            continue
        missing, share = _along(behind, bias)
        plain = LOST[0] < -missing < LOST[1] and share > EXPLAINS
        if plain or (gone and bias is before and -_along(error, bias)[0] >= MISSING):
            words = f"its bias, of {np.abs(bias).max():.3g} at most, is lost"
            return Cause(words, "put the bias of the original back into this layer", fault=True)
    return None


def _alike(vector: Array, other: Array) -> bool:
    """Whether a vector is another as far as 8 bits hold it."""
    return vector.shape == other.shape and bool(np.linalg.norm(vector - other) < 0.1 * np.linalg.norm(vector))


def _zero_point_of_weights(weights: Weights) -> Cause | None:
    """Rounding to the nearest, or with an eye on the output, leaves no constant in the weights of a whole row."""
    if weights.offset < EXPLAINS:
        return None
    words = f"its weights are off by one constant a channel, of {weights.constant:+.3g} at most: a zero point is off"
    return Cause(words, "give its weights the zero point that they were rounded with", fault=True)


def _zero_point_of_input(finding: Finding) -> Cause | None:
    """An input that is off by one constant moves every channel by the sum of its weights; rounding by half a step."""
    entry = finding.pair.entry[1] if finding.pair.entry is not None else None
    after, behind = finding.pair.after.weight, _linear(finding)
    if entry is None or not entry.step or after is None or behind is None or _clipped(finding) is not None:
        return None
    constant, share = _along(behind, after.sum(axis=1, dtype=np.float64))
    if abs(constant) < STEPS * entry.step or share < EXPLAINS:
        return None
    words = f"its input is off by {constant:+.3g}, {constant / entry.step:+.1f} steps: a zero point is off"
    return Cause(words, "give its input's DequantizeLinear the zero point of its QuantizeLinear", fault=True)


def _linear(finding: Finding) -> Error | None:
    """The layer's own error in front of its activation function, where it was measured."""
    ends = (finding.pair.before.linear, finding.pair.after.linear)
    found = (e for e, pair in zip(finding.own, finding.pair.exits, strict=True) if pair == ends and e.count)
    return next(found, None)


def _along(error: Error, direction: Array) -> tuple[float, float]:
    """How often the moved means of channels hold a direction, and which share of their energy that is.

    Nothing where it is too little of the error to be seen, or there are too few channels to tell.
    """
    flat = np.asarray(direction, np.float64).reshape(-1)
    length = float(flat @ flat)
    if not error.count or len(flat) < FEW or len(flat) != len(error.shift) or not length:
        return 0.0, 0.0
    means = error.shift / error.count
    times = float(means @ flat) / length
    if times * times * length * error.count < PLAIN * float(error.noise.sum()):
        return 0.0, 0.0
    return times, times * times * length / max(float(means @ means), 1e-300)


def _saturated(weights: Weights, error: Error) -> Cause | None:
    if weights.sqnr_db is None or weights.saturated < 0.02 or weights.sqnr_db > min(25.0, (error.sqnr_db or 0.0) + 20):
        return None
    return Cause(
        f"{weights.saturated:.1%} of its weights lie at the ends of their range: they have "
        f"{weights.sqnr_db:.1f} dB by themselves",
        "give its weights a larger scale",
    )


def _clipped(finding: Finding, beyond: float = 1e-3) -> Cause | None:
    """More than a share of its input is cut off; beyond `CHOSEN` that comes first: it moves all means, like a bias."""
    entry = finding.pair.entry[1] if finding.pair.entry is not None else None
    if entry is None or finding.fed.beyond <= beyond * finding.fed.count:
        return None
    return _cut_off("input", finding.fed, entry)


def _clipped_output(finding: Finding, error: Error) -> Cause | None:
    """The range behind a layer takes more from what it should give than all else adds.

    This is measured, whatever else it looks like: what is cut off moves means and makes channels smaller, too.
    """
    if finding.chosen is None:
        return None
    given = finding.given[finding.chosen]
    if given.cut < EXPLAINS * float(error.noise.sum()) or not given.beyond:
        return None
    return _cut_off("output", given, finding.pair.exits[finding.chosen][1])


def _cut_off(what: str, values: Range, place: Place) -> Cause:
    share = values.beyond / values.count
    text = (
        f"its {what}'s range of {place.low:.4g} to {place.high:.4g} cuts off {share:.2%} of the values, "
        f"which reach from {values.low:.4g} to {values.high:.4g}"
    )
    if share > CHOSEN:
        return Cause(
            text, "calibrate on samples like these, prepared in the same way: no choice of a range cuts off that"
        )
    return Cause(text, f"give its {what} a wider range, as quantize-qdq{{activations=minmax}} does")


def _pruned(finding: Finding) -> Cause | None:
    """Channels that it reads no more, or weights that were fitted to those that are left."""
    pair = finding.pair
    read = pair.left_at(pair.entry) if pair.entry is not None else None
    if read is not None:
        words = f"{len(read.indices)} of the {read.of} channels that it reads are left"
        return Cause(words, "leave the layer in front of it out of pruning, or prune less")
    given = next((left for ends in pair.exits if (left := pair.left_at(ends)) is not None), None)
    if given is None or (pair.entry is not None and pair.entry[1].step):
        return None
    return Cause(
        f"{len(given.indices)} of the {given.of} channels that it gives are left, and these are other ones now"
    )


def _rounded_weights(weights: Weights, error: Error) -> Cause | None:
    if weights.sqnr_db is None or weights.sqnr_db >= (error.sqnr_db or 0.0) + ALIKE_DB:
        return None
    return Cause(f"its weights have {weights.sqnr_db:.1f} dB by themselves")


def _rounded_input(finding: Finding) -> Cause | None:
    entry = finding.pair.entry[1] if finding.pair.entry is not None else None
    if entry is None or not entry.step or not finding.fed.rms:
        return None
    steps = finding.fed.rms / entry.step
    return Cause(
        f"its input is rounded to steps of {entry.step:.3g}, {steps:.1f} to its root mean square; it reaches "
        f"from {finding.fed.low:.4g} to {finding.fed.high:.4g}",
        "give its input a narrower range, as quantize-qdq{activations=mse} does" if steps < 8 else "",
    )


def _dead(error: Error, weights: Weights) -> Cause | None:
    dead = np.flatnonzero((error.energy == 0) & (error.signal > 0))
    if not len(dead) or error.signal[dead].sum() < EXPLAINS * error.noise.sum():
        return None
    text = f"{len(dead)} of {len(error.signal)} output channels give nothing but zero"
    return Cause(text, "leave this layer out of pruning, or give its weights a scale a channel")


def _gain(error: Error) -> Cause | None:
    """A wrong scale: the output is a multiple of what it was."""
    with np.errstate(all="ignore"):
        gain = error.cross / error.signal
        left = error.energy - np.where(error.signal > 0, error.cross**2 / error.signal, 0)
    noise = error.noise.sum()
    if not noise or left.sum() > (1 - EXPLAINS) * noise:
        return None
    typical = float(np.median(gain[np.isfinite(gain)])) if np.isfinite(gain).any() else 1.0
    if abs(typical - 1) < 0.02 and noise < 0.01 * error.signal.sum():
        return None
    off = np.abs(gain - 1) > 0.02
    odd = int(off.sum())
    if odd <= len(gain) // 4:
        worst = int(np.nan_to_num(np.square(error.noise)).argmax())
        what = (
            f"{odd} of {len(gain)} output channels, most in channel {worst}, which is {gain[worst]:.3g} times as large"
        )
        return Cause(f"the error sits in {what}", "leave this layer out, or give its weights a scale a channel")
    middle = float(np.median(gain[off & np.isfinite(gain)]))
    return Cause(
        f"{odd} of {len(gain)} output channels are a multiple of what they were, the middle one of these {middle:.3g} "
        "times",
        "check the scales of this layer's input, weight and output against each other",
    )


def _shift(finding: Finding, error: Error) -> Cause | None:
    """Another bias or a wrong zero point: the mean of channels has moved."""
    if not error.count or not error.noise.sum():
        return None
    moved = np.square(error.shift) / error.count
    if moved.sum() < EXPLAINS * error.noise.sum():
        return None
    means = error.shift / error.count
    worst = int(np.abs(means).argmax())
    return Cause(
        f"the mean of its output has moved, most by {means[worst]:+.3g} in channel {worst}: "
        f"{_moved_by(finding, means)}",
        "compare its bias and zero points with the original's; quantize-qdq corrects biases where data are given",
    )


def _moved_by(finding: Finding, means: Array) -> str:
    """What can have moved the means of a layer's output."""
    a, b = finding.pair.before.bias, finding.pair.after.bias
    if a is not None and b is not None and len(a) == len(b) == len(means):
        other = b.astype(np.float64) - a
        if (means * other).sum() > EXPLAINS * np.square(means).sum():
            return f"its bias is another one, by {np.abs(other).max():.3g} at most"
        return "a zero point is off, or its input is cut off"
    alike = len(means) > 1 and np.abs(means - means.mean()).max() < 0.1 * abs(means.mean())
    return "a zero point is off" if alike else "its bias is lost, or a zero point is off"
