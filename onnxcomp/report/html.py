"""One run as a page that a person looks at first: verdict, before and after, what each layer paid."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from onnxcomp.files import atomic_write
from onnxcomp.report import html_charts as charts
from onnxcomp.report import html_graph
from onnxcomp.report.advice import next_steps
from onnxcomp.report.html_base import kind, page, section, table, text
from onnxcomp.report.html_lines import Series
from onnxcomp.report.html_lines import lines as curves
from onnxcomp.report.tables import (
    change_text,
    closeness_text,
    count_text,
    counted_at,
    limit_text,
    nearness,
    size_text,
    taught_text,
    total_text,
    value_text,
)
from onnxcomp.results import ABSENT, REMOVED, Benchmark, Fidelity, LayerRecord, PassRecord, Report, TrainingRecord

MAP_WIDTH, MAP_HEIGHT = 560.0, 330.0
MOST_NODES = 200  # named under one reason for leaving nodes alone; the report as JSON has all
TRIED = "tried, not used: "  # how the notes of a search begin
NOTHING: Mapping[int, str] = MappingProxyType({})


def write_html(report: Report, path: Path, pictures: Mapping[int, str] = NOTHING) -> None:
    """Write the page, with the day and hour at which that was, so that it appears whole or not at all.

    Args:
        pictures: as `document` takes them.

    Raises:
        OutputError: the folder cannot be written.
    """
    with atomic_write(path) as file:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        file.write(document(report, now, pictures).encode("utf-8", "replace"))


def document(report: Report, when: str = "", pictures: Mapping[int, str] = NOTHING) -> str:
    """The page: one self-contained file that loads nothing and runs nothing.

    Args:
        when: the day and hour, in words; models and reports have none, so that equal runs make equal files.
        pictures: of samples that changed their class, `data:` addresses by the sample's number; no report holds them.
    """
    name = Path(report.source.path).name
    latency = [section(*_latency(bench)) for bench in report.benchmarks if bench.spread is not None]
    sections = {
        "what to try next": section("next", "What to try next", _next(report)),
        "before and after": section("figures", "Before and after", _figures(report)),
        "latency": "".join(latency),
        "flips": section("flips", "Samples that changed class", _flips(report, pictures)),
        "size": section("size", "Where the bytes are", _maps(report), "Both maps have one scale: area is bytes."),
        "layers": section("layers", "Layer by layer", _layers(report)),
        "graph": section("graph", "What changed in the graph", _graph(report), html_graph.NOTE),
        "what was done": section("passes", "What was done", _passes(report)),
        "training": section("training", "Training", "".join(_training(record) for record in report.training)),
        "tried": section("tried", "Tried, not used", _tried(report)),
        "left alone": section("skipped", "What was left alone, and why", _skipped(report)),
        "notes": section("notes", "Guesses and notes", _notes(report)),
        "origin": section("origin", "Where this comes from", _origin(report, when)),
    }
    parts = [
        '<a class="skip" href="#main">Skip to the figures</a>',
        f"<header><h1>{text(name)} {_badge(report.verdict)}</h1>",
        *(f'<p class="bad">Warning: {text(line)}</p>' for line in report.warnings),
        "".join(f"<p>{text(line)}</p>" for line in (report.reason, *report.doubts) if line),
        f'<p class="dim">{text(judged(report))}</p>',
        "</header>",
        section("budgets", "Budgets", _budgets(report)),
        _tiles(report),
        _contents(sections),
        '<main id="main">',
        *sections.values(),
        "</main>",
    ]
    return page(f"{name}: {report.verdict}", "\n".join(part for part in parts if part))


def judged(report: Report) -> str:
    """What the verdict rests on, in a sentence."""
    fidelity, accuracy = report.fidelity, report.accuracy
    if fidelity is None:
        return "Not judged: the result was not run against the original."
    kind = "made-up samples" if fidelity.source == "synthetic" else "samples"
    apart = report.calibration is not None and not report.calibration.repeated
    unseen = " that calibration did not see" if apart else ""
    words = f"Judged on {fidelity.samples:,} {kind}{unseen}"
    if report.calibration is not None:
        words += f" (it saw {report.calibration.samples:,} of {report.calibration.source})"
    return f"{words}{f', by {accuracy.metric} and closeness' if accuracy is not None else ', by closeness'}."


def _flips(report: Report, pictures: Mapping[int, str]) -> str:
    """A contact sheet of samples that both models put into other classes, what they made of each below it."""
    if not report.flips:
        return ""
    tiles = []
    for flip in report.flips:
        picture = pictures.get(flip.sample, "")
        drawn = f'<img src="{text(picture)}" alt="">' if picture.startswith("data:image/") else ""
        words = f"{flip.before} → {flip.after}"
        style, about = "", f"class {flip.before} before, {flip.after} after"
        if flip.label is not None:
            style = "good" if flip.after == flip.label else "bad" if flip.before == flip.label else "dim"
            about += f", label {flip.label}"
        tiles.append(
            f'<li>{drawn}<b class="{style}" title="{text(about)}">{words}</b>'
            f"{f' label {flip.label}' if flip.label is not None else ''}<br>"
            f'<span class="dim">{text(flip.name)}</span></li>'
        )
    agreement = report.fidelity.least_agreement if report.fidelity is not None else None
    of = f" Both models name the same class for {agreement:.2%} of the samples." if agreement is not None else ""
    note = f'<p class="note">The first {len(tiles)} of them: class before → after.{of}</p>'
    return f'{note}<ul class="sheet">{"".join(tiles)}</ul>'


def _graph(report: Report) -> str:
    """The changed parts of the graph, before and after."""
    names = short_names(report.layers)
    return html_graph.parts(report.changed_parts, report.more_parts, names)


def _tried(report: Report) -> str:
    """Recipes that were tried and not used, each with the figures that spoke against it."""
    lines = [note.removeprefix(TRIED) for note in report.notes if note.startswith(TRIED)]
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _next(report: Report) -> str:
    """Commands to copy, each after the reason for it."""
    return "".join(f"<p>{text(step.why)}</p><pre>{text(step.command)}</pre>" for step in next_steps(report))


def _badge(verdict: str) -> str:
    return f'<span class="badge {text(verdict)}">{text(verdict)}</span>'


def _contents(sections: dict[str, str]) -> str:
    """Links to what the page has."""
    ids = {name: body.partition('id="')[2].partition('"')[0] for name, body in sections.items() if body}
    return "<nav aria-label=Contents>" + "".join(f'<a href="#{key}">{name}</a>' for name, key in ids.items()) + "</nav>"


def _tiles(report: Report) -> str:
    tiles = []
    if report.output is not None:
        share = report.after.bytes / max(1, report.before.bytes)
        tiles.append(
            (f"{share:.1%}", f"of the size: {size_text(report.before.bytes)} → {size_text(report.after.bytes)}")
        )
    for bench in report.benchmarks[:1]:
        low, high = bench.speedup_interval
        words = "no change" if bench.outcome == "no change" else f"{bench.speedup:.2f} times"
        tiles.append((words, f"the speed; 95 % interval {low:.2f} to {high:.2f}"))
    if report.accuracy is not None:
        a = report.accuracy
        tiles.append((f"{a.after:.4f}", f"{text(a.metric)}, was {a.before:.4f}; {a.samples:,} samples"))
    if report.fidelity is not None:
        worst = report.fidelity.worst_db
        words = "identical" if report.fidelity.identical else "-" if worst is None else f"{worst:.1f} dB"
        made_up = " made-up" if report.fidelity.source == "synthetic" else ""
        tiles.append((words, f"SQNR of the worst part, {report.fidelity.samples:,}{made_up} samples"))
        if (least := report.fidelity.least_agreeing) is not None:
            tiles.append((f"{least.value:.2%}", f"agreement: {text(least.measure)}"))
    if not tiles:
        return ""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _budgets(report: Report) -> str:
    rows = []
    for line in report.budget:
        word = "held" if line.passed else "missed"
        rows.append([text(limit_text(line)), text(value_text(line)), f'<span class="badge {word}">{word}</span>'])
    return table(["limit", "measured", ""], rows, right=(1,)) if rows else ""


def _figures(report: Report) -> str:
    before, after = report.before, report.after
    rows = [
        ["size", size_text(before.bytes), size_text(after.bytes), f"{after.bytes / max(1, before.bytes):.1%}"],
        ["parameters", count_text(before.parameters), count_text(after.parameters), ""],
        ["of them not zero", count_text(before.nonzero_parameters), count_text(after.nonzero_parameters), ""],
        ["MACs, one sample", count_text(before.macs), count_text(after.macs), text(counted_at(report))],
        ["nodes", f"{before.nodes}", f"{after.nodes}", ""],
        ["opset", f"{before.opset}", f"{after.opset}", ""],
    ]
    for bench in report.benchmarks:
        setting = (
            f"{text(bench.provider.removesuffix('ExecutionProvider'))}, batch {bench.batch}, {bench.threads} thread"
        )
        for key in bench.before_ms:
            rows.append(
                [f"latency {text(key)}", f"{bench.before_ms[key]:.3f} ms", f"{bench.after_ms[key]:.3f} ms", setting]
            )
        if bench.session_seconds is not None:
            old, new = bench.session_seconds
            rows.append(["opening a session", f"{1000 * old:.0f} ms", f"{1000 * new:.0f} ms", ""])
        if bench.footprints is not None:
            taken = [size_text(side.peak_memory_bytes) for side in bench.footprints]
            rows.append(["peak memory", *taken, "loaded and run alone"])
    if report.accuracy is not None:
        a = report.accuracy
        sure = ""
        if a.interval is not None:
            low, high = a.changes(a.interval)
            sure = f"; 95 % interval {low:+.4f} to {high:+.4f}"
        words = change_text(a.change) + sure + text(taught_text(report))
        rows.append([text(a.metric), f"{a.before:.4f}", f"{a.after:.4f}", words])
    if report.teacher is not None:
        rows += [[text(cell) for cell in row] for row in nearness(report.teacher)]
    if report.fidelity is not None:
        rows += _closeness(report.fidelity)
    return table(["", "before", "after", ""], rows, right=(1, 2), narrow="remarks")


def _closeness(fidelity: Fidelity) -> list[list[str]]:
    """Rows for each output, each of its parts, and what both models decide alike."""
    rows = []
    for name, out in fidelity.outputs.items():
        words = f"largest error {out.max_abs_error:.4g}" + total_text(out)
        if out.top1_agreement is not None:
            words += f"; same top-1 on {out.top1_agreement:.2%}"
        rows.append([f"output <code>{text(name)}</code>", "", closeness_text(out), words])
        for part in out.parts:
            worst = "the worst part; " if part.name == out.worst_part else ""
            about = f"{worst}largest error {part.max_abs_error:.4g}, values of {part.rms:.3g} RMS, by {part.judged_by}"
            rows.append([f"&emsp;{text(part.name)}", "", f"{part.sqnr_db:.1f} dB", text(about)])
    for agreement in fidelity.agreements:
        names = ", ".join(f"<code>{text(name)}</code>" for name in agreement.outputs)
        value = "-" if agreement.value is None else f"{agreement.value:.2%}"
        rows.append([f"agreement, {names}", "", value, text(agreement.measure)])
    return rows


def _latency(bench: Benchmark) -> tuple[str, str, str, str]:
    """Key, title, picture and note of a section."""
    assert bench.spread is not None
    provider = bench.provider.removesuffix("ExecutionProvider")
    key = f"latency-{provider}-{bench.batch}-{bench.threads}"
    threads = f"{bench.threads} thread{'s' * (bench.threads != 1)}"
    title = f"Latency of single calls: {provider}, batch {bench.batch}, {threads}"
    note = (
        "Both models ran in turns in one process. Dashed lines are medians, in time on the wall; the speed-up is taken "
        "from neighbouring blocks of calls."
    )
    return text(key), text(title), charts.latency(bench.spread, bench.before_ms, bench.after_ms), note


def _maps(report: Report) -> str:
    if not report.layers:
        return ""
    maps, names = [], short_names(report.layers)
    for index, stats, word in ((0, report.before, "before"), (1, report.after, "after")):
        if index and report.output is None:
            break
        cells = [_cell(names[layer.node], layer, index) for layer in report.layers if layer.bytes[index] > 0]
        rest = stats.bytes - sum(cell.size for cell in cells)
        if rest > 0:
            cells.append(charts.Cell(charts.ELSE, rest, kind(charts.ELSE), f"{charts.ELSE}: {size_text(rest)}"))
        shrink = math.sqrt(stats.bytes / max(report.before.bytes, report.after.bytes, 1))
        label = f"{word}: {size_text(stats.bytes)} in {len(cells)} parts"
        drawn = charts.treemap(cells, round(MAP_WIDTH * shrink, 1), round(MAP_HEIGHT * shrink, 1), label)
        wide = f"width:min({MAP_WIDTH * shrink:.1f}px,{100 * shrink:.1f}%)"
        caption = f"<figcaption>{word}: {size_text(stats.bytes)}</figcaption>"
        maps.append(f'<figure style="{wide}">{drawn}{caption}</figure>')
    shown = sorted({p for layer in report.layers for p in layer.held} - {ABSENT, REMOVED})
    return f'{charts.legend([*shown, charts.ELSE])}<div class="maps">{"".join(maps)}</div>'


def _cell(name: str, layer: LayerRecord, index: int) -> charts.Cell:
    size, precision = layer.bytes[index], layer.held[index]
    return charts.Cell(name, size, kind(precision), f"{layer.node} ({layer.op}): {size_text(size)}, {precision}")


def short_names(layers: Sequence[LayerRecord]) -> dict[str, str]:
    """For each layer the shortest end of its name that no other layer's name has, the operator's own word left out."""
    paths = {}
    for layer in layers:
        parts = [part for part in layer.node.split("/") if part] or [layer.node]
        # exporters write layer1/conv/Conv
        paths[layer.node] = parts[:-1] if len(parts) > 1 and parts[-1].startswith(layer.op) else parts
    count: Counter[str] = Counter(
        "/".join(parts[-length:]) for parts in paths.values() for length in range(1, len(parts) + 1)
    )
    found = {}
    for node, parts in paths.items():
        ends = ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        found[node] = next((end for end in ends if count[end] == 1), ends[-1])
    return found


def _legend(report: Report) -> str:
    return charts.legend(sorted({p for layer in report.layers for p in layer.precision}))


def _layers(report: Report) -> str:
    layers = report.layers
    if not layers:
        return ""
    by_error = sorted(range(len(layers)), key=lambda i: _or_inf(layers[i].own_sqnr_db))
    by_size = sorted(range(len(layers)), key=lambda i: -max(layers[i].bytes))
    order_e = {index: rank for rank, index in enumerate(by_error)}
    order_b = {index: rank for rank, index in enumerate(by_size)}
    rows = [
        f'<div class="row" role="row" style="--g:{i};--e:{order_e[i]};--b:{order_b[i]}">{_row(layer)}</div>'
        for i, layer in enumerate(layers)
    ]
    heads = ("layer", "operator", "stored as", "bytes", "own error", "weights")
    top = (
        '<div class="row top" role="row">' + "".join(f'<span role="columnheader">{h}</span>' for h in heads) + "</div>"
    )
    choices = (
        ("by-graph", "as in the graph", " checked"),
        ("by-error", "worst first", ""),
        ("by-size", "largest first", ""),
    )
    radios = "".join(f"<label><input type=radio name=order id={key}{on}> {word}</label>" for key, word, on in choices)
    note = (
        '<p class="note">A layer\'s own error: its output when it is fed what the original feeds it, against the '
        "original's, as SQNR in dB. 20 dB is an error of a tenth of the signal, 40 dB of a hundredth; a longer bar is "
        "a larger error. Weights: grey before, blue after, dashed where the range after ends.</p>"
    )
    overview = charts.error_overview(layers)
    return (
        f"{note}{_legend(report)}{overview}"
        f'<div class="layers"><fieldset><legend>Order</legend>{radios}</fieldset>'
        f'<div class="rows" role="table" aria-label="Layers">{top}{"".join(rows)}</div></div>'
    )


def _row(layer: LayerRecord) -> str:
    before, after = layer.precision
    stored = text(before) if before == after else f"{text(before)} → {text(after)}"
    if layer.stored is not None:
        stored += f", stored in {text(layer.stored[1])}"
    sizes = size_text(layer.bytes[0])
    if layer.bytes[0] != layer.bytes[1]:
        sizes += f" → {size_text(layer.bytes[1])}"
    cells = (
        f'<span role="rowheader">{text(layer.node)}</span>',
        f'<span role="cell">{text(layer.op)}</span>',
        f'<span role="cell">{stored}</span>',
        f'<span role="cell">{sizes}</span>',
        f'<span role="cell" class="bar">{charts.error_bar(layer.own_sqnr_db, after)}</span>',
        f'<span role="cell">{charts.weights(layer.weights)}</span>',
    )
    return "".join(cells)


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _passes(report: Report) -> str:
    rows = []
    for record in report.passes:
        if record.idle:
            continue
        done = text(record.rolled_back or record.summary or f"{record.changes} changes")
        for note in record.notes:
            done += f"<br>{text(note)}"
        for key, value in record.metrics.items():
            done += f"<br>{text(key)} {value:.4g}"
        size = f"{size_text(record.bytes_before)} → {size_text(record.bytes_after)}"
        rows.append(
            [f"<code>{text(record.spec)}</code>", text(record.guarantee), done, size, f"{record.seconds:.2f} s"]
        )
    heads = ["pass", "outputs", "what it did", "weights", "time"]
    drawn = table(heads, rows, right=(4,), narrow="cards") if rows else ""
    others = ", ".join(f"<code>{text(record.spec)}</code>" for record in report.passes if record.idle)
    return drawn + (f"<p>Found nothing to do: {others}.</p>" if others else "")


def _training(record: TrainingRecord) -> str:
    """Loss curves of one training, and what they are of."""
    series = [Series("training", record.losses), Series("held out, never trained on", record.held_out)]
    views = f", {record.views} augmented views of each" if record.views > 1 else ""
    facts = (
        f"{record.samples:,} samples{views}, {record.held_out_samples:,} held out; {record.parameters:,} parameters; "
        f"{1000 * record.step_seconds:.0f} ms a step, peak memory {size_text(record.peak_memory_bytes)}"
    )
    return f"<h3>{text(record.words)}</h3>{curves(series, 'step', 'loss', logarithmic=True)}<p>{text(facts)}</p>"


def _skipped(report: Report) -> str:
    return "".join(_skips(record) for record in report.passes if record.skips)


def _skips(record: PassRecord) -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for skip in record.skips:
        reasons[skip.why].append(skip.node)
    parts = [f"<h3>{text(record.name)}</h3>"]
    for why, nodes in sorted(reasons.items(), key=lambda item: -len(item[1])):
        names = "".join(f"<li>{text(node)}</li>" for node in nodes[:MOST_NODES])
        if len(nodes) > MOST_NODES:
            names += f"<li>and {len(nodes) - MOST_NODES} more</li>"
        parts.append(f"<details><summary>{len(nodes)}: {text(why)}</summary><ul>{names}</ul></details>")
    return "".join(parts)


def _notes(report: Report) -> str:
    found = ""
    notes = [note for note in report.notes if not note.startswith(TRIED)]
    for title, lines in (("Guessed", report.guesses), ("Notes", notes)):
        if lines:
            found += f"<h3>{title}</h3><ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
    return found


def _origin(report: Report, when: str) -> str:
    command = report.request.get("command", "")
    repeat = f"<p>The command that makes it again:</p><pre>{text(command)}</pre>" if command else ""
    rows = [["input", f"<code>{text(report.source.path)}</code>", f"<code>{text(report.source.sha256)}</code>"]]
    if report.output is not None:
        rows.append(
            ["output", f"<code>{text(report.output.path)}</code>", f"<code>{text(report.output.sha256)}</code>"]
        )
    if report.calibration is not None:
        rows.append(
            [
                "calibrated on",
                f"{report.calibration.samples:,} samples",
                f"<code>{text(report.calibration.source)}</code>",
            ]
        )
    machine = report.machine
    rows.append(["machine", text(machine.get("cpu", "")), text(", ".join(map(str, machine.get("isa", ()))))])
    rows += [["tool", text(name), text(version)] for name, version in report.tool.items() if name != "name"]
    rows.append(
        ["run", f"{report.seconds:.1f} s", f"peak memory {size_text(report.peak_memory_bytes)}, seed {report.seed}"]
    )
    if when:
        rows.append(["written", text(when), ""])
    return repeat + table(["", "", ""], rows, narrow="cards")
