"""What does a Constant node hold? Several exporters write every weight as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import AttributeProto, numpy_helper

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Stored, Tensor, is_onnx
from onnxcomp.graph.stored import check_sparse, dense

_FORMS = (("float", np.float32), ("int", np.int64), ("string", object))


def constant_value(node: Node) -> Array | Stored | None:
    """The value of a Constant node, where it lies where nothing changed it; None for other nodes.

    Raises:
        ModelError: a sparse tensor's indices do not fit it.
    """
    if node.op != "Constant" or not is_onnx(node.domain):
        return None
    attrs: dict[str, Any] = node.attrs
    value, proto = node.origin.get("value", (None, None))
    if proto is not None and value is attrs.get("value") and not proto.t.external_data:
        tensor = proto.t
        return Stored(tensor, lambda: numpy_helper.to_array(tensor))
    if isinstance(attrs.get("value"), np.ndarray):
        array: Array = attrs["value"]
        return array
    if isinstance(attrs.get("sparse_value"), AttributeProto):
        sparse = attrs["sparse_value"].sparse_tensor
        check_sparse(sparse)
        return Stored(sparse, lambda: dense(sparse))
    for kind, dtype in _FORMS:
        for key in (f"value_{kind}", f"value_{kind}s"):
            if key in attrs:
                return np.asarray(attrs[key], dtype)
    return None


def literal(tensor: Tensor | None) -> Constant | None:
    """The tensor as an initializer where it is one or a Constant node makes it; a copy that no graph knows then."""
    if tensor is None or isinstance(tensor, Constant):
        return tensor
    value = constant_value(tensor.producer) if tensor.producer is not None else None
    return None if value is None else Constant(tensor.name, value)


def is_numeric(value: Array | Stored) -> bool:
    """Whether the value holds numbers or truth values, not strings."""
    return value.dtype != np.dtype(object)


def lift(
    graph: Graph, wanted: Callable[[Array | Stored], bool] = is_numeric, *, stay: bool = False
) -> list[tuple[Node, Constant]]:
    """Let initializers take the place of what Constant nodes of the main graph hold; those that make outputs stay.

    Args:
        wanted: of the values; numbers if not given.
        stay: the nodes stay as well, read by nothing, and the initializers have names of their own.

    Returns:
        The nodes, and what took their places.
    """
    found = []
    for node in graph.nodes:
        value, output = constant_value(node), node.output(0)
        if value is None or output is None or graph.is_output(output) or not wanted(value):
            continue
        constant = Constant(graph.unique_name(output.name) if stay else output.name, value)
        graph.replace_uses(output, constant)
        found.append((node, constant))
    if not stay:
        graph.remove_nodes([node for node, _ in found])
    return found


def is_weight(value: Array | Stored) -> bool:
    """Whether the value is of floating point, and no single number."""
    return value.dtype.kind == "f" and math.prod(value.shape) >= 2
