"""Which places of an image does a chain of Slices take?"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.graph.ir import Node, Tensor
from onnxcomp.graph.noops import TO_THE_END
from onnxcomp.graph.partial import slice_of
from onnxcomp.graph.types import Shapes


@dataclass(frozen=True)
class Strided:
    """Every s-th place of an image [N, C, ...] along its spatial axes, to the end of each.

    Attributes:
        source: the image.
        offsets, steps: the first place and s, for each spatial axis.
        chain: the Slices, the last one first.
    """

    source: Tensor
    offsets: tuple[int, ...]
    steps: tuple[int, ...]
    chain: tuple[Node, ...]


def strided(tensor: Tensor, rank: int, shapes: Shapes, opset: int) -> Strided | None:
    """What a chain of Slices takes for a tensor; None where there is none, or one that takes anything else."""
    chain: list[Node] = []
    while tensor.producer is not None and tensor.producer.op == "Slice":
        chain.append(tensor.producer)
        tensor = tensor.producer.inputs[0]
    offsets, steps = [0] * rank, [1] * rank
    for node in reversed(chain):
        parts = slice_of(node, opset)
        if parts is None:
            return None
        starts, ends, axes, strides = parts
        shape = shapes.shape(node.inputs[0])
        for start, end, given, stride in zip(starts, ends, axes or range(len(starts)), strides, strict=True):
            axis = given % rank
            size = shape[axis] if shape is not None else None
            whole = end >= size if isinstance(size, int) else end >= TO_THE_END
            if not whole or stride < 1 or not 0 <= start < stride:
                return None
            offsets[axis] += start * steps[axis]
            steps[axis] *= stride
    if not chain or steps[:2] != [1, 1]:
        return None
    return Strided(tensor, tuple(offsets[2:]), tuple(steps[2:]), tuple(chain))
