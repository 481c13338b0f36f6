"""What does a Constant node hold? Several exporters write every weight as one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import AttributeProto, numpy_helper

from onnxcomp.graph.ir import Array, Constant, Graph, Node, Stored, Tensor
from onnxcomp.graph.stored import check_sparse, dense

_FORMS = (("float", np.float32), ("int", np.int64), ("string", object))


def constant_value(node: Node) -> Array | Stored | None:
    """The value of a Constant node, where it lies where nothing changed it; None for other nodes.

    Raises:
        ModelError: a sparse tensor's indices do not fit it.
    """
    if node.op != "Constant" or node.domain not in (None, "", "ai.onnx"):
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


def lift_weights(graph: Graph) -> int:
    """Let what Constant nodes of the main graph hold in floating point, single numbers aside, become initializers.

    They keep their names. Returns how many there were.
    """
    gone = []
    for node in graph.nodes:
        value = constant_value(node)
        if value is None or value.dtype.kind != "f" or math.prod(value.shape) < 2 or graph.is_output(node.outputs[0]):
            continue
        graph.replace_uses(node.outputs[0], Constant(node.outputs[0].name, value))
        gone.append(node)
    graph.remove_nodes(gone)
    return len(gone)
