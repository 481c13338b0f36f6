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

ELIMINATION_WORK = 3e8  # numbers touched while comparing units and updating; beyond it several leave a round
LEAST_ROUNDS = 32
MOST_EXCHANGES, EXCHANGED = 64, 8  # turns, and units that are tried in each
EXCHANGE_WORK = 1e11  # floating-point operations that all turns may take
LEAST_GAIN = 1e-9
COMPACT = 0.8  # the matrices shrink once fewer of their columns are left


@dataclass(frozen=True)
class Curve:
    """What leaving costs.

    Attributes:
        order: positions of units in their group, the cheapest first.
        errors: [units + 1], the error once so many have left, as a share of the readers' output energy; the last
            entries are infinite where the elimination stopped.
        measured: whether errors are relative errors; else they are sums of scores.
        whole: the error with all of them gone: what readers give about its mean, as a share of the energy.
    """

    order: Array
    errors: Array
    measured: bool = True
    whole: float = 1.0


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
        self.alive = np.ones(len(self.inverse), bool)

    @property
    def work(self) -> int:
        """Numbers that one round touches."""
        return int(self.columns.size * (self.weights.shape[1] + self.columns.shape[1] ** 2) + self.inverse.size)

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
        self.alive[at] = False
        if np.count_nonzero(self.alive) < COMPACT * len(self.alive):
            self._compact()

    def _compact(self) -> None:
        """Drop what left from the matrices."""
        places = np.flatnonzero(self.alive)
        where = np.full(len(self.alive), -1)  # units that left point nowhere and are never asked for again
        where[places] = np.arange(len(places))
        self.columns = where[self.columns]
        self.inverse = self.inverse[np.ix_(places, places)]
        self.weights = self.weights[places]
        self.alive = np.ones(len(places), bool)


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
    work = sum(reader.work for reader in readers)
    step = max(1, round(count / max(LEAST_ROUNDS, ELIMINATION_WORK / max(work, 1))))
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


class Added:
    """One reader during forward selection: what is left to explain once the chosen columns explain their part."""

    def __init__(self, problem: Problem, columns: Array, energy: float) -> None:
        self.second = problem.a[0].copy()
        self.target = np.ascontiguousarray(problem.r[0].T)  # [in, out]
        self.columns, self.energy = columns, energy
        self.error = float(problem.power.sum()) + float(problem.ridge[0]) * float(np.square(problem.old).sum())

    def gains(self, units: Array) -> Array:
        """How much error each unit takes away, [len(units)], as a share of the energy."""
        return _explained(self.second, self.target, self.columns[units]) / self.energy

    def add(self, unit: int) -> None:
        """Let a unit explain its part."""
        at = self.columns[unit]
        cross = self.second[:, at]
        solved = np.linalg.solve(self.second[np.ix_(at, at)], np.concatenate([self.target[at], cross.T], axis=1))
        outs = self.target.shape[1]
        self.target -= cross @ solved[:, :outs]
        self.second -= cross @ solved[:, outs:]


def select(readers: Sequence[Added], count: int, kept: int) -> Curve:
    """Forward selection: units are taken one after the other, each time the one that explains most.

    Better than elimination where few of many stay: elimination begins where everything is explained many times over.
    """
    left = np.arange(count)
    chosen: list[int] = []
    error = sum(reader.error / reader.energy for reader in readers)
    while len(chosen) < kept:
        gains = np.sum([reader.gains(left) for reader in readers], axis=0)
        best = int(np.argmax(gains))
        error -= float(gains[best])
        chosen.append(int(left[best]))
        for reader in readers:
            reader.add(chosen[-1])
        left = np.delete(left, best)
    errors = np.full(count + 1, np.inf)
    errors[0], errors[count - kept] = 0.0, max(error, 0.0)
    return Curve(np.array([*left.tolist(), *reversed(chosen)], np.int64), errors)


@dataclass(frozen=True)
class Exchanged:
    """One reader's moments [in, in] and [in, out], with nothing taken out."""

    second: Array
    target: Array
    columns: Array
    energy: float

    def work(self, kept: int) -> float:
        """Floating-point operations of one trial."""
        inside = kept * self.columns.shape[1]
        flops: float = 2.0 * inside * inside * (inside / 3 + self.columns.size)
        return flops

    def leaving(self, chosen: Array) -> Array:
        """What each of the chosen units leaving costs, the others refitted: [len(chosen)]."""
        at = self.columns[chosen].reshape(-1)
        inverse = np.linalg.inv(self.second[np.ix_(at, at)])
        w = inverse @ self.target[at]
        places = np.arange(len(at)).reshape(len(chosen), -1)
        blocks, w = inverse[places[:, :, None], places[:, None, :]], w[places]
        found: Array = np.einsum("udo,udo->u", w, np.linalg.solve(blocks, w)) / self.energy
        return found

    def joining(self, chosen: Array, units: Array) -> Array:
        """What each of other units takes away beside the chosen ones: [len(units)]."""
        at, others = self.columns[chosen].reshape(-1), self.columns[units]
        cross = self.second[np.ix_(at, others.reshape(-1))]
        outs = self.target.shape[1]
        solved = np.linalg.solve(self.second[np.ix_(at, at)], np.concatenate([self.target[at], cross], axis=1))
        rest = self.target[others] - (cross.T @ solved[:, :outs]).reshape(*others.shape, outs)
        parts, given = (m.reshape(len(at), *others.shape).transpose(1, 2, 0) for m in (cross, solved[:, outs:]))
        blocks = self.second[others[:, :, None], others[:, None, :]] - parts @ given.transpose(0, 2, 1)
        found: Array = np.einsum("udo,udo->u", rest, np.linalg.solve(blocks, rest)) / self.energy
        return found


def exchange(readers: Sequence[Exchanged], curve: Curve, kept: int) -> Curve:
    """Exchange units that stay for others as long as the readers lose less so; a local search about a curve's end."""
    count = len(curve.order)
    turns = EXCHANGE_WORK / (EXCHANGED * sum(reader.work(kept) for reader in readers))
    chosen, error = curve.order[count - kept :], float(curve.errors[count - kept])
    for _ in range(min(MOST_EXCHANGES, int(turns))):
        costs = np.sum([reader.leaving(chosen) for reader in readers], axis=0)
        for place in np.argsort(costs, kind="stable")[:EXCHANGED]:
            rest = np.delete(chosen, place)
            others = np.setdiff1d(np.arange(count), rest)
            gains = np.sum([reader.joining(rest, others) for reader in readers], axis=0)
            best = int(np.argmax(gains))
            better = float(gains[best] - costs[place])
            if better > LEAST_GAIN and others[best] != chosen[place]:
                chosen, error = np.append(rest, others[best]), error - better
                break
        else:
            break
    errors = np.full(count + 1, np.inf)
    errors[0], errors[count - kept] = 0.0, max(error, 0.0)
    return Curve(np.concatenate([np.setdiff1d(np.arange(count), chosen), chosen]), errors)


def _explained(second: Array, target: Array, at: Array) -> Array:
    """What the columns of each unit explain by themselves: [units]."""
    blocks, right = second[at[:, :, None], at[:, None, :]], target[at]
    found: Array = np.einsum("udo,udo->u", right, np.linalg.solve(blocks, right))
    return found
