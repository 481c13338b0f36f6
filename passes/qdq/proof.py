"""Does ONNX Runtime run what was written, on integers, and do its kernels compute what Q and DQ say? Asked of itself.

What fuses is decided by rewrites that come before the fusion of Q and DQ, and differs by version; some integer kernels
compute something else than the operator they stand for, and some fusions end in a model that the runtime refuses. So a
written graph is opened and run on a sample, and every node held against the same graph run literally: in float between
DequantizeLinear and QuantizeLinear, with all optimizations off. Each kernel gets the integers of the literal run, so
that no error of another one reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.clone import extract
from onnxcomp.graph.ir import Array, Graph, Node, Variable
from onnxcomp.passes.qdq.regions import Plan
from onnxcomp.runtime import kernels, opening
from onnxcomp.runtime.session import Feeds, Session
from onnxcomp.runtime.taps import Sessions
from onnxcomp.targets.base import Target

STEPS = 2  # an integer kernel may round otherwise by so many steps of its output's grid
FLOAT_SHARE = 0.02  # or, where it writes float, by so much of its largest value
ODD_SHARE = 1e-3  # for all but so many of the values
MOVED_SHARE = 0.02  # what stays float may come out on another step for so many of the values

IN_FLOAT = "ONNX Runtime runs it in float between Q and DQ"
FATAL = "opening the model with it on integers ends the process of ONNX Runtime with"
REACH = 4  # activation functions between a node and a QuantizeLinear that the runtime may look through


@dataclass
class Faults:
    """What does not run as a plan says.

    Attributes:
        barred: nodes of the plan that must not be integers, with the reason.
        fenced: names of tensors that must be kept apart from the Q behind them, or ONNX Runtime makes integers of a
            float node that gives them.
    """

    barred: dict[Node, str] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.barred or self.fenced)


def faults(graph: Graph, plan: Plan, target: Target, feed: Feeds, *, saturates: bool, sessions: Sessions) -> Faults:
    """What of a plan ONNX Runtime does not run as it stands.

    Args:
        graph: a copy of the graph with the plan written into it; nodes have the plan's names.
        feed: a few samples.
        saturates: weights are for processors with VNNI: what another one computes with them proves nothing.
    """
    planned = {node.name: node for node in (*plan.weighted, *plan.joined, *plan.moving)}
    skipped = {node.name for node in plan.weighted} if saturates else set()
    probe = _Probe(graph, planned, feed, sessions)
    found = Faults()
    if died := _death(graph, probe.cut):
        found.barred = dict.fromkeys((*plan.weighted, *plan.joined, *plan.moving), f"{FATAL} {died}")
        return found
    for name, why in probe.refused().items():
        _enter(found, planned.get(name), probe.behind(name), why)
    if found:
        return found
    moving = {node.name for node in plan.moving}
    try:
        ran = kernels.ran(graph, feed, threads=sessions.threads)
    except (ModelError, DataError) as error:
        # parts run and the whole does not: what the runtime carries its layouts through goes first, then all
        blamed = plan.moving or (*plan.weighted, *plan.joined)
        found.barred = dict.fromkeys(blamed, f"ONNX Runtime does not run the whole with it on integers ({error.what})")
        return found
    for name, kernel in ran.items():
        node = planned.get(name)
        if node is not None and not kernel.integer and name not in moving:
            found.barred[node] = f"{IN_FLOAT} ({kernel.op})"
        elif node is None and kernel.integer and name in probe.names and _weighted(probe.nodes[name], target):
            _enter(found, None, probe.behind(name), "")
    done = {node.name for node in found.barred} | skipped
    for name, why in probe.wrong(name for name in probe.names if name not in done).items():
        _enter(found, planned.get(name), probe.behind(name), why)
    return found


def _death(*graphs: Graph) -> str:
    """How ONNX Runtime ends while it opens graphs with bodies; empty where it does not, and for others, unasked.

    Its fusions reckon with a node's own inputs, not with what a body captures, and some fail an assertion there.
    """
    return opening.death(graphs) if any(node.bodies for node in graphs[0].nodes) else ""


def _weighted(node: Node, target: Target) -> bool:
    kernel = target.kernels.get(node.op) if not node.domain else None
    return kernel is not None and kernel.weighted


def _enter(found: Faults, node: Node | None, behind: str, why: str) -> None:
    if node is not None:
        found.barred[node] = why
    elif behind:
        found.fenced.add(behind)


class _Probe:
    """A written graph cut apart at every QuantizeLinear, with the values that flow there in a literal run.

    Attributes:
        nodes: of the written graph that are planned or stand before a Q, by name.
        names: by node, the tensor that shows what it computes: its integers, or floats where it writes those.
        values: of these tensors.
    """

    def __init__(self, graph: Graph, planned: Iterable[str], feed: Feeds, sessions: Sessions) -> None:
        self.sessions, self.feed, self.planned = sessions, dict(feed), set(planned)
        ends = {node: _end(node) for node in graph.nodes if node.op not in kernels.CONVERSIONS and node.outputs}
        self.nodes = {node.name: node for node, end in ends.items() if end is not None or node.name in self.planned}
        self._ends = {node.name: end for node, end in ends.items()}
        self.names = {name: _shown(node, self._ends[name]).name for name, node in self.nodes.items()}
        cuts = [node.outputs[0] for node in graph.nodes if node.op == "QuantizeLinear"]
        shown = [_shown(node, self._ends[name]) for name, node in self.nodes.items()]
        literal = extract(graph, graph.inputs, list(dict.fromkeys((*cuts, *shown)))).graph
        self.values: dict[str, Array] = sessions.of(literal, optimize=False, arena=False).run(self.feed)
        apart = extract(graph, [*graph.inputs, *cuts], list(dict.fromkeys(shown)))
        self._made = dict(zip(dict.fromkeys(t.name for t in shown), apart.graph.outputs, strict=True))
        self.cut = apart.graph
        self._session: Session | None = None
        for tensor in cuts:
            fed, value = apart.variable(tensor), self.values[tensor.name]
            fed.dtype, fed.shape, fed.envelope = value.dtype, value.shape, None
            self.feed[fed.name] = value

    def behind(self, name: str) -> str:
        """The name of the tensor behind a node that a Q reads; empty where there is none."""
        end = self._ends.get(name)
        return "" if end is None else end.inputs[0].name

    def refused(self) -> dict[str, str]:
        """The nodes that the runtime refuses to run in the form that it makes of them, by name, with its reason."""
        try:
            self._session = self.sessions.of(self.cut, strict=True, arena=False)
        except ModelError:
            return {name: why for name in self.names if (why := self._refuses(name))}
        return {}

    def _refuses(self, name: str) -> str:
        alone = extract(self.cut, self.cut.inputs, [self._made[self.names[name]]])
        try:
            self.sessions.of(alone.graph, strict=True)
        except ModelError as error:
            return f"ONNX Runtime refuses the integer form that it makes of it: {error.what}"
        return ""

    def wrong(self, nodes: Iterable[str]) -> dict[str, str]:
        """The nodes whose kernels compute something else than the literal run, by name, with how much."""
        known = list(nodes)
        names = list(dict.fromkeys(self._made[self.names[name]].name for name in known))
        got = (self._session or self.sessions.of(self.cut, arena=False)).run(self.feed, names) if names else {}
        found = {}
        for name in known:
            shown = self.names[name]
            if why := _differs(self.values[shown], got[self._made[shown].name], integer=name in self.planned):
                found[name] = why
        return found


def _end(node: Node) -> Node | None:
    """The QuantizeLinear that alone reads what a node gives, right behind it or behind activation functions."""
    for _ in range(REACH):
        readers = node.outputs[0].outputs
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op == "QuantizeLinear":
            return node
        if node.op not in ("Relu", "Clip"):
            return None
    return None


def _shown(node: Node, end: Node | None) -> Variable:
    """The integers that a node's output becomes right behind it, or the output itself."""
    output: Variable = node.outputs[0] if end is None else end.outputs[0]
    return output


def _differs(wanted: Array, got: Array, *, integer: bool) -> str:
    """How a kernel's result differs from the literal one, in words; empty where it is the same but for rounding."""
    error = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    error = error[np.isfinite(error)]
    real = wanted.dtype.kind == "f"
    largest = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)) if real else 0.0
    limit = FLOAT_SHARE * largest if real else STEPS
    moved = not integer and not real and np.count_nonzero(error) > MOVED_SHARE * error.size
    if not moved and np.count_nonzero(error > limit) <= ODD_SHARE * error.size:
        return ""
    unit = f" where the largest value is {largest:.3g}" if real else " steps of its grid"
    return f"its integer kernel in ONNX Runtime computes something else, by up to {error.max():.3g}{unit}"
