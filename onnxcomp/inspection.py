"""What is in a model, and what could passes do with it? Nothing is written and no data is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxcomp.data.inputs import InputSpec, with_shapes
from onnxcomp.data.synthetic import guessed_shapes
from onnxcomp.errors import ModelError, OnnxcompError
from onnxcomp.graph import cost
from onnxcomp.graph.functions import inline_functions
from onnxcomp.graph.io import read, total_bytes
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.literals import is_weight, lift
from onnxcomp.graph.shapes import blamed_on
from onnxcomp.manager import registry
from onnxcomp.manager.base import Guarantee, Need, Outcome, Pass, PassContext
from onnxcomp.ops.facts import Operators, load_operators
from onnxcomp.report.notebook import fragment
from onnxcomp.report.tables import count_text, shapes_text, size_text
from onnxcomp.results import IDLE, ModelStats

TRIED_BYTES = 64 * 2**20  # of weights: up to here a lossy pass is tried, beyond only what it may look at is told


@dataclass(frozen=True)
class Prospect:
    """What one pass could do: a line of words, and how many things an exact or close pass would change."""

    name: str
    guarantee: str
    what: str
    changes: int | None = None


@dataclass(frozen=True)
class CoupledGroup:
    """Units that stand in the same axes of the same weights, each of which leaves with all its slices.

    Attributes:
        units: how many; each stands for `channels_each` indices of the first weight.
        weights: names of the weights that lose slices.
        stream: whether several layers add up in these channels.
        inexact: what changes even when a unit that is zero leaves; empty where nothing does.
        macs_share: share of the model's multiply-accumulates that its width scales.
    """

    name: str
    kind: str
    units: int
    channels_each: int
    weights: tuple[str, ...]
    stream: bool
    inexact: str
    macs_share: float


@dataclass(frozen=True)
class Inspection:
    """A model, laid open. `sample`: the shapes of one sample's inputs, at which operations are counted."""

    path: str
    stats: ModelStats
    opset: int
    producer: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    operators: dict[str, int]
    layers: tuple[cost.LayerCost, ...]
    prospects: tuple[Prospect, ...]
    notes: tuple[str, ...]
    groups: tuple[CoupledGroup, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    prunable_macs_share: float | None = None
    sample: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def facts(self) -> list[tuple[str, str]]:
        """What is said of the model as a whole, as text."""
        stats = self.stats
        common = sorted(self.operators.items(), key=lambda item: (-item[1], item[0]))[:8]
        return [
            ("size", size_text(stats.bytes)),
            (
                "parameters",
                f"{count_text(stats.parameters)}, {stats.parameters - stats.nonzero_parameters:,} of them zero",
            ),
            ("MACs, one sample", f"{count_text(stats.macs)} {shapes_text(self.sample)}".rstrip()),
            ("nodes", f"{stats.nodes}: " + ", ".join(f"{count} {op}" for op, count in common)),
            ("opset", f"{self.opset}" + (f", from {self.producer}" if self.producer else "")),
            *(("input", f"{name} {kind}") for name, kind in self.inputs.items()),
            *(("output", f"{name} {kind}") for name, kind in self.outputs.items()),
        ]

    def __repr__(self) -> str:
        return f"<Inspection {self.path}: {', '.join(f'{words} {name}' for name, words in self.facts()[:3])}>"

    def _repr_html_(self) -> str:
        return fragment(self.path, ("", ""), self.facts(), self.notes)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data. `kept`: layers whose outputs all stay, and why; known when groups were asked for."""
        return asdict(self)


def inspect(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, *, groups: bool = False) -> Inspection:
    """Read a model and what passes could do with it.

    Args:
        shapes: input shapes of one sample; sizes that neither they nor the model give are guessed, and that is noted.
        groups: look for coupled groups of channels, heads and neurons.

    Raises:
        ModelError: the file cannot be used.
    """
    graph, files = read(path)
    size = sum(file.stat().st_size for file in files)
    with blamed_on(graph):
        return _looked_at(path, graph, size, shapes, groups=groups)


def _looked_at(
    path: Path, graph: Graph, size: int, shapes: Mapping[str, tuple[int, ...]] | None, *, groups: bool
) -> Inspection:
    """A graph that was read, from files of `size` bytes."""
    operators = load_operators()
    notes = list(graph.notes)
    inputs = [InputSpec(t.name, t.dtype, t.shape) for t in graph.inputs if t.dtype is not None]
    sample, guesses = guessed_shapes(with_shapes(inputs, shapes))
    notes.extend(guesses)
    coupled = _coupling(graph.clone(), operators, sample, notes) if groups else {}
    return Inspection(
        path=str(path),
        stats=cost.stats(graph, operators, file_bytes=size, sample=sample),
        opset=graph.opset,
        producer=" ".join(filter(None, (graph.model.producer_name, graph.model.producer_version))),
        inputs={t.name: _type(t.dtype, t.shape) for t in graph.inputs},
        outputs={t.name: _type(t.dtype, t.shape) for t in graph.outputs},
        operators=graph.operators(),
        layers=tuple(cost.layers(graph, operators, sample)),
        prospects=tuple(_prospects(graph, PassContext(operators=operators, sample_shapes=sample))),
        notes=tuple(notes),
        sample=dict(sample),
        **coupled,
    )


def _coupling(
    graph: Graph, operators: Operators, shapes: Mapping[str, tuple[int, ...]], notes: list[str]
) -> dict[str, Any]:
    """The fields of an Inspection that say what is coupled with what."""
    from onnxcomp.graph.coupling.analysis import analyse
    from onnxcomp.graph.coupling.costing import Costing
    from onnxcomp.graph.coupling.streams import added_up

    coupling = analyse(graph, operators, shapes)
    costing = Costing(coupling, operators)
    streams = added_up(coupling)
    notes.extend(
        f"{op} has no coupling rule: what enters its {count} nodes stays whole"
        for op, count in coupling.without_rule.items()
    )

    def share(*groups: Any) -> float:
        return costing.touched_macs(groups) / costing.macs if costing.macs else 0.0

    found = tuple(
        CoupledGroup(
            group.name,
            group.kind,
            group.size,
            int(group.slots[0].indices.shape[1]),
            tuple(dict.fromkeys(slot.constant.name for slot in group.slots)),
            group.name in streams,
            group.why_inexact,
            round(share(group), 6),
        )
        for group in coupling.groups
    )
    whole = share(*coupling.groups)
    return {"groups": found, "kept": coupling.kept, "prunable_macs_share": round(whole, 6)}


def _type(dtype: Any, shape: Any) -> str:
    dims = "?" if shape is None else ", ".join("?" if d is None else str(d) for d in shape)
    return f"{dtype} [{dims}]"


def _prospects(graph: Graph, context: PassContext) -> list[Prospect]:
    """What each pass could do, as it would meet the graph: with functions inlined and weights as initializers."""
    found, operators = [], context.operators
    opened = graph.clone()
    with contextlib.suppress(ModelError):  # functions of another opset stay, and passes leave them alone
        inline_functions(opened)
    lift(opened, is_weight)
    tried = {True: opened.clone(), False: graph.clone()}  # by whether a pass may lose something
    for name in registry.names():
        cls = registry.find(name)
        try:
            item = cls()
        except OnnxcompError:  # an option has no default that means anything, such as how much to prune
            found.append(Prospect(name, cls.guarantee.value, _reach(cls, opened, operators)))
            continue
        lossy = item.promises() is Guarantee.LOSSY
        if needs_more(item) or (lossy and total_bytes(graph) > TRIED_BYTES):
            found.append(Prospect(name, item.promises().value, _reach(cls, opened, operators)))
            continue
        try:
            outcome = item.run(tried[lossy], context)
        except OnnxcompError as error:
            found.append(Prospect(name, item.promises().value, error.what))
            tried[lossy] = (opened if lossy else graph).clone()
            continue
        if outcome.changes:  # what a pass left as it was serves the next one: a copy of deep bodies takes its time
            tried[lossy] = (opened if lossy else graph).clone()
        words = outcome.summary or (f"{len(outcome.changes)} changes" if outcome.changes else IDLE)
        found.append(Prospect(name, item.promises().value, words, len(outcome.changes)))
    return found


def needs_more(item: Pass) -> bool:
    """Whether a pass needs what an inspection does not have: data, labels, a training runtime."""
    return bool(set(item.required()) & {Need.DATA, Need.LABELS, Need.TRAINING})


def _reach(cls: type[Pass], graph: Graph, operators: Operators) -> str:
    """How many weights a lossy pass may look at, and what share of the parameters they hold."""
    uses = _Probe().weights(graph, PassContext(operators=operators), Outcome())
    constants = dict.fromkeys(use.constant for use in uses)
    total = cost.parameters(graph, operators).total
    share = sum(c.size for c in constants) / total if total else 0.0
    needs = "; needs calibration data" if Need.DATA in cls.needs else ""
    return f"{len(constants)} weights, {min(share, 1.0):.1%} of the parameters{needs}"


@dataclass(frozen=True)
class _Probe(Pass):
    """Selects all weights, changes nothing."""

    name = "probe"

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        return Outcome()
