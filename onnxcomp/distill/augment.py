"""Which other views of a picture train as well? Mirrored and shifted ones, made in the model's own input tensor.

A teacher sees the very views that the student sees, and many of them: that is what makes distillation work (Beyer et
al., "Knowledge distillation: a good teacher is patient and consistent", 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxcomp.errors import DataError
from onnxcomp.graph.ir import Array

Way = Literal["flip", "crop"]
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Augment:
    """How views are made.

    Attributes:
        ways: `flip` mirrors left and right half of the time, `crop` shifts by up to `padding` pixels each way.
        padding: pixels of zeros around the picture before it is cut out again.
    """

    ways: tuple[Way, ...] = ()
    padding: int = 4

    def __bool__(self) -> bool:
        return bool(self.ways)

    def views(self, feeds: Mapping[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        """Another view of every sample of a batch; what is no picture stays as it is.

        Args:
            feeds: by input name; float arrays [n, c, h, w] or [n, h, w, c] are pictures.

        Raises:
            DataError: no input holds pictures.
        """
        if not self.ways:
            return dict(feeds)
        found = dict(feeds)
        axes = {name: spatial_axes(array) for name, array in feeds.items()}
        pictures = [name for name, places in axes.items() if places is not None]
        if not pictures:
            raise DataError(
                "there are no pictures to mirror or shift",
                where=", ".join(f"input {name} {list(array.shape)}" for name, array in feeds.items()),
                do="leave augment out",
            )
        count = len(feeds[pictures[0]])
        mirrored = generator.random(count) < 0.5 if "flip" in self.ways else np.zeros(count, bool)
        reach = self.padding if "crop" in self.ways else 0
        shifts = generator.integers(-reach, reach + 1, (count, 2))
        for name in pictures:
            found[name] = _moved(feeds[name], axes[name] or (2, 3), mirrored, shifts)
        return found


def spatial_axes(array: Array) -> tuple[int, int] | None:
    """Axes of height and width of a batch of pictures; None where it holds something else."""
    return picture_axes(array.shape) if array.dtype.kind == "f" else None


def picture_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """As `spatial_axes`, by the shape of floats."""
    if len(shape) != 4:
        return None
    if shape[1] in CHANNELS:
        return 2, 3
    return (1, 2) if shape[3] in CHANNELS else None


def _moved(batch: Array, axes: tuple[int, int], mirrored: Array, shifts: Array) -> Array:
    result = np.zeros_like(batch)
    for index, picture in enumerate(batch):
        view = np.flip(picture, axes[1] - 1) if mirrored[index] else picture
        source, target = [slice(None)] * 3, [slice(None)] * 3
        for axis, shift in zip(axes, shifts[index], strict=True):
            size = batch.shape[axis]
            step = int(np.clip(shift, -size, size))
            source[axis - 1] = slice(max(0, -step), size - max(0, step))
            target[axis - 1] = slice(max(0, step), size - max(0, -step))
        result[index][tuple(target)] = view[tuple(source)]
    return result
