"""Which sums along an inner axis are faster as a product with a row of ones?"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from onnxcomp.graph.ir import Graph, Node, Tensor, is_onnx
from onnxcomp.graph.rewriting import Operand, Pool, Site, rewrite
from onnxcomp.graph.shapes import infer, one_sample
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext, Stage
from onnxcomp.targets.table import find

OPS = ("ReduceSum", "ReduceMean")
LEAST = 1 << 13  # values of one sample; of fewer the call takes most of the time
AXES_AS_INPUT = 13  # the opset since which a Squeeze reads its axes
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class MultiplySums(Pass):
    """A ReduceSum or ReduceMean along axes that others follow, and none precedes, is a MatMul with a row of ones.

    ONNX Runtime's CPU provider adds such values one column after another where there is one block of them alone: for
    [1, 512, 256] and axis 1, a normalization over channels that come first, it takes 144 us, the product 15; for
    [1, 64, 56, 56] 82 and 20, for [1, 7, 7, 1280] and axes 1 and 2, a TensorFlow model's mean over an image, 30 and 10
    (benchmarks/multiply_sums.py, one thread, AVX-512). Along the last axis, and where several blocks lie before one
    another, it is fast as it is.
    """

    name: ClassVar[str] = "multiply-sums"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE
    stage: ClassVar[Stage] = Stage.INTEGER  # a row of ones is no weight that another pass should look at

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Rewrite every such sum of the main graph."""
        outcome = Outcome()
        wanted = self.selects(graph)
        found = [node for node in graph.nodes if node.op in OPS and is_onnx(node.domain) and wanted(node)]
        if not found or not find(context.target).runs_here:
            return outcome
        shapes, pool = infer(graph, declared=False), Pool(graph)
        usual = infer(graph, one_sample(graph, context.sample_shapes)) if context.sample_shapes else shapes
        for node in found:
            if _pays(node, usual) and rewrite(graph, node, _product, shapes, pool):
                outcome.change(node, "a product with ones")
        if outcome.changes:
            graph.sort()
            outcome.summary = f"{len(outcome.changes)} of {len(found)} sums are products with ones"
        return outcome


def _axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes that are added up, in order; none where they are not known."""
    values = node.attrs.get("axes", ())
    if len(node.inputs) > 1 and node.inputs[1].name:
        given = node.constant(1)
        values = () if given is None else given.values.reshape(-1)
    return tuple(sorted(int(axis) % rank for axis in values))


def _parted(node: Node, shapes: Shapes) -> tuple[tuple[int | str | None, ...], int, int] | None:
    """The input's shape, and the first axis that is added up and the first behind; None where they are not in a row."""
    shape = shapes.shape(node.inputs[0])
    if not shape or shapes.dtype(node.inputs[0]) != FLOAT32:
        return None
    axes = _axes(node, len(shape))
    if not axes or axes != tuple(range(axes[0], axes[-1] + 1)) or axes[-1] == len(shape) - 1:
        return None
    return tuple(shape), axes[0], axes[-1] + 1


def _pays(node: Node, shapes: Shapes) -> bool:
    """Whether one block alone is added up, as far as sizes are known, of enough values."""
    parted = _parted(node, shapes)
    if parted is None:
        return False
    shape, first, behind = parted
    known = [size if isinstance(size, int) else 1 for size in shape]
    return prod(known[:first]) == 1 and prod(known[first:behind]) > 1 and prod(known[first:]) >= LEAST


def _product(site: Site) -> Tensor | None:
    """ones [1, R] times x [..., R, K]; None where a size that has to be written is not known.

    A sum of so many as there are at run time takes so many ones.
    """
    parted = _parted(site.node, site.shapes)
    if parted is None:
        return None
    shape, first, behind = parted
    inner, after = shape[first:behind], [size for size in shape[behind:] if isinstance(size, int)]
    plain = len(inner) == 1 and behind == len(shape) - 1
    open_ended = not all(isinstance(size, int) for size in inner)
    if open_ended and (not plain or site.node.op == "ReduceMean"):
        return None
    if not plain and len(after) < len(shape) - behind:
        return None
    count = prod(size for size in inner if isinstance(size, int))
    x, before = site.x, [0] * first  # 0: as it is
    if not plain:
        x = site.reshape(x, [*before, count, prod(after)])
    if open_ended:
        size = site.slice(site.op("Shape", x), 0, first, behind)
        ones: Operand = site.op("Expand", np.ones((1, 1), np.float32), site.op("Concat", [1], size, axis=0))
    else:
        ones = np.full((1, count), 1.0 if site.node.op == "ReduceSum" else 1.0 / count, np.float32)
    total: Tensor = site.op("MatMul", ones, x)  # [..., 1, K]
    if site.attr("keepdims", 1):
        return total if plain else site.reshape(total, [*before, *[1] * len(inner), *after])
    if not plain:
        return site.reshape(total, [*before, *after])
    return _squeezed(site, total, first)


def _squeezed(site: Site, x: Tensor, axis: int) -> Tensor:
    if site.opset < AXES_AS_INPUT:
        found: Tensor = site.op("Squeeze", x, axes=[axis])
    else:
        found = site.op("Squeeze", x, [axis])
    return found
