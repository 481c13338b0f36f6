"""The one screen a person reads after a run: what was gained, what it cost, what was left alone, what was written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnxcomp.report.tables import (
    change_text,
    closeness_text,
    count_text,
    counted_at,
    limit_text,
    nearness,
    size_text,
    table,
    taught_text,
    total_text,
    value_text,
)
from onnxcomp.results import Benchmark, Fidelity, ModelStats, PassRecord, Report

if TYPE_CHECKING:
    from rich.console import Console

MOST_SKIPS = 6
MOST_LAYERS = 5
WHOLE = 0.99  # an agreement above it is not worth words in the first line
MOST_DOUBTS = 2  # in the first line; the others stand among the notes


def show(report: Report, console: Console, *, verbose: bool = False, files: list[str] | None = None) -> None:
    """Print a report.

    Args:
        verbose: every pass, skip and layer instead of the most important ones.
        files: further files that were written.
    """
    from rich.text import Text

    console.print()
    for line in report.warnings:
        console.print(Text.assemble(("warning  ", "bold yellow"), line), soft_wrap=not console.is_terminal)
    console.print(_headline(report), soft_wrap=not console.is_terminal)
    console.print()
    console.print(table(("", "before", "after", ""), figures(report), right=(1, 2), prose=(3,)))
    _passes(report, console, verbose)
    _skips(report, console, verbose)
    _layers(report, console, verbose)
    for title, lines in (("guessed", report.guesses), ("notes", report.doubts[MOST_DOUBTS:] + report.notes)):
        if lines:
            console.print(Text(f"\n{title}", style="dim"))
            for line in lines:
                _line(console, line)
    _budget(report, console)
    console.print()
    for name in [*([report.output.path] if report.output else []), *(files or [])]:
        console.print(Text.assemble(("wrote  ", "dim"), name))
    console.print(
        Text(f"took   {report.seconds:.1f} s, peak memory {size_text(report.peak_memory_bytes)}", style="dim")
    )


def _headline(report: Report) -> str:
    style = {"accepted": "bold green", "over-budget": "bold red", "unchanged": "bold yellow"}[report.verdict]
    return f"[{style}]{report.verdict}[/]  " + ", ".join(_escaped(w) for w in gist(report))


def gist(report: Report) -> list[str]:
    """What the first line says behind the verdict: size, speed, accuracy, why, and what it rests on."""
    words = []
    if report.verdict != "unchanged":
        words.append(f"{report.after.bytes / max(1, report.before.bytes):.1%} of the size")
        words += _pruned_words(report)
        words += [_speed_words(b) for b in report.benchmarks[:1]]
    if report.accuracy is not None and report.verdict != "unchanged":
        words.append(f"{report.accuracy.metric} {change_text(report.accuracy.change)}")
    words += _lost_words(report)
    if report.reason:
        words.append(report.reason)
    return words + report.doubts[:MOST_DOUBTS]


def _lost_words(report: Report) -> list[str]:
    """A loss of more than a point of the task's own measure, which no table may be needed to see.

    Where boxes are drawn from lower scores on, as many applications do, the loss there counts as well.
    """
    found = report.fidelity.least_agreeing if report.fidelity is not None else None
    if found is None or found.value is None or report.verdict == "unchanged":
        return []
    words, lost = f"{found.measure}: {found.value:.2%}", [pair for pair in found.also if pair[1] <= WHOLE]
    told = [] if words in report.reason or (found.value > WHOLE and not lost) else [words]
    return told + [f"{where}: {value:.2%}" for where, value in lost]


def _pruned_words(report: Report) -> list[str]:
    """Zeros do not make a file smaller, and are worth saying where a pass made them on purpose.

    Small weights that came to stand on a level of 0 when they were rounded are no news.
    """
    if not any("zero_share" in record.metrics for record in report.passes):
        return []
    before, after = _zero_share(report.before), _zero_share(report.after)
    return [f"{after:.1%} of the parameters zero"] if after >= before + 0.05 else []


def _zero_share(stats: ModelStats) -> float:
    return 1 - stats.nonzero_parameters / stats.parameters if stats.parameters else 0.0


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _speed_words(bench: Benchmark) -> str:
    if bench.outcome == "no change":
        return "speed unchanged within the noise"
    return f"{bench.speedup:.2f} times the speed"


def figures(report: Report) -> list[tuple[str, str, str, str]]:
    """Rows of the table of a run: what, before, after, and more about it."""
    before, after = report.before, report.after
    rows = [
        *(nearness(report.teacher) if report.teacher is not None else ()),  # which a training is about
        ("size", size_text(before.bytes), size_text(after.bytes), f"{after.bytes / max(1, before.bytes):.1%}"),
        ("parameters", count_text(before.parameters), count_text(after.parameters), _zeros(report)),
        ("MACs, one sample", count_text(before.macs), count_text(after.macs), counted_at(report)),
        ("nodes", str(before.nodes), str(after.nodes), ""),
    ]
    for bench in report.benchmarks:
        low, high = bench.speedup_interval
        setting = f"latency, batch {bench.batch}, {bench.threads} thread{'s' * (bench.threads != 1)}"
        time = "processor time" if bench.compared == "processor" else "time"
        words = f"{bench.speedup:.2f}x by {time} (95 %: {low:.2f} to {high:.2f})"
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in bench.shapes.items())
        for title, key, extra in ((setting, "p50", words), ("  its 90th percentile", "p90", shapes)):
            rows.append((title, f"{bench.before_ms[key]:.3f} ms", f"{bench.after_ms[key]:.3f} ms", extra))
    if report.accuracy is not None:
        accuracy = report.accuracy
        rows.append(
            (
                accuracy.metric,
                f"{accuracy.before:.4f}",
                f"{accuracy.after:.4f}",
                f"{change_text(accuracy.change)} on {accuracy.samples:,} {_seen(report)}samples{taught_text(report)}",
            )
        )
    if report.fidelity is not None:
        rows += _fidelity_rows(report.fidelity)
    return rows


def _seen(report: Report) -> str:
    """Whether the samples that judged are others than those that calibrated: a word before `samples`, or none."""
    return "" if report.calibration is not None and report.calibration.repeated else "unseen "


def _zeros(report: Report) -> str:
    share = _zero_share(report.after)
    return f"{share:.1%} are zero" if share else ""


def _fidelity_rows(fidelity: Fidelity) -> list[tuple[str, str, str, str]]:
    rows = []
    made_up = " made-up" if fidelity.source == "synthetic" else ""
    for name, output in fidelity.outputs.items():
        extra = f"output {name}, {fidelity.samples:,}{made_up} samples"
        if output.worst_part is not None:
            extra += f"; its worst part, {output.worst_part}" + total_text(output)
        if output.top1_agreement is not None:
            extra += f"; same top-1 on {output.top1_agreement:.2%}"
        rows.append(("SQNR", "", closeness_text(output), extra))
    for agreement in fidelity.agreements:
        single = fidelity.outputs.get(agreement.outputs[0]) if len(agreement.outputs) == 1 else None
        if agreement.kind != "state" and (single is None or single.top1_agreement is None):
            value = "-" if agreement.value is None else f"{agreement.value:.2%}"
            rows.append(("agreement", "", value, f"{agreement.measure}, {', '.join(agreement.outputs)}"))
    if (drift := fidelity.drift) is not None:
        times = f"{drift.first_db:.1f} dB in the first quarter of {drift.steps} steps"
        rows.append(("SQNR over time", "", f"{drift.last_db:.1f} dB", f"output {drift.output}, last quarter; {times}"))
    return rows


def _passes(report: Report, console: Console, verbose: bool) -> None:
    from rich.text import Text

    shown = [record for record in report.passes if verbose or not record.idle]
    if not shown:
        return
    console.print(Text("\npasses", style="dim"))
    for record in shown:
        words = record.summary or f"{record.changes} changes"
        _line(console, f"{record.spec}: {words} ({record.guarantee}, {record.seconds:.2f} s)")
        for note in record.notes:
            _line(console, note, indent=4)


def _skips(report: Report, console: Console, verbose: bool) -> None:
    """What was left alone, grouped by reason; the most frequent reasons unless all are asked for."""
    from rich.text import Text

    lines = [line for record in report.passes for line in _skip_lines(record, verbose)]
    if not lines:
        return
    console.print(Text("\nskipped", style="dim"))
    for line in lines if verbose else lines[:MOST_SKIPS]:
        _line(console, line)
    if not verbose and len(lines) > MOST_SKIPS:
        console.print(Text(f"  … and {len(lines) - MOST_SKIPS} more reasons: -v shows them all", style="dim"))


def _skip_lines(record: PassRecord, verbose: bool) -> list[str]:
    if verbose:
        return [f"{record.name}: {skip.node}: {skip.why}" for skip in record.skips]
    first = {skip.why: skip.node for skip in reversed(record.skips)}
    counted = Counter(skip.why for skip in record.skips).most_common()
    return [
        f"{record.name}: {first[why]}{f' and {count - 1} more' if count > 1 else ''}: {why}" for why, count in counted
    ]


def _layers(report: Report, console: Console, verbose: bool) -> None:
    """The layers that lost most, by their own error."""
    from rich.text import Text

    lossy = sorted((x for x in report.layers if x.own_sqnr_db is not None), key=lambda x: x.own_sqnr_db or 0.0)
    if not lossy:
        return
    console.print(Text("\nlayers with the largest error (SQNR of the layer alone)", style="dim"))
    rows = [
        (
            layer.node,
            layer.op,
            " -> ".join(layer.precision) + (f", stored in {layer.stored[1]}" if layer.stored else ""),
            f"{size_text(layer.bytes[0])} -> {size_text(layer.bytes[1])}",
            f"{layer.own_sqnr_db:.1f} dB",
        )
        for layer in (lossy if verbose else lossy[:MOST_LAYERS])
    ]
    console.print(table(("",) * 5, rows, right=(3, 4), prose=(0,)))


def _budget(report: Report, console: Console) -> None:
    from rich.text import Text

    if not report.budget:
        return
    console.print(Text("\nbudgets", style="dim"))
    for line in report.budget:
        mark = ("held", "green") if line.passed else ("missed", "red")
        console.print(Text.assemble(f"  {limit_text(line)}: {value_text(line)}, ", mark))


def _line(console: Console, text: str, indent: int = 2) -> None:
    """One line, indented; a terminal that is too narrow gets it wrapped at words, a file or pipe whole."""
    from rich.padding import Padding
    from rich.text import Text

    if console.is_terminal:
        console.print(Padding(Text(text), (0, 0, 0, indent)), soft_wrap=False)
    else:
        console.print(Text(" " * indent + text))
