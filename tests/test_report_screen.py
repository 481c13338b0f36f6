"""Is the screen after a run whole and readable, in any terminal and in a pipe?"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import report_samples
from onnx import helper
from rich.console import Console

import onnxcomp
from onnxcomp.ordered import Certainty
from onnxcomp.report.html import document
from onnxcomp.report.screen import figures, show
from onnxcomp.report.tables import count_text, shapes_text, size_text, table
from onnxcomp.results import Accuracy, Agreement, BudgetLine, Fidelity, PassRecord, Report, TeacherRecord
from onnxcomp.verify.budget import Budget, parse_size
from onnxcomp.verify.enough import in_words


def shown(report: Report, width: int, *, terminal: bool = True) -> str:
    console = Console(
        file=io.StringIO(), width=width, soft_wrap=True, highlight=False, force_terminal=terminal, color_system=None
    )
    show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def sample() -> Report:
    report = report_samples.report(name=lambda index: f"/encoder/layer.{index}/attention/self/query/MatMul")
    assert report.accuracy is not None
    report.accuracy = replace(report.accuracy, metric="top1")
    return report


@pytest.mark.parametrize("width", [80, 100, 120])
def test_every_figure_stands_whole_and_no_line_is_broken_by_the_terminal(width: int) -> None:
    report = sample()
    report.notes = ["a note of many words " * 12]
    lines = shown(report, width).splitlines()
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    for stats in (report.before, report.after):
        assert size_text(stats.bytes) in text
        assert count_text(stats.parameters) in text
    assert report.accuracy is not None
    assert f"{report.accuracy.before:.4f} {report.accuracy.after:.4f}" in text
    bench = report.benchmarks[0]
    assert f"{bench.before_ms['p50']:.3f} ms {bench.after_ms['p50']:.3f} ms" in text
    assert ("a note of many words " * 12).strip() in text


def test_a_pipe_gets_every_note_on_one_line() -> None:
    report = sample()
    report.notes = ["a note of many words " * 12]
    assert "  " + report.notes[0] in shown(report, 140, terminal=False).splitlines()


def test_budgets_are_told_in_units() -> None:
    report = sample()
    report.budget = [BudgetLine("max_size", 158_029, 136_768, True), BudgetLine("max_drop", 0.01, 0.02, False)]
    text = shown(report, 80)
    assert "max_size 158 kB: 137 kB, held" in text
    report.budget = Budget(max_size=parse_size("20%")).evaluate(before_bytes=1_095_000, after_bytes=292_000)
    assert "max_size 20% (219 kB): 292 kB, missed" in shown(report, 80)
    assert "max_drop 0.01: 0.02, missed" in text


def test_zeros_are_named_where_they_are_news() -> None:
    report = sample()
    report.verdict = "accepted"
    report.before = replace(report.before, parameters=1000, nonzero_parameters=1000)
    report.after = replace(report.after, parameters=1000, nonzero_parameters=100)
    assert "of the parameters zero" not in shown(report, 120)  # rounding made them
    report.passes.append(PassRecord("prune-weights", "prune-weights", "lossy", 1.0, 1, metrics={"zero_share": 0.9}))
    assert "90.0% of the parameters zero" in shown(report, 120).splitlines()[1]
    report.before = replace(report.before, nonzero_parameters=100)
    assert "of the parameters zero" not in shown(report, 120)


@pytest.mark.parametrize(("value", "said"), [(0.97, True), (0.9931, False), (None, False)])
def test_a_loss_of_more_than_a_point_stands_in_the_first_line(value: float | None, said: bool) -> None:
    report = sample()
    report.verdict, report.reason = "accepted", ""
    agreement = Agreement("classes", ("y",), "same class", value, 64)
    assert report.fidelity is not None
    report.fidelity = replace(report.fidelity, agreements=(agreement,))
    assert ("same class: 97.00%" in shown(report, 140, terminal=False).splitlines()[1]) == said
    report.reason = "but decides otherwise than the original: same class: 97.00%"
    assert shown(report, 140, terminal=False).splitlines()[1].count("same class: 97.00%") == 1


def test_the_widest_text_gives_way_and_numbers_do_not() -> None:
    console = Console(file=io.StringIO(), width=40)
    rows = [("a name that is far too long for this", "12345", "123.4 kB"), ("b", "1", "2 kB")]
    console.print(table(("name", "count", "bytes"), rows, right=(1, 2)))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert "12345  123.4 kB" in lines[1]
    assert "".join(line[2:23] for line in lines[1:-1]).replace(" ", "") == rows[0][0].replace(" ", "")


@pytest.mark.parametrize(
    ("accuracy", "change", "interval"),
    [
        (Accuracy("top1", 100, 0.9, 0.905, -0.005, (-0.015, 0.005)), "+0.0050", "-0.0050 to +0.0150"),
        (Accuracy("wer", 100, 0.1, 0.105, 0.005, (-0.005, 0.015)), "+0.0050", "-0.0050 to +0.0150"),  # better lower
        (Accuracy("top1", 100, 0.9, 0.9, 0.0, (-0.01, 0.01)), "±0", "-0.0100 to +0.0100"),
    ],
)
def test_a_metric_is_told_as_after_minus_before_wherever_a_person_reads_it(
    accuracy: Accuracy, change: str, interval: str
) -> None:
    report = sample()
    report.accuracy, report.teacher = accuracy, None
    assert shown(report, 120).count(f"{accuracy.metric} {change}") == 1, "in the first line"
    assert f"{change} on 100" in " ".join(shown(report, 120).split())
    assert f"{change}; 95 % interval {interval}" in document(report)
    some = Fidelity(100, "data", {}, certainty=Certainty(1000, 0.95, 1, drop=accuracy.interval))
    assert f"({accuracy.metric} {interval}, " in in_words(some, accuracy)


def test_the_column_before_is_the_model_as_it_was_also_beside_a_teacher() -> None:
    report = sample()
    report.accuracy = Accuracy("top1", 100, 0.91, 0.93, -0.02)
    report.teacher = TeacherRecord("t.onnx", "", Accuracy("top1", 100, 0.9876, 0.93, 0.0576))
    for text in (" ".join(shown(report, 200).split()), document(report)):
        assert "teacher's top1 is 0.9876" in text.replace("&#x27;", "'").replace("&#39;", "'")
        assert text.count("0.9876") == 1


def test_operations_are_told_with_the_shapes_that_they_are_counted_at(tmp_path: Path) -> None:
    """A guessed length in one command and that of the data in another give two numbers of one model."""
    nodes = [helper.make_node("MatMul", ["words", "w"], ["y"], "product")]
    sizes = ["N", "length", 16], ["N", "length", 8]
    ends = [builders.value(name, builders.FLOAT, size) for name, size in zip(("words", "y"), sizes, strict=True)]
    proto = builders.model(nodes, ends[:1], ends[1:], {"w": builders.normal(builders.rng(), 16, 8)})
    path = builders.save(proto, tmp_path / "m.onnx")
    looked = onnxcomp.inspect(path)
    guessed = looked.sample["words"]
    assert dict(looked.facts())["MACs, one sample"] == f"{count_text(looked.stats.macs)} at words {list(guessed)}"
    assert looked.stats.macs == guessed[1] * 16 * 8
    data = {"words": builders.rng().standard_normal((40, 23, 16)).astype(np.float32)}
    report = onnxcomp.optimize(path, data=data, passes="store-weights", output=tmp_path / "o.onnx", bench=False)
    assert report.before.macs == 23 * 16 * 8
    assert ("MACs, one sample", "2.94 k", "2.94 k", "at words [1, 23, 16]") in figures(report)
    assert "at words [1, 23, 16]" in document(report)
    assert shapes_text(dict.fromkeys("abcde", (1, 4))) == "at a [1, 4], b [1, 4], c [1, 4], 2 more"


@pytest.mark.parametrize(
    ("value", "lower", "said"),
    [
        (1.0, 0.97, "boxes matched above 0.25: 100.00%, above 0.1: 97.00%"),
        (0.98, 0.97, "boxes matched above 0.25: 98.00%, above 0.1: 97.00%"),
        (0.98, 0.995, "boxes matched above 0.25: 98.00%"),
        (1.0, 0.995, ""),
    ],
)
def test_a_loss_among_fainter_boxes_stands_there_too(value: float, lower: float, said: str) -> None:
    report = sample()
    report.verdict, report.reason, report.doubts = "accepted", "", []
    agreement = Agreement("boxes", ("y",), "boxes matched above 0.25", value, 64, also=(("above 0.1", lower),))
    assert report.fidelity is not None
    report.fidelity = replace(report.fidelity, agreements=(agreement,))
    line = shown(report, 200, terminal=False).splitlines()[1]
    assert line.endswith(said) if said else "above" not in line
