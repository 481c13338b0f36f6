"""A build as Markdown, for the summary page of a CI job."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

from onnxcomp.report.tables import limit_text, size_text, value_text
from onnxcomp.results import BudgetLine, BuildReport, BuiltModel, Report

MARKS = {"built": "✅ built", "up to date": "✅ up to date", "failed": "❌"}
MOST_NOTES = 12


def page(build: BuildReport) -> str:
    """The whole page: one table row a model, then what failed and why."""
    good = sum(not model.exit_code for model in build.models)
    lines = [
        f"## onnxcomp build: {good} of {len(build.models)} models accepted",
        "",
        "| model | result | size | speed | quality | budgets |",
        "|---|---|---|---|---|---|",
        *(_row(model) for model in build.models),
        "",
    ]
    for model in build.models:
        lines += _details(model)
    lines.append(f"Exit code {build.exit_code}, {build.seconds:.1f} s.")
    return "\n".join(lines) + "\n"


def text(value: object) -> str:
    """Any text as Markdown that shows it as it is, on one line."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+", " ", str(value))
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(plain, quote=False))


def _row(model: BuiltModel) -> str:
    cells = [f"**{text(model.name)}**", _result(model)]
    report = model.report
    if report is None:
        cells += [""] * 4
    else:
        after = report.after.bytes
        size = f"{size_text(report.before.bytes)} → {size_text(after)} ({after / max(1, report.before.bytes):.1%})"
        cells += [size if report.output else size_text(report.before.bytes), _speed(report), _quality(report)]
        cells.append("<br>".join(map(_budget, report.budget)))
    return "| " + " | ".join(cells) + " |"


def _result(model: BuiltModel) -> str:
    verdict = model.report.verdict if model.report is not None else "error"
    return MARKS[model.status] if model.status != "failed" else f"❌ {verdict}, exit code {model.exit_code}"


def _speed(report: Report) -> str:
    lines = []
    for bench in report.benchmarks:
        low, high = bench.speedup_interval
        lines.append(f"{bench.speedup:.2f} times ({low:.2f} to {high:.2f}), {bench.outcome}")
    return "<br>".join(lines)


def _quality(report: Report) -> str:
    words = []
    if report.accuracy is not None:
        a = report.accuracy
        words.append(f"{text(a.metric)} {a.before:.4f} → {a.after:.4f}")
    if report.fidelity is not None:
        worst = report.fidelity.worst_db
        words.append("identical" if report.fidelity.identical else "-" if worst is None else f"SQNR {worst:.1f} dB")
        if (least := report.fidelity.least_agreeing) is not None:
            words.append(f"{text(least.measure)} {least.value:.2%}")
    words += map(text, report.doubts)
    return "<br>".join(words)


def _budget(line: BudgetLine) -> str:
    return f"{'✅' if line.passed else '❌'} {text(limit_text(line))}: {text(value_text(line))}"


def _details(model: BuiltModel) -> Iterator[str]:
    """What a person has to know beside the row: errors, missed budgets, notes."""
    lines: list[str] = [f"warning: {text(line)}" for line in model.report.warnings] if model.report is not None else []
    if model.error is not None:
        lines += [text(part) for part in (model.error.what, model.error.where, model.error.do) if part]
    elif model.exit_code and model.report is not None:
        lines.append(text(model.report.reason))
        lines += _capped(text(note) for note in model.report.notes)
    lines += map(text, model.notes)
    if lines:
        yield f"### {text(model.name)}"
        yield ""
        yield from (f"- {line}" for line in lines)
        yield ""


def _capped(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return found if len(found) <= MOST_NOTES else [*found[:MOST_NOTES], f"and {len(found) - MOST_NOTES} more"]
