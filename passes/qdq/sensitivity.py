"""How much error does a layer bring into the outputs if it alone runs on integers? Parts with switches tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx

from onnxcomp.graph.ir import Array, Graph, Node, Tensor, Variable
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.chain import Chain, Values, cut
from onnxcomp.runtime.closeness import Tally, in_decibels, rows_of
from onnxcomp.runtime.progress import Progress
from onnxcomp.runtime.session import AS_WRITTEN, Session
from onnxcomp.targets.base import Target

Noise: TypeAlias = dict[tuple[str, str], float]  # by output and part of it

PARTS = 8  # more would save little: a layer's part, and on average half of the others, run for each
RELEVANT = 0.1  # layers with less than this part of the mean error are not looked at again


def noises(
    graph: Graph,
    target: Target,
    plan: Plan,
    grids: Mapping[Variable, Grid],
    layers: Mapping[Node, Integers],
    feeds: Sequence[Mapping[str, Array]],
    *,
    threads: int,
    progress: Progress,
) -> dict[Node, Noise]:
    """Noise over signal power of each part of the outputs when one layer alone is rounded: weights, input and output.

    The float graph is cut into parts. For each layer on the first feed, and on the others for the layers that matter,
    its part runs with the layer rounded, and behind it the float parts. (Switches all over one model would keep ONNX
    Runtime from fusing it: on a network of depthwise convolutions that took four times as long.)

    Args:
        graph: the float graph.
        feeds: a few samples.
    """
    parted = _Parted(graph, target, plan, grids, layers, threads)
    found: dict[Node, list[Noise]] = {node: [] for node in layers}
    todo = list(layers)
    for feed in feeds:
        values = parted.chain.run(feed)
        exact = {name: values[name] for name in parted.chain.outputs}
        for node in progress.track(todo, len(todo), "sensitivity of layers"):
            found[node].append(noise_of(exact, parted.rounded(node, values), rows_of(feed)))
        means = {node: mean(noises) for node, noises in found.items()}
        total = worst(together(means.values()))
        todo = [node for node in todo if worst(means[node]) * len(found) > RELEVANT * total]
    return {node: mean(noises) for node, noises in found.items()}


def noise_of(exact: Mapping[str, Array], other: Mapping[str, Array], rows: int) -> Noise:
    """Noise over signal of each part of each output, by their names."""
    noise = {}
    for name, wanted in exact.items():
        tally = Tally(varying=True)
        tally.add(wanted, other[name], rows)
        result = tally.result()
        noise[name, ""] = 10 ** (-in_decibels(result) / 10)
        noise |= {(name, part.name): 10 ** (-part.sqnr_db / 10) for part in result.parts}
    return noise


def together(noises: Iterable[Noise]) -> Noise:
    """What several layers bring in, part by part."""
    total: Noise = {}
    for noise in noises:
        for part, share in noise.items():
            total[part] = total.get(part, 0.0) + share
    return total


def mean(noises: Sequence[Noise]) -> Noise:
    """The mean over feeds."""
    return {part: share / len(noises) for part, share in together(noises).items()}


def worst(noise: Noise) -> float:
    """The share of the part that suffers most."""
    return max(noise.values(), default=0.0)


class _Parted:
    """The float graph in parts, each of which exists a second time with switches."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        plan: Plan,
        grids: Mapping[Variable, Grid],
        layers: Mapping[Node, Integers],
        threads: int,
    ) -> None:
        exact = graph.clone()
        exact.sort()
        twins = {node.name: node for node in exact.nodes}
        spans = [(twins[node.name], twins[(plan.folded.get(node) or node).name]) for node in layers]
        parts = cut(exact.nodes, spans, PARTS)
        self.chain = Chain(exact, parts, threads)
        self._part = {node.name: at for at, part in enumerate(parts) for node in part}
        self._switched, self._names, eithers = _switched(graph, target, plan, grids, layers)
        self._part |= {either: self._part[node.name] for node, either in eithers.items()}
        self._sessions: dict[int, Session] = {}

    def rounded(self, node: Node, values: Values) -> Values:
        """The outputs with one layer rounded, given what all parts hand on."""
        at = self._part[node.name]
        switches = {n: np.asarray(n == self._names[node]) for k, n in self._names.items() if self._part[k.name] == at}
        if at not in self._sessions:
            nodes = [n for n in self._switched.nodes if self._part[n.name] == at]
            self._sessions[at] = self.chain.other_form(at, self._switched, nodes, {**values, **switches}, AS_WRITTEN)
        session = self._sessions[at]
        fed = {**values, **switches}
        changed = session.run({port.name: fed[port.name] for port in session.inputs})
        return self.chain.follow(values, at, changed)


def _switched(
    graph: Graph, target: Target, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]
) -> tuple[Graph, dict[Node, str], dict[Node, str]]:
    """The float graph with an If behind every layer that takes its rounded form instead.

    Returns:
        The graph; by layer the inputs that switch, and the names of the Ifs.
    """
    copy = graph.clone()
    twins = {node.name: node for node in copy.nodes}
    names: dict[Node, str] = {}
    eithers: dict[Node, str] = {}
    for node, layer in layers.items():
        switch = Variable(copy.unique_name("switch"), np.dtype(np.bool_), ())
        names[node] = switch.name
        copy.inputs.append(switch)
        fold = plan.folded.get(node)
        last = twins[node.name if fold is None else fold.name]
        output = last.outputs[0]
        raw = Variable(copy.unique_name("r"), np.dtype(np.float32))
        last.outputs[0] = raw
        keep = Graph(parent=copy, envelope=onnx.GraphProto(name="keep"))
        kept = Variable(copy.unique_name("y"), np.dtype(np.float32))
        keep.nodes = [Node("Identity", copy.unique_name("same"), inputs=[raw], outputs=[kept])]
        keep.outputs = [kept]
        change = Graph(parent=copy, envelope=onnx.GraphProto(name="rounded"))
        change.outputs = [rounded(copy, change, target, plan, grids, layer, twins)]
        either = copy.add_node(
            "If", [switch], name="either", attrs={"then_branch": change, "else_branch": keep}, outputs=[output]
        )
        eithers[node] = either.name
    copy.sort()
    return copy, names, eithers


def rounded(
    copy: Graph,
    scope: Graph,
    target: Target,
    plan: Plan,
    grids: Mapping[Variable, Grid],
    layer: Integers,
    twins: Mapping[str, Node],
) -> Variable:
    """One layer once more, on rounded weights, input and output.

    Args:
        copy: of the plan's graph; constants go there.
        scope: the graph or body that gets the nodes.
        twins: the copy's nodes by name.
    """
    node = layer.node
    twin = twins[node.name]

    def then(op: str, inputs: list[Tensor], attrs: Mapping[str, object] | None = None) -> Variable:
        made = Variable(copy.unique_name("t"), np.dtype(np.float32))
        scope.nodes.append(Node(op, copy.unique_name("n"), dict(attrs or {}), inputs, [made]))
        return made

    def on_grid(tensor: Tensor, grid: Grid) -> Variable:
        numbers: list[Tensor] = [
            copy.add_constant("s", np.asarray(grid.scale, np.float32)),
            copy.add_constant("z", np.asarray(grid.zero, grid.levels.dtype)),
        ]
        integers = then("QuantizeLinear", [tensor, *numbers])
        integers.dtype = grid.levels.dtype
        return then("DequantizeLinear", [integers, *numbers])

    port = (target.kernels[node.op].ports or (0,))[0]
    weight = layer.weight.from_matrix(layer.rounded, layer.shape)
    inputs: list[Tensor] = list(twin.inputs)
    inputs[port] = on_grid(twin.inputs[port], grids[node.inputs[port]])
    inputs[layer.weight.port] = copy.add_constant("w", weight)
    result = then(node.op, inputs, twin.attrs)
    fold = plan.folded.get(node)
    if fold is not None:
        result = then(fold.op, [result, *twins[fold.name].inputs[1:]], fold.attrs)
    written = plan.output(node)
    if written in plan.made:
        result = on_grid(result, grids[written])
    return result
