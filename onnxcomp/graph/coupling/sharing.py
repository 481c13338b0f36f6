"""Vectors that several nodes read: each node gets a copy of its own for the analysis, so that no false ties arise.

Exporters keep equal initializers once, and a fresh model's biases are all zeros: without copies a bias would tie every
layer to every other. Copies that come out equal are one again afterwards. Shared matrices stay shared: they are meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.ir import Constant, Graph, Node


@dataclass(frozen=True)
class Copy:
    """One node's own copy of a vector."""

    node: Node
    port: int
    original: Constant
    own: Constant


def split_vectors(graph: Graph) -> list[Copy]:
    """Give every reader of a shared float vector but the first a copy, which holds the same array."""
    found = []
    inside = set(graph.nodes)
    for constant in graph.constants():
        if len(constant.shape) != 1 or constant.size < 2 or len(constant.outputs) < 2 or graph.is_output(constant):
            continue
        readers = [(node, port) for node in dict.fromkeys(constant.outputs) for port in _ports(node, constant)]
        if constant in graph.kept_inputs or any(node not in inside for node, _ in readers):
            continue
        if "float" not in constant.dtype.name:
            continue
        for node, port in readers[1:]:
            own = Constant(graph.unique_name(f"{constant.name}_{node.name}"), constant.payload, constant.scope)
            node.inputs[port] = own
            found.append(Copy(node, port, constant, own))
    return found


def join_vectors(copies: list[Copy]) -> None:
    """Let copies that are still equal to what they were taken from, or to each other, be one again."""
    kept: dict[Constant, list[Constant]] = {}
    for copy in copies:
        if copy.port >= len(copy.node.inputs) or copy.node.inputs[copy.port] is not copy.own:
            continue
        known = kept.setdefault(copy.original, [copy.original] if copy.original.outputs else [])
        same = next((c for c in known if c is not copy.own and _equal(c, copy.own)), None)
        if same is None:
            known.append(copy.own)
        else:
            copy.node.inputs[copy.port] = same


def _ports(node: Node, constant: Constant) -> list[int]:
    return [port for port, tensor in enumerate(node.inputs) if tensor is constant]


def _equal(first: Constant, second: Constant) -> bool:
    return first.shape == second.shape and np.array_equal(first.values, second.values)
