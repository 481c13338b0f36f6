"""onnxcomp doctor: what this machine can run, found by running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp._version import __version__

if TYPE_CHECKING:
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


@click.command("doctor")
@click.option("--setup-training", is_flag=True, help="Set up the training runtime, which distill needs.")
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --setup-training: install from this folder of wheels, without a network.",
)
def command(setup_training: bool, wheels: Path | None) -> None:
    """What this machine can run: processor, packages, execution providers, int8 arithmetic, training.

    Every provider listed as usable has just run a small model. The exit code is 0 whatever is missing: onnxcomp works
    with the CPU provider alone.
    """
    if wheels is not None and not setup_training:
        raise click.UsageError("--wheels goes with --setup-training")
    if setup_training:
        from onnxcomp.distill import environment

        made = environment.provide(wheels=wheels, say=click.echo, again=True)
        click.echo(f"training {_standing(made)}")
        return
    _tell()


def _tell() -> None:
    from rich.table import Table

    from onnxcomp.cli.screen import screen
    from onnxcomp.runtime.arithmetic import int8_arithmetic
    from onnxcomp.runtime.machine import conflict, machine

    found = machine()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("onnxcomp", f"{__version__} on Python {found.python}, {found.system}")
    cores = f"{found.cores} usable cores" + (f", {found.physical_cores} physical" if found.physical_cores else "")
    table.add_row("processor", f"{found.cpu}: {cores}")
    table.add_row("instructions", " ".join(found.isa) or "unknown on this system")
    table.add_row("memory", f"{found.memory_bytes / 2**30:.1f} GiB" if found.memory_bytes else "unknown")
    table.add_row("packages", ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    if broken := conflict():
        table.add_row("conflict", broken)
    table.add_row("int8", INT8[int8_arithmetic()])
    for name, state in [*_providers(), _parser()]:
        table.add_row(name, state)
    table.add_row("training", _training())
    screen().print(table, markup=False)


def _parser() -> tuple[str, str]:
    from onnxcomp.runtime import tensorrt

    if tensorrt.installed():
        return "tensorrt parser", "usable, without a GPU: verify --target tensorrt"
    brings = "it would bring TensorRT's own word on what it takes, without a GPU: verify --target tensorrt"
    return "tensorrt parser", f"not installed\n  to have it: {tensorrt.REMEDY}\n  {brings}"


def _training() -> str:
    from onnxcomp.distill import environment

    if found := environment.find(environment.CUDA) or environment.find(environment.CPU):
        return _standing(found)
    return "not set up: onnxcomp doctor --setup-training, or the first training, does it (42 MB, under a minute)"


def _standing(found: Environment) -> str:
    from onnxcomp.distill import environment

    place = "NVIDIA GPU" if found.kind == environment.CUDA else "processor"
    return f"usable on the {place}: {found.size_bytes / 1e6:.0f} MB in {found.folder}"


def _providers() -> list[tuple[str, str]]:
    from onnxcomp.runtime import providers

    # the Azure provider sends inputs to a web service: nothing that this machine runs
    listed = [p for p in providers.built_in() if p not in (providers.CPU, "AzureExecutionProvider")]
    rows = [("provider cpu", "usable")]
    for provider in dict.fromkeys([*listed, providers.CUDA, providers.TENSORRT, providers.OPENVINO]):
        probe, short = providers.usability(provider), providers.short_name(provider)
        if probe.usable:
            rows.append((f"provider {short}", "usable"))
            continue
        brings = f"\n  it would bring {BRINGS[short]}" if short in BRINGS else ""
        rows.append((f"provider {short}", f"not usable: {probe.reason}\n  to have it: {probe.remedy}{brings}"))
    return rows
