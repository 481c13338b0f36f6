"""Where does a convolution read strided slices that one convolution with a larger stride could read directly?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Node, Tensor
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.strided import strided
from onnxcomp.graph.sweeping import Here, sweep, unlink
from onnxcomp.graph.types import Shapes
from onnxcomp.layers.affine import linear, rewrite
from onnxcomp.layers.layer import UnfitError
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.ops.facts import Operators


@dataclass(frozen=True)
class FuseSlices(Pass):
    """No Conv reads an image that strided Slices and a Concat, or a SpaceToDepth, have folded into channels.

    Such a "focus" stem of factor f with a Conv of kernel k, stride s and padding p is one Conv on the image itself, of
    kernel f k, stride f s and padding f p: W'[o, c, f i + a, f j + b] = W[o, (a, b), c, i, j]. It multiplies as often
    and copies nothing. Every offset (a, b) must be there once.
    """

    name: ClassVar[str] = "fuse-slices"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Fuse every such Conv."""
        outcome = Outcome()
        wanted = self.selects(graph)
        outputs: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs}
        shapes: list[Shapes] = []  # inferred when first asked for

        def fuse(node: Node, here: Here) -> Collection[Node]:
            maker = node.inputs[0].producer if node.op == "Conv" and node.inputs else None
            if maker is None or maker not in here.nodes or maker.op not in ("Concat", "SpaceToDepth"):
                return ()
            shapes[:] = shapes or [infer(graph)]
            parts = _folded(maker, shapes[0], graph.opset)
            if parts is None or not (wanted(node) and wanted(maker)):
                return ()
            return _unread(maker, outputs) if _fuse(graph, node, parts, context.operators, outcome) else ()

        sweep(graph, fuse)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} Conv read their image directly"
        return outcome


@dataclass(frozen=True)
class Folded:
    """An image [N, C, H, W] folded into channels.

    Attributes:
        source: the image.
        factor: f of (height, width), or of one spatial axis.
        offsets: for each block of C channels, where in a cell of the factor's size it was taken.
    """

    source: Tensor
    factor: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Blocks of channels."""
        return len(self.offsets)


def _fuse(graph: Graph, node: Node, parts: Folded, operators: Operators, outcome: Outcome) -> bool:
    """Let a Conv read the image; whether it could."""
    try:
        layer = linear(graph, node, operators, graph.kept_inputs.keys())
        weight = _unfolded(layer.constant.values, node, parts)
    except UnfitError as error:
        outcome.skip(node, str(error))
        return False
    rewrite(graph, layer, weight, None)
    _enlarge(node, parts.factor, weight.shape[2:])
    node.inputs[0] = parts.source
    outcome.change(node, f"reads {parts.source.name} directly: {parts.count} slices fused")
    return True


def _folded(maker: Node, shapes: Shapes, opset: int) -> Folded | None:
    """What a Concat of strided slices, or a SpaceToDepth, folds; None where it does not fold one whole image."""
    if maker.op == "SpaceToDepth":
        size = int(maker.attrs["blocksize"])
        return Folded(maker.inputs[0], (size, size), tuple((a, b) for a in range(size) for b in range(size)))
    rank = shapes.rank(maker.outputs[0])
    if rank is None or rank < 3 or int(maker.attrs.get("axis", 1)) % rank != 1:
        return None
    slices = [strided(tensor, rank, shapes, opset) for tensor in maker.inputs]
    if any(s is None for s in slices):
        return None
    found = [s for s in slices if s is not None]
    source, factor = found[0].source, found[0].steps
    offsets = tuple(s.offsets for s in found)
    if any(s.source is not source or s.steps != factor for s in found) or prod(factor) < 2:
        return None
    if len(set(offsets)) != len(offsets) or len(offsets) != prod(factor):
        return None  # with all offsets, slices of equal size mean that the factor divides the image
    return Folded(source, factor, offsets)


def _unfolded(values: Array, node: Node, parts: Folded) -> Array:
    """The weight [M, blocks * C, k...] as [M, C, f k...].

    Raises:
        UnfitError: the Conv has groups, dilations or automatic padding.
    """
    if int(node.attrs.get("group", 1)) != 1 or any(d != 1 for d in node.attrs.get("dilations", [1])):
        raise UnfitError("it has groups or dilations")
    if str(node.attrs.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        raise UnfitError("its padding is automatic")
    blocks = values.reshape(values.shape[0], parts.count, -1, *values.shape[2:])  # [M, blocks, C, k...]
    kernel = values.shape[2:]
    large = np.zeros(
        (*blocks.shape[::2][:2], *(k * f for k, f in zip(kernel, parts.factor, strict=True))), values.dtype
    )
    for block, offset in enumerate(parts.offsets):
        places = tuple(slice(a, None, f) for a, f in zip(offset, parts.factor, strict=True))
        large[(slice(None), slice(None), *places)] = blocks[:, block]
    return large


def _enlarge(node: Node, factor: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """Kernel, stride and padding of a Conv, times the factor."""
    spatial = len(factor)
    strides = node.attrs.get("strides") or [1] * spatial
    node.attrs["kernel_shape"] = list(kernel)
    node.attrs["strides"] = [int(s) * f for s, f in zip(strides, factor, strict=True)]
    pads = node.attrs.get("pads")
    if pads is not None:
        node.attrs["pads"] = [int(p) * f for p, f in zip(pads, (*factor, *factor), strict=True)]


def _unread(node: Node, outputs: set[Tensor]) -> set[Node]:
    """The node and what it alone reads, as far as nothing else needs it; unlinked."""
    gone: set[Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in gone or any(t.consumers or t in outputs for t in current.outputs):
            continue
        makers = [t.producer for t in current.inputs if t.producer is not None]
        unlink(current)
        gone.add(current)
        pending += [maker for maker in makers if maker.op == "Slice"]
    return gone
