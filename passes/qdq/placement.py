"""Which nodes gain by running on integers? Times of both forms against the conversions between them, and the error.

A node is worth an integer kernel when what it saves pays for the Q and DQ that it needs, which depends on what its
neighbours do. All choices are made at once, by the allocator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.ir import Graph, Node, Variable
from onnxcomp.graph.types import Shapes
from onnxcomp.ops.facts import Operators, volume
from onnxcomp.passes.assigning.allocate import Allocator, Limits, Option, Problem
from onnxcomp.passes.qdq.forms import silu_of
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.sensitivity import Noise
from onnxcomp.targets.base import Target

# where nothing was measured: a core's multiply-accumulates and conversions a microsecond, about
MACS_A_US = 30e3
ELEMENTS_A_US = 5e3
INTEGER_GAIN = 0.5  # time of an integer kernel over float, about
FLOAT_BYTES = 4
MOVED_BYTES_GAIN = 0.25  # a quarter of the bytes


@dataclass(frozen=True)
class Times:
    """What nodes and conversions cost, in microseconds.

    Attributes:
        exact, integer: of nodes, folded activation functions included with their node.
        quantize, dequantize: of one conversion of a tensor.
    """

    exact: Mapping[Node, float]
    integer: Mapping[Node, float]
    quantize: Callable[[Variable], float]
    dequantize: Callable[[Variable], float]


def units(plan: Plan) -> list[Node]:
    """The nodes of a plan that can run either way."""
    return [*plan.weighted, *plan.joined, *plan.moving, *plan.rewritten]


def guessed(plan: Plan, shapes: Shapes, operators: Operators) -> Times:
    """Times by multiply-accumulates and sizes, for where nothing is measured."""
    exact = {}
    for node in units(plan):
        size = sum(volume(shapes.static(t)) for t in node.outputs)
        exact[node] = operators.facts(node).macs(node, shapes) / MACS_A_US + size / ELEMENTS_A_US
    integer = {node: time * INTEGER_GAIN for node, time in exact.items()}

    def conversion(tensor: Variable) -> float:
        return volume(shapes.static(tensor)) / ELEMENTS_A_US

    return Times(exact, integer, conversion, conversion)


def measured(
    plan: Plan, shapes: Shapes, exact: Mapping[str, float], integer: Mapping[str, float], written: Graph
) -> Times:
    """Times from profiles of the float graph and of the graph with all of the plan on integers.

    Args:
        exact, integer: microseconds by node name.
        written: the second graph, whose Q and DQ nodes tell what conversions cost.
    """
    times: dict[Node, float] = {}
    fast: dict[Node, float] = {}
    for node in units(plan):
        fold = plan.folded.get(node)
        times[node] = exact.get(node.name, 0.0) + (exact.get(fold.name, 0.0) if fold is not None else 0.0)
        ready = node.name in integer
        fast[node] = integer[node.name] if ready else times[node] * MOVED_BYTES_GAIN
    samples: dict[str, list[tuple[int, float]]] = {"QuantizeLinear": [], "DequantizeLinear": []}
    known = {t.name: volume(shapes.static(t)) for t in plan.tensors}
    for node in written.nodes:
        if node.op in samples and node.name in integer:
            size = _size(node, known)
            if size:
                samples[node.op].append((size, integer[node.name]))
    quantize, dequantize = _line(samples["QuantizeLinear"]), _line(samples["DequantizeLinear"])
    return Times(times, fast, lambda t: quantize(known.get(t.name, 0)), lambda t: dequantize(known.get(t.name, 0)))


def _size(node: Node, known: Mapping[str, int]) -> int:
    """Elements that a Q or DQ converts, where the tensor kept its name."""
    return next((known[t.name] for t in (*node.inputs[:1], *node.outputs) if t.name in known), 0)


def _line(samples: list[tuple[int, float]]) -> Callable[[int], float]:
    """Time by size: the median rate of the larger half, which is all that decides."""
    if not samples:
        return lambda size: size / ELEMENTS_A_US
    large = sorted(samples)[len(samples) // 2 :]
    rate = float(np.median([time / size for size, time in large]))
    return lambda size: size * rate


@dataclass
class Conversions:
    """What changes between float and integers cost beside the nodes' own times, in microseconds.

    Attributes:
        own: of a node, or of the QuantizeLinear of a tensor, where it is integer.
        links: of the first where it is integer and the second is not.
    """

    own: dict[Hashable, float] = field(default_factory=dict)
    links: list[tuple[Hashable, Hashable, float]] = field(default_factory=list)


def conversions(plan: Plan, target: Target, graph: Graph, times: Times, toll: float = 1.0) -> Conversions:
    """Where Q and DQ stand, depending on which nodes of a plan are integer.

    Args:
        toll: conversions cost so much more than measured, for the changes of layout that come with them.
    """
    found, either = Conversions(), units(plan)
    made = {t: node for node in either for t in (plan.output(node), *node.outputs[1:]) if t.name}
    capable = set(either)
    for tensor in plan.tensors:
        maker = made.get(tensor)
        readers = [node for node in dict.fromkeys(tensor.outputs) if node in capable]
        others = _float_readers(graph, tensor, capable)
        if readers:
            need = ("Q", tensor)
            found.links += [(reader, need, float("inf")) for reader in readers]
            if maker is None:
                found.own[need] = toll * times.quantize(tensor)
            else:
                found.links.append((need, maker, toll * times.quantize(tensor)))
        if maker is None or (maker in plan.weighted and target.kernels[maker.op].float_output):
            continue
        back = toll * times.dequantize(tensor)
        found.own[maker] = found.own.get(maker, 0.0) + back * others
        found.links += [(maker, reader, back) for reader in readers]
    return found


def chosen(
    plan: Plan,
    target: Target,
    graph: Graph,
    times: Times,
    *,
    toll: float = 1.0,
    noise: Mapping[Node, Noise] | None = None,
    most: float = math.inf,
) -> set[Node]:
    """The nodes to run on integers: the fastest choice whose errors add up to no more than is allowed in any part.

    Args:
        toll: as in `conversions`.
        noise: that each weighted node brings into each part of the outputs.
        most: noise over signal that each part may have.
    """
    allocator = Allocator(_problem(plan, target, graph, times, toll, noise or {}))
    found = allocator.nearest("time", Limits(noise=most))
    return {node for node in units(plan) if node in found.integers}


def quietest(
    plan: Plan,
    target: Target,
    graph: Graph,
    times: Times,
    *,
    noise: Mapping[Node, Noise],
    spent: float,
    larger: float,
) -> set[Node]:
    """The nodes to run on integers: of all choices that are nearly as fast as any and as small as all, the truest.

    Args:
        noise: as in `chosen`.
        spent: share of the float nodes' time that it may take longer than the fastest choice.
        larger: share that weights may take more bytes than with all of them on integers.
    """
    problem = _problem(plan, target, graph, times, 1.0, noise)
    allocator = Allocator(problem)
    room = spent * sum(times.exact[node] for node in units(plan))
    least = sum(options[-1].bytes for options in problem.options.values())
    fastest = allocator.nearest("time", Limits()).time_us
    found = allocator.best("noise", Limits(time=fastest + room, bytes=least * (1 + larger)))
    return {node for node in units(plan) if found is None or node in found.integers}


def _problem(
    plan: Plan, target: Target, graph: Graph, times: Times, toll: float, noise: Mapping[Node, Noise]
) -> Problem:
    parts = sorted({part for share in noise.values() for part in share})
    none, between = np.zeros(len(parts)), conversions(plan, target, graph, times, toll)
    options: dict[Hashable, tuple[Option, ...]] = {}
    for node, weight in plan.weighted.items():
        brought = np.array([noise.get(node, {}).get(part, 0.0) for part in parts])
        size = node.inputs[weight.port].size
        whole = Option("int8", times.integer[node], size, brought, integer=True)
        options[node] = (Option("float", times.exact[node], FLOAT_BYTES * size, none), whole)
    for node in units(plan):
        if node not in plan.weighted:
            between.own[node] = between.own.get(node, 0.0) + times.integer[node] - times.exact[node]
    return Problem(options, between.own, between.links)


def _float_readers(graph: Graph, tensor: Variable, capable: set[Node]) -> int:
    """How many nodes read a tensor in float whatever is chosen; each gets a DequantizeLinear of its own."""
    readers = [node for node in dict.fromkeys(tensor.outputs) if node not in capable]
    count = len(readers) - (1 if silu_of(tensor) is not None else 0)
    return count + (1 if graph.is_output(tensor) else 0)
