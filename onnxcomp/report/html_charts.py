"""How do figures become pictures? Inline SVG, drawn here: bars, areas and treemaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxcomp.drawn import WeightHistogram
from onnxcomp.report.html_base import kind, text, wide_chart
from onnxcomp.report.tables import size_text
from onnxcomp.results import LatencySpread, LayerRecord

WIDTH = 960.0
BEST_DB, WORST_DB = 60.0, 0.0  # ends of the scale of errors: beyond 60 dB nothing is seen, at 0 dB nothing is left
LEAST_AREA = 24.0  # of a treemap's rectangle, in square units; smaller ones are drawn as one
ELSE = "everything else"
LETTER = 6.3  # width of a letter at 11 units


@dataclass(frozen=True)
class Cell:
    """One part of a treemap."""

    name: str
    size: float
    style: str
    about: str


def error_share(sqnr_db: float) -> float:
    """How much of the scale's length an error takes: 0 at 60 dB and better, 1 at 0 dB and worse."""
    return min(1.0, max(0.0, (BEST_DB - sqnr_db) / (BEST_DB - WORST_DB)))


def error_overview(layers: Sequence[LayerRecord]) -> str:
    """One thin bar a layer, in graph order: the longer, the more that layer alone loses."""
    measured = [layer for layer in layers if layer.own_sqnr_db is not None]
    if not measured:
        return ""
    height, left, top = 170.0, 62.0, 8.0
    step = (WIDTH - left) / len(layers)
    bars = []
    for index, layer in enumerate(layers):
        if layer.own_sqnr_db is None:
            continue
        tall = max(1.0, error_share(layer.own_sqnr_db) * height)
        about = f"{layer.node}: {layer.own_sqnr_db:.1f} dB, {layer.precision[1]}"
        bars.append(
            f'<rect class="{kind(layer.precision[1])}" x="{left + index * step:.1f}" y="{top + height - tall:.1f}" '
            f'width="{max(0.8, min(step * 0.8, 28.0)):.1f}" height="{tall:.1f}"><title>{text(about)}</title></rect>'
        )
    lines = []
    for level in (0, 20, 40, 60):
        y = top + height - error_share(level) * height
        lines.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="dim" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{level} dB</text>'
        )
    worst = min(measured, key=lambda layer: layer.own_sqnr_db or 0.0)
    label = f"Own error of {len(measured)} layers in graph order; the worst is {worst.node}, {worst.own_sqnr_db:.1f} dB"
    return _svg(WIDTH, height + top + 6, label, "".join(lines) + "".join(bars))


def error_bar(sqnr_db: float | None, precision: str) -> str:
    """A small bar with its figure."""
    if sqnr_db is None:
        return '<span class="dim">-</span>'
    wide = max(1.0, error_share(sqnr_db) * 110)
    return (
        f'<svg width="110" height="10" aria-hidden="true"><rect class="{kind(precision)}" width="{wide:.1f}" '
        f'height="10" rx="2"/></svg>{sqnr_db:.1f} dB'
    )


def weights(found: WeightHistogram | None) -> str:
    """Weights before as an area, after as a line over it, and dashed lines where the range after ends."""
    if found is None:
        return '<span class="dim">-</span>'
    wide, tall = 128.0, 26.0
    top = max((*found.before, *(found.after or ()))) or 1.0
    about = f"weights {found.range[0][0]:.4g} to {found.range[0][1]:.4g}"
    drawn = f'<path class="before" d="{_steps(found.before, wide, tall, top)}"/>'
    if found.after is not None and found.range[1] is not None:
        drawn += f'<path class="after" d="{_steps(found.after, wide, tall, top)}"/>'
        about += f"; after {found.range[1][0]:.4g} to {found.range[1][1]:.4g}, {found.zeros[1] or 0.0:.1%} zero"
        span = (found.high - found.low) or 1.0
        for end in found.range[1]:
            x = (end - found.low) / span * wide
            drawn += f'<line class="after mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{tall:g}"/>'
    return _svg(wide, tall, about, drawn, fixed=True)


def latency(found: LatencySpread, before_ms: dict[str, float], after_ms: dict[str, float]) -> str:
    """Both models' calls over time; dashed lines are the medians."""
    height, left, bottom = 190.0, 10.0, 34.0
    wide = WIDTH - 2 * left
    shares = [[n / max(1, sum(counts) + slow) for n in counts] for counts, slow in _both(found)]
    top = max(max(part) for part in shares) or 1.0
    span = found.high_ms - found.low_ms
    drawn = ""
    for ms in _ticks(found.low_ms, found.high_ms):
        x = left + (ms - found.low_ms) / span * wide
        drawn += f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{height:g}"/>'
        side = "start" if x < 30 else "middle" if x < WIDTH - 30 else "end"
        drawn += f'<text class="dim" x="{x:.1f}" y="{height + 16:g}" text-anchor="{side}">{ms:g} ms</text>'
    for style, part, times in (("before", shares[0], before_ms), ("after", shares[1], after_ms)):
        path = _steps(part, wide, height - 20, top)
        drawn += f'<g transform="translate({left:g} 20)"><path class="{style}" d="{path}"/></g>'
        if (median := times.get("p50")) is not None and found.low_ms <= median <= found.high_ms:
            x = left + (median - found.low_ms) / span * wide
            side = "end" if x > WIDTH * 0.8 else "start"
            drawn += f'<line class="{style} mark" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{height:g}"/>'
            shift = -4 if side == "end" else 4
            y = 12 if style == "after" else 26
            drawn += f'<text x="{x + shift:.1f}" y="{y}" text-anchor="{side}">{style} {median:.3f} ms</text>'
    slow = sum(found.slower)
    label = f"Share of calls by their time, before and after, from {found.low_ms:.3f} to {found.high_ms:.3f} ms"
    note = f"; {slow} slower calls are not shown" if slow else ""
    return _svg(WIDTH, height + bottom - 10, label + note, drawn)


def treemap(cells: Sequence[Cell], width: float, height: float, label: str) -> str:
    """Rectangles whose areas are in proportion to sizes; parts too small to be seen are drawn as one."""
    total = sum(cell.size for cell in cells)
    if total <= 0:
        return ""
    area = width * height
    shown = sorted((c for c in cells if c.size / total * area >= LEAST_AREA), key=lambda c: -c.size)
    rest = [c for c in cells if 0 < c.size / total * area < LEAST_AREA]
    if rest:
        size = sum(c.size for c in rest)
        shown.append(Cell(f"{len(rest)} small", size, kind(ELSE), f"{len(rest)} small ones: {size_text(size)}"))
        shown.sort(key=lambda c: -c.size)
    places = squarify([cell.size for cell in shown], width, height)
    return _svg(width, height, label, "".join(_cell(c, *p) for c, p in zip(shown, places, strict=True)))


def squarify(sizes: Sequence[float], width: float, height: float) -> list[tuple[float, float, float, float]]:
    """Rectangles (x, y, width, height) that fill width x height, areas in proportion to sizes, as square as can be.

    Bruls, Huizing, van Wijk: "Squarified Treemaps", 2000. `sizes` are positive and fall.
    """
    places: list[tuple[float, float, float, float]] = []
    scale = width * height / sum(sizes)
    x = y = 0.0
    start = 0
    areas = [size * scale for size in sizes]
    while start < len(areas):
        across = min(width - x, height - y)
        end, best = start + 1, _worst(areas[start : start + 1], across)
        while end < len(areas) and (next_worst := _worst(areas[start : end + 1], across)) <= best:
            best, end = next_worst, end + 1
        row = areas[start:end]
        thick = sum(row) / across if across > 0 else 0.0
        lying = width - x >= height - y  # the row stands at the left edge, else it lies along the top
        offset = 0.0
        for item in row:
            long = item / thick if thick > 0 else 0.0
            places.append((x, y + offset, thick, long) if lying else (x + offset, y, long, thick))
            offset += long
        x, y = (x + thick, y) if lying else (x, y + thick)
        start = end
    return places


def legend(precisions: Sequence[str]) -> str:
    """Which colour is which precision."""
    items = "".join(
        '<li><svg width="12" height="12" aria-hidden="true">'
        f'<rect class="{kind(p)}" width="12" height="12" rx="2"/></svg>{text(p)}</li>'
        for p in dict.fromkeys(precisions)
    )
    return f'<ul class="legend">{items}</ul>'


def _cell(cell: Cell, x: float, y: float, width: float, height: float) -> str:
    drawn = (
        f'<rect class="{cell.style} edge" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
        f"<title>{text(cell.about)}</title></rect>"
    )
    ink = "dim" if cell.style == kind(ELSE) else "on"
    room = int((width - 8) / LETTER)
    if height >= 16 and (room >= 8 or room >= len(cell.name)):
        cut = cell.name[: room - 1] + "…" if cell.name == ELSE else "…" + cell.name[1 - room :]
        name = cell.name if len(cell.name) <= room else cut
        drawn += f'<text class="{ink}" x="{x + 4:.1f}" y="{y + 13:.1f}">{text(name)}</text>'
    if height >= 30 and room >= 7:
        drawn += f'<text class="{ink}" x="{x + 4:.1f}" y="{y + 26:.1f}">{size_text(cell.size)}</text>'
    return drawn


def _worst(areas: Sequence[float], across: float) -> float:
    """The largest aspect ratio of a row of areas laid across a length."""
    whole = sum(areas)
    if whole <= 0 or across <= 0:
        return math.inf
    return max(max(across**2 * a / whole**2, whole**2 / (across**2 * a)) if a > 0 else math.inf for a in areas)


def _steps(shares: Sequence[float], wide: float, tall: float, top: float) -> str:
    """A stepped area over equal bins, as a path."""
    step = wide / len(shares)
    parts = [f"M0 {tall:g}"]
    for index, share in enumerate(shares):
        parts.append(f"V{tall * (1 - share / top):.1f}H{(index + 1) * step:.1f}")
    return "".join(parts) + f"V{tall:g}Z"


def _both(found: LatencySpread) -> list[tuple[tuple[int, ...], int]]:
    return [(found.before, found.slower[0]), (found.after, found.slower[1])]


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers between two others."""
    if not low < high:
        return [low]
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _svg(width: float, height: float, label: str, drawn: str, *, fixed: bool = False) -> str:
    size = f'width="{width:g}" height="{height:g}"' if fixed else f'width="{width:g}"'
    size += ' class="wide"' if width == WIDTH else ""
    made = f'<svg role="img" {size} viewBox="0 0 {width:g} {height:g}" aria-label="{text(label)}">{drawn}</svg>'
    return wide_chart(made) if width == WIDTH else made
