"""`onnxcomp compare`: any number of variants of a model in one table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job


@options.command("compare")
@click.argument("models", metavar="MODEL MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.settings(
    Job,
    *("data", "labels", "shapes", "states", "preprocess", "metric", "task", "eval_samples", "allow_random"),
    *("bench", "bench_seconds", "seed", "threads"),
    eval_samples="Use the first so many samples; all by default.",
    allow_random="Without --data: compare on made-up samples.",
    bench="Do not measure latency.",
    bench_seconds="How long to measure latency, for each model after the first.",
    seed="Of made-up samples, and of the turns.",
    threads="Threads for the answers, 0: every core; latency is measured with one.",
)
@options.written("--json", "json_file", what="Write the figures")
@options.written("--markdown", "markdown_file", what="Write the table as Markdown")
@options.written("--html", "html_file", what="Write a page for people")
@options.printing()
def command(
    models: tuple[Path, ...],
    data: str | None,
    json_file: Path | None,
    markdown_file: Path | None,
    html_file: Path | None,
    quiet: bool,
    verbose: int,
    **given: Any,
) -> int:
    """Set MODELs side by side, whoever made them: size, MACs, latency, accuracy, and how close each is to the first.

    All have the same inputs and outputs. Each answers to --data once; all are timed in turns in one process, with one
    thread.
    """
    from onnxcomp import places
    from onnxcomp.cli.progress import Bar
    from onnxcomp.comparison import compare
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.report import comparison as report
    from onnxcomp.report.record import write_data, write_text
    from onnxcomp.runtime.progress import SILENT

    writes = {"--json": json_file, "--markdown": markdown_file, "--html": html_file}
    places.check_command(
        models=models, samples=(data, given["labels"]), functions=(data, given["metric"]), writes=writes
    )
    found = compare(models, data, progress=SILENT if quiet else Bar(), **given).to_json()
    if not quiet:
        from onnxcomp.cli.screen import screen

        report.show(found, screen(err=STANDARD_OUTPUT in writes.values()))
    if json_file is not None:
        write_data(found, json_file)
    if markdown_file is not None:
        write_text(report.markdown(found), markdown_file)
    if html_file is not None:
        write_text(report.page(found), html_file)
    return 0
