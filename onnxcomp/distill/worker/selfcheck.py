"""Is the gradient right? Move the parameters along it, both ways, and compare what the loss does.

For a step of length e along a direction u, (L(w + e u) - L(w - e u)) must be 2 e g.u. Parameters are checked in groups,
each parameter of a group contributing alike, so that a tensor with a small gradient counts as much as a large one; a
group that fails is taken apart until the parameters are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx

from .channel import Array, RefusedError
from .gradient import Trainable
from .optimizer import Flat

GROUPS = 8
TOLERANCE = 0.01  # of the median
FAILED = 0.05  # of one parameter alone
CHANGE = 2e-3  # of the loss, that a step aims at: far above float32's noise, far below curvature
LONGEST = 0.05  # of a parameter's own length, that it may move
SIZES = (1.0, 4.0, 0.25)  # of the aimed step, tried until one agrees; then ever smaller ones
SHRINK = 0.25  # from one size to the next, while the loss changes visibly or bends
BENDS = 0.05  # of a change, that it is off the one of a longer step, shortened
SMALLEST = 1e-5  # of the aimed step; below, float32 rounds the weights' own move away
LEAST = 1e-4  # of the loss: changes below count as this large, for float32 is noisy there
NAMED = 6  # nodes that an error names
JITTERS = (3e-2, 0.1, 0.3)  # off the optimum, until the loss is visible: at the teacher there is no slope, but noise
VISIBLE = 1e-2  # all losses are of order 1 for a student that knows nothing
NOISE = 3e-7  # of a loss in float32, however small it is: sums of terms of order 1 that cancel

Wrong: TypeAlias = tuple[str, float, float]  # parameter, claimed change of the loss, measured change


def check(
    made: Trainable, arrays: Mapping[str, Array], rows: Array, seed: int, alive: Callable[[], None] = lambda: None
) -> tuple[float, list[Wrong]]:
    """Median relative error over the groups, and what is wrong.

    Parameters and statistics are as before when it returns. Weights are moved a little first, because at exact zeros
    (dead pixels, zero biases) many functions have a kink where any slope is right.

    Args:
        arrays, rows: the batch that the loss is taken of.
        alive: called before every difference of the loss; there may be many on a large model.
    """
    before = made.values.vector.copy()
    statistics = {name: array.copy() for name, array in made.statistics.items()}
    try:
        for jitter in JITTERS:
            made.values.vector[...] = before
            _jitter(made.values, seed, jitter)
            loss = made.gradient(arrays, rows)
            if not loss < VISIBLE:
                break
        base = made.values.vector.copy()
        if not math.isfinite(loss) or not np.isfinite(made.grads.vector).all():
            raise RefusedError(
                "diverged",
                "the loss or its gradient is not finite before the first step",
                do="check the data and the labels' range",
            )
        grads = {name: view.copy() for name, view in made.grads.views.items()}

        def forward() -> float:
            alive()
            return made.forward(arrays, rows)

        probe = _Probe(forward, made.values, base, loss, grads)
        names = list(grads)
        groups = [names[i::GROUPS] for i in range(min(GROUPS, len(names)))]
        errors = [probe.error(group)[0] for group in groups]
        wrong = []
        for group, error in zip(groups, errors, strict=True):
            if error > TOLERANCE:
                wrong += probe.blame(group)
        return float(np.median(errors)), wrong
    finally:
        made.values.vector[...] = before
        for name, array in statistics.items():
            made.statistics[name][...] = array


class _Probe:
    """Differences of the loss around one point."""

    def __init__(
        self, forward: Callable[[], float], values: Flat, base: Array, loss: float, grads: dict[str, Array]
    ) -> None:
        self._forward = forward
        self._values = values
        self._base = base
        self._loss = max(abs(loss), 1e-6)
        self._grads = grads
        self._norms = {name: float(np.linalg.norm(grad.astype(np.float64))) for name, grad in grads.items()}

    def error(self, names: Sequence[str]) -> tuple[float, float, float]:
        """Relative error of the best of some step sizes, with the change claimed and the change measured.

        A slope is that of a small step. Where the loss bends within the longest one (a saturated Softmax that jumps to
        another class, activations of random weights that grow from layer to layer) the step is shortened as long as
        the change can be measured or the loss still bends: a wrong slope is as wrong at every size.
        """
        best = (math.inf, 0.0, 0.0)
        floor = max(LEAST * self._loss, NOISE / TOLERANCE)
        changes: dict[float, float] = {}
        sizes = list(SIZES)
        for size in sizes:
            claimed, measured = self._change(names, size)
            changes[size] = measured
            error = abs(claimed - measured) / max(abs(claimed), abs(measured), floor)
            best = min(best, (error, claimed, measured))
            if error <= TOLERANCE / 2:
                break
            visible = abs(measured) * SHRINK > floor
            bends = abs(changes.get(size / SHRINK, measured) * SHRINK - measured) > BENDS * abs(measured)
            if size == sizes[-1] and (visible or bends) and size * SHRINK > SMALLEST:
                sizes.append(size * SHRINK)
        return best

    def blame(self, names: Sequence[str]) -> list[Wrong]:
        """The parameters of a failing group that fail alone, found by halves."""
        if len(names) > 1:
            halves = (names[: len(names) // 2], names[len(names) // 2 :])
            return [wrong for half in halves if self.error(half)[0] > TOLERANCE for wrong in self.blame(half)]
        error, claimed, measured = self.error(names)
        return [(names[0], claimed, measured)] if error > FAILED else []

    def _change(self, names: Sequence[str], size: float) -> tuple[float, float]:
        """What the gradient claims the loss changes by, and what it does change by."""
        values, share = self._values, size * CHANGE * self._loss / (2 * len(names))
        claimed = 0.0
        moves = {}
        for name in names:
            norm = self._norms[name]
            length = math.sqrt(float(np.vdot(self._view(name), self._view(name))))
            longest = size * LONGEST * max(length, 1e-2 * math.sqrt(self._grads[name].size))
            step = min(share / norm, longest) if norm > 0 else longest
            grad = self._grads[name]
            moves[name] = step * (grad / norm if norm > 0 else np.full_like(grad, 1 / math.sqrt(grad.size)))
            claimed += 2 * step * norm
        losses = []
        for sign in (1, -1):
            values.vector[...] = self._base
            for name, move in moves.items():
                values.views[name][...] += np.float32(sign) * move.astype(np.float32)
            losses.append(self._forward())
        values.vector[...] = self._base
        return claimed, losses[0] - losses[1]

    def _view(self, name: str) -> Array:
        place = self._values.places[name]
        found: Array = self._base[place]
        return found


def _jitter(values: Flat, seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    for view in values.views.values():
        size = float(np.sqrt(np.mean(np.square(view, dtype=np.float64)))) or 1e-2
        np.add(view, share * size * generator.standard_normal(view.shape), out=view, casting="same_kind")


def refusal(model: onnx.ModelProto, trainable: Sequence[str], median: float, wrong: list[Wrong]) -> RefusedError:
    """What to tell where the check fails."""
    if not wrong:
        return RefusedError(
            "gradient",
            f"the gradient differs from the loss's slope by {median:.1%} (at most {TOLERANCE:.0%} is right)",
            do="the loss may have kinks where the weights stand; report it where it has none",
        )
    name, claimed, measured = wrong[0]
    others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    blamed = {name for name, _, _ in wrong}
    nodes = suspects(model, blamed, set(trainable) - blamed)
    return RefusedError(
        "gradient",
        f"the gradient of {name!r}{others} is wrong: it claims that the loss changes by {claimed:.3g}, "
        f"and it changes by {measured:.3g}",
        where=f"one of {', '.join(nodes[:NAMED])}{' ...' if len(nodes) > NAMED else ''}",
        do="freeze what it names, or write that operator in others; the training runtime's gradient is at fault",
    )


def suspects(model: onnx.ModelProto, wrong: set[str], right: set[str]) -> list[str]:
    """Nodes that may have the wrong gradient: those behind wrong parameters that are not behind right ones as well.

    Where the gradient of a later weight is right, so is all from there to the loss; only the node where the two ways
    meet may still pass a wrong one back.
    """

    def behind(names: set[str]) -> dict[int, None]:
        reached, found = set(names), dict[int, None]()
        for index, node in enumerate(model.graph.node):
            if reached.intersection(node.input):
                reached.update(node.output)
                found[index] = None
        return found

    cleared = behind(right)
    meeting = next((index for index in behind(wrong) if index in cleared), None)
    chosen = [index for index in behind(wrong) if index not in cleared or index == meeting]
    return [f"{model.graph.node[i].op_type} {model.graph.node[i].name}".strip() for i in chosen]
