"""How does a graph come to a newer opset? Operator by operator, by rules; a node that no rule fits is named.

onnx's version converter takes several operators for what they are not (Resize 10, Upsample, Hardmax, RoiAlign), so none
of it is used: `opset_rules` says what each change of an operator's form asks for. What the rules do not know is checked
against the new schema. `manager.raising` runs both graphs and compares them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx
from onnx import helper

from onnxcomp.errors import ModelError
from onnxcomp.graph.functions import inline_functions
from onnxcomp.graph.ir import Graph, Node, is_onnx
from onnxcomp.graph.opset_rules import RULES, CannotRaiseError, Edit
from onnxcomp.graph.shapes import infer


def upgrade(graph: Graph, version: int) -> list[str]:
    """Bring a model to at least opset `version` of the default domain, in place, bodies included.

    Nodes, tensors, weights and names stay what they were; what a rule adds gets names of its own, and attributes that
    became inputs become initializers. Local functions are inlined first.

    Returns:
        What was done, a sentence each; nothing where the model is new enough.

    Raises:
        ModelError: an operator has no equal in the new opset; it is named. The graph may then be half changed.
    """
    graph = graph.root
    before = graph.opset
    if before >= version:
        return []
    notes = inline_functions(graph)
    shapes = infer(graph)
    for step in range(before + 1, version + 1):
        for scope in list(graph.scopes()):
            for node in list(scope.nodes):
                if is_onnx(node.domain):
                    _bring(Edit(graph, scope, node, shapes, version), step)
    for entry in graph.model.opset_import:
        if is_onnx(entry.domain):
            entry.version = version
    least = int(helper.find_min_ir_version_for([helper.make_opsetid("", version)], ignore_unknown=True))
    graph.model.ir_version = max(graph.model.ir_version, least)
    graph.sort()
    return [*notes, f"opset raised from {before} to {version}"]


def changes(op: str, before: int, after: int) -> list[int]:
    """The versions in (before, after] at which an operator of the default domain got a new schema."""
    return [version for version in _history(op) if before < version <= after]


def _bring(edit: Edit, step: int) -> None:
    """One node over one version."""
    node = edit.node
    history = _history(node.op)
    if step not in history or step == history[0]:  # an operator that is new at this version stands for itself before
        return
    try:
        rule = RULES.get((node.op, step))
        if rule is not None:
            rule(edit)
        else:
            _check_fits(node, step)
    except CannotRaiseError as error:
        raise ModelError(
            f"{node.op} has another form from opset {step} on, and this one has no equal there: {error}",
            where=f"node {node}",
            do=f"export the model with opset {edit.version} or newer",
        ) from error


def _check_fits(node: Node, version: int) -> None:
    """Whether a node reads the same by the newer schema, as far as its form tells.

    Raises:
        CannotRaiseError: it has attributes or ports that the newer schema does not.
    """
    schema = onnx.defs.get_schema(node.op, version, "")
    if schema.deprecated:
        raise CannotRaiseError("the operator is gone")
    unknown = sorted(set(node.attrs) - set(schema.attributes))
    if unknown:
        raise CannotRaiseError(f"attribute {unknown[0]} is gone")
    for ports, least, most in (
        (node.inputs, schema.min_input, schema.max_input),
        (node.outputs, schema.min_output, schema.max_output),
    ):
        if not least <= len(ports) <= most:
            raise CannotRaiseError(f"it has {len(ports)} inputs or outputs, and {least} to {most} are allowed")


@functools.cache
def _schemas() -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for name, version in _versions():
        found.setdefault(name, []).append(version)
    return {name: tuple(sorted(versions)) for name, versions in found.items()}


def _versions() -> Iterator[tuple[str, int]]:
    return ((s.name, int(s.since_version)) for s in onnx.defs.get_all_schemas_with_history() if s.domain == "")


def _history(op: str) -> tuple[int, ...]:
    return _schemas().get(op, ())
