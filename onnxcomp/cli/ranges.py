"""`onnxcomp ranges`: the ranges of a quantized model as a file that other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli import options


@options.command("ranges")
@click.argument("model", type=click.Path(path_type=Path))
@options.option(
    "--of",
    "original",
    type=click.Path(path_type=Path),
    help="The float model: tensors get the names that they have there.",
)
@options.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file.")
@options.option(
    "--format",
    "kind",
    type=click.Choice(["aimet", "onnxruntime"]),
    default="aimet",
    show_default=True,
    help="AIMET encodings 1.0.0, or what ONNX Runtime's load_tensors_data reads.",
)
@options.printing()
def command(model: Path, original: Path | None, output: Path, kind: str, quiet: bool, verbose: int) -> int:
    """Write the scales and zero points that stand in MODEL's Q and DQ nodes, whichever tool wrote them.

    The other way round, quantize-qdq{ranges="FILE"} takes the ranges of such a file. Exit code 13 where there are none.
    """
    from onnxcomp import places
    from onnxcomp.files import atomic_write
    from onnxcomp.graph.io import load
    from onnxcomp.manager.ranges import of_model

    places.check_command(models=[path for path in (model, original) if path is not None], writes={"-o": output})
    found = of_model(load(model), None if original is None else load(original))
    if not found.activations and not found.weights:
        if not quiet:
            click.echo(f"{model} holds no QuantizeLinear or DequantizeLinear with constant scales: nothing was written")
        return 13
    with atomic_write(output) as file:
        file.write((found.to_aimet() if kind == "aimet" else found.to_onnxruntime()).encode())
    if not quiet:
        click.echo(f"{len(found.activations)} activations and {len(found.weights)} weights: {output}")
    return 0
