"""What does quantization-aware training put on integers, and how is the trained model written?

The same plan as quantize-qdq makes: the target's kernels say which nodes run on integers and where Q and DQ stand. The
training graph rounds there; afterwards the learned scales and the trained weights go to the same writer. Weights of
four bits and fewer are packed in front of their DequantizeLinear, by nodes that the runtime evaluates on loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.coded import PACKING_OPSET, Coded, CodedWriter
from onnxcomp.graph.ir import Array, Graph, Node, Variable
from onnxcomp.graph.rounding import Levels
from onnxcomp.graph.types import Shapes
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.raising import raise_opset
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.qdq import parts, regions, sharing
from onnxcomp.passes.qdq.forms import curve_of
from onnxcomp.passes.qdq.ranges import Grid, Rule, unusable
from onnxcomp.passes.qdq.trials import write
from onnxcomp.passes.qdq.weights import Integers, bias_of
from onnxcomp.passes.training.fake import FakeActivation, FakeBias, FakeWeight, Inserted, Step, insert
from onnxcomp.runtime.activations import Activation, collect
from onnxcomp.targets.base import Target
from onnxcomp.targets.table import find

PACKED_BITS = 4  # and fewer; two integers a byte or more
SAFE = Levels(-64, 64)  # two products of these with 0..255 add up in 16 bits, on processors without VNNI too


@dataclass(frozen=True)
class Precision:
    """How many bits.

    Attributes:
        bits: of weights; 1 means binary.
        activation_bits: of what they are multiplied with; 0 leaves activations float.
        edge_bits: of the first and the last layer, where that is more.
        own: bits of single weights, by name of the initializer.
        each_channel: whether every output channel has a scale; else a weight has one.
    """

    bits: int
    activation_bits: int
    edge_bits: int
    optimizer: Literal["adamw", "sgd"]
    isa: Literal["portable", "native"]
    own: Mapping[str, int] = field(default_factory=dict)
    each_channel: bool = True


@dataclass
class Quantization:
    """What is rounded while a graph trains, and how it is written afterwards.

    Attributes:
        graph: the student, in whose nodes the plan is.
        weights: by name of the initializer.
        bits: of each weight, by the same name; `read_bits` of what a node multiplies it with, by the node's name.
        refused: nodes that stay float, with the reason.
        notes: what the user should know.
        shapes: of one sample's tensors, where activations are rounded.
    """

    graph: Graph
    target: Target
    weights: dict[str, FakeWeight] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    read_bits: dict[str, int] = field(default_factory=dict)
    activations: list[FakeActivation] = field(default_factory=list)
    plan: regions.Plan | None = None
    refused: dict[Node, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shapes: Shapes | None = None

    def insert(self, training: Graph) -> Inserted:
        """Round in a copy of the graph."""
        return insert(training, list(self.weights.values()), self.activations, self._biases())

    def reference(self, learned: Mapping[str, Array]) -> Graph:
        """The graph as the training saw it, rounding in floating point, with what was learned: to compare with."""
        copy = self.graph.clone()
        self.insert(copy)
        for constant in copy.constants():
            if constant.name in learned:
                constant.values = np.asarray(learned[constant.name], np.float32)
        return copy

    def _biases(self) -> list[FakeBias]:
        """Biases that integer kernels will add as int32."""
        if self.plan is None or self.target.bias != "int32":
            return []
        steps = {name: fake.step.name for fake in self.activations for name, _ in fake.tensors}
        found = []
        for node, weight in self.plan.weighted.items():
            if weight.bias is None or node.constant(weight.bias) is None:
                continue
            source = node.inputs[(self.target.kernels[node.op].ports or (0,))[0]]
            group = next(g for g in sharing.groups(self.plan, self.target) if source in g)
            step = next(steps[t.name] for t in group if t.name in steps)
            name = self.weights[node.inputs[weight.port].name].step.name
            found.append(FakeBias(node.name, weight.bias, name, step))
        return found

    def write(self, learned: Mapping[str, Array]) -> dict[str, str]:
        """Write the trained weights, which the graph holds by now, on their integers; says what became of each node."""
        if self.plan is None:
            return self._write_weights(learned)
        layers = {node: self._layer(node, weight, learned) for node, weight in self.plan.weighted.items()}
        grids: dict[Variable, Grid] = {}
        tensors = {t.name: t for t in self.plan.tensors}
        for fake in self.activations:
            grids |= {tensors[name]: fake.trained(learned.get(fake.step.name)) for name, _ in fake.tensors}
        for group in sharing.groups(self.plan, self.target):
            known = next((grids[t] for t in group if t in grids), None)
            if known is not None:
                grids |= dict.fromkeys(group, known)
        bits = {node: self.bits[node.inputs[weight.port].name] for node, weight in self.plan.weighted.items()}
        written = write(self.graph, self.target, self.plan, grids, layers)
        writer = CodedWriter(self.graph)
        for node, stored in written.weights.items():
            if bits[node] <= PACKED_BITS and self.target.decodes_at_load:
                writer.write(stored, packed(stored.values, bits[node]))
        if self.target.separate and self.shapes is not None:
            parts.separate(self.graph, layers, self.shapes)
        self.graph.sort()
        return {
            node.name: f"{_words(bits[node])} weights, {self.read_bits[node.name]}-bit activations" for node in layers
        }

    def _layer(self, node: Node, weight: Weight, learned: Mapping[str, Array]) -> Integers:
        constant = node.constant(weight.port)
        assert constant is not None
        fake = self.weights[constant.name]
        integers, scales = fake.integers(constant.values, learned.get(fake.step.name))
        exact = weight.to_matrix(constant.values)
        return Integers(node, weight, integers, scales, bias_of(node, weight), exact, None, constant.shape, None)

    def _write_weights(self, learned: Mapping[str, Array]) -> dict[str, str]:
        """Weights alone, as quantize-weights stores them."""
        found: dict[str, str] = {}
        writer = CodedWriter(self.graph)
        constants = {c.name: c for c in self.graph.constants()}
        for name, fake in self.weights.items():
            constant = constants[name]
            integers, scales = fake.integers(constant.values, learned.get(fake.step.name))
            shaped = fake.weight.from_matrix(integers, constant.shape)
            coded = packed(shaped, self.bits[name])
            scale = np.asarray(fake.weight.along_out(scales, len(constant.shape)), np.float32)
            if scale.size > 1 and not fake.each_channel:
                scale = scale.reshape(-1)[0].reshape(())
            factor = np.float32(1.0) if coded.scale is None else coded.scale
            for node in dict.fromkeys(constant.consumers):
                found[node.name] = f"{_words(self.bits[name])} weights"
            writer.write(constant, replace(coded, scale=scale * factor))
        self.graph.sort()
        return found


def packed(integers: Array, bits: int) -> Coded:
    """Signed integers as codes of as many bits as the file knows; binary ones are -1 and 1."""
    if bits == 1:
        return Coded((integers > 0).astype(np.uint8), 1, zero=0.5, scale=np.asarray(2.0, np.float32))
    stored = next(b for b in (2, 4, 8) if bits <= b)
    middle = 2 ** (stored - 1)
    return Coded((integers.astype(np.int16) + middle).astype(np.uint8), stored, zero=float(middle))


def plan(graph: Graph, precision: Precision, wanted: Callable[[Node], bool], context: PassContext) -> Quantization:
    """Choose what is rounded and where its scales start. The opset is raised where the written form needs it.

    Raises:
        UsageError: nothing can be quantized, or the target has no form for so few bits.
    """
    target = find(context.target)
    result = Quantization(graph, target)
    if precision.activation_bits:
        _check_target(target, precision)
        result.notes += raise_opset(graph, max(target.opset, PACKING_OPSET), context)
        _plan_activations(result, precision, wanted, context)
        uses = dict(result.plan.weighted) if result.plan is not None else {}
    else:
        result.notes += raise_opset(graph, PACKING_OPSET, context)
        uses = _float_weights(graph, wanted, context, result)
    if not uses:
        raise UsageError(
            "no weight can be trained on integers",
            where="; ".join(sorted(set(result.refused.values())))
            or "no convolution or matrix product stores its weight",
            do="leave bits and activation_bits out; where weights are computed, run fold-constants before",
        )
    if "BatchNormalization" in graph.operators():
        result.notes.append("BatchNormalization stays float between integers: fuse-batchnorm before folds it")
    edges = {next(iter(uses)), list(uses)[-1]}
    for node, weight in uses.items():
        constant = node.constant(weight.port)
        assert constant is not None
        if constant.name in result.weights:
            continue
        usual = max(precision.bits, precision.edge_bits) if node in edges else precision.bits
        bits = precision.own.get(constant.name, usual)
        levels = _weight_levels(bits, precision, target)
        name = graph.unique_name(f"{constant.name}.step")
        result.weights[constant.name] = FakeWeight.of(
            constant, weight, levels, name, precision.optimizer, each_channel=precision.each_channel
        )
        result.bits[constant.name] = bits
    return result


# -- weights -----------------------------------------------------------------------------------------------------------


def _weight_levels(bits: int, precision: Precision, target: Target) -> Levels | None:
    if bits == 1:
        return None
    if bits < 8:
        return Levels.signed(bits, narrow=False)
    portable = target.portable(precision.isa) and precision.activation_bits
    return SAFE if portable else Levels.signed(8)


def _float_weights(
    graph: Graph, wanted: Callable[[Node], bool], context: PassContext, result: Quantization
) -> dict[Node, Weight]:
    found: dict[Node, Weight] = {}
    for node in graph.nodes:
        for weight, constant in context.operators.weights(node):
            if weight.role != "kernel":
                result.refused[node] = "tables and recurrent weights are not trained on integers"
            elif constant.dtype != np.float32 or not np.isfinite(constant.values).all() or not constant.size:
                result.refused[node] = "its weight is not finite float32"
            elif not wanted(node):
                result.refused[node] = "not selected by include and exclude"
            else:
                found[node] = weight
    return found


# -- activations -------------------------------------------------------------------------------------------------------


def _check_target(target: Target, precision: Precision) -> None:
    if target.why_not:
        raise UsageError(
            f"quantized activations gain nothing on {target.name}", where=target.why_not, do="leave activation_bits out"
        )
    if precision.activation_bits < 8 and target.levels.low < 0:
        raise UsageError(
            f"{target.name} has no activations of {precision.activation_bits} bits",
            where="activation_bits",
            do="give 8, or leave it out",
        )


def _plan_activations(
    result: Quantization, precision: Precision, wanted: Callable[[Node], bool], context: PassContext
) -> None:
    graph, target = result.graph, result.target
    assert context.calibration is not None
    given = context.sample_shapes or {k: v.shape for k, v in next(iter(context.calibration.batches(1))).items()}
    shapes = shape_tools.infer(graph, shape_tools.one_sample(graph, given))
    accepted, result.refused = regions.eligible(graph, shapes, target, context.operators, wanted)
    chosen: Sequence[Node] | None = None
    if precision.activation_bits < 8:
        chosen = _movers(regions.plan(graph, target, context.operators, shapes, accepted), graph)
    names = [t.name for t in sharing.sources(_planned(result, accepted, shapes, context, chosen, {}))]
    seen = collect(
        graph,
        names,
        context.calibration,
        threads=context.threads,
        budget_bytes=context.memory.activations,
        progress=context.progress,
    )
    banned: dict[Variable, str] = {}
    while True:
        found = _planned(result, accepted, shapes, context, chosen, banned)
        grids, bad = _grids(result, found, precision, seen)
        if not bad:
            break
        banned |= bad
    result.refused |= found.refused
    result.plan, result.shapes = found, shapes
    ports = {n: target.kernels[n.op].ports or () for n in found.weighted} | found.joined
    ports |= dict.fromkeys((*found.moving, *found.rewritten), (0,))
    for own, grid in grids:
        name = graph.unique_name(f"{own[0].name}.step")
        size = int(np.prod(shapes.static(own[0]) or (1,)))
        step = Step.start(name, np.asarray([grid.scale], np.float32), size, grid.levels.high, precision.optimizer)
        tensors = tuple((t.name, None if t in found.made else _readers(t, ports)) for t in own)
        result.activations.append(FakeActivation(tensors, grid, step))


def _planned(
    result: Quantization,
    accepted: dict[Node, Weight],
    shapes: Shapes,
    context: PassContext,
    chosen: Sequence[Node] | None,
    banned: Mapping[Variable, str],
) -> regions.Plan:
    return regions.plan(
        result.graph, result.target, context.operators, shapes, accepted, chosen=chosen, float_tensors=banned
    )


def _grids(
    result: Quantization, found: regions.Plan, precision: Precision, seen: Mapping[str, Activation]
) -> tuple[list[tuple[list[Variable], Grid]], dict[Variable, str]]:
    """Where the scale of each group of tensors starts, and tensors that no grid fits."""
    grids: list[tuple[list[Variable], Grid]] = []
    bad: dict[Variable, str] = {}
    for own, bits in _groups(result, found, precision):
        rule = Rule("mse", _activation_levels(bits, result.target), result.target.symmetric)
        each = [rule.choose(seen[t.name], curve_of(t)) for t in own]
        grid = each[0] if len(each) == 1 else rule.grid(min(g.low for g in each), max(g.high for g in each))
        if bits == 8:
            bad |= {t: why for t in own if (why := unusable(seen[t.name], grid))}
        grids.append((own, grid))
    return grids, bad


def _movers(full: regions.Plan, graph: Graph) -> list[Node]:
    """Nodes between two layers that only move data: all that joins where activations have few bits.

    Sums and pools stay float there: a residual stream on few levels loses too much.
    """
    capable = {*full.moving, *full.rewritten}
    available = {full.output(node) for node in full.weighted}
    ahead: list[Node] = []
    for node in graph.nodes:
        if node in capable and node.inputs[0] in available:
            ahead.append(node)
            available.update(node.outputs)
    wanted = {t for node in full.weighted for t in node.inputs}
    kept: list[Node] = []
    for node in reversed(ahead):
        if any(t in wanted for t in node.outputs):
            kept.insert(0, node)
            wanted.add(node.inputs[0])
    return kept


def _readers(tensor: Variable, ports: Mapping[Node, tuple[int, ...]]) -> tuple[tuple[str, int], ...]:
    return tuple(
        (node.name, port)
        for node in dict.fromkeys(tensor.outputs)
        for port in ports.get(node, ())
        if node.inputs[port] is tensor
    )


def _groups(result: Quantization, found: regions.Plan, precision: Precision) -> list[tuple[list[Variable], int]]:
    """Tensors that share a grid and hold new values, with their bits: few only where a layer multiplies them."""
    new = set(sharing.sources(found))
    weighted = list(found.weighted)
    edges = {weighted[0], weighted[-1]} if weighted else set()
    groups = []
    for group in sharing.groups(found, result.target):
        bits = 8
        readers = [n for t in group for n in dict.fromkeys(t.outputs) if n in found.weighted]
        if readers:
            inner = [n for n in readers if n not in edges]
            bits = precision.activation_bits if inner else max(precision.activation_bits, precision.edge_bits)
        result.read_bits |= dict.fromkeys((n.name for n in readers), bits)
        own = [t for t in group if t in new]
        if own:
            groups.append((own, bits))
    return groups


def _activation_levels(bits: int, target: Target) -> Levels:
    if bits == 8:
        return target.levels
    return Levels.unsigned(bits) if target.levels.low >= 0 else Levels.signed(bits)


def _words(bits: int) -> str:
    return "binary" if bits == 1 else f"{bits}-bit"
