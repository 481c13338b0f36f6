"""In which order do the units of a group leave, and what does each cost once the others make up for it?

Backward elimination with refit: the layer-wise objective of Optimal Brain Surgeon (Hassibi and Stork, 1993), for
blocks of columns. With A = E[x x^T] about the mean plus a ridge, P = A^-1 and weights W, removing the columns B of one
unit and refitting the rest costs tr(W_B (P_BB)^-1 W_B^T); W and P are then brought up to date. The ridge pulls towards
the weights as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Array
from onnxcomp.passes.pruning.solve import Problem

MOST_ROUNDS = 96  # wide groups leave several units a round


@dataclass(frozen=True)
class Curve:
    """What leaving costs.

    Attributes:
        order: positions of units in their group, the cheapest first.
        errors: [units + 1], the error once so many have left, as a share of the readers' output energy; the last
            entries are infinite where the elimination stopped.
        measured: whether errors are relative errors; else they are sums of scores.
    """

    order: Array
    errors: Array
    measured: bool = True


class Eliminated:
    """One reader during elimination: its weights and inverse moments with what left so far taken out."""

    def __init__(self, problem: Problem, columns: Array, energy: float) -> None:
        if problem.a.shape[0] != 1:
            raise ValueError("convolution groups are eliminated one by one")
        self.inverse = np.linalg.inv(problem.a[0])
        start = problem.refit(np.ones(problem.old.shape, bool), problem.old)[0]
        self.weights = np.ascontiguousarray(start.T)  # [in, out]
        self.columns = columns
        self.energy = energy

    def costs(self, units: Array) -> Array:
        """What each unit's removal costs, [len(units)], as a share of the energy."""
        at = self.columns[units]  # [u, d]
        blocks = self.inverse[at[:, :, None], at[:, None, :]]  # [u, d, d]
        w = self.weights[at]  # [u, d, out]
        solved = np.linalg.solve(blocks, w)
        found: Array = np.einsum("udo,udo->u", w, solved) / self.energy
        return found

    def remove(self, units: Array) -> None:
        """Take units out and refit the rest."""
        at = self.columns[units].reshape(-1)
        block = self.inverse[np.ix_(at, at)]
        cross = self.inverse[:, at]
        solved = np.linalg.solve(block, np.concatenate([self.weights[at], cross.T], axis=1))
        outs = self.weights.shape[1]
        self.weights -= cross @ solved[:, :outs]
        self.inverse -= cross @ solved[:, outs:]
        self.weights[at] = 0.0
        self.inverse[at, :] = 0.0
        self.inverse[:, at] = 0.0
        self.inverse[at, at] = 1.0


def eliminate(readers: Sequence[Eliminated], count: int, least: int) -> Curve:
    """Let units leave one after the other, each time those that cost all readers together least.

    Args:
        count: units of the group.
        least: how many stay at the end.
    """
    left = np.arange(count)
    order: list[int] = []
    errors = np.full(count + 1, np.inf)
    errors[0] = total = 0.0
    step = max(1, count // MOST_ROUNDS)
    while len(left) > least:
        costs = np.sum([reader.costs(left) for reader in readers], axis=0)
        taken = np.argsort(costs, kind="stable")[: min(step, len(left) - least)]
        for position in taken:
            total += max(float(costs[position]), 0.0)
            order.append(int(left[position]))
            errors[len(order)] = total
        gone = left[taken]
        for reader in readers:
            reader.remove(gone)
        left = np.delete(left, taken)
    return Curve(np.array([*order, *left.tolist()], np.int64), errors)
