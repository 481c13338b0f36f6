"""What of a training graph runs before the gradient's part? Nodes with bodies, which the gradient builder cannot read.

If, Loop and Scan stand before all that is trained, or the parent has refused them: what they give does not change while
weights move. They and what they need are a graph of their own, whose results enter the rest as inputs.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper
from onnxruntime import InferenceSession

from .channel import Array, RefusedError


def has_bodies(node: onnx.NodeProto) -> bool:
    """Whether a node holds graphs."""
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node needs: its inputs and what its bodies capture."""
    found = list(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                found += reads(inner)
            found += [output.name for output in body.output]
    return found


def split(model: onnx.ModelProto, moving: Collection[str]) -> onnx.ModelProto | None:
    """Take the nodes with bodies, and all they need, out of a graph; None where it has none.

    The model given keeps the rest, which reads their results as inputs.

    Args:
        moving: parameters and statistics.

    Raises:
        RefusedError: such a node depends on a parameter.
    """
    nodes = list(model.graph.node)
    wanted = {name for node in nodes if has_bodies(node) for name in (*node.output, *reads(node))}
    if not wanted:
        return None
    first: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            first.insert(0, node)
            wanted.update(reads(node))
    if stuck := sorted(wanted.intersection(moving)):
        raise RefusedError(
            "model",
            f"the parameter {stuck[0]!r} leads into a node with branches or loops, through which no gradient flows",
            do="freeze it",
        )
    taken = {id(node) for node in first}
    rest = [node for node in nodes if id(node) not in taken]
    made = {name for node in first for name in node.output}
    crossing = sorted(made.intersection(name for node in rest for name in reads(node)))
    before = onnx.ModelProto()
    before.CopyFrom(model)
    _keep(before.graph, first)
    del before.graph.output[:]
    before.graph.output.extend(onnx.ValueInfoProto(name=name) for name in crossing)
    _keep(model.graph, rest)
    model.graph.input.extend(_as_inputs(before))
    return before


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    needed = {name for node in kept for name in reads(node)}
    del graph.node[:]
    graph.node.extend(kept)
    for entries in (graph.initializer, graph.input):
        used = [entry for entry in entries if entry.name in needed]
        del entries[:]
        entries.extend(used)


def _as_inputs(before: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The results with the types and sizes that a run on zeros shows: every size of the graph is fixed."""
    session = InferenceSession(before.SerializeToString(), providers=["CPUExecutionProvider"])
    zeros: dict[str, Array] = {}
    for value in before.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        zeros[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    names = [output.name for output in before.graph.output]
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, session.run(names, zeros), strict=True)
    ]
