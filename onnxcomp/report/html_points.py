"""How do a few named points become a picture? Two axes, a mark for each, and its name beside it; inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxcomp.report.html_base import text, wide_chart
from onnxcomp.report.html_charts import LETTER, WIDTH, ticks

HEIGHT, LEFT, TOP, BOTTOM = 330.0, 78.0, 14.0, 44.0


@dataclass(frozen=True)
class Point:
    """One mark: its name, where it lies, and what a reader who points at it is told."""

    name: str
    x: float
    y: float
    about: str
    first: bool = False


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Points over two axes; names stand beside their marks, on the side where there is room."""
    across = _span([point.x for point in points])
    up = _span([point.y for point in points])

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (point.x - across[0]) / (across[1] - across[0]) * (WIDTH - LEFT - 10)
        return x, TOP + (up[1] - point.y) / (up[1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for value in ticks(*across):
        x, _ = place(Point("", value, up[0], ""))
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM:g}"/>')
        drawn.append(
            f'<text class="dim" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16:g}" text-anchor="middle">{value:g}</text>'
        )
    for value in ticks(*up):
        _, y = place(Point("", across[0], value, ""))
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="dim" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    drawn.append(
        f'<text class="dim" x="{(LEFT + WIDTH) / 2:g}" y="{HEIGHT - 8:g}" text-anchor="middle">{text(x_title)}</text>'
    )
    for point in points:
        x, y = place(point)
        style = "before" if point.first else "after"
        right = x + 10 + LETTER * len(point.name) < WIDTH
        drawn.append(
            f'<circle class="{style} dot" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{text(point.about)}</title></circle>'
            f'<text x="{x + (9 if right else -9):.1f}" y="{y + 4:.1f}" text-anchor="{"start" if right else "end"}">'
            f"{text(point.name)}</text>"
        )
    label = f"{y_title} over {x_title}: " + "; ".join(point.about for point in points)
    head = f"<h3>{text(y_title)} over {text(x_title)}</h3>"
    return head + wide_chart(
        f'<svg role="img" width="{WIDTH:g}" class="wide" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        f'aria-label="{text(label)}">{"".join(drawn)}</svg>'
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A little more than from the least to the greatest; never empty."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
