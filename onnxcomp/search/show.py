"""What does a search show on a terminal? The front as a small picture, and its trials in lines."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.report.tables import change_text
from onnxcomp.search.rows import Judge, Row
from onnxcomp.search.run import Found, row_words

WIDTH, HEIGHT = 60, 14
SHOWN = 12  # lines of the front


def picture(rows: Sequence[Row], judge: Judge, *, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Loss upward-down against the objective: a dot a trial, o on the front, * the best; empty where there is none."""
    told = [row for row in rows if row.told and row.measured is not None]
    if not told:
        return []
    found = {row.number: (judge.score(m), judge.loss(m)) for row in told if (m := row.measured) is not None}
    scores, losses = [p[0] for p in found.values()], [p[1] for p in found.values()]
    most = _ceiling(losses, judge)
    left, right, low, high = min(scores), max(scores), min(losses), most
    if left == right and low == max(losses):
        return []  # one point: the lines below say it
    front, best = {row.number for row in judge.front(rows)}, judge.best(rows)
    canvas = [[" "] * width for _ in range(height)]
    marks = sorted(told, key=lambda row: (row.number in front, best is not None and row.number == best.number))
    for row in marks:
        score, loss = found[row.number]
        x = round((score - left) / ((right - left) or 1.0) * (width - 1))
        y = round((min(loss, high) - low) / ((high - low) or 1.0) * (height - 1))
        is_best = best is not None and row.number == best.number
        canvas[y][x] = "*" if is_best else "o" if row.number in front else "."
    top, bottom = _loss_text(low, judge, told), _loss_text(high, judge, told)
    margin = max(len(top), len(bottom))
    lines = []
    for y, cells in enumerate(canvas):
        label = top if y == 0 else bottom if y == height - 1 and bottom != top else ""
        lines.append(f"{label:>{margin}} |{''.join(cells)}".rstrip())
    unit = {"latency": "of the time", "size": "of the size", "macs": "of the MACs"}[judge.objective]
    ends = f"{left:.1%}{unit:^{max(1, width - 14)}}{right:.1%}"
    return [*lines, f"{'':>{margin}} +{'-' * width}", f"{'':>{margin}}  {ends}"]


def _ceiling(losses: Sequence[float], judge: Judge) -> float:
    """The greatest loss that is drawn in its place: a collapse would press all others together."""
    limit = judge.budget.max_drop
    return max(losses) if limit is None else min(max(losses), max(4 * limit, sorted(losses)[len(losses) // 2]))


def _loss_text(loss: float, judge: Judge, told: Sequence[Row]) -> str:
    if not any(row.measured is not None and row.measured.drop is not None for row in told):
        return f"{loss:.3g}"
    return change_text(-loss if judge.source.higher_is_better else loss)


def _numbers(rows: Sequence[Row]) -> str:
    """Why the numbers of trials go further than there are trials; empty where they do not."""
    last = max((row.number for row in rows), default=-1)
    more = last + 1 - len(rows)
    return f" (numbered 0 to {last}; {more} not told: what is cut off or comes up twice takes a number)" if more else ""


def lines(found: Found) -> list[str]:
    """All that a search says at its end."""
    rows, judge = found.rows, found.judge
    states = {"measured": "measured", "stopped": "stopped early", "failed": "failed"}
    counts = ", ".join(f"{sum(row.state == state for row in rows)} {words}" for state, words in states.items())
    text = [f"{len(rows)} trials: {counts}{_numbers(rows)}"]
    drawn = picture(rows, judge)
    text += ["", *drawn, "  * best   o front   . trial", ""] if drawn else [""]
    front = judge.front(rows)
    text += [f"  {row_words(row, judge)}" for row in front[:SHOWN]]
    if len(front) > SHOWN:
        text.append(f"  and {len(front) - SHOWN} more on the front")
    if found.best is not None:
        text += ["", f"best: {row_words(found.best, judge)}", f"  {found.best.spec}"]
    else:
        text += ["", "no trial keeps the budget"]
    text += [f"not tried: {name}: {why}" for name, why in sorted(found.left.items())]
    return [*text, *(f"note: {note}" for note in found.notes)]
