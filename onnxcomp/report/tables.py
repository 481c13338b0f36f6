"""Tables and figures in the form that every screen uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from onnxcomp.errors import one_line
from onnxcomp.results import Accuracy, Benchmark, BudgetLine, Fidelity, OutputFidelity, Report, TeacherRecord

if TYPE_CHECKING:
    from rich.table import Table


MOST_SHAPES = 3  # in a line


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), prose: Sequence[int] = ()
) -> Table:
    """A plain table; cells are shown as they are, whatever brackets they hold.

    Args:
        columns: titles; a table whose titles are all empty has no header.
        right: indices of right-aligned columns.
        prose: indices of columns that wrap where the terminal is narrow, so that the others keep their width; the
            widest left-aligned one where none is named.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [tuple(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    texts = [index for index in range(len(columns)) if index not in right]
    wrapped = set(prose or sorted(texts, key=lambda index: -widths[index])[:1])
    made = Table(box=None, padding=(0, 2), collapse_padding=True, header_style="dim", show_header=any(columns))
    for index, title in enumerate(columns):
        justify: Literal["left", "right"] = "right" if index in right else "left"
        whole = index not in wrapped
        made.add_column(
            title, justify=justify, no_wrap=whole, min_width=widths[index] if whole else None, overflow="fold"
        )
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def size_text(count: float) -> str:
    """Bytes in the unit a person would choose, powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{_short(count)} {unit}"
        count /= 1000
    return f"{_short(count)} GB"


def count_text(count: float) -> str:
    """A count with k, M or G."""
    for unit in ("", " k", " M"):
        if count < 1000:
            return f"{_short(count)}{unit}"
        count /= 1000
    return f"{_short(count)} G"


def shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """The shapes that a count of operations holds for: `at input_ids [1, 64], mask [1, 64]`; the first few of many."""
    told = [f"{name} {list(shape)}" for name, shape in shapes.items()]
    more = [f"{len(told) - MOST_SHAPES} more"] if len(told) > MOST_SHAPES else []
    return f"at {', '.join([*told[:MOST_SHAPES], *more])}" if told else ""


def counted_at(report: Report) -> str:
    """The shapes at which a report counts operations."""
    return shapes_text(report.request.get("timed_shapes", {}))


def time_text(seconds: float) -> str:
    """How long something takes: `45 s`, `2 min 10 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    (many, unit), (few, smaller) = ((whole // 60, "min"), (whole % 60, "s"))
    if many >= 60:
        (many, unit), (few, smaller) = (many // 60, "h"), (many % 60, "min")
    return f"{many} {unit} {few} {smaller}" if few else f"{many} {unit}"


def change_text(change: float) -> str:
    """What a metric became, after minus before: `-0.0050`, `±0`."""
    return f"{change:+.4f}" if round(change, 4) else "±0"


def metric_text(name: str, drop: float, *, higher_is_better: bool = True) -> str:
    """What became of a metric that is so much worse: `top1 -0.0050`."""
    return f"{name} {change_text(-drop if higher_is_better else drop)}"


def closeness_text(output: OutputFidelity) -> str:
    """How close an output is, in a word: `identical`, `38.2 dB`, `97.1% equal`."""
    if output.identical:
        return "identical"
    if not output.comparable:
        return "other rows"
    if output.sqnr_db is None:
        return "-" if output.equal_share is None else f"{output.equal_share:.2%} equal"
    return f"{output.sqnr_db:.1f} dB"


def total_text(output: OutputFidelity) -> str:
    """The figure over all elements, where a part of them is worse."""
    total = output.total_sqnr_db
    return f" (all elements {total:.1f} dB)" if total is not None and total != output.sqnr_db else ""


def limit_text(line: BudgetLine) -> str:
    """A budget in words, as it was asked for: `max_size 1.2 MB`, `max_size 20% (219 kB)`."""
    limit = size_text(line.limit) if line.name == "max_size" else f"{line.limit:g}"
    return f"{line.name} {limit if line.share is None else f'{100 * line.share:g}% ({limit})'}"


def value_text(line: BudgetLine) -> str:
    """What was measured against a budget."""
    if line.value is None:
        return "not measured"
    return size_text(line.value) if line.name == "max_size" else f"{line.value:.4g}"


def missed(report: Report) -> list[str]:
    """A line for each budget that was missed: what was asked for, and what came; else why a run failed."""
    lines = [f"missed {limit_text(line)}: {value_text(line)}" for line in report.budget if not line.passed]
    return lines or ([report.reason] if report.exit_code else [])


def pair_rows(
    sizes: tuple[int, int], accuracy: Accuracy | None, benchmark: Benchmark | None
) -> list[tuple[str, str, str, str]]:
    """Rows of a table: what, before, after, and more about it."""
    before, after = sizes
    rows = [("size", size_text(before), size_text(after), f"{after / max(1, before):.1%}")]
    if accuracy is not None:
        a = accuracy
        rows.append((a.metric, f"{a.before:.4f}", f"{a.after:.4f}", f"{change_text(a.change)} on {a.samples} samples"))
    if benchmark is not None:
        b, (low, high) = benchmark, benchmark.speedup_interval
        times = (f"{b.before_ms['p50']:.3f} ms", f"{b.after_ms['p50']:.3f} ms")
        rows.append(("latency p50", *times, f"{b.speedup:.2f} ({low:.2f} to {high:.2f}), {b.outcome}"))
    return rows


def nearness(teacher: TeacherRecord) -> list[tuple[str, str, str, str]]:
    """Rows of a table: how near the outputs were to the teacher's, before and after.

    None where the model as it was is the teacher: its own fidelity says it all.
    """

    def sqnr(found: Fidelity) -> str:
        worst = found.worst_sqnr_db
        return "identical" if found.identical else "-" if worst is None else f"{worst:.1f} dB"

    old, new = teacher.fidelity_before, teacher.fidelity
    if old is None or new is None:
        return []
    words = "farther than before" if teacher.farther else "the worst output"
    rows = [("SQNR to the teacher", sqnr(old), sqnr(new), words)]
    if old.least_agreement is not None and new.least_agreement is not None:
        rows.append(("same top-1 as the teacher", f"{old.least_agreement:.2%}", f"{new.least_agreement:.2%}", ""))
    return rows


def taught_text(report: Report) -> str:
    """What the teacher's metric is, to be said behind the model's own; empty where none was measured."""
    accuracy = report.teacher.accuracy if report.teacher is not None else None
    return "" if accuracy is None else f"; the teacher's {accuracy.metric} is {accuracy.before:.4f}"


def _short(value: float) -> str:
    """Three significant digits, and no fewer than stand before the point."""
    if value == int(value) or value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
