"""What does each form of each layer cost in time and bytes? From profiles of whole graphs, one a form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Array, Graph, Node
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import CostModel
from onnxcomp.ops.facts import Operators, volume
from onnxcomp.passes.assigning.allocate import Option, Problem
from onnxcomp.passes.precision.forms import FLOAT, FORMS, STATIC, Tried
from onnxcomp.passes.precision.layers import Layer
from onnxcomp.passes.qdq.placement import ELEMENTS_A_US, MACS_A_US, Conversions, Times, units
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.sensitivity import Noise

SCALE_BYTES = 4
NODE_BYTES = 160  # that the Q and DQ of one layer take in the file, about


@dataclass
class Prices:
    """Microseconds by layer and form, and of the whole float model.

    Attributes:
        measured: whether they come from this machine or from sizes alone.
    """

    total_us: float
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: bool = True


def prices(
    graph: Graph,
    layers: Sequence[Layer],
    tries: Mapping[str, Tried],
    costs: CostModel | None,
    shapes: Shapes,
    operators: Operators,
) -> Prices:
    """The time of every layer in float and in each form that was tried."""
    nodes = {node.name: node for node in graph.nodes}
    if costs is None:
        guess = {node.name: _guess(node, shapes, operators) for node in graph.nodes}
        found = Prices(sum(guess.values()), measured=False)
        for layer in layers:
            exact = sum(guess[name] for name in layer.nodes)
            forms = [FLOAT, *(form for form, t in tries.items() if layer.name in t.regions)]
            found.layers[layer.name] = {form: exact * FORMS[form].guess for form in forms}
        return found
    times = costs.node_times_us(graph)
    found = Prices(sum(times.values()))
    for layer in layers:
        found.layers[layer.name] = {FLOAT: sum(times.get(name, 0.0) for name in layer.nodes if name in nodes)}
    for form, attempt in tries.items():
        if not FORMS[form].own_kernel:
            for name in attempt.regions:
                found.layers[name][form] = found.layers[name][FLOAT]
            continue
        inside = costs.node_times_us(attempt.graph)
        shared = Counter(node for region in attempt.regions.values() for node in region.nodes)
        for name, region in attempt.regions.items():
            found.layers[name][form] = sum(inside.get(node.name, 0.0) / shared[node] for node in region.nodes)
    return found


def _guess(node: Node, shapes: Shapes, operators: Operators) -> float:
    size = sum(volume(shapes.static(t)) for t in node.outputs)
    return operators.facts(node).macs(node, shapes) / MACS_A_US + size / ELEMENTS_A_US


def bytes_of(layer: Layer, form: str, tries: Mapping[str, Tried], rows: int) -> int:
    """What a layer's weights take in the file."""
    if form == FLOAT:
        return layer.bytes
    if form == STATIC:
        return layer.elements + SCALE_BYTES * rows + NODE_BYTES
    return tries[form].regions[layer.name].bytes


def problem(
    layers: Sequence[Layer],
    found: Prices,
    sizes: Callable[[Layer, str], int],
    noise: Mapping[str, Mapping[str, Noise]],
    macs: Mapping[str, float],
    static: Static | None,
) -> Problem:
    """What the allocator is to solve.

    Args:
        sizes: bytes of a layer in a form.
        noise: by layer and form; a form that is missing there is no option.
        macs: multiply-accumulates by layer; where they are given, bit operations take the place of times.
        static: nodes that may be integer, and what conversions around them cost.
    """
    names = sorted({part for forms in noise.values() for share in forms.values() for part in share})
    options: dict[Hashable, tuple[Option, ...]] = {}
    for layer in layers:
        times, shares = found.layers[layer.name], noise[layer.name]
        own = [form for form in FORMS if form in times and (form == FLOAT or form in shares)]
        options[layer.name] = tuple(
            Option(
                form,
                macs[layer.name] * FORMS[form].bits * FORMS[form].activation_bits if macs else times[form],
                sizes(layer, form),
                _vector(shares.get(form, {}), names),
                integer=form == STATIC,
            )
            for form in own
        )
    chosen = sum(choices[0].time_us for choices in options.values())
    rest = 0.0 if macs else max(found.total_us - chosen, 0.0)
    result = Problem(options, time_us=rest)
    if static is not None:
        result.own, result.links = static.between(set(options), bits=bool(macs))
    return result


@dataclass(frozen=True)
class Static:
    """Nodes that may be integer.

    Attributes:
        owner: the layer of a node, by node name.
    """

    plan: Plan
    times: Times
    conversions: Conversions
    owner: Mapping[str, str]

    def between(
        self, layers: set[Hashable], *, bits: bool
    ) -> tuple[dict[Hashable, float], list[tuple[Hashable, Hashable, float]]]:
        """Costs and links in terms of layers, nodes and tensors by name; without times where bits are counted."""
        factor = 0.0 if bits else 1.0
        own: dict[Hashable, float] = {}
        weighted = set(self.plan.weighted)
        for node in units(self.plan):
            if node not in weighted:
                own[node.name] = factor * (self.times.integer[node] - self.times.exact[node])
        for item, cost in self.conversions.own.items():
            key = self.key(item)
            own[key] = own.get(key, 0.0) + factor * cost
        links = [(self.key(a), self.key(b), _scaled(cost, factor)) for a, b, cost in self.conversions.links]
        lost = {key for key in own if key in set(self.owner.values()) and key not in layers}
        return {key: cost for key, cost in own.items() if key not in lost}, links

    def paid(self, integers: frozenset[Hashable]) -> float:
        """Microseconds of the conversions that an assignment needs, given what it has on integers."""
        found = sum(cost for item, cost in self.conversions.own.items() if self.key(item) in integers)
        return found + sum(
            cost for a, b, cost in self.conversions.links if self.key(a) in integers and self.key(b) not in integers
        )

    def key(self, item: Hashable) -> Hashable:
        """A node, or the QuantizeLinear of a tensor, by name; a layer's node by the layer's."""
        if isinstance(item, Node):
            return self.owner.get(item.name, item.name)
        assert isinstance(item, tuple)
        return item[0], item[1].name


def _scaled(cost: float, factor: float) -> float:
    return cost if np.isinf(cost) else cost * factor


def _vector(share: Noise, names: Sequence[tuple[str, str]]) -> Array:
    return np.array([share.get(name, 0.0) for name in names], np.float64)
