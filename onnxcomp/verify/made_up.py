"""Which made-up samples does a model take? Free dimensions are guessed, and longer ones tried where it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxcomp.data.dataset import Dataset
from onnxcomp.data.inputs import InputSpec
from onnxcomp.data.synthetic import LONGER, SEQUENCE, random_data
from onnxcomp.errors import DataError, ModelError
from onnxcomp.runtime.machine import check_room
from onnxcomp.verify.opened import OpenedModel


def made_up_for(
    model: Path | OpenedModel,
    inputs: Sequence[InputSpec],
    samples: int,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Dataset:
    """Made-up samples that the model runs on, as `random_data` draws them.

    A model whose sizes are all known is not run here: it says itself what it thinks of its data.

    Raises:
        UsageError: so many do not fit into half of the machine's memory.
        MemoryError: not even one does.
        ModelError: the model does not load.
        DataError: it runs with none of the guessed sizes, or no data can be made up for an input.
    """
    check_room(samples, random_data(inputs, 1, seed, shapes).reader.sample_bytes, "--calib-samples, --batch")
    first = random_data(inputs, samples, seed, shapes)
    if not first.guesses:
        return first
    session = OpenedModel.of(model).plain()
    refused: DataError | ModelError | None = None
    for sequence in (SEQUENCE, *LONGER):
        made = random_data(inputs, samples, seed, shapes, sequence=sequence)
        if refused is not None and made.guesses == first.guesses:
            break  # no guess hangs on the length
        try:
            session.run(next(made.samples().batches(1)))
        except (DataError, ModelError) as error:
            refused = refused or error
        else:
            return made
    assert refused is not None
    free = " ".join(f"--shape {spec.name}=..." for spec in inputs if not spec.settled)
    raise DataError(
        f"sizes had to be guessed, and the model does not run with them: {refused.what}",
        where=refused.where,
        do=f"give the sizes it takes: {free}; or real samples with --data",
    )
