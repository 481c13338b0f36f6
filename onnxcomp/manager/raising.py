"""Is the model still the same after its opset was raised? Both are run and compared before the graph changes."""

from __future__ import annotations

from onnxcomp.errors import DataError, ModelError
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.noops import draws
from onnxcomp.graph.opset import changes, upgrade
from onnxcomp.manager.base import PassContext
from onnxcomp.manager.guarantee import ROUNDINGS, Probe, coarsest_step, difference

TOLERANCE = 1e-4  # relative to an output's largest value; a newer form may sum in another order


def raise_opset(graph: Graph, version: int, context: PassContext | None = None) -> list[str]:
    """Bring a model to at least opset `version` of the default domain, in place.

    The raised model is run beside the old one on the calibration samples of the context, or on made-up ones.

    Returns:
        What was done, a sentence each; nothing where the model is new enough.

    Raises:
        ModelError: an operator has no equal in the new opset, or the raised model gives something else. The graph is
            then as it was.
    """
    graph = graph.root
    before = graph.opset
    if before >= version:
        return []
    raised = graph.clone()
    upgrade(raised, version)
    context = context or PassContext()
    unknown = _compare(graph, raised, before, context)
    notes = upgrade(graph, version)
    return [*notes, f"the raised model was not compared with the old one: {unknown}"] if unknown else notes


def _compare(graph: Graph, raised: Graph, before: int, context: PassContext) -> str:
    """Why the two could not be compared; empty where they were and agree."""
    if any(draws(node, context.operators, before) for node in graph.walk()):
        return "it draws random numbers"
    probe = Probe(context)
    try:
        expected = probe.outputs(graph)
    except (ModelError, DataError) as error:
        return error.what
    version = raised.opset
    try:
        actual = probe.outputs(raised)
    except (ModelError, DataError) as error:
        raise _refused(graph, before, version, f"it no longer runs: {error.what}") from error
    allowed = max(TOLERANCE, ROUNDINGS * coarsest_step(graph))
    for wanted, got in zip(expected, actual, strict=True):
        for name in wanted:
            how = difference(wanted[name], got[name], allowed)
            if how:
                raise _refused(graph, before, version, f"output {name}: {how}")
    return ""


def _refused(graph: Graph, before: int, version: int, how: str) -> ModelError:
    changed = {node.op for node in graph.walk() if not node.domain and changes(node.op, before, version)}
    return ModelError(
        f"the model gives something else when its opset is raised from {before} to {version}: {how}",
        where=f"operators with a new form: {', '.join(sorted(changed)) or 'none'}",
        do=f"export the model with opset {version} or newer, and report this with the model",
    )
