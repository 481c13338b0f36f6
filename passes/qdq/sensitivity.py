"""How much error does a layer bring into the outputs if it alone runs on integers? One model with switches tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx

from onnxcomp.graph.io import runnable
from onnxcomp.graph.ir import Array, Graph, Node, Tensor, Variable
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.closeness import Tally, in_decibels, rows_of
from onnxcomp.runtime.progress import Progress
from onnxcomp.runtime.session import open_session
from onnxcomp.targets.base import Target

Noise: TypeAlias = dict[tuple[str, str], float]  # by output and part of it

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

    The float graph runs once a layer on the first feed, and on the others for the layers that matter.

    Args:
        graph: the float graph.
        feeds: a few samples.
    """
    switched, names = _switched(graph, target, plan, grids, layers)
    with runnable(switched) as model:
        session = open_session(model, threads=threads)
    outputs = [t.name for t in graph.outputs]
    off, on = np.asarray(False), np.asarray(True)
    found: dict[Node, list[Noise]] = {node: [] for node in layers}
    todo = list(layers)
    for feed in feeds:
        switches = {**feed, **dict.fromkeys(names.values(), off)}
        exact = session.run(switches, outputs)
        for node in progress.track(todo, len(todo), "sensitivity of layers"):
            found[node].append(noise_of(exact, session.run({**switches, names[node]: on}, outputs), rows_of(feed)))
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


def _switched(
    graph: Graph, target: Target, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]
) -> tuple[Graph, dict[Node, str]]:
    """The float graph with an If behind every layer that takes its rounded form instead, and the inputs that say so."""
    copy = graph.clone()
    twins = {node.name: node for node in copy.nodes}
    names: dict[Node, str] = {}
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
        copy.add_node(
            "If", [switch], name="either", attrs={"then_branch": change, "else_branch": keep}, outputs=[output]
        )
    copy.sort()
    return copy, names


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
