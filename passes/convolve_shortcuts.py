"""Which shortcuts of a residual network slice and pad, where a convolution of size 1 copies faster?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Node, Tensor
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.strided import Strided, strided
from onnxcomp.graph.sweeping import Here, sweep, unlink
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.targets.table import find

MOST = 64 * 64  # weights; copying by multiplication costs their number for each place of the image
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class ConvolveShortcuts(Pass):
    """No shortcut around a residual block takes every s-th place by Slices and fills channels with zeros by a Pad.

    Such a shortcut without parameters ("option A" of He et al., arXiv:1512.03385) is one Conv with a kernel of 1,
    stride s and a weight of ones and zeros. ONNX Runtime's CPU provider then stays in the layout of its convolutions,
    adds in the Conv itself in float, and copies the channels of a place at once in integers: at most 0.6 of the time
    of Slices and Pad (benchmarks/convolve_shortcuts.py, one thread, AVX2), as long as the weight is small. Numbers
    are copied as they are; where one is infinite or NaN, the other channels of its place are NaN, too.
    """

    name: ClassVar[str] = "convolve-shortcuts"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every such shortcut."""
        outcome = Outcome()
        wanted = self.selects(graph)
        if not find(context.target).runs_here or not any(_may_end(node) for node in graph.walk()):
            return outcome
        shapes = infer(graph, declared=False)
        outputs: set[Tensor] = {t for scope in graph.scopes() for t in scope.outputs}

        def convolve(node: Node, here: Here) -> Collection[Node]:
            found = _shortcut(node, shapes, graph.opset) if _may_end(node) and wanted(node) else None
            if found is None or not _alone(found.nodes, here, outputs):
                return ()
            if found.weight.size > MOST:
                outcome.skip(node, f"as a Conv it would multiply with {found.weight.size:,} weights at each place")
                return ()
            _convolve(graph, here.scope, node, found)
            outcome.change(node, f"one Conv with {len(found.nodes)} nodes in it")
            unlink(*found.nodes)
            return found.nodes

        sweep(graph, convolve, backwards=True)
        if outcome.changes:
            outcome.summary = f"{len(outcome.changes)} shortcuts became a Conv"
        return outcome


@dataclass(frozen=True)
class Shortcut:
    """A part of the graph that copies places of an image.

    Attributes:
        places: which ones.
        weight: [channels made, channels read], ones and zeros.
        nodes: what does it now, the last one first.
    """

    places: Strided
    weight: Array
    nodes: tuple[Node, ...]


def _may_end(node: Node) -> bool:
    """Whether a node is the last of a shortcut, at first sight: a residual sum alone reads it."""
    readers = node.outputs[0].consumers if node.op in ("Slice", "Pad") and node.outputs else []
    return len(readers) == 1 and readers[0].op in ("Add", "Sum")


def _shortcut(node: Node, shapes: Shapes, opset: int) -> Shortcut | None:
    """What a shortcut copies; None where that is not certain, or is not every s-th place from the first."""
    taken, rank = node.outputs[0], shapes.rank(node.outputs[0])
    if rank is None or rank < 3 or shapes.dtype(taken) != FLOAT:
        return None
    padding = _padding(node, rank, opset) if node.op == "Pad" else (0, 0)
    if padding is None:
        return None
    places = strided(node.inputs[0] if node.op == "Pad" else taken, rank, shapes, opset)
    shape = None if places is None else shapes.shape(places.source)
    if places is None or shape is None or not isinstance(shape[1], int) or any(places.offsets):
        return None
    front, back = padding
    weight = np.zeros((front + shape[1] + back, shape[1]), FLOAT)
    weight[np.arange(shape[1]) + front, np.arange(shape[1])] = 1
    return Shortcut(places, weight, (node, *places.chain) if node.op == "Pad" else places.chain)


def _padding(node: Node, rank: int, opset: int) -> tuple[int, int] | None:
    """Channels of zeros that a Pad puts in front and behind; None where it pads anything else."""
    if str(node.attrs.get("mode", "constant")) != "constant":
        return None
    if opset < 11:
        amounts, value = node.attrs.get("pads"), node.attrs.get("value", 0.0)
    else:
        given, filled = node.constant(1), node.constant(2)
        if node.input(2) is not None and filled is None:
            return None
        amounts = None if given is None else given.values.reshape(-1).tolist()
        value = 0.0 if filled is None else filled.values.reshape(-1)[0]
    axes: list[int] | None = list(range(rank))
    if node.input(3) is not None:
        named = node.constant(3)
        axes = None if named is None else [int(a) % rank for a in named.values.reshape(-1)]
    if amounts is None or axes is None or value != 0 or len(amounts) != 2 * len(axes):
        return None
    whole = np.zeros((2, rank), np.int64)
    whole[:, axes] = np.reshape(amounts, (2, -1))
    front, back = (int(v) for v in whole[:, 1])
    whole[:, 1] = 0
    return None if whole.any() or min(front, back) < 0 else (front, back)


def _alone(nodes: Collection[Node], here: Here, outputs: set[Tensor]) -> bool:
    """Whether all nodes stand here and nothing else reads what they hand on."""
    return all(
        node in here.nodes and len(node.outputs[0].consumers) == 1 and node.outputs[0] not in outputs for node in nodes
    )


def _convolve(graph: Graph, scope: Graph, node: Node, found: Shortcut) -> None:
    """Put the Conv in place of a shortcut that ends at a node."""
    spatial = len(found.places.steps)
    weight = graph.add_constant(f"{node.name}_weight", found.weight.reshape(*found.weight.shape, *[1] * spatial))
    attrs = {"kernel_shape": [1] * spatial, "strides": list(found.places.steps)}
    made = [node.outputs[0]]
    scope.add_node("Conv", [found.places.source, weight], name=f"{node.name}_conv", attrs=attrs, outputs=made)
