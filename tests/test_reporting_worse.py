"""Does the first line say when a result of one's own passes is worse than what came in?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_samples

from onnxcomp.job import Job
from onnxcomp.results import Accuracy
from onnxcomp.work.reporting import decide


@pytest.mark.parametrize(
    ("size", "drop", "words"),
    [
        (1.77, None, "worse than before: the file grew, and nothing was gained for it"),
        (1.77, 0.0, "the file grew"),
        (1.77, -0.01, ""),
        (1.0, 0.01, "worse than before: top1 fell"),
        (1.0, 0.0, ""),
        (0.9, 0.01, ""),
    ],
)
def test_what_got_worse_and_nothing_better_is_said(size: float, drop: float | None, words: str) -> None:
    report = report_samples.report(2)
    report.after = replace(report.before, bytes=round(size * report.before.bytes))
    report.accuracy = None if drop is None else Accuracy("top1", 100, 0.9, 0.9 - drop, drop)
    report.benchmarks, report.teacher, report.reason, report.fidelity = [], None, "", None
    report.passes = [replace(record, missed="") for record in report.passes]
    decide(report, Job(report.source.path), explicit=True, searched=False)
    assert words in report.reason and bool(words) == bool(report.reason)
