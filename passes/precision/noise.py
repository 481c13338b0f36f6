"""How much error does each form of each layer bring into the outputs? Measured at the layer, then carried to the end.

Every form is run once on what the layer reads in the float model, with the kernels that will run it, which gives the
error at its output. One model with an Add behind every layer then tells what such an error does to each part of the
outputs. Forms do not share a run: errors of weights have a mean, which pooling lets pass, those of activations not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph import shapes as shape_tools
from onnxcomp.graph.clone import drop_unneeded, extract
from onnxcomp.graph.ir import Array, Graph, Variable
from onnxcomp.passes.precision.layers import Layer
from onnxcomp.passes.qdq import sensitivity
from onnxcomp.passes.qdq.ranges import Grid
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.sensitivity import Noise, mean, worst
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.closeness import Tally, is_float, rows_of
from onnxcomp.runtime.parts import FILL_SPREAD, Slices, slices_of
from onnxcomp.runtime.progress import Progress
from onnxcomp.runtime.session import AS_WRITTEN, Session
from onnxcomp.runtime.taps import Sessions
from onnxcomp.targets.base import Target

RELEVANT = 0.2  # layers with less than this part of the mean error are not looked at on further samples
FOLLOWS = {"half": "stored8"}  # errors of the same kind, of which the smaller follows the larger by its energy
HOPELESS = 1e6  # of errors that are not finite

Deltas = dict[str, list[Array]]  # by layer: the error of each activation that it writes


@dataclass
class Probe:
    """The float model, opened so that layers can be looked at, and errors put in behind them."""

    graph: Graph
    layers: Sequence[Layer]
    sessions: Sessions
    _exact: Session = field(init=False)
    _disturbed: Session = field(init=False)
    _ports: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self._inputs = {t.name for t in self.graph.inputs}
        names = dict.fromkeys(n for layer in self.layers for n in (*layer.reads, *layer.writes))
        self._exact = self.sessions.tapped(self.graph, [n for n in names if n not in self._inputs])
        self._disturbed, self._ports = _disturbed(self.graph, self.layers, self.sessions)
        self.outputs = [t.name for t in self.graph.outputs]
        self._off = {port: np.zeros((), np.float32) for ports in self._ports.values() for port in ports}

    def values(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What every layer reads and writes in the float model."""
        return {**feed, **self._exact.run(dict(feed))}

    def without(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs without any error."""
        return self._disturbed.run({**feed, **self._off}, self.outputs)

    def behind(self, feed: Mapping[str, Array], layer: Layer, deltas: Sequence[Array]) -> dict[str, Array]:
        """The outputs with errors added to what one layer writes."""
        fed = dict(zip(self._ports[layer.name], deltas, strict=True))
        return self._disturbed.run({**feed, **self._off, **fed}, self.outputs)


def _disturbed(graph: Graph, layers: Sequence[Layer], sessions: Sessions) -> tuple[Session, dict[str, list[str]]]:
    copy, shapes = graph.clone(), shape_tools.infer(graph)
    tensors = copy.tensors()
    ports: dict[str, list[str]] = {}
    for layer in layers:
        for name in layer.writes:
            tensor = tensors[name]
            assert isinstance(tensor, Variable) and tensor.producer is not None
            node = tensor.producer
            # the sum does not tell its shape, as an error may be a single number
            tensor.dtype, tensor.shape = shapes.dtype(tensor), shapes.shape(tensor)
            raw = Variable(copy.unique_name("raw"), np.dtype(np.float32))
            node.outputs[next(i for i, t in enumerate(node.outputs) if t is tensor)] = raw
            added = Variable(copy.unique_name("error"), np.dtype(np.float32))
            copy.inputs.append(added)
            ports.setdefault(layer.name, []).append(added.name)
            copy.add_node("Add", [raw, added], name="disturbed", outputs=[tensor])
    copy.sort()
    return sessions.of(copy), ports


class Alone:
    """All layers of one form side by side, each of which reads what it reads in the float model."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], sessions: Sessions) -> None:
        tensors, shapes = graph.tensors(), shape_tools.infer(graph)
        read = [tensors[n] for n in dict.fromkeys(n for layer in layers for n in layer.reads)]
        fed = [t for t in read if isinstance(t, Variable)]
        self.layers = layers
        self._writes = list(dict.fromkeys(n for layer in layers for n in layer.writes))
        part = extract(graph, [*graph.inputs, *fed], [tensors[n] for n in self._writes])
        for tensor in fed:
            new = part.variable(tensor)
            new.dtype = new.dtype or shapes.dtype(tensor) or np.dtype(np.float32)
        self._given = [t.name for t in part.graph.inputs]
        self._made = [t.name for t in part.graph.outputs]
        self._session = sessions.of(part.graph, arena=False)

    def deltas(self, values: Mapping[str, Array]) -> Deltas:
        """The error of each layer on these values of the float model."""
        made = self._session.run({name: values[name] for name in self._given if name in values}, self._made)
        found = dict(zip(self._writes, made.values(), strict=True))
        return {layer.name: [found[n] - values[n] for n in layer.writes] for layer in self.layers}


class StaticAlone:
    """As `Alone`, for integers with static scales, whose inputs and outputs are rounded as well."""

    def __init__(
        self,
        graph: Graph,
        layers: Mapping[str, Layer],
        target: Target,
        plan: Plan,
        grids: Mapping[Variable, Grid],
        integers: Sequence[Integers],
        sessions: Sessions,
    ) -> None:
        copy = graph.clone()
        twins = {node.name: node for node in copy.nodes}
        self._names: dict[str, list[str]] = {}
        outputs = []
        self.layers = layers
        for item in integers:
            layer = layers[item.node.name]
            made = sensitivity.rounded(copy, copy, target, plan, grids, item, twins)
            outputs.append(made)
            self._names.setdefault(layer.name, []).append(made.name)
        copy.outputs = list(outputs)
        copy.sort()
        drop_unneeded(copy)
        self._given = {t.name for t in copy.inputs}
        self._session = sessions.of(copy, arena=False, config=AS_WRITTEN)

    def deltas(self, values: Mapping[str, Array]) -> Deltas:
        """The error of each layer; what comes before a layer is exact."""
        found = self._session.run({name: values[name] for name in self._given})
        named = {layer.name: layer for layer in self.layers.values()}
        return {
            name: [found[made] - values[write] for made, write in zip(names, named[name].writes, strict=True)]
            for name, names in self._names.items()
        }


class Yardstick:
    """What errors of the outputs are held against, part by part, over all feeds together.

    Scores of things that are rare say nothing on one sample: signals are those of all of them.
    """

    def __init__(self, exact: Sequence[Mapping[str, Array]], rows: Sequence[int]) -> None:
        self._exact, self._feeds = exact, len(exact)
        self._parts: dict[str, list[Slices]] = {}
        self._fill: dict[str, float] = {}
        for name in exact[0]:
            if not is_float(exact[0][name].dtype):
                self._parts[name] = []
                continue
            tally = Tally(varying=True)
            for outputs, count in zip(exact, rows, strict=True):
                tally.add(outputs[name], outputs[name], count)
            self._parts[name] = slices_of(list((tally.axes or {}).values()))
            if tally.filling.value is not None:
                self._fill[name] = tally.filling.value

    def noise(self, place: int, found: Mapping[str, Array]) -> Noise:
        """Noise over signal of each part on one feed; of decisions, the share of unequal ones squared."""
        noise: Noise = {}
        for name, wanted in self._exact[place].items():
            got = found[name]
            if got.shape != wanted.shape:
                continue  # as many rows as the values say: nothing to hold against one another
            if not is_float(wanted.dtype):
                noise[name, ""] = float(np.mean(wanted != got)) ** 2 if wanted.size else 0.0
                continue
            error = got.astype(np.float64) - wanted
            if name in self._fill:
                error[np.abs(wanted - self._fill[name]) <= FILL_SPREAD * abs(self._fill[name])] = 0.0
            error = np.where(np.isfinite(wanted), error, 0.0)
            energy = {axis: _along(error, axis) for axis in {part.axis for part in self._parts[name]}}
            for number, part in enumerate(self._parts[name]):
                if len(energy[part.axis]) == part.size and part.signal > 0:
                    share = float(energy[part.axis][part.places].sum()) * self._feeds / part.signal
                    noise[name, str(number)] = share if np.isfinite(share) else HOPELESS
            if not self._parts[name] and wanted.size:
                noise[name, ""] = float((error**2).sum() / max((wanted.astype(np.float64) ** 2).sum(), 1e-30))
        return noise


def _along(error: Array, axis: int) -> Array:
    """Energy of each slice along an axis."""
    rest = tuple(a for a in range(error.ndim) if a != axis)
    return np.asarray(np.square(error).sum(axis=rest))


def measured(
    probe: Probe,
    forms: Mapping[str, Alone | StaticAlone],
    feeds: Sequence[Mapping[str, Array]],
    progress: Progress,
) -> dict[str, dict[str, Noise]]:
    """Noise over signal of each part of the outputs, by layer and form, when that layer alone has that form."""
    stick = Yardstick([probe.without(feed) for feed in feeds], [rows_of(feed) for feed in feeds])
    noise: dict[str, dict[str, list[Noise]]] = {layer.name: {} for layer in probe.layers}
    todo = list(probe.layers)
    for place, feed in enumerate(feeds):
        values = probe.values(feed)
        deltas = {name: form.deltas(values) for name, form in forms.items()}
        for layer in progress.track(todo, len(todo), "errors of layers"):
            given = {name: found[layer.name] for name, found in deltas.items() if layer.name in found}
            run = functools.partial(_run, probe, layer, place, feed, stick)
            for form, share in _of_layer(run, given).items():
                noise[layer.name].setdefault(form, []).append(share)
        most = {layer.name: max((worst(mean(n)) for n in noise[layer.name].values()), default=0.0) for layer in todo}
        todo = [layer for layer in todo if most[layer.name] > RELEVANT * sum(most.values()) / len(most)]
    return {name: {form: mean(shares) for form, shares in found.items()} for name, found in noise.items()}


def _run(
    probe: Probe, layer: Layer, place: int, feed: Mapping[str, Array], stick: Yardstick, deltas: Sequence[Array]
) -> Noise:
    return stick.noise(place, probe.behind(feed, layer, deltas))


def _of_layer(run: Callable[[Sequence[Array]], Noise], deltas: Mapping[str, Sequence[Array]]) -> dict[str, Noise]:
    """The noise of each form on one feed."""
    energy = {form: float(sum(np.square(d, dtype=np.float64).sum() for d in found)) for form, found in deltas.items()}
    result: dict[str, Noise] = {}
    for form in sorted(energy, key=lambda name: name in FOLLOWS):
        leader = FOLLOWS.get(form, form)
        if not np.isfinite(energy[form]):
            continue  # it overflows on these values: no option
        if energy[form] == 0.0:
            result[form] = {}
        elif leader != form and result.get(leader):
            share = energy[form] / energy[leader]
            result[form] = {part: value * share for part, value in result[leader].items()}
        else:
            result[form] = run(deltas[form])
    return result
