"""How fast are float32, half precision and int8 on CPU, CUDA and TensorRT? The whole table, where there is a GPU.

python benchmarks/providers.py [FOLDER]     # FOLDER: where engines stay for a second run; rewrites docs/providers.md

Every model is made for each target by onnxcomp itself, then measured by onnxcomp.benchmark: medians and percentiles
through IOBinding, interleaved with the float32 model; engine builds cold and cached apart; CUDA graphs; 2:4 sparsity.
A provider that does not run is named with the reason, and has no row.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from common import ROOT, machine, need_assets, onnxcomp, table, write_page
from tensorrt_accepts import CLEAN, MODELS

from onnxcomp.benchmark import BenchTable, bench
from onnxcomp.errors import OnnxcompError
from onnxcomp.runtime.acceleration import PLAIN, Acceleration
from onnxcomp.runtime.providers import CPU, CUDA, TENSORRT, short_name, usability

BATCHES = (1, 8, 32)
SPARSE = f"{CLEAN},prune-weights{{pattern=2:4}}"
# name -> target, passes; None takes the target's own recipe
VARIANTS = {
    "int8-cpu": ("cpu", f"{CLEAN},quantize-qdq"),
    "half": ("cuda", f"{CLEAN},convert-float16"),
    "int8-tensorrt": ("tensorrt", f"{CLEAN},quantize-qdq"),
    "sparse": ("tensorrt", SPARSE),
    "sparse-int8": ("tensorrt", f"{SPARSE},quantize-qdq"),
}
# provider -> its variants, and the options they are measured under
PLANS: dict[str, list[tuple[str, tuple[str, ...], Acceleration]]] = {
    CPU: [("", ("int8-cpu",), PLAIN)],
    CUDA: [
        ("", ("half", "int8-cpu"), PLAIN),
        ("CUDA graph", ("half",), Acceleration(cuda_graph=True)),
    ],
    TENSORRT: [
        ("", ("int8-tensorrt",), Acceleration(fp16=True)),
        ("CUDA graph", ("int8-tensorrt",), Acceleration(fp16=True, cuda_graph=True)),
        ("2:4", ("sparse", "sparse-int8"), Acceleration(fp16=True, sparsity=True)),
    ],
}


def made(model: Path, data: Path, flags: tuple[str, ...], variant: str, folder: Path) -> Path | None:
    """The model in one variant; None where onnxcomp could not make it, with its words on the screen."""
    target, passes = VARIANTS[variant]
    out = folder / f"{model.stem}.{variant}.onnx"
    options = ("--target", target, "--no-bench", "--no-verify", "-q", "--calib-samples", "64", *flags)
    done = onnxcomp("optimize", model, "--data", data, "--passes", passes, "-o", out, *options, cwd=folder)
    if done.returncode:
        print(f"{model.stem} {variant}: {done.stderr.strip()}", file=sys.stderr)
        return None
    return out


def rows(found: BenchTable, words: str) -> Iterator[list[str]]:
    """Lines of the table: one a variant and setting."""
    for row in found.rows:
        for variant, one in zip(row.variants[1:], row.benchmarks, strict=True):
            low, high = one.speedup_interval
            assert one.footprints is not None
            assert one.placement is not None
            taken, nodes = one.footprints[1], one.placement[1]
            yield [
                short_name(one.provider),
                f"{variant.label}{f', {words}' if words else ''}",
                str(one.batch),
                f"{one.before_ms['p50']:.3f}",
                f"{one.after_ms['p50']:.3f} / {one.after_ms['p90']:.3f} / {one.after_ms['p99']:.3f}",
                f"{one.speedup:.2f} ({low:.2f} to {high:.2f})",
                f"{taken.load_seconds + taken.first_run_seconds:.2f} / {taken.reload_seconds:.2f}",
                ", ".join(f"{count} {short_name(name)}" for name, count in nodes.items()),
            ]


def measured(model: Path, variants: dict[str, Path], provider: str, folder: Path) -> Iterator[list[str]]:
    """All rows of one model on one provider."""
    for words, names, asked in PLANS[provider]:
        files = [model, *(variants[name] for name in names if name in variants)]
        if len(files) == 1:
            continue
        options = replace(asked, engine_cache=folder / "engines") if provider == TENSORRT else asked
        for batch in BATCHES:
            try:
                yield from rows(bench(files, providers=[provider], batches=[batch], acceleration=options), words)
            except OnnxcompError as error:  # a fixed batch, or an operator that cannot be recorded: said, not hidden
                print(f"{model.stem}, {provider}, batch {batch} {words}: {error.what}", file=sys.stderr)


def main(folder: Path) -> None:
    """Make every variant, measure it where it can run, write the table."""
    assets = need_assets()
    states = [usability(provider) for provider in (CPU, CUDA, TENSORRT)]
    for state in states:
        print(f"{state.provider}: {'usable' if state.usable else state.reason}")
    usable = [state.provider for state in states if state.usable]
    lines: list[list[str]] = []
    for name, (data, flags) in MODELS.items():
        model = assets / "models" / f"{name}.onnx"
        wanted = {variant for provider in usable for _, names, _ in PLANS[provider] for variant in names}
        variants = {v: file for v in sorted(wanted) if (file := made(model, assets / data, flags, v, folder))}
        for provider in usable:
            for line in measured(model, variants, provider, folder):
                print(" | ".join(line), flush=True)
                lines.append(line)
    head = ("provider", "model", "batch", "baseline p50 ms", "p50 / p90 / p99 ms", "speed-up (95 %)")
    text = table((*head, "load cold / cached, s", "nodes"), lines)
    missing = "\n".join(f"{state.provider} did not run: {state.reason}." for state in states if not state.usable)
    if {CUDA, TENSORRT} & set(usable):
        write_page(ROOT / "docs" / "providers.md", "providers", f"{text}\n\n{machine()['cpu']}.\n{missing}".rstrip())
    else:
        print(f"{text}\n{missing}\nno GPU provider runs here: docs/providers.md stays as it is")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
