"""What does a search look like as a page? The front for each objective; a click on a point shows its spec.

No script: a point is a link to its trial, and the trial that is linked to is shown beside the chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxcomp.report.html_base import page, section, table, text, wide_chart
from onnxcomp.report.record import write_text
from onnxcomp.report.tables import size_text
from onnxcomp.search.rows import Judge, Objective, Row
from onnxcomp.search.run import Found, row_words

WIDTH, HEIGHT, EDGE = 900, 320, 46
TITLES: dict[Objective, str] = {"size": "Size", "latency": "Latency", "macs": "Multiply-accumulates"}
STYLE = """<style>
.spec { display: none; background: var(--raised); border: 1px solid var(--line); padding: .7rem; border-radius: .5rem }
.spec:target { display: block } a .dot:hover, a:focus .dot { stroke: var(--text); stroke-width: 3 }
.d0 { fill: var(--before) } .d1 { fill: var(--after) } .d2 { fill: var(--good) }
</style>"""


def write_page(found: Found, path: Path) -> None:
    """Write the page, whole or not at all; `-` is standard output.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(document(found), path)


def document(found: Found) -> str:
    """The whole page."""
    judge, rows = found.judge, found.rows
    order: list[Objective] = [judge.objective, *(o for o in TITLES if o != judge.objective)]
    best = found.best
    head = f"<h1>Search: {text(found.job.model.name)}</h1>\n"
    head += f"<p>{len(rows)} trials. " + (
        f"Best: {text(row_words(best, judge))}.</p><p><code>{text(best.spec)}</code></p>"
        if best is not None
        else "No trial keeps the budget.</p>"
    )
    charts = "".join(
        section(f"by-{objective}", TITLES[objective], chart(rows, judge, objective), _HINT if not index else "")
        for index, objective in enumerate(order)
    )
    told = "".join(_card(row, judge) for row in rows if row.told)
    body = (
        STYLE
        + head
        + charts
        + f'<section id="trial">{told}</section>'
        + section("trials", "Trials", _table(rows, judge))
    )
    left = "".join(f"<li>{text(name)}: {text(why)}</li>" for name, why in sorted(found.left.items()))
    notes = "".join(f"<li>{text(note)}</li>" for note in found.notes)
    body += section("left", "Not tried", f"<ul>{left}</ul>" if left else "")
    return page(
        f"Search: {found.job.model.name}", body + section("notes", "Notes", f"<ul>{notes}</ul>" if notes else "")
    )


_HINT = "Each point is a trial: further left is better, higher is closer to the original. A click shows its spec."


def chart(rows: Sequence[Row], judge: Judge, objective: Objective) -> str:
    """Loss against one objective; nothing where it was not measured."""
    one = Judge(objective, judge.budget, judge.source)
    told = [(row, row.measured) for row in rows if row.told and row.measured is not None]
    if objective == "latency":
        told = [(row, found) for row, found in told if found.latency_ratio is not None]
    if not told:
        return ""
    points = {row.number: (one.score(found), one.loss(found)) for row, found in told}
    front = one.front([row for row, _ in told])
    on, best = {row.number for row in front}, judge.best(rows)
    right, worst = max(p[0] for p in points.values()), max(p[1] for p in points.values())
    least = min(0.0, *(p[1] for p in points.values())) if len(points) > 1 else min(0.0, next(iter(points.values()))[1])
    limit = judge.budget.max_drop
    if limit is not None:
        worst = max(limit * 1.2, min(worst, limit * 6))

    def place(number: int) -> tuple[float, float]:
        score, loss = points[number]
        x = EDGE + score / (right or 1.0) * (WIDTH - 2 * EDGE)
        return x, 12 + (min(loss, worst) - least) / ((worst - least) or 1.0) * (HEIGHT - EDGE - 12)

    drawn = [f'<rect class="frame" x="{EDGE}" y="12" width="{WIDTH - 2 * EDGE}" height="{HEIGHT - EDGE - 12}"/>']
    if limit is not None:
        y = 12 + (limit - least) / ((worst - least) or 1.0) * (HEIGHT - EDGE - 12)
        drawn.append(f'<line class="grid" x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(
            f'<text class="dim" x="{WIDTH - EDGE - 6}" y="{y - 6:.1f}" text-anchor="end">{_limit(limit)}</text>'
        )
    if all(found.drop is not None for _, found in told):
        for y, loss in ((34, least), (HEIGHT - EDGE - 6, worst)):
            drawn.append(f'<text class="dim" x="{EDGE + 6}" y="{y}">{text(judge.metric_words(loss))}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(row.number) for row in front))
    drawn.append(f'<polyline class="front" points="{path}"/>')
    for row, _ in sorted(told, key=lambda pair: pair[0].number in on):
        x, y = place(row.number)
        style = 2 if best is not None and row.number == best.number else int(row.number in on)
        drawn.append(
            f'<a href="#trial-{row.number}"><circle class="dot d{style}" cx="{x:.1f}" cy="{y:.1f}" r="{5 + style}">'
            f"<title>{text(row_words(row, one))}</title></circle></a>"
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = EDGE + share * (WIDTH - 2 * EDGE)
        drawn.append(
            f'<text class="dim" x="{x:.1f}" y="{HEIGHT - EDGE + 22}" text-anchor="middle">{share * right:.0%}</text>'
        )
    label = f"{len(told)} trials, loss against {objective}"
    svg = f'<svg class="wide fit" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'
    return wide_chart(svg)


def _card(row: Row, judge: Judge) -> str:
    told = f"<b>{text(row_words(row, judge))}</b><br><code>{text(row.spec)}</code>"
    return f'<div class="spec" id="trial-{row.number}">{told}</div>'


def _table(rows: Sequence[Row], judge: Judge) -> str:
    columns = ["trial", "state", "size", "MACs", "latency, ms", "metric", "SQNR, dB", "spec"]
    on = {row.number for row in judge.front(rows)}
    cells = []
    for row in rows:
        found = row.measured
        known = found is not None and found.bytes > 0
        latency = judge.latency_ms(found) if found is not None else None
        cells.append(
            [
                f'<a href="#trial-{row.number}">{row.number}</a>' if row.told else str(row.number),
                text(("on the front" if row.number in on else "sound") if row.sound else row.why or row.state),
                size_text(found.bytes) if found is not None and known else "",
                f"{found.macs:,}" if found is not None and known else "",
                "" if latency is None else f"{latency:.3f}",
                "" if found is None or found.accuracy is None else f"{found.accuracy:.4f}",
                "" if found is None or found.sqnr_db is None else f"{found.sqnr_db:.1f}",
                f"<code>{text(row.spec)}</code>",
            ]
        )
    return table(columns, cells, right=(2, 3, 4, 5, 6), narrow="cards")


def _limit(limit: float) -> str:
    """What the line of a chart stands for."""
    return f"budget: max_drop {limit:g}"
