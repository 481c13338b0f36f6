"""onnxcomp doctor: what this machine can run, found by running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp._version import __version__
from onnxcomp.cli import options

if TYPE_CHECKING:
    from onnxcomp.diagnosis import Ability, Diagnosis
    from onnxcomp.distill.environment import Environment

INT8 = {
    "exact": "exact: u8*s8 sums are right at full range; quantize-qdq{isa=native} is safe for this machine alone",
    "saturating": "saturating: no VNNI here, so u8*s8 sums clip at 16 bits; keep isa=portable (the default)",
}
BRINGS = {
    "cuda": "latency on an NVIDIA GPU: bench --provider cuda",
    "openvino": "latency on Intel's runtime, and --target openvino: bench --provider openvino",
    "tensorrt": "int8 and half-precision kernels of an NVIDIA GPU: bench --provider tensorrt",
}
PARSER = "TensorRT's own word on what it takes, without a GPU: verify --target tensorrt"
MISSING = "not set up: onnxcomp doctor --setup-training, or the first training, does it (42 MB, under a minute)"


@options.command("doctor")
@options.option("--setup-training", is_flag=True, help="Set up the training runtime, which distill needs.")
@options.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --setup-training: install from this folder of wheels, without a network.",
)
@options.written("--json", "json_file", what="Write the findings")
@options.printing()
def command(setup_training: bool, wheels: Path | None, json_file: Path | None, quiet: bool, verbose: int) -> None:
    """What this machine can run: processor, packages, execution providers, int8 arithmetic, training.

    Every provider listed as usable has just run a small model. The exit code is 0 whatever is missing: onnxcomp works
    with the CPU provider alone.
    """
    from onnxcomp import places
    from onnxcomp.cli.screen import echo
    from onnxcomp.files import STANDARD_OUTPUT

    if wheels is not None and not setup_training:
        raise click.UsageError("--wheels goes with --setup-training")
    places.check((), {"--json": json_file})
    err = json_file == STANDARD_OUTPUT
    if setup_training:
        from onnxcomp.distill import environment

        def say(text: str) -> None:
            if not quiet:
                echo(text, err=err)

        made = environment.provide(wheels=wheels, say=say, again=True)
        echo(f"training {_standing(made)}", err=err)
    if setup_training and json_file is None:
        return
    from onnxcomp.diagnosis import diagnose
    from onnxcomp.report.record import write_data

    found = diagnose()
    if not quiet and not setup_training:
        _show(found, err)
    if json_file is not None:
        write_data(found.to_json(), json_file)


def _show(found: Diagnosis, err: bool) -> None:
    from rich.table import Table

    from onnxcomp.cli.screen import screen

    here = found.machine
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("onnxcomp", f"{__version__} on Python {here.python}, {here.system}")
    cores = f"{here.cores} usable cores" + (f", {here.physical_cores} physical" if here.physical_cores else "")
    table.add_row("processor", f"{here.cpu}: {cores}")
    table.add_row("instructions", " ".join(here.isa) or "unknown on this system")
    table.add_row("memory", f"{here.memory_bytes / 2**30:.1f} GiB" if here.memory_bytes else "unknown")
    table.add_row("packages", ", ".join(f"{name} {version}" for name, version in here.versions.items()))
    if found.conflict:
        table.add_row("conflict", found.conflict)
    table.add_row("int8", INT8[found.int8])
    for provider in found.providers:
        table.add_row(f"provider {provider.name}", _words(provider, BRINGS.get(provider.name, "")))
    table.add_row(
        "tensorrt parser",
        _words(found.tensorrt_parser, PARSER, "usable, without a GPU: verify --target tensorrt"),
    )
    table.add_row("training", MISSING if found.training is None else _standing(found.training))
    screen(err=err).print(table, markup=False)


def _words(found: Ability, brings: str, usable: str = "usable") -> str:
    if found.usable:
        return usable
    state = found.reason if found.name == "tensorrt parser" else f"not usable: {found.reason}"
    return f"{state}\n  to have it: {found.remedy}" + (f"\n  it would bring {brings}" if brings else "")


def _standing(found: Environment) -> str:
    from onnxcomp.distill.environment import CUDA

    place = "NVIDIA GPU" if found.kind == CUDA else "processor"
    return f"usable on the {place}: {found.size_bytes / 1e6:.0f} MB in {found.folder}"
