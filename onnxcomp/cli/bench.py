"""`onnxcomp bench`: how fast is each model, against the first, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job
from onnxcomp.report.timings import LATENCY, latency_cells
from onnxcomp.runtime.acceleration import Acceleration

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from onnxcomp.benchmark import BenchTable, Row
    from onnxcomp.data.preprocess import Preprocess
    from onnxcomp.results import Benchmark

PIPED_WIDTH = 160  # a file or a pipe has no width of its own
LOADING = ("load ms", "again", "first run", "peak memory")
NUMBERS = {"threads", "batch", "p50 ms", "p90 ms", "p99 ms", *LOADING}
Cells = tuple[str, ...]


@options.command("bench")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.option(
    "--provider",
    "providers",
    group="First",
    metavar="P",
    multiple=True,
    help="cpu, cuda, tensorrt, openvino or ONNX Runtime's full name; again for each [default: cpu].",
)
@options.settings(
    Job, "data", "shapes", "states", "preprocess", "seed", seed="Of made-up data and of the models' turns."
)
@options.option(
    "--batch",
    "batches",
    group="First",
    metavar="N,N...",
    callback=options.counts(1),
    default="1",
    show_default=True,
    help="Samples in one call.",
)
@options.option(
    "--threads",
    group="First",
    metavar="N,N...",
    callback=options.counts(0),
    default="1",
    show_default=True,
    help="Threads inside one operator; 0: every core.",
)
@options.assembled("acceleration", Acceleration)
@options.option(
    "--seconds",
    type=click.FloatRange(min=0, max=3600, min_open=True),
    default=4.0,
    show_default=True,
    help="For each model and setting.",
)
@options.option("--no-load", is_flag=True, help="Leave out load time and memory, which take a process for each model.")
@options.written("--json", "json_file", what="Write the figures")
@options.printing()
def command(
    models: tuple[Path, ...],
    preprocess: Preprocess,
    no_load: bool,
    json_file: Path | None,
    quiet: bool,
    verbose: int,
    **given: Any,
) -> None:
    """Latency of each MODEL against the first, measured interleaved in one process, with its 95 % interval.

    One thread is the default: it compares across machines, and is what a loaded server sees. A single MODEL is
    measured against itself, which shows how much this machine's noise leaves to tell. A provider that does not run
    here is an error; it is never replaced by the CPU. Load time and memory are measured in a process of its own for
    each model.
    """
    from onnxcomp import places
    from onnxcomp.benchmark import bench
    from onnxcomp.cli.progress import Bar
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.runtime.progress import SILENT

    places.check_command(
        models=models, samples=(given["data"],), functions=(given["data"],), writes={"--json": json_file}
    )
    given["providers"] = given["providers"] or ("cpu",)
    progress = SILENT if quiet else Bar()
    found = bench(models, preprocess=preprocess, footprints=not no_load, progress=progress, **given)
    if not quiet:
        _show(found, json_file == STANDARD_OUTPUT)
    if json_file is not None:
        from onnxcomp.report.record import write_data

        write_data(found.to_json(), json_file)


def _show(found: BenchTable, err: bool) -> None:
    from rich.text import Text

    from onnxcomp.cli.screen import screen

    console = screen(err=err)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    made_up = "made-up data, no --data was given" if found.synthetic else found.source
    for provider in dict.fromkeys(row.benchmarks[0].provider for row in found.rows):
        rows = [row for row in found.rows if row.benchmarks[0].provider == provider]
        sizes = [", ".join(f"{name} {list(shape)}" for name, shape in row.shapes.items()) for row in rows]
        console.print(Text(f"{provider}, {'; '.join(dict.fromkeys(sizes))}: {made_up}"))
        several = len(rows) > 1
        console.print(_table(rows, LATENCY, latency_cells, several))
        if rows[0].benchmarks[0].footprints is not None:
            console.print(Text("loaded alone, in a process of its own:"))
            console.print(_table(rows, LOADING, _loading, several))
    for note in found.notes:
        console.print(Text(f"note: {note}"))
    for guess in found.guesses:
        console.print(Text(f"guessed: {guess}", style="dim"))


def _table(rows: list[Row], titles: tuple[str, ...], cells: Callable[[Benchmark, int], Cells], several: bool) -> Table:
    """One line for each variant at each setting; the setting is named where there are several."""
    from onnxcomp.report.tables import table

    lines = []
    for row in rows:
        sides = [(row.benchmarks[0], 0), *((bench, 1) for bench in row.benchmarks)]
        for variant, (bench, side) in zip(row.variants, sides, strict=True):
            setting = (str(bench.threads), str(bench.batch)) if several else ()
            lines.append((variant.label, *setting, *cells(bench, side)))
    head = ("model", *(("threads", "batch") if several else ()), *titles)
    return table(head, lines, right=[i for i, title in enumerate(head) if title in NUMBERS], prose=(0,))


def _loading(bench: Benchmark, side: int) -> Cells:
    from onnxcomp.report.tables import size_text

    assert bench.footprints is not None
    taken = bench.footprints[side]
    seconds = (taken.load_seconds, taken.reload_seconds, taken.first_run_seconds)
    return (*(f"{1000 * value:.1f}" for value in seconds), size_text(taken.peak_memory_bytes))
