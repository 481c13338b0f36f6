"""How does a comparison of models read: on a screen, as Markdown, and as a page of its own?

All of them take the JSON of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import plain
from onnxcomp.report import html_base as html
from onnxcomp.report.html_lines import Series, points
from onnxcomp.report.tables import change_text, count_text, size_text, table

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("model", "size", "share", "MACs", "p50 ms", "speed-up (95 %)", "accuracy", "change", "SQNR", "agreement")
RIGHT = (1, 2, 3, 4, 6, 7, 8, 9)
BAR = 20  # characters of the longest bar
Found = Mapping[str, Any]


def cells(found: Found) -> list[tuple[str, ...]]:
    """One row of text for each model, under `COLUMNS`."""
    first = found["models"][0]
    return [_row(one, first) for one in found["models"]]


def lines(found: Found) -> list[str]:
    """Sentences below the table: what was run on what, and what to know of it."""
    timed = found["timed"]
    said = []
    if found["samples"]:
        metric = f"; accuracy is {found['metric']}" if found["metric"] else ""
        said.append(f"answers of {found['samples']:,} samples of {found['data']}{metric}")
    if timed is not None:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in timed["shapes"].items())
        provider = timed["provider"].removesuffix("ExecutionProvider")
        said.append(f"timed in turns in one process on {provider}, {timed['threads']} thread, {shapes}")
    return [*said, *(f"note: {line}" for line in (*found["doubts"], *found["notes"]))]


def show(found: Found, console: Console) -> None:
    """Print a comparison: the table, bars of size and time, and what to know."""
    from rich.text import Text

    rows = _without_empty(COLUMNS, cells(found))
    titles = rows[0]
    right = [index for index, title in enumerate(titles) if COLUMNS.index(title) in RIGHT]
    console.print(table(titles, rows[1:], right=right, prose=(0,)))
    console.print()
    console.print(table(("", "size", "time"), _bars(found["models"]), prose=(0,)))
    for line in lines(found):
        console.print(Text(line, style="dim"))


def markdown(found: Found) -> str:
    """The table and what stands below it, for a README or a pull request."""
    rows = _without_empty(COLUMNS, cells(found))
    head = ["| " + " | ".join(rows[0]) + " |", "|---" + "|---:" * (len(rows[0]) - 1) + "|"]
    body = ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows[1:]]
    return "\n".join([*head, *body, "", *(f"- {_markdown_cell(line)}" for line in lines(found))]) + "\n"


def page(found: Found) -> str:
    """One offline HTML page."""
    rows = _without_empty(COLUMNS, cells(found))
    written = [[html.text(cell) for cell in row] for row in rows[1:]]
    right = tuple(index for index, title in enumerate(rows[0]) if COLUMNS.index(title) in RIGHT)
    pictures = "".join(_pictures(found["models"], found["metric"]))
    said = "".join(f"<p>{html.text(line)}</p>" for line in lines(found))
    body = (
        f"<header><h1>{len(found['models'])} models compared</h1></header><main>"
        + html.section("table", "Side by side", html.table(list(rows[0]), written, right=right, narrow="cards"))
        + html.section("pictures", "What each costs, and what it keeps", pictures)
        + html.section("notes", "What was measured", said)
        + "</main>"
    )
    return html.page(f"{len(found['models'])} models compared", body)


def _row(one: Found, first: Found) -> tuple[str, ...]:
    alone = one is first
    times = one["latency_ms"]
    interval = one["speedup_interval"]
    ratio = "" if times is None else "1.00"
    if one["speedup"] is not None:
        ratio = f"{one['speedup']:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
    close = "" if one["identical"] is None else "identical" if one["identical"] else _decibels(one["sqnr_db"])
    return (
        str(one["label"]),
        size_text(one["bytes"]),
        f"{one['bytes'] / max(1, first['bytes']):.1%}",
        count_text(one["macs"]),
        "" if times is None else f"{times['p50']:.3f}",
        ratio,
        "" if one["accuracy"] is None else f"{one['accuracy']:.4f}",
        "" if one["accuracy"] is None or alone else change_text(one["accuracy"] - first["accuracy"]),
        close,
        "" if one["agreement"] is None else f"{one['agreement']:.2%}",
    )


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"


def _without_empty(titles: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Titles and rows without the columns that no row fills."""
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    return [tuple(line[index] for index in kept) for line in (tuple(titles), *rows)]


def _bars(models: Sequence[Found]) -> list[tuple[str, str, str]]:
    """A bar for each model's size and time, the longest of each `BAR` characters long."""
    sizes = [float(one["bytes"]) for one in models]
    times = [one["latency_ms"]["p50"] if one["latency_ms"] else 0.0 for one in models]
    return [
        (one["label"], _bar(size, max(sizes)), _bar(time, max(times)))
        for one, size, time in zip(models, sizes, times, strict=True)
    ]


def _bar(value: float, longest: float) -> str:
    eighths = round(8 * BAR * value / longest) if longest else 0
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip()


def _pictures(models: Sequence[Found], metric: str | None) -> list[str]:
    """Quality against size, and against time, where they were measured."""
    quality = _quality(models, metric)
    if quality is None:
        return []
    title, values = quality
    drawn = []
    sizes = [one["bytes"] / 1e6 for one in models]
    times = [one["latency_ms"]["p50"] if one["latency_ms"] else None for one in models]
    for name, unit, along in (("size", "MB", sizes), ("latency p50", "ms", times)):
        found = [
            ((x, y), f"{one['label']}: {x:.4g} {unit}, {title} {y:.4g}", str(one["label"]))
            for one, x, y in zip(models, along, values, strict=True)
            if x is not None and y is not None
        ]
        if len(found) > 1:
            places, about, labels = zip(*found, strict=True)
            drawn.append(points([Series("models", places, about, labels)], f"{name}, {unit}", title))
    return drawn


def _quality(models: Sequence[Found], metric: str | None) -> tuple[str, list[float | None]] | None:
    if metric is not None:
        return metric, [one["accuracy"] for one in models]
    if any(one["sqnr_db"] is not None for one in models):
        return "SQNR to the first, dB", [one["sqnr_db"] for one in models]
    return None


def _markdown_cell(text: str) -> str:
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
