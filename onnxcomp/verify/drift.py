"""Do the errors of a stateful model grow from step to step? Its outputs, state inputs being its own, early and late."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.ordered import Drift
from onnxcomp.runtime.closeness import energy, is_float
from onnxcomp.verify.pair import Answer

LEAST_STEPS = 4
BOUND_DB = 999.0


class Drifting:
    """Signal and noise of every output by step, over all sequences; outputs that are states are left to themselves."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, tuple[float, float]]] = {}
        self._sequences = 0

    def add(self, answer: Answer) -> None:
        """Count one step; answers of models without states count nothing."""
        if answer.step is None:
            return
        self._sequences += answer.step == 0
        before, after = answer.outputs
        for name, array in before.items():
            if name in answer.carried or not is_float(array.dtype) or array.shape != after[name].shape:
                continue
            a, b = array.astype(np.float64), after[name].astype(np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            a, b = a[finite], b[finite]
            signal, noise = self._sums.setdefault(name, {}).get(answer.step, (0.0, 0.0))
            self._sums[name][answer.step] = (signal + energy(a), noise + energy(a - b))

    def result(self) -> Drift | None:
        """The output that loses most from the first quarter of the steps to the last; None without long sequences."""
        found = [drift for name in self._sums if (drift := self._of(name)) is not None]
        return min(found, key=lambda drift: drift.last_db - drift.first_db, default=None)

    def _of(self, name: str) -> Drift | None:
        steps = max(self._sums[name]) + 1
        if steps < LEAST_STEPS:
            return None
        quarter = max(1, steps // 4)
        first, last = (self._sqnr_db(name, part) for part in (range(quarter), range(steps - quarter, steps)))
        return Drift(name, self._sequences, steps, first, last)

    def _sqnr_db(self, name: str, steps: range) -> float:
        sums = [self._sums[name].get(step, (0.0, 0.0)) for step in steps]
        signal, noise = (sum(part) for part in zip(*sums, strict=True))
        if not noise:
            return BOUND_DB
        return float(np.clip(10 * math.log10(max(signal, 1e-300) / noise), -BOUND_DB, BOUND_DB))
