"""Which elements of a weight share a scale, and how is a weight read and written a piece at a time?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxcomp.graph.coded import Coded
from onnxcomp.graph.ir import Array, Constant
from onnxcomp.ops.facts import Weight

PIECE_ELEMENTS = 4 * 2**20  # 16 MiB of float32


@dataclass(frozen=True)
class Layout:
    """A weight seen as rows: what is summed into one output, or looked up at once, stands in one row.

    Attributes:
        shape: of the weight; the groups of a transposed convolution, which lie along its summed axis, are an axis of
            their own.
        inner: axes along a row, ascending.
        block: elements that share a scale; a row where it is not cut.
    """

    shape: tuple[int, ...]
    inner: tuple[int, ...]
    block: int

    @classmethod
    def of(cls, shape: tuple[int, ...], weight: Weight, block: int, *, exact: bool = False) -> Layout:
        """The layout of a weight in blocks of at most `block` elements; 0 leaves rows whole.

        Blocks are made equal, so that the last one is not mostly padding; `exact` keeps the size given. Rows whose
        axes do not lie side by side in the file stay whole.
        """
        rank = len(shape)
        inner = tuple(sorted(axis % rank for axis in weight.in_axes))
        if _grouped(weight):
            shape = (weight.group, shape[0] // weight.group, *shape[1:])
            inner = tuple(axis + 1 for axis in inner)
        columns = prod(shape[axis] for axis in inner)
        side_by_side = inner == tuple(range(inner[0], inner[-1] + 1))
        if not block or not side_by_side or (columns <= block and not exact):
            return cls(shape, inner, columns)
        return cls(shape, inner, block if exact else -(-columns // -(-columns // block)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Axes that count rows."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.inner)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return prod(self.shape[axis] for axis in self.kept)

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return prod(self.shape[axis] for axis in self.inner)

    @property
    def blocks(self) -> int:
        """Blocks of a row; the last one may be padded."""
        return -(-self.columns // self.block) if self.block else 0

    @property
    def cut(self) -> bool:
        """Whether a row has more than one scale, or padding."""
        return self.blocks * self.block != self.columns or self.blocks > 1

    def pieces(self, most: int = PIECE_ELEMENTS) -> Iterator[slice]:
        """Slices of the longest axis that counts rows, so that a piece has at most about `most` elements."""
        if not self.kept:
            yield slice(0, 1)
            return
        length = self.shape[self.sliced]
        step = max(1, most // max(1, prod(self.shape) // max(1, length)))
        for start in range(0, length, step):
            yield slice(start, min(start + step, length))

    @property
    def sliced(self) -> int:
        """The axis that `pieces` cuts; -1 where the whole weight is one row."""
        return max(self.kept, key=lambda axis: (self.shape[axis], -axis)) if self.kept else -1

    def read(self, values: Array, piece: slice) -> Array:
        """Rows of a piece: a float32 copy, [rows, columns]."""
        whole = values.reshape(self.shape)
        part = whole[self._at(piece)] if self.kept else whole
        turned = part.transpose((*self.kept, *self.inner))
        return np.array(turned, np.float32, order="C").reshape(-1, self.columns)

    def unread(self, rows: Array, piece: slice, into: Array) -> None:
        """Write rows to their places in an array of the weight's shape."""
        order = (*self.kept, *self.inner)
        whole = into.reshape(self.shape)  # a view: what is written into is contiguous
        target = whole[self._at(piece)] if self.kept else whole
        moved = rows.reshape([target.shape[axis] for axis in order]).transpose(np.argsort(order))
        target[...] = moved

    def gram_order(self, weight: Weight) -> Array:
        """For each column, its place in a row of `Weight.to_matrix`."""
        moved = int(_grouped(weight))
        rank = len(self.shape) - moved
        given = [axis % rank + moved for axis in weight.in_axes]
        places = np.arange(self.columns).reshape([self.shape[axis] for axis in given])
        return places.transpose(np.argsort(given)).reshape(-1)

    def _at(self, piece: slice) -> tuple[slice, ...]:
        return tuple(piece if axis == self.sliced else slice(None) for axis in range(len(self.shape)))


def _grouped(weight: Weight) -> bool:
    """Whether the first axis, which is summed over, holds one part for each group."""
    return weight.group > 1 and 0 in weight.in_axes


@dataclass
class Assembly:
    """Gathers the codes and scales of rows into arrays that `CodedWriter` takes.

    Attributes:
        layout: of the weight.
        codes: uint8, in the weight's shape, or with the row's axes replaced by (blocks, block).
        scales: float32 that broadcast against codes.
    """

    layout: Layout
    codes: Array = field(init=False)
    scales: Array = field(init=False)

    def __post_init__(self) -> None:
        layout, shape = self.layout, self.layout.shape
        if layout.cut:
            first, last = layout.inner[0], layout.inner[-1]
            self.codes = np.empty((*shape[:first], layout.blocks, layout.block, *shape[last + 1 :]), np.uint8)
            self.scales = np.empty((*shape[:first], layout.blocks, 1, *shape[last + 1 :]), np.float32)
        else:
            self.codes = np.empty(shape, np.uint8)
            self.scales = np.empty([1 if a in layout.inner else d for a, d in enumerate(shape)], np.float32)

    def put(self, piece: slice, codes: Array, scales: Array) -> None:
        """Codes [rows, blocks, block] and scales [rows, blocks] of one piece."""
        layout = self.layout
        if not layout.cut:
            layout.unread(codes, piece, self.codes)
            _place(layout, piece, self.scales, scales, [1] * len(layout.inner), layout.inner)
            return
        first = layout.inner[0]
        _place(layout, piece, self.codes, codes, [layout.blocks, layout.block], (first, first + 1))
        _place(layout, piece, self.scales, scales, [layout.blocks, 1], (first, first + 1))

    def coded(self, bits: int, zero: float) -> Coded:
        """What was put together, ready to be written."""
        layout = self.layout
        joined = layout.blocks * layout.block
        if joined == layout.columns:
            return Coded(self.codes, bits, zero, self.scales)
        first, last = layout.inner[0], layout.inner[-1]
        padded = (*layout.shape[:first], joined, *layout.shape[last + 1 :])
        return Coded(self.codes, bits, zero, self.scales, padded=padded, axis=first, columns=layout.columns)


def _place(layout: Layout, piece: slice, into: Array, rows: Array, sizes: Sequence[int], places: Sequence[int]) -> None:
    """Write rows whose elements are shaped `sizes` to the axes `places` of an array; its other axes count rows."""
    counted = [axis for axis in range(into.ndim) if axis not in places]
    at = [slice(None)] * into.ndim
    if layout.kept:
        at[counted[layout.kept.index(layout.sliced)]] = piece
    target = into[tuple(at)]
    order = (*counted, *places)
    shape = [*(target.shape[axis] for axis in counted), *sizes]
    target[...] = rows.reshape(shape).transpose(np.argsort(order))


class Reader:
    """Reads a weight by pieces; one that is mapped from a file afresh each time, so that its pages are let go of."""

    def __init__(self, constant: Constant) -> None:
        stored = constant.stored
        self.constant = constant
        self.mapped = stored is not None and bool(getattr(stored.proto, "external_data", None))
        self.held = None if self.mapped else constant.values

    def rows(self, layout: Layout, piece: slice) -> Array:
        """Rows of a piece as float32 [rows, columns]."""
        return layout.read(self.constant.values if self.held is None else self.held, piece)
