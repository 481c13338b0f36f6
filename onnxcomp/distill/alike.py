"""Does the copy that trains compute what the model computes? Both are run on real samples, and their outputs compared.

The copy is run twice: by ONNX Runtime, which shows a wrong rewrite, and by the training runtime, whose kernels are
older and differ for some attributes. A gradient that is checked against differences of the copy's own loss shows
neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxcomp.distill import engine
from onnxcomp.distill.environment import Environment
from onnxcomp.distill.trainable import Prepared
from onnxcomp.errors import ModelError
from onnxcomp.graph.ir import Array, Graph, Node
from onnxcomp.graph.noops import draws
from onnxcomp.manager.guarantee import ROUNDINGS, coarsest_step, rounded_anew
from onnxcomp.ops.facts import Operators
from onnxcomp.runtime.closeness import worst_sqnr_db
from onnxcomp.runtime.taps import tapped

NOT_COMPARED = "the copy that trains was not compared with the model"
LEAST_DB = 60.0  # float32 in another order of sums stays far above, a wrong kernel far below
ROUNDING_DB = 10.0  # what the copy may be worse by than the model with its weights rounded anew
TAPPED = 32  # tensors that are looked at together when the first difference is searched
TRAINING_ONLY = frozenset({"GRUTraining", "LSTMTraining"})  # operators that only the training runtime has

Values = Mapping[str, Array]
Run = Callable[[Sequence[str]], Values]


def check(
    original: Graph,
    ready: Prepared,
    feeds: Values,
    operators: Operators,
    *,
    threads: int = 1,
    runtime: Environment | None = None,
) -> list[str]:
    """Run the model and its training form beside each other; notes on what could not be compared.

    Args:
        original: the graph that `ready` was prepared from.
        feeds: as many samples as the training form takes, by name of input.
        runtime: the training environment; found, or made, by default.

    Raises:
        ModelError: they differ; names the first operator where they do.
    """
    if any(draws(node, operators, original.opset) for node in original.walk()):
        return [f"{NOT_COMPARED}: it draws random numbers"]
    names = [t.name for t in original.outputs]
    exact = _model(original, ready, feeds)
    wanted = exact(names)
    least = _allowed(original, ready, feeds, wanted)
    copies = {"the training runtime": _trainer(ready, feeds, runtime)}
    if not set(ready.graph.operators()) & TRAINING_ONLY:
        copies = {"ONNX Runtime": _runner(ready.graph, feeds, threads), **copies}
    for where, copy in copies.items():
        found = _db(wanted, copy(names))
        if found < LEAST_DB and found < least():
            limit = min(LEAST_DB, least())
            raise _differs(_first(original, ready, exact, copy, limit), found, where)
    return []


def _differs(node: Node | None, found: float, where: str) -> ModelError:
    what = f"from {node.op} {node.name} on" if node is not None else "somewhere"
    return ModelError(
        f"the copy of the model that would be trained computes something else {what}: {found:.1f} dB in {where}",
        where=f"node {node}" if node is not None else "the outputs",
        do="write that operator in others, and report it: what would be trained is not this model",
    )


def _db(wanted: Values, found: Values) -> float:
    return worst_sqnr_db([wanted], [{name: np.asarray(found[name], array.dtype) for name, array in wanted.items()}])


def _allowed(original: Graph, ready: Prepared, feeds: Values, wanted: Values) -> Callable[[], float]:
    """The worst that rounding explains, found when it is needed: with its weights rounded anew the model differs, too.

    Where values are rounded inside, a difference in the last place of a sum can become one of a whole step.
    """
    known: list[float] = []

    def least() -> float:
        if not known:
            step = ROUNDINGS * coarsest_step(original)
            coarse = -20 * math.log10(step) if step else math.inf
            moved = _model(rounded_anew(original, 0), ready, feeds)(list(wanted))
            known.append(min(coarse, _db(wanted, moved) - ROUNDING_DB))
        return known[0]

    return least


# -- running -----------------------------------------------------------------------------------------------------------


def _model(original: Graph, ready: Prepared, feeds: Values) -> Run:
    """Runs the model; one sample after the other where it takes no more, results joined along axis 0."""
    original = _in_floats(original)
    declared = {t.name: t.shape for t in original.inputs}
    alone = {name for name, shape in declared.items() if shape and shape[0] == 1 and len(feeds[name]) > 1}
    count = ready.batch if alone else 1

    def run(names: Sequence[str]) -> Values:
        session = tapped(original, names, 1, optimize=False)
        parts = []
        for i in range(count):
            own = {name: array[i : i + 1] if name in alone else array for name, array in feeds.items()}
            parts.append(session.run({port.name: own[port.name] for port in session.inputs}))
        if count == 1:
            return parts[0]
        return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in names}

    return run


def _in_floats(graph: Graph) -> Graph:
    """The graph with products in float where a kernel was allowed to round activations to 8 bits, unasked."""
    if not any("accuracy_level" in node.attrs for node in graph.walk()):
        return graph
    copy = graph.clone()
    for node in copy.walk():
        if "accuracy_level" in node.attrs:
            node.attrs["accuracy_level"] = 1
    return copy


def _runner(graph: Graph, feeds: Values, threads: int) -> Run:
    def run(names: Sequence[str]) -> Values:
        session = tapped(graph, names, threads, optimize=False)
        return session.run({port.name: feeds[port.name] for port in session.inputs})

    return run


def _trainer(ready: Prepared, feeds: Values, runtime: Environment | None) -> Run:
    return lambda names: engine.forward(ready.graph, feeds, names, runtime=runtime)


# -- searching ---------------------------------------------------------------------------------------------------------


def _first(original: Graph, ready: Prepared, exact: Run, copy: Run, limit: float) -> Node | None:
    """The node of the model behind which its tensors and the copy's are no longer alike."""
    makers = {t.name: node for node in original.nodes for t in node.outputs if t.name}
    order = [t.name for node in ready.graph.nodes for t in node.outputs if t.name in makers]
    shapes = {t.name: t.shape for node in ready.graph.nodes for t in node.outputs}
    for names in _chunks(order):
        wanted, found = exact(names), copy(names)
        for name in names:
            if wanted[name].shape != found[name].shape or shapes[name] is None:
                continue  # a size that the copy fixed
            if wanted[name].dtype.kind == "f" and _db({name: wanted[name]}, {name: found[name]}) < limit:
                return makers[name]
    return None


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(names), TAPPED):
        yield names[at : at + TAPPED]
