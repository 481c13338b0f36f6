"""How does a model exported for one sample a call take a batch? Sizes written into it grow, and a run proves it.

The batch lies along axis 0, sample after sample: a tensor is the per-sample tensors joined along axis 0. Most operators
keep that by themselves; those that are told sizes (Reshape, Expand, Resize) are told larger ones. What breaks it, such
as a Transpose of axis 0, is found by running the result beside the original.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.errors import OnnxcompError
from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Array, Graph, Node, Tensor
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators
from onnxcomp.runtime.session import open_session

TOLERANCE = 1e-4  # of the largest output; a mixed-up batch is off by its whole size


def is_fixed(graph: Graph, batch: int) -> bool:
    """Whether an input is declared to hold one sample, and more are wanted."""
    return batch > 1 and any(t.shape and t.shape[0] == 1 for t in graph.inputs)


def rebatched(graph: Graph, operators: Operators, one: Shapes, inputs: Mapping[str, tuple[int, ...]]) -> Graph | None:
    """A copy that takes a batch; None where it would not compute what the graph does with each sample.

    Args:
        graph: with static shapes for one sample a call.
        one: its shapes.
        inputs: input shapes of the batch.
    """
    copy = graph.clone()
    before = {t.name: t.shape for t in copy.inputs}
    grown = {name: shape[0] for name, shape in inputs.items() if shape and before[name] != shape}
    if len(set(grown.values())) != 1:
        return None
    batch = next(iter(grown.values()))
    carrying: set[Tensor] = {t for t in copy.inputs if t.name in grown}
    for node in list(copy.nodes):
        if carrying.isdisjoint(node.inputs):
            continue
        _grow(copy, node, one, carrying, batch)
        if operators.facts(node).elementwise or node.op == "MatMul":
            _repeat(copy, node, one, carrying, batch)
        carrying.update(t for t in node.outputs if t.name)
    for tensor in copy.inputs:
        tensor.shape = inputs[tensor.name]
    for tensor in (*copy.outputs, *(t for node in copy.nodes for t in node.outputs)):
        if tensor in carrying:
            tensor.shape, tensor.envelope = None, None
    copy.sort()
    return copy if _same(graph, copy, inputs, grown) else None


def _grow(graph: Graph, node: Node, one: Shapes, carrying: set[Tensor], batch: int) -> None:
    """Tell a node the sizes of a batch where it is told sizes."""
    shape = one.static(node.outputs[0])
    if not shape or node.domain:
        return
    if node.op in ("Reshape", "Expand") and node.inputs[0] in carrying:
        target = graph.add_constant(f"{node.name}_batch", np.array([shape[0] * batch, *shape[1:]], np.int64))
        node.inputs[1] = target
    elif node.op == "Resize" and node.constant(3) is not None and "axes" not in node.attrs:
        sizes = node.inputs[3].values
        node.inputs[3] = graph.add_constant(f"{node.name}_batch", np.array([sizes[0] * batch, *sizes[1:]], np.int64))
    elif node.op == "Concat" and int(node.attrs["axis"]) % len(shape) != 0:
        for port, tensor in enumerate(node.inputs):
            own = one.static(tensor)
            if tensor not in carrying and own is not None and own[0] == 1:
                sizes = graph.add_constant(f"{node.name}_batch", np.array([batch, *own[1:]], np.int64))
                node.inputs[port] = graph.add_node("Expand", [tensor, sizes], name=f"{node.name}_each").outputs[0]


def _repeat(graph: Graph, node: Node, one: Shapes, carrying: set[Tensor], batch: int) -> None:
    """Give every sample its copy of an operand that has something for each part of one sample, such as its windows."""
    shape = one.static(node.outputs[0])
    for port, tensor in enumerate(node.inputs):
        own = one.static(tensor) if tensor.name else None
        if shape and own and tensor not in carrying and len(own) == len(shape) and own[0] == shape[0] > 1:
            times = graph.add_constant(f"{node.name}_batch", np.array([batch, *[1] * (len(own) - 1)], np.int64))
            node.inputs[port] = graph.add_node("Tile", [tensor, times], name=f"{node.name}_each").outputs[0]


def _same(graph: Graph, copy: Graph, inputs: Mapping[str, tuple[int, ...]], grown: Mapping[str, int]) -> bool:
    """Whether the batch gives what the first and the last sample give alone."""
    generator = np.random.default_rng(0)
    feeds = {t.name: _random(generator, inputs[t.name], t.dtype) for t in graph.inputs}
    batch = next(iter(grown.values()))
    try:
        whole = _run(copy, feeds)
        for at in (0, batch - 1):
            alone = _run(graph, {name: v[at : at + 1] if name in grown else v for name, v in feeds.items()})
            if not all(_part_equal(alone[name], whole[name], at, batch) for name in alone):
                return False
    except OnnxcompError:
        return False
    return True


def _run(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    with runnable(graph) as model:
        return dict(open_session(model).run(feeds))


def _part_equal(alone: Array, whole: Array, at: int, batch: int) -> bool:
    if whole.ndim == 0 or whole.shape != (alone.shape[0] * batch, *alone.shape[1:]):
        return False
    part = whole[at * alone.shape[0] : (at + 1) * alone.shape[0]]
    return bool(np.allclose(part, alone, rtol=TOLERANCE, atol=TOLERANCE * (np.abs(alone).max(initial=0) or 1)))


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype | None) -> Array:
    """Numbers that differ from sample to sample; integers that any table of embeddings has a row for."""
    kind = dtype or np.dtype(np.float32)
    if kind.kind in "iub":
        return generator.integers(0, 2, shape).astype(kind)
    return generator.standard_normal(shape).astype(kind)
