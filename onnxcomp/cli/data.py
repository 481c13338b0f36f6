"""`onnxcomp data check`: what does the model really see?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli import options
from onnxcomp.cli.progress import Bar
from onnxcomp.errors import one_line
from onnxcomp.job import Job

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from onnxcomp.data.preprocess import Preprocess
    from onnxcomp.verify.data_check import DataCheck


THREADS = "Threads; 0: every core."


@click.group("data", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Look at data as the model sees it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("check", cls=options.GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@options.settings(Job, "data", "labels", "shapes", "states", "preprocess", "metric", "threads", threads=THREADS)
@options.option(
    "--samples", group="Samples", type=click.IntRange(min=1), default=10000, show_default=True, help="Look at so many."
)
@options.option(
    "-o", "--output", group="First", type=click.Path(path_type=Path), help="The contact sheet [default: NAME.data.png]."
)
@options.written("--json", "json_file", what="Write the findings")
@options.printing()
def check(
    model: Path,
    data: str | None,
    labels: Path | None,
    shapes: dict[str, tuple[int, ...]],
    states: dict[str, str],
    preprocess: Preprocess,
    metric: str | None,
    samples: int,
    output: Path | None,
    json_file: Path | None,
    threads: int,
    quiet: bool,
    verbose: int,
) -> None:
    """Statistics of each channel, guesses, a contact sheet, and the float model's score.

    So that wrong preprocessing shows before compression is blamed for it.
    """
    from onnxcomp import places
    from onnxcomp.data.metric import parse_metric
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.runtime.machine import check_threads
    from onnxcomp.runtime.progress import SILENT
    from onnxcomp.verify.data_check import check_data
    from onnxcomp.verify.opened import OpenedModel
    from onnxcomp.verify.opening import Opener

    if data is None:
        raise click.UsageError("--data is missing: the samples to look at")
    sheet = output or Path(f"{model.stem}.data.png")
    places.check_command(
        models=(model,), samples=(data, labels), functions=(data, metric), writes={"-o": sheet, "--json": json_file}
    )
    check_threads(threads)
    opened = OpenedModel(model)
    opener = Opener(opened, shapes=shapes, states=states)
    found = check_data(
        opened,
        lambda chosen: opener.open(data, preprocess=chosen, labels=labels),
        preprocess,
        parse_metric(metric),
        samples=samples,
        sheet=sheet,
        threads=threads,
        progress=SILENT if quiet else Bar(),
    )
    if json_file is not None:
        from onnxcomp.report.record import write_data
        from onnxcomp.results import finite

        write_data(finite({"schema": 1, **dataclasses.asdict(found)}), json_file)
    if not quiet:
        _show(found, json_file == STANDARD_OUTPUT)


def _show(found: DataCheck, err: bool) -> None:
    from onnxcomp.cli.screen import screen
    from onnxcomp.verify.data_check import BOX_THRESHOLD

    console = screen(err=err)
    part = f"{found.samples:,} of {found.total:,}" if found.samples < found.total else f"{found.samples:,}"
    _line(console, "data", f"{found.source}, {part} samples")
    for text in found.inputs:
        _line(console, "input", text)
    for text in found.preprocessing:
        _line(console, "pixels", text)
    for text in found.guesses:
        _line(console, "guess", text)
    for text in found.problems:
        _line(console, "note", text)
    console.print()
    console.print(_statistics(found))
    console.print(_outputs(found))
    answers = found.answers
    if answers.of:
        common = ", ".join(f"{number} {share:.1%}" for number, share in answers.classes)
        _line(console, "answers", f"{answers.different} of {answers.of} classes occur; the most common: {common}")
    if answers.entropy is not None:
        _line(console, "entropy", f"{answers.entropy:.2f} bits on average (all classes alike: {_bits(answers.of)})")
    if found.boxes is not None:
        _line(console, "boxes", f"{found.boxes:,} above {BOX_THRESHOLD:g} in {part} pictures (the float model)")
    if found.score is not None:
        _line(console, found.metric, f"{found.score:.4f} on {found.samples:,} samples (the float model)")
    else:
        _line(console, "score", "none: no labels; give --labels or --metric")
    for text in found.hints:
        _line(console, "hint", text)
    if found.sheet:
        _line(console, "sheet", found.sheet)


def _line(console: Console, key: str, text: str) -> None:
    from rich.markup import escape

    console.print(f"[bold]{escape(key):<9}[/bold] {escape(text)}", soft_wrap=True)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _name(name: str) -> Text:
    from rich.text import Text

    return Text(one_line(name))  # its brackets are no markup


def _statistics(found: DataCheck) -> Table:
    table = _table("input", "channel", "min", "mean", "max", "std")
    for c in found.channels:
        table.add_row(_name(c.input), c.channel or "all", *(f"{v:.4g}" for v in (c.minimum, c.mean, c.maximum, c.std)))
    return table


def _outputs(found: DataCheck) -> Table:
    table = _table("output", "min", "mean", "max")
    for o in found.answers.outputs:
        table.add_row(_name(o.output), *(f"{v:.4g}" for v in (o.minimum, o.mean, o.maximum)))
    return table


def _bits(classes: int) -> str:
    import math

    return f"{math.log2(max(classes, 1)):.2f}"
