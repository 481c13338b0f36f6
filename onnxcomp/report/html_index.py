"""A whole build as a page: one row a model, with links to the models' own pages, and what failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from onnxcomp.report.html_base import page, section, table, text
from onnxcomp.report.html_lines import Series, points
from onnxcomp.report.tables import limit_text, size_text, value_text
from onnxcomp.results import BuildReport, BuiltModel, Report


def document(build: BuildReport, pages: Mapping[str, str]) -> str:
    """The page.

    Args:
        pages: file names of the models' own pages, beside this one, by name of the model.
    """
    good = sum(not model.exit_code for model in build.models)
    state = "failed" if build.exit_code else "accepted"
    columns = ["model", "result", "budgets", "size", "speed", "quality", "time"]
    rows = [_row(model, pages.get(model.name)) for model in build.models]
    body = (
        f'<header><h1>onnxcomp build <span class="badge {state}">{good} of {len(build.models)} accepted</span></h1>'
        f'<p class="dim">{text(build.config)}, exit code {build.exit_code}, {build.seconds:.1f} s</p></header><main>'
        + section("models", "Models", table(columns, rows, right=(6,), narrow="cards"))
        + section("fronts", "Variants of one model", _fronts(build), FRONT_NOTE)
        + section("details", "What to know", "".join(map(_details, build.models)))
        + "</main>"
    )
    return page(f"onnxcomp build: {good} of {len(build.models)} accepted", body)


FRONT_NOTE = "The dashed line joins the variants that no other one beats in both size and quality."


def front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (size, quality) that no other point beats: none is smaller and at least as good."""
    kept: list[tuple[float, float]] = []
    for size, quality in sorted(set(places), key=lambda place: (place[0], -place[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((size, quality))
    return kept


def _fronts(build: BuildReport) -> str:
    """For each source that several models come from: size against quality."""
    groups: dict[str, list[BuiltModel]] = defaultdict(list)
    for model in build.models:
        if model.report is not None and model.report.output is not None:
            groups[model.report.source.sha256].append(model)
    return "".join(_front(models) for models in groups.values() if len(models) > 1)


def _front(models: Sequence[BuiltModel]) -> str:
    reports = [model.report for model in models if model.report is not None]
    scores, name = _qualities(reports)
    found = [
        (
            (report.after.bytes / 1e6, score),
            f"{model.name}: {size_text(report.after.bytes)}, {name} {score:.4g}",
            model.name,
        )
        for model, report, score in zip(models, reports, scores, strict=True)
        if score is not None
    ]
    if len(found) < 2:
        return ""
    places, about, labels = zip(*found, strict=True)
    series = [Series("variants", places, about, labels)]
    first = reports[0]
    if first.accuracy is not None and name == first.accuracy.metric:
        series.append(Series("original", [(first.before.bytes / 1e6, first.accuracy.before)]))
    drawn = points(series, "size, MB", name, front=front(places), mark="not beaten in both")
    return f"<h3>{text(first.source.path)}</h3>{drawn}"


def _qualities(reports: Sequence[Report]) -> tuple[list[float | None], str]:
    """A number for each report that grows with quality, and its name: the metric where all have one, else the SQNR."""
    metrics = {report.accuracy.metric for report in reports if report.accuracy is not None}
    if len(metrics) == 1 and all(report.accuracy is not None for report in reports):
        name = metrics.pop()
        falls = any(
            r.accuracy is not None and r.accuracy.drop * (r.accuracy.after - r.accuracy.before) > 0 for r in reports
        )
        if not falls:  # a metric that is better when lower has no place on this chart
            return [r.accuracy.after if r.accuracy is not None else None for r in reports], name
    return [r.fidelity.worst_db if r.fidelity is not None else None for r in reports], "SQNR of the worst output, dB"


def _row(model: BuiltModel, link: str | None) -> list[str]:
    name = f'<a href="{text(quote(link))}">{text(model.name)}</a>' if link else text(model.name)
    style = "failed" if model.exit_code else "accepted"
    word = model.report.verdict if model.report is not None else "error"
    result = f'<span class="badge {style}">{text(word)}</span><br><span class="dim">{model.status}</span>'
    cells = _figures(model.report) if model.report is not None else ["", "", "", ""]
    return [name, result, *cells, f"{model.seconds:.1f} s" if model.seconds else ""]


def _figures(report: Report) -> list[str]:
    size = size_text(report.before.bytes)
    if report.output is not None:
        size += f" → {size_text(report.after.bytes)}<br>{report.after.bytes / max(1, report.before.bytes):.1%}"
    speeds = [f"{b.speedup:.2f}, {b.outcome}" for b in report.benchmarks]
    quality = []
    if report.accuracy is not None:
        quality.append(f"{text(report.accuracy.metric)} {report.accuracy.before:.4f} → {report.accuracy.after:.4f}")
    if report.fidelity is not None:
        worst = report.fidelity.worst_db
        quality.append("identical" if report.fidelity.identical else "-" if worst is None else f"SQNR {worst:.1f} dB")
    budgets = [
        f'<span class="badge {"held" if line.passed else "missed"}">{text(limit_text(line))}</span> '
        f"{text(value_text(line))}"
        for line in report.budget
    ]
    return ["<br>".join(budgets), size, "<br>".join(speeds), "<br>".join(quality)]


def _details(model: BuiltModel) -> str:
    lines = [f"built because {why}" for why in model.why]
    if model.error is not None:
        lines += [part for part in (model.error.what, model.error.where, model.error.do) if part]
    elif model.report is not None and model.report.reason:
        lines.append(model.report.reason)
    lines += model.notes
    if not lines:
        return ""
    return f"<h3>{text(model.name)}</h3><ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
