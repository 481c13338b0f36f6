"""`onnxcomp bench`: how fast is each model, against the first, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli import options

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.data.dataset import Dataset
    from onnxcomp.data.preprocess import Preprocess
    from onnxcomp.results import Benchmark

PIPED_WIDTH = 120  # a file or a pipe has no width of its own


@click.command("bench")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--provider",
    "providers",
    metavar="P",
    multiple=True,
    help="cpu, cuda, tensorrt or ONNX Runtime's full name; again for each [default: cpu].",
)
@options.data_option
@options.shape_option
@options.preprocess_options
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples in one call.")
@click.option("--threads", type=click.IntRange(min=0), default=1, show_default=True, help="Threads; 0: every core.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=4.0, show_default=True, help="For each model."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of made-up data and of the models' turns.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", count=True, help="-vv: a traceback with an error.")
def command(
    models: tuple[Path, ...],
    providers: tuple[str, ...],
    data: str | None,
    shapes: dict[str, tuple[int, ...]],
    preprocess: Preprocess,
    batch: int,
    threads: int,
    seconds: float,
    seed: int,
    json_file: Path | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Latency of each MODEL against the first, measured interleaved in one process, with its 95 % interval.

    One thread is the default: it compares across machines, and is what a loaded server sees. A single MODEL is
    measured against itself, which shows how much this machine's noise leaves to tell. A provider that does not run
    here is an error; it is never replaced by the CPU.
    """
    from onnxcomp.cli.progress import Bar
    from onnxcomp.runtime.latency import bench_many
    from onnxcomp.runtime.progress import SILENT
    from onnxcomp.runtime.providers import require

    chosen = [require(name) for name in dict.fromkeys(providers or ("cpu",))]
    dataset = _dataset(models[0], data, preprocess, shapes, seed, batch)
    feed = _feed(dataset, batch)
    found = [
        bench_many(
            models,
            feed,
            provider=provider,
            threads=threads,
            seconds=seconds,
            seed=seed,
            progress=SILENT if quiet else Bar(),
        )
        for provider in chosen
    ]
    if not quiet:
        _show(models, found, dataset, feed)
    if json_file is not None:
        _write(json_file, models, found, dataset)


def _dataset(
    model: Path, data: str | None, preprocess: Preprocess, shapes: dict[str, tuple[int, ...]], seed: int, batch: int
) -> Dataset:
    from onnxcomp.data.inputs import inputs_of
    from onnxcomp.data.open import open_data, random_data

    inputs, metadata = inputs_of(model)
    if data is None:
        return random_data(inputs, batch, seed, shapes)
    return open_data(data, inputs, preprocess=preprocess, metadata=metadata, shapes=shapes)


def _feed(dataset: Dataset, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    from onnxcomp.errors import DataError

    samples = dataset.samples()
    if len(samples) < batch:
        raise DataError(
            f"there are {len(samples)} samples, and --batch asks for {batch}", where=dataset.source, do="give more data"
        )
    return next(samples.batches(batch))


def _show(
    models: tuple[Path, ...],
    found: list[list[Benchmark]],
    dataset: Dataset,
    feed: dict[str, np.ndarray[Any, Any]],
) -> None:
    from rich.text import Text

    from onnxcomp.cli.screen import screen
    from onnxcomp.report.tables import table
    from onnxcomp.runtime.providers import CPU

    console = screen()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    made_up = "made-up data, no --data was given" if dataset.synthetic else dataset.source
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
    for benchmarks in found:
        first = benchmarks[0]
        threads = f"{first.threads} thread{'s' * (first.threads != 1)}"
        console.print(Text(f"{first.provider}, {threads}, {shapes}: {made_up}"))
        titles = ("model", "p50 ms", "p90 ms", "speed-up (95 %)", "", "nodes")
        console.print(table(titles, _rows(models, benchmarks), right=(1, 2)))
        if first.provider != CPU:
            console.print(Text(_openings(models, benchmarks), style="dim"))
    for guess in dataset.guesses:
        console.print(Text(f"guessed: {guess}", style="dim"))


def _rows(models: tuple[Path, ...], benchmarks: list[Benchmark]) -> list[tuple[str, ...]]:
    first = benchmarks[0]
    names = _names(models)
    rows: list[tuple[str, ...]] = [(names[0], *_milliseconds(first.before_ms), "1.00", "", "")]
    if len(models) == 1:
        names.append("the same again")
        rows[0] = (*rows[0][:-1], _nodes(first))
    for name, bench in zip(names[1:], benchmarks, strict=True):
        low, high = bench.speedup_interval
        ratio = f"{bench.speedup:.2f} ({low:.2f} to {high:.2f})"
        rows.append((name, *_milliseconds(bench.after_ms), ratio, bench.outcome, _nodes(bench)))
    return rows


def _names(models: tuple[Path, ...]) -> list[str]:
    """File names, or whole paths where file names repeat."""
    names = [model.name for model in models]
    return names if len(set(names)) == len(names) else [str(model) for model in models]


def _nodes(bench: Benchmark) -> str:
    elsewhere = f", {bench.nodes_elsewhere} elsewhere" if bench.nodes_elsewhere else ""
    return f"{bench.nodes_on_provider}{elsewhere}"


def _milliseconds(times_ms: dict[str, float]) -> tuple[str, str]:
    return f"{times_ms['p50']:.3f}", f"{times_ms['p90']:.3f}"


def _openings(models: tuple[Path, ...], benchmarks: list[Benchmark]) -> str:
    """How long sessions took to open: on a GPU that is where engines are built."""
    seconds = [(bench.session_seconds or (0.0, 0.0)) for bench in benchmarks]
    each = [seconds[0][0], *(after for _, after in seconds)][: len(models)]
    return "opened in " + ", ".join(f"{time:.2f} s" for time in each) + " (no part of the latency)"


def _write(path: Path, models: tuple[Path, ...], found: list[list[Benchmark]], dataset: Dataset) -> None:
    import json
    from dataclasses import asdict

    from onnxcomp._version import __version__
    from onnxcomp.files import atomic_write
    from onnxcomp.runtime.machine import machine, versions

    rivals = models[1:] or models
    content = {
        "schema": 1,
        "tool": {"name": "onnxcomp", "version": __version__, **versions()},
        "machine": machine().to_json(),
        "data": dataset.source,
        "synthetic": dataset.synthetic,
        "benchmarks": [
            {"before": str(models[0]), "after": str(rival), **asdict(bench), "outcome": bench.outcome}
            for benchmarks in found
            for rival, bench in zip(rivals, benchmarks, strict=True)
        ],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
