"""How is a cut checked? Zeroed units leave without a trace, and any cut runs and has the shapes that were predicted."""

from __future__ import annotations

from collections.abc import Iterable

import builders
import numpy as np
from onnx import ModelProto

from onnxcomp.graph.codec import decode
from onnxcomp.graph.coupling.analysis import Coupling, Group, analyse, variables
from onnxcomp.graph.coupling.cut import cut, emptied_axis
from onnxcomp.graph.io import to_bytes
from onnxcomp.graph.ir import Constant, Graph
from onnxcomp.graph.shapes import check_structure, infer
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops.facts import load_operators

OPERATORS = load_operators()


def graph_of(model: ModelProto) -> Graph:
    return decode(model, None)


def sample_of(model: ModelProto, **options: int) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in builders.feeds_of(model, **options).items()}


def zero(coupling: Coupling, units: np.ndarray) -> None:
    """Make every weight slice of the units zero."""
    removed = mask_of(coupling, units)
    for tensor in list(coupling.labels):
        if isinstance(tensor, Constant) and tensor.dtype.kind == "f":
            values = np.array(tensor.values)
            for axis, here in enumerate(coupling.axes(tensor)):
                if here is not None:
                    values[(slice(None),) * axis + (np.flatnonzero(removed[here]),)] = 0
            tensor.values = values


def mask_of(coupling: Coupling, units: Iterable[int]) -> np.ndarray:
    removed = np.zeros(coupling.unit_count, bool)
    removed[np.asarray(list(units), np.int64)] = True
    return removed


def some_units(coupling: Coupling, groups: Iterable[Group], share: float, seed: int) -> np.ndarray:
    """A random part of each group, never all of it, and nothing that would empty an axis."""
    generator = builders.rng(seed)
    picked: list[int] = []
    for group in groups:
        count = min(group.size - 1, max(1, round(group.size * share)))
        chosen = generator.choice(group.units, count, replace=False).tolist()
        if not emptied_axis(coupling, mask_of(coupling, [*picked, *chosen])):
            picked += chosen
    return np.asarray(picked, np.int64)


def check_cuts(model: ModelProto, *, least_groups: int = 1) -> Coupling:
    """Zeroed units of exact groups leave without a trace; random units of any group leave a model that runs."""
    feeds = builders.feeds_of(model)
    sample = {name: value.shape for name, value in feeds.items()}
    for exact in (True, False):
        graph = graph_of(model)
        coupling = analyse(graph, OPERATORS, sample)
        assert len(coupling.groups) >= least_groups, coupling.kept
        groups = [g for g in coupling.groups if g.exact or not exact]
        units = some_units(coupling, groups, 0.4, seed=1)
        if exact:
            zero(coupling, units)
        before = builders.run(to_bytes(graph), feeds)
        cut(coupling, units)
        check_structure(graph)
        assert not mispredicted(coupling, mask_of(coupling, units), infer(graph, sample))
        after = builders.run(to_bytes(graph), feeds)
        assert [y.shape for y in after] == [y.shape for y in before]
        if exact:
            for old, new in zip(before, after, strict=True):
                np.testing.assert_allclose(new, old, atol=1e-4 * max(1.0, float(np.abs(old).max())))
    return coupling


def mispredicted(before: Coupling, removed: np.ndarray, after: Shapes) -> str:
    """The first tensor whose shape in the cut graph is not as predicted, with both shapes; empty where all agree."""
    predicted = before.predicted(removed)
    for tensor, _ in variables(before):
        known = after.types.get(tensor.name, TensorType(None, None)).shape
        wanted = predicted.static(tensor)
        if known is None or wanted is None or not all(isinstance(d, int) for d in known):
            continue
        if tuple(known) != wanted:
            return f"{tensor.name}: {known} instead of {wanted}"
    return ""
