"""How do values that follow each other become a picture? Lines and points over two axes, as inline SVG.

For loss curves and Pareto fronts; pages put what `lines` and `points` return into a `html_base.section`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxcomp.report.html_base import text, wide_chart

WIDTH, HEIGHT = 960.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 76.0, 14.0, 12.0, 42.0
STYLES = ("s0", "s1", "s2", "s3")  # classes of the page's style; one a series, in order
LARGEST = 1e150  # beyond it differences of doubles may overflow
ROOM = 0.06
LONGEST_LABEL = 28
MOST_POINTS = 400  # drawn of one line; a page stays small and nobody sees more


@dataclass(frozen=True)
class Series:
    """One line or cloud of points. `points`: (x, y), finite, in the order in which they are joined.

    `about`: for each point what a reader sees who rests on it; empty for none. `labels`: words beside each separate
    point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    about: Sequence[str] = ()
    labels: Sequence[str] = ()


def lines(series: Sequence[Series], across: str, up: str, *, logarithmic: bool = False) -> str:
    """Joined points: `lines([Series("training", ...), Series("held out", ...)], "step", "loss", logarithmic=True)`.

    Args:
        series: up to four; values that are not finite (or beyond 1e150) are left out, and so are those of a logarithmic
            axis that are not positive. Of a long line `MOST_POINTS` points are drawn, each the mean of its neighbours.
        across, up: names of the axes.
        logarithmic: powers of ten upwards; a linear axis is taken where no value is positive.

    Returns:
        An SVG element with its legend; empty where nothing is left to draw.
    """
    return _chart(series, across, up, logarithmic, joined=True)


def points(
    series: Sequence[Series], across: str, up: str, *, front: Sequence[tuple[float, float]] = (), mark: str = ""
) -> str:
    """Separate points, and a front as a stepped line through some of them.

    Args:
        series: up to four clouds, such as `trials` and `chosen`.
        across, up: names of the axes.
        front: the points of a Pareto front.
        mark: name of the front in the legend.
    """
    found = _chart(series, across, up, False, joined=False, front=sorted(front))
    key = f'<li><svg width="22" height="12" aria-hidden="true">{_key_line("front")}</svg>{text(mark)}</li>'
    return found.replace("</ul>", f"{key}</ul>", 1) if front and mark else found


def _chart(
    series: Sequence[Series],
    across: str,
    up: str,
    logarithmic: bool,
    *,
    joined: bool,
    front: Sequence[tuple[float, float]] = (),
) -> str:
    every = [p for s in series for p in s.points if all(map(_drawable, p))]
    logarithmic = logarithmic and any(y > 0 for _, y in every)
    shown = [_cleaned(s, logarithmic) for s in series[: len(STYLES)]]
    every = [p for s in shown for p in s.points]
    if not every:
        return ""
    room = 0.0 if joined else ROOM  # separate points stand off the frame
    x_axis = _Axis(*_ends([x for x, _ in every], room), LEFT, WIDTH - RIGHT, False)
    y_axis = _Axis(*_ends([y for _, y in every], room), HEIGHT - BOTTOM, TOP, logarithmic)
    drawn = _grid(x_axis, y_axis, across, up)
    if front:
        drawn += f'<path class="front" d="{_stairs(front, x_axis.place, y_axis.place)}"/>'
    for style, one in zip(STYLES, shown, strict=False):
        drawn += _line(one, style, x_axis, y_axis) if joined else _dots(one, style, x_axis, y_axis)
    words = "; ".join(_words(one) for one in shown if one.points)
    label = text(f"{up} over {across}: {words}")
    picture = f'<svg role="img" class="wide" width="{WIDTH:g}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" aria-label="{label}">'
    return _legend(shown, joined) + wide_chart(f"{picture}{drawn}</svg>")


def _ends(values: Sequence[float], room: float) -> tuple[float, float]:
    """Lowest and highest, with some room around them as a share of the distance."""
    low, high = min(values), max(values)
    return low - room * (high - low), high + room * (high - low)


@dataclass(frozen=True)
class _Axis:
    """Values `low` to `high` on the pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def place(self, value: float) -> float:
        low, high = self._scale(self.low), self._scale(self.high)
        share = (self._scale(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Some round numbers; powers of ten, and twos and fives where there are few of them."""
        if not self.high > self.low:
            return [self.low]
        if self.logarithmic and self.high >= 3 * self.low:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 3 else (1,)
            values = [f * 10.0**p for p in list(powers)[:: max(1, len(powers) // 6)] for f in factors]
            return [value for value in values if self.low <= value <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST


def _cleaned(series: Series, logarithmic: bool) -> Series:
    """Without what cannot be drawn, and thinned to what can be seen."""
    about = series.about or [""] * len(series.points)
    pairs = [
        (point, words)
        for point, words in zip(series.points, about, strict=True)
        if all(map(_drawable, point)) and (not logarithmic or point[1] > 0)
    ]
    kept = [point for point, _ in pairs]
    if len(kept) <= MOST_POINTS:
        labels = series.labels if len(kept) == len(series.points) else ()
        return Series(series.name, kept, [words for _, words in pairs] if series.about else (), labels)
    size = math.ceil(len(kept) / MOST_POINTS)
    groups = [kept[i : i + size] for i in range(0, len(kept), size)]
    return Series(series.name, [_mean(group) for group in groups])


def _mean(group: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)


def _grid(x_axis: _Axis, y_axis: _Axis, across: str, up: str) -> str:
    drawn = ""
    for value in y_axis.ticks():
        y = y_axis.place(value)
        drawn += f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += f'<text class="dim" x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    for value in x_axis.ticks():
        x = x_axis.place(value)
        drawn += f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM:g}" y2="{HEIGHT - BOTTOM + 5:g}"/>'
        side = "end" if x > WIDTH - 40 else "middle"
        drawn += f'<text class="dim" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17:g}" text-anchor="{side}">{value:.6g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn += f'<text class="dim" x="{middle:g}" y="{HEIGHT - 6:g}" text-anchor="middle">{text(across)}</text>'
    turned = (TOP + HEIGHT - BOTTOM) / 2
    place = f'x="12" y="{turned:g}" text-anchor="middle" transform="rotate(-90 12 {turned:g})"'
    return drawn + f'<text class="dim" {place}>{text(up)}</text>'


def _line(series: Series, style: str, x_axis: _Axis, y_axis: _Axis) -> str:
    places = [f"{x_axis.place(x):.1f} {y_axis.place(y):.1f}" for x, y in series.points]
    if len(places) == 1:
        return _dots(series, style, x_axis, y_axis)
    return f'<path class="{style} line" d="M{"L".join(places)}"/>' if places else ""


def _dots(series: Series, style: str, x_axis: _Axis, y_axis: _Axis) -> str:
    about = series.about or [f"{series.name}: {x:.6g}, {y:.6g}" for x, y in series.points]
    labels = series.labels or [""] * len(series.points)
    drawn = ""
    for (x, y), words, label in zip(series.points, about, labels, strict=True):
        across, down = x_axis.place(x), y_axis.place(y)
        drawn += f'<circle class="{style} dot" cx="{across:.1f}" cy="{down:.1f}" r="4.5">'
        drawn += f"<title>{text(words)}</title></circle>"
        if label:
            side, shift = ("end", -9) if across > WIDTH * 0.75 else ("start", 9)
            short = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
            drawn += f'<text x="{across + shift:.1f}" y="{down - 7:.1f}" text-anchor="{side}">{text(short)}</text>'
    return drawn


def _stairs(
    front: Sequence[tuple[float, float]], x_place: Callable[[float], float], y_place: Callable[[float], float]
) -> str:
    parts = [f"M{x_place(front[0][0]):.1f} {y_place(front[0][1]):.1f}"]
    parts += [f"H{x_place(x):.1f}V{y_place(y):.1f}" for x, y in front[1:]]
    return "".join(parts)


def _legend(series: Sequence[Series], joined: bool) -> str:
    items = ""
    for style, one in zip(STYLES, series, strict=False):
        if one.points:
            dot = f'<circle class="{style} dot" cx="11" cy="6" r="4.5"/>'
            key = _key_line(f"{style} line") if joined and len(one.points) > 1 else dot
            items += f'<li><svg width="22" height="12" aria-hidden="true">{key}</svg>{text(one.name)}</li>'
    return f'<ul class="legend">{items}</ul>'


def _key_line(style: str) -> str:
    return f'<path class="{style}" d="M1 6H21"/>'


def _words(series: Series) -> str:
    first, last = series.points[0][1], series.points[-1][1]
    return f"{series.name} {first:.4g}" + (f" to {last:.4g}" if len(series.points) > 1 else "")
