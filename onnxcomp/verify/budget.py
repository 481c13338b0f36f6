"""Does the result stay within what the user allows, and with which exit code does the command end?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxcomp.errors import DataError, UsageError
from onnxcomp.results import Accuracy, Benchmark, BudgetLine, Fidelity
from onnxcomp.settings import setting

if TYPE_CHECKING:
    from onnxcomp.data.metric import Metric  # which brings numpy, and an unchanged build needs none

# of several missed budgets the lowest code wins
EXIT_CODES = {"max_drop": 10, "max_size": 11, "min_speedup": 12, "min_sqnr": 14, "min_agreement": 15}

UNCHANGED = 13  # the exit code where nothing was gained

# 0.99 - 0.98 is not more than 0.01, whatever binary fractions say
ROUNDING = 1e-9

NO_MODEL_BYTES = 100  # who gives a plain number up to here means percent

_UNITS = {
    "": 1, "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
    **{prefix: 1000**power for power, prefix in enumerate("kmgt", 1)},
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A limit on a file's size: in bytes, or as a share of the original."""

    bytes: float | None = None
    share: float | None = None

    def of(self, original_bytes: int) -> float:
        """The limit in bytes."""
        return self.share * original_bytes if self.share is not None else float(self.bytes or 0)


@dataclass(frozen=True)
class Budget:
    """What the result must keep; None means that nothing is asked.

    From these fields come the command line's flags and the keys of the configuration.
    """

    max_drop: float | None = setting(
        "Most the metric may lose, absolute: 0.01 is one point.", default=None, metavar="X", group="First"
    )
    min_sqnr: float | None = setting(
        "Least SQNR of any part of an output, in dB.", default=None, metavar="DB", group="Judging"
    )
    min_agreement: float | None = setting(
        "Least share of decisions that are the original's: classes, boxes, texts; 0.98, see --task.",
        default=None,
        metavar="X",
        group="Judging",
        minimum=0,
        maximum=1,
    )
    max_size: Size | None = setting(
        "Largest result: bytes, 4MB, or a share such as 30%.", default=None, metavar="S", group="First"
    )
    min_speedup: float | None = setting("Least speed-up, before/after.", default=None, metavar="R", group="First")

    def __post_init__(self) -> None:
        for name, value in (
            ("max-drop", self.max_drop),
            ("min-sqnr", self.min_sqnr),
            ("min-agreement", self.min_agreement),
            ("min-speedup", self.min_speedup),
        ):
            if value is not None and not math.isfinite(value):
                raise UsageError(f"--{name} takes a finite number, not {value}", where=f"--{name}")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(
                f"--min-agreement is a share between 0 and 1, not {self.min_agreement}",
                where="--min-agreement",
                do="0.98 allows two decisions in a hundred to differ",
            )
        if self.min_speedup is not None and self.min_speedup <= 0:
            raise UsageError(
                f"--min-speedup is before/after and above 0, not {self.min_speedup}",
                where="--min-speedup",
                do="1.5 asks for a third less time",
            )

    def require_metric(self, metric: Metric | None) -> None:
        """Refuse `max_drop` where nothing measures the task, and where it could never be missed.

        Raises:
            DataError: `max_drop` is given, but there are neither labels nor a metric.
            UsageError: it allows the metric to fall from all to nothing.
        """
        if self.max_drop is None:
            return
        if metric is not None and metric.share and self.max_drop >= 1:
            raise UsageError(
                f"--max-drop {self.max_drop:g} can never be missed: {metric.name} lies between 0 and 1",
                where="--max-drop",
                do=f"it is no percentage: {self.max_drop:g} % is {self.max_drop / 100:g}",
            )
        if metric is None:
            raise DataError(
                "--max-drop needs a task metric, and there are neither labels nor a metric",
                where="--max-drop",
                do="give --labels (or data that holds them) or --metric; --min-sqnr needs neither",
            )

    def evaluate(
        self,
        *,
        before_bytes: int,
        after_bytes: int,
        accuracy: Accuracy | None = None,
        fidelity: Fidelity | None = None,
        benchmark: Benchmark | None = None,
    ) -> list[BudgetLine]:
        """One line for each limit that was asked for. What could not be measured, NaN included, does not pass.

        The speed-up is judged by its point estimate; its interval stands in the benchmark. For identical outputs the
        SQNR is infinite, which a report shows as null.
        """
        lines = []
        if self.max_drop is not None:
            drop = accuracy.drop if accuracy is not None else None
            lines.append(_at_most("max_drop", self.max_drop + ROUNDING, self.max_drop, drop))
        if self.max_size is not None:
            limit = self.max_size.of(before_bytes)
            lines.append(replace(_at_most("max_size", limit, limit, float(after_bytes)), share=self.max_size.share))
        if self.min_speedup is not None:
            lines.append(_at_least("min_speedup", self.min_speedup, benchmark.speedup if benchmark else None))
        if self.min_sqnr is not None:
            lines.append(_at_least("min_sqnr", self.min_sqnr, _sqnr(fidelity)))
        if self.min_agreement is not None:
            lines.append(_at_least("min_agreement", self.min_agreement, _agreement(fidelity)))
        return lines


def exit_code(lines: Iterable[BudgetLine]) -> int:
    """0 when every line passed, else the lowest code among the missed ones."""
    return min((EXIT_CODES[line.name] for line in lines if not line.passed), default=0)


def parse_size(text: str) -> Size:
    """`4000000`, `4MB`, `1.5 MiB` (bytes) or `30%` (a share of the original).

    k, M, G and T are powers of 1000, with an `i` powers of 1024; upper and lower case are the same.

    Raises:
        UsageError: it is none of these, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%|[a-zA-Z]*)\s*", text)
    unit = found.group(2).lower() if found else ""
    number = float(found.group(1)) if found else 0.0
    if found is None or (unit != "%" and unit not in _UNITS) or not 0 < number < math.inf:
        raise UsageError(
            f"{text!r} is no size",
            where="--max-size",
            do="give bytes, a size such as 4MB or 1.5MiB, or a share such as 30%",
        )
    if unit != "%" and number * _UNITS[unit] <= NO_MODEL_BYTES:
        raise UsageError(
            f"--max-size {text.strip()} is {number * _UNITS[unit]:g} bytes, and no model is as small",
            where="--max-size",
            do=f"a share of the original is {100 * number if number <= 1 else number:g}%; sizes are 400kB or 4MB",
        )
    return Size(share=number / 100) if unit == "%" else Size(bytes=number * _UNITS[unit])


def _sqnr(fidelity: Fidelity | None) -> float | None:
    """The worst part of the worst output; those that are no floating-point numbers count by their unequal elements."""
    if fidelity is None or any(not output.comparable for output in fidelity.outputs.values()):
        return None
    worst = fidelity.worst_db
    return math.inf if worst is None else worst


def _agreement(fidelity: Fidelity | None) -> float | None:
    if fidelity is None or fidelity.untold:
        return None
    return 1.0 if fidelity.identical else fidelity.agreement


def _at_most(name: str, threshold: float, limit: float, value: float | None) -> BudgetLine:
    return BudgetLine(name, limit, value, value is not None and value <= threshold)


def _at_least(name: str, limit: float, value: float | None) -> BudgetLine:
    return BudgetLine(name, limit, value, value is not None and value >= limit)
