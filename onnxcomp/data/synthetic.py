"""Made-up samples, for checks of structure and for those who ask for them: they are never taken for data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from onnxcomp.data.dataset import Dataset
from onnxcomp.data.feeds import Array, Feed
from onnxcomp.data.inputs import Dim, InputSpec, with_shapes
from onnxcomp.errors import DataError

SPATIAL, SEQUENCE = 224, 16  # sizes for free dimensions of inputs with four dimensions or more, and of others
MOST_BYTES = 2**30  # of one input of one sample; larger ones would be drawn for half a minute each
LONGER = (64, 256, 1024)  # sequences to try where a model does not take the first guess


class RandomReader:
    """Rows (or whole feeds, where inputs share no batch axis) drawn from a generator of their own: seed and index."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[InputSpec], n: int, seed: int) -> None:
        self._shapes, self._inputs, self._seed = shapes, inputs, seed
        leading = {0 if spec.axis is None or not spec.rank else spec.batch for spec in inputs}
        # one leading size for all inputs: a batch; anything else: every sample is a feed of its own
        self.rows = len(leading) == 1 and 0 not in leading
        self.batch: int | None = leading.pop() if self.rows else 1
        self._n = -(-n // (self.batch or 1)) * (self.batch or 1)  # whole batches

    def __len__(self) -> int:
        return self._n

    def read(self, indices: npt.NDArray[np.intp], *, finite: bool = True) -> Feed:
        """One feed of these samples."""
        feed: Feed = {}
        for place, spec in enumerate(self._inputs):
            shape = self._shapes[spec.name]
            axis = spec.axis or 0
            one = (*shape[:axis], *shape[axis + 1 :]) if self.rows else shape
            drawn = [self._draw(spec, one, place, int(i)) for i in indices]
            feed[spec.name] = np.stack(drawn, axis) if self.rows else drawn[0]
        return feed

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return sum(prod(self._shapes[s.name]) * s.dtype.itemsize // (self.batch or 1) for s in self._inputs)

    def _draw(self, spec: InputSpec, shape: tuple[int, ...], place: int, index: int) -> Array:
        generator = np.random.default_rng([self._seed, place, index])
        if spec.dtype.kind in "biu" or spec.dtype.name.startswith(("int", "uint")):
            # 0 and 1 are valid as masks, segment numbers and indices alike; rows of a table are known to be there
            highest = min(max(2, spec.rows), np.iinfo(spec.dtype).max) if spec.dtype.kind in "iu" else 2
            return generator.integers(0, highest, shape).astype(spec.dtype)
        return generator.standard_normal(shape, np.float32).astype(spec.dtype)


def random_data(
    inputs: Sequence[InputSpec],
    samples: int,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    sequence: int = SEQUENCE,
) -> Dataset:
    """Made-up samples: floats standard normal, integers 0 or 1, or rows of the table they look up; source "synthetic".

    Free dimensions that `shapes` does not give get a guessed size, the same for the same name; `sequence` is the guess
    for inputs of fewer than four dimensions.

    Raises:
        DataError: the model takes strings, an input of unknown rank without a shape, or one of impossible sizes.
    """
    specs = with_shapes(inputs, shapes)
    for spec in specs:
        if spec.dtype == np.dtype(object) or spec.shape is None:
            raise DataError(
                f"no data can be made up for the input {spec}",
                where=f"the input {spec.name}",
                do="give data with --data" if spec.shape else f"give its shape: --shape {spec.name}=1x3x224x224",
            )
    concrete, guesses = guessed_shapes(specs, sequence=sequence)
    for spec in specs:
        # numpy wants the sizes beside an empty axis to fit, too
        sizes = [max(size, 1) for size in concrete[spec.name]]
        count = -1 if min(concrete[spec.name], default=1) < 0 else prod(sizes)
        if not 0 <= count * spec.dtype.itemsize <= MOST_BYTES:
            size = (
                "of such sizes there are none" if count < 0 else f"one would take {count * spec.dtype.itemsize:,} bytes"
            )
            raise DataError(
                f"no data are made up for the input {spec}: {size}",
                where=f"the input {spec.name}",
                do="give its shape with --shape, or data with --data",
            )
    reader = RandomReader(concrete, specs, samples, seed)
    return Dataset("synthetic", specs, reader, guesses=guesses, synthetic=True)


def guessed_shapes(
    specs: Sequence[InputSpec], *, sequence: int = SEQUENCE
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The shape of one sample for every input of known rank, and a line for each size that had to be guessed."""
    # a size is drawn once for each name; what counts the batch is 1 wherever it stands
    batches = [spec.shape[spec.axis] for spec in specs if spec.shape and spec.axis is not None]
    sizes: dict[int | str, int] = dict.fromkeys((size for size in batches if size), 1)
    guesses: list[str] = []
    return {s.name: _concrete(s, s.shape, sizes, guesses, sequence) for s in specs if s.shape is not None}, guesses


def _concrete(
    spec: InputSpec, dims: Sequence[Dim], sizes: dict[int | str, int], guesses: list[str], sequence: int
) -> tuple[int, ...]:
    result = []
    for axis, dim in enumerate(dims):
        known = dim if isinstance(dim, int) else 1 if axis == spec.axis else sizes.get(dim) if dim else None
        size = _free_size(spec, axis, sequence) if known is None else known
        if known is None:
            sizes[dim or f"{spec.name} {axis}"] = size
            guesses.append(
                f"{dim or f'dimension {axis}'} of {spec.name} = {size} guessed: override with --shape {spec.name}=..."
            )
        result.append(size)
    return tuple(result)


def _free_size(spec: InputSpec, axis: int, sequence: int) -> int:
    assert spec.shape is not None
    if len(spec.shape) < 4:
        return sequence
    # the one free dimension beside two fixed equal ones, or at the place of channels, counts channels
    channels_last = spec.fixed(1) is not None and spec.fixed(1) not in (1, 3, 4) and axis == len(spec.shape) - 1
    return 3 if axis == 1 or channels_last else SPATIAL
