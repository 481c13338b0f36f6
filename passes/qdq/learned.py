"""What did one run of static quantization find out that another run on a copy of the graph need not find again?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcomp.graph.ir import Array, Node, Variable
from onnxcomp.ops.facts import Weight
from onnxcomp.passes.qdq.emit import Written
from onnxcomp.passes.qdq.proof import Faults
from onnxcomp.passes.qdq.ranges import Grid, Method
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.passes.qdq.sensitivity import Noise
from onnxcomp.passes.qdq.trials import Trials
from onnxcomp.passes.qdq.weights import Integers
from onnxcomp.runtime.activations import Activation
from onnxcomp.runtime.closeness import EXACT_DB
from onnxcomp.runtime.reference import Reference


@dataclass(frozen=True)
class NamedFaults:
    """`Faults`, with nodes by their names."""

    barred: Mapping[str, str]
    fenced: set[str]


def mark(plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]) -> str:
    """A hash of all that decides what is written of a placement into copies of one graph."""
    digest = hashlib.blake2b(digest_size=16)
    roles = (plan.weighted, plan.joined, plan.moving, plan.rewritten)
    folded = [(node.name, fold.name) for node, fold in plan.folded.items()]
    ends = [(t.name, grids[t].scale, grids[t].zero) for t in plan.tensors]
    sides = [[t.name for t in side] for side in (plan.read, plan.made)]
    words = ([[node.name for node in role] for role in roles], list(plan.joined.values()), folded, ends, sides)
    fenced = [t.name for t in plan.tensors if t.name in plan.fenced]
    digest.update(repr((words, fenced)).encode())
    for node in plan.weighted:
        layer = layers[node]
        for array in (layer.integers, layer.scales, layer.bias):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _hash(array: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


@dataclass
class Learned:
    """What a run on a graph found out that holds for a copy of it.

    Attributes:
        seen: statistics by tensor name.
        chosen: the grid of each tensor by itself, by its name.
        method: how ranges are chosen, where that was tried out.
        rounded: layers with each weight at the nearest level, by what decides that.
        noise: that each layer alone brings into the outputs, by node name.
        reached_db: what the placement taken kept before weights and biases were refined.
        refined: weights and biases of layers once they were, by node name.
        reference: the graph's answers to a few samples, which placements are held against.
        reached: what placements keep before weights and biases are refined, in dB, by their `mark`.
        held: the share of the noise allowed that placements were foretold, when what was measured held; by their toll.
        tolls: those whose placements were not clearly slower than the best; None as long as nothing was timed.
        proven: what of placements ONNX Runtime does not run as they stand, by their `mark`.
    """

    seen: dict[str, Activation] = field(default_factory=dict)
    chosen: dict[str, Grid] = field(default_factory=dict)
    method: Method | None = None
    rounded: dict[Hashable, Integers] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)
    reached_db: float = 0.0
    refined: dict[str, Integers] = field(default_factory=dict)
    reference: Reference | None = None
    reached: dict[str, float] = field(default_factory=dict)
    proven: dict[str, NamedFaults] = field(default_factory=dict)
    held: dict[float, float] = field(default_factory=dict)
    tolls: tuple[float | None, ...] | None = None

    def layer(self, node: Node, weight: Weight, how: Hashable, make: Callable[[], Integers]) -> Integers:
        """A layer with each weight at the nearest level, found once.

        Args:
            how: all that decides it beside its name, its weight and its bias.
        """
        constants = [node.constant(port) for port in (weight.port, weight.bias) if port is not None]
        key = (node.name, how, *(None if constant is None else _hash(constant.values) for constant in constants))
        if key not in self.rounded:
            self.rounded[key] = make()
        return replace(self.rounded[key], node=node)

    def keeps_db(
        self, trials: Trials, plan: Plan, grids: Mapping[Variable, Grid], layers: Mapping[Node, Integers]
    ) -> float:
        """What a placement keeps before refinement, in dB; measured once, whichever way leads to it."""
        if not plan.weighted:
            return EXACT_DB
        placement = mark(plan, grids, layers)
        if placement not in self.reached:
            self.reached[placement] = trials.sqnr_db(trials.written(plan, grids, layers))
        return self.reached[placement]

    def faults(self, placement: str, plan: Plan, prove: Callable[[], Faults]) -> Faults:
        """What of a placement does not run as it stands, in terms of the plan's nodes: asked once."""
        if placement not in self.proven:
            found = prove()
            self.proven[placement] = NamedFaults({str(n.name): why for n, why in found.barred.items()}, found.fenced)
        known = self.proven[placement]
        nodes = (*plan.weighted, *plan.joined, *plan.moving)
        return Faults({n: known.barred[n.name] for n in nodes if n.name in known.barred}, set(known.fenced))

    def refine(self, layers: Mapping[Node, Integers], written: Written) -> list[Node]:
        """Give layers the weights and biases that they had in the run before; those whose scales are others are left.

        What a layer gets from those before it differs a little between placements. That is measured with the whole,
        and rounding all of them anew takes as long as everything else.
        """
        done = []
        for node, layer in layers.items():
            known = self.refined.get(node.name)
            if known is None or not np.array_equal(known.scales, layer.scales):
                continue
            layer.integers, layer.bias = known.integers, known.bias
            if node in written.weights:
                written.weights[node].values = layer.tensor()
            if node in written.biases and layer.bias is not None:
                written.biases[node].store(layer.bias)
            done.append(node)
        return done
