"""How large is the error that each layer adds by itself, and what has piled up behind it?

Both graphs run on the same samples. For the own error every layer of the second graph is fed what the first one's layer
is fed, all layers in one run: the graph is cut at each layer's input, and the first graph's values go in there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxcomp.explanation.matching import Pair, bias_elsewhere, same_function
from onnxcomp.explanation.products import Place, Reading
from onnxcomp.graph.clone import drop_unneeded, extract
from onnxcomp.graph.ir import Array, Graph, Node, Tensor, Variable, elem_type
from onnxcomp.runtime.session import Session, open_graph
from onnxcomp.runtime.taps import Batches

BUDGET_BYTES = 256 << 20  # of activations that one sample's run of a group of layers holds


@dataclass
class Error:
    """Sums over samples of one pair of places, by output channel: float64 [channels].

    `signal` b^2, `noise` (a-b)^2, `shift` (a-b), `cross` a*b, `energy` a^2, `count` elements.
    """

    signal: Array = field(default_factory=lambda: np.zeros(1))
    noise: Array = field(default_factory=lambda: np.zeros(1))
    shift: Array = field(default_factory=lambda: np.zeros(1))
    cross: Array = field(default_factory=lambda: np.zeros(1))
    energy: Array = field(default_factory=lambda: np.zeros(1))
    count: float = 0.0

    def add(self, before: Array, after: Array, channels: int) -> None:
        """Take one sample's values; [N, channels, ...] or [..., channels]."""
        b, a = (_by_channel(v, channels, before.shape) for v in (before, after.reshape(before.shape)))
        for name, values in (
            ("signal", b * b),
            ("noise", np.square(a - b)),
            ("shift", a - b),
            ("cross", a * b),
            ("energy", a * a),
        ):
            setattr(self, name, getattr(self, name) + values.sum(axis=1))
        self.count += b.shape[1]

    @property
    def sqnr_db(self) -> float | None:
        """None where nothing differs; at least -999."""
        signal, noise = float(self.signal.sum()), float(self.noise.sum())
        if noise == 0 or not np.isfinite(noise):
            return None if noise == 0 else -999.0
        return float(10 * np.log10(max(signal, 1e-300) / noise))


@dataclass
class Range:
    """Values of the first graph at a place: lowest, highest, sum of squares, and how much lies beyond limits.

    `beyond` counts those that the second graph's range cuts off there, `cut` is the energy of what it takes from them.
    """

    low: float = np.inf
    high: float = -np.inf
    squares: float = 0.0
    count: int = 0
    beyond: int = 0
    cut: float = 0.0

    def add(self, values: Array, limits: Place) -> None:
        """Take one sample's values."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.squares += float(np.square(values, dtype=np.float64).sum())
        self.count += values.size
        slack = limits.step / 2
        outside = (values < limits.low - slack) | (values > limits.high + slack)
        self.beyond += int(outside.sum())
        lost = values[outside].astype(np.float64)
        self.cut += float(np.square(lost - np.clip(lost, limits.low, limits.high)).sum())

    @property
    def rms(self) -> float:
        """Root mean square."""
        return float(np.sqrt(self.squares / max(1, self.count)))


@dataclass
class Finding:
    """What was measured of one pair of layers.

    Attributes:
        own: error with the first graph's input, at each pair of exits.
        piled: error with the second graph's own input.
        fed: values of the first graph's input.
        given: values of the first graph at each pair of exits.
        chosen: which pair of exits speaks for the layer.
    """

    pair: Pair
    own: list[Error]
    piled: list[Error]
    fed: Range
    given: list[Range]
    chosen: int | None = None

    def choose(self) -> None:
        """Behind the function and in front of it the worse one counts; where one graph fuses it, what they share."""
        alone = any(e.count for e in self.own)
        errors = self.own if alone else self.piled
        scores = [(e.sqnr_db if e.sqnr_db is not None else 999.0) for e in errors]
        usable = [k for k, e in enumerate(errors) if e.count]
        if not usable:
            return
        before, after = self.pair.before, self.pair.after
        kinds = [
            (before.linear, after.linear),
            (before.active, after.active),
            (before.active, after.linear),
        ]
        ends = [k for k in usable if self.pair.exits[k] in kinds]
        direct = [k for k in usable if self.pair.exits[k] in kinds[:2]]
        if bias_elsewhere(self.pair) or not ends:
            self.chosen = max(usable, key=scores.__getitem__)
        elif same_function(self.pair) and direct:
            self.chosen = min(direct, key=scores.__getitem__)
        else:
            self.chosen = max(ends, key=scores.__getitem__)

    @property
    def own_error(self) -> Error | None:
        """The layer's own error where it is looked at."""
        return None if self.chosen is None else self.own[self.chosen]

    @property
    def piled_error(self) -> Error | None:
        """The error behind the layer in the whole model."""
        return None if self.chosen is None else self.piled[self.chosen]


def measure(
    pairs: Sequence[Pair], before: Reading, after: Reading, samples: Batches, *, threads: int = 2
) -> list[Finding]:
    """Measure every pair on all samples.

    Raises:
        ModelError: a graph does not run.
    """
    found = [
        Finding(p, [Error() for _ in p.exits], [Error() for _ in p.exits], Range(), [Range() for _ in p.exits])
        for p in pairs
    ]
    for group in _groups(found, before):
        _measure(group, before, after, samples, threads)
    for finding in found:
        finding.choose()
    return found


def _groups(found: Sequence[Finding], before: Reading) -> Iterator[list[Finding]]:
    group: list[Finding] = []
    used = 0
    for finding in found:
        places = [ends[0] for ends in finding.pair.exits] + ([finding.pair.entry[0]] if finding.pair.entry else [])
        sizes = [before.shapes.static(place.tensor) for place in places]
        size = sum(24 * prod(shape) if shape is not None else BUDGET_BYTES // 16 for shape in sizes)
        if group and used + size > BUDGET_BYTES:
            yield group
            group, used = [], 0
        group.append(finding)
        used += size
    if group:
        yield group


def tap(graph: Graph, places: Sequence[Place], threads: int) -> tuple[Session, list[str]]:
    """A session that gives the tensors of some places; small models are opened without fusions that change rounding."""
    tensors, fed = graph.tensors(), {t.name for t in graph.inputs}
    names = list(dict.fromkeys(place.tensor.name for place in places))
    part = extract(graph, graph.inputs, [tensors[name] for name in names if name not in fed])
    return open_graph(part.graph, threads=threads, strict=False), names


def seen(reading: Reading, places: Sequence[Place], samples: Batches, count: int, threads: int) -> dict[str, Array]:
    """Float values of places on the first samples, joined: by tensor name."""
    session, names = tap(reading.graph, places, threads)
    where = {place.tensor.name: place for place in places}
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for feeds, _ in zip(samples.batches(1), range(count), strict=False):
        values = _run(session, feeds) | {n: feeds[n] for n in names if n in feeds}
        for name in names:
            parts[name].append(floats(values[name], where[name], reading).reshape(-1))
    return {name: np.concatenate(values) for name, values in parts.items() if values}


def _run(session: Session, feeds: dict[str, Array]) -> dict[str, Array]:
    return session.run(_taken(session, feeds)) if session.outputs else {}


def _taken(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What a session asks for, floats in its own precision: a model may take half of what the other one takes."""
    found = {}
    for port in session.inputs:
        values = feeds.get(port.name)
        if values is not None:
            found[port.name] = values.astype(port.dtype) if values.dtype.kind == "f" else values
    return found


def floats(values: Array, place: Place, reading: Reading) -> Array:
    """The values of a place as floats: integers are scaled."""
    if values.dtype.kind == "f" and place.scale is None:
        return values
    scale, zero = reading.value(place.scale), reading.value(place.zero)
    result = values.astype(np.float32)
    if zero is not None and zero.size == 1:
        result = result - zero.astype(np.float32).reshape(())
    if scale is not None and scale.size == 1:
        result = result * scale.astype(np.float32).reshape(())
    return result


def _measure(group: list[Finding], before: Reading, after: Reading, samples: Batches, threads: int) -> None:
    entries = [f.pair.entry for f in group if f.pair.entry is not None]
    firsts = [e[0] for e in entries] + [f.pair.before.entries[0] for f in group if f.pair.entry is not None]
    firsts += [ends[0] for f in group for ends in f.pair.exits]
    source, source_names = tap(before.graph, firsts, threads)
    plain, plain_names = tap(after.graph, [ends[1] for f in group for ends in f.pair.exits], threads)
    cut, forced, exits = _cut(group, after)
    session = open_graph(cut, threads=threads, strict=False)
    for feeds in samples.batches(1):
        held = _run(source, feeds) | {n: feeds[n] for n in source_names if n in feeds}
        own_inputs = {
            name: _shaped(_taken_of(f.pair, ends, held, before).astype(np.float32), after.shapes.static(ends[1].tensor))
            for name, (f, ends) in forced.items()
        }
        own = session.run(_taken(session, feeds | own_inputs))
        piled = _run(plain, feeds) | {n: feeds[n] for n in plain_names if n in feeds}
        for finding in group:
            _add(finding, held, own, piled, exits, before, after)


def _taken_of(pair: Pair, ends: tuple[Place, Place], held: Mapping[str, Array], before: Reading) -> Array:
    """The first graph's values at the first of two places: those of them that the second graph has."""
    values, left = floats(held[ends[0].tensor.name], ends[0], before), pair.left_at(ends)
    return values if left is None else left.take(values)


def _shaped(values: Array, shape: tuple[int, ...] | None) -> Array:
    return values.reshape(shape) if shape is not None and prod(shape) == values.size else values


def _add(
    finding: Finding,
    held: dict[str, Array],
    own: dict[str, Array],
    piled: dict[str, Array],
    exits: dict[str, str],
    before: Reading,
    after: Reading,
) -> None:
    layer = finding.pair.before
    if finding.pair.entry is not None:
        a, b = finding.pair.entry
        near = layer.entries[0] if a.plain else a  # what an activation function cuts off is no loss
        finding.fed.add(floats(held[near.tensor.name], near, before), b)
    for k, (a, b) in enumerate(finding.pair.exits):
        reference, left = _taken_of(finding.pair, (a, b), held, before), finding.pair.left_at((a, b))
        channels = len(left.indices) if left is not None else 1 if layer.weight is None else len(layer.weight)
        finding.given[k].add(reference, b)
        if finding.pair.entry is not None and not finding.pair.after.fused and not layer.fused:
            alone = floats(own[exits[b.tensor.name]], b, after)
            if alone.size == reference.size:
                finding.own[k].add(reference, alone, channels)
        together = floats(piled[b.tensor.name], b, after)
        if together.size == reference.size:
            finding.piled[k].add(reference, together, channels)


def _by_channel(values: Array, channels: int, shape: tuple[int, ...]) -> Array:
    """[channels, elements] in float64; one row where no axis has that many."""
    array = values.astype(np.float64)
    axis = next((k for k in (len(shape) - 1, 1) if 0 <= k < len(shape) and shape[k] == channels), None)
    if len(shape) == 4 and shape[1] == channels:
        axis = 1
    return array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(channels, -1)


Forced = dict[str, tuple[Finding, tuple[Place, Place]]]


def _cut(group: list[Finding], after: Reading) -> tuple[Graph, Forced, dict[str, str]]:
    """The second graph with each layer's input made an input of the graph, and each layer's exits its outputs.

    Returns:
        The graph; by name of new input who is fed, and the places in both graphs; name in the cut graph by name of exit
        tensor.
    """
    graph = after.graph.clone()
    tensors, nodes = graph.tensors(), {node.name: node for node in graph.nodes}
    inputs: dict[str, Variable] = {t.name: t for t in graph.inputs}
    given: dict[str, Variable] = {}
    forced: Forced = {}
    for finding in group:
        if finding.pair.entry is None or finding.pair.entry[1].tensor.name in inputs:
            continue
        a, b = finding.pair.entry
        name = b.tensor.name
        if name not in given:
            entry = Variable(graph.unique_name(f"{name}_given"), np.dtype(np.float32), None)
            given[name] = _typed(graph, entry, b, tensors, after)
            forced[entry.name] = finding, (a, b)
            inputs[entry.name] = entry
        _lead(graph, nodes[finding.pair.after.node.name], tensors[name], given[name])
    graph.inputs = list(inputs.values())
    wanted = [tensors[ends[1].tensor.name] for f in group for ends in f.pair.exits]
    graph.outputs = list(dict.fromkeys(wanted))
    graph.sort()
    drop_unneeded(graph)
    needed = {t for node in graph.walk() for t in node.inputs}
    graph.inputs = [t for t in graph.inputs if t in needed or t in graph.outputs]
    return graph, {n: p for n, p in forced.items() if inputs[n] in needed}, {t.name: t.name for t in graph.outputs}


def _typed(graph: Graph, entry: Variable, place: Place, tensors: dict[str, Tensor], after: Reading) -> Variable:
    """The new input in the type and, for integers, at the scale of the place it stands for."""
    dtype = after.shapes.dtype(place.tensor)
    if place.scale is not None:
        ports = [entry, tensors[place.scale.name], *([tensors[place.zero.name]] if place.zero is not None else [])]
        entry = graph.add_node("QuantizeLinear", ports).output() or entry
    if dtype is not None and dtype != np.dtype(np.float32):
        entry = graph.add_node("Cast", [entry], attrs={"to": elem_type(dtype)}).output() or entry
    return entry


def _lead(graph: Graph, layer: Node, start: Tensor, value: Variable) -> None:
    """Let a layer read a value where it read `start`, by copies of the nodes between: others keep theirs.

    The layer in front of it is looked at behind the same quantization, which must go on reading what that layer gives.
    Nodes with several outputs, as dynamic quantization has, are no part of any exit and need no copy.
    """
    path = _path(layer, start)
    if path is None:
        return
    for node in path:
        port = next(k for k, t in enumerate(node.inputs) if t is start)
        if node is layer or len(node.outputs) > 1:
            node.inputs[port] = value
            return
        inputs = [value if k == port else t for k, t in enumerate(node.inputs)]
        copy = graph.add_node(node.op, inputs, attrs=dict(node.attrs), domain=node.domain)
        start, value = node.outputs[0], copy.outputs[0]


def _path(layer: Node, start: Tensor) -> list[Node] | None:
    """The nodes from a tensor to the layer that reads it, the layer last."""
    waiting: list[list[Node]] = [[layer]]
    for _ in range(64):
        if not waiting:
            return None
        path = waiting.pop(0)
        if any(t is start for t in path[0].inputs):
            return path
        makers = [t.producer for t in path[0].inputs if t.producer is not None]
        waiting += [[maker, *path] for maker in makers if maker is not None]
    return None
