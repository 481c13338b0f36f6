"""Does the runtime compute what the model says? The same file run there and in another way, compared.

A runtime may take a model and pass over what it does not know of it, or its optimizer may take one pattern for another.
Both models of a comparison then go wrong alike, and nothing between them shows it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxcomp.data.dataset import Samples
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.providers import CPU, full_name
from onnxcomp.verify.fidelity import Closeness
from onnxcomp.verify.opened import OpenedModel
from onnxcomp.verify.pair import LARGE_BYTES, Answer, Runner

SAMPLES = 16
PLAIN_SAMPLES = 4  # without optimizations a model may take several times as long
LEAST_DB = 30.0  # between runtimes in float32 80 dB and more are common; a quantized model may lose half of that


def otherwise(model: Path | OpenedModel, samples: Samples, *, provider: str, threads: int = 0) -> tuple[str, ...]:
    """What to say where a provider gives other results for a model than the file says.

    ONNX Runtime's processor is asked by running the file with and without optimizations, any other provider by running
    the file on the processor as well.

    Args:
        model: the file, before anything was changed.
        samples: the first few are run.
        provider: whose results are in question.
        threads: inside one operator; 0 means every usable core.

    Returns:
        One sentence; none where both agree to `LEAST_DB`, or where the file does not run in the other way.

    Raises:
        ModelError: the provider does not run the model.
        EnvironmentLacksError: the provider does not run on this machine.
    """
    if full_name(provider) == CPU:
        found = _optimized(OpenedModel.of(model), samples.head(PLAIN_SAMPLES), threads)
        what = "ONNX Runtime's optimizations make another function of the original itself"
    else:
        found = _elsewhere(model, samples.head(SAMPLES), provider, threads)
        what = f"{full_name(provider)} computes another function than ONNX Runtime from the original itself"
    return () if found is None else (f"{what}: {found[0]:.1f} dB in output {found[1]}",)


def _elsewhere(model: Path | OpenedModel, samples: Samples, provider: str, threads: int) -> tuple[float, str] | None:
    """The worst output of a provider and its dB against the processor, where that is below `LEAST_DB`."""
    there = Runner(model, provider=provider, threads=threads)
    try:
        here = Runner(model, threads=threads)
        right = list(here.answers(samples))
    except ModelError:
        return None
    pairs = zip(right, there.answers(samples), strict=True)
    return _worst([replace(one, outputs=(one.outputs[0], other.outputs[0])) for one, other in pairs], here.varying)


def _optimized(model: OpenedModel, samples: Samples, threads: int) -> tuple[float, str] | None:
    """The worst output of the optimized model and its dB against the file as it stands, where that is below `LEAST_DB`.

    A model that does not answer the same question twice alike (it draws random numbers) is not compared, and none that
    is too large to be in memory twice.
    """
    if 2 * model.bytes > LARGE_BYTES:
        return None
    runner = Runner(model, threads=threads)
    answers = list(runner.answers(samples))
    again = list(runner.answers(samples))
    if _worst(
        [replace(a, outputs=(a.outputs[0], b.outputs[0])) for a, b in zip(answers, again, strict=True)], runner.varying
    ):
        return None
    try:
        plain = model.plain()
        pairs = [replace(one, outputs=(plain.run(one.inputs), one.outputs[0])) for one in answers]
    except (ModelError, DataError):
        return None
    return _worst(pairs, runner.varying)


def _worst(pairs: list[Answer], varying: frozenset[str]) -> tuple[float, str] | None:
    closeness = Closeness(varying)
    for pair in pairs:
        closeness.add(pair)
    found = ((one.decibels, name) for name, one in closeness.result("data").outputs.items() if one.decibels is not None)
    worst = min(found, default=None)
    return worst if worst is not None and worst[0] < LEAST_DB else None
