"""Does another runtime compute what the model says? The same file there and on ONNX Runtime's processor, compared.

A runtime may take a model and pass over what it does not know of it. Both models of a comparison then go wrong alike,
and nothing between them shows it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxcomp.data.dataset import Samples
from onnxcomp.errors import ModelError
from onnxcomp.runtime.providers import CPU, full_name
from onnxcomp.verify.fidelity import Closeness
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import Runner

SAMPLES = 16
LEAST_DB = 30.0  # between runtimes in float32 80 dB and more are common; a quantized model may lose half of that


def otherwise(model: Path | OpenedModel, samples: Samples, *, provider: str, threads: int = 0) -> tuple[str, ...]:
    """What to say where a provider gives other results than ONNX Runtime's processor for the same model.

    Args:
        model: the file, before anything was changed.
        samples: the first `SAMPLES` are run.
        provider: whose results are in question.
        threads: inside one operator; 0 means every usable core.

    Returns:
        One sentence; none where both agree to `LEAST_DB`, for the processor itself, or where it does not run the model.

    Raises:
        ModelError: the provider does not run the model.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    if full_name(provider) == CPU:
        return ()
    there = Runner(model, provider=provider, threads=threads)
    try:
        here = Runner(model, threads=threads)
        right = list(here.answers(samples.head(SAMPLES)))
    except ModelError:
        return ()
    closeness = Closeness(here.varying)
    for one, other in zip(right, there.answers(samples.head(SAMPLES)), strict=True):
        closeness.add(replace(one, outputs=(one.outputs[0], other.outputs[0])))
    worst, output = min(
        ((one.decibels, name) for name, one in closeness.result("data").outputs.items() if one.decibels is not None),
        default=(LEAST_DB, ""),
    )
    if worst >= LEAST_DB:
        return ()
    return (
        f"{full_name(provider)} computes another function than ONNX Runtime from the original itself: "
        f"{worst:.1f} dB in output {output}",
    )
